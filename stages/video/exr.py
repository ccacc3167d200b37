"""OpenEXR files: their size, and writing half floats in linear light, as compositing programs expect them.

FFmpeg's encoder writes the pixels. It has no comments, so one is added to the header. The layout of headers is that of
https://openexr.com/en/latest/OpenEXRFileLayout.html
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np

from stages.base.arrays import Floats
from stages.base.errors import DiffSynthError

ANY_VERSION = b"v/1\x01"
MAGIC = b"v/1\x01\x02\x00\x00\x00"  # and the version: a single part of scan lines
COMMENT = b"comments\x00string\x00"  # name and type of the attribute
OPAQUE = 255
WINDOW = 16  # bytes of the attribute dataWindow
LONGEST_NAME = 256  # bytes of the name of an attribute or type, its end included
HEADER = 4096  # bytes that are searched for a comment, which comes first


def save_exr(path: Path, image: np.ndarray, comment: str) -> None:
    """Write an image and a comment as an EXR file, atomically.

    Args:
        path: The file.
        image: sRGB, or sRGB and alpha, uint8 [H, W, 3 or 4].
        comment: Text for the header.

    Raises:
        DiffSynthError: FFmpeg cannot write EXR.
    """
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(_with_comment(_encoded(_linear(image)), comment))
    part.replace(path)


def read_exr_comment(path: Path) -> str:
    """Return the comment that `save_exr` wrote. Empty if there is none or the file is unreadable."""
    try:
        with path.open("rb") as file:
            header = file.read(HEADER)
    except OSError:
        return ""
    begin = len(MAGIC) + len(COMMENT)
    if not header.startswith(MAGIC + COMMENT) or len(header) < begin + 4:
        return ""
    (size,) = struct.unpack_from("<i", header, begin)
    return header[begin + 4 : begin + 4 + size].decode("utf-8", "replace")


def is_complete_exr(path: Path) -> bool:
    """Whether the last block of pixels of a file of `save_exr` is there."""
    try:
        data = path.read_bytes()
        first, count = _table(data)
        (last,) = struct.unpack_from("<Q", data, first + 8 * (count - 1))
        _, size = struct.unpack_from("<ii", data, last)
        return bool(len(data) == last + 8 + size)
    except (OSError, ValueError, struct.error):
        return False


@cache
def _levels() -> Floats:
    """Return the linear light, 0..1, of each level of sRGB (IEC 61966-2-1)."""
    shares = np.arange(256, dtype=np.float32) / 255
    levels: Floats = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4).astype(np.float32)
    return levels


def _linear(image: np.ndarray) -> Floats:
    """Return linear light and, if there is one, alpha, by which the colours are multiplied, as EXR requires."""
    light: Floats = _levels()[image[..., :3]]
    if image.shape[2] == 3:
        return light
    alpha = image[..., 3:].astype(np.float32) / OPAQUE
    return np.concatenate([light * alpha, alpha], axis=2)


def _encoded(image: Floats) -> bytes:
    import av

    try:
        coder = av.VideoCodecContext.create("exr", "w")
        coder.height, coder.width = image.shape[:2]
        coder.pix_fmt = "gbrpf32le" if image.shape[2] == 3 else "gbrapf32le"
        coder.time_base = Fraction(1, 1)
        coder.thread_count = 1
        coder.options = {"format": "half", "compression": "zip16"}
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format=coder.pix_fmt)
        frame.pts = 0
        (packet,) = [*coder.encode(frame), *coder.encode(None)]
    except (av.error.FFmpegError, ValueError) as error:
        raise DiffSynthError(f"FFmpeg could not write an EXR image: {error}", "choose another codec") from error
    return bytes(packet)


def _with_comment(data: bytes, comment: str) -> bytes:
    """Insert a comment after the version. What follows the header moves back by as many bytes."""
    text = comment.encode()
    added = COMMENT + struct.pack("<i", len(text)) + text
    first, count = _table(data)
    places = struct.unpack_from(f"<{count}Q", data, first)
    moved = struct.pack(f"<{count}Q", *(place + len(added) for place in places))
    return MAGIC + added + data[len(MAGIC) : first] + moved + data[first + 8 * count :]


def exr_size(path: Path) -> tuple[int, int] | None:
    """Return the (height, width) in the header of an EXR file. None if it is none, or its header is damaged.

    Pillow does not know the format, and OpenCV decodes a file before it tells.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(ANY_VERSION)) != ANY_VERSION:
                return None
            file.seek(len(MAGIC))
            windows = (value for name, value in _attributes(file) if name == b"dataWindow")
            left, top, right, bottom = struct.unpack("<4i", next(windows, b""))
    except (OSError, struct.error):
        return None
    return bottom - top + 1, right - left + 1


def _table(data: bytes) -> tuple[int, int]:
    """Return where the table of places of blocks begins, and how many there are. The first block follows it."""
    if not data.startswith(MAGIC):
        raise ValueError("not an EXR file of this program")
    file = BytesIO(data)
    file.seek(len(MAGIC))
    for _ in _attributes(file):
        pass
    first = file.tell()
    (block,) = struct.unpack_from("<Q", data, first)
    return first, (block - first) // 8


def _attributes(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Yield the names and the first bytes of the values of a header's attributes, each of which may be long."""
    while name := _text(file):
        _text(file)  # the type
        (size,) = struct.unpack("<I", file.read(4))
        yield name, file.read(min(size, WINDOW))
        file.seek(max(0, size - WINDOW), 1)


def _text(file: BinaryIO) -> bytes:
    """Read a text up to the zero that ends it. Empty at the end of the header or of the file."""
    begun = file.tell()
    text, end, _ = file.read(LONGEST_NAME).partition(b"\0")
    file.seek(begun + len(text) + 1)
    return text if end else b""
