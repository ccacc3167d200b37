"""How much of a render's time is not spent in networks, on a machine without a GPU.

    python -m benchmarks.waits [--frames 32] [--size 512 960] [--steps 3] [--repeat 3]

Networks and the smoother are replaced by waits of about the length that they take on an H100, so
that the CPU is free for everything else, as it is next to a GPU. `outside` is the share of the time
that is spent in neither. The smoothed rows smooth the first step.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar
from unittest.mock import patch

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.lengths import DECODE, ENCODE, JOINT, SHARED, SMOOTH
from benchmarks.render import PATTERNS, write_job
from benchmarks.stages import MODELS, make_clip
from stages.all_stages import arrays, stages_of
from stages.base.arrays import Images
from stages.base.cache import FrameCache
from stages.base.engine import Options, Run, run_stage
from stages.base.json_types import JsonObject
from stages.base.record import CACHE_NAME
from stages.base.reporting import Reporter
from stages.diffusion import denoise
from stages.diffusion.attention import View
from stages.diffusion.denoise import Denoiser
from stages.diffusion.loading import load_networks
from stages.diffusion.prompts import Text
from stages.diffusion.settings import Batches, Settings
from stages.jobs.job import Job
from stages.jobs.job_file import read_job
from stages.render import STAGE
from stages.smoothers import SMOOTHERS, Frames, SmootherOptions

GROUP, BATCH = 3, 8

CASES: dict[str, JsonObject] = {
    "joint": {"attention": "joint"},
    "shared": {"attention": "shared"},
    "joint, smoothed": {"attention": "joint", "smoother": "waiting"},
    "shared, smoothed": {"attention": "shared", "smoother": "waiting"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--size", type=int, nargs=2, default=(512, 960), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=3, help="runs of each case, of which the fastest counts")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    given = parser.parse_args()
    given.device = "cpu"
    torch.set_num_threads(1)  # as much as the sampler's arithmetic would need beside a GPU
    table = Table(title=f"{given.frames} frames of {given.size[1]}×{given.size[0]}, {given.steps} steps")
    for heading in ("", "s in steps", "outside", "s in decoding", "outside", "encoded"):
        table.add_column(heading, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        clip = make_clip(Path(folder) / "clip.mp4", given.frames, *given.size)
        keys: JsonObject = {"combine_pattern": [*PATTERNS[GROUP]], "smoother_interval": given.steps}
        job, _ = read_job(write_job(Path(folder), MODELS, clip, "waits", given, **keys))
        for case in given.cases:
            table.add_row(case, *row(job.model_copy(update=CASES[case]), given.repeat))
    Console().print(table)


def row(job: Job, repeat: int) -> tuple[str, ...]:
    best = min((measure(job) for _ in range(repeat)), key=lambda clock: clock.spent["steps"])
    shares = [f"{100 * (1 - best.waited[part] / best.spent[part]):.1f} %" for part in ("steps", "decode")]
    seconds = [f"{best.spent[part]:.2f}" for part in ("steps", "decode")]
    return seconds[0], shares[0], seconds[1], shares[1], str(best.encoded)


def measure(job: Job) -> Clock:
    """Render a job with waits in place of networks."""
    cache, clock = FrameCache(Path(job.output_path) / CACHE_NAME, arrays=arrays()), Clock()
    with replaced_networks(clock, job.attention == "joint"), cache.lock():
        run_stage(STAGE, Run(job, cache, clock, Options(BATCH), stages=stages_of(job)), restart=True)
    return clock


# -- waits -------------------------------------------------------------------------------------------------------------


@dataclass
class Clock(Reporter):
    """Measures the seconds of denoising steps and of decoding, and how many of these were waits.

    `encoded`: how many batches of images were encoded.
    """

    spent: dict[str, float] = field(default_factory=lambda: {"start": 0.0, "steps": 0.0, "decode": 0.0})
    waited: dict[str, float] = field(default_factory=lambda: {"start": 0.0, "steps": 0.0, "decode": 0.0})
    encoded: int = 0
    part: str = "start"
    began: float = field(default_factory=time.perf_counter)

    def phase(self, name: str) -> None:
        self._change("decode" if name == "decode" else "steps" if name.startswith("step") else "start")

    def end(self, stage: str, message: str) -> None:
        self._change("start")

    def _change(self, part: str) -> None:
        now = time.perf_counter()
        self.spent[self.part] += now - self.began
        self.part, self.began = part, now

    def wait(self, seconds: float) -> None:
        started = time.perf_counter()
        time.sleep(seconds)
        self.waited[self.part] += time.perf_counter() - started


class WaitingDenoiser(Denoiser):
    """A denoiser whose networks do nothing but wait. It decodes to grainy images, which compress as footage does."""

    def __init__(self, settings: Settings, clock: Clock, seconds: float):
        super().__init__(load_networks(settings.models), settings)
        self.clock, self.seconds = clock, seconds
        self.grain = np.random.default_rng(0).integers(0, 16, (4096, 4096, 3), np.uint8)

    def _embed(self, maps: Sequence[Images], batches: Batches) -> list[torch.Tensor]:
        return [torch.zeros((len(net_maps), 1, 1, 1)) for net_maps in maps]

    def _predict(
        self, latents: torch.Tensor, embedded: list[torch.Tensor], timestep: float, text: Text, view: View
    ) -> torch.Tensor:
        self.clock.wait(self.seconds * len(latents) * text.passes / self.passes)
        return torch.zeros((text.passes, *latents.shape))

    def encode(self, images: Images, batches: Batches, predicted: bool = False) -> torch.Tensor:
        def one(batch: Images) -> torch.Tensor:
            self.clock.wait(ENCODE * len(batch))
            self.clock.encoded += 1
            return self.initial_noise(*batch.shape[1:3]).repeat(len(batch), 1, 1, 1)

        return torch.cat(self._batched(one, images, batches))

    def decode(self, latents: torch.Tensor, batches: Batches, predicted: bool = False) -> Images:
        self.clock.wait(DECODE * len(latents))
        height, width = (8 * side for side in latents.shape[2:])
        images: Images = np.stack([self.grain[k : k + height, k : k + width] for k in range(len(latents))])
        return images


@contextmanager
def replaced_networks(clock: Clock, joint: bool) -> Iterator[None]:
    """Replace the networks of a render and the smoother `waiting` by waits."""
    loaded: dict[Settings, Denoiser] = {}
    seconds = JOINT / GROUP if joint else SHARED  # a sample of both passes

    def denoiser(settings: Settings) -> Denoiser:
        if settings not in loaded:
            loaded[settings] = WaitingDenoiser(settings, clock, seconds)
        return loaded[settings]

    Waiting.clock = clock
    with patch.object(denoise, "denoiser", denoiser):
        yield


class WaitingSmoother:
    """Reads a frame's neighbours in both videos, waits, and returns the frame."""

    def __init__(self, guides: Frames, styles: Frames, wait: Callable[[float], None]):
        self.guides, self.styles, self.wait = guides, styles, wait

    def smooth(self, start: int, stop: int) -> Images:
        return np.stack([self._frame(index) for index in range(start, stop)])

    def _frame(self, index: int) -> np.ndarray:
        ahead = min(index + 1, len(self.styles) - 1)
        _ = self.guides[ahead], self.styles[ahead]  # the others have been read before
        self.wait(SMOOTH)
        return self.styles[index]


@SMOOTHERS.register
class Waiting(SmootherOptions):
    """Wait for as long as smoothing takes."""

    name = "waiting"
    clock: ClassVar[Clock] = Clock()

    def build(self, guides: Frames, styles: Frames, device: str) -> WaitingSmoother:
        return WaitingSmoother(guides, styles, self.clock.wait)


if __name__ == "__main__":
    main()
