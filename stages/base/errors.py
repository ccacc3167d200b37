"""Errors whose messages are for users."""

from __future__ import annotations


class DiffSynthError(Exception):
    """An error that the user can understand and act on.

    Args:
        message: What happened, and where.
        hint: What to do about it: a command, a key or a value.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(DiffSynthError):
    """The command line or the job file is wrong; nothing was started."""

    exit_code = 2
