"""Errors that a user is meant to read."""

from __future__ import annotations


class DiffSynthError(Exception):
    """Something went wrong that the user can understand and act on.

    `message` says what happened and where, `hint` what to do about it (a command, a key, a value).
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(DiffSynthError):
    """The command line or the job file is wrong; nothing was started."""

    exit_code = 2
