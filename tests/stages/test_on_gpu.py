"""All stages on a GPU, compared with the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stages.base.cache import FrameCache
from tests.typing import Cli, MakeJob

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


def test_a_gpu_smooths_frames_nearly_as_the_cpu_does(cli: Cli, make_job: MakeJob) -> None:
    job = make_job(6, dtype="float32", **SMOOTHED)
    on_cpu, on_gpu = frames(cli, job, "--device", "cpu"), frames(cli, job, "--device", "cuda")
    assert np.abs(on_gpu["deflickered"] - on_cpu["deflickered"]).mean() < 4


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_changes_little(cli: Cli, make_job: MakeJob, dtype: str) -> None:
    job = make_job(6)
    exact, half = (frames(cli, job, "--device", "cuda", "--dtype", name) for name in ("float32", dtype))
    assert np.abs(half["rendered"] - exact["rendered"]).mean() < 8
