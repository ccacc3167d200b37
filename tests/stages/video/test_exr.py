"""EXR files, decoded again by FFmpeg."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from stages.video.exr import is_complete_exr, read_exr_comment, save_exr


def decode(path: Path) -> np.ndarray:
    """Return the channels that a file holds, float32 [H, W, R G B and A]."""
    coder = av.VideoCodecContext.create("exr", "r")
    (frame,) = [*coder.decode(av.Packet(path.read_bytes())), *coder.decode(None)]
    assert frame.format.name in ("gbrpf16le", "gbrapf16le")  # half floats
    rows = [
        np.frombuffer(bytes(plane), np.float16).reshape(frame.height, -1)[:, : frame.width].astype(np.float32)
        for plane in frame.planes
    ]
    green, blue, red, *alpha = rows
    return np.stack([red, green, blue, *alpha], axis=2)


def image(channels: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (37, 21, channels)).astype(np.uint8)


def linear(srgb: np.ndarray) -> np.ndarray:
    share = srgb / 255
    return np.asarray(np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4))


def test_colours_are_linear_light(tmp_path: Path) -> None:
    save_exr(tmp_path / "a.exr", image(3), "comment")
    np.testing.assert_allclose(decode(tmp_path / "a.exr"), linear(image(3)), rtol=1e-3, atol=1e-6)


def test_colours_are_multiplied_by_alpha(tmp_path: Path) -> None:
    save_exr(tmp_path / "a.exr", image(4), "comment")
    found, alpha = decode(tmp_path / "a.exr"), image(4)[..., 3:] / 255
    np.testing.assert_allclose(found[..., 3:], alpha, rtol=1e-3)
    np.testing.assert_allclose(found[..., :3], linear(image(4)[..., :3]) * alpha, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("comment", ["", "diffsynth-cli frame 12", "ü" * 300])
def test_comments_are_read_again(tmp_path: Path, comment: str) -> None:
    save_exr(tmp_path / "a.exr", image(3), comment)
    assert read_exr_comment(tmp_path / "a.exr") == comment


def test_files_that_were_cut_short_are_found(tmp_path: Path) -> None:
    path = tmp_path / "a.exr"
    save_exr(path, image(3), "comment")
    assert is_complete_exr(path)
    data = path.read_bytes()
    for size in (0, 5, 40, 200, 350, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        assert not is_complete_exr(path)
    path.write_bytes(b"another file")
    assert not is_complete_exr(path) and read_exr_comment(path) == "" == read_exr_comment(tmp_path / "none.exr")
