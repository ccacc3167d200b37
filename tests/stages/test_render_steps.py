"""The arrays of denoising steps are written once and dropped when nothing reads them."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Never

import numpy as np
import pytest

from diffsynth_cli.failures import Interrupted
from stages.base import engine
from stages.base.cache import ArraySpec, FrameArray, FrameCache
from stages.base.engine import Chunk, Engine, LocalEngine, Options, Task
from stages.base.errors import DiffSynthError
from stages.base.overlap import OverlappedCache
from stages.diffusion import denoise
from stages.jobs.job import Job
from stages.rendering import preparation, work
from stages.rendering import tasks as render_tasks
from tests.conftest import MODEL
from tests.stages.test_render import SMOOTHED
from tests.typing import Cli, Keys, MakeJob, Render

CASES: dict[str, Keys] = {
    "plain": {"combine_pattern": [-1, 0, 1]},
    "img2img": {"img2img_strength": 0.9, "num_inference_steps": 6},
    "smoothed, looking back": {**SMOOTHED, "scheduler": "dpm++2m"},
    "kept": {**SMOOTHED, "keep_steps": True},
}
STEPS = {"num_inference_steps": 5, "guidance_scale": 1.0}
PATIENCE = 10  # s, after which a test that waits for another thread fails
GROUPS = ("step_latents", "step_clean", "step_predicted")


class LateWriter:
    """An engine with a worker that runs every chunk of step k again after step k+2, or after the last one.

    The worker also writes noise through arrays that it opened before they were dropped.

    `refused`: what its attempts ended with. `fullest`: how many arrays of each kind held frames at the same time.
    """

    def __init__(self) -> None:
        self.ordinary = LocalEngine.map
        self.ran: dict[int, list[tuple[bytes, Chunk]]] = {}
        self.opened: dict[str, FrameArray] = {}
        self.refused: list[str] = []
        self.fullest = dict.fromkeys(GROUPS, 0)

    def map(self, task: Task, cache: FrameCache, chunks: Iterable[Chunk]) -> Generator[Chunk]:
        step = getattr(task, "step", None)
        if step is None and self.ran:
            step = max(self.ran) + 3  # no step is left
        for late in [late for late in self.ran if step is not None and late <= step - 3]:
            self.write_again(cache, late)
        for chunk in self.ordinary(LocalEngine(), task, cache, chunks):
            if hasattr(task, "step"):
                self.ran.setdefault(task.step, []).append((pickle.dumps(task), chunk))
            self.look(cache)
            yield chunk

    def look(self, cache: FrameCache) -> None:
        for group in GROUPS:
            names = cache.arrays(f"{group}/*")
            self.opened |= {name: cache[name] for name in names}
            full = [name for name in names if any((cache.path / name).glob("c.*"))]
            self.fullest[group] = max(self.fullest[group], len(full))

    def write_again(self, cache: FrameCache, step: int) -> None:
        for task, chunk in self.ran.pop(step):
            try:
                pickle.loads(task).run(cache, *chunk)
            except DiffSynthError as error:
                self.refused.append(error.message)
        for name in [name for name in self.opened if name not in cache]:
            array = self.opened[name]
            array.write(0, np.full((1, *array.shape[1:]), 77, array.array.dtype))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_late_writer_changes_no_byte(case: str, render: Render, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "CHUNK", 2)
    keys = {"frames": 3, **STEPS, **CASES[case]}
    straight = render("straight", **keys)
    late = LateWriter()
    monkeypatch.setattr(LocalEngine, "map", lambda self, *arguments: late.map(*arguments))
    monkeypatch.setattr(LocalEngine, "run", Engine.run)
    disturbed = render("disturbed", **keys)
    assert late.ran == {} and (late.refused or case == "kept")
    assert all("is missing" in message for message in late.refused)
    for name in ("latents", "rendered", *straight.arrays("step_latents/*")):
        np.testing.assert_array_equal(straight[name][:], disturbed[name][:])
    folders = [{path.name for path in cache.path.iterdir()} for cache in (straight, disturbed)]
    assert folders[0] == folders[1] and ("step_latents" in folders[0]) == (case == "kept")
    assert late.fullest["step_latents"] == (4 if case == "kept" else 2)
    assert late.fullest["step_clean"] == (2 if case == "smoothed, looking back" else 0)
    assert late.fullest["step_predicted"] == ("smoother" in keys)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "half way", "after"])
def test_a_kill_while_an_array_is_dropped_changes_nothing(
    moment: str, render: Render, make_job: MakeJob, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "CHUNK", 2)
    keys = {"frames": 3, **STEPS, **CASES["smoothed, looking back"]}
    straight = render("straight", **keys)
    dropped: set[str] = set()
    real = FrameCache.remove

    def remove(cache: FrameCache, name: str) -> None:
        killed, folder = name.startswith(GROUPS) and name not in dropped, cache.path / name
        if killed:
            dropped.add(name)
        if killed and moment == "half way":
            for chunk in [folder / "zarr.json", *folder.glob("c.*")][:4]:
                chunk.unlink(missing_ok=True)
        if not killed or moment == "after":
            real(cache, name)
        if killed:
            raise Interrupted

    monkeypatch.setattr(FrameCache, "remove", remove)
    job = make_job(**keys, output_path="killed")
    while (code := cli("run", job, "-q", "--batch-size", 2)[0]) == 130:
        pass
    assert code == 0 and len(dropped) == 11  # 4 of latents, 4 of clean latents, 3 of predicted frames
    cache = FrameCache(job.parent / "killed/cache.zarr")
    for name in ("latents", "rendered"):
        np.testing.assert_array_equal(straight[name][:], cache[name][:])
    assert sorted(path.name for path in cache.path.iterdir()) == sorted(path.name for path in straight.path.iterdir())


@pytest.mark.parametrize(
    ("keys", "kinds"),
    [
        ({}, ["step_latents"]),
        ({"num_inference_steps": 1}, []),
        ({"img2img_strength": 0.5}, ["step_latents"]),
        ({"smoother": "TemporalMeanSmoother"}, ["step_latents", "step_predicted"]),
        ({"keep_steps": True}, ["step_latents"] * 3),
    ],
)
def test_disk_space_is_asked_for_what_is_there_at_once(keys: Keys, kinds: list[str]) -> None:
    given = {"model_id": "m", "prompt": "p", "input_video": "v", "output_path": "o", "num_inference_steps": 4}
    job = Job.model_validate({**given, **keys})
    plan = work.make_plan(job, Options(), (3, 64, 64), keys=(0, 1, 2), maps=())
    found = [spec.name.partition("/")[0] for spec in plan.most_at_once()]
    assert sorted(found) == sorted([*kinds, "latents", "rendered"])


def test_a_render_that_an_earlier_version_started_is_redone_only_when_asked(
    make_job: MakeJob, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier versions alternated between two arrays of latents, so their content is unknown."""
    job = make_job(**STEPS)

    def interrupted(task: Task, cache: FrameCache, start: int, stop: int) -> Never:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(render_tasks.StepTask, "run", interrupted)
        assert cli("run", job, "-q")[0] == 130
    cache = FrameCache(job.parent / "out/cache.zarr")
    for name in ("latents_other", "clean", "clean_other", "predicted", "latents_steps"):
        cache.create(ArraySpec(name, (6, 4, 8, 8), "float32"))
    code, output = cli("run", job)
    assert code == 1 and "was started by an earlier version" in output and f"render {job} --restart" in output
    assert cli("render", job, "-q", "--restart") == (0, "")
    assert "rendered" in cache and not any(name in cache for name in ("latents_other", "predicted", "latents_steps"))


def test_a_smoothing_step_that_an_earlier_version_started_is_redone_only_when_asked(
    make_job: MakeJob, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier versions smoothed and encoded frames one by one, so their marks stand for less."""
    job = make_job(**STEPS, **SMOOTHED)

    def interrupted(task: Task, cache: FrameCache, start: int, stop: int) -> Never:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(render_tasks.SmoothStepTask, "run", interrupted)
        assert cli("run", job, "-q")[0] == 130
    FrameCache(job.parent / "out/cache.zarr").record("render").mark("step 1/5 smooth", 0, 0.1)
    code, said = cli("run", job)
    assert code == 1 and "was started by an earlier version" in said and f"render {job} --restart" in said
    assert cli("render", job, "-q", "--restart") == (0, "")


def test_the_first_control_maps_are_read_while_networks_load(render: Render, monkeypatch: pytest.MonkeyPatch) -> None:
    loading: list[str] = []
    loaded: list[tuple[str, int]] = []
    real = FrameArray.read_stored

    def run(task: preparation.LoadTask, cache: FrameCache, start: int, stop: int) -> None:
        assert isinstance(cache, OverlappedCache)
        loading.extend(name for (name, _), read in cache.ahead.items() if len(read.result(PATIENCE)) == 9)

    def read_stored(array: FrameArray, indices: Sequence[int]) -> np.ndarray:
        if array.name.startswith("control/"):
            loaded.append((array.name, indices[0]))
        return real(array, indices)

    monkeypatch.setattr(preparation.LoadTask, "run", run)
    monkeypatch.setattr(FrameArray, "read_stored", read_stored)
    cache = render(frames=10, num_inference_steps=2, combine_pattern=[0, 1])
    assert loading == cache.arrays("control/*")
    assert loaded == [(loading[0], 0), (loading[0], 9)]  # once in two steps of two chunks, which share frame 8


def test_models_that_cannot_be_loaded_cost_no_earlier_result(make_job: MakeJob, cli: Cli, tmp_path: Path) -> None:
    shutil.copytree(MODEL, tmp_path / "model")
    assert cli("run", make_job(model_id="model"), "-q") == (0, "")
    config = tmp_path / "model/unet/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"in_channels": 9}))
    denoise.denoiser.cache_clear()
    code, output = cli("render", make_job(model_id="model"), "--restart")
    assert code == 1 and "model_id" in output
    cache = FrameCache(tmp_path / "out/cache.zarr")
    assert cache.record("render").complete and cache["rendered"][5].any()
