"""`make demo`: a clip made on the spot goes through all four stages to a playable video.mp4, offline.

The model is one of a few megabytes with random weights, so the pictures are textures without meaning: what is shown is
that everything works on this machine, and how fast.
"""

from __future__ import annotations

import json
import shutil
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from diffsynth_cli.__main__ import main
from stages.video import Audio, Encoding, encode

FOLDER = Path("diffsynth-demo")
MODELS = Path(__file__).resolve().parent.parent / "tests" / "golden" / "models"
FRAMES, FPS, HEIGHT, WIDTH = 24, 12, 128, 192
TONE_RATE = 48_000


def frame(index: int) -> np.ndarray:
    """A sun that crosses the sky over rolling hills, uint8 [H, W, 3]."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    image = np.stack([110 + 80 * y / HEIGHT, 160 + 40 * y / HEIGHT, 235 - 40 * y / HEIGHT], axis=2)
    sun = (x - 20 - 6 * index) ** 2 + (y - 32) ** 2 < 14**2
    image[sun] = (255, 230, 120)
    for depth, colour in ((0.55, (90, 130, 110)), (0.72, (60, 110, 60))):
        ridge = HEIGHT * depth + 9 * np.sin(x / 19 + index * depth / 3 + depth * 9)
        image[y > ridge] = colour
    return image.astype(np.uint8)


def write_tone(path: Path) -> None:
    """Two seconds of a rising tone, so that the clip has sound to carry over."""
    time = np.arange(FRAMES * TONE_RATE // FPS) / TONE_RATE
    wave = (0.2 * np.sin(2 * np.pi * (220 + 60 * time) * time)).astype(np.float32)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=TONE_RATE, layout="mono")
        samples = av.AudioFrame.from_ndarray((wave * 32767).astype(np.int16)[None], format="s16", layout="mono")
        samples.sample_rate = TONE_RATE
        container.mux([*stream.encode(samples), *stream.encode(None)])


def write_job() -> Path:
    tone, clip = FOLDER / "tone.wav", FOLDER / "clip.mp4"
    write_tone(tone)
    encode(clip, map(frame, range(FRAMES)), Encoding(fps=Fraction(FPS), audio=Audio(tone, 0.0, FRAMES / FPS)))
    tone.unlink()
    job = {
        "model_id": str(MODELS / "sd"), "controlnet_model_id": [str(MODELS / "control0")],
        "controlnet_processor": ["canny"], "input_video": "clip.mp4", "output_path": "output",
        "prompt": "winter, snow, night", "num_inference_steps": 4, "combine_pattern": [-10000, -1, 0, 1],
        "smoother": "TemporalMeanSmoother", "smoother_interval": 2, "post_smoother": "TemporalMeanSmoother",
    }  # fmt: skip
    path = FOLDER / "job.json"
    path.write_text(json.dumps(job, indent=2))
    return path


if __name__ == "__main__":
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    code = main(["run", str(write_job()), "--batch-size", "4"])
    if code == 0:
        print(f"\n{FOLDER}/output/video.mp4 is there. For a video of your own: see README.md")
    sys.exit(code)
