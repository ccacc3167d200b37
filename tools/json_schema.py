"""Typed access to the JSON Schema of pydantic models."""

from __future__ import annotations

from typing import TypedDict, cast

from pydantic import BaseModel

Schema = TypedDict(
    "Schema",
    {
        "$defs": dict[str, "Schema"],
        "$ref": str,
        "additionalProperties": "bool | Schema",
        "anyOf": list["Schema"],
        "enum": list[str],
        "exclusiveMaximum": float,
        "exclusiveMinimum": float,
        "items": "Schema",
        "maximum": float,
        "minimum": float,
        "properties": dict[str, "Schema"],
        "propertyNames": "Schema",
        "type": str,
    },
    total=False,
)
"""The keywords of JSON Schema that pydantic writes and these tools read."""


def schema_of(model: type[BaseModel]) -> Schema:
    """Return the JSON Schema of a model."""
    return cast(Schema, model.model_json_schema())
