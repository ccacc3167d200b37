"""Enlarge the rendered frames and render them again, for detail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from stages.base.arrays import Images
from stages.base.cache import ArraySpec, FrameCache
from stages.base.engine import Ahead, Footage, Phase, Plan, Run, Stage, Task, check_before
from stages.base.json_types import Values
from stages.base.overlap import Reads
from stages.base.prefixed import PrefixedCache, PrefixedTask, prefixed_arrays, prefixed_phase
from stages.jobs.job import Job
from stages.jobs.keeping import LARGE
from stages.jobs.second_pass import enlarged, second_pass
from stages.rendering.plan import ARRAYS, RenderPlan
from stages.rendering.preparation import LoadTask
from stages.rendering.schedule import Timing
from stages.rendering.work import (
    check_masks,
    check_rendering,
    expected_keys,
    make_plan,
    phases_of,
    resumed,
    stage_plan,
)
from stages.scenes import recorded_cuts
from stages.selection import UsedShots, noted_landmarks
from stages.tasks import DecodeTask
from stages.video import Landmark, open_source

START = "start"  # the enlarged frames, from which the second pass starts
REFERENCES = "references"


@dataclass
class EnlargeTask(Task):
    """Enlarge images, with Lanczos' filter.

    Args:
        source: The array of images.
        target: The array of the enlarged images.
    """

    source: str
    target: str

    @property
    def kind(self) -> str:
        return "enlarge"

    def reads(self, start: int, stop: int) -> Reads:
        return [(self.source, range(start, stop))]

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        target = cache[self.target]
        height, width = target.shape[1:3]
        target.write(start, _resized(cache[self.source].read(range(start, stop)), height, width))


def _resized(images: Images, height: int, width: int) -> Images:
    import cv2

    return np.stack([cv2.resize(image, (width, height), interpolation=cv2.INTER_LANCZOS4) for image in images])


def check(run: Run[Job], footage: Footage) -> Ahead:
    job, count = run.job, footage.count or 0
    size = enlarged(footage.height, footage.width, job.upscale)
    check_rendering(run)
    check_masks(job, footage)
    open_source(job.input_video)
    rendering = _rendering(run, (count, *size), expected_keys(job, count))
    return Ahead([*_inputs(rendering), *_large(rendering.most_at_once())], _phases(job, rendering))


def plan(run: Run[Job], resume: bool) -> Plan:
    job, cache = run.job, run.cache
    run.reporter.begin("upscale", None)
    (count, height, width, _), first = cache["rendered"].shape, cache["rendered"].attrs
    begun: Values = cache[LARGE + "rendered"].attrs if resume else {}
    source = open_source(job.input_video)
    rendering = _rendering(
        run,
        (count, *enlarged(height, width, job.upscale)),
        tuple(first["keys"]),
        cuts=recorded_cuts(job, cache),
        timing=Timing.of(cache, job.frame_interval),
        begun=begun,
    )
    work = stage_plan(rendering)
    trial = LoadTask(replace(rendering, maps=()))  # which would be those of an earlier run, and stay in memory
    run.reporter.phase("load models")
    return replace(
        work,
        arrays=[*_inputs(rendering), *_large(work.arrays)],
        phases=_phases(job, rendering, noted_landmarks(cache), (source.height, source.width)),
        begin=lambda cache: work.begin(PrefixedCache(cache, LARGE)),
        rereads=tuple(LARGE + name for name in work.rereads),
        trial=PrefixedTask(trial, LARGE),
    )


def _rendering(
    run: Run[Job],
    shape: tuple[int, int, int],
    keys: tuple[int, ...],
    *,
    cuts: tuple[int, ...] = (),
    timing: Timing | None = None,
    begun: Values | None = None,
) -> RenderPlan:
    """Return the plan of the second pass, which renders the same frames as the first one."""
    job, upscale = run.job, run.job.upscale
    assert upscale is not None, "the stage runs only for jobs with `upscale`"
    return make_plan(
        second_pass(job),
        resumed(run.options, begun or {}),
        shape,
        keys=keys,
        cuts=cuts,
        maps=((START, REFERENCES),) if upscale.model else (),
        timing=timing,
        start=START,
        given=(START, *([REFERENCES] if job.frames_reference else [])),
        tile=upscale.tile,
    )


def _large(arrays: Sequence[ArraySpec]) -> list[ArraySpec]:
    return prefixed_arrays(arrays, LARGE)


def _inputs(rendering: RenderPlan) -> list[ArraySpec]:
    """The arrays that the second pass starts with. Those of the first pass were made by earlier stages."""
    counts = {"frames": rendering.frames, START: rendering.frames, REFERENCES: rendering.references}
    return [ArraySpec(LARGE + name, (count, *rendering.size, 3), "uint8") for name, count in counts.items() if count]


def _phases(
    job: Job, rendering: RenderPlan, landmarks: Sequence[Landmark] = (), shown: tuple[int, int] | None = None
) -> list[Phase]:
    count, references = rendering.frames, rendering.references
    decode = DecodeTask(job.input_video, UsedShots(job, landmarks), LARGE + "frames", shown=shown)
    phases = [
        Phase("decode and fit", count, decode),
        Phase("enlarge", count, EnlargeTask("rendered", LARGE + START)),
    ]
    if references:
        phases.append(Phase("enlarge references", references, EnlargeTask("references", LARGE + REFERENCES)))
    return [*phases, *(prefixed_phase(phase, LARGE) for phase in phases_of(rendering))]


def deliver(run: Run[Job], fingerprint: str) -> None:
    """Raise DiffSynthError if the source has changed while it was decoded again. Nothing is lost if it comes back."""
    check_before(STAGE, run)


STAGE = Stage(
    name="upscale",
    reads=("upscale",),
    after=("extract", "control", "render"),
    arrays=tuple(LARGE + name for name in ("frames", START, REFERENCES, *ARRAYS)),
    needs=lambda job: ("rendered", *(["references"] if job.frames_reference else [])),
    plan=plan,
    deliver=deliver,
    check=check,
    shown=lambda cache: {"upscaled": LARGE + "rendered"},
    runs=lambda job: job.upscale is not None,
)
