"""Valid files that cases are made from: clips, a job, and the caches of a finished and an interrupted run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from diffsynth_cli.console import QuietReporter
from stages.all_stages import all_stages, arrays, stages_of
from stages.annotators import ANNOTATORS, Weighted
from stages.base.arrays import Image as RGBImage
from stages.base.cache import FrameCache
from stages.base.engine import Engine, LocalEngine, Run, Task, run_stage
from stages.base.json_types import JsonObject
from stages.jobs.job_file import read_job
from stages.video import Encoding, encode

SIZE = 64  # px
FRAMES = 2
JOB: JsonObject = {
    "model_id": "mini", "controlnet_model_id": ["mini/canny"], "controlnet_processor": ["canny"],
    "input_video": "images", "output_path": "out", "prompt": "winter", "num_inference_steps": 1, "device": "cpu",
    "combine_pattern": [-1, 0],
}  # fmt: skip
OUTPUT = str(JOB["output_path"])
PLAIN = "plain"  # the folder with files that are not damaged
RUNS = ("finished", "interrupted")
CLIPS = {"a.mp4": "h264", "b.webm": "vp9", "c.mkv": "ffv1", "d.mov": "prores", "e.mkv": "h264"}


class _Stopped(Exception):
    """Interrupts a run, as if it had been killed."""


class _StoppingEngine(Engine):
    """Runs a number of chunks, then stops."""

    def __init__(self, chunks: int):
        self.left = chunks

    def map(self, task: Task, cache: FrameCache, chunks: Iterable[tuple[int, int]]) -> Generator[tuple[int, int]]:
        for done in LocalEngine().map(task, cache, chunks):
            if not self.left:
                raise _Stopped
            self.left -= 1
            yield done


@dataclass(frozen=True)
class Samples:
    """A folder with `images`, the CLIPS and `job.json`, copied in PLAIN, and with two runs of the job, RUNS."""

    folder: Path

    @classmethod
    def build(cls, folder: Path) -> Samples:
        for index in range(FRAMES):
            path = folder / "images" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(_picture(index)).save(path)
        for name, codec in CLIPS.items():
            encode(folder / name, map(_picture, range(8)), Encoding(Fraction(25), codec=codec))
        files = {name for model in ANNOTATORS.values() if issubclass(model, Weighted) for name in model.files}
        for path in (folder / "file.safetensors", *(folder / "weights" / name for name in files)):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({}, path)
        samples = cls(folder)
        samples.write_job(JOB, folder / "job.json")
        samples.copy(folder / PLAIN)
        for name, chunks in zip(RUNS, (1000, 3), strict=True):
            samples.run(folder / name, chunks)
        return samples

    def copy(self, folder: Path) -> None:
        """Copy what a job may need into a new folder."""
        shutil.copytree(self.folder / "images", folder / "images")
        for name in ("a.mp4", "file.safetensors", "job.json"):
            shutil.copy(self.folder / name, folder / name)
        (folder / "weights").symlink_to(self.folder / "weights")

    def write_job(self, job: JsonObject, path: Path) -> Path:
        """Write a job file and return its path."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(job))
        return path

    def run(self, folder: Path, chunks: int) -> None:
        """Run all stages of a job in `folder`, stopped after a number of chunks."""
        shutil.copytree(self.folder / "images", folder / "images")
        job, _ = read_job(self.write_job(JOB, folder / "job.json"), (), [*all_stages().values()])
        cache = FrameCache(folder / "out" / "cache.zarr", arrays=arrays())
        run = Run(job, cache, QuietReporter(), engine=_StoppingEngine(chunks), stages=stages_of(job))
        try:
            with run.cache.lock():
                for stage in run.stages.values():
                    run_stage(stage, run)
        except _Stopped:
            pass


def _picture(index: int) -> RGBImage:
    """Draw a frame of a small scene: a bright square crosses a gradient."""
    y, x = np.mgrid[:SIZE, :SIZE]
    image: RGBImage = np.stack([x * 255 // SIZE, y * 255 // SIZE, np.full_like(x, 128)], axis=2).astype(np.uint8)
    image[24:40, 4 * index : 4 * index + 16] = (250, 220, 40)
    return image
