"""Rendering with little memory, in other batches or compiled gives the same result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Never, TypeAlias

import numpy as np
import pytest
import torch

from diffsynth_cli.failures import Interrupted
from stages.base.cache import FrameCache
from stages.diffusion import denoise
from stages.diffusion.attention import View
from stages.diffusion.prompts import Text
from stages.models import compiler
from stages.rendering import tasks as render_tasks
from tests.conftest import CONTROLNET
from tests.stages.passes import watch_passes
from tests.stages.test_render import POOLING_CONTROLNET, assert_same
from tests.typing import Cli, MakeJob, Render

Tried: TypeAlias = list[tuple[int, int]]
"""Latents of each pass that was tried, and how many passes of guidance they belong to."""


@pytest.fixture
def short_of_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Tried]]:
    """Let passes of more than so many latents run out of memory, and return a list of the passes that were tried."""

    def limit(most: int) -> Tried:
        tried: Tried = []

        def look(latents: torch.Tensor, text: Text, view: View) -> None:
            tried.append((len(latents) * text.passes, text.passes))
            if tried[-1][0] > most:
                raise torch.OutOfMemoryError

        watch_passes(monkeypatch, look)
        denoise.denoiser.cache_clear()
        return tried

    yield limit
    denoise.denoiser.cache_clear()


@pytest.mark.slow
def test_batches_are_halved_and_passes_separated_when_memory_runs_out(
    render: Render, short_of_memory: Callable[[int], Tried], make_job: MakeJob, cli: Cli
) -> None:
    keys = {"frames": 4, "combine_pattern": [-1, 0], "controlnet_model_id": [str(CONTROLNET), str(POOLING_CONTROLNET)]}
    keys |= {"controlnet_processor": ["tile", "tile"], "controlnet_scale": [1, 1]}
    whole = render("whole", batch_size=4, **keys)["latents"][:]
    for most, expected in ((8, [(16, 2), (8, 2), (8, 2)]), (2, [(16, 2), (8, 2), (4, 2), (2, 1), (2, 1), (2, 1)])):
        tried = short_of_memory(most)
        less = render(f"at most {most}", batch_size=4, **keys)["latents"][:]
        assert tried[: len(expected)] == expected
        np.testing.assert_allclose(whole, less, rtol=1e-4, atol=1e-3)
    short_of_memory(1)
    code, output = cli("run", make_job(**keys, output_path="none"))
    assert code == 1 and "Out of memory" in output


@pytest.mark.slow
@pytest.mark.parametrize("most", [8, 2])  # latents: half the batch; one frame's group, and one pass at a time
def test_a_render_that_ran_out_of_memory_resumes_in_smaller_batches(
    most: int,
    render: Render,
    short_of_memory: Callable[[int], Tried],
    make_job: MakeJob,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = {"combine_pattern": [-1, 0], "keep_steps": True}
    short_of_memory(most)
    straight = render("straight", batch_size=4, **keys)
    real, runs = render_tasks.StepTask.run, []

    def run(task: render_tasks.StepTask, cache: FrameCache, start: int, stop: int) -> None:
        runs.append(start)
        if len(runs) == 2:
            raise Interrupted
        real(task, cache, start, stop)

    tried = short_of_memory(most)
    monkeypatch.setattr(render_tasks.StepTask, "run", run)
    job = make_job(**keys, output_path="interrupted")
    assert cli("run", job, "-q", "--batch-size", 4)[0] == 130 and tried[0] == (16, 2)
    tried = short_of_memory(1000)  # there is memory again
    interrupted = render("interrupted", batch_size=4, **keys)
    assert tried and all(size <= most for size, _ in tried)
    assert_same(straight, interrupted)


def test_shared_attention_separates_passes_when_memory_runs_out(
    render: Render, short_of_memory: Callable[[int], Tried]
) -> None:
    keys = {"attention": "shared", "combine_pattern": [-10000, -1, 0]}
    whole = render("whole", **keys)["latents"][:]
    tried = short_of_memory(len(whole))
    less = render("less", **keys)["latents"][:]
    assert tried[:4] == [(2, 2), (2 * len(whole), 2), (1, 1), (len(whole), 1)]  # the anchor first, each time
    np.testing.assert_allclose(whole, less, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_compiled_networks_give_the_same_and_stay_compiled(
    render: Render, make_job: MakeJob, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "BACKEND", "eager")  # captured and guarded, but not built: that takes minutes
    plain = render("plain", frames=2)["latents"][:]
    real, runs = render_tasks.StepTask.run, []

    def run(task: render_tasks.StepTask, cache: FrameCache, start: int, stop: int) -> None:
        runs.append(task.plan.settings.compiled)
        if len(runs) == 2:
            raise Interrupted
        real(task, cache, start, stop)

    monkeypatch.setattr(render_tasks.StepTask, "run", run)
    job = make_job(output_path="compiled")
    assert cli("run", job, "-q", "--batch-size", 2, "--compile")[0] == 130
    compiled = render("compiled")["latents"][:]
    assert all(runs)
    np.testing.assert_allclose(plain, compiled, atol=1e-4)


def test_a_machine_that_cannot_compile_says_so(make_job: MakeJob, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(function: object, backend: object) -> Never:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", fail)
    denoise.denoiser.cache_clear()
    code, output = cli("run", make_job(), "--compile")
    assert code == 1 and "--compile" in output and "no C++ compiler" in output


def test_a_render_records_its_batch_size_to_resume_with(render: Render) -> None:
    assert render(frames=1, batch_size=3)["rendered"].attrs["batch_size"] == 3


def test_offloaded_networks_give_the_same_frames(render: Render, make_job: MakeJob, cli: Cli, tmp_path: Path) -> None:
    keys = {"frames": 2, "smoother": "TemporalMeanSmoother", "vae_tiling": True}
    whole = render("whole", **keys)
    assert cli("run", make_job(**keys, output_path="low"), "-q", "--batch-size", 2, "--low-vram") == (0, "")
    low = FrameCache(tmp_path / "low/cache.zarr")
    np.testing.assert_array_equal(whole["rendered"][:], low["rendered"][:])
