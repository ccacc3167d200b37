"""The size in the header of an OpenEXR file, which Pillow does not know and OpenCV decodes before it tells.

Source: https://openexr.com/en/latest/OpenEXRFileLayout.html
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

MAGIC = bytes.fromhex("762f3101")
LONGEST_NAME = 256  # bytes of the name of an attribute or type, its end included


def exr_size(path: Path) -> tuple[int, int] | None:
    """Return the (height, width) of the first part of an EXR file. None if it is none, or its header is damaged."""
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                return None
            file.seek(4, 1)  # version and flags
            windows = (value for name, value in _attributes(file) if name == b"dataWindow")
            left, top, right, bottom = struct.unpack("<4i", next(windows, b""))
    except (OSError, struct.error):
        return None
    return bottom - top + 1, right - left + 1


def _attributes(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Yield the names and the first bytes of the values of a header's attributes, each of which may be long."""
    while name := _text(file):
        _text(file)  # the type
        (size,) = struct.unpack("<I", file.read(4))
        yield name, file.read(min(size, 16))
        file.seek(max(0, size - 16), 1)


def _text(file: BinaryIO) -> bytes:
    """Read a text up to the zero that ends it. Empty at the end of the header or of the file."""
    begun = file.tell()
    text, end, _ = file.read(LONGEST_NAME).partition(b"\0")
    file.seek(begun + len(text) + 1)
    return text if end else b""
