"""Reading a job file: overrides, relative paths, and every mistake in one message."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stages.base.errors import UsageError
from stages.base.mistakes import WORDS, explain, shown
from stages.base.record import CACHE_NAME, receipt_path
from stages.base.words import counted
from stages.diffusion.sampler import SAMPLERS
from stages.jobs.job import Job, expand_annotator
from stages.models import EMBEDDED, PICKLES, SINGLE_FILES
from stages.smoothers import SMOOTHERS, drop_obsolete

LONGEST_INT = 400  # digits; no key takes so many, and Python stops at 4300


def read_job(path: str | Path, overrides: Iterable[str] = (), stages: Sequence[str] = ()) -> tuple[Job, list[str]]:
    """The job in the JSON file `path`, and warnings about it.

    `overrides` are `key=value` strings (values as JSON, or else as text; `a.b=value` reaches into an object).
    Relative paths in the file are relative to the file, those in overrides to the current folder. The files
    that `stages` read must exist, and what they import. All mistakes are reported in one UsageError.
    """
    path = Path(path)
    data = _resolve_paths(_load_json(path), path.resolve().parent)
    for override in overrides:
        _override(data, override)
    warnings = _drop_obsolete(data)
    job, problems = check(data)
    if job is not None and job.extra_deflickering_range and job.post_smoother is not None:
        warnings.append("extra_deflickering_range: not used, since post_smoother takes its place")
    stages = _unfinished(data, stages)
    problems += _missing_files(data, stages) + _missing_packages(job, stages)
    if problems or job is None:
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise UsageError(
            f"{path}: {problems[0]}" if len(problems) == 1 else f"{path}: {len(problems)} mistakes{listed}"
        )
    return job, warnings


def check(data: dict[str, Any]) -> tuple[Job | None, list[str]]:
    """The job that `data` describes, or None, and every mistake found in it."""
    bad: set[str] = set()
    problems = []
    job = None
    try:
        job = Job.model_validate(data)
    except ValidationError as error:
        problems = explain(error, Job)
        bad = {str(details["loc"][0]) for details in error.errors()}
    problems += [
        f"{key}: {WORDS['string_unicode'].format(given=shown(value))}"
        for key, value in data.items()
        if key not in bad and not _is_unicode(value)
    ]
    sound = {key: value for key, value in data.items() if key in Job.model_fields and key not in bad}
    looked_at = job or Job.model_construct(**sound)
    for keys, rule in _RULES:
        if not bad.intersection(keys):
            problems += rule(looked_at)
    if job is not None and not problems and not job.controlnet_scale:
        job = job.model_copy(update={"controlnet_scale": [1.0] * len(job.controlnet_model_id)})
    return (None if problems else job), problems


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


def _override(data: dict[str, Any], text: str) -> None:
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
    if not parents:
        data[key] = _resolve_paths({key: data[key]}, Path.cwd())[key]


def _resolve_paths(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same data with every relative path made absolute. Names of hub models stay as they are."""

    def absolute(value: Any) -> Any:
        return str(folder / _expanded(value)) if isinstance(value, str) and value else value

    def model(value: Any) -> Any:
        # "name/model" is a hub id unless such a folder lies there; "./x", "../x", "~/x", "/x" and single files'
        # names are always paths.
        is_path = (
            isinstance(value, str)
            and value not in EMBEDDED
            and (value.startswith((".", "~", "/")) or value.endswith(SINGLE_FILES) or (folder / value).exists())
        )
        return absolute(value) if is_path else value

    def annotator(value: Any) -> Any:
        if isinstance(value, str) and value.startswith("file:"):
            return "file:" + absolute(value[5:]) if value[5:] else value
        if isinstance(value, dict):
            paths = {"path": absolute, "references": absolute, "model": model}
            return {key: paths.get(key, lambda same: same)(v) for key, v in value.items()}
        return value

    def addition(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: absolute(v) if key == "path" else v for key, v in value.items()}
        return absolute(value)

    kinds: dict[str, Callable[[Any], Any]] = {
        "input_video": absolute, "output_path": absolute, "style_image": absolute, "frames_reference": absolute,
        "model_id": model, "controlnet_model_id": model, "vae": model, "controlnet_processor": annotator,
        "loras": addition, "embeddings": addition,
    }  # fmt: skip
    resolved = dict(data)
    for key, change in kinds.items():
        value = data.get(key)
        if isinstance(value, list):
            resolved[key] = [change(item) for item in value]
        elif value is not None:
            resolved[key] = change(value)
    return resolved


def _expanded(path: str) -> Path:
    """`~/x` in the user's home; `./~x`, or `~x` where there is no such user, is a name like any other."""
    try:
        return Path(path).expanduser() if path.startswith("~") else Path(path)
    except RuntimeError:
        return Path(path)


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
    if job.style_image:
        return []
    annotators = map(expand_annotator, job.controlnet_processor)  # where other keys are wrong, they are as written
    users = [item.name for item in annotators if item.uses_style_image]
    return [f"style_image: missing; the annotator {users[0]!r} works on it"] if users else []


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
    named = [("model_id", job.model_id), ("vae", job.vae or "")]
    for key in ("controlnet_model_id", "loras", "embeddings"):
        named += [(f"{key}[{i}]", str(_path(item))) for i, item in enumerate(getattr(job, key))]
    return [
        f"{key}: {name} is a pickle, which can run code on this machine: convert it to .safetensors; or, if you trust "
        'its source, "allow_pickle": true or --allow-pickle'
        for key, name in named
        if name.endswith(PICKLES) and not Path(name).is_dir() and not job.allow_pickle
    ]


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
    (("model_id", "vae", "controlnet_model_id", "loras", "embeddings", "allow_pickle"), _pickles),
)


def _unfinished(data: dict[str, Any], stages: Sequence[str]) -> Sequence[str]:
    """Those of `stages` that have work left. A finished stage reads nothing."""
    output = data.get("output_path")
    if not isinstance(output, str):
        return stages
    return [stage for stage in stages if not receipt_path(Path(output) / CACHE_NAME, stage).exists()]


def _missing_packages(job: Job | None, stages: Sequence[str]) -> list[str]:
    """Optional libraries that the annotators of `job` import and that are not installed."""
    if job is None or "control" not in stages:
        return []
    networks = zip(job.controlnet_processor, job.networks_run, strict=True)
    missing = [item.missing_package() if runs else "" for item, runs in networks]
    return [f"controlnet_processor[{index}]: {line}" for index, line in enumerate(missing) if line]


def _missing_files(data: dict[str, Any], stages: Sequence[str]) -> list[str]:
    """Paths in `data` that `stages` would read and that do not exist."""
    return [
        f"{key}: no such file or folder: {item}"
        for stage, key, item in _input_files(data)
        if stage in stages and not Path(item).exists()
    ]


def input_paths(job: Job) -> list[Path]:
    """All files and folders that a job reads, in any stage."""
    return [Path(item) for _, _, item in _input_files(job.model_dump())]


def _input_files(data: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(stage, key, path) of every path in a job that is read."""
    found: list[tuple[str, str, Any]] = [
        ("extract", "input_video", data.get("input_video")),
        ("control", "style_image", data.get("style_image")),
    ]
    found += [("control", f"frames_reference[{i}]", item) for i, item in _items(data.get("frames_reference"))]
    for i, item in _items(data.get("controlnet_processor")):
        key = f"controlnet_processor[{i}]"
        if isinstance(item, str) and item.startswith("file:"):
            found.append(("control", key, item[5:]))
        elif isinstance(item, dict) and item.get("name") == "file":
            found += [("control", f"{key}.{part}", item.get(part)) for part in ("path", "references")]
    for key in ("loras", "embeddings"):
        found += [("render", f"{key}[{i}]", _path(item)) for i, item in _items(data.get(key))]
    models = [("model_id", data.get("model_id")), ("vae", data.get("vae"))]
    models += [(f"controlnet_model_id[{i}]", item) for i, item in _items(data.get("controlnet_model_id"))]
    found += [("render", key, item) for key, item in models if isinstance(item, str) and item.startswith("/")]
    return ((stage, key, item) for stage, key, item in found if isinstance(item, str) and item)


def _path(item: Any) -> Any:
    """Of an item of a list that may be long or short: a model, {"path": ...}, or the path itself."""
    return item.get("path") if isinstance(item, dict) else getattr(item, "path", item)


def _items(value: Any) -> Iterable[tuple[int, Any]]:
    return enumerate(value) if isinstance(value, list) else ()
