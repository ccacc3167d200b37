"""Expected work, times and requests of a job."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from benchmarks.scaling import Work as Simulated
from benchmarks.scaling import efficiency
from stages.base.cache import FrameCache
from stages.base.calibration import Calibration, Cost
from stages.base.chunks import Traffic
from stages.base.engine import Ahead, Phase, Task
from stages.base.forecast import Work, counts_of, expect, work_of


@dataclass
class Paint(Task):
    """A task with two pairs per frame."""

    chunk: int = 4
    warm_up: int = 0
    kind: str = ""

    def work(self, frames: int) -> dict[str, float]:
        return {"pairs": 2.0 * frames}

    def run(self, cache: FrameCache, start: int, stop: int) -> None: ...


STEPS = [Phase(f"step {index}", 10, Paint(kind="step")) for index in range(5)]
AHEAD = {"first": Ahead([], [Phase("look", 10, Paint(chunk=1, warm_up=2)), *STEPS]), "second": Ahead([], [])}


def test_phases_of_one_kind_are_counted_together() -> None:
    assert work_of(AHEAD) == [Work("first: look", 10, 10, 2, 20.0), Work("step", 10, 3, 0, 20.0, phases=5)]
    assert counts_of(AHEAD["first"].phases) == {"pairs": 120.0}


def costs(**more: Cost) -> Calibration:
    """Two seconds for each frame of a step, of which 4 were measured."""
    step = Cost(8.0, 4, computing=8.0, reading=1.0, writing=2.0, traffic=Traffic(8, 4, 800, 400))
    return Calibration({}, 4, 3.0, {"step": step, **more})


def test_times_are_those_of_the_slowest_part_and_of_the_longest_row_of_chunks() -> None:
    loading, steps = expect(work_of({"a": Ahead([], STEPS)}), 10, costs(), (1, 2, 3, 30))
    assert loading.seconds == (3.0,) * 4 and loading.bound == ("one process",) * 4
    chunk = 20 / 3 + 0.02 / 2  # s of each of the 3 chunks of a step, two of which are dealt at once
    assert steps.seconds == pytest.approx((100, 5 * 2 * chunk, 5 * chunk, 5 * chunk))
    assert steps.bound == ("computing", "computing", "computing", "too few chunks")
    assert steps.traffic == Traffic(100, 50, 10_000, 5_000)


def test_bandwidth_that_is_shared_limits_many_workers() -> None:
    _, steps = expect(work_of({"a": Ahead([], STEPS)}), 10, costs(), (1, 3), bandwidth=300.0)
    assert steps.seconds == pytest.approx((100, 50)) and steps.bound == ("computing", "bandwidth")


def test_work_that_is_not_divided_takes_as_long_on_any_number_of_workers() -> None:
    scan = Cost(4.0, 4, computing=2.0, divided=False)
    *_, alone = expect(work_of({"a": Ahead([], STEPS)}), 10, costs(scan=scan), (1, 8))
    assert alone.work.kind == "scan" and alone.seconds == (5.0, 5.0) and alone.bound == ("one process",) * 2


@pytest.mark.parametrize("workers", [1, 2, 8, 64])
@pytest.mark.parametrize("warm_up", [0, 3])
def test_times_agree_with_dealing_chunks_one_by_one(workers: int, warm_up: int) -> None:
    random.seed(0)
    chunks, seconds = 1000, 0.5
    work = Work("smooth", chunks, chunks, warm_up, float(chunks))
    calibration = Calibration({}, 1, 0.0, {"smooth": Cost(1.0, 1, computing=seconds)})
    (_, expected) = expect([work], chunks, calibration, [workers])
    share = efficiency(Simulated("smooth", seconds, warm_up, hand=8), chunks, workers)
    dealt = chunks * seconds / (share * workers)
    assert expected.seconds[0] == pytest.approx(dealt, rel=0.06)
