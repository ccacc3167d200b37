"""Attributes of an array, with a checksum over them and the array's shape. Zarr has one for the frames only."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from stages.base.json_types import Values

CHECKSUM = "checksum"  # the attribute; arrays of earlier versions have none


class Attributes(dict[str, Any]):
    """Attributes that were read back. Asking for one that is missing raises `lost`."""

    def __init__(self, attributes: Values, lost: Exception):
        super().__init__(attributes)
        self.lost = lost

    def __missing__(self, name: str) -> Any:
        raise self.lost


def with_checksum(attributes: Mapping[str, object], shape: Sequence[int], dtype: object) -> Values:
    """Return the attributes of an array of this shape and element type, and their checksum."""
    plain = without_checksum(attributes)
    described = json.dumps([plain, [*shape], str(dtype)], sort_keys=True)
    return {**plain, CHECKSUM: f"{zlib.crc32(described.encode()):08x}"}


def without_checksum(attributes: Mapping[str, object]) -> Values:
    """Return the attributes that have a meaning."""
    return {name: value for name, value in attributes.items() if name != CHECKSUM}


def are_intact(attributes: object, shape: Sequence[int], dtype: object) -> bool:
    """Whether attributes that were read back are those that were written, as far as that is known."""
    if not isinstance(attributes, dict):
        return False
    return CHECKSUM not in attributes or attributes == with_checksum(attributes, shape, dtype)
