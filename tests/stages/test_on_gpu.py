"""All stages on a GPU, compared with the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stages.annotators.pretrained import FILES
from stages.annotators.tracking import Tracker
from stages.base.cache import FrameCache
from stages.models.weights import Weights
from stages.video import save_png
from tests.conftest import scene
from tests.stages.annotators.people_networks import write_sam
from tests.typing import Cli, Image, Keys, MakeJob

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SMOOTHED = {"smoother": "PatchBlendSmoother", "smoother_interval": 1, "post_smoother": "PatchBlendSmoother"}


def frames(cli: Cli, job: Path, *options: str) -> dict[str, np.ndarray]:
    """Run a job anew and return its rendered and deflickered frames."""
    code, output = cli("run", job, "--restart", *options)
    assert code == 0, output
    cache = FrameCache(job.parent / "out" / "cache.zarr")
    return {name: cache[name][:].astype(int) for name in ("rendered", "deflickered") if name in cache}


@pytest.mark.parametrize("attention", ["joint", "shared"])
@pytest.mark.parametrize("option", ["--batch-size=1", "--batch-size=64", "--low-vram"])
def test_a_gpu_renders_what_the_cpu_renders(cli: Cli, make_job: MakeJob, attention: str, option: str) -> None:
    job = make_job(6, attention=attention, combine_pattern=[-1, 0, 1], dtype="float32")
    on_cpu, on_gpu = frames(cli, job, "--device", "cpu"), frames(cli, job, "--device", "cuda", option)
    assert np.abs(on_gpu["rendered"] - on_cpu["rendered"]).max() <= 2


def right_half() -> Image:
    """A mask of the size of `scene` that is white on the right."""
    mask = np.zeros((64, 64, 3), np.uint8)
    mask[:, 32:] = 255
    return mask


@pytest.mark.parametrize("attention", ["joint", "shared"])
@pytest.mark.parametrize(
    "keys",
    [
        {"noise": "warped", "scheduler": "lcm", "guidance_scale": 1.0},
        {"mask": "mask.png"},
        {"regions": [{"mask": "mask.png", "prompt": "night"}], "prompt_weighting": "a1111"},
        {"prompt": {"0": "spring", "5": "winter"}, "guidance_end": 0.5},
        {"guess_mode": True, "controlnet_end": [0.5]},
        {"upscale": {"factor": 1.5, "strength": 0.5, "steps": 4, "tile": 64}},
    ],
    ids=lambda keys: next(iter(keys)),
)
def test_what_steers_the_result_does_the_same_on_a_gpu(
    cli: Cli, make_job: MakeJob, tmp_path: Path, keys: Keys, attention: str
) -> None:
    save_png(tmp_path / "mask.png", right_half(), "")
    job = make_job(6, attention=attention, combine_pattern=[-1, 0, 1], dtype="float32", **keys)
    on_cpu, on_gpu = frames(cli, job, "--device", "cpu"), frames(cli, job, "--device", "cuda")
    assert np.abs(on_gpu["deflickered"] - on_cpu["deflickered"]).max() <= 2


def test_a_gpu_follows_what_the_cpu_follows(tmp_path: Path) -> None:
    weights = Weights("model", str(write_sam(tmp_path)), FILES)
    images = [scene(index, 48, 80) for index in range(20)]
    on_cpu, on_gpu = (np.stack([*Tracker(weights, [(30, 20)], [], device).masks(images)]) for device in ("cpu", "cuda"))
    assert np.mean(on_cpu != on_gpu) < 0.01


def test_a_gpu_smooths_frames_nearly_as_the_cpu_does(cli: Cli, make_job: MakeJob) -> None:
    job = make_job(6, dtype="float32", **SMOOTHED)
    on_cpu, on_gpu = frames(cli, job, "--device", "cpu"), frames(cli, job, "--device", "cuda")
    assert np.abs(on_gpu["deflickered"] - on_cpu["deflickered"]).mean() < 4


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_changes_little(cli: Cli, make_job: MakeJob, dtype: str) -> None:
    job = make_job(6)
    exact, half = (frames(cli, job, "--device", "cuda", "--dtype", name) for name in ("float32", dtype))
    assert np.abs(half["rendered"] - exact["rendered"]).mean() < 8
