"""The embedded model in all four stages, judged by what the frames show."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import pytest

from diffsynth_cli.__main__ import main
from diffsynth_cli.demo import write_demo
from stages.base.cache import FrameCache
from stages.smoothers import build
from stages.smoothers.images.metrics import measure
from tests.typing import Images
from tools.train_mini.evaluate import agreement

FRAMES = 4
FPS = 12
ALONE = {"combine_pattern": "[0]", "smoother": "null", "post_smoother": "null"}


class Restyle(Protocol):
    def __call__(self, prompt: str, **keys: object) -> FrameCache: ...


@pytest.fixture(scope="module")
def restyle(tmp_path_factory: pytest.TempPathFactory) -> Restyle:
    """Run the demo's job with this prompt and these keys on the first frame of its clip, once for each."""
    caches: dict[str, FrameCache] = {}

    def run(prompt: str, **keys: object) -> FrameCache:
        name = f"{prompt} {keys}"
        if name not in caches:
            folder: Path = tmp_path_factory.mktemp("demo")
            job = write_demo(folder, None, prompt)
            given = {
                "frame_maximum_count": 1, "frame_height": 96, "frame_width": 160, "num_inference_steps": 8,
            } | keys  # fmt: skip
            assert main(["run", str(job), "-q", *(f"--set={key}={value}" for key, value in given.items())]) == 0
            caches[name] = FrameCache(folder / "output/cache.zarr")
        return caches[name]

    return run


def flickering(restyle: Restyle, prompt: str) -> tuple[Images, Images]:
    """Guides, and frames that were rendered from noise of their own, uint8 [FRAMES, H, W, 3] each."""
    caches = [restyle(prompt, seed_of_noise=k + 1, start_time=k / FPS, **ALONE) for k in range(FRAMES)]
    guides, frames = (np.stack([cache[name][0] for cache in caches]) for name in ("frames", "rendered"))
    return guides, frames


def brightness(cache: FrameCache) -> float:
    return float(cache["deflickered"][:].mean())


def warmth(cache: FrameCache) -> float:
    """Red over blue."""
    red, _, blue = cache["deflickered"][:].astype(float).mean(axis=(0, 1, 2))
    return float(red / blue)


def edges_met(frames: np.ndarray, maps: np.ndarray) -> float:
    """F1 of the frames' edges and those of their maps."""
    return float(np.mean([agreement(cv2.Canny(frame, 100, 200), wanted) for frame, wanted in zip(frames, maps)]))


@pytest.mark.slow
def test_words_change_the_light_and_the_colours(restyle: Restyle) -> None:
    day, night, sunset = (restyle(f"summer, {time}, photo", **ALONE) for time in ("day", "night", "sunset"))
    assert brightness(night) < 0.6 * brightness(day)
    assert warmth(sunset) > 1.3 * warmth(day) and warmth(sunset) > 1.3 * warmth(night)
    winter = restyle("winter, snow, day, photo", **ALONE)
    ground = [cache["deflickered"][:][:, 60:].astype(float).std(axis=3).mean() for cache in (winter, day)]
    assert ground[0] < 0.6 * ground[1]  # snow has no colour, grass has


def test_edges_are_where_the_map_has_them(restyle: Restyle) -> None:
    cache = restyle("summer, day, photo", **ALONE)
    (name,) = cache.arrays("control/*")
    maps, without = cache[name][:], restyle("summer, day, photo", controlnet_scale="[0.0]", **ALONE)
    met = [edges_met(other["rendered"][:], maps[..., 0]) for other in (cache, without)]
    print(f"edges met {met[0]:.2f}, without a map {met[1]:.2f}")
    assert met[0] > 0.6 and met[0] > met[1] + 0.2


@pytest.mark.slow
def test_frames_that_see_each_other_and_are_smoothed_flicker_less(restyle: Restyle) -> None:
    prompt = "winter, snow, night"
    together = restyle(prompt, frame_maximum_count=FRAMES)
    guides, alone = flickering(restyle, prompt)
    np.testing.assert_array_equal(guides, together["frames"][:])
    flicker = measure(guides, [alone, together["rendered"][:], together["deflickered"][:]])
    own_noise, rendered, deflickered = (np.nanmean(curves.warp[1]) for curves in flicker)
    print(f"warp error {own_noise:.1f}, rendered {rendered:.1f}, deflickered {deflickered:.1f}")
    assert rendered < 0.5 * own_noise and deflickered < 0.35 * own_noise


@pytest.mark.slow
def test_diffusion_flicker_is_smoothed_and_detail_stays(restyle: Restyle) -> None:
    guides, frames = flickering(restyle, "winter, snow, night")
    smooth = build("PatchBlendSmoother", {}, guides, frames).smooth(0, FRAMES)
    before, after = measure(guides, [frames, smooth])
    found = after.summary(style=before)
    print(found, before.summary())
    assert found["warp1"] < 0.3 * before.summary()["warp1"] and found["sharp"] > 0.7
