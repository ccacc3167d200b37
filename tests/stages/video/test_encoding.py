"""Encoding: containers, sizes and reproducible bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from stages.base.errors import DiffSynthError, UsageError
from stages.video import Encoding, encode, encoding, open_source
from tests.conftest import scene
from tests.stages.video.clips import FPS, clip, flat
from tests.typing import Image


def test_mp4_files_suit_common_players(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", FPS)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # plays while it is loading


def test_odd_sizes_are_made_even(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", (flat(90, 63, 95) for _ in range(3)), Encoding(fps=FPS))
    source = open_source(tmp_path / "a.mp4")
    assert (source.height, source.width) == (64, 96)
    assert np.abs(next(source.shots()).image().astype(int) - 90).max() <= 3


def test_a_failed_encoding_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4")
    before = path.read_bytes()

    def frames() -> Iterator[Image]:
        yield scene(0, 64, 96)
        raise DiffSynthError("damaged")

    with pytest.raises(DiffSynthError, match="damaged"):
        encode(path, frames(), Encoding(fps=FPS))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("name", "codec"), [("a.avi", "h264"), ("a.webm", "h264"), ("a.mp4", "prores")])
def test_what_a_container_cannot_hold_is_refused(tmp_path: Path, name: str, codec: str) -> None:
    with pytest.raises(DiffSynthError):
        encode(tmp_path / name, [scene(0)], Encoding(fps=FPS, codec=codec))


def test_av1_gives_the_same_bytes_on_any_number_of_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written, av1 = [], encoding.ENCODERS["av1"]
    for threads in (1, 3, 8):
        options = {**av1.options, "svtav1-params": f"lp={threads}"}
        monkeypatch.setitem(encoding.ENCODERS, "av1", replace(av1, options=options))
        written.append(clip(tmp_path / f"{threads}.mp4", count=40, codec="av1").read_bytes())
    assert written[0] == written[1] == written[2]


def test_an_encoder_that_ffmpeg_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("av.codec.codecs_available", {"libx264"})
    encoding.check_encoding(Path("a.mp4"), "h264")
    with pytest.raises(UsageError, match="av1: FFmpeg was built without libsvtav1"):
        encoding.check_encoding(Path("a.mp4"), "av1")


def test_encoding_is_reproducible(tmp_path: Path) -> None:
    assert clip(tmp_path / "a.mp4").read_bytes() == clip(tmp_path / "b.mp4").read_bytes()


ENCODE = """
import sys
from fractions import Fraction
from pathlib import Path
import cv2
import numpy as np
from stages.video import Encoding, encode
noise = np.random.default_rng(0).integers(0, 256, (12, 32, 3), np.uint8)
world = cv2.resize(noise, (256, 192), interpolation=cv2.INTER_CUBIC)
frames = [np.ascontiguousarray(world[:48, 2 * t : 2 * t + 64]) for t in range(24)]
encode(Path(sys.argv[1]), frames, Encoding(Fraction(25), codec=sys.argv[2]))
"""


@pytest.mark.parametrize("codec", ["h264", "hevc", "vp9", "av1"])
def test_encoded_bytes_do_not_depend_on_what_memory_held_before(codec: str, tmp_path: Path) -> None:
    written = []
    for value in ("0", "85"):  # glibc fills allocated memory with it
        path = tmp_path / f"{value}.mp4"
        run = [sys.executable, "-c", ENCODE, str(path), codec]
        subprocess.run(run, env={**os.environ, "MALLOC_PERTURB_": value}, check=True)
        written.append(path.read_bytes())
    assert written[0] == written[1]
