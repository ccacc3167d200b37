"""What a stage depends on: the job keys it reads, the content of files they name, and the stages before it.

A stage's inputs are a plain dictionary, kept in its marks and its receipt:

    {"keys": {key: value or file identity}, "after": {earlier stage: its inputs}}

Two dictionaries are compared key by key, so that a stale stage can say what changed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.annotators import ANNOTATORS, AnnotatorOptions, FromFiles, Weighted
from stages.base.errors import DiffSynthError, UsageError
from stages.jobs.job import READS, Job
from stages.models import TOKENIZER, embedded
from stages.smoothers import SMOOTHERS

AFTER: dict[str, tuple[str, ...]] = {
    "extract": (),
    "control": ("extract",),
    "render": ("extract", "control"),
    "deflicker": ("extract", "render"),
}
"""Which stages' results a stage reads."""

NOT_RUN = "not run (controlnet_scale 0)"

# What is read of a local model folder: weights and configuration, not the other formats that may lie beside them.
MODEL_FILES = ("*.json", "*.txt", "*.safetensors", "*.bin")
MODEL_PARTS = ("", "tokenizer", "text_encoder", "unet", "vae", "scheduler")


@dataclass(frozen=True)
class Change:
    """A key that is not what it was when the stage was begun."""

    stage: str
    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        if _is_identity(self.old) and _is_identity(self.new) and self.old["path"] == self.new["path"]:
            return f"{self.key}: the content of {self.new['path']} changed"
        return f"{self.key}: {_show(self.old)} → {_show(self.new)}"


def stage_inputs(job: Job, stage: str, recorded: Callable[[str], dict[str, Any] | None]) -> dict[str, Any]:
    """What `stage` of `job` depends on. `recorded` gives the inputs that a stage was begun with: they save reading
    unchanged files again, and stand in for files that are gone."""
    known = (recorded(stage) or {}).get("keys", {})
    keys = {key: _value(job, key, known.get(key)) for key in READS[stage]}
    return {"keys": keys, "after": {name: stage_inputs(job, name, recorded) for name in AFTER[stage]}}


def fingerprint(inputs: dict[str, Any]) -> str:
    """A hash of `inputs`: equal if and only if `changes` finds nothing."""
    return hashlib.sha256(json.dumps(_essence(inputs), sort_keys=True).encode()).hexdigest()


def map_names(inputs: dict[str, Any]) -> list[tuple[str, str] | None]:
    """For each ControlNet, the arrays of its maps of frames and of references, by the inputs of control; None if it is
    not run. Named by what they are made of, so that equal maps are one, and stay when the job changes elsewhere."""
    keys = inputs["keys"]

    def named(part: str, item: Any, *more: Any) -> str:
        made_of = [item, keys["style_image"] if item.get("uses_style_image") else None, inputs["after"], *more]
        digest = hashlib.sha256(json.dumps(_essence(made_of), sort_keys=True).encode()).hexdigest()
        return f"{part}/{item['name']}-{digest[:8]}"

    return [
        None if item == NOT_RUN
        else (named("control", item), named("control_reference", item, keys["frames_reference"]))
        for item in keys["controlnet_processor"]
    ]  # fmt: skip


def changes(stage: str, old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    """The keys of `stage` and of the stages before it in which two inputs differ, each named once."""
    found: dict[str, Change] = {}
    for name in AFTER[stage]:
        if name in old["after"]:
            for change in changes(name, old["after"][name], new["after"][name]):
                found.setdefault(change.key, change)
    for key, value in new["keys"].items():
        for change in _differences(stage, key, old["keys"].get(key), value):
            found.setdefault(change.key, change)
    return list(found.values())


def identify(
    path: str | Path, known: Any = None, patterns: tuple[str, ...] = ("*",), parts: tuple[str, ...] = ("",)
) -> Any:
    """Who a file or folder is by its content: {"path", "listing", "sha256"}.

    Of a folder, the files that match `patterns` in its subfolders `parts` count. `listing` is a hash of names, sizes
    and dates: if it is that of `known`, nothing is read. If nothing lies there, `known` is believed, unless it has
    another name.
    """
    path = Path(path)
    files = [path] if path.is_file() else sorted(_files(path, patterns, parts))
    if not files:
        if not _is_identity(known) or Path(str(known.get("path"))).name != path.name:
            if path.is_dir() and "*" not in patterns:
                raise DiffSynthError(f"{path} lacks {', '.join(patterns)}")
            raise UsageError(f"{path}: {'an empty folder' if path.is_dir() else 'no such file'}")
        return known
    names = ["" if file == path else file.relative_to(path).as_posix() for file in files]
    stats = [file.stat() for file in files]
    listing = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in zip(names, stats, strict=True)]
    identity = {"path": str(path), "listing": hashlib.sha256(repr(listing).encode()).hexdigest()}
    if _is_identity(known) and all(known.get(key) == value for key, value in identity.items()):
        return known
    digest = hashlib.sha256()
    for file, (name, size, _) in zip(files, listing, strict=True):
        digest.update(os.fsencode(f"{name}\0{size}\0"))
        with file.open("rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
    return {**identity, "sha256": digest.hexdigest()}


def _files(folder: Path, patterns: tuple[str, ...], parts: tuple[str, ...]) -> Iterator[Path]:
    for part in parts:
        for pattern in patterns:
            yield from (
                file for file in (folder / part).glob(pattern) if file.is_file() and not _is_desktop_litter(file)
            )


def _is_desktop_litter(file: Path) -> bool:
    """Files that desktops leave in folders that were looked at: no part of what the folder holds."""
    return file.name.startswith(".") or file.name in ("Thumbs.db", "desktop.ini")


def _value(job: Job, key: str, known: Any) -> Any:
    value = getattr(job, key)
    match key:
        case "input_video":
            return identify(value, known)
        case "style_image":
            used = any(run and item.uses_style_image for item, run in _networks(job))
            return identify(value, known) if used else None
        case "frames_reference":
            return [identify(item, _at(known, i)) for i, item in enumerate(value)]
        case "smoother" | "post_smoother":
            return _smoother(value)
        case "controlnet_processor":
            return [_annotator(item, _at(known, i)) if run else NOT_RUN for i, (item, run) in enumerate(_networks(job))]
        case "model_id" | "vae":
            return _model(value, known) if value else value
        case "extra_deflickering_range":
            return value if job.post_smoother is None else 0  # which takes its place
        case "loras":
            return [{"file": identify(item.path, _at(_at(known, i), "file")), "scale": item.scale}
                    for i, item in enumerate(value)]  # fmt: skip
        case "embeddings":
            return [{"file": identify(item.path, _at(_at(known, i), "file")), "token": item.word}
                    for i, item in enumerate(value)]  # fmt: skip
        case "controlnet_model_id":
            return [_model(item, _at(known, i)) if run else NOT_RUN
                    for i, (item, run) in enumerate(zip(value, job.networks_run, strict=True))]  # fmt: skip
        case _:
            return json.loads(json.dumps(value, default=lambda item: item.model_dump()))


def _networks(job: Job) -> list[tuple[Any, bool]]:
    return list(zip(job.controlnet_processor, job.networks_run, strict=True))


def _annotator(item: AnnotatorOptions, known: Any) -> Any:
    settings = item.model_dump()
    if isinstance(item, Weighted) and Path(item.model).is_absolute():
        settings["model"] = identify(item.model, _at(known, "model"), item.files)
    if isinstance(item, FromFiles):
        settings["path"] = identify(item.path, _at(known, "path"))
        if item.references is not None:
            settings["references"] = identify(item.references, _at(known, "references"))
    if item.uses_style_image:
        settings["uses_style_image"] = True
    if package := ANNOTATORS.version(item.name):
        settings["package"] = package
    return settings


def _smoother(name: str | None) -> Any:
    package = SMOOTHERS.version(name) if name else None
    return {"name": name, "package": package} if package else name


def _model(name: str, known: Any) -> Any:
    folder = embedded(name) or Path(name)  # an embedded model may differ from one version to the next
    if not folder.is_absolute():
        return name
    beside = folder.parent / TOKENIZER
    if folder.is_file() and beside.is_dir():
        return {part: identify(path, _at(known, part)) for part, path in (("file", folder), (TOKENIZER, beside))}
    return identify(str(folder), known, MODEL_FILES, MODEL_PARTS)


def _at(known: Any, index: int | str) -> Any:
    if isinstance(known, dict):
        return known.get(index)
    return known[index] if isinstance(known, list) and isinstance(index, int) and index < len(known) else None


def _is_identity(value: Any) -> bool:
    return isinstance(value, dict) and "sha256" in value


def _essence(value: Any) -> Any:
    """A value without what may differ between equal files: their place and date."""
    if _is_identity(value):
        return value["sha256"]
    if isinstance(value, dict):
        return {key: _essence(item) for key, item in value.items()}
    return [_essence(item) for item in value] if isinstance(value, list) else value


def _differences(stage: str, key: str, old: Any, new: Any) -> Iterator[Change]:
    if _essence(old) == _essence(new):
        return
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _differences(stage, f"{key}[{index}]", before, after)
    elif isinstance(old, dict) and isinstance(new, dict) and not _is_identity(old) and old.keys() == new.keys():
        for name in new:
            yield from _differences(stage, f"{key}.{name}", old[name], new[name])
    else:
        yield Change(stage, key, old, new)


def _show(value: Any) -> str:
    if _is_identity(value):
        return str(value["path"])
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:197] + "..."
