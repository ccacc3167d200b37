"""Find the places where a job file takes numbers.

They are read from the schemas of the models, so new keys are tested automatically. Each annotator and smoother has a
model of its own, and is tested in a job of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pydantic import BaseModel

from stages.annotators import ANNOTATORS
from stages.base.json_types import Json, JsonObject
from stages.jobs.job import Job
from stages.smoothers import SMOOTHERS
from tools.json_schema import Schema, schema_of

NUMBERS = ("integer", "number")
# Values of keys that annotators and LoRA files require; see `_with_files` in cases.py.
REQUIRED = {"path": "file", "model": "weights"}
Path: TypeAlias = tuple[str | int, ...]
"""The keys, and indexes in lists, that lead to a place in a job."""


@dataclass(frozen=True)
class Slot:
    """A place in a job that takes a number.

    Attributes:
        schema: Its type and bounds.
        requires: Keys that must be set for the number to have an effect.
    """

    path: Path
    schema: Schema
    requires: JsonObject = field(default_factory=dict)

    @property
    def key(self) -> str:
        return str(self.path[0])

    @property
    def name(self) -> str:
        """The innermost key."""
        return next(str(part) for part in reversed(self.path) if isinstance(part, str))

    @property
    def is_integer(self) -> bool:
        return self.schema["type"] == "integer"

    @property
    def low(self) -> float | None:
        return self.schema.get("minimum", self.schema.get("exclusiveMinimum"))

    @property
    def high(self) -> float | None:
        return self.schema.get("maximum", self.schema.get("exclusiveMaximum"))


def slots() -> list[Slot]:
    """Return all places in a job that take a number."""
    found = [
        Slot(path, schema, _required_item(path)) for path, schema in _numbers(Job) if path[0] != "controlnet_processor"
    ]
    for name, annotator in ANNOTATORS.items():
        for path, schema in _numbers(annotator):
            requires: JsonObject = {"controlnet_processor": [{"name": name, **_required(annotator)}]}
            found.append(Slot(("controlnet_processor", 0, *path), schema, requires))
    for key in ("smoother", "post_smoother"):
        for name, smoother in SMOOTHERS.items():
            found += [Slot((f"{key}_config", *path), schema, {key: name}) for path, schema in _numbers(smoother)]
    return found


def put(job: JsonObject, slot: Slot, value: Json) -> JsonObject:
    """Return `job` with `value` in `slot`, or appended to the list there, and with the keys that it requires."""
    job = {**copy.deepcopy(slot.requires), **copy.deepcopy(job)}
    target: Any = job  # any nesting of lists and objects
    for part, after in zip(slot.path, slot.path[1:], strict=False):
        if isinstance(part, int):
            target = target[part]
        else:
            target = target.setdefault(part, [] if isinstance(after, int) else {})
        if not isinstance(target, list if isinstance(after, int) else dict):
            return job  # the job has a value of another type there
    if isinstance(target, list):
        target.append(value)
    else:
        target[slot.path[-1]] = value
    return job


def _required_item(path: Path) -> JsonObject:
    """Return the list item, a LoRA file for example, that has the option at `path`."""
    return {str(path[0]): [{"path": REQUIRED["path"]}]} if len(path) > 2 else {}


def _required(model: type[BaseModel]) -> dict[str, Json]:
    """Return the keys that an annotator requires besides its name."""
    return {key: value for key, value in REQUIRED.items() if key in model.model_fields}


def _numbers(model: type[BaseModel]) -> Iterator[tuple[Path, Schema]]:
    schema = schema_of(model)
    definitions = schema.get("$defs", {})

    def walk(node: Schema, path: Path) -> Iterator[tuple[Path, Schema]]:
        if "$ref" in node:
            node = definitions[node["$ref"].rpartition("/")[2]]
        if node.get("type") in NUMBERS:
            yield path, node
        for part in node.get("anyOf", ()):
            yield from walk(part, path)
        for key, value in node.get("properties", {}).items():
            yield from walk(value, (*path, key))
        if "items" in node:
            yield from walk(node["items"], (*path, 0))
        if isinstance(values := node.get("additionalProperties"), dict) and "propertyNames" in node:
            for key in node["propertyNames"].get("enum", ()):
                yield from walk(values, (*path, key))

    return walk(schema, ())
