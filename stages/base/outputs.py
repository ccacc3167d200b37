"""Checks of output paths. An input is never overwritten, any other file only with the user's consent."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from stages.base.errors import UsageError

SIGNATURE = "diffsynth-cli"
"""Start of the comment in videos and images that this program wrote."""

VIDEO, FRAMES = "video.mp4", "frames"
"""Results in a job's output folder: the video, and the folder of its frames as images."""


def check_inputs_kept(output: Path, inputs: Iterable[Path]) -> None:
    """Refuse an output that would overwrite an input or change the contents of an input folder.

    Files are compared rather than names, so links and other spellings of a path are recognised.

    Args:
        output: File or folder to be written. It need not exist.
        inputs: Files and folders that are read. Those that do not exist are skipped.

    Raises:
        UsageError: `output` is an input, is a folder that holds one, or would lie in an input folder.
    """
    for path in inputs:
        if not path.exists():
            continue
        if _is_same(output, path):
            name = "" if str(output) == str(path) else f" {path}"
            raise UsageError(f"{output} is the input{name}, which would be overwritten", "choose another output")
        if any(_is_same(output, folder) for folder in (*path.absolute().parents, *path.resolve().parents)):
            raise UsageError(f"{output} contains the input {path}", "choose another output")
        if path.is_dir() and _is_same(output.absolute().parent, path):
            raise UsageError(f"{output} would become one of the files of the input {path}", "choose another folder")


def check_output(output: Path, inputs: Iterable[Path] = (), *, force: bool = False, own: bool = False) -> None:
    """Refuse an output file that would overwrite anything the user has not agreed to lose.

    Args:
        output: File to be written.
        inputs: Files and folders that are read.
        force: The user agrees to overwrite an existing file, but never an input.
        own: An existing file at `output` was written by this program for the same purpose.

    Raises:
        UsageError: As for `check_inputs_kept`; or `output` is a folder, or exists without `force` or `own`.
    """
    check_inputs_kept(output, inputs)
    if output.is_dir():
        raise UsageError(f"{output} is a folder", "give the name of a file")
    if os.path.lexists(output) and not (force or own):
        raise UsageError(f"{output} exists", "overwrite it with --force, or choose another output")


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of them does not exist
        return False
