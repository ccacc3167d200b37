"""The second pass: what it computes, in whole frames or in tiles, and how it fits in with the other stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Never

import cv2
import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.pipelines.controlnet.pipeline_controlnet_img2img import StableDiffusionControlNetImg2ImgPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import StableDiffusionImg2ImgPipeline
from PIL import Image

from diffsynth_cli.failures import Interrupted
from stages.base.cache import FrameCache
from stages.diffusion.denoise import denoiser
from stages.diffusion.noise import draw
from stages.rendering.tasks import StepTask
from stages.upscale import EnlargeTask
from stages.video import open_source
from tests.conftest import CONTROLNET, MODEL, STAGES, write_images
from tests.object_stores import contents
from tests.stages.test_render_pipelines import assert_close, ddim
from tests.typing import Cli, Keys, MakeJob, Render

JOB: Keys = {"frames": 2, "num_inference_steps": 4, "combine_pattern": [0], "guidance_scale": 4.0}


@pytest.mark.filterwarnings("ignore:The configuration file of this scheduler")
@pytest.mark.parametrize("attention", ["joint", "shared"])
@pytest.mark.parametrize("model", [None, str(CONTROLNET)])
def test_the_second_pass_is_img2img_of_the_enlarged_frames(
    model: str | None, attention: str, render: Render, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    upscale = {"factor": 1.5, "strength": 0.6, "steps": 5, "model": model}
    cache = render(**JOB, attention=attention, upscale=upscale)
    enlarged = [cv2.resize(frame, (96, 96), interpolation=cv2.INTER_LANCZOS4) for frame in cache["rendered"][:]]
    loaded: dict[str, Any] = {"scheduler": ddim(), "safety_checker": None}
    kind: Any = StableDiffusionImg2ImgPipeline
    if model is not None:
        kind, loaded["controlnet"] = StableDiffusionControlNetImg2ImgPipeline, ControlNetModel.from_pretrained(model)
    pipe = kind.from_pretrained(MODEL, **loaded)
    monkeypatch.setattr(f"{kind.__module__}.randn_tensor", lambda *args, **more: draw(0, 0, 96, 96))
    pipe.set_progress_bar_config(disable=True)
    expected = []
    for frame in enlarged:
        image = Image.fromarray(frame)
        maps = {} if model is None else {"control_image": image, "controlnet_conditioning_scale": 1.0}
        found = pipe(
            "winter", image=image, strength=0.6, num_inference_steps=5, guidance_scale=4.0, output_type="latent", **maps
        )
        expected.append(found.images)
    assert_close(cache["large_latents"][:], torch.cat(expected).numpy())
    assert cache["deflickered"].shape == (2, 96, 96, 3)


@pytest.mark.parametrize("attention", ["joint", "shared"])
def test_networks_see_no_more_than_a_tile(attention: str, render: Render, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.stages.passes import watch_passes

    keys: Keys = {**JOB, "attention": attention, "combine_pattern": [-10000, 0], "vae_tiling": True}
    large = render("whole", **keys, upscale={"strength": 0.5})["large_latents"][:]
    sizes: set[tuple[int, ...]] = set()
    watch_passes(monkeypatch, lambda latents, text, view: sizes.add((*latents.shape[2:],)))
    tiled = render("tiled", **keys, upscale={"strength": 0.5, "tile": 64})["large_latents"][:]
    assert sizes == {(8, 8)} and tiled.shape == large.shape == (2, 4, 16, 16)
    assert 0 < np.abs(tiled - large).max() < 2
    same = render("one tile", **keys, upscale={"strength": 0.5, "tile": 128})["large_latents"][:]
    np.testing.assert_array_equal(same, large)


# --- with everything else -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"scheduler": "dpm++2m", "attention": "shared", "upscale": {"strength": 0.6, "tile": 64}},
        {"smoother": "TemporalMeanSmoother", "noise": "warped", "keyframes": 2, "post_smoother": "PatchBlendSmoother"},
        {"frames_reference": ["images/0.png"], "combine_pattern": ["reference_0", -1, 0], "scenes": [2]},
    ],
)
def test_a_pass_that_is_killed_resumes_to_the_same_bytes(
    keys: Keys, make_job: MakeJob, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {**JOB, "frames": 5, "upscale": {"strength": 0.6, "model": str(CONTROLNET)}, **keys}
    assert cli("run", make_job(**keys, output_path="whole"), "-q") == (0, "")
    killed = make_job(**keys, output_path="killed")
    for stage in ("extract", "control", "render"):
        assert cli(stage, killed, "-q") == (0, "")
    run, left = StepTask.run, 1

    def stopping(task: StepTask, cache: FrameCache, start: int, stop: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Interrupted
        run(task, cache, start, stop)

    with monkeypatch.context() as patch:
        patch.setattr(StepTask, "run", stopping)
        assert cli("run", killed, "-q")[0] == 130
    assert cli("run", killed, "-q") == (0, "")
    assert contents(tmp_path / "killed/cache.zarr") == contents(tmp_path / "whole/cache.zarr")
    assert (tmp_path / "killed/video.mp4").read_bytes() == (tmp_path / "whole/video.mp4").read_bytes()


def test_a_pass_that_is_redone_sees_nothing_of_the_one_before(
    make_job: MakeJob, cli: Cli, render: Render, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upscale = {"strength": 0.5, "model": str(CONTROLNET), "steps": 2}
    keys: Keys = {**JOB, "frames": 10, "num_inference_steps": 1, "upscale": upscale}
    for stage in ("extract", "control", "render"):
        assert cli(stage, make_job(**keys), "-q") == (0, "")
    with monkeypatch.context() as patch:
        patch.setattr(StepTask, "run", interrupted)
        assert cli("upscale", make_job(**keys), "-q")[0] == 130
    denoiser.cache_clear()  # frames are read ahead while networks are loaded
    assert cli("run", make_job(**keys, seed_of_noise=1, batch_size=2), "-q", "--restart") == (0, "")
    new = render("new", **keys, seed_of_noise=1)["large_latents"][:]
    np.testing.assert_array_equal(FrameCache(tmp_path / "out/cache.zarr")["large_latents"][:], new)


def interrupted(task: StepTask, cache: FrameCache, start: int, stop: int) -> Never:
    raise Interrupted


def test_outside_the_mask_the_source_is_seen_at_full_size(render: Render, tmp_path: Path) -> None:
    fine = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), np.uint8)
    write_images(tmp_path / "fine", fine)
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 40:] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    keys: Keys = {**JOB, "input_video": "fine", "frame_height": 64, "frame_width": 64, "mask": "mask.png"}
    cache = render(**keys, upscale={"strength": 0.5}, post_smoother="PatchBlendSmoother")
    inside = cache["large_mask"][:] > 0
    assert 0.3 < inside.mean() < 0.5
    for name in ("large_frames", "large_rendered", "deflickered"):
        np.testing.assert_array_equal(cache[name][:][~inside], fine[~inside])
    assert (cache["large_rendered"][:][inside] != fine[inside]).mean() > 0.9


def test_video_export_and_report_are_large(
    make_job: MakeJob, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(**JOB, upscale={"factor": 1.5, "strength": 0.5}, keep=["frames", "deflickered"])
    assert cli("run", job, "-q", "--preview") == (0, "")
    assert cli("export", job, "-q", "--fps", "2x") == (0, "")
    assert cli("report", job, "-q")[0] == 0
    for name in ("video.mp4", "video-h264.mp4"):
        video = open_source(tmp_path / "out" / name)
        assert (video.height, video.width) == (96, 96)
    assert set(json.loads((tmp_path / "out/cache.zarr/receipts/upscale.json").read_text())["removed"]) == {
        "large_latents", "large_rendered",
    }  # fmt: skip


@pytest.mark.slow
def test_a_plan_counts_it_and_a_preview_shows_it(make_job: MakeJob, cli: Cli, tmp_path: Path) -> None:
    job = make_job(**JOB, upscale={"strength": 0.5, "steps": 4})
    code, output = cli("plan", job, "--json")
    assert code == 0 and any("(large)" in line["kind"] for line in json.loads(output)["work"]), output
    assert cli("preview", job, "-q", "--frames", 2, "--grid", "seed_of_noise=1,2") == (0, "")
    assert FrameCache(tmp_path / "out/preview/1/cache.zarr")["deflickered"].shape == (2, 128, 128, 3)


def test_a_job_without_it_has_no_such_stage(make_job: MakeJob, cli: Cli) -> None:
    job = make_job(2)
    code, output = cli("upscale", job)
    assert code == 0 and "upscale: nothing to do, since the job has no key 'upscale'" in output
    assert [line["stage"] for line in json.loads(cli("status", job, "--json")[1])["stages"]] == list(STAGES)


def test_adding_or_removing_it_makes_the_smooth_frames_stale_and_nothing_else(make_job: MakeJob, cli: Cli) -> None:
    def states(job: Path) -> dict[str, str]:
        return {line["stage"]: line["state"] for line in json.loads(cli("status", job, "--json")[1])["stages"]}

    without, given = make_job(**JOB), {"factor": 1.5, "strength": 0.5}
    assert cli("run", without, "-q") == (0, "")
    job = make_job(**JOB, upscale=given)
    assert states(job) == {**dict.fromkeys(STAGES, "done"), "upscale": "to do", "deflicker": "stale"}
    assert cli("run", job, "-q", "--restart") == (0, "")
    assert set(states(job).values()) == {"done"}
    job = make_job(**JOB)
    assert states(job) == {**dict.fromkeys(STAGES, "done"), "deflicker": "stale"}
    assert cli("run", job, "-q", "--restart") == (0, "")
    code, output = cli("clean", job, "--dry-run")
    assert code == 0 and "large_frames" in output and "the job no longer has the key 'upscale'" in output


def test_only_this_stage_needs_the_source_again(make_job: MakeJob, cli: Cli, tmp_path: Path) -> None:
    assert cli("run", make_job(**JOB), "-q") == (0, "")
    job = make_job(**JOB, upscale={"strength": 0.5})
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    code, output = cli("status", job, "--json")
    assert code == 0 and [line["state"] for line in json.loads(output)["stages"]][2:] == ["done", "to do", "stale"]
    code, output = cli("upscale", job)
    assert code == 2 and "images: no such file" in output
    (tmp_path / "elsewhere").rename(tmp_path / "images")
    assert cli("run", job, "-q", "--restart") == (0, "")
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    assert cli("run", job)[1].count("nothing to do") == len(STAGES) + 1
    assert cli("export", job, "-q", "--fps", "2x") == (0, "")


def test_a_source_that_changes_meanwhile_is_noticed_and_nothing_is_lost(
    make_job: MakeJob, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, image = make_job(**JOB, upscale={"strength": 0.5}), tmp_path / "images" / "1.png"
    before, run = image.read_bytes(), EnlargeTask.run

    def changing(task: EnlargeTask, cache: FrameCache, start: int, stop: int) -> None:
        image.write_bytes((tmp_path / "images" / "0.png").read_bytes())
        run(task, cache, start, stop)

    with monkeypatch.context() as patch:
        patch.setattr(EnlargeTask, "run", changing)
        code, output = cli("run", job, "-q")
    assert code == 1 and "extract is stale" in output and "input_video: the content of" in output
    latents = FrameCache(tmp_path / "out/cache.zarr")["large_latents"][:]
    image.write_bytes(before)
    monkeypatch.setattr(StepTask, "run", interrupted)  # no step is done again
    assert cli("run", job, "-q") == (0, "")
    np.testing.assert_array_equal(FrameCache(tmp_path / "out/cache.zarr")["large_latents"][:], latents)


@pytest.mark.parametrize(
    ("upscale", "message"),
    [
        ({"strength": 0.2}, "upscale.strength: 0.2 of 4 steps is less than one step"),
        ({"factor": 1}, "upscale.factor"),
        ({"factor": 3, "size": 4}, "upscale.size"),
        ({"model": "./missing"}, "upscale.model"),
        ({"tile": 60}, "upscale.tile"),
    ],
)
def test_mistakes_are_named(upscale: Keys, message: str, make_job: MakeJob, cli: Cli) -> None:
    code, output = cli("run", make_job(**JOB, upscale=upscale), "-q")
    assert code == 2 and message in output


def test_a_result_that_is_too_large_is_refused_before_anything_runs(make_job: MakeJob, cli: Cli) -> None:
    code, output = cli("run", make_job(**JOB, frame_width=2048, frame_height=64, upscale={"factor": 5}), "-q")
    assert code == 2 and "upscale.factor: 5 × 2048×64 is 10240×320" in output and not Path("out").exists()
