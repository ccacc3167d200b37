"""Tasks of all stages give the same bytes in any order and after pickling."""

from __future__ import annotations

import importlib
import pickle
import pkgutil
import random
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import pytest
from transformers import AutoModelForDepthEstimation

import stages
from stages import tasks
from stages.base.cache import FrameCache
from stages.base.engine import Chunk, Engine, LocalEngine, Task
from stages.base.overlap import OverlappedArray, OverlappedCache, Reads
from stages.diffusion import denoise
from stages.diffusion.loading import load_networks
from stages.tasks import read_ahead
from tests.conftest import CONTROLNET, scene, write_images
from tests.stages.annotators.random_weights import write_depth_model
from tests.typing import Cli, Keys, MakeJob

P = ParamSpec("P")
T = TypeVar("T")

FRAMES = 18  # three chunks in most phases
RENDERED = {
    "DecodeTask", "LoadTask", "ChooseBackendTask", "MeasureTask", "StepTask", "DecodeLatentsTask", "EncodeTask",
}  # fmt: skip
JOBS: dict[str, tuple[Keys, set[str]]] = {
    "every frame": (
        {
            "controlnet_processor": [
                "canny",
                {"name": "file", "path": "maps", "references": "reference"},
                {"name": "depth_video", "model": "./depth"},
            ],
            "frames_reference": ["reference/0.png"],
            "combine_pattern": ["reference_0", -1, 0, 1],
            "scenes": [5, 14],
            "img2img_strength": 0.7,
            "num_inference_steps": 3,
            "scheduler": "dpm++2m",
            "smoother": "PatchBlendSmoother",
            "smoother_config": {"window": 2, "detail": 1},
            "smoother_interval": 2,
            "post_smoother": "PySynthSmoother",
            "post_smoother_config": {"speed": "fastest", "window_size": 2},
            "keep_steps": True,
        },
        {
            *RENDERED, "AnnotateTask", "LookTask", "DrawTask", "EncodeReferencesTask", "NoiseFramesTask",
            "SmoothStepTask", "SmoothTask",
        },
    ),
    "keyframes, shared attention": (
        {"attention": "shared", "combine_pattern": [-10000, -1, 0], "keyframes": 3, "scenes": [7]},
        {*RENDERED, "AnnotateTask", "PaintTask", "PassTask"},
    ),
    "masks, regions and moving noise": (
        {
            "mask": "maps", "regions": [{"mask": "maps", "prompt": "night"}], "noise": "warped", "scheduler": "lcm",
            "guidance_scale": 1.0, "scenes": [7], "prompt": {"2": "spring", "6": "winter"}, "combine_pattern": [-1, 0],
        },
        {*RENDERED, "AnnotateTask", "FollowMotionTask", "LinkChunksTask", "EncodeFramesTask", "PassTask"},
    ),
    "a second pass": (
        {
            "upscale": {"factor": 1.5, "strength": 0.5, "steps": 4, "tile": 64, "model": str(CONTROLNET)},
            "frames_reference": ["reference/0.png"], "combine_pattern": ["reference_0", -1, 0], "keyframes": 2,
            "noise": "warped", "mask": "maps", "scenes": [7],
        },
        {
            *RENDERED, "AnnotateTask", "EncodeReferencesTask", "FollowMotionTask", "LinkChunksTask", "EncodeFramesTask",
            "EnlargeTask", "PaintTask", "PassTask", "PrefixedTask",
        },
    ),
}  # fmt: skip
CALLS: dict[str, tuple[list[object], set[str]]] = {
    "smooth": (["guide", "style", "--window", 2, "--detail", 1, "--scenes", "5,14"], {"DecodeTask", "SmoothTask"}),
    "interpolate": (["guide", "keys", "--mode", "interpolate"], {"DecodeTask", "PaintTask"}),
}


class Workers:
    """An engine with two workers that take chunks in random order, each with its own copy of the task.

    `ran`: the names of the tasks that ran.
    """

    def __init__(self) -> None:
        self.chance = random.Random(0)
        self.ran: set[str] = set()

    def map(self, task: Task, cache: FrameCache, chunks: Iterable[Chunk]) -> Generator[Chunk]:
        self.ran.add(type(task).__name__)
        workers = [pickle.loads(pickle.dumps(task)) for _ in range(2)]
        shuffled = list(chunks)
        self.chance.shuffle(shuffled)
        for start, stop in shuffled:
            self.chance.choice(workers).run(cache, start, stop)
            yield start, stop
        for worker in workers:
            worker.close()
            pickle.dumps(worker)  # close() dropped everything that does not pickle


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Workers]:
    """Run the chunks of all stages on two workers once this is called."""

    def use() -> Workers:
        engine = Workers()
        monkeypatch.setattr(LocalEngine, "map", lambda self, *arguments: engine.map(*arguments))
        monkeypatch.setattr(LocalEngine, "run", Engine.run)
        return engine

    return use


@pytest.fixture
def footage(tmp_path: Path) -> Path:
    """The input files of all jobs and calls."""
    images = [scene(i) for i in range(FRAMES)]
    write_images(tmp_path / "guide", images)
    write_images(tmp_path / "maps", [scene(i + 50) for i in range(FRAMES)])
    write_images(
        tmp_path / "style", [(image * (0.8 + 0.1 * (i % 3))).astype("uint8") for i, image in enumerate(images)]
    )
    write_images(tmp_path / "reference", [scene(40)])
    write_images(tmp_path / "keys", [scene(0), scene(10)])
    (tmp_path / "keys/1.png").rename(tmp_path / "keys/10.png")
    write_depth_model(tmp_path / "depth")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    """All frames in a folder, and all videos."""
    files = sorted(path for path in folder.rglob("*") if path.name.startswith("c.") or path.suffix in (".png", ".mp4"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] if case == "every frame" else []) for case in JOBS]
)
def test_a_job_gives_the_same_bytes_in_any_order(
    case: str, footage: Path, make_job: MakeJob, cli: Cli, workers: Callable[[], Workers]
) -> None:
    keys, tasks = JOBS[case]
    nets = len(keys.get("controlnet_processor", ["canny"]))
    keys = {"controlnet_model_id": [str(CONTROLNET)] * nets, **keys}
    assert cli("run", make_job(FRAMES, **keys, output_path="ordered"), "-q") == (0, "")
    engine = workers()
    assert cli("run", make_job(FRAMES, **keys, output_path="shuffled"), "-q") == (0, "")
    assert engine.ran == tasks
    ordered = contents(footage / "ordered")
    assert len(ordered) > 3 * FRAMES and ordered == contents(footage / "shuffled")


@pytest.mark.slow
@pytest.mark.parametrize("case", JOBS)
def test_tasks_announce_what_they_read(
    case: str, footage: Path, make_job: MakeJob, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise frames would be read in vain, or while the networks wait."""
    announced: set[tuple[str, tuple[int, ...]]] = set()
    made: set[tuple[str, tuple[int, ...]]] = set()
    read_ahead, read = OverlappedCache.read_ahead, OverlappedArray.read

    def watched_read_ahead(self: OverlappedCache, *chunks: Reads) -> None:
        announced.update((name, tuple(indices)) for reads in chunks for name, indices in reads)
        read_ahead(self, *chunks)

    def watched_read(self: OverlappedArray, indices: Iterable[int]) -> np.ndarray:
        indices = tuple(indices)
        made.add((self.name, indices))
        return read(self, indices)

    monkeypatch.setattr(OverlappedCache, "read_ahead", watched_read_ahead)
    monkeypatch.setattr(OverlappedArray, "read", watched_read)
    keys, _ = JOBS[case]
    nets = len(keys.get("controlnet_processor", ["canny"]))
    assert cli("run", make_job(FRAMES, controlnet_model_id=[str(CONTROLNET)] * nets, **keys), "-q") == (0, "")
    assert announced and announced <= made
    assert ("smoother" in keys) == any("step_predicted/" in name for name, _ in announced)
    at_once = {name for name, indices in made - announced if len(indices) > 1}  # the others are read one by one
    known = ("measures/", "notes/", "deflickered")  # a segment of the video is too long to be read ahead
    assert {name for name in at_once if not name.startswith(known)} == set()


def test_only_the_engine_loads_models(
    footage: Path, make_job: MakeJob, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planning a job needs neither a GPU nor the memory for its models."""
    ordinary, inside = LocalEngine.map, [False]
    loaded: list[bool] = []

    def observed(self: LocalEngine, task: Task, cache: FrameCache, chunks: Iterable[Chunk]) -> Generator[Chunk]:
        for chunk in chunks:
            inside[0] = True
            list(ordinary(self, task, cache, [chunk]))
            inside[0] = False
            yield chunk

    def watched(load: Callable[P, T]) -> Callable[P, T]:
        def call(*arguments: P.args, **keys: P.kwargs) -> T:
            loaded.append(inside[0])
            return load(*arguments, **keys)

        return call

    monkeypatch.setattr(LocalEngine, "map", observed)
    monkeypatch.setattr(LocalEngine, "run", Engine.run)
    monkeypatch.setattr(denoise, "load_networks", watched(load_networks))
    depth = AutoModelForDepthEstimation
    monkeypatch.setattr(depth, "from_pretrained", watched(depth.from_pretrained))
    denoise.denoiser.cache_clear()
    processor = {"name": "depth_video", "model": "./depth"}
    job = make_job(FRAMES, controlnet_processor=[processor], controlnet_model_id=[str(CONTROLNET)])
    assert cli("run", job, "-q") == (0, "")
    assert len(loaded) > 1 and all(loaded)


@pytest.mark.slow
@pytest.mark.parametrize("case", CALLS)
def test_smoothing_two_videos_gives_the_same_bytes_in_any_order(
    case: str, footage: Path, cli: Cli, workers: Callable[[], Workers]
) -> None:
    (guide, style, *options), tasks = CALLS[case]
    arguments = ("smooth", footage / str(guide), footage / str(style), *options, "--offset", 0)
    assert cli(*arguments, "-o", footage / "ordered", "-q")[0] == 0
    engine = workers()
    assert cli(*arguments, "-o", footage / "shuffled", "-q")[0] == 0
    assert engine.ran == tasks
    ordered = contents(footage / "ordered")
    assert len(ordered) == FRAMES and ordered == contents(footage / "shuffled")


def test_frames_are_read_ahead_one_by_one() -> None:
    reads: list[int] = []

    class Watched(list[np.ndarray]):
        def __getitem__(self, index: Any) -> Any:
            reads.append(index)
            return super().__getitem__(index)

    images = [scene(k) for k in range(6)]
    frames = read_ahead(Watched(images))
    np.testing.assert_array_equal(frames[1], images[1])
    np.testing.assert_array_equal(frames[2], images[2])
    np.testing.assert_array_equal(frames[-1], images[5])
    assert len(frames) == 6 and reads[:4] == [1, 2, 3, 5]
    np.testing.assert_array_equal(np.stack(frames[1:4]), np.stack(images[1:4]))
    np.testing.assert_array_equal(np.stack(list(frames)), np.stack(images))
    with pytest.raises(IndexError):
        frames[6]
    assert sorted(reads) == [0, 1, 2, 3, 4, 5]  # each once


def test_large_frames_are_read_again_to_bound_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "KEPT_BYTES", 5 * scene(0).nbytes)
    reads: list[int] = []

    class Watched(list[np.ndarray]):
        def __getitem__(self, index: Any) -> Any:
            reads.append(index)
            return super().__getitem__(index)

    frames = read_ahead(Watched(scene(k) for k in range(9)))
    for index in (0, 1, 2, 3, 0, 8):  # the last five of 0 to 4 are kept
        frames[index]
    assert reads == [0, 1, 2, 3, 4, 8]
    frames[2]
    assert reads == [0, 1, 2, 3, 4, 8, 2]


def test_these_cases_run_every_task() -> None:
    for module in pkgutil.walk_packages(stages.__path__, "stages."):
        importlib.import_module(module.name)
    assert names(Task) == {name for _, tasks in (*JOBS.values(), *CALLS.values()) for name in tasks}


def names(kind: type) -> set[str]:
    """The names of all subclasses that can run."""
    found = {kind.__name__} if "run" in vars(kind) and kind is not Task else set()
    below: list[type] = kind.__subclasses__()
    return found.union(*(names(other) for other in below if other.__module__.startswith("stages.")))
