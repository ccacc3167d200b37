"""While a chunk is computed, the next one is read and the last ones are written, across phases."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from threading import Event, current_thread, main_thread

import numpy as np
import pytest

from stages.base import cache as frame_cache
from stages.base.cache import ArraySpec, FrameArray, FrameCache, KeptFrames
from stages.base.engine import Chunk, LocalEngine, Phase, Task
from stages.base.errors import DiffSynthError
from stages.base.ledger import Ledger
from stages.base.overlap import OverlappedCache, Reads
from stages.base.reporting import Reporter

CHUNKS = [(0, 2), (2, 4), (4, 6)]
PATIENCE = 10  # s, after which a test that waits for another thread fails
ARRAYS = ("source", "middle", "target", "last")


class Copy(Task):
    """Copy one array to another, and call `before` ahead of each chunk."""

    def __init__(
        self,
        source: str = "source",
        target: str = "target",
        before: Callable[[FrameCache, int], object] = lambda cache, start: None,
    ):
        self.source, self.target, self.before = source, target, before

    @property
    def chunk(self) -> int:
        return 2

    def reads(self, start: int, stop: int) -> Reads:
        return [(self.source, range(start, stop))]

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        self.before(cache, start)
        cache[self.target].write(start, cache[self.source].read(range(start, stop)))


def window(index: int) -> range:
    """A frame and the two on each side of it."""
    return range(max(index - 2, 0), min(index + 3, 6))


class Blur(Copy):
    """Average each frame of the array and its neighbours."""

    def reads(self, start: int, stop: int) -> Reads:
        return [(self.source, range(window(start).start, window(stop - 1).stop))]

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        ((name, indices),) = self.reads(start, stop)
        frames = cache[name].read(indices)
        for index in range(start, stop):
            near = frames[[k - indices[0] for k in window(index)]]
            cache[self.target].write(index, near.mean(0, np.uint16, keepdims=True))


class Threads(Reporter):
    """Notes on which thread it is called."""

    def __init__(self) -> None:
        self.on_main: list[bool] = []

    def phase(self, name: str) -> None:
        self.on_main.append(current_thread() is main_thread())

    def advance(self, frames: int) -> None:
        self.on_main.append(current_thread() is main_thread())

    def note(self, message: str) -> None:
        self.on_main.append(current_thread() is main_thread())


@pytest.fixture
def cache(tmp_path: Path) -> FrameCache:
    cache = FrameCache(tmp_path / "cache.zarr")
    frames = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    for name in ARRAYS:
        cache.create(ArraySpec(name, frames.shape, "uint8"))
    cache["source"].write(0, frames)
    return cache


@pytest.fixture
def slow_last_write(monkeypatch: pytest.MonkeyPatch) -> Iterator[Event]:
    """An event until which the last chunk of `middle` is not written."""
    real, may_write = FrameArray.write, Event()

    def write(array: FrameArray, start: int, frames: np.ndarray) -> None:
        assert array.name != "middle" or start != 4 or may_write.wait(PATIENCE)
        real(array, start, frames)

    monkeypatch.setattr(FrameArray, "write", write)
    yield may_write
    may_write.set()


def chunk_file(cache: FrameCache, name: str, index: int) -> Path:
    return cache.path / name / f"c.{index}.0.0.0"


def run(cache: FrameCache, *tasks: Task, reporter: Reporter | None = None) -> list[Chunk]:
    """Run one phase for each task, and return all chunks in the order in which they were marked.

    When a chunk is marked, its frames must be on the disk.
    """
    marked: list[Chunk] = []

    class Watching(Ledger):
        def mark(self, phase: Phase, chunk: Chunk) -> None:
            assert isinstance(phase.task, Copy)
            assert all(chunk_file(cache, phase.task.target, index).exists() for index in range(*chunk))
            super().mark(phase, chunk)
            marked.append(chunk)

    record = cache.record("copy")
    record.begin({"keys": {}, "after": {}}, len(CHUNKS) * len(tasks))
    phases = [Phase(str(index), 6, task, note=lambda _: "ended") for index, task in enumerate(tasks)]
    work = [(phase, phase.chunks()) for phase in phases]
    try:
        LocalEngine().run(work, cache, Watching(record, cache, reporter or Reporter()))
    finally:
        assert [start for start, _ in marked] == [start for _, start in sorted(record.done)]
    return marked


def disk_reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[int]]]:
    """A list that receives the arrays and indexes of all frames that are read from the disk."""
    read, real = list[tuple[str, list[int]]](), FrameArray.read_stored

    def read_stored(array: FrameArray, indices: Sequence[int]) -> np.ndarray:
        if len(indices):
            read.append((array.name, list(indices)))
        return real(array, indices)

    monkeypatch.setattr(FrameArray, "read_stored", read_stored)
    return read


# --- within a phase -------------------------------------------------------------------------------------


def test_the_next_chunk_is_read_while_one_is_computed(cache: FrameCache) -> None:
    def next_is_read(cache: FrameCache, start: int) -> None:
        assert isinstance(cache, OverlappedCache)
        if start < 4:
            cache.ahead["source", (start + 2, start + 3)].result(PATIENCE)
        assert len(cache.ahead) <= 2

    assert run(cache, Copy(before=next_is_read)) == CHUNKS
    np.testing.assert_array_equal(cache["target"][:], cache["source"][:])


def test_a_chunk_is_written_while_the_next_is_computed(cache: FrameCache, monkeypatch: pytest.MonkeyPatch) -> None:
    started = {start: Event() for start, _ in CHUNKS}
    real = FrameArray.write

    def write(array: FrameArray, start: int, frames: np.ndarray) -> None:
        following = started.get(start + 2)
        assert following is None or following.wait(PATIENCE)
        real(array, start, frames)

    monkeypatch.setattr(FrameArray, "write", write)
    assert run(cache, Copy(before=lambda _, start: started[start].set())) == CHUNKS


def test_at_most_two_chunks_are_unfinished(cache: FrameCache) -> None:
    def chunk_before_last_is_written(_: FrameCache, start: int) -> None:
        assert start < 4 or chunk_file(cache, "target", start - 3).exists()

    run(cache, Copy(before=chunk_before_last_is_written))


def test_what_cannot_be_written_is_not_marked(cache: FrameCache, monkeypatch: pytest.MonkeyPatch) -> None:
    real = FrameArray.write

    def write(array: FrameArray, start: int, frames: np.ndarray) -> None:
        if start == 2:
            raise OSError("full")
        real(array, start, frames)

    monkeypatch.setattr(FrameArray, "write", write)
    with pytest.raises(OSError, match="full"):
        run(cache, Copy())
    assert cache.record("copy").done == {("0", 0)}
    assert not chunk_file(cache, "target", 4).exists()


def test_a_damaged_frame_stops_only_the_chunk_that_needs_it(cache: FrameCache) -> None:
    chunk_file(cache, "source", 3).write_bytes(b"damaged")
    with pytest.raises(DiffSynthError, match="frame 3 of the array 'source' does not match its checksum"):
        run(cache, Copy())
    assert cache.record("copy").done == {("0", 0)}


def test_notes_are_set_after_the_frames_before_them(cache: FrameCache, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[bool] = []
    monkeypatch.setattr(FrameArray, "note", lambda array, **_: noted.append(chunk_file(cache, "target", 0).exists()))
    with OverlappedCache(cache) as overlapped:
        overlapped["target"].write(0, np.ones((1, 8, 8, 3), np.uint8))
        overlapped["target"].note(a=1)
        assert noted == [True]


def test_the_reporter_is_called_on_the_callers_thread(cache: FrameCache) -> None:
    reporter = Threads()
    run(cache, Copy(target="middle"), Copy("middle"), reporter=reporter)
    assert reporter.on_main == [True] * 2 * (1 + len(CHUNKS) + 1)


# --- from phase to phase --------------------------------------------------------------------------------


def test_the_next_phase_begins_before_the_last_chunk_is_written(cache: FrameCache, slow_last_write: Event) -> None:
    begun: list[int] = []

    def second_phase(_: FrameCache, start: int) -> None:
        assert start or not chunk_file(cache, "middle", 4).exists()
        begun.append(start)
        slow_last_write.set()

    assert run(cache, Copy(target="middle"), Copy("middle", before=second_phase)) == [*CHUNKS, *CHUNKS]
    assert begun == [0, 2, 4]
    np.testing.assert_array_equal(cache["target"][:], cache["source"][:])


def test_the_next_phase_reads_its_first_chunk_from_memory(
    cache: FrameCache, slow_last_write: Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = disk_reads(monkeypatch)

    def second_phase(cache: FrameCache, start: int) -> None:
        assert isinstance(cache, OverlappedCache)
        cache.ahead["middle", (start, start + 1)].result(PATIENCE)
        slow_last_write.set()

    run(cache, Copy(target="middle"), Copy("middle", before=second_phase))
    assert ("source", [0, 1]) in read and ("middle", [0, 1]) not in read


def test_what_no_phase_writes_is_read_before_the_phase_begins(cache: FrameCache) -> None:
    keeping = cache.keeping(["source"])

    def is_last(cache: FrameCache, start: int) -> None:
        assert isinstance(cache, OverlappedCache)
        if start == 4:
            cache.ahead["source", (0, 1)].result(PATIENCE)

    run(keeping, Copy(target="middle", before=is_last), Copy())
    with pytest.raises(KeyError):  # without `keeping`, anybody might write it
        run(cache, Copy(target="middle", before=is_last), Copy())


def test_few_frames_are_held_in_memory(cache: FrameCache) -> None:
    most: list[int] = []

    def count(cache: FrameCache, start: int) -> None:
        assert isinstance(cache, OverlappedCache)
        most.append(len(cache.held))
        assert all(frame.base is None for key, frame in [*cache.held.items()] if key in cache.expected)  # not its chunk

    run(cache, *(Copy(*pair, before=count) for pair in pairwise(ARRAYS)))
    assert 0 < max(most) <= 4  # of the chunk that is written, and of the first one of the next phase


def test_a_frame_is_the_same_in_memory_and_on_the_disk(cache: FrameCache) -> None:
    frames = np.arange(2 * 8 * 8 * 3, dtype=np.float64).reshape(2, 8, 8, 3) / 3
    stalled = Event()
    with OverlappedCache(cache) as overlapped:
        overlapped.then(stalled.wait, PATIENCE)
        overlapped["target"].write(2, frames)
        held = overlapped["target"].read([3, 2, 3])
        (single,) = [overlapped["target"][k] for k in (3,)]
        stalled.set()
        overlapped.finish()
        assert not overlapped.held
    stored = cache["target"].read([3, 2, 3])
    assert held.dtype == stored.dtype == np.uint8
    np.testing.assert_array_equal(held, stored)
    np.testing.assert_array_equal(single, stored[0])


def test_a_read_takes_frames_from_memory_and_from_the_disk(cache: FrameCache) -> None:
    stored = cache["source"][:]
    written = 255 - stored[2:4]
    stalled = Event()
    with OverlappedCache(cache) as overlapped:
        overlapped.then(stalled.wait, PATIENCE)
        overlapped["source"].write(2, written)
        read = overlapped["source"].read([1, 3, 2, 5, 1])
        stalled.set()
    np.testing.assert_array_equal(read, [stored[1], written[1], written[0], stored[5], stored[1]])


# --- reading --------------------------------------------------------------------------------------------


def test_reads_that_were_not_announced_are_made(cache: FrameCache) -> None:
    with OverlappedCache(cache) as overlapped:
        np.testing.assert_array_equal(overlapped["source"].read([3, 0, 3]), cache["source"][:][[3, 0, 3]])
        np.testing.assert_array_equal(overlapped["source"][2], cache["source"][2])


def test_frames_that_several_phases_read_are_read_once(cache: FrameCache) -> None:
    keeping = cache.keeping(["source"])
    run(keeping, Copy())
    frames = cache["source"].read(range(2))
    for name in ("source", "target"):
        chunk_file(cache, name, 0).unlink()
    np.testing.assert_array_equal(keeping["source"].read([1, 0]), frames[::-1])
    for others in (keeping["target"], cache["source"]):
        with pytest.raises(DiffSynthError, match=r"frame 0 of the array '.*' is missing"):
            others.read(range(2))


@pytest.mark.parametrize("kept", [False, True])
def test_frames_that_chunks_share_are_read_once(kept: bool, cache: FrameCache, monkeypatch: pytest.MonkeyPatch) -> None:
    read = disk_reads(monkeypatch)
    used = cache.keeping(["source"]) if kept else cache
    run(used, *[Blur()] * (2 if kept else 1))
    assert sorted(index for name, indices in read for index in indices) == [*range(6)]
    for index in range(6):
        np.testing.assert_array_equal(cache["target"][index], cache["source"].read(window(index)).mean(0, np.uint16))


def test_no_more_frames_are_kept_than_there_is_room_for(cache: FrameCache, monkeypatch: pytest.MonkeyPatch) -> None:
    two = cache["source"].read(range(2))
    monkeypatch.setattr(frame_cache, "MOST_KEPT", 5 * two.nbytes // 2)
    keeping = cache.keeping(["source"])
    for _ in range(2):
        run(keeping, Copy())
    assert list(keeping.kept.frames) == [("source", index) for index in range(4)]
    copied = pickle.loads(pickle.dumps(keeping.kept))
    assert isinstance(copied, KeptFrames) and copied.names == ["source"] and not copied.frames
