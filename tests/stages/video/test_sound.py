"""Sound: cut, and in step with the picture."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.video import Audio, Encoding, encode, open_source
from tests.stages.video.clips import FPS, flat, onsets, tone


@pytest.mark.parametrize("begins", [0.0, 0.7])
@pytest.mark.parametrize("start", [0.0, 0.52])
def test_sound_is_cut_and_stays_in_sync(tmp_path: Path, begins: float, start: float) -> None:
    source = open_source(tone(tmp_path / "a.mp4", begins))
    assert source.has_audio
    shots = [shot for shot in source.shots(start) if shot.time < 2.0]
    how = Encoding(fps=FPS, audio=Audio(source.path, start, 2.0))
    encode(tmp_path / "b.mp4", (shot.image() for shot in shots), how)
    white, sound, length = onsets(tmp_path / "b.mp4")
    assert white == pytest.approx(1 - start, abs=0.001)
    assert sound == pytest.approx(1 - start, abs=0.03)  # an AAC frame is 23 ms
    assert length == pytest.approx(2 - start, abs=0.05)


@pytest.mark.parametrize("start", [0.0, 0.6])
def test_sound_may_end_before_the_picture(tmp_path: Path, start: float) -> None:
    audio = Audio(tone(tmp_path / "a.mp4", seconds=1.4), start, 4.0)
    encode(tmp_path / "b.mp4", (flat(0 if k < 20 else 255) for k in range(60)), Encoding(fps=FPS, audio=audio))
    _, sound, length = onsets(tmp_path / "b.mp4")
    assert sound == pytest.approx(1 - start, abs=0.03) and length == pytest.approx(1.4 - start, abs=0.05)
    assert len(list(open_source(tmp_path / "b.mp4").shots())) == 60
