"""A disturbed job ends with the bytes of an undisturbed one, and `tools.chaos` would notice if it did not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stages.base.cache import FrameCache
from tools.chaos.faults import FAULTS, disturb, usable
from tools.chaos.world import World, Wrong, world

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("chaos"), seed=0) as made:
        yield made


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_changes_no_byte(name: str, made: World) -> None:
    if name not in usable():
        pytest.skip("needs root on Linux")
    try:
        disturb(made, name)
        made.complete()
    except Wrong as wrong:
        pytest.fail("\n".join([*made.log, str(wrong)]))
    finally:
        made.start_over()


def another_frame(output: Path) -> None:
    frames = FrameCache(output / "cache.zarr")["deflickered"]
    frames.write(3, frames[4:5])


def another_video(output: Path) -> None:
    with (output / "video.mp4").open("ab") as video:
        video.write(b"more")


@pytest.mark.parametrize("change", [another_frame, another_video])
def test_a_wrong_byte_is_noticed(change: Callable[[Path], None], made: World) -> None:
    made.complete()
    change(made.output)
    with pytest.raises(Wrong, match=r"1 of .* files differ"):
        made.compare()
    made.start_over()


def test_an_exit_that_a_fault_does_not_explain_is_noticed(made: World) -> None:
    image = made.folder / "images/1.png"
    original = image.read_bytes()
    image.write_bytes(b"no image")
    with pytest.raises(Wrong, match="exit code"):
        made.complete()
    image.write_bytes(original)
    made.start_over()
