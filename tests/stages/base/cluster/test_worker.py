"""A worker computes chunks while it reads and writes others, and keeps what the next phase can use."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from stages.base.cache import ArraySpec, FrameCache
from stages.base.cluster.worker import Identity, Worker
from stages.base.engine import Task
from stages.base.errors import DiffSynthError
from stages.base.overlap import Reads


@dataclass
class Negate(Task):
    """Writes the negative of each frame, and a file when it is closed."""

    folder: Path

    def reads(self, start: int, stop: int) -> Reads:
        return [("frames", range(start, stop))]

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        cache["negatives"].write(start, 255 - cache["frames"].read(range(start, stop)))

    def close(self) -> None:
        (self.folder / "closed").touch()


@pytest.fixture
def cache(tmp_path: Path) -> FrameCache:
    cache = FrameCache(tmp_path / "cache.zarr")
    for name in ("frames", "negatives"):
        cache.create(ArraySpec(name, (6, 4, 4, 3), "uint8"))
    cache["frames"].write(0, np.arange(6 * 48, dtype=np.uint16).astype(np.uint8).reshape(6, 4, 4, 3))
    return cache


def begun(worker: Worker, task: Task, cache: FrameCache) -> Worker:
    worker.begin(pickle.dumps(task), pickle.dumps(cache))
    return worker


def test_a_chunk_is_returned_with_the_next_one_or_at_the_end(cache: FrameCache, tmp_path: Path) -> None:
    worker = begun(Worker(), Negate(tmp_path), cache)
    assert worker.run(None, [(2, 4)], (4, 6)) == []
    assert worker.run(None, [(4, 6)], None) == [(2, 4)]
    assert worker.finish() == [(4, 6)] and worker.finish() == []
    np.testing.assert_array_equal(cache["negatives"][2:], 255 - cache["frames"][2:])
    assert not (tmp_path / "closed").exists()
    worker.end()
    assert (tmp_path / "closed").exists()


def test_several_chunks_are_computed_and_returned_together(cache: FrameCache, tmp_path: Path) -> None:
    worker = begun(Worker(), Negate(tmp_path), cache)
    assert worker.run(None, [(0, 1), (1, 3)], (3, 6)) == []
    assert ("frames", (3, 4, 5)) in worker.cache.ahead and ("frames", (0,)) not in worker.cache.ahead
    assert worker.run(None, [(3, 6)], None) == [(0, 1), (1, 3)]
    assert worker.finish() == [(3, 6)]
    np.testing.assert_array_equal(cache["negatives"][:], 255 - cache["frames"][:])


def test_the_next_chunk_is_read_ahead(cache: FrameCache, tmp_path: Path) -> None:
    worker = begun(Worker(), Negate(tmp_path), cache)
    worker.run(None, [(0, 2)], (2, 4))
    assert ("frames", (2, 3)) in worker.cache.ahead
    worker.end()


def test_frames_that_several_phases_read_stay_in_memory(cache: FrameCache, tmp_path: Path) -> None:
    keeping = cache.keeping(("frames",))
    worker = begun(Worker(), Negate(tmp_path), keeping)
    worker.run(None, [(0, 2)], None)
    worker.end()
    begun(worker, Negate(tmp_path), keeping)
    assert [*worker.cache.plain.kept.frames] == [("frames", 0), ("frames", 1)]
    begun(worker, Negate(tmp_path), cache)
    assert not worker.cache.plain.kept.frames
    worker.end()


def test_a_failed_write_is_raised_with_the_next_chunk(cache: FrameCache, tmp_path: Path) -> None:
    worker = begun(Worker(), Negate(tmp_path), cache)
    (cache.path / "negatives/c.0.0.0.0").mkdir()  # cannot be replaced by a file
    worker.run(None, [(0, 2)], None)
    with pytest.raises(OSError):
        worker.run(None, [(2, 4)], None)


def test_a_machine_without_the_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(DiffSynthError, match=r"elsewhere does not exist on .*, which is one of the workers"):
        begun(Worker(), Negate(tmp_path), FrameCache(tmp_path / "elsewhere"))


def test_differences_of_machines_are_listed() -> None:
    machine = Identity("node-b", {"torch": "2.14", "zarr": "3"}, "H100")
    assert machine.differences({"torch": "2.14", "zarr": "3"}, "H100") == ""
    assert machine.differences({"torch": "2.13", "av": "18"}, "A100") == (
        "av none instead of 18, torch 2.14 instead of 2.13, zarr 3 instead of none, "
        "a processor of the kind H100 instead of A100"
    )
