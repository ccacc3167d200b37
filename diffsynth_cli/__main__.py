"""The program. The only place where an error becomes a message and an exit code."""

from __future__ import annotations

import errno
import io
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from types import FrameType

FAILED, INTERRUPTED = 1, 130


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM. Not a KeyboardInterrupt, of which Typer makes exit codes of its own."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        from diffsynth_cli.app import app  # here, so that Ctrl-C is answered from the first moment on

        app(arguments, prog_name="diffsynth")
    except SystemExit as end:  # Typer ends so when all went well, and after it has shown a usage error
        return end.code if isinstance(end.code, int) else FAILED
    except (Interrupted, KeyboardInterrupt):
        tell(arguments, "interrupted; nothing is lost", f"diffsynth {shlex.join(going_on(arguments))} goes on")
        return INTERRUPTED
    except Exception as error:
        if "--debug" in arguments:
            raise
        message, hint, code = explain(error)
        tell(arguments, message, hint)
        return code
    return 0


def tell(arguments: Sequence[str], message: str, hint: str) -> None:
    """The one message that a failure gets; with --json as an event too."""
    from diffsynth_cli.console import show_error, show_event

    show_error(message, hint)
    if "--json" in arguments:
        show_event("error", message=message, hint=hint)


def going_on(arguments: Sequence[str]) -> list[str]:
    """The command line that goes on with what this one began: `--restart` of a stage would begin it again.

    That of `run` only begins what is stale, which a stage begun anew no longer is.
    """
    return [argument for argument in arguments if argument != "--restart" or "run" in arguments[:1]]


def explain(error: Exception) -> tuple[str, str, int]:
    """What went wrong, what to do, and the exit code."""
    from stages.base.errors import DiffSynthError

    if isinstance(error, DiffSynthError):
        return error.message, error.hint, error.exit_code
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full: {error}", "make room; the same command then goes on", FAILED
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror}", "", FAILED
    if isinstance(error, UnicodeEncodeError):
        unknown = error.object[error.start : error.end]
        return f"the locale's encoding has no {unknown}", "set a UTF-8 locale, for example LC_ALL=C.UTF-8", FAILED
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return (
            "out of memory",
            "--batch-size 1, --low-vram, a smaller frame size or a shorter combine_pattern need less; "
            "--device cpu smooths without a GPU's memory",
            FAILED,
        )
    return f"{type(error).__name__}: {error}", "this should not happen; --debug shows where", FAILED


def entry() -> None:
    """The console script."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Interrupted

    for stream in (sys.stdout, sys.stderr):  # a character that the terminal's encoding lacks is no failure
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    # Read when torch or the patch-matching library is loaded, whichever is first: threads of GNU OpenMP that have
    # nothing to do shall sleep, not wait busily. (The demo took 43 s instead of 46 s on two idle cores; beside other
    # programs the difference is much larger.)
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    code = main()
    if code == INTERRUPTED:  # at once: all that counts is on the disk, and taking torch down takes seconds
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    entry()
