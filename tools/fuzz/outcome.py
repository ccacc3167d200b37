"""Run a command line, in this process or in a new one, and classify the outcome."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import IO

from diffsynth_cli.__main__ import main

TIMEOUT = 60.0  # s
KINDS = ("success", "refusal", "unexplained", "traceback", "hang", "stray")
BAD = KINDS[2:]
UNEXPLAINED = "This is a bug."  # printed for unexpected errors


class Hang(BaseException):
    """A command took too long."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a command: its kind, exit code (None if it was stopped), output and duration."""

    kind: str
    code: int | None
    output: str
    seconds: float

    @property
    def message(self) -> str:
        """The line of the output that says what was wrong."""
        lines = [line.strip(" │") for line in self.output.splitlines()]
        first = next((i for i, line in enumerate(lines) if line.startswith(("error:", "Invalid value"))), 0)
        return " ".join(lines[first : first + 2]) or "(nothing)"


def run(arguments: Sequence[str], folder: Path, new_process: bool = False) -> Outcome:
    """Run `diffsynth` in `folder`, with `new_process` in a process of its own with LANG=C."""
    started = time.monotonic()
    code, output = _in_new_process(arguments, folder) if new_process else _in_this_process(arguments, folder)
    return Outcome(_kind(code, output), code, output, time.monotonic() - started)


def contents(folder: Path) -> dict[Path, str]:
    """Return the hashes of all files in a folder."""
    return {path: sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def checked(outcome: Outcome, folder: Path, before: Mapping[Path, str], allowed: Sequence[str]) -> Outcome:
    """Return the outcome, or a bad one if the command has written, changed or removed files where it must not.

    Args:
        folder: Where it was run.
        before: The contents of the folder before.
        allowed: What it may write in the folder. Files that are in nothing but the first must not be changed.
    """
    after, places = contents(folder), [Path(os.path.normpath(folder / name)) for name in allowed if "\0" not in name]
    made = [path for path in after.keys() - before if not any(path.is_relative_to(place) for place in places)]
    changed = [path for path in before if not path.is_relative_to(places[0]) and before[path] != after.get(path)]
    if outcome.kind in BAD or not made + changed:
        return outcome
    listed = ", ".join(sorted(str(path.relative_to(folder)) for path in made + changed))
    return replace(outcome, kind="stray", output=f"{outcome.output}\nwritten or changed: {listed}")


def _kind(code: int | None, output: str) -> str:
    if "Traceback (most recent call last)" in output:
        return "traceback"
    if code is None:
        return "hang"
    if code == 0:
        return "success"
    explained = code in (1, 2) and output.strip() and UNEXPLAINED not in output
    return "refusal" if explained else "unexplained"


def _in_this_process(arguments: Sequence[str], folder: Path) -> tuple[int | None, str]:
    code: int | None
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="backslashreplace") as file:
        with _captured(file), contextlib.chdir(folder), _alarm():
            try:
                code = main(arguments)
            except Hang:
                code = None
            except BaseException:
                traceback.print_exc()
                code = 1
        file.seek(0)
        return code, file.read()


@contextlib.contextmanager
def _captured(file: IO[str]) -> Iterator[None]:
    """Redirect everything that Python and native libraries print to `file`."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(descriptor) for descriptor in (1, 2)]
    try:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            yield
    finally:
        file.flush()
        for descriptor, old in zip((1, 2), saved, strict=True):
            os.dup2(old, descriptor)
            os.close(old)


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    """Raise Hang after TIMEOUT seconds. If native code blocks Python, end the process a little later."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, TIMEOUT)
    faulthandler.dump_traceback_later(3 * TIMEOUT, exit=True, file=sys.__stderr__ or 2)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()


def _in_new_process(arguments: Sequence[str], folder: Path) -> tuple[int | None, str]:
    command = [sys.executable, "-m", "diffsynth_cli", *arguments]
    environment = {**os.environ, "LANG": "C", "PYTHONPATH": str(Path(__file__).parents[2])}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired as error:
        return None, (error.stdout or b"").decode(errors="backslashreplace")
    return done.returncode, done.stdout.decode(errors="backslashreplace")
