"""One command line, run in this process or in a new one, and what became of it."""

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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from diffsynth_cli.__main__ import main

LONGEST = 60.0  # s; what takes longer hangs
KINDS = ("success", "refusal", "unexplained", "traceback", "hang")
BAD = KINDS[2:]
UNEXPLAINED = "This is a bug."  # what the program says about an error that it does not know


class Hang(BaseException):
    """A command took too long."""


@dataclass(frozen=True)
class Outcome:
    """What became of a command. `said`: all that it printed."""

    kind: str
    code: int | None
    said: str
    seconds: float

    @property
    def message(self) -> str:
        """The line that says what was wrong."""
        lines = [line.strip(" │") for line in self.said.splitlines()]
        first = next((i for i, line in enumerate(lines) if line.startswith(("error:", "Invalid value"))), 0)
        return " ".join(lines[first : first + 2]) or "(nothing)"


def run(arguments: Sequence[str], folder: Path, apart: bool = False) -> Outcome:
    """Run `diffsynth` with these arguments in `folder`, `apart` in a process of its own with LANG=C."""
    started = time.monotonic()
    code, said = _in_new_process(arguments, folder) if apart else _in_this_process(arguments, folder)
    return Outcome(_kind(code, said), code, said, time.monotonic() - started)


def _kind(code: int | None, said: str) -> str:
    if "Traceback (most recent call last)" in said:
        return "traceback"
    if code is None:
        return "hang"
    if code == 0:
        return "success"
    explained = code in (1, 2) and said.strip() and UNEXPLAINED not in said
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
    """All that Python and the libraries under it print goes to `file`."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(descriptor) for descriptor in (1, 2)]
    try:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            yield
    finally:
        file.flush()
        for descriptor, old in zip((1, 2), kept, strict=True):
            os.dup2(old, descriptor)
            os.close(old)


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    """Raises Hang after LONGEST seconds; where a library does not let Python in, ends the process a little later."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    faulthandler.dump_traceback_later(3 * LONGEST, exit=True, file=sys.__stderr__)
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
        ran = subprocess.run(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=LONGEST
        )
    except subprocess.TimeoutExpired as error:
        return None, (error.stdout or b"").decode(errors="backslashreplace")
    return ran.returncode, ran.stdout.decode(errors="backslashreplace")
