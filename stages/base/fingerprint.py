"""What a stage depends on: the job keys it reads, the content of files they name, and the stages before it.

A stage's inputs are a plain dictionary, kept in its marks and its receipt:

    {"keys": {key: value or file identity}, "after": {earlier stage: its inputs}}

Two dictionaries are compared key by key, so that a stale stage can say what changed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, TypeGuard

from stages.base.errors import DiffSynthError, UsageError

Identity = dict[str, str]
"""What a file or folder is, by its content: {"path", "listing", "sha256"}."""


class Inputs(TypedDict):
    """What a stage depends on."""

    keys: dict[str, object]
    after: dict[str, Inputs]


@dataclass(frozen=True)
class Change:
    """A key that is not what it was when the stage was begun."""

    stage: str
    key: str
    old: object
    new: object

    def __str__(self) -> str:
        if _is_identity(self.old) and _is_identity(self.new) and self.old["path"] == self.new["path"]:
            return f"{self.key}: the content of {self.new['path']} changed"
        return f"{self.key}: {_show(self.old)} → {_show(self.new)}"


def fingerprint(inputs: object) -> str:
    """A hash of a stage's inputs, equal if and only if `changes` finds nothing; or of any part of them."""
    return hashlib.sha256(json.dumps(_essence(inputs), sort_keys=True).encode()).hexdigest()


def changes(stage: str, old: Inputs, new: Inputs) -> list[Change]:
    """The keys of `stage` and of the stages before it in which two inputs differ, each named once."""
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
    """Find out what a file or folder is by its content.

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


def _is_identity(value: object) -> TypeGuard[Identity]:
    return isinstance(value, dict) and "sha256" in value


def _essence(value: object) -> object:
    """A value without what may differ between equal files: their place and date."""
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
