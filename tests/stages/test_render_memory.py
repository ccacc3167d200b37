"""Rendering with little memory, in other batches, or compiled: that may take longer, but gives the same result."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffsynth_cli.__main__ import Interrupted
from stages import render as stage
from stages.base.cache import FrameCache
from stages.diffusion import compilation, denoise
from tests.conftest import CONTROLNET
from tests.stages.test_render import POOLING_CONTROLNET, assert_same


@pytest.fixture
def short_of_memory(monkeypatch):
    """From now on, so many latents at most go through the networks at once; gives a list of those that are tried, with
    the passes of guidance that they are of."""
    real = denoise.Denoiser._predict

    def limit(most: int) -> list[tuple[int, int]]:
        tried = []

        def predict(self, latents, embedded, timestep, text, view):
            tried.append((len(latents) * len(text), len(text)))
            if tried[-1][0] > most:
                raise torch.OutOfMemoryError
            return real(self, latents, embedded, timestep, text, view)

        monkeypatch.setattr(denoise.Denoiser, "_predict", predict)
        denoise.denoiser.cache_clear()
        return tried

    yield limit
    denoise.denoiser.cache_clear()


def test_batches_are_halved_and_passes_taken_apart_when_memory_runs_out(render, short_of_memory, make_job, cli):
    keys = {"combine_pattern": [-1, 0], "controlnet_model_id": [str(CONTROLNET), str(POOLING_CONTROLNET)]}
    keys |= {"controlnet_processor": ["tile", "tile"], "controlnet_scale": [1, 1]}
    whole = render("whole", batch_size=4, **keys)["latents"][:]
    for most, expected in ((8, [(16, 2), (8, 2), (8, 2)]), (2, [(16, 2), (8, 2), (4, 2), (2, 1), (2, 1), (2, 1)])):
        tried = short_of_memory(most)
        less = render(f"at most {most}", batch_size=4, **keys)["latents"][:]
        assert tried[: len(expected)] == expected
        np.testing.assert_allclose(whole, less, rtol=1e-4, atol=1e-3)
    short_of_memory(1)
    code, said = cli("run", make_job(**keys, output_path="none"))
    assert code == 1 and "Out of memory" in said


@pytest.mark.parametrize("most", [8, 2])  # latents: half the batch; one frame's group, and one pass at a time
def test_a_render_that_ran_out_of_memory_goes_on_in_its_smaller_batches(
    most, render, short_of_memory, make_job, cli, monkeypatch
):
    keys = {"combine_pattern": [-1, 0], "keep_steps": True}
    short_of_memory(most)
    straight = render("straight", batch_size=4, **keys)
    real, runs = stage.StepTask.run, []

    def run(task, cache, start, stop):
        runs.append(start)
        if len(runs) == 2:
            raise Interrupted
        real(task, cache, start, stop)

    tried = short_of_memory(most)
    monkeypatch.setattr(stage.StepTask, "run", run)
    job = make_job(**keys, output_path="interrupted")
    assert cli("run", job, "-q", "--batch-size", 4)[0] == 130 and tried[0] == (16, 2)
    tried = short_of_memory(1000)  # there is memory again
    interrupted = render("interrupted", batch_size=4, **keys)
    assert tried and all(size <= most for size, _ in tried)
    assert_same(straight, interrupted)


def test_windows_of_shared_attention_take_passes_apart_when_memory_runs_out(render, short_of_memory):
    keys = {"attention": "shared", "combine_pattern": [-10000, -1, 0]}
    whole = render("whole", **keys)["latents"][:]
    tried = short_of_memory(len(whole))
    less = render("less", **keys)["latents"][:]
    assert tried[:4] == [(2, 2), (2 * len(whole), 2), (1, 1), (len(whole), 1)]  # the anchor first, each time
    np.testing.assert_allclose(whole, less, rtol=1e-4, atol=1e-3)


def test_compiled_networks_give_the_same_and_stay_compiled(render, make_job, cli, tmp_path, monkeypatch):
    monkeypatch.setattr(compilation, "BACKEND", "eager")  # captured and guarded, but not built: that takes minutes
    plain = render("plain")["latents"][:]
    real, runs = stage.StepTask.run, []

    def run(task, cache, start, stop):
        runs.append(task.plan.settings.compiled)
        if len(runs) == 2:
            raise Interrupted
        real(task, cache, start, stop)

    monkeypatch.setattr(stage.StepTask, "run", run)
    job = make_job(output_path="compiled")
    assert cli("run", job, "-q", "--batch-size", 2, "--compile")[0] == 130
    compiled = render("compiled")["latents"][:]
    assert all(runs)
    np.testing.assert_allclose(plain, compiled, atol=1e-4)


def test_a_machine_that_cannot_compile_says_so(make_job, cli, monkeypatch):
    def fail(function, backend):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", fail)
    denoise.denoiser.cache_clear()
    code, said = cli("run", make_job(), "--compile")
    assert code == 1 and "--compile" in said and "no C++ compiler" in said


def test_a_render_goes_on_in_the_batches_it_was_begun_with(render):
    assert render(batch_size=3)["rendered"].attrs["batch_size"] == 3


def test_networks_that_wait_on_the_host_change_nothing(render, make_job, cli, tmp_path):
    keys = {"smoother": "TemporalMeanSmoother", "vae_tiling": True}
    whole = render("whole", **keys)
    assert cli("run", make_job(**keys, output_path="low"), "-q", "--batch-size", 2, "--low-vram") == (0, "")
    low = FrameCache(tmp_path / "low/cache.zarr")
    np.testing.assert_array_equal(whole["rendered"][:], low["rendered"][:])
