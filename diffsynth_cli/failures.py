"""What an error means to the user: a message, what to do about it, and an exit code. Imports nothing heavy."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

FAILED, INTERRUPTED = 1, 130


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM. Not a KeyboardInterrupt, which Typer would turn into an exit code by itself."""


@dataclass
class Call:
    """A command line and, once it has been parsed, what it asks for.

    Attributes:
        arguments: The words after `diffsynth`.
        command: The command's name.
        options: The values of its parameters.
    """

    arguments: list[str]
    command: str = ""
    options: dict[str, object] = field(default_factory=dict)

    @property
    def debug(self) -> bool:
        """Whether errors are shown with a traceback."""
        return bool(self.options.get("debug"))

    @property
    def as_json(self) -> bool:
        """Whether a program reads the output."""
        return bool(self.options.get("events"))

    @property
    def resumption(self) -> list[str]:
        """The arguments that resume this call, without a `--restart` that would discard finished work.

        `run` keeps it: it redoes stale stages only, and those already redone are not stale.
        """
        restarts = self.options.get("restart") and self.command != "run"
        return [word for word in self.arguments if not (restarts and word == "--restart")]


def explain(error: Exception) -> tuple[str, str, int]:
    """Return what went wrong, what to do about it, and the exit code."""
    from stages.base.errors import DiffSynthError

    if isinstance(error, DiffSynthError):
        return error.message, error.hint, error.exit_code
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk is full: {error}", "Free some space, then run the same command to resume.", FAILED
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror}", "", FAILED
    if isinstance(error, UnicodeEncodeError):
        unknown = error.object[error.start : error.end]
        return (
            f"The locale's encoding cannot represent {unknown}",
            "Set a UTF-8 locale, for example LC_ALL=C.UTF-8.",
            FAILED,
        )
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return (
            "Out of memory",
            "Try --batch-size 1, --low-vram, smaller frames, a shorter combine_pattern or, in a second pass, tiles. "
            "--device cpu smooths without GPU memory.",
            FAILED,
        )
    return f"{type(error).__name__}: {error}", "This is a bug. --debug shows where it happened.", FAILED
