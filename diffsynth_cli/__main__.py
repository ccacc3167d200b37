"""The program. The only place where an error becomes a message and an exit code."""

from __future__ import annotations

import errno
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
        from diffsynth_cli.console import show_error

        show_error("interrupted; nothing is lost", f"diffsynth {shlex.join(going_on(arguments))} goes on")
        return INTERRUPTED
    except Exception as error:
        if "--debug" in arguments:
            raise
        return _explain(error)
    return 0


def going_on(arguments: Sequence[str]) -> list[str]:
    """The command line that goes on with what this one began: `--restart` of a stage would begin it again.

    That of `run` only begins what is stale, which a stage begun anew no longer is.
    """
    return [argument for argument in arguments if argument != "--restart" or "run" in arguments[:1]]


def _explain(error: Exception) -> int:
    from diffsynth_cli.console import show_error
    from stages.base.errors import DiffSynthError

    if isinstance(error, DiffSynthError):
        show_error(error.message, error.hint)
        return error.exit_code
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        show_error(f"the disk is full: {error}", "make room; the same command then goes on")
    elif isinstance(error, OSError) and error.strerror:
        show_error(f"{error.filename or 'a file'}: {error.strerror}")
    elif isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        show_error("out of memory", "--batch-size 1, a smaller frame size or a shorter combine_pattern need less")
    else:
        show_error(f"{type(error).__name__}: {error}", "this should not happen; --debug shows where")
    return FAILED


def entry() -> None:
    """The console script."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Interrupted

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    code = main()
    if code == INTERRUPTED:  # at once: all that counts is on the disk, and taking torch down takes seconds
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    entry()
