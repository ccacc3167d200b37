"""Rendering with attention backends: which one runs, what is noted, and what a resume does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import TypeAlias

import numpy as np
import pytest
import torch

from diffsynth_cli.failures import Interrupted
from stages.base.cache import FrameCache
from stages.diffusion.attention import View
from stages.diffusion.attention_backends import AttentionBackend
from stages.diffusion.denoise import Denoiser
from stages.diffusion.prompts import Text
from stages.rendering import preparation
from stages.rendering import tasks as render_tasks
from tests.conftest import forget, scene, write_images
from tests.stages.passes import watch_passes
from tests.stages.test_render import assert_same
from tests.typing import Cli, MakeJob, Render

Measured: TypeAlias = Callable[[dict[str, float]], None]


@pytest.fixture(autouse=True)
def two_frames(tmp_path: Path) -> None:
    write_images(tmp_path / "images", (scene(i) for i in range(2)))


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of the backends that passes through the networks use."""
    names: set[str] = set()

    def look(latents: torch.Tensor, text: Text, view: View) -> None:
        assert isinstance(view.kernel, MethodType) and isinstance(view.kernel.__self__, AttentionBackend)
        names.add(view.kernel.__self__.name)

    watch_passes(monkeypatch, look)
    return names


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    """Let measurements find these seconds, as on a GPU."""

    def find(seconds: dict[str, float]) -> None:
        def measure(self: Denoiser, height: int, width: int, group: int, joint: bool) -> dict[str, float]:
            return seconds

        monkeypatch.setattr(Denoiser, "measure_backends", measure)

    return find


@pytest.fixture
def interrupted(tmp_path: Path, make_job: MakeJob, cli: Cli) -> Callable[..., FrameCache]:
    """Run a job that is interrupted after its first chunk of the first step, and return its cache."""

    def run(**keys: object) -> FrameCache:
        real, runs = render_tasks.StepTask.run, []

        def step(task: render_tasks.StepTask, cache: FrameCache, start: int, stop: int) -> None:
            runs.append(start)
            if len(runs) == 2:
                raise Interrupted
            real(task, cache, start, stop)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(render_tasks.StepTask, "run", step)
            assert cli("run", make_job(**keys, output_path="interrupted"), "-q", "--batch-size", 2)[0] == 130
        return FrameCache(tmp_path / "interrupted/cache.zarr")

    return run


@pytest.mark.parametrize("attention", ["joint", "shared"])
def test_on_a_cpu_auto_is_pytorchs_choice(attention: str, used: set[str], render: Render) -> None:
    keys = {"attention": attention, "combine_pattern": [-10000, -1, 0], "keep_steps": True}
    auto = render("auto", **keys)
    assert used == {"sdpa"} and auto["rendered"].attrs["attention_backend"] == "sdpa"
    assert_same(auto, render("sdpa", **keys, attention_backend="sdpa"))


@pytest.mark.parametrize("attention", ["joint", "shared"])
def test_a_backend_is_used_in_all_passes(attention: str, used: set[str], render: Render) -> None:
    keys = {"attention": attention, "combine_pattern": [-10000, -1, 0]}
    plain = render("math", **keys, attention_backend="math")
    assert used == {"math"} and plain["rendered"].attrs["attention_backend"] == "math"
    np.testing.assert_allclose(plain["latents"][:], render("sdpa", **keys)["latents"][:], rtol=1e-4, atol=1e-3)


def test_the_fastest_backend_is_used_and_noted(
    used: set[str], measured: Measured, tmp_path: Path, make_job: MakeJob, cli: Cli
) -> None:
    measured({"sdpa": 0.003, "math": 0.0012345, "flash": 0.002})
    code, said = cli("run", make_job(), "--batch-size", 2)
    assert code == 0 and used == {"math"}
    assert said.count("attention_backend: math is the fastest (sdpa 3 ms, math 1.23 ms, flash 2 ms)\n") == 1
    assert FrameCache(tmp_path / "out/cache.zarr")["rendered"].attrs["attention_backend"] == "math"


def test_what_was_not_measured_is_not_reported(make_job: MakeJob, cli: Cli) -> None:
    code, said = cli("run", make_job(), "--batch-size", 2)
    assert code == 0 and "attention_backend" not in said


def test_a_resume_stays_with_the_backend_that_was_chosen(
    used: set[str], measured: Measured, interrupted: Callable[..., FrameCache], render: Render
) -> None:
    measured({"math": 1.0, "flash": 2.0})
    straight = render("straight", keep_steps=True)
    interrupted(keep_steps=True)
    measured({"math": 2.0, "flash": 1.0})
    assert_same(straight, render("interrupted", keep_steps=True))
    assert used == {"math"}


def test_a_resume_of_an_interrupted_measurement_measures(
    used: set[str], measured: Measured, make_job: MakeJob, cli: Cli, render: Render, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(task: preparation.ChooseBackendTask, cache: FrameCache, start: int, stop: int) -> None:
        raise Interrupted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation.ChooseBackendTask, "run", interrupt)
        assert cli("run", make_job(), "-q", "--batch-size", 2)[0] == 130
    measured({"math": 1.0, "sdpa": 2.0})
    assert render()["rendered"].attrs["attention_backend"] == "math" and used == {"math"}


def test_a_render_that_an_earlier_version_began_resumes_with_pytorchs_choice(
    used: set[str], measured: Measured, interrupted: Callable[..., FrameCache], render: Render
) -> None:
    begun = interrupted()
    forget(begun["rendered"], "attention_backend", "attention_seconds")
    measured({"math": 1.0, "sdpa": 2.0})
    render("interrupted")
    assert used == {"sdpa"}


def test_a_resume_can_name_another_backend(
    used: set[str], interrupted: Callable[..., FrameCache], render: Render
) -> None:
    interrupted()
    used.clear()
    render("interrupted", attention_backend="flash")
    assert used == {"flash"}


def test_a_resume_where_the_noted_backend_cannot_run_says_what_to_do(
    interrupted: Callable[..., FrameCache], make_job: MakeJob, cli: Cli, render: Render
) -> None:
    interrupted()["rendered"].note(attention_backend="cudnn")
    code, said = cli("run", make_job(output_path="interrupted"), "-q", "--device", "cpu")
    assert code == 2 and "attention_backend: cudnn needs an NVIDIA GPU" in said and "use sdpa" in said
    render("interrupted", attention_backend="sdpa")
