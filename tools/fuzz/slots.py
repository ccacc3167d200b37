"""Where a job file takes numbers: found in the schemas of its models, so that a new key is tested without being listed.

Annotators and smoothers have models of their own; each is set in a job of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from stages.annotators import ANNOTATORS
from stages.jobs.job import Job
from stages.smoothers import SMOOTHERS

NUMBERS = ("integer", "number")
# What annotators and LoRA files need besides: names that whoever runs the job makes files of.
REQUIRED = {"path": "file", "model": "weights"}
Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Slot:
    """A place in a job that takes a number.

    `path`: keys and positions in lists that lead to it. `schema`: what JSON Schema says about it. `around`: what else
    the job must say for it to count.
    """

    path: Path
    schema: dict[str, Any]
    around: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return str(self.path[0])

    @property
    def name(self) -> str:
        """The innermost key."""
        return next(str(part) for part in reversed(self.path) if isinstance(part, str))

    @property
    def whole(self) -> bool:
        return bool(self.schema["type"] == "integer")

    @property
    def low(self) -> float | None:
        return self.schema.get("minimum", self.schema.get("exclusiveMinimum"))

    @property
    def high(self) -> float | None:
        return self.schema.get("maximum", self.schema.get("exclusiveMaximum"))


def slots() -> list[Slot]:
    """All places in a job that take a number."""
    found = [Slot(path, schema, _addition(path)) for path, schema in _numbers(Job) if path[0] != "controlnet_processor"]
    for name, model in ANNOTATORS.items():
        for path, schema in _numbers(model):
            around = {"controlnet_processor": [{"name": name, **_required(model)}]}
            found.append(Slot(("controlnet_processor", 0, *path), schema, around))
    for key in ("smoother", "post_smoother"):
        for name, model in SMOOTHERS.items():
            found += [Slot((f"{key}_config", *path), schema, {key: name}) for path, schema in _numbers(model)]
    return found


def put(job: dict[str, Any], slot: Slot, value: Any) -> dict[str, Any]:
    """`job` with `value` in the place of `slot`, or added to the list there, and with what must stand around it."""
    job = {**copy.deepcopy(slot.around), **copy.deepcopy(job)}
    target: Any = job
    for part, after in zip(slot.path, slot.path[1:], strict=False):
        if isinstance(part, int):
            target = target[part]
        else:
            target = target.setdefault(part, [] if isinstance(after, int) else {})
        if not isinstance(target, list if isinstance(after, int) else dict):
            return job  # something else stands there already
    if isinstance(target, list):
        target.append(value)
    else:
        target[slot.path[-1]] = value
    return job


def _addition(path: Path) -> dict[str, Any]:
    """The LoRA, or whatever else is given by its path, that has the option at `path`."""
    return {str(path[0]): [{"path": REQUIRED["path"]}]} if len(path) > 2 else {}


def _required(model: type[BaseModel]) -> dict[str, Any]:
    """What an annotator needs besides its name."""
    return {key: value for key, value in REQUIRED.items() if key in model.model_fields}


def _numbers(model: type[BaseModel]) -> Iterator[tuple[Path, dict[str, Any]]]:
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})

    def walk(node: dict[str, Any], path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
        if "$ref" in node:
            node = definitions[node["$ref"].rpartition("/")[2]]
        if node.get("type") in NUMBERS:
            yield path, node
        for part in node.get("anyOf", ()):
            yield from walk(part, path)
        for key, value in node.get("properties", {}).items():
            yield from walk(value, (*path, key))
        if isinstance(node.get("items"), dict):
            yield from walk(node["items"], (*path, 0))
        if isinstance(node.get("additionalProperties"), dict):
            for key in node.get("propertyNames", {}).get("enum", ()):
                yield from walk(node["additionalProperties"], (*path, key))

    return walk(schema, ())
