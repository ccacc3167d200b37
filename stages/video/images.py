"""Image files: reading them and fitting them to a size. Images are uint8 RGB [H, W, 3]."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np

from stages.base.errors import DiffSynthError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
VALUE_SUFFIXES = {".exr"}  # of data rather than pictures


def read_image(path: str | Path) -> np.ndarray:
    """An image file as uint8 RGB [H, W, 3]; its EXIF rotation honoured, 16-bit and grey images converted."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise DiffSynthError(f"{path} is not an image that can be read")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_values(path: str | Path) -> np.ndarray:
    """An image file's own values, RGB [H, W, 3]: uint8, uint16 or (EXR) float32. Grey is repeated."""
    os.environ.setdefault("OPENCV_IO_ENABLE_OPENEXR", "1")  # OpenCV asks when the first EXR file is opened
    image = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if image is None:
        exr = Path(path).suffix.lower() == ".exr"
        hint = "this OpenCV may be built without EXR; 16-bit PNG files do as well" if exr else ""
        raise DiffSynthError(f"{path} is not an image that can be read", hint)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def fit(image: np.ndarray, height: int, width: int, shown: tuple[int, int] | None = None) -> np.ndarray:
    """The centre of `image` with the aspect ratio height:width, resized to uint8 [height, width, 3].

    `shown` is the (height, width) at which the image is meant to be seen, if its pixels are not square.
    """
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
