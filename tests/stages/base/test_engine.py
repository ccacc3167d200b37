"""Tasks are closed whatever happens, finished chunks are complete, and a kill at any moment changes no byte."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from stages.base.cache import ArraySpec, FrameArray, FrameCache
from stages.base.engine import Chunk, Engine, LocalEngine, Phase, Plan, Run, Stage, Task, fill
from stages.base.ledger import Ledger
from stages.base.overlap import Reads
from stages.base.record import StageRecord
from stages.base.reporting import Reporter

CHUNKS = [(0, 8), (8, 12)]


class Counting(Task):
    """A task that records its calls and fails at one chunk."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at = fails_at
        self.seen: list[Chunk | str] = []

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        if start == self.fails_at:
            raise ValueError("no more")
        self.seen.append((start, stop))

    def close(self) -> None:
        self.seen.append("closed")


class PlainEngine(Engine):
    """Runs chunks one after the other, without threads."""

    def map(self, task: Task, cache: FrameCache, chunks: Iterable[Chunk]) -> Generator[Chunk]:
        with closing(task):
            for chunk in chunks:
                task.run(cache, *chunk)
                yield chunk


ENGINES: list[Engine] = [LocalEngine(), PlainEngine()]
NAMES = [type(engine).__name__ for engine in ENGINES]


@pytest.fixture
def cache(tmp_path: Path) -> FrameCache:
    cache = FrameCache(tmp_path / "cache.zarr")
    cache.record("stage").begin({"keys": {}, "after": {}}, 2)
    return cache


def run(engine: Engine, cache: FrameCache, *tasks: Task) -> None:
    """Run one phase for each task."""
    work = [(Phase(str(index), 12, task), CHUNKS) for index, task in enumerate(tasks)]
    engine.run(work, cache, Ledger(cache.record("stage"), cache, Reporter()))


@pytest.mark.parametrize("engine", ENGINES, ids=NAMES)
def test_a_task_is_closed_after_its_last_chunk(engine: Engine, cache: FrameCache) -> None:
    tasks = Counting(), Counting()
    run(engine, cache, *tasks)
    assert [task.seen for task in tasks] == [[*CHUNKS, "closed"]] * 2
    assert cache.record("stage").done == {("0", 0), ("0", 8), ("1", 0), ("1", 8)}


@pytest.mark.parametrize("engine", ENGINES, ids=NAMES)
def test_a_task_is_closed_when_a_chunk_fails_and_the_chunk_before_is_complete(
    engine: Engine, cache: FrameCache
) -> None:
    tasks = Counting(fails_at=8), Counting()
    with pytest.raises(ValueError, match="no more"):
        run(engine, cache, *tasks)
    assert [task.seen for task in tasks] == [[(0, 8), "closed"], []]
    assert cache.record("stage").done == {("0", 0)}


@pytest.mark.parametrize("engine", ENGINES, ids=NAMES)
def test_a_task_is_closed_when_the_caller_stops_early(engine: Engine, cache: FrameCache) -> None:
    task = Counting()
    chunks = engine.map(task, cache, CHUNKS)
    assert next(chunks) == (0, 8)
    chunks.close()
    assert task.seen == [(0, 8), "closed"]


def test_dropped_arrays_are_not_results() -> None:
    phases = [Phase("one", 1, Counting(), drops=("a/1",)), Phase("two", 1, Counting())]
    plan = Plan(1, [], phases, kept=("a/1", "a/2"))
    assert plan.results == ["a/2"]


def test_no_chunk_contains_frames_of_two_scenes() -> None:
    assert Phase("one", 12, Counting()).chunks() == CHUNKS
    assert Phase("one", 12, Counting(), cuts=(1, 10)).chunks() == [(0, 1), (1, 9), (9, 10), (10, 12)]


# --- kills ----------------------------------------------------------------------------------------------


@dataclass
class Average(Task):
    """Average each frame with its neighbours."""

    source: str
    target: str
    chunk: ClassVar[int] = 2

    def reads(self, start: int, stop: int) -> Reads:
        return [(self.source, self._window(start, stop))]

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        frames = cache[self.source].read(self._window(start, stop)).astype(int)
        cache[self.target].write(start, ((frames[:-2] + frames[1:-1] + frames[2:]) // 3).astype(np.uint8))

    def _window(self, start: int, stop: int) -> list[int]:
        return [min(max(index, 0), FRAMES - 1) for index in range(start - 1, stop + 1)]


FRAMES = 4
PHASES = [
    Phase("one", FRAMES, Average("source", "a")),
    Phase("two", FRAMES, Average("a", "b"), drops=("a",)),
    Phase("three", FRAMES, Average("b", "target"), drops=("b",), completes="target"),
]
SPECS = [ArraySpec(name, (FRAMES, 2, 2), "uint8") for name in ("a", "b", "target")]
STAGE: Stage[None] = Stage("average", plan=lambda run, resume: Plan(FRAMES, SPECS, PHASES), arrays=("a", "b", "target"))


class Killed(BaseException):
    """Stands for SIGKILL."""


@dataclass
class Disk:
    """Records everything that is done to the disk, and stops a run at one of these moments.

    Args:
        kill: The number of the operation at which the run is killed.
        half: Whether it is killed in the middle of this operation.
    """

    kill: int | None = None
    half: bool = False
    done: list[tuple[str, ...]] = field(default_factory=list)

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        write, mark, tidy, remove = FrameArray.write, StageRecord.mark, Ledger.tidy, FrameCache.remove

        def watched_write(array: FrameArray, start: int, frames: np.ndarray) -> None:
            first_only = lambda: write(array, start, frames[:1])  # noqa: E731
            self._operation(("write", array.name, str(start)), lambda: write(array, start, frames), first_only)

        def watched_mark(record: StageRecord, phase: str, start: int, seconds: float) -> None:
            def torn() -> None:
                with Path(str(record.store), "marks", f"{record.stage}.jsonl").open("a") as file:
                    file.write('{"phase": "')

            self._operation(("mark", phase, str(start)), lambda: mark(record, phase, start, seconds), torn)

        def watched_tidy(ledger: Ledger, phase: Phase) -> None:
            self._operation(("tidy", phase.name), lambda: None, lambda: None)
            tidy(ledger, phase)

        def watched_remove(cache: FrameCache, name: str) -> None:
            metadata_only = lambda: (cache.path / name / "zarr.json").unlink(missing_ok=True)  # noqa: E731
            self._operation(("remove", name), lambda: remove(cache, name), metadata_only)

        patch.setattr(FrameArray, "write", watched_write)
        patch.setattr(StageRecord, "mark", watched_mark)
        patch.setattr(Ledger, "tidy", watched_tidy)
        patch.setattr(FrameCache, "remove", watched_remove)

    def _operation(self, name: tuple[str, ...], whole: Callable[[], None], part: Callable[[], None]) -> None:
        if len(self.done) == self.kill:
            if self.half:
                part()
            raise Killed
        assert self.kill is None or len(self.done) < self.kill, f"{name} after the kill"
        self.done.append(name)
        whole()


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A cache with the frames that the stage reads."""
    cache = FrameCache(tmp_path / "begun")
    frames = np.random.default_rng(0).integers(0, 256, (FRAMES, 2, 2), np.uint8)
    cache.create(ArraySpec("source", frames.shape, "uint8")).write(0, frames)
    return cache.path


def fill_copy(begun: Path, path: Path, disk: Disk, engine: Engine) -> FrameCache:
    """Run the stage in a copy of a cache, or resume it if the copy exists, and return the copy."""
    if not path.exists():
        shutil.copytree(begun, path)
    cache = FrameCache(path)
    with pytest.MonkeyPatch.context() as patch:
        disk.watch(patch)
        fill(STAGE, Run(None, cache, Reporter(), engine=engine), resume=cache.recorded("average") is not None)
    return cache


def contents(cache: FrameCache) -> dict[str, bytes]:
    files = (path for path in cache.path.rglob("*") if path.is_file() and path.parent.name != "receipts")
    return {path.relative_to(cache.path).as_posix(): path.read_bytes() for path in files}


def test_the_disk_sees_the_same_as_without_threads(begun: Path, tmp_path: Path) -> None:
    seen, results = [], []
    for engine in ENGINES:
        disk = Disk()
        results.append(contents(fill_copy(begun, tmp_path / type(engine).__name__, disk, engine)))
        seen.append(disk.done)
    assert seen[0] == seen[1] and results[0] == results[1]
    assert ("remove", "a") in seen[0] and "target/c.3.0.0" in results[0] and "a/zarr.json" not in results[0]


@pytest.mark.parametrize(("engine", "half"), [(ENGINES[0], False), (ENGINES[0], True), (ENGINES[1], True)])
def test_a_kill_at_any_moment_changes_no_byte(engine: Engine, half: bool, begun: Path, tmp_path: Path) -> None:
    disk = Disk()
    straight = contents(fill_copy(begun, tmp_path / "straight", disk, engine))
    assert len(disk.done) > 15
    for moment in range(len(disk.done)):
        path = tmp_path / f"killed {moment}"
        with pytest.raises(Killed):
            fill_copy(begun, path, Disk(moment, half), engine)
        assert contents(fill_copy(begun, path, Disk(), engine)) == straight
