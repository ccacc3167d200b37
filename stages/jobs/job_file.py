"""Reading job files: overrides, relative paths, and all mistakes in one message."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

from pydantic import ConfigDict, ValidationError, create_model

from stages.base.engine import Stage
from stages.base.errors import UsageError
from stages.base.json_types import Json, JsonObject, Values
from stages.base.mistakes import WORDS, Strict, explain, shown
from stages.base.paths import Place, find_paths, replace_paths
from stages.base.record import receipt_name
from stages.base.store import open_store
from stages.base.words import counted
from stages.diffusion.sampler import SAMPLERS
from stages.jobs.job import Job
from stages.models import PICKLES
from stages.smoothers import SMOOTHERS, drop_obsolete

LONGEST_INT = 400  # digits; more than any key needs, and Python stops at 4300

Rule: TypeAlias = Callable[[Job], list[str]]
"""Finds what is wrong about keys that are valid by themselves but not together."""


def read_job(
    path: str | Path, overrides: Iterable[str] = (), stages: Sequence[Stage[Job]] = ()
) -> tuple[Job, list[str]]:
    """Read a job file.

    Args:
        path: The JSON file. Relative paths in it are relative to its folder.
        overrides: `key=value` strings. A value that is not JSON is text; `a.b=value` sets a key of an object. Relative
            paths in them are relative to the current folder.
        stages: The stages to run. The files they read must exist, and the libraries they import must be installed.

    Returns:
        The job, and warnings about it.

    Raises:
        UsageError: The job has mistakes; the message lists all of them.
    """
    path = Path(path)
    return make_job(_load_json(path), path.resolve().parent, str(path), overrides, stages)


def make_job(
    keys: JsonObject, folder: Path, name: str, overrides: Iterable[str] = (), stages: Sequence[Stage[Job]] = ()
) -> tuple[Job, list[str]]:
    """Return the job with these keys, and warnings about it, as `read_job` does.

    Args:
        keys: The keys, as in a job file.
        folder: The folder that paths in `keys` are relative to.
        name: What messages call the job.
        overrides: `key=value` strings.
        stages: The stages whose files must exist.

    Raises:
        UsageError: The job has mistakes; the message lists all of them.
    """
    data = keys
    overridden = {_override(data, override) for override in overrides}
    warnings = _drop_obsolete(data)
    job, bad, problems = _validated(data)

    def resolve(place: Place) -> str:
        return place.kind.resolve(place.name, Path.cwd() if place.key in overridden else folder)

    job = replace_paths(job, resolve)
    problems += _broken_rules(job, bad)
    sound = not problems
    if sound and job.extra_deflickering_range and job.post_smoother is not None:
        warnings.append("extra_deflickering_range: ignored, since post_smoother is set")
    reads = {key for stage in _unfinished(job, stages) for key in stage.reads}
    problems += _missing_files(job, reads)
    if sound:
        job = _with_scales(job)
        problems += _missing_packages(job, reads)
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise UsageError(
            f"{name}: {problems[0]}" if len(problems) == 1 else f"{name}: {len(problems)} mistakes{listed}"
        )
    return job, warnings


def check(data: JsonObject) -> tuple[Job | None, list[str]]:
    """Return the job that `data` describes, None if it has mistakes, and messages about them."""
    job, bad, problems = _validated(data)
    problems += _broken_rules(job, bad)
    return (None if problems else _with_scales(job)), problems


def _validated(data: JsonObject) -> tuple[Job, set[str], list[str]]:
    """Return the job without its invalid keys, the names of these keys, and messages about them."""
    bad: set[str] = set()
    problems = []
    try:
        job = Job.model_validate(data)
    except ValidationError as error:
        problems = explain(error, Job)
        bad = {str(details["loc"][0]) for details in error.errors()}
        job = _partial({key: value for key, value in data.items() if key in Job.model_fields and key not in bad})
    not_text = [key for key, value in data.items() if key not in bad and not _is_unicode(value)]
    problems += [f"{key}: {WORDS['string_unicode'].format(given=shown(data[key]))}" for key in not_text]
    return job, bad, problems


def _partial(sound: JsonObject) -> Job:
    """Build a job from valid keys and defaults. Other keys are missing."""
    fields: Values = {key: (Job.model_fields[key].annotation, Job.model_fields[key]) for key in sound}
    config = Strict.model_config | ConfigDict(use_attribute_docstrings=False)  # which takes longer than all the rest
    return Job.model_construct(**dict(create_model("Some", __config__=config, **fields).model_validate(sound)))


def _broken_rules(job: Job, bad: set[str]) -> list[str]:
    """Return messages about valid keys that contradict each other."""
    return [problem for keys, rule in _RULES if not bad.intersection(keys) for problem in rule(job)]


def _with_scales(job: Job) -> Job:
    return (
        job
        if job.controlnet_scale
        else job.model_copy(update={"controlnet_scale": [1.0] * len(job.controlnet_model_id)})
    )


def _is_unicode(value: Json) -> bool:
    """Whether `value` can be encoded in UTF-8. Bytes that the locale cannot decode are read as lone surrogates."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


# --- JSON -----------------------------------------------------------------------------------------------


def _load_json(path: Path) -> JsonObject:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"{path}: no such job file", "create one with diffsynth init TASK VIDEO") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder", "give the path of a job file in it") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not a text file", "job files are JSON in UTF-8") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    try:
        data = _parse(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from None
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
    if not isinstance(data, dict):
        raise UsageError(f'{path}: a job file must be a JSON object, {{"key": value, ...}}')
    return data


def _parse(text: str) -> Json:
    """Parse JSON. Raise ValueError if it is invalid or has a key twice."""
    try:
        value: Json = json.loads(text, object_pairs_hook=_no_double_keys, parse_int=_parse_int)
        return value
    except RecursionError:
        raise ValueError("lists and objects are nested too deeply") from None


def _parse_int(digits: str) -> int:
    if len(digits) > LONGEST_INT:
        raise ValueError(f"the number {digits[:20]}... has {len(digits)} digits")
    return int(digits)


def _no_double_keys(pairs: list[tuple[str, Json]]) -> JsonObject:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in names if names.count(key) > 1)!r} appears twice")
    return result


def _override(data: JsonObject, text: str) -> str:
    """Apply an override `key=value` to `data`, and return the top-level key that it changes."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"--set {text}: give key=value")
    *parents, last = key.split(".")
    target = data
    for name in parents:
        child = target.setdefault(name, {})
        if not isinstance(child, dict):
            raise UsageError(f"--set {text}: {name} is not an object")
        target = child
    try:
        target[last] = _parse(value)
    except json.JSONDecodeError:
        target[last] = value
    except ValueError as error:
        raise UsageError(f"--set {key}: {error}") from None
    return key


def _drop_obsolete(data: JsonObject) -> list[str]:
    """Remove keys that older job files have, and return a warning about them."""
    dropped = []
    for key in ("smoother", "post_smoother"):
        config = data.get(f"{key}_config")
        if isinstance(config, dict):
            data[f"{key}_config"], unused = drop_obsolete(str(data.get(key)), config)
            dropped += [f"{key}_config.{old}" for old in unused]
    return [f"ignored, since they are no longer needed: {', '.join(dropped)}"] if dropped else []


def _lengths(job: Job) -> list[str]:
    nets, maps = len(job.controlnet_model_id), len(job.controlnet_processor)
    return [f"controlnet_processor: give one annotator per ControlNet ({nets}, not {maps})"] * (nets != maps)


def _scales(job: Job) -> list[str]:
    nets, scales = len(job.controlnet_model_id), len(job.controlnet_scale)
    return [f"controlnet_scale: give one per ControlNet ({nets}, not {scales}), or none"] * (scales not in (0, nets))


def _spans(job: Job) -> list[str]:
    nets, starts, ends = len(job.controlnet_model_id), job.controlnet_start, job.controlnet_end
    problems = [
        f"{key}: give one per ControlNet ({nets}, not {len(values)}), or none"
        for key, values in (("controlnet_start", starts), ("controlnet_end", ends))
        if len(values) not in (0, nets)
    ]
    if not problems and any(start >= end for start, end in job.spans):
        problems.append("controlnet_end: must be after controlnet_start")
    return problems


def _guided(job: Job) -> list[str]:
    return ["guidance_end: must be after guidance_start"] * (job.guidance_start >= job.guidance_end)


def _pattern(job: Job) -> list[str]:
    problems = []
    if job.combine_pattern.count(0) != 1:
        problems.append(f"combine_pattern: must contain 0, the frame itself, exactly once, not {job.combine_pattern}")
    for item in job.combine_pattern:
        if isinstance(item, str) and int(item.removeprefix("reference_")) >= len(job.frames_reference):
            problems.append(
                f"combine_pattern: {item!r}, but frames_reference holds {counted(len(job.frames_reference), 'image')}"
            )
    return problems


def _steps(job: Job) -> list[str]:
    passes = {"img2img_strength": (job.num_inference_steps, job.img2img_strength)}
    if job.upscale is not None:
        passes["upscale.strength"] = job.upscale.steps or job.num_inference_steps, job.upscale.strength
    return [
        f"{key}: {strength} of {steps} steps is less than one step"
        for key, (steps, strength) in passes.items()
        if int(steps * strength) < 1
    ]


def _most_steps(job: Job) -> list[str]:
    most = SAMPLERS[job.scheduler].most_steps
    asked = {"num_inference_steps": job.num_inference_steps}
    if job.upscale is not None and job.upscale.steps is not None:
        asked["upscale.steps"] = job.upscale.steps
    return [
        f"{key}: {job.scheduler} takes at most {most} steps, not {steps}"
        for key, steps in asked.items()
        if steps > most
    ]


def _span(job: Job) -> list[str]:
    if job.start_time is None or job.end_time is None or job.start_time < job.end_time:
        return []
    return [f"end_time: {job.end_time} must be after start_time {job.start_time}"]


def _style(job: Job) -> list[str]:
    users = [item.name for item in job.controlnet_processor if item.uses_style_image]
    return [f"style_image: missing; the annotator {name!r} needs it" for name in users[:1] if not job.style_image]


def _smoother(key: str) -> Rule:
    def rule(job: Job) -> list[str]:
        name, config = getattr(job, key), getattr(job, f"{key}_config")
        if name is None:
            return [f"{key}_config: needs {key}, which is not set"] * bool(config)
        try:
            SMOOTHERS[name].model_validate(config)
        except ValidationError as error:
            return [f"{key}_config: {line}" for line in explain(error, SMOOTHERS[name])]
        return []

    return rule


def _pickles(job: Job) -> list[str]:
    return [
        f"{place.label}: {place.name} is a pickle, which can run code on this machine; convert it to .safetensors or, "
        'if you trust its source, set "allow_pickle": true or give --allow-pickle'
        for place in find_paths(job)
        if place.kind.may_be_pickle and _is_pickle(place.name) and not job.allow_pickle
    ]


def _is_pickle(name: str) -> bool:
    return name.endswith(PICKLES) and not Path(name).is_dir()


_RULES: tuple[tuple[tuple[str, ...], Rule], ...] = (
    (("controlnet_model_id", "controlnet_processor"), _lengths),
    (("controlnet_model_id", "controlnet_scale"), _scales),
    (("controlnet_model_id", "controlnet_start", "controlnet_end"), _spans),
    (("guidance_start", "guidance_end"), _guided),
    (("combine_pattern", "frames_reference"), _pattern),
    (("num_inference_steps", "img2img_strength", "upscale"), _steps),
    (("num_inference_steps", "scheduler", "upscale"), _most_steps),
    (("start_time", "end_time"), _span),
    (("controlnet_processor", "style_image"), _style),
    (("smoother", "smoother_config"), _smoother("smoother")),
    (("post_smoother", "post_smoother_config"), _smoother("post_smoother")),
    (("allow_pickle",), _pickles),
)


def _unfinished(job: Job, stages: Sequence[Stage[Job]]) -> list[Stage[Job]]:
    """Return the stages that are not finished. Finished ones read no files."""
    if not stages or not {"output_path", "cache", "upscale"} <= set(job.__dict__):  # a job with mistakes may lack keys
        return [*stages]
    store = open_store(job.cache_place)
    return [stage for stage in stages if stage.runs(job) and store.get(receipt_name(stage.name)) is None]


def _missing_packages(job: Job, reads: Collection[str]) -> list[str]:
    """Return messages about optional libraries that the job's annotators need and that are not installed."""
    if "controlnet_processor" not in reads:
        return []
    networks = zip(job.controlnet_processor, job.networks_run, strict=True)
    missing = [item.missing_package() if runs else "" for item, runs in networks]
    return [f"controlnet_processor[{index}]: {line}" for index, line in enumerate(missing) if line]


def _missing_files(job: Job, reads: Collection[str]) -> list[str]:
    """Return messages about files and folders that do not exist, for the keys in `reads`."""
    return [
        f"{place.label}: no such file or folder: {place.name}"
        for place in find_paths(job)
        if place.key in reads and place.local is not None and not place.local.exists()
    ]


def input_paths(job: Job) -> list[Path]:
    """Return all files and folders that any stage of the job reads."""
    return [place.local for place in find_paths(job) if place.local is not None]
