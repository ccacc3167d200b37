"""Shared by all tests: the command line in this process, small videos, the tiny golden models."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from cv2.typing import MatLike

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may use the network
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the program does; tests run side by side

import cv2
import numpy as np
import pytest

from diffsynth_cli.__main__ import main
from stages.base.attributes import CHECKSUM
from stages.base.cache import FrameArray, FrameCache
from tests.object_stores import Server, moto_server, rclone_server
from tests.typing import Cli, Image, MakeJob, Render

ROUNDS = int(os.environ.get("CHAOS_ROUNDS", 1))  # of kills; `make chaos` has more
GOLDEN = Path(__file__).parent / "golden"
MODEL, CONTROLNET = GOLDEN / "models" / "sd", GOLDEN / "models" / "control0"
STAGES = ("extract", "control", "render", "deflicker")  # of a job without `upscale`


def scene(index: int, height: int = 64, width: int = 64) -> Image:
    """A frame of a small moving scene, uint8 [H, W, 3]: a disc crosses a gradient, a box rises."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 128)], axis=2).astype(np.uint8)
    cv2.circle(image, ((8 + 2 * index) % width, height // 3), height // 8, (250, 220, 40), -1)
    cv2.rectangle(
        image, (width // 2, height - 10 - index % height), (width // 2 + 12, height - index), (20, 40, 90), -1
    )
    return image


def write_images(folder: Path, images: Iterable[MatLike]) -> Path:
    """Write images as 0.png, 1.png, ... into a new folder and return the folder."""
    folder.mkdir(parents=True)
    for index, image in enumerate(images):
        cv2.imwrite(str(folder / f"{index}.png"), cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2BGR))
    return folder


def write_job(folder: Path, frames: int = 6, /, **keys: object) -> Path:
    """Write a job file for a folder of `frames` images. Keywords add or replace keys; `...` removes one."""
    frames = int(str(keys.pop("frames", frames)))
    images = folder / "images"
    if not images.exists():
        write_images(images, (scene(i) for i in range(frames)))
    job = {
        "model_id": str(MODEL), "controlnet_model_id": [str(CONTROLNET)], "controlnet_processor": ["canny"],
        "input_video": "images", "output_path": "out", "prompt": "winter", "num_inference_steps": 2,
    } | keys  # fmt: skip
    path = folder / "job.json"
    path.write_text(json.dumps({key: value for key, value in job.items() if value is not ...}))
    return path


def forget(array: FrameArray, *names: str) -> None:
    """Remove attributes of an array, as if an earlier version had made it, which noted no checksum either."""
    for name in (*names, CHECKSUM):
        del array.array.attrs[name]


@pytest.fixture
def make_job(tmp_path: Path) -> MakeJob:
    """`write_job` into the test's folder."""
    return partial(write_job, tmp_path)


@pytest.fixture
def render(tmp_path: Path, make_job: MakeJob, cli: Cli) -> Render:
    """Run a job with these keys into an output folder of its own and return the cache."""

    def run(name: str = "out", /, **keys: object) -> FrameCache:
        batch_size = keys.pop("batch_size", 2)
        job = make_job(**keys, output_path=name)
        assert cli("run", job, "-q", "--batch-size", batch_size) == (0, "")
        return FrameCache(tmp_path / name / "cache.zarr")

    return run


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run a command in this process and return its exit code and everything that it printed."""

    def run(*arguments: object) -> tuple[int, str]:
        code = main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return code, captured.out + captured.err

    return run


@pytest.fixture(scope="session")
def moto_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with moto_server(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(scope="session")
def rclone_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with rclone_server(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture
def moto(moto_process: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """An object store that checks the conditions of writes, and is set in the environment."""
    return _in_environment(moto_process, monkeypatch)


@pytest.fixture
def rclone(rclone_process: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """An object store that ignores the conditions of writes, and is set in the environment."""
    return _in_environment(rclone_process, monkeypatch)


def _in_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server
