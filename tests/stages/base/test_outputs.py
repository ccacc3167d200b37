"""Outputs never overwrite inputs, and other existing files only with --force."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stages.base.errors import UsageError
from stages.base.outputs import check_output


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In the current folder: video.mp4, other.mp4, a folder frames/ with 0.png, and links to these."""
    (tmp_path / "frames").mkdir()
    for name in ("video.mp4", "other.mp4", "frames/0.png"):
        (tmp_path / name).write_text(name)
    (tmp_path / "link.mp4").symlink_to("video.mp4")
    os.link(tmp_path / "video.mp4", tmp_path / "hard.mp4")
    (tmp_path / "same").symlink_to("frames")
    (tmp_path / "nowhere.mp4").symlink_to("absent.mp4")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("output", "source", "message"),
    [
        ("video.mp4", "video.mp4", "video.mp4 is the input"),
        ("./video.mp4", "video.mp4", "would be overwritten"),
        ("frames/../video.mp4", "video.mp4", "would be overwritten"),
        ("link.mp4", "video.mp4", "is the input video.mp4"),
        ("video.mp4", "link.mp4", "is the input link.mp4"),
        ("hard.mp4", "video.mp4", "is the input video.mp4"),
        ("frames", "frames", "is the input"),
        ("same", "frames", "is the input frames"),
        ("frames", "frames/0.png", "contains the input frames/0.png"),
        (".", "frames", "contains the input"),
        ("frames/out.mp4", "frames", "one of the files of the input frames"),
        ("same/out.mp4", "frames", "one of the files of the input frames"),
        ("frames/0.png", "frames", "one of the files of the input frames"),
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_an_output_that_touches_an_input_is_refused_with_and_without_force(
    files: Path, output: str, source: str, message: str, force: bool
) -> None:
    for path in (output, files / output):
        with pytest.raises(UsageError, match=message) as refused:
            check_output(Path(path), [Path("other.mp4"), Path("absent.mp4"), Path(source)], force=force, own=force)
        assert refused.value.exit_code == 2 and refused.value.hint


@pytest.mark.parametrize("output", ["other.mp4", "nowhere.mp4"])
def test_any_other_existing_file_needs_force(files: Path, output: str) -> None:
    with pytest.raises(UsageError, match=f"{output} exists"):
        check_output(Path(output), [Path("video.mp4")])
    check_output(Path(output), [Path("video.mp4")], force=True)
    check_output(Path(output), [Path("video.mp4")], own=True)


def test_a_folder_is_not_replaced_by_a_file(files: Path) -> None:
    with pytest.raises(UsageError, match="frames is a folder"):
        check_output(Path("frames"), [], force=True)


@pytest.mark.parametrize("output", ["new.mp4", "frames/new/out.mp4", "absent/out.mp4"])
def test_new_files_are_allowed(files: Path, output: str) -> None:
    check_output(Path(output), [Path("video.mp4"), Path("frames")])
