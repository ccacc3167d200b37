"""Image files, and fitting them to a size."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from stages.base.errors import DiffSynthError
from stages.video import fit, open_source, read_image
from tests.conftest import scene


def test_16_bit_and_grey_images_are_read_as_8_bit_colour(tmp_path):
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((8, 8), 0x8000, np.uint16))
    assert read_image(tmp_path / "deep.png").tolist() == np.full((8, 8, 3), 128).tolist()


def test_fit_crops_the_centre():
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, 10:20] = 200
    assert (fit(image, 10, 10) == 200).all()
    assert (fit(image.transpose(1, 0, 2).copy(), 20, 20) == 200).all()


def test_fit_leaves_frames_of_the_right_size_alone():
    image = scene(0, 64, 96)
    assert np.array_equal(fit(image, 64, 96), image)


@pytest.mark.parametrize("size", [(32, 48), (128, 192), (40, 24)])
def test_fit_gives_the_size_asked_for(size):
    assert fit(scene(0, 64, 96), *size).shape == (*size, 3)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_values_of_images_are_read_as_they_are(kind, tmp_path):
    grey = np.linspace(0, np.iinfo(kind).max, 12 * 20).reshape(12, 20).astype(kind)
    cv2.imwrite(str(tmp_path / "0.png"), grey)
    (shot,) = open_source(tmp_path, values=True).shots()
    image = shot.image()
    assert image.dtype == kind
    np.testing.assert_array_equal(image, np.repeat(grey[..., None], 3, axis=2))


def test_exr_files_that_this_opencv_cannot_read_are_explained(tmp_path):
    (tmp_path / "0.exr").write_bytes(b"no EXR either")
    with pytest.raises(DiffSynthError, match=r"0\.exr is not an image") as unreadable:
        open_source(tmp_path, values=True)
    assert "built without EXR" in unreadable.value.hint
