"""From a clip and a prompt to a video, judged by what is in the pictures: the embedded model in all four stages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from diffsynth_cli.__main__ import main
from diffsynth_cli.demo import write_demo
from stages.base.cache import FrameCache
from stages.smoothing.metrics import measure
from tools.train_mini.evaluate import agreement

FRAMES = 8


@pytest.fixture(scope="module")
def restyle(tmp_path_factory) -> Callable[..., FrameCache]:
    """Runs the demo's job with this prompt and these keys on the first frames of its clip; once for each."""
    made: dict[str, FrameCache] = {}

    def run(prompt: str, **keys: object) -> FrameCache:
        name = f"{prompt} {keys}"
        if name not in made:
            folder: Path = tmp_path_factory.mktemp("demo")
            job = write_demo(folder, None, prompt)
            given = {"frame_maximum_count": FRAMES, "frame_height": 128, "frame_width": 192} | keys
            assert main(["run", str(job), "-q", *(f"--set={key}={value}" for key, value in given.items())]) == 0
            made[name] = FrameCache(folder / "output/cache.zarr")
        return made[name]

    return run


def brightness(cache: FrameCache) -> float:
    return float(cache["deflickered"][:].mean())


def warmth(cache: FrameCache) -> float:
    """Red over blue."""
    red, _, blue = cache["deflickered"][:].astype(float).mean(axis=(0, 1, 2))
    return red / blue


def test_words_change_the_light_and_the_colours(restyle):
    day, night, sunset = (restyle(f"summer, {time}, photo") for time in ("day", "night", "sunset"))
    assert brightness(night) < 0.6 * brightness(day)
    assert warmth(sunset) > 1.3 * warmth(day) and warmth(sunset) > 1.3 * warmth(night)
    winter = restyle("winter, snow, day, photo")
    ground = [cache["deflickered"][:, 80:].astype(float).std(axis=3).mean() for cache in (winter, day)]
    assert ground[0] < 0.6 * ground[1]  # snow has no colour, grass has


def test_edges_are_where_the_map_has_them(restyle):
    cache = restyle("summer, day, photo")
    (name,) = cache.arrays("control")
    maps, without = cache[name][:], restyle("summer, day, photo", controlnet_scale="[0.0]")
    met = [
        np.mean(
            [agreement(cv2.Canny(frame, 100, 200), wanted[..., 0]) for frame, wanted in zip(other["rendered"][:], maps)]
        )
        for other in (cache, without)
    ]
    assert met[0] > 0.4 and met[0] > 2 * met[1]


def test_frames_that_see_each_other_and_are_smoothed_flicker_less(restyle):
    prompt = "winter, snow, night"
    together = restyle(prompt)
    alone = [
        restyle(prompt, combine_pattern="[0]", seed_of_noise=k, smoother="null", smoother_config="{}",
                post_smoother="null")["rendered"][k]
        for k in range(4)
    ]  # fmt: skip
    guides = together["frames"][:4]
    flicker = measure(guides, [np.stack(alone), together["rendered"][:4], together["deflickered"][:4]])
    own_noise, rendered, deflickered = (np.nanmean(curves.warp[1]) for curves in flicker)
    assert rendered < 0.5 * own_noise and deflickered < 0.35 * own_noise
