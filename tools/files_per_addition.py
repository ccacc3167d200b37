"""Count the files of the program that name one annotator, smoother, sampler, job key or stage.

Adding another one touches about as many. `python -m tools.files_per_addition` prints the table that
docs/contributing.md shows; `--files` also lists the files.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
BEFORE = "315e7fb"  # the last commit before declarations moved into one place
PROGRAM = ("diffsynth_cli", "stages", "native", "templates/*.py", "templates/Makefile")
# An example of each kind, and the extended regular expression that finds its name.
EXAMPLES = {
    "annotator": ("`dwpose`", r"\bdwpose\b"),
    "smoother": ("`PatchBlendSmoother`", r"\bPatchBlendSmoother\b"),
    "sampler": ("`lcm`", r"[\"'`]lcm[\"'`]|\bLCM_"),
    "job key": ("`keep_frames`", r"\bkeep_frames\b"),
    "stage": (
        "`control`",
        r"[\"']control[\"']|(stages\.|import )control\b|JOB\.json control|^control:|diffsynth control",
    ),
}


def files_that_name(pattern: str, revision: str | None = None, root: Path = ROOT) -> list[str]:
    """Return the paths of the program's files that match the pattern, in a revision or in the working tree."""
    where = [revision] if revision else ["--untracked"]
    command = ["git", "grep", "-l", "-E", "-e", pattern, *where, "--", *PROGRAM]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if found.returncode > 1:  # 1 means no file
        raise RuntimeError(found.stderr.strip())
    return [line.removeprefix(f"{revision}:") for line in found.stdout.splitlines()]


def row(kind: str) -> str:
    """Return the table row of this kind: its example, and the numbers of files before and now."""
    name, pattern = EXAMPLES[kind]
    return f"| {kind} | {name} | {len(files_that_name(pattern, BEFORE))} | {len(files_that_name(pattern))} |"


def main() -> None:
    for kind, (_, pattern) in EXAMPLES.items():
        print(row(kind))
        if "--files" in sys.argv:
            print("\n".join(f"    {path}" for path in files_that_name(pattern)))


if __name__ == "__main__":
    main()
