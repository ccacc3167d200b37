"""Image files: reading, writing and fitting them to a size. Images are uint8 RGB [H, W, 3]."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Callable, Iterable
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from stages.base.errors import UsageError
from stages.video.exr import exr_size, is_complete_exr, read_exr_comment, save_exr
from stages.video.limits import check_pixels, too_large

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
VALUE_SUFFIXES = {".exr"}  # data rather than pictures


def read_image(path: str | Path) -> np.ndarray:
    """Read an image as uint8 RGB [H, W, 3]. Applies the EXIF rotation and converts 16-bit and grey images."""
    return _decode(Path(path), full_depth=False)


def read_values(path: str | Path) -> np.ndarray:
    """Read an image's unconverted values, RGB [H, W, 3], as uint8, uint16 or, for EXR, float32. Grey is repeated."""
    os.environ.setdefault("OPENCV_IO_ENABLE_OPENEXR", "1")  # read by OpenCV when it opens the first EXR file
    return _decode(Path(path), full_depth=True)


def _decode(path: Path, full_depth: bool) -> np.ndarray:
    import cv2

    image_size(path)
    data = np.frombuffer(path.read_bytes(), np.uint8)  # OpenCV cannot open files whose names are not UTF-8
    flags = cv2.IMREAD_COLOR | (cv2.IMREAD_ANYDEPTH if full_depth else 0)
    try:
        image = cv2.imdecode(data, flags) if len(data) else None
    except cv2.error:  # a failed assertion about the file
        image = None
    if image is None:
        exr = path.suffix.lower() == ".exr"
        hint = "this OpenCV may lack EXR support; use 16-bit PNG files instead" if exr else "is it complete?"
        raise UsageError(f"{path} is not an image that can be read", hint)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def image_size(path: Path) -> tuple[int, int] | None:
    """Return the (height, width) in an image's header, without EXIF rotation. None if the format is not known.

    Raises:
        UsageError: The file does not exist, or its size would exhaust memory.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                size: tuple[int, int] | None = (image.height, image.width)
    except Image.DecompressionBombError:
        raise too_large(path) from None
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (OSError, ValueError, SyntaxError):  # Pillow raises SyntaxError for a damaged PNG header
        size = exr_size(path)
    if size is not None:
        check_pixels(path, *size)
    return size


def fit(image: np.ndarray, height: int, width: int, shown: tuple[int, int] | None = None) -> np.ndarray:
    """Crop `image` around its centre to the aspect ratio height:width and resize it to [height, width, 3].

    Args:
        image: uint8 RGB [H, W, 3].
        height: Height of the result.
        width: Width of the result.
        shown: (height, width) at which the image is displayed, if its pixels are not square.
    """
    import cv2

    rows, columns = image.shape[:2]
    shown_height, shown_width = shown or (rows, columns)
    crop_rows = round(min(rows, rows * shown_width * height / (shown_height * width)))
    crop_columns = round(min(columns, columns * shown_height * width / (shown_width * height)))
    y, x = (rows - crop_rows) // 2, (columns - crop_columns) // 2
    image = image[y : y + crop_rows, x : x + crop_columns]
    if image.shape[:2] == (height, width):
        return np.ascontiguousarray(image)
    shrinks = height * width < crop_rows * crop_columns
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LANCZOS4)


# --- numbered frames ------------------------------------------------------------------------------------

PNG_LEVEL = 1  # of 0 to 9: a frame of 1920×1080 takes 0.14 s, at Pillow's default of 6 0.56 s for 17 % smaller files
PNG_END = b"IEND\xaeB`\x82"  # the end of every complete PNG file


def frame_files(folder: Path, suffix: str = ".png") -> list[Path]:
    """Return the files named like frames (00012.png), in order. Empty if the folder does not exist."""
    files = folder.iterdir() if folder.is_dir() else ()
    named = re.compile(rf"\d{{5,}}{re.escape(suffix)}")
    return sorted((file for file in files if named.fullmatch(file.name)), key=lambda file: int(file.stem))


def write_frames(
    folder: Path,
    frames: Iterable[np.ndarray],
    signature: str,
    notes: Iterable[str] = repeat(""),
    suffix: str = ".png",
) -> None:
    """Write frames as %05d.png, each atomically. Files that already hold the same frame are kept.

    A comment in each file holds `signature`, a hash of the pixels, and the frame's note. Files of an earlier, longer
    video, which have the signature and higher numbers, are removed.

    Args:
        folder: The folder, which need not exist.
        frames: uint8 RGB [H, W, 3], or RGB and alpha [H, W, 4].
        signature: Begins the comments.
        notes: Ends the comment of each frame.
        suffix: A key of `IMAGE_FORMATS`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    form, count = IMAGE_FORMATS[suffix], 0
    for index, (frame, note) in enumerate(zip(frames, notes, strict=False)):
        path, comment = folder / f"{index:05d}{suffix}", f"{signature} {_digest(frame)}{note}"
        if not (form.is_complete(path) and form.comment(path) == comment):
            form.save(path, frame, comment)
        count = index + 1
    for path in frame_files(folder, suffix):
        if int(path.stem) >= count and form.comment(path).startswith(signature):
            path.unlink()


def save_png(path: Path, image: np.ndarray, comment: str) -> None:
    """Write an image and a comment as a PNG file, atomically."""
    part = path.with_name(f".{path.name}.part")
    text = PngInfo()
    text.add_text("Comment", comment)
    Image.fromarray(image).save(part, format="PNG", pnginfo=text, compress_level=PNG_LEVEL)
    part.replace(path)


def read_png_comment(path: Path) -> str:
    """Return the comment in a PNG file. Empty if there is none or the file is unreadable."""
    try:
        with Image.open(path) as image:
            return str(image.info.get("Comment", ""))
    except (OSError, ValueError, Image.DecompressionBombError):
        return ""


def _digest(frame: np.ndarray) -> str:
    return hashlib.blake2b(repr(frame.shape).encode() + frame.tobytes(), digest_size=16).hexdigest()


def _is_complete(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            file.seek(-len(PNG_END), os.SEEK_END)
            return file.read() == PNG_END
    except OSError:
        return False


class ImageFormat(NamedTuple):
    """How numbered frames are written in one format."""

    save: Callable[[Path, np.ndarray, str], None]
    """Write an image uint8 [H, W, 3 or 4] and a comment."""
    comment: Callable[[Path], str]
    """Read the comment. Empty if there is none or the file is unreadable."""
    is_complete: Callable[[Path], bool]
    """Whether a file was written to its end."""


IMAGE_FORMATS = {
    ".png": ImageFormat(save_png, read_png_comment, _is_complete),
    ".exr": ImageFormat(save_exr, read_exr_comment, is_complete_exr),
}
