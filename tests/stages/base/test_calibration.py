"""What the kinds of work cost, measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter

from stages.base import calibration
from stages.base.cache import ArraySpec, FrameCache
from stages.base.calibration import Calibration, Meter
from stages.base.engine import Phase, Plan, Run, Stage, Task, run_stage
from stages.base.overlap import OverlappedCache, Reads
from stages.base.reporting import Reporter

FRAMES = 6
COMPUTING, WARMING_UP, WRITING, COUNTING, LOADING = 1.0, 50.0, 3.0, 7.0, 20.0  # s


class Clock:
    """Shows the seconds that have been spent."""

    spent = 0.0

    def perf_counter(self) -> float:
        return self.spent


CLOCK = Clock()


@dataclass
class Copy(Task):
    """Copies frames. The first chunk takes longer."""

    source: str
    target: str
    chunk: int = 2
    kind: str = "copy"

    def work(self, frames: int) -> dict[str, float]:
        return {"pairs": 3.0 * frames}

    def reads(self, start: int, stop: int) -> Reads:
        return [(self.source, range(start, stop))]

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        CLOCK.spent += WARMING_UP if start == 0 else COMPUTING
        cache[self.target].write(start, cache[self.source].read(range(start, stop)))


class Load(Task):
    """Stands for loading networks."""

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        CLOCK.spent += LOADING


def plan(run: Run[Nothing], resume: bool) -> Plan:
    run.reporter.phase("count")
    CLOCK.spent += COUNTING
    run.reporter.advance(FRAMES)
    run.reporter.phase("load")
    specs = [ArraySpec(name, (FRAMES, 8, 8), "uint8") for name in ("a", "b")]
    phases = [Phase("one", FRAMES, Copy("source", "a")), Phase("two", FRAMES, Copy("a", "b"))]
    return Plan(FRAMES, specs, phases, rereads=("source",), trial=Load())


class Nothing:
    """A job without keys."""

    def inputs(self, keys: object, known: object) -> dict[str, object]:
        return {}


STAGE: Stage[Nothing] = Stage("copies", plan=plan, arrays=("a", "b"))


def test_chunks_and_work_between_phases_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = FrameCache(tmp_path / "cache")
    source = cache.create(ArraySpec("source", (FRAMES, 8, 8), "uint8"))
    source.write(0, np.random.default_rng(0).integers(0, 256, (FRAMES, 8, 8), np.uint8))
    finish = OverlappedCache.finish

    def slow(overlapped: OverlappedCache) -> None:
        finish(overlapped)
        CLOCK.spent += WRITING

    monkeypatch.setattr(OverlappedCache, "finish", slow)
    monkeypatch.setattr(calibration, "time", CLOCK)
    heard: list[str] = []
    meter = Meter(heard.append)
    run_stage(STAGE, Run(Nothing(), cache, meter, engine=meter, stages={"copies": STAGE}))
    np.testing.assert_array_equal(cache["b"][:], source[:])
    copy, count = meter.costs["copy"], meter.costs["copies: count"]
    assert sorted(meter.costs) == ["copies: count", "copy"]
    assert (count.computing, count.frames, count.divided) == (COUNTING, FRAMES, False)
    assert (copy.frames, copy.amount) == (8, 24.0)  # without the first chunk of both phases
    assert (copy.reading, copy.computing, copy.writing) == (0.0, 4 * COMPUTING, 4 * WRITING)
    assert (copy.seconds, copy.bound, count.bound) == (4 * WRITING, "writing", "one process")
    assert (copy.traffic.gets, copy.traffic.puts) == (8, 8)  # also of what runs usually keep in memory
    assert 8 * 64 < copy.traffic.bytes_written == copy.traffic.bytes_read < 8 * 100
    assert meter.loading == LOADING
    assert heard == ["copies: check inputs", "copies: count", "copies: load", "copies: one", "copies: two"]


def test_a_calibration_is_stored_as_json() -> None:
    meter = Meter(Reporter().phase)
    meter.begin("x", None)
    meter.phase("scan")
    meter.advance(3)
    meter.end("x", "")
    found = Calibration({"size": [1, 2]}, 3, 0.5, meter.costs)
    stored = TypeAdapter(Calibration).dump_json(found)
    assert TypeAdapter(Calibration).validate_json(stored) == found
