"""Types of JSON values, and of values whose types only a model knows."""

from __future__ import annotations

from typing import Any, TypeAlias

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
"""Any JSON value."""

JsonObject: TypeAlias = dict[str, Json]
"""A JSON object."""

Values: TypeAlias = dict[str, Any]
"""Values by name: options that a pydantic model has checked, or attributes of an array that were read back."""
