"""Sound: cut, and in step with the picture."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.video import Audio, Encoding, encode, open_source
from tests.stages.video.clips import FPS, onsets, tone


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
