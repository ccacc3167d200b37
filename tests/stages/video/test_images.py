"""Image files, and fitting them to a size."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from stages.base.errors import DiffSynthError, UsageError
from stages.smoothers.images.synthesis import load
from stages.video import fit, open_source, read_comment, read_image, save_png
from stages.video.images import image_size, read_values
from tests.conftest import scene, write_images


def test_16_bit_and_grey_images_are_read_as_8_bit_colour(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((8, 8), 0x8000, np.uint16))
    assert read_image(tmp_path / "deep.png").tolist() == np.full((8, 8, 3), 128).tolist()


def test_fit_crops_the_centre() -> None:
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, 10:20] = 200
    assert (fit(image, 10, 10) == 200).all()
    assert (fit(image.transpose(1, 0, 2).copy(), 20, 20) == 200).all()


def test_fit_leaves_frames_of_the_right_size_alone() -> None:
    image = scene(0, 64, 96)
    assert np.array_equal(fit(image, 64, 96), image)


@pytest.mark.parametrize("size", [(32, 48), (128, 192), (40, 24)])
def test_fit_gives_the_size_asked_for(size: tuple[int, int]) -> None:
    assert fit(scene(0, 64, 96), *size).shape == (*size, 3)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_values_of_images_are_read_as_they_are(kind: type[np.uint8 | np.uint16], tmp_path: Path) -> None:
    grey: NDArray[np.uint8 | np.uint16] = np.linspace(0, np.iinfo(kind).max, 12 * 20).reshape(12, 20).astype(kind)
    cv2.imwrite(str(tmp_path / "0.png"), grey)
    (shot,) = open_source(tmp_path, values=True).shots()
    image = shot.image()
    assert image.dtype == kind
    np.testing.assert_array_equal(image, np.repeat(grey[..., None], 3, axis=2))


def test_exr_files_that_this_opencv_cannot_read_are_explained(tmp_path: Path) -> None:
    (tmp_path / "0.exr").write_bytes(b"no EXR either")
    with pytest.raises(DiffSynthError, match=r"0\.exr is not an image") as unreadable:
        open_source(tmp_path, values=True)
    assert "lack EXR support" in unreadable.value.hint


def exr(path: Path, height: int, width: int) -> Path:
    """An EXR file of 40×24 pixels whose header states another size."""
    with av.open(str(path), "w", format="image2", options={"update": "1"}) as container:
        stream = container.add_stream("exr", rate=1, width=24, height=40, pix_fmt="gbrpf32le")
        frame = av.VideoFrame(24, 40, "gbrpf32le")
        container.mux([*stream.encode(frame), *stream.encode()])
    data = bytearray(path.read_bytes())
    place = data.index(b"dataWindow\0box2i\0") + len("dataWindow_box2i_") + 4
    assert struct.unpack("<4i", data[place : place + 16]) == (0, 0, 23, 39)
    data[place : place + 16] = struct.pack("<4i", -5, -7, width - 6, height - 8)
    path.write_bytes(data)
    return path


def test_an_exr_file_of_too_many_pixels_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert image_size(exr(tmp_path / "0.exr", 40, 24)) == (40, 24)
    exr(tmp_path / "1.exr", 20_000, 20_001)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    for read in (read_values, load):
        with pytest.raises(UsageError, match=r"1\.exr is too large"):
            read(tmp_path / "1.exr")
    with pytest.raises(UsageError, match=r"1\.exr is too large"):
        open_source(tmp_path, values=True)


@pytest.mark.parametrize("size", [3, 8, 20, 60, 200])
def test_the_header_of_an_exr_file_that_breaks_off_states_no_size(size: int, tmp_path: Path) -> None:
    path = exr(tmp_path / "0.exr", 40, 24)
    data = path.read_bytes()
    path.write_bytes(data[: min(size, data.index(b"dataWindow") + 30)])
    assert image_size(path) is None


def lying_png(path: Path, height: int, width: int) -> Path:
    """A PNG of 64×64 pixels whose header states another size, with a valid checksum."""
    cv2.imwrite(str(path), np.full((64, 64, 3), 90, np.uint8))
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((20_000, 20_000), "is too large"),
        ((2**31 - 1, 2**31 - 1), "is too large"),
        ((12_000, 12_000), "is not an image that can be read"),
        ((64, 128), "is not an image that can be read"),
        ((0, 64), "is not an image that can be read"),
    ],
)
@pytest.mark.parametrize("read", [read_image, read_values, load])
def test_images_whose_header_lies_are_named(
    size: tuple[int, int], message: str, read: Callable[[Path], object], tmp_path: Path
) -> None:
    path = lying_png(tmp_path / "a.png", *size)
    with pytest.raises(UsageError, match=f"a.png {message}"):
        read(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for read in (read_image, read_values, load):
        with pytest.raises(UsageError, match=r"absent\.png: no such file"):
            read(tmp_path / "absent.png")


def test_a_folder_with_one_huge_image_is_refused_before_anything_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_images(tmp_path / "images", [scene(0), scene(1)])
    lying_png(folder / "7.png", 20_000, 20_000)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(UsageError, match=r"7\.png is too large"):
        open_source(folder)


def test_file_names_that_are_not_utf_8_are_read(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"g\xfc.png")
    save_png(path, scene(0), "hello")
    np.testing.assert_array_equal(read_image(path), scene(0))
    assert read_comment(path) == "hello"
