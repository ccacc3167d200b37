"""The noise of rendered frames: the same for all, one for each, or moving with the video."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from diffsynth_cli.failures import Interrupted
from stages.base.arrays import Field, Flow, Image
from stages.base.cache import ArraySpec, FrameCache
from stages.base.engine import Options, Task
from stages.diffusion.noise import draw
from stages.diffusion.sampler import SAMPLERS
from stages.jobs.job import Job
from stages.rendering import noise as render_noise
from stages.rendering import work
from stages.rendering.noise import FOLLOWED, FollowMotionTask, FrameNoise, LinkChunksTask, follow
from stages.rendering.plan import RenderPlan
from tests.conftest import write_images
from tests.typing import Cli, Keys, MakeJob, Render

SIZE = 64, 96
GRID = 32, 48
STEP = 4  # px per frame, of panning footage


def pan(frames: int, step: float = STEP, size: tuple[int, int] = SIZE) -> list[Image]:
    """Frames of a textured picture that the camera pans over."""
    random = np.random.default_rng(0)
    wide = random.uniform(0, 255, (size[0], int(size[1] + step * frames) + 8, 3)).astype(np.float32)
    wide = np.clip(8 * (cv2.GaussianBlur(wide, (0, 0), 2) - 127.5) + 127.5, 0, 255)
    centres = [(size[1] / 2 + step * frame, size[0] / 2 - 0.5) for frame in range(frames)]
    return [cv2.getRectSubPix(wide, size[::-1], centre).round().astype(np.uint8) for centre in centres]


def moves(*steps: tuple[float, float], size: tuple[int, int] = SIZE) -> Iterator[Flow]:
    """Uniform flows (x, y) in px from each frame to the one before."""
    return (np.broadcast_to(np.array(step, np.float32), (*size, 2)) for step in steps)


def followed(*steps: tuple[float, float]) -> list[Field]:
    return [*follow(moves(*steps), *GRID, fresh_first=True)]


def test_a_shift_by_whole_subpixels_moves_them_and_refreshes_the_rim() -> None:
    first, second, third = followed((4, 0), (0, -6))
    np.testing.assert_array_equal(first, -1 - np.arange(first.size).reshape(GRID))
    np.testing.assert_array_equal(second[:, :-2], first[:, 2:])
    np.testing.assert_array_equal(second[:, -2:], -1 - (first.size + np.arange(first.size).reshape(GRID)[:, -2:]))
    np.testing.assert_array_equal(third[3:], second[:-3])


def test_slow_motion_adds_up() -> None:
    frames = followed(*[(0.5, 0.0)] * 16)  # 8 px in all
    np.testing.assert_array_equal(frames[16][:, :-8], frames[0][:, 4:-4])
    np.testing.assert_array_equal(frames[1], frames[0])


@pytest.mark.parametrize(("zoom", "most"), [(0.9, 0.9**10), (1.2, 1.2**-10)])
def test_every_subpixel_is_used_at_most_once_in_a_frame(zoom: float, most: float) -> None:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]].astype(np.float32)
    motion = np.stack([(x - 48) * (1 / zoom - 1), (y - 32) * (1 / zoom - 1)], axis=2)
    frames = [*follow(iter([motion] * 5), *GRID, fresh_first=True)]
    assert all(len(np.unique(frame)) == frame.size for frame in frames)
    kept = np.mean(frames[-1] > -1 - frames[0].size)
    assert 0.7 * most < kept < 1.1 * most  # the others have left the picture, or appeared
    assert frames[-1][16, 24] in frames[0][14:19, 22:27]  # the middle stays


def make_plan(frames: int, **keys: object) -> RenderPlan:
    given = {"model_id": "m", "prompt": "p", "input_video": "v", "output_path": "o", "noise": "warped", **keys}
    job = Job.model_validate(given)
    cuts = tuple(job.scenes) if isinstance(job.scenes, list) else ()
    whole = tuple(range(frames))
    return work.make_plan(job, Options(), (frames, *SIZE), keys=whole, cuts=cuts, maps=())


def noise_of(folder: Path, images: list[Image], **keys: object) -> torch.Tensor:
    """The initial noise of these frames, with a cache of their own."""
    plan, cache = make_plan(len(images), **keys), FrameCache(folder)
    for spec in (*plan.arrays(), ArraySpec("frames", (len(images), *SIZE, 3), "uint8")):
        cache.create(spec)
    cache["frames"].write(0, np.stack(images))
    for start in [*range(0, len(images), FOLLOWED)] if not plan.cuts else [0, *plan.cuts]:
        stop = min([start + FOLLOWED, len(images), *(cut for cut in plan.cuts if cut > start)])
        FollowMotionTask(plan).run(cache, start, stop)
    LinkChunksTask(plan).run(cache, 0, 1)
    return FrameNoise(plan).draw(cache, range(len(images)), 0)


def correlation(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])


def test_noise_follows_panning_footage_across_chunks_and_stays_white(tmp_path: Path) -> None:
    noise = noise_of(tmp_path, pan(2 * FOLLOWED + 6))
    torch.testing.assert_close(noise[:1], draw(0, 0, *SIZE), atol=0, rtol=0)
    pairs = [*zip(noise[:-2], noise[2:], strict=True)]  # 2 frames later, it has moved by one latent
    assert min(correlation(a[..., 1:], b[..., :-1]) for a, b in pairs) > 0.8
    assert max(correlation(a, b) for a, b in pairs) < 0.3
    assert abs(float(noise.std()) - 1) < 0.03
    for one, other in ((noise[..., 1:], noise[..., :-1]), (noise[:, :, 1:], noise[:, :, :-1])):
        assert abs(float((one * other).mean())) < 0.05


def test_a_scene_has_the_noise_that_its_frames_would_have_by_themselves(tmp_path: Path) -> None:
    images, cut = pan(9), 4
    for folder in ("whole", "part"):
        (tmp_path / folder).mkdir()
    whole = noise_of(tmp_path / "whole", images, scenes=[cut])
    part = noise_of(tmp_path / "part", images[cut:])
    torch.testing.assert_close(whole[cut:], part, atol=0, rtol=0)


def test_each_frame_has_the_noise_of_a_higher_seed(render: Render) -> None:
    keys = {"frames": 3, "num_inference_steps": 1, "combine_pattern": [0]}
    each = render("each", noise="frame", seed_of_noise=5, **keys)["latents"][:]
    same = render("same", seed_of_noise=5, **keys)["latents"][:]
    last = render("last", seed_of_noise=7, **keys)["latents"][:]
    np.testing.assert_array_equal(each[0], same[0])
    np.testing.assert_array_equal(each[2], last[2])


CASES: dict[str, Keys] = {
    "lcm, shared": {"scheduler": "lcm", "attention": "shared", "guidance_scale": 1.0},
    "img2img, joint": {"img2img_strength": 0.75, "num_inference_steps": 4},
    "keyframes, smoothed": {"keyframes": 2, "smoother": "TemporalMeanSmoother"},
    "references": {"combine_pattern": [-10000, -1, 0, "reference_0"], "frames_reference": ["images/0.png"]},
}


@pytest.mark.parametrize("noise", ["frame", "warped"])
@pytest.mark.parametrize("case", CASES)
def test_noise_works_with_everything(case: str, noise: str, render: Render, tmp_path: Path) -> None:
    write_images(tmp_path / "images", pan(5, size=(64, 64)))
    keys = {"combine_pattern": [-1, 0, 1], "num_inference_steps": 2, **CASES[case]}
    same, other = render("same", **keys), render("other", noise=noise, **keys)
    assert np.abs(same["latents"][:] - other["latents"][:]).max() > 0.01
    assert not {"noise_origins", "noise_ends"} & set(other.arrays("*"))


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_still_video_makes_warped_noise_the_same(name: str, render: Render, tmp_path: Path) -> None:
    write_images(tmp_path / "still", [pan(1, size=(64, 64))[0]] * 3)
    keys = {"input_video": "still", "scheduler": name, "num_inference_steps": 3, "guidance_scale": 1.0}
    same, warped = render("same", **keys), render("warped", noise="warped", **keys)
    for array in ("latents", "rendered"):
        np.testing.assert_array_equal(same[array][:], warped[array][:])


def test_a_kill_while_motion_is_followed_changes_nothing(
    render: Render, make_job: MakeJob, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render_noise, "FOLLOWED", 3)
    write_images(tmp_path / "images", pan(8, size=(64, 64)))
    keys = {"noise": "warped", "num_inference_steps": 1, "combine_pattern": [-1, 0]}
    straight = render("straight", **keys)
    ran: list[str] = []
    for task in (FollowMotionTask, LinkChunksTask):
        real = task.run

        def run(self: Task, cache: FrameCache, start: int, stop: int, real: Callable[..., None] = real) -> None:
            real(self, cache, start, stop)
            ran.append(type(self).__name__)
            if len(ran) in (2, 5, 6):
                raise Interrupted

        monkeypatch.setattr(task, "run", run)
    job = make_job(**keys, output_path="killed")
    while (code := cli("run", job, "-q", "--batch-size", 2)[0]) == 130:
        pass
    assert code == 0 and len(ran) > 6
    killed = FrameCache(tmp_path / "killed/cache.zarr")
    for name in ("latents", "rendered", "deflickered"):
        np.testing.assert_array_equal(straight[name][:], killed[name][:])
