"""Make control maps from the frames, one for each ControlNet.

It also finds the scenes, which all stages but extraction depend on, so that other scenes need no other extraction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import cast

import numpy as np

from stages.annotators import Annotator, FromFiles, VideoAnnotator, build
from stages.base.cache import ArraySpec, FrameCache
from stages.base.engine import Ahead, Footage, Phase, Plan, Reporter, Run, Stage, Task
from stages.base.errors import DiffSynthError, UsageError
from stages.base.fingerprint import fingerprint
from stages.base.json_types import JsonObject, Values
from stages.base.overlap import Reads
from stages.base.scenes import check_cuts, scene_of
from stages.base.words import counted
from stages.jobs.job import Job
from stages.jobs.maps import map_names
from stages.models.weights import Weights
from stages.scenes import choose_cuts, recorded_cuts
from stages.tasks import DecodeTask, Picked
from stages.video import Shot, certain_length, fit, open_source, read_image

COMPRESSED = (0.01, 0.5)  # edge maps need 0.02 to 0.04 of their size in memory on the disk, grey depth 0.3 to 0.5


# --- computed maps --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Maker:
    """What the annotator of one map is built from."""

    name: str
    options: Values
    weights: Weights | None
    style_image: str | None
    device: str
    size: tuple[int, int]

    def build(self) -> Annotator | VideoAnnotator:
        style = fit(read_image(self.style_image), *self.size) if self.style_image else None
        return build(self.name, self.options, style, self.weights, self.device)


@dataclass
class AnnotatorTask(Task):
    """A task of one annotator, which is built for the first chunk."""

    maker: Maker
    _built: Annotator | VideoAnnotator | None = field(default=None, init=False, repr=False)

    @property
    def annotator(self) -> Annotator | VideoAnnotator:
        if self._built is None:
            self._built = self.maker.build()
        return self._built

    def close(self) -> None:
        self._built = None


@dataclass
class AnnotateTask(AnnotatorTask):
    """Make maps from images."""

    source: str
    target: str

    def reads(self, start: int, stop: int) -> Reads:
        return [(self.source, range(start, stop))]

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        annotator = cast(Annotator, self.annotator)
        cache[self.target].write(start, annotator.maps(cache[self.source].read(range(start, stop))))


@dataclass
class LookTask(AnnotatorTask):
    """Analyse images for an annotator that needs the whole video."""

    source: str
    target: str

    def reads(self, start: int, stop: int) -> Reads:
        return [(self.source, range(start, stop))]

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        annotator = cast(VideoAnnotator, self.annotator)
        notes = annotator.look(cache[self.source].read(range(start, stop)))
        cache[part_array("measures", self.target)].write(start, annotator.measure(notes))
        cache[part_array("notes", self.target)].write(start, notes)


@dataclass
class DrawTask(AnnotatorTask):
    """Draw maps from the notes of an annotator that needs the whole video.

    `video` is the map of the frames; `target` may be that of the references. Scenes of the frames begin at `cuts`.
    """

    target: str
    video: str
    cuts: Sequence[int]
    _measures: np.ndarray | None = field(default=None, init=False, repr=False)

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        annotator = cast(VideoAnnotator, self.annotator)
        notes = cache[part_array("notes", self.target)]
        if self._measures is None:
            self._measures = cache[part_array("measures", self.video)][:]
        if self.target == self.video:
            scene = scene_of(start, len(notes), self.cuts)
            measures, first = self._measures[scene.start : scene.stop], scene.start
            maps = annotator.draw(Picked(notes, scene), start - first, stop - first, measures, self.maker.size)
        else:
            stills = [annotator.draw_still(notes[k], self._measures, self.maker.size) for k in range(start, stop)]
            maps = np.stack(stills)
        cache[self.target].write(start, maps)

    def close(self) -> None:
        super().close()
        self._measures = None


def part_array(part: str, target: str) -> str:
    """The array that holds `part` of the map `target`."""
    return f"{part}/{target.replace('/', '.')}"


# --- maps from files ------------------------------------------------------------------------------------


def map_shots(path: str, first: int) -> Iterator[Shot]:
    """The frames of a video or a folder of images from number `first` on, with their own values."""
    return islice(open_source(path, values=True).shots(), first, None)


# --- the stage ------------------------------------------------------------------------------------------


def check(run: Run[Job], footage: Footage) -> Ahead:
    job, size = run.job, (footage.height, footage.width)
    counts = {"frames": footage.count or 0, "references": len(job.frames_reference)}
    if isinstance(job.scenes, list):
        check_cuts(job.scenes, footage.most)
    for path in (*job.frames_reference, *([job.style_image] if job.style_image else [])):
        read_image(path)
    arrays, phases = [], []
    for index in (index for index, runs in enumerate(job.networks_run) if runs):
        _check_annotator(job, index, size, footage)
        name = f"control/{index}"
        if job.controlnet_processor[index] in job.controlnet_processor[:index]:
            continue  # the map of the earlier one does
        arrays.append(ArraySpec(name, (counts["frames"], *size, 3), "uint8", compressed=COMPRESSED))
        requests = [MapRequest(source, name, count, ()) for source, count in counts.items() if count]
        phases += _phases(run, index, requests, name, size, resume=True)[1]
    return Ahead(arrays, phases)


def _check_annotator(job: Job, index: int, size: tuple[int, int], footage: Footage) -> None:
    """Raise DiffSynthError if an annotator lacks files, weights or packages. Building it checks its options."""
    settings, where = job.controlnet_processor[index], f"controlnet_processor[{index}]"
    if isinstance(settings, FromFiles):
        _check_references(where, settings, len(job.frames_reference))
        _check_length(where, settings.path, footage.least, footage.most)
        if settings.references is not None:
            _check_length(f"{where}.references", settings.references, *[len(job.frames_reference)] * 2)
        return
    maker = _maker(job, index, size)
    if maker.weights is not None:
        maker.weights.check()


def _check_length(where: str, path: str, least: float, most: float) -> None:
    """Raise UsageError if the number of maps cannot be between `least` and `most`, the limits of the frame count."""
    fewest, largest = certain_length(open_source(path, values=True))
    if fewest > most:
        raise _wrong_length(where, path, fewest, most)
    if largest < least:
        raise _wrong_length(where, path, largest, least)


def _wrong_length(where: str, path: str, maps: float, frames: float) -> UsageError:
    given = f"{counted(int(maps), 'map')} for {counted(int(frames), 'frame')}"
    return UsageError(f"{where}: {path} holds {given}", "give exactly one map for each frame that is used")


def plan(run: Run[Job], resume: bool) -> Plan:
    job, cache = run.job, run.cache
    count, height, width, _ = cache["frames"].shape
    references = [fit(read_image(path), height, width) for path in job.frames_reference]
    if job.style_image:
        read_image(job.style_image)
    cuts = (
        recorded_cuts(job, cache)
        if resume
        else choose_cuts(job.scenes, cache["frames"], count=count, stage=STAGE.name, reporter=run.reporter)
    )
    of_frames = {"frames": fingerprint(run.inputs["after"]["extract"])}
    kept = [] if run.rebuild else _finished_maps(cache, of_frames, cuts)
    names = map_names(run.inputs)
    arrays: list[ArraySpec] = []
    phases: list[Phase] = []
    for index, pair in enumerate(names):
        if pair is None or pair in names[:index]:  # not run; or the map of an earlier ControlNet does
            continue
        counts = {"frames": count, "references": len(references)}
        both = [MapRequest(*named, counts[named[0]], cuts) for named in zip(counts, pair, strict=True)]
        requests = [request for request in both if request.count and request.target not in kept]
        if requests:
            arrays += [ArraySpec(request.target, (request.count, height, width, 3), "uint8") for request in requests]
            needed, more = _phases(run, index, requests, pair[0], (height, width), resume)
            arrays += needed
            phases += more
    known = {"references": np.stack(references)} if references else {}
    if job.scenes is not None:
        known["scenes"] = np.array([0, *cuts], np.int64)
    arrays += [ArraySpec(name, values.shape, values.dtype.name) for name, values in known.items()]
    arrays = [replace(spec, attributes={**spec.attributes, **of_frames}) for spec in arrays]

    def begin(cache: FrameCache) -> None:
        for name, values in known.items():
            cache[name].write(0, values)

    return Plan(count, arrays, phases, begin=begin, kept=tuple(kept))


@dataclass(frozen=True)
class MapRequest:
    """Maps to make: the source array, the target array, their number, and the cuts of the frames."""

    source: str
    target: str
    count: int
    cuts: tuple[int, ...]

    def look(self, name: str, task: Task) -> Phase:
        """Return a phase that reads the source."""
        return Phase(f"{name} {self.source}", self.count, task, cuts=self.cuts if self.source == "frames" else ())

    def draw(self, name: str, task: Task, drops: tuple[str, ...] = ()) -> Phase:
        """Return a phase that completes the maps."""
        return replace(self.look(name, task), completes=self.target, drops=drops)


def _finished_maps(cache: FrameCache, of_frames: Values, cuts: Sequence[int]) -> list[str]:
    """List the finished maps that earlier jobs made of these frames, and their measures.

    Maps with measures are not listed if they were drawn for other scenes.
    """
    maps = {name: part_array("measures", name) for name in cache.arrays("control/*", "control_reference/*")}

    def is_whole(name: str, measures: str) -> bool:
        try:
            same_scenes = measures not in cache or cache[measures].attrs.get("scenes", []) == [*cuts]
            return same_scenes and cache[name].attrs == of_frames | {"whole": True}
        except DiffSynthError:  # damaged, so it is redone
            return False

    whole = {name: measures for name, measures in maps.items() if is_whole(name, measures)}
    return [*whole, *(measures for measures in whole.values() if measures in cache)]


def _phases(
    run: Run[Job], index: int, requests: list[MapRequest], video: str, size: tuple[int, int], resume: bool
) -> tuple[list[ArraySpec], list[Phase]]:
    """Return the extra arrays that the maps of one ControlNet need, and the phases that fill all of them.

    Raises:
        DiffSynthError: Files, weights or packages are missing or invalid.
    """
    job, where = run.job, f"controlnet_processor[{index}]"
    settings = job.controlnet_processor[index]
    label = f"{settings.name} map {index}"
    if isinstance(settings, FromFiles):
        if not resume:
            _check_files(where, settings, requests, size, len(job.frames_reference), run.reporter)
        return [], [request.draw(f"{label}:", _decode(settings, request)) for request in requests]
    maker = _maker(job, index, size)
    if maker.weights and not resume:
        maker.weights.folder()
    annotator = maker.build()
    if isinstance(annotator, VideoAnnotator):
        return _two_pass_phases(maker, annotator, label, requests, video)
    return [], [request.draw(f"{label}:", AnnotateTask(maker, request.source, request.target)) for request in requests]


def _decode(settings: FromFiles, request: MapRequest) -> DecodeTask:
    path = settings.path if request.source == "frames" else settings.references or ""
    return DecodeTask(path, partial(map_shots, path), request.target, settings.as_map)


def _maker(job: Job, index: int, size: tuple[int, int]) -> Maker:
    settings = job.controlnet_processor[index]
    where = f"controlnet_processor[{index}]"
    if missing := settings.missing_package():
        raise UsageError(f"{where}: {missing}")
    style = job.style_image if settings.uses_style_image else None
    return Maker(settings.name, settings.model_dump(exclude={"name"}), settings.weights(where), style, job.device, size)


def _two_pass_phases(
    maker: Maker, annotator: VideoAnnotator, label: str, requests: list[MapRequest], video: str
) -> tuple[list[ArraySpec], list[Phase]]:
    note = annotator.note_shape(*maker.size)
    arrays, look, draw = [], [], []
    for request in requests:
        notes, measures = (part_array(part, request.target) for part in ("notes", "measures"))
        drawn_for: JsonObject = {"scenes": [*request.cuts]} if request.cuts else {}
        arrays.append(ArraySpec(notes, (request.count, *note), "float32"))
        arrays.append(ArraySpec(measures, (request.count, annotator.MEASURES), "float64", drawn_for))
        look.append(request.look(f"{label}: look at", LookTask(maker, request.source, request.target)))
        draw.append(request.draw(f"{label}: draw", DrawTask(maker, request.target, video, request.cuts), (notes,)))
    return arrays, look + draw


def _check_files(
    where: str,
    settings: FromFiles,
    requests: list[MapRequest],
    size: tuple[int, int],
    references: int,
    reporter: Reporter,
) -> None:
    _check_references(where, settings, references)
    for request in requests:
        if request.source == "frames":
            _check_maps(where, settings.path, request.count, size, reporter)
        elif settings.references is not None:
            _check_maps(f"{where}.references", settings.references, request.count, size, reporter)


def _check_references(where: str, settings: FromFiles, references: int) -> None:
    if references and settings.references is None:
        raise UsageError(
            f"{where} has no maps for frames_reference",
            'give them as {"name": "file", "path": ..., "references": ...}',
        )


def _check_maps(where: str, path: str, frames: int, size: tuple[int, int], reporter: Reporter) -> None:
    source = open_source(path, values=True)
    maps = sum(1 for _ in source.shots())
    if maps != frames:
        raise _wrong_length(where, path, maps, frames)
    if (source.height, source.width) != size:
        change = f"{source.width}×{source.height} to the frames' {size[1]}×{size[0]}"
        reporter.warn(f"{where}: maps are cropped and resized from {change}")


def shown(cache: FrameCache) -> dict[str, str]:
    """The maps of the frames, by the annotators that made them."""
    recorded = cache.recorded(STAGE.name)
    pairs = enumerate(map_names(recorded) if recorded else ())
    return {f"map {index}: {pair[0].partition('/')[2].rpartition('-')[0]}": pair[0] for index, pair in pairs if pair}


STAGE = Stage(
    name="control",
    reads=("scenes", "controlnet_processor", "style_image", "frames_reference"),
    after=("extract",),
    arrays=("scenes", "references", "control/*", "control_reference/*", "notes/*", "measures/*"),
    needs=lambda job: ("frames",),
    plan=plan,
    check=check,
    shown=shown,
    streams=True,
)
