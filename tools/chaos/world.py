"""A job that is disturbed, and what it must be in the end."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from diffsynth_cli.outputs import CONFIG
from stages.base.outputs import VIDEO
from tests.conftest import scene, write_images, write_job
from tests.object_stores import contents
from tests.processes import Program
from tools.fuzz.outcome import UNEXPLAINED

FRAMES = 16
KEYS = {
    "combine_pattern": [-10000, -1, 0, 1], "num_inference_steps": 2, "keep_steps": True,
    "smoother": "TemporalMeanSmoother", "post_smoother": "PatchBlendSmoother", "batch_size": 2,
}  # fmt: skip
DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130
PATIENCE = 120  # s that a command may take
MOST_EVENTS = 30  # after which a fault comes, of about as many that a run has
ATTEMPTS = 3  # to finish a damaged job


class Wrong(Exception):
    """The program did something that it must never do."""


@dataclass
class World:
    """A job that is disturbed.

    Args:
        folder: Where its files are.
        chance: Decides when and where faults happen.
        expected: What arrays and video must be.
    """

    folder: Path
    chance: random.Random
    expected: dict[str, str] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    """What happened since all results were last removed."""
    url: str = ""
    """Where the cache is, if not in the output folder."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Further environment variables for the program."""

    @property
    def job(self) -> Path:
        return self.folder / "job.json"

    @property
    def output(self) -> Path:
        return self.folder / "out"

    def start(self, *options: str, command: str = "run") -> Program:
        """Start or resume the job, or another command for it."""
        self.log.append(" ".join([command, *options]))
        place = ["--cache", self.url] if self.url else []
        return Program(command, self.job, "--json", *place, *options, environment=self.environment)

    def let_it_work(self, program: Program) -> None:
        """Wait for a random moment of a run."""
        for _ in range(self.chance.randint(0, MOST_EVENTS)):
            if not program.out.readline():
                return
        time.sleep(self.chance.random() * 0.05)

    def send(self, program: Program, *how: signal.Signals) -> None:
        """Send signals to a run, a moment apart, unless it has ended."""
        for each in how:
            with suppress(ProcessLookupError):
                os.kill(program.pid, each)
            time.sleep(0.1 if len(how) > 1 else 0)

    def finish(self, program: Program, *codes: int) -> int:
        """Wait for the end of a run, and return its exit code, which must be 0 or one of these."""
        program.process.join(PATIENCE)
        if program.process.exitcode is None:
            program.process.kill()
            raise Wrong(f"it did not end within {PATIENCE} s")
        code, _, printed = program.finish()
        self.log.append(f"  exit code {code}: {printed.strip()[-4000:]}")
        if "Traceback" in printed or UNEXPLAINED in printed or code not in (DONE, *codes):
            raise Wrong(f"exit code {code}")
        if code in (FAILED, REFUSED) and "error:" not in printed:
            raise Wrong("it failed without a message")
        return code

    def complete(self, *, damaged: bool = False) -> None:
        """Finish the job, and compare its bytes. A run may refuse damaged files, and is then restarted."""
        if self.finish(self.start(), *([FAILED, REFUSED] if damaged else [])) == REFUSED:
            for name in (CONFIG, VIDEO):  # perhaps the user's own, so no run replaces them unasked
                (self.output / name).unlink(missing_ok=True)
        codes = (self.finish(self.start("--restart"), FAILED) for _ in range(ATTEMPTS))
        if damaged and all(code != DONE for code in codes):
            raise Wrong("--restart does not repair it")
        if damaged:
            self.heed_verify()
        self.compare()

    def heed_verify(self) -> None:
        """Delete the video if `verify` says that it is damaged, and have it written again.

        The user may have changed it, so no run replaces it unasked.
        """
        if self.finish(self.start(command="verify"), FAILED) == FAILED:
            (self.output / VIDEO).unlink()
            self.finish(self.start())

    def compare(self) -> None:
        """Raise Wrong unless the results are those of an undisturbed run."""
        found = results(self.output, self.url)
        different = sorted(name for name in {*found, *self.expected} if found.get(name) != self.expected.get(name))
        if different:
            raise Wrong(f"{len(different)} of {len(self.expected)} files differ: {', '.join(different[:5])}")

    def start_over(self) -> None:
        """Remove all results."""
        shutil.rmtree(self.output, ignore_errors=True)

    def files(self) -> list[Path]:
        """Return all files that the program has written, in order."""
        return sorted(path for path in self.output.rglob("*") if path.is_file())


def results(output: Path, url: str = "") -> dict[str, str]:
    """Return the hashes of all arrays' files and of the video. Metadata of groups says only that they are groups."""
    video, files = output / VIDEO, contents(url or output / "cache.zarr")
    arrays = {name.rpartition("/c.")[0] for name in files if "/c." in name}
    kept = {name: digest for name, digest in files.items() if "/c." in name or name.rpartition("/")[0] in arrays}
    return {**kept, video.name: sha256(video.read_bytes()).hexdigest() if video.exists() else ""}


@contextmanager
def world(folder: Path, seed: int) -> Iterator[World]:
    """Yield a job in a new folder, after an undisturbed run of it."""
    write_images(folder / "images", (scene(index) for index in range(FRAMES)))
    write_job(folder, FRAMES, **KEYS)
    made = World(folder, random.Random(seed))
    made.finish(made.start())
    made.expected = results(made.output)
    made.start_over()
    yield made
