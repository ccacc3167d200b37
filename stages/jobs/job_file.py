"""Reading a job file: overrides, relative paths, and every mistake in one message."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError, create_model

from stages.base.engine import Stage
from stages.base.errors import UsageError
from stages.base.mistakes import WORDS, Strict, explain, shown
from stages.base.paths import Place, find_paths, replace_paths
from stages.base.record import CACHE_NAME, receipt_path
from stages.base.words import counted
from stages.diffusion.sampler import SAMPLERS
from stages.jobs.job import Job
from stages.models import PICKLES
from stages.smoothers import SMOOTHERS, drop_obsolete

LONGEST_INT = 400  # digits; no key takes so many, and Python stops at 4300


def read_job(
    path: str | Path, overrides: Iterable[str] = (), stages: Sequence[Stage[Job]] = ()
) -> tuple[Job, list[str]]:
    """Read a job file.

    Args:
        path: The JSON file. Relative paths in it are relative to its folder.
        overrides: `key=value` strings; values are JSON, or else text; `a.b=value` reaches into an object. Relative
            paths in them are relative to the current folder.
        stages: What is going to run: the files that these stages read must exist, and the libraries that they import.

    Returns:
        The job, and warnings about it.

    Raises:
        UsageError: All mistakes, in one message.
    """
    path = Path(path)
    return make_job(_load_json(path), path.resolve().parent, str(path), overrides, stages)


def make_job(
    keys: dict[str, Any], folder: Path, name: str, overrides: Iterable[str] = (), stages: Sequence[Stage[Job]] = ()
) -> tuple[Job, list[str]]:
    """Return the job with these keys, and warnings about it, as `read_job` does.

    Args:
        keys: The keys, as in a job file.
        folder: What relative paths in `keys` are relative to.
        name: What messages call the job.
        overrides: `key=value` strings.
        stages: The stages whose files must exist.

    Raises:
        UsageError: All mistakes in one message.
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
        warnings.append("extra_deflickering_range: not used, since post_smoother takes its place")
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


def check(data: dict[str, Any]) -> tuple[Job | None, list[str]]:
    """The job that `data` describes, or None, and every mistake found in it."""
    job, bad, problems = _validated(data)
    problems += _broken_rules(job, bad)
    return (None if problems else _with_scales(job)), problems


def _validated(data: dict[str, Any]) -> tuple[Job, set[str], list[str]]:
    """The job that `data` describes, without those keys that are wrong; these keys; and what is wrong with them."""
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


def _partial(sound: dict[str, Any]) -> Job:
    """A job of these keys, whose values are sound, and of defaults. Keys that have none may be missing."""
    fields: dict[str, Any] = {key: (Job.model_fields[key].annotation, Job.model_fields[key]) for key in sound}
    return Job.model_construct(**dict(create_model("Some", __base__=Strict, **fields).model_validate(sound)))


def _broken_rules(job: Job, bad: set[str]) -> list[str]:
    """What is wrong about keys that are sound in themselves but do not fit each other."""
    return [problem for keys, rule in _RULES if not bad.intersection(keys) for problem in rule(job)]


def _with_scales(job: Job) -> Job:
    return (
        job
        if job.controlnet_scale
        else job.model_copy(update={"controlnet_scale": [1.0] * len(job.controlnet_model_id)})
    )


def _is_unicode(value: Any) -> bool:
    """Whether it can be written in UTF-8: bytes that the locale does not know are read as lone surrogates."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


# --- what can be wrong with it --------------------------------------------------------------------------


def _load_json(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"{path}: no such job file", "diffsynth init TASK VIDEO writes one") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder", "give the job file in it") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not a text file", "a job file is JSON, in UTF-8") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    try:
        data = _parse(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from None
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
    if not isinstance(data, dict):
        raise UsageError(f'{path}: a job file is one JSON object, {{"key": value, ...}}')
    return data


def _parse(text: str) -> Any:
    """JSON without the same key twice. Raises ValueError."""
    try:
        return json.loads(text, object_pairs_hook=_no_double_keys, parse_int=_parse_int)
    except RecursionError:
        raise ValueError("its lists and objects are nested too deeply") from None


def _parse_int(digits: str) -> int:
    if len(digits) > LONGEST_INT:
        raise ValueError(f"the number {digits[:20]}... has {len(digits)} digits")
    return int(digits)


def _no_double_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in names if names.count(key) > 1)!r} is given twice")
    return result


def _override(data: dict[str, Any], text: str) -> str:
    """Set what `key=value` says in `data`, and return the key that now holds a value from the command line."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"--set {text}: give key=value")
    *parents, last = key.split(".")
    target = data
    for name in parents:
        target = target.setdefault(name, {})
        if not isinstance(target, dict):
            raise UsageError(f"--set {text}: {name} is not an object")
    try:
        target[last] = _parse(value)
    except json.JSONDecodeError:
        target[last] = value
    except ValueError as error:
        raise UsageError(f"--set {key}: {error}") from None
    return key


def _drop_obsolete(data: dict[str, Any]) -> list[str]:
    dropped = []
    for key in ("smoother", "post_smoother"):
        config = data.get(f"{key}_config")
        if isinstance(config, dict):
            data[f"{key}_config"], unused = drop_obsolete(str(data.get(key)), config)
            dropped += [f"{key}_config.{old}" for old in unused]
    return [f"ignored, no longer needed: {', '.join(dropped)}"] if dropped else []


def _lengths(job: Job) -> list[str]:
    nets, maps = len(job.controlnet_model_id), len(job.controlnet_processor)
    return [f"controlnet_processor: give one annotator for each ControlNet: {nets}, not {maps}"] * (nets != maps)


def _scales(job: Job) -> list[str]:
    nets, scales = len(job.controlnet_model_id), len(job.controlnet_scale)
    return [f"controlnet_scale: give one for each ControlNet, or none at all: {nets}, not {scales}"] * (
        scales not in (0, nets)
    )


def _pattern(job: Job) -> list[str]:
    problems = []
    if job.combine_pattern.count(0) != 1:
        problems.append(f"combine_pattern: must hold 0, the frame itself, once: {job.combine_pattern}")
    for item in job.combine_pattern:
        if isinstance(item, str) and int(item.removeprefix("reference_")) >= len(job.frames_reference):
            problems.append(
                f"combine_pattern: {item!r}, but frames_reference holds {counted(len(job.frames_reference), 'image')}"
            )
    return problems


def _steps(job: Job) -> list[str]:
    if job.num_inference_steps * job.img2img_strength >= 1:
        return []
    return [f"img2img_strength: {job.img2img_strength} of {job.num_inference_steps} steps is less than one step"]


def _most_steps(job: Job) -> list[str]:
    most = SAMPLERS[job.scheduler].most_steps
    too_many = job.num_inference_steps > most
    return [f"num_inference_steps: {job.scheduler} takes {most} at most, not {job.num_inference_steps}"] * too_many


def _span(job: Job) -> list[str]:
    if job.start_time is None or job.end_time is None or job.start_time < job.end_time:
        return []
    return [f"end_time: {job.end_time} is not after start_time {job.start_time}"]


def _style(job: Job) -> list[str]:
    users = [item.name for item in job.controlnet_processor if item.uses_style_image]
    return [f"style_image: missing; the annotator {name!r} works on it" for name in users[:1] if not job.style_image]


def _smoother(key: str) -> Callable[[Job], list[str]]:
    def rule(job: Job) -> list[str]:
        name, config = getattr(job, key), getattr(job, f"{key}_config")
        if name is None:
            return [f"{key}_config: given, but {key} names no smoother"] * bool(config)
        try:
            SMOOTHERS[name].model_validate(config)
        except ValidationError as error:
            return [f"{key}_config: {line}" for line in explain(error, SMOOTHERS[name])]
        return []

    return rule


def _pickles(job: Job) -> list[str]:
    return [
        f"{place.label}: {place.name} is a pickle, which can run code on this machine: convert it to .safetensors; or, "
        'if you trust its source, "allow_pickle": true or --allow-pickle'
        for place in find_paths(job)
        if place.kind.may_be_pickle and _is_pickle(place.name) and not job.allow_pickle
    ]


def _is_pickle(name: str) -> bool:
    return name.endswith(PICKLES) and not Path(name).is_dir()


_RULES: tuple[tuple[tuple[str, ...], Callable[[Job], list[str]]], ...] = (
    (("controlnet_model_id", "controlnet_processor"), _lengths),
    (("controlnet_model_id", "controlnet_scale"), _scales),
    (("combine_pattern", "frames_reference"), _pattern),
    (("num_inference_steps", "img2img_strength"), _steps),
    (("num_inference_steps", "scheduler"), _most_steps),
    (("start_time", "end_time"), _span),
    (("controlnet_processor", "style_image"), _style),
    (("smoother", "smoother_config"), _smoother("smoother")),
    (("post_smoother", "post_smoother_config"), _smoother("post_smoother")),
    (("allow_pickle",), _pickles),
)


def _unfinished(job: Job, stages: Sequence[Stage[Job]]) -> list[Stage[Job]]:
    """Those of `stages` that have work left. A finished stage reads nothing."""
    output = job.__dict__.get("output_path")  # missing in a job with mistakes
    return [
        stage for stage in stages if output is None or not receipt_path(Path(output) / CACHE_NAME, stage.name).exists()
    ]


def _missing_packages(job: Job, reads: Collection[str]) -> list[str]:
    """Optional libraries that the annotators of `job` import and that are not installed."""
    if "controlnet_processor" not in reads:
        return []
    networks = zip(job.controlnet_processor, job.networks_run, strict=True)
    missing = [item.missing_package() if runs else "" for item, runs in networks]
    return [f"controlnet_processor[{index}]: {line}" for index, line in enumerate(missing) if line]


def _missing_files(job: Job, reads: Collection[str]) -> list[str]:
    """Files and folders that do not exist, of the keys that are read."""
    return [
        f"{place.label}: no such file or folder: {place.name}"
        for place in find_paths(job)
        if place.key in reads and place.local is not None and not place.local.exists()
    ]


def input_paths(job: Job) -> list[Path]:
    """All files and folders that a job reads, in any stage."""
    return [place.local for place in find_paths(job) if place.local is not None]
