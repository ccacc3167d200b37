"""While a chunk is computed, the next one is read and the last one is written."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from stages.base import cache as frame_cache
from stages.base.cache import ArraySpec, FrameArray, FrameCache, KeptFrames
from stages.base.engine import Chunk, LocalEngine, Task
from stages.base.errors import DiffSynthError
from stages.base.overlap import OverlappedCache, Reads

CHUNKS = [(0, 2), (2, 4), (4, 6)]
PATIENCE = 10  # s, after which a test that waits for another thread fails


class Copy(Task):
    """Copy `source` to `target`, and call `before` ahead of each chunk."""

    def __init__(self, before: Callable[[FrameCache, int], object] = lambda cache, start: None):
        self.before = before

    def reads(self, start: int, stop: int) -> Reads:
        return [("source", range(start, stop))]

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        self.before(cache, start)
        cache["target"].write(start, cache["source"].read(range(start, stop)))


@pytest.fixture
def cache(tmp_path: Path) -> FrameCache:
    cache = FrameCache(tmp_path / "cache.zarr")
    frames = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    for name in ("source", "target"):
        cache.create(ArraySpec(name, frames.shape, "uint8"))
    cache["source"].write(0, frames)
    return cache


def chunk_file(cache: FrameCache, name: str, index: int) -> Path:
    return cache.path / name / f"c.{index}.0.0.0"


def copy(cache: FrameCache, task: Task) -> list[Chunk]:
    return list(LocalEngine().map(task, cache, CHUNKS))


def test_the_next_chunk_is_read_while_one_is_computed(cache: FrameCache) -> None:
    def next_is_read(cache: FrameCache, start: int) -> None:
        assert isinstance(cache, OverlappedCache)
        if start < 4:
            cache.ahead["source", (start + 2, start + 3)].result(PATIENCE)
        assert len(cache.ahead) <= 2

    assert copy(cache, Copy(next_is_read)) == CHUNKS
    np.testing.assert_array_equal(cache["target"][:], cache["source"][:])


def test_a_chunk_is_written_while_the_next_is_computed_and_yielded_after(
    cache: FrameCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = {start: Event() for start, _ in CHUNKS}
    real = FrameArray.write

    def write(array: FrameArray, start: int, frames: np.ndarray) -> None:
        following = started.get(start + 2)
        assert following is None or following.wait(PATIENCE)
        real(array, start, frames)

    monkeypatch.setattr(FrameArray, "write", write)
    for start, stop in LocalEngine().map(Copy(lambda _, start: started[start].set()), cache, CHUNKS):
        assert all(chunk_file(cache, "target", index).exists() for index in range(start, stop))


def test_what_cannot_be_written_is_not_yielded(cache: FrameCache, monkeypatch: pytest.MonkeyPatch) -> None:
    real = FrameArray.write

    def write(array: FrameArray, start: int, frames: np.ndarray) -> None:
        if start == 2:
            raise OSError("full")
        real(array, start, frames)

    monkeypatch.setattr(FrameArray, "write", write)
    chunks = LocalEngine().map(Copy(), cache, CHUNKS)
    assert next(chunks) == (0, 2)
    with pytest.raises(OSError, match="full"):
        next(chunks)


def test_a_damaged_frame_stops_only_the_chunk_that_needs_it(cache: FrameCache) -> None:
    chunk_file(cache, "source", 3).write_bytes(b"damaged")
    chunks = LocalEngine().map(Copy(), cache, CHUNKS)
    assert next(chunks) == (0, 2)
    with pytest.raises(DiffSynthError, match="frame 3 of the array 'source' does not match its checksum"):
        next(chunks)


def test_notes_are_set_after_the_frames_before_them(cache: FrameCache, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[bool] = []
    monkeypatch.setattr(FrameArray, "note", lambda array, **_: noted.append(chunk_file(cache, "target", 0).exists()))
    with OverlappedCache(cache) as overlapped:
        overlapped["target"].write(0, np.ones((1, 8, 8, 3), np.uint8))
        overlapped["target"].note(a=1)
    assert noted == [True]


def test_reads_that_were_not_announced_are_made(cache: FrameCache) -> None:
    with OverlappedCache(cache) as overlapped:
        np.testing.assert_array_equal(overlapped["source"].read([3, 0, 3]), cache["source"][:][[3, 0, 3]])
        np.testing.assert_array_equal(overlapped["source"][2], cache["source"][2])


def test_frames_that_several_phases_read_are_read_once(cache: FrameCache) -> None:
    keeping = cache.keeping(["source"])
    copy(keeping, Copy())
    first = keeping["source"].read(range(2))
    for name in ("source", "target"):
        chunk_file(cache, name, 0).unlink()
    assert keeping["source"].read([0, 1]) is first
    for others in (keeping["target"], cache["source"]):
        with pytest.raises(DiffSynthError, match=r"frame 0 of the array '.*' is missing"):
            others.read(range(2))


def test_no_more_frames_are_kept_than_there_is_room_for(cache: FrameCache, monkeypatch: pytest.MonkeyPatch) -> None:
    two = cache["source"].read(range(2))
    monkeypatch.setattr(frame_cache, "MOST_KEPT", 5 * two.nbytes // 2)
    keeping = cache.keeping(["source"])
    for _ in range(2):
        copy(keeping, Copy())
    assert list(keeping.kept.frames) == [("source", (0, 1)), ("source", (2, 3))]
    copied = pickle.loads(pickle.dumps(keeping.kept))
    assert isinstance(copied, KeptFrames) and copied.names == ["source"] and not copied.frames
