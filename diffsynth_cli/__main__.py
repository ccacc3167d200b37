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

PATIENCE = 3.0  # s that the program has to stop


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
    """
    call = Call(list(sys.argv[1:] if arguments is None else arguments))
    try:
        from diffsynth_cli.app import app  # takes part of a second, and Ctrl-C must work meanwhile

        app(call.arguments, prog_name="diffsynth", obj=call)
    except SystemExit as end:  # raised by Typer after success and after a usage error
        return end.code if isinstance(end.code, int) else FAILED
    except (Interrupted, KeyboardInterrupt):
        _stop_again_after(0)
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
    """Show why the command failed. With --json, print an event, too."""
    from diffsynth_cli.console import now, show_error, show_event

    show_error(message, hint)
    if call.as_json:
        show_event({"event": "error", "time": now(), "message": message, "hint": hint})


def _stop(signum: int, frame: FrameType | None) -> None:
    """Stop what runs. Some libraries drop the exception, for example while they are imported: then it comes again."""
    _stop_again_after(PATIENCE)
    sys.unraisablehook = lambda _: None  # what is half made now may fail to be removed, which says nothing to the user
    raise Interrupted


def _stop_again_after(seconds: float) -> None:
    """Call `_stop` after so many seconds; 0 cancels an earlier call. Windows has no such timer."""
    if hasattr(signal, "setitimer") and signal.getsignal(signal.SIGALRM) is _stop:
        signal.setitimer(signal.ITIMER_REAL, seconds)


def entry() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):  # escape characters that the encoding lacks
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    for name in ("SIGINT", "SIGTERM", "SIGALRM"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _stop)
    # GNU OpenMP reads this when torch or the patch-matching library is loaded: idle threads sleep instead of spinning.
    # The demo took 43 s instead of 46 s on two idle cores, and the difference is much larger on a busy machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    code = main()
    if code == INTERRUPTED:  # results are on the disk, and unloading torch takes seconds
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    entry()
