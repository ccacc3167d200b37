"""The program. The only place where an error becomes a message and an exit code."""

from __future__ import annotations

import io
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from diffsynth_cli.failures import FAILED, INTERRUPTED, Call, Interrupted, explain


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
    """
    call = Call(list(sys.argv[1:] if arguments is None else arguments))
    try:
        from diffsynth_cli.app import app  # takes part of a second, in which Ctrl-C must be answered, too

        app(call.arguments, prog_name="diffsynth", obj=call)
    except SystemExit as end:  # how Typer ends, whether all went well or it has shown a usage error
        return end.code if isinstance(end.code, int) else FAILED
    except (Interrupted, KeyboardInterrupt):
        _show(call, "Interrupted. Nothing was lost.", f"Resume with: diffsynth {shlex.join(call.resumption)}")
        return INTERRUPTED
    except Exception as error:
        if call.debug:
            raise
        message, hint, code = explain(error)
        _show(call, message, hint)
        return code
    return 0


def _show(call: Call, message: str, hint: str) -> None:
    """Show the one message of a failure; with --json as an event, too."""
    from diffsynth_cli.console import show_error, show_event

    show_error(message, hint)
    if call.as_json:
        show_event("error", message=message, hint=hint)


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
