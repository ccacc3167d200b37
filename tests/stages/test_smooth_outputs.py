"""Outputs of `diffsynth smooth`: what is overwritten, and when an output counts as complete."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import av
import pytest

from stages import smooth
from tests.conftest import write_images
from tests.stages.smoothers.images.test_offset import UNEVEN, pan
from tests.stages.smoothers.scenes import Scene
from tests.stages.test_smooth import OPTIONS, clip, folders, images, video
from tests.typing import Cli

__all__ = ["clip", "folders"]  # fixtures


def checksums(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_inputs_are_never_overwritten(tmp_path: Path, clip: Scene, folders: tuple[Path, Path], cli: Cli) -> None:
    guide, style = folders
    film = video(tmp_path / "film.mp4", clip.styles)
    (tmp_path / "link.mp4").symlink_to(film)
    os.link(film, tmp_path / "hard.mp4")
    before = checksums(tmp_path)
    for inputs, output in (
        ((guide, film), film),
        ((film, style), film),
        ((film,), film),
        ((guide, film), f"{tmp_path}/guide/../film.mp4"),
        ((guide, film), tmp_path / "link.mp4"),
        ((guide, tmp_path / "link.mp4"), film),
        ((guide, film), tmp_path / "hard.mp4"),
        ((guide, style), style),
        ((guide, style), guide),
        ((guide, style), style / "out.mp4"),
        ((guide, film), tmp_path),
    ):
        for force in ((), ("--force",)):
            code, message = cli("smooth", *inputs, "-o", output, *force)
            assert code == 2 and message.count("error:") == 1 and "input" in message, message
            assert checksums(tmp_path) == before


def test_other_files_are_overwritten_only_with_force(
    tmp_path: Path, clip: Scene, folders: tuple[Path, Path], cli: Cli
) -> None:
    mine, full = video(tmp_path / "mine.mp4", clip.guides), write_images(tmp_path / "full", clip.guides[:2])
    before = checksums(tmp_path)
    for output, expected in ((mine, "mine.mp4 exists"), (full, "is not empty")):
        code, message = cli("smooth", *folders, "-o", output, *OPTIONS)
        assert code == 2 and expected in message and "--force" in message and checksums(tmp_path) == before
    code, message = cli("smooth", *folders, "-o", full, "--force", *OPTIONS)
    assert code == 2 and "contains 0.png, which this program did not write" in message  # its own are named otherwise
    assert checksums(tmp_path) == before
    assert cli("smooth", *folders, "-o", mine, "--force", *OPTIONS)[0] == 0
    assert len(images(mine)) == 12


def test_a_cache_folder_of_somebody_else_is_left_alone(tmp_path: Path, folders: tuple[Path, Path], cli: Cli) -> None:
    (tmp_path / "out.cache.zarr").mkdir()
    (tmp_path / "out.cache.zarr/notes.txt").write_text("mine")
    code, output = cli("smooth", *folders, "-o", tmp_path / "out", *OPTIONS)
    assert (
        code == 2
        and "is needed for unfinished work" in output
        and (tmp_path / "out.cache.zarr/notes.txt").read_text() == "mine"
    )


@pytest.mark.parametrize("name", ["out", "out.mp4", "out.webm"])
def test_a_finished_run_says_so(
    tmp_path: Path, folders: tuple[Path, Path], cli: Cli, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("smooth", *folders, "-o", tmp_path / name)
    assert cli(*arguments, *OPTIONS)[0] == 0
    before = checksums(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(smooth, "fill", lambda *_, **__: pytest.fail("is redone"))
        code, output = cli(*arguments, *OPTIONS)
        assert code == 0 and "nothing to do" in output and checksums(tmp_path) == before
        code, output = cli(*arguments, *OPTIONS, "--strength", 0.5)
        assert code == 2 and "with other options" in output and "--force" in output and checksums(tmp_path) == before
    assert not list(tmp_path.glob("*.cache.zarr"))
    assert cli(*arguments, *OPTIONS, "--restart")[0] == 0
    assert checksums(tmp_path) == before
    assert cli(*arguments, *OPTIONS, "--strength", 0.5, "--force")[0] == 0
    assert checksums(tmp_path) != before
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(["guide", "style", name])


def test_a_folder_with_a_missing_image_does_not_count_as_complete(
    tmp_path: Path, folders: tuple[Path, Path], cli: Cli
) -> None:
    assert cli("smooth", *folders, "-o", tmp_path / "out", *OPTIONS)[0] == 0
    (tmp_path / "out/00007.png").unlink()
    code, output = cli("smooth", *folders, "-o", tmp_path / "out", *OPTIONS)
    assert code == 2 and "is not empty" in output


def test_suffixes_choose_the_kind_of_output(tmp_path: Path, folders: tuple[Path, Path], cli: Cli) -> None:
    assert cli("smooth", *folders, "-o", tmp_path / "x.webm", *OPTIONS)[0] == 0
    with av.open(str(tmp_path / "x.webm")) as container:
        assert container.streams.video[0].codec_context.name in ("vp9", "libvpx-vp9")
    assert cli("smooth", *folders, "-o", tmp_path / "v1.5", *OPTIONS)[0] == 0
    assert len(list((tmp_path / "v1.5").glob("*.png"))) == 12


def test_odd_sizes_are_reported(tmp_path: Path, cli: Cli) -> None:
    style = write_images(tmp_path / "style", pan(0, UNEVEN[:6])[:, :47, :63])
    code, output = cli("smooth", style, "-o", tmp_path / "out.mp4", *OPTIONS)
    assert code == 0 and "64×48 instead of 63×47" in output
    code, output = cli("smooth", style, "-o", tmp_path / "out", *OPTIONS)
    assert code == 0 and "instead of" not in output and images(tmp_path / "out").shape[1:3] == (47, 63)
