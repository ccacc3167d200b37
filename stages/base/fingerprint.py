"""Fingerprints: what a stage depends on, which is the job keys it reads, the files they name, and earlier stages.

A stage's inputs are a plain dictionary, stored in its marks and its receipt:

    {"keys": {key: value or file identity}, "after": {earlier stage: its inputs}}

They are compared key by key, so that messages can name what changed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from stages.base.errors import DiffSynthError, UsageError

Identity = dict[str, str]
"""A file or folder identified by its content: {"path", "listing", "sha256"}."""


class Inputs(TypedDict):
    """What a stage depends on."""

    keys: dict[str, object]
    after: dict[str, Inputs]


@dataclass(frozen=True)
class Change:
    """A key whose value differs from when the stage was started."""

    stage: str
    key: str
    old: object
    new: object

    def __str__(self) -> str:
        if _is_identity(self.old) and _is_identity(self.new) and self.old["path"] == self.new["path"]:
            return f"{self.key}: the content of {self.new['path']} changed"
        return f"{self.key}: {_show(self.old)} → {_show(self.new)}"


def fingerprint(inputs: object) -> str:
    """Return a hash of a stage's inputs, or of any part of them. Equal if and only if `changes` finds nothing."""
    return hashlib.sha256(json.dumps(_essence(inputs), sort_keys=True).encode()).hexdigest()


def changes(stage: str, old: Inputs, new: Inputs) -> list[Change]:
    """Return the keys of `stage` and of earlier stages in which two inputs differ, each once."""
    found: dict[str, Change] = {}
    for name, inputs in new["after"].items():
        if name in old["after"]:
            for change in changes(name, old["after"][name], inputs):
                found.setdefault(change.key, change)
    for key, value in new["keys"].items():
        for change in _differences(stage, key, old["keys"].get(key), value):
            found.setdefault(change.key, change)
    return list(found.values())


def identify(
    path: str | Path, known: object = None, patterns: tuple[str, ...] = ("*",), parts: tuple[str, ...] = ("",)
) -> Identity:
    """Identify a file or folder by its content.

    Args:
        path: The file or folder.
        known: An earlier identity. It is returned without reading anything if names, sizes and dates are the same, or
            if the path no longer exists and `known` has the same name.
        patterns: Which files of a folder count.
        parts: Which subfolders of a folder count; "" is the folder itself.

    Raises:
        DiffSynthError: No file in the folder matches.
        UsageError: The path does not exist or is an empty folder.
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
    """Whether a desktop environment left this file in the folder."""
    return file.name.startswith(".") or file.name in ("Thumbs.db", "desktop.ini")


def _is_identity(value: object) -> TypeGuard[Identity]:
    return isinstance(value, dict) and "sha256" in value


def _essence(value: object) -> object:
    """Reduce a value to its content: identities of files without their paths and dates."""
    if _is_identity(value):
        return value["sha256"]
    if isinstance(value, dict):
        return {key: _essence(item) for key, item in value.items()}
    return [_essence(item) for item in value] if isinstance(value, list) else value


def _differences(stage: str, key: str, old: object, new: object) -> Iterator[Change]:
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


def _show(value: object) -> str:
    if _is_identity(value):
        return str(value["path"])
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:197] + "..."
