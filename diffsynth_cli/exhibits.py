"""What `diffsynth report` shows of a job, and `diffsynth smooth --report` of a smoothed video."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

from diffsynth_cli.contact_sheet import states
from diffsynth_cli.page import Exhibit, StageTime
from stages.all_stages import stages_of
from stages.base.cache import FrameArray, FrameCache
from stages.base.errors import DiffSynthError
from stages.base.json_types import Values
from stages.base.progress import Progress
from stages.base.record import Receipt, StageRecord
from stages.base.removal import refuse_removed
from stages.deflicker import frame_rate
from stages.identity import processor
from stages.jobs.job import Job
from stages.jobs.second_pass import final
from stages.smooth.request import NAME, Smoothing
from stages.smoothers.patch_blend import PatchBlend

INPUT = "input"


def of_job(job: Job, cache: FrameCache, stages: Sequence[Progress]) -> Exhibit:
    """Return what the finished stages of a job have made.

    Raises:
        DiffSynthError: Its frames have not been extracted, or the metadata of an array is damaged.
    """
    refuse_removed("report", ("frames",), ["extract"], stages_of(job), job, cache)
    made = states(job, cache)
    if "frames" not in made:
        raise DiffSynthError("report needs extract, which is not finished", f"run {cache.command('run')}")
    style, large = _style(made), final(job, "frames")
    frames = made.pop("frames")
    if style is not None and made[style].shape != frames.shape:
        refuse_removed("report", (large,), ["upscale"], stages_of(job), job, cache)
        frames = cache[large]
    videos = {INPUT: frames, **made}
    records = {stage.stage: cache.record(stage.stage) for stage in stages}
    return Exhibit(
        title=f"{Path(job.input_video).name} → {Path(job.output_path).name}",
        videos=videos,
        guide=INPUT,
        style=style,
        result="deflickered" if "deflickered" in made else None,
        fps=frame_rate(job, cache),
        stages=[_time(stage, records[stage.stage]) for stage in stages],
        settings=_texts(job.model_dump(exclude_defaults=True)),
        machine={**(_networks(cache) if "rendered" in made else {}), **_versions(records.values())},
    )


def _style(made: Mapping[str, FrameArray]) -> str | None:
    """Return the label of the stylised video: the last one of the size of the result, if there is a result."""
    found = [label for label in ("upscaled", "rendered") if label in made]
    result = made.get("deflickered")
    return next((label for label in found if result is None or made[label].shape == result.shape), None)


def of_smoothing(smoothing: Smoothing, cache: FrameCache) -> Exhibit:
    """Return what smoothing made of a video whose cache still exists."""
    guides = {INPUT: cache["guides"]} if "guides" in cache else {}
    record, options = cache.record(NAME), PatchBlend.model_validate(smoothing.config).model_dump(exclude_defaults=True)
    given = {"guide": smoothing.guide, "style": smoothing.style, "output": smoothing.output}
    chosen = {"offset": smoothing.offset, "scenes": smoothing.scenes, "compile": smoothing.compiled or None}
    return Exhibit(
        title=f"{smoothing.style.name} → {smoothing.output.name}",
        videos={**guides, "stylised": cache["styles"], "smoothed": cache["smoothed"]},
        guide=INPUT if guides else "stylised",
        style="stylised",
        result="smoothed",
        fps=Fraction(str(cache["smoothed"].attrs["fps"])),
        stages=[_time(Progress(NAME, "done", receipt=record.receipt), record)],
        settings=_texts({key: value for key, value in {**given, **options, **chosen}.items() if value is not None}),
        machine={"device": processor(smoothing.device), **_versions([record])},
    )


def _time(stage: Progress, record: StageRecord) -> StageTime:
    """Return how long a stage took, by its receipt or, while it is not complete, by its marks."""
    receipt = record.receipt
    if receipt is None:
        return StageTime(stage.stage, stage.state, "", record.seconds or None, record.phases)
    remarks = "; ".join(stage.changes) or f"finished {receipt['finished']}"
    return StageTime(stage.stage, stage.state, remarks, receipt["seconds"], receipt.get("phases", {}))


def _networks(cache: FrameCache) -> dict[str, str]:
    """Return what rendering noted about where and how the networks ran."""
    noted: Values = cache["rendered"].attrs
    devices = {"device": ", ".join(noted["devices"])} if noted.get("devices") else {}
    return devices | {name: noted[name] for name in ("attention_backend",) if name in noted}


def _versions(records: Iterable[StageRecord]) -> dict[str, str]:
    """Return the versions that the stages noted, by program. Where stages differ, all are listed."""
    noted: dict[str, dict[str, None]] = {}
    for record in records:
        for name, version in _noted(record.receipt).items():
            noted.setdefault(name, {})[version] = None
    return {name: ", ".join(versions) for name, versions in noted.items()}


def _noted(receipt: Receipt | None) -> dict[str, str]:
    return {} if receipt is None else receipt.get("versions", {})


def _texts(settings: Mapping[str, object]) -> dict[str, str]:
    """Return settings as texts: strings as they are, everything else as JSON."""
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        for name, value in settings.items()
    }
