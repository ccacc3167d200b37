"""Frames → control maps: what each ControlNet is given to hold on to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from stages.annotators import Annotator, build
from stages.base.cache import ArraySpec, FrameCache
from stages.base.engine import Phase, Plan, Reporter, Run, Stage
from stages.base.errors import DiffSynthError
from stages.base.job import Job, MapFiles
from stages.video import Shot, fit, open_source, read_image

CHUNK = 8  # frames


@dataclass
class AnnotateTask:
    """Makes the maps of one ControlNet with an annotator."""

    index: int
    name: str
    options: dict[str, Any]
    style_image: str | None
    _annotator: Annotator | None = field(default=None, init=False, repr=False)

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        frames = cache["frames"]
        cache[f"control/{self.index}"].write(start, self._maps(frames.read(range(start, stop))))
        if start == 0 and "references" in cache:
            references = cache["references"]
            maps = self._maps(references.read(range(len(references))))
            cache[f"control_reference/{self.index}"].write(0, maps)

    def _maps(self, frames: np.ndarray) -> np.ndarray:
        if self._annotator is None:
            style = fit(read_image(self.style_image), frames.shape[1], frames.shape[2]) if self.style_image else None
            self._annotator = build(self.name, self.options, style)
        return self._annotator.maps(frames)


@dataclass
class MapFilesTask:
    """Copies the maps of one ControlNet from a video or a folder of images."""

    index: int
    path: str
    references: str | None
    _shots: Iterator[Shot] = field(default=iter(()), init=False, repr=False)
    _next: int = field(default=-1, init=False, repr=False)

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        if self._next != start:
            self._shots = islice(open_source(self.path).shots(), start, None)
        maps = cache[f"control/{self.index}"]
        height, width = maps.shape[1:3]
        maps.write(start, np.stack([fit(shot.image(), height, width) for shot in islice(self._shots, stop - start)]))
        self._next = stop
        if start == 0 and self.references is not None and "references" in cache:
            images = [fit(shot.image(), height, width) for shot in open_source(self.references).shots()]
            cache[f"control_reference/{self.index}"].write(0, np.stack(images))


def plan(run: Run[Job], resume: bool) -> Plan:
    job, cache, reporter = run.job, run.cache, run.reporter
    count, height, width, _ = cache["frames"].shape
    references = [fit(read_image(path), height, width) for path in job.frames_reference]
    if job.style_image:
        read_image(job.style_image)
    nets = [i for i, runs in enumerate(job.networks_run) if runs]
    arrays = [ArraySpec(f"control/{i}", (count, height, width, 3), "uint8") for i in nets]
    if references:
        shape = (len(references), height, width, 3)
        arrays += [ArraySpec(f"control_reference/{i}", shape, "uint8") for i in nets]
        arrays.append(ArraySpec("references", shape, "uint8"))

    def begin(cache: FrameCache) -> None:
        if references:
            cache["references"].write(0, np.stack(references))

    phases = [_phase(job, i, (count, height, width), len(references), resume, reporter) for i in nets]
    return Plan(count, arrays, phases, begin=begin)


def _phase(
    job: Job, index: int, frames: tuple[int, int, int], references: int, resume: bool, reporter: Reporter
) -> Phase:
    settings = job.controlnet_processor[index]
    if not isinstance(settings, MapFiles):
        task = AnnotateTask(index, settings.name, settings.model_dump(exclude={"name"}), job.style_image)
        return Phase(f"{settings.name} map {index}", frames[0], CHUNK, task)
    if not resume:
        _check_maps(f"controlnet_processor[{index}]", settings.path, frames, reporter)
        if references and settings.references is None:
            raise DiffSynthError(
                f"controlnet_processor[{index}] has no maps for frames_reference",
                'give them as {"name": "file", "path": ..., "references": ...}',
            )
        if references and settings.references is not None:
            where = f"controlnet_processor[{index}].references"
            _check_maps(where, settings.references, (references, *frames[1:]), reporter)
    return Phase(f"file map {index}", frames[0], CHUNK, MapFilesTask(index, settings.path, settings.references))


def _check_maps(where: str, path: str, frames: tuple[int, int, int], reporter: Reporter) -> None:
    source = open_source(path)
    count = sum(1 for _ in source.shots())
    if count != frames[0]:
        raise DiffSynthError(
            f"{where}: {path} holds {count} maps for {frames[0]} frames", "give one for each used frame"
        )
    if (source.height, source.width) != frames[1:]:
        size = f"{source.width}×{source.height} to the frames' {frames[2]}×{frames[1]}"
        reporter.warn(f"{where}: maps are cropped and resized from {size}")


STAGE = Stage("control", plan)
