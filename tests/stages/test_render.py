"""The render stage: attention, smoothing in the loop, schedulers and resuming."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import save_file

from diffsynth_cli.failures import Interrupted
from stages.base import engine
from stages.base.cache import FrameCache
from stages.base.engine import Options
from stages.diffusion import denoise
from stages.diffusion.sampler import SAMPLERS
from stages.diffusion.settings import Batches
from stages.jobs.job import Job
from stages.rendering import tasks as render_tasks
from stages.rendering import work
from stages.rendering.pattern import attended_frames, shared_window
from stages.rendering.tasks import StepTask
from stages.smoothers import SMOOTHERS, Frames
from stages.tasks import ChunkSmoother
from tests.conftest import CONTROLNET, GOLDEN, MODEL, scene, write_images
from tests.typing import Cli, Keys, MakeJob, Render, Run

POOLING_CONTROLNET = GOLDEN / "models/control2"  # global_pool_conditions, as shuffle has it


def assert_same(one: FrameCache, other: FrameCache) -> None:
    """Both hold the same latents after every step, and the same rendered frames."""
    names = [*one.arrays("step_latents/*"), "latents", "rendered"]
    assert len(names) > 2 and names[:-2] == other.arrays("step_latents/*")
    for name in names:
        np.testing.assert_array_equal(one[name][:], other[name][:])


def test_pattern_is_clamped_and_references_are_kept() -> None:
    assert attended_frames([-10000, -1, 0, 1, "reference_1"], range(2, 5), range(5)) == [
        [0, 1, 2, 3, "reference_1"],
        [0, 2, 3, 4, "reference_1"],
        [0, 3, 4, 4, "reference_1"],
    ]
    assert attended_frames([-10000, -1, 0, 1], range(5, 8), range(5, 8)) == [[5, 5, 5, 6], [5, 5, 6, 7], [5, 6, 7, 7]]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"smoother_interval": 5}, [0, 5]),
        ({"smoother_interval": 2, "ignore_smoother_steps": 2}, [0, 2]),
        ({"ignore_smoother_steps": 6}, []),
        ({"smoother": None}, []),
    ],
)
def test_interval_and_ignored_steps_select_smoothed_steps(keys: Keys, expected: list[int]) -> None:
    given = {"model_id": "m", "prompt": "p", "input_video": "v", "output_path": "o", "num_inference_steps": 6}
    job = Job.model_validate({**given, "smoother": "TemporalMeanSmoother", **keys})
    plan = work.make_plan(job, Options(), (1, 64, 64), keys=(0,), maps=())
    assert [step for step in range(6) if plan.is_smoothed(step)] == expected


def test_a_lora_changes_what_is_rendered_and_its_content_counts(
    render: Render, tmp_path: Path, make_job: MakeJob, cli: Cli
) -> None:
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_v"

    def write(seed: int) -> None:
        matrix = torch.randn(32, 32, generator=torch.Generator().manual_seed(seed))
        save_file({f"{layer}.lora_A.weight": matrix[:4], f"{layer}.lora_B.weight": matrix[:, :4].contiguous()}, path)

    path = tmp_path / "style.safetensors"
    write(0)
    without = render("without", frames=2)["latents"][:]
    some = render("some", loras=["style.safetensors"])["latents"][:]
    none = render("none", loras=[{"path": "style.safetensors", "scale": 0}])["latents"][:]
    np.testing.assert_array_equal(none, without)
    assert np.abs(some - without).max() > 1e-3
    write(1)
    code, output = cli("render", make_job(output_path="some", loras=["style.safetensors"]))
    assert code == 1 and "loras[0].file: the content of" in output


def test_an_inversion_in_a_pickle_is_rendered_if_pickles_are_allowed(
    render: Render, tmp_path: Path, make_job: MakeJob, cli: Cli
) -> None:
    vectors = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    torch.save({"string_to_param": {"*": vectors}}, tmp_path / "fluffy.pt")
    keys = {"frames": 2, "prompt": "winter fluffy", "embeddings": ["fluffy.pt"]}
    without = render("without", **(keys | {"embeddings": []}))["latents"][:]
    code, output = cli("run", make_job(**keys, output_path="some"))
    assert code == 2 and "embeddings[0]" in output and "--allow-pickle" in output
    assert cli("run", make_job(**keys, output_path="some"), "-q", "--allow-pickle") == (0, "")
    some = FrameCache(tmp_path / "some/cache.zarr")["latents"][:]
    assert np.abs(some - without).max() > 1e-3
    again = render("some", **keys, allow_pickle=True)["latents"][:]  # allow_pickle makes nothing stale
    np.testing.assert_array_equal(again, some)


def test_a_controlnet_of_scale_0_changes_nothing(render: Render) -> None:
    without = render("without", frames=2, controlnet_model_id=[], controlnet_processor=[])["latents"][:]
    zero = render("zero", controlnet_scale=[0.0])["latents"][:]
    some = render("some", controlnet_scale=[0.5])["latents"][:]
    np.testing.assert_array_equal(zero, without)
    assert np.abs(some - without).max() > 1e-3


def test_guidance_1_asks_for_no_negative_prompt(render: Render) -> None:
    one = render("one", frames=2, guidance_scale=1.0)["latents"][:]
    other = render("other", guidance_scale=1.0, negative_prompt="blurry")["latents"][:]
    guided = render("guided", guidance_scale=3.0, negative_prompt="blurry")["latents"][:]
    np.testing.assert_array_equal(one, other)
    assert np.abs(one - guided).max() > 1e-3


def test_neighbours_are_seen_beyond_a_chunk(render: Render, tmp_path: Path) -> None:
    """Frame 7 ends a chunk: another frame 8 must show in it, and in no frame that the pattern does not reach."""
    frames = [scene(i) for i in range(12)]
    write_images(tmp_path / "one", frames)
    write_images(tmp_path / "two", [*frames[:8], scene(40), *frames[9:]])
    keys = {"num_inference_steps": 1, "combine_pattern": [-1, 0, 1]}
    one = render("a", input_video="one", **keys)["latents"][:]
    two = render("b", input_video="two", **keys)["latents"][:]
    differs = np.abs(one - two).max(axis=(1, 2, 3)) > 1e-4
    assert differs.tolist() == [False] * 7 + [True] * 3 + [False] * 2


@pytest.mark.parametrize("name", SMOOTHERS.built_in)
def test_every_smoother_works_in_the_loop_at_its_defaults(render: Render, name: str) -> None:
    keys = {"frames": 3, "num_inference_steps": 1, "combine_pattern": [0]}
    without, smoothed = render("without", **keys)["rendered"][:], render("with", smoother=name, **keys)["rendered"][:]
    assert smoothed.shape == without.shape and (smoothed != without).any()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("smoother", "config"),
    [("PatchBlendSmoother", {"window": 2}), ("PySynthSmoother", {"speed": "fastest", "window_size": 2})],
)
def test_smoothers_with_tables_resume_in_the_loop(
    render: Render, make_job: MakeJob, cli: Cli, monkeypatch: pytest.MonkeyPatch, smoother: str, config: Keys
) -> None:
    monkeypatch.setattr(engine, "CHUNK", 2)
    keys = {"smoother": smoother, "smoother_config": config, "guidance_scale": 1.0, "keep_steps": True}
    straight = render("straight", **keys)
    smoothed: list[int] = []
    real = render_tasks.SmoothStepTask.run

    def run(task: render_tasks.SmoothStepTask, cache: FrameCache, start: int, stop: int) -> None:
        smoothed.append(start)
        if len(smoothed) == 2:
            raise Interrupted
        real(task, cache, start, stop)

    monkeypatch.setattr(render_tasks.SmoothStepTask, "run", run)
    assert cli("run", make_job(**keys, output_path="interrupted"), "-q", "--batch-size", 2)[0] == 130
    interrupted = render("interrupted", **keys)
    assert smoothed == [0, 2, 2, 4, 0, 2, 4]
    assert_same(straight, interrupted)


@pytest.mark.parametrize(
    ("smoother", "calls"), [("PatchBlendSmoother", [(k, k + 1) for k in range(18)]),
                            ("TemporalMeanSmoother", [(0, 8), (8, 16), (16, 18)])]
)  # fmt: skip
def test_smoothed_frames_are_encoded_in_the_networks_batches(
    render: Render, monkeypatch: pytest.MonkeyPatch, smoother: str, calls: list[tuple[int, int]]
) -> None:
    """Not one by one, as most smoothers return them."""
    smoothed, encoded = [], []
    smooth, encode = ChunkSmoother.smooth, denoise.Denoiser.encode

    def watched_smooth(
        self: ChunkSmoother, guides: Frames, styles: Frames, *, start: int, stop: int, first: int
    ) -> np.ndarray:
        smoothed.append((start, stop))
        return smooth(self, guides, styles, start=start, stop=stop, first=first)

    def watched_encode(
        self: denoise.Denoiser, images: np.ndarray, batches: Batches, predicted: bool = False
    ) -> torch.Tensor:
        encoded.append(len(images))
        return encode(self, images, batches, predicted)

    monkeypatch.setattr(ChunkSmoother, "smooth", watched_smooth)
    monkeypatch.setattr(denoise.Denoiser, "encode", watched_encode)
    keys = {"smoother_config": {"window": 1, "detail": 1}} if smoother == "PatchBlendSmoother" else {}
    render(frames=18, smoother=smoother, num_inference_steps=1, controlnet_scale=[0], **keys)
    assert encoded == [8, 8, 2] and smoothed == calls


def test_the_device_of_the_job_is_what_smooths(render: Render, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: set[str] = set()
    monkeypatch.setattr("stages.models.weights.pick_gpu", asked.add)  # gives None: no GPU
    light = {"smoother": "PatchBlendSmoother", "smoother_config": {"detail": 1}}
    render(**light, keyframes=4, num_inference_steps=1, device="cpu")
    render("auto", keyframes="auto", num_inference_steps=1)
    assert asked == {"cpu", "auto"}


def test_scratch_arrays_are_removed_and_results_kept(render: Render) -> None:
    cache = render(
        frames=2, smoother="TemporalMeanSmoother", combine_pattern=["reference_0", 0], frames_reference=["images/0.png"]
    )
    assert all(name in cache for name in ("frames", "references", "latents", "rendered", "deflickered"))
    assert not any(name in cache for name in ("step_latents", "step_predicted", "reference_latents"))


def test_black_frames_pass_through_all_stages(render: Render, tmp_path: Path) -> None:
    write_images(tmp_path / "black", np.zeros((3, 64, 64, 3), np.uint8))
    cache = render(input_video="black", controlnet_model_id=[str(CONTROLNET)], controlnet_processor=["tile"])
    (maps,) = cache.arrays("control/*")
    assert cache["frames"][:].max() == cache[maps][:].max() == 0
    assert cache["rendered"].shape == (3, 64, 64, 3)


@pytest.mark.slow
def test_float16_and_bfloat16_run(render: Render) -> None:
    for dtype in ("bfloat16", "float16"):
        cache = render(dtype, frames=2, dtype=dtype, num_inference_steps=1)
        assert np.isfinite(cache["latents"][:]).all()


# -- attention: shared -------------------------------------------------------------------------------------------------


def test_a_shared_window_holds_the_frames_in_view_and_separate_anchors() -> None:
    frames, anchors, sources = shared_window([-10000, -1, 0, 1, "reference_1"], range(4, 6), range(20))
    assert frames == [3, 4, 5, 6] and anchors == [0, "reference_1"]
    assert sources == [[4, 0, 0, 1, 5], [4, 0, 1, 2, 5], [4, 1, 2, 3, 5], [4, 2, 3, 3, 5]]  # the rim sees no further
    assert shared_window([-1, 0], range(2), range(4)) == ([0, 1], [], [[0, 0], [0, 1]])
    assert shared_window([-1, 0], range(1), range(1)) == ([0], [0], [[1, 0]])
    assert shared_window([-10000, -1, 0], range(5, 7), range(5, 9)) == ([5, 6], [5], [[2, 0, 0], [2, 0, 1]])


def test_windows_of_large_frames_are_smaller() -> None:
    sizes = ((64, 64), (512, 960), (768, 960), (2112, 4096))
    assert [render_tasks.shared_chunk(*size) for size in sizes] == [16, 16, 10, 4]


def test_frames_that_see_only_themselves_are_the_same_joint_or_shared(render: Render) -> None:
    joint, shared = (render(name, frames=2, attention=name)["latents"][:] for name in ("joint", "shared"))
    np.testing.assert_allclose(joint, shared, atol=1e-4)


def test_in_a_still_video_shared_attention_is_joint_attention(render: Render, tmp_path: Path) -> None:
    write_images(tmp_path / "still", [scene(3)] * 5)
    keys = {"input_video": "still", "combine_pattern": [-10000, -1, 0, 1], "guidance_scale": 3}
    joint, shared = (render(name, attention=name, **keys)["latents"][:] for name in ("joint", "shared"))
    np.testing.assert_allclose(joint, shared, atol=1e-4)


def test_shared_anchors_reach_all_frames_and_neighbours_some(
    render: Render, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render_tasks, "SHARED_CHUNK", (4, 4))
    frames = [scene(i) for i in range(12)]
    for name, changed in (("one", None), ("first", 0), ("fifth", 5)):
        write_images(tmp_path / name, [scene(40) if i == changed else frame for i, frame in enumerate(frames)])
    keys = {"num_inference_steps": 1, "attention": "shared", "combine_pattern": [-10000, -1, 0, 1]}
    one, first, fifth = (
        render(f"{name}-out", input_video=name, **keys)["latents"][:] for name in ("one", "first", "fifth")
    )
    assert (np.abs(one - first).max(axis=(1, 2, 3)) > 1e-4).all()
    differs = np.flatnonzero(np.abs(one - fifth).max(axis=(1, 2, 3)) > 1e-4)
    assert {4, 5, 6} <= set(differs) <= set(range(3, 9))  # no further than its window and the next one's rim


def test_shared_attention_resumes_to_the_same_bytes(
    render: Render, make_job: MakeJob, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render_tasks, "SHARED_CHUNK", (2, 2))
    keys = {"attention": "shared", "combine_pattern": ["reference_0", -10000, -1, 0], "keep_steps": True}
    keys |= {"frames_reference": ["images/3.png"]}
    straight = render("straight", **keys)
    real, runs = render_tasks.StepTask.run, []

    def run(task: StepTask, cache: FrameCache, start: int, stop: int) -> None:
        runs.append(start)
        if len(runs) == 5:  # in the second step, whose anchors have gone through the networks
            raise Interrupted
        real(task, cache, start, stop)

    monkeypatch.setattr(render_tasks.StepTask, "run", run)
    assert cli("run", make_job(**keys, output_path="interrupted"), "-q", "--batch-size", 2)[0] == 130
    denoise.denoiser.cache_clear()  # as after a kill
    interrupted = render("interrupted", **keys)
    assert_same(straight, interrupted)


@pytest.mark.slow
def test_a_tiny_autoencoder_serves_smoothing_steps_alone(render: Render, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4, num_encoder_blocks=(1,) * 4,
        num_decoder_blocks=(1,) * 4,
    )  # fmt: skip
    tiny.save_pretrained(tmp_path / "tiny")
    smoothed = {"smoother": "TemporalMeanSmoother", "ignore_smoother_steps": 1}
    for keys, same in (({}, True), (smoothed, False)):
        renders = (render(f"{same}{vae}", frames=2, vae=vae, **keys) for vae in (None, "tiny"))
        without, with_tiny = (cache["rendered"][:] for cache in renders)
        assert np.array_equal(without, with_tiny) is same


# --- schedulers -----------------------------------------------------------------------------------------

SCHEDULERS = tuple(SAMPLERS)
SMOOTHED: Keys = {"smoother": "TemporalMeanSmoother", "smoother_interval": 2}
THREE: Keys = {"num_inference_steps": 3, "guidance_scale": 1.5}  # steps


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_continues_from_smoothed_clean_latents(render: Render, scheduler: str) -> None:
    """Where every step, the last one too, is smoothed over the whole video, all frames end as nearly the same mean."""
    keys = {"scheduler": scheduler, "num_inference_steps": 4, "guidance_scale": 1.5, "img2img_strength": 0.75}
    plain = render("plain", **keys)["latents"][:]
    whole = render("whole", **keys, smoother="TemporalMeanSmoother", smoother_config={"radius": 5})["latents"][:]
    assert np.ptp(plain, axis=0).max() > 0.15 and np.ptp(whole, axis=0).max() < 0.01


def test_guidance_too_high_for_lcm_is_warned_about(make_job: MakeJob, cli: Cli) -> None:
    keys = {"frames": 1, "scheduler": "lcm", "num_inference_steps": 1}
    for name, guidance, warned in (("much", {}, True), ("little", {"guidance_scale": 2.0}, False)):
        code, output = cli("run", make_job(**keys, **guidance, output_path=name))
        assert code == 0 and ("guidance_scale 7.5 is too high for lcm" in output) == warned


def test_schedulers_differ_and_a_changed_one_is_stale(render: Render, make_job: MakeJob, cli: Cli) -> None:
    results = [render(f"of {name}", frames=2, scheduler=name, **THREE)["rendered"][:] for name in SCHEDULERS]
    assert all((a != b).any() for k, a in enumerate(results) for b in results[:k])
    code, output = cli("render", make_job(output_path="of lcm", scheduler="euler", **THREE))
    assert code == 1 and 'scheduler: "lcm" → "euler"' in output


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_v_prediction_and_img2img_work_with_every_scheduler(render: Render, tmp_path: Path, scheduler: str) -> None:
    shutil.copytree(MODEL, tmp_path / "v")
    config = tmp_path / "v/scheduler/scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prediction_type": "v_prediction"}))
    keys = {"scheduler": scheduler, "model_id": "./v", **THREE, "keep_steps": True}
    cache = render(frames=2, **keys, img2img_strength=0.7)
    assert cache.arrays("step_latents/*") == ["step_latents/0000", "step_latents/0001"]
    assert np.isfinite(cache["latents"][:]).all() and cache["rendered"][:].std() > 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheduler", "more"),
    [("dpm++2m", {}), ("dpm++2m", SMOOTHED), ("dpm++2m", {"img2img_strength": 0.8}), ("lcm", SMOOTHED)],
)
def test_a_render_that_is_killed_after_every_chunk_ends_in_the_same_bytes(
    render: Render,
    tmp_path: Path,
    make_job: MakeJob,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    scheduler: str,
    more: Keys,
) -> None:
    """The process dies when a chunk is written but not yet marked, so the chunk is redone."""
    monkeypatch.setattr(engine, "CHUNK", 2)
    keys = {
        "frames": 3,
        "scheduler": scheduler,
        "num_inference_steps": 4,
        "guidance_scale": 1.0,
        "keep_steps": True,
        **more,
    }
    straight = render("straight", **keys)
    killed: list[tuple[str, int, int]] = []

    def dying_once(real: Run) -> Run:
        def run(task: StepTask, cache: FrameCache, start: int, stop: int) -> None:
            real(task, cache, start, stop)
            chunk = type(task).__name__, task.step, start
            if chunk not in killed:
                killed.append(chunk)
                raise Interrupted

        return run

    for kind in (render_tasks.StepTask, render_tasks.SmoothStepTask):
        monkeypatch.setattr(kind, "run", dying_once(kind.run))
    job = make_job(**keys, output_path="killed")
    while (code := cli("run", job, "-q", "--batch-size", 2)[0]) == 130:
        pass
    steps = len(straight.arrays("step_latents/*")) + ("img2img_strength" not in more)
    assert code == 0 and len([name for name, _, _ in killed if name == "StepTask"]) == 2 * steps
    assert ("smoother" in more) == any(name == "SmoothStepTask" for name, _, _ in killed)
    cache = FrameCache(tmp_path / "killed/cache.zarr")
    assert_same(straight, cache)
    assert not any(name in cache for name in ("step_clean", "step_predicted"))


@pytest.mark.parametrize("scheduler", ["dpm++2m", "lcm"])
def test_chunks_of_another_size_change_nothing(render: Render, monkeypatch: pytest.MonkeyPatch, scheduler: str) -> None:
    keys = {"frames": 3, "scheduler": scheduler, "batch_size": 1, **THREE, **SMOOTHED}
    whole = render("whole", **keys)
    monkeypatch.setattr(engine, "CHUNK", 2)
    np.testing.assert_array_equal(whole["latents"][:], render("cut", **keys)["latents"][:])


def test_dpm_looks_back_at_clean_latents_as_they_were_smoothed(
    make_job: MakeJob, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"frames": 3, "scheduler": "dpm++2m", "num_inference_steps": 4, **SMOOTHED}
    real_run, real = render_tasks.SmoothStepTask.run, render_tasks.StepTask.clean_before
    seen: dict[str, Any] = {}

    def run(task: render_tasks.SmoothStepTask, cache: FrameCache, start: int, stop: int) -> None:
        if task.step == 0:
            seen["predicted"] = cache[task.plan.predicted(0)][:]
        real_run(task, cache, start, stop)

    def look(task: StepTask, cache: FrameCache, frames: Sequence[int]) -> torch.Tensor | None:
        found = real(task, cache, frames)
        if task.step == 1:
            images = np.stack([seen["predicted"][max(0, i - 1) : i + 2].mean(axis=0).round() for i in frames])
            seen["expected"] = task.denoiser.encode(images.astype(np.uint8), Batches())
            seen["found"] = found
        return found

    monkeypatch.setattr(render_tasks.SmoothStepTask, "run", run)
    monkeypatch.setattr(render_tasks.StepTask, "clean_before", look)
    assert cli("run", make_job(**keys), "-q")[0] == 0
    torch.testing.assert_close(seen["found"], seen["expected"], atol=2e-2, rtol=0)  # a pixel may round the other way
