"""Compare rendering with a plain loop as published: `attention` joint and shared.

    python -m benchmarks.render [VIDEO] [--weights half tiny sd15] [--patterns 1 2 3 4 5] [--frames 16] [--steps 2]
                                [--size HEIGHT WIDTH] [--batch-size 1] [--lengths 16 64 256] [--device cpu]

Networks have random weights and the size of Stable Diffusion 1.5 and its ControlNet (sd15), half
their width (half), or are tiny. The plain loop processes one frame and one pass of guidance at a
time, and keeps all frames in memory. Each row is measured in a process of its own, without the
first denoising step. `outside` is the share of time outside networks. `differs` is the largest and
the mean difference of latents from the plain loop. `edge` is the difference between frames on both
sides of a chunk border, relative to other neighbours. --lengths measures memory by length of the
video.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.stages import MODELS, make_clip
from stages.base.json_types import Json, JsonObject
from stages.base.reporting import Reporter
from stages.jobs.job import Job

if TYPE_CHECKING:
    import torch
    from diffusers import ControlNetModel, UNet2DConditionModel
    from torch import nn

    from stages.diffusion.loading import Networks

PATTERNS = {1: [0], 2: [-1, 0], 3: [-1, 0, 1], 4: [-10000, -1, 0, 1], 5: [-10000, -2, -1, 0, 1]}
WIDTHS = {"sd15": 320, "half": 160}  # channels of the first level
Latents: TypeAlias = NDArray[np.float32]
"""[N, 4, h, w]."""

METHODS = ("plain", "joint", "shared")


def main() -> None:
    given = parse()
    if given.one:
        limit_memory(given.gpu_memory)
        print(json.dumps(measure(given.one[0], Path(given.one[1]), given.batch_size)))
        return
    out = Console()
    with tempfile.TemporaryDirectory() as folder:
        longest = max(given.frames, *given.lengths, 1)
        clip = given.video or make_clip(Path(folder) / "clip.mp4", longest, *given.size)
        for weights in given.weights:
            models = MODELS if weights == "tiny" else make_models(Path(folder) / weights, WIDTHS[weights])
            out.print(side_by_side(Path(folder), weights, models, clip, given))
            if given.lengths:
                out.print(by_length(Path(folder), weights, models, clip, given))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", nargs="?", type=lambda path: Path(path).resolve())
    parser.add_argument("--weights", nargs="+", choices=("tiny", *WIDTHS), default=["tiny", "half"])
    parser.add_argument("--patterns", nargs="*", type=int, choices=PATTERNS, default=list(PATTERNS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=2, default=(256, 256), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--lengths", type=int, nargs="*", default=[])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="job keys, such as dtype=bfloat16")
    parser.add_argument("--gpu-memory", type=float, default=0, metavar="GB", help="let PyTorch use only so much")
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "JOB"), help=argparse.SUPPRESS)
    return parser.parse_args()


# -- jobs and models ---------------------------------------------------------------------------------------------------


def make_models(folder: Path, width: int) -> Path:
    """Write random networks like Stable Diffusion 1.5 to the folders sd and control0, with a tiny text encoder."""
    import shutil

    import torch
    from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel

    torch.manual_seed(0)
    shutil.copytree(MODELS / "sd", folder / "sd")
    text = json.loads((folder / "sd/text_encoder/config.json").read_text())["hidden_size"]
    widths = (width, 2 * width, 4 * width, 4 * width)
    unet = UNet2DConditionModel(block_out_channels=widths, cross_attention_dim=text, attention_head_dim=8)
    unet.save_pretrained(folder / "sd/unet")
    controlnet = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    for parameter in controlnet.parameters():  # its last layers start as zeros, which would hide the maps
        parameter.data += 0.02 * torch.randn_like(parameter)
    controlnet.save_pretrained(folder / "control0")
    decoder = tuple(width * factor * 2 // 5 for factor in (1, 2, 4, 4))
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=decoder, layers_per_block=2,
    ).save_pretrained(folder / "sd/vae")  # fmt: skip
    return folder


def _key(assignment: str) -> tuple[str, Json]:
    """Parse KEY=VALUE, where VALUE is JSON or a string."""
    name, _, value = assignment.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def write_job(folder: Path, models: Path, clip: Path, name: str, given: argparse.Namespace, **keys: Json) -> Path:
    """Write a job, and run its stages before render."""
    job: JsonObject = {
        "model_id": str(models / "sd"), "controlnet_model_id": [str(models / "control0")],
        "controlnet_processor": ["canny"], "input_video": str(clip), "frame_maximum_count": given.frames,
        "frame_height": given.size[0], "frame_width": given.size[1],
        "output_path": f"out-{name}", "prompt": "winter", "num_inference_steps": given.steps,
        "device": given.device, "keep_steps": False,
    } | keys  # fmt: skip
    path = folder / f"{name}.json"
    path.write_text(json.dumps(job))
    for stage in ("extract", "control"):
        subprocess.run([sys.executable, "-m", "diffsynth_cli", stage, str(path), "-q"], check=True)
    return path


# -- one row -----------------------------------------------------------------------------------------------------------


def limit_memory(gigabytes: float) -> None:
    """Imitate a GPU with less memory. 0 is no limit."""
    import torch

    if gigabytes:
        _, whole = torch.cuda.mem_get_info()
        torch.cuda.set_per_process_memory_fraction(min(gigabytes * 1e9 / whole, 1.0))


def measure(method: str, path: Path, batch_size: int) -> dict[str, float]:
    """Render a job in this process, and return seconds, calls and memory."""
    import resource

    import torch

    from stages.jobs.job_file import read_job

    job, _ = read_job(path)
    clock = Clock()
    latents, seconds = plain(job, clock) if method == "plain" else ours(job, clock, batch_size)
    np.save(path.with_suffix(f".{method}.npy"), latents)
    cuda = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0
    return {
        "seconds": seconds, "networks": clock.seconds, "calls": clock.calls, "device": cuda,
        "host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }  # fmt: skip


class Clock:
    """Measures the time spent in networks, and counts the samples that go through the U-Net."""

    def __init__(self) -> None:
        self.seconds, self.calls, self.running = 0.0, 0, False
        self.began: dict[nn.Module, float] = {}

    def watch(self, networks: Sequence[nn.Module], unet: nn.Module) -> None:
        """Measure these networks from now on."""

        def before(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            self._wait()
            self.began[module] = time.perf_counter()

        def after(module: nn.Module, inputs: tuple[torch.Tensor, ...], outputs: object) -> None:
            self._wait()
            if self.running:
                self.seconds += time.perf_counter() - self.began[module]
                self.calls += len(inputs[0]) if module is unet else 0

        for network in networks:
            network.register_forward_pre_hook(before)
            network.register_forward_hook(after)

    @staticmethod
    def _wait() -> None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()


def ours(job: Job, clock: Clock, batch_size: int) -> tuple[Latents, float]:
    """Render a job as `diffsynth render` does, and return its latents and seconds."""
    from stages.all_stages import arrays, stages_of
    from stages.base.cache import FrameCache
    from stages.base.engine import Options, Run, run_stage
    from stages.base.record import CACHE_NAME
    from stages.diffusion.denoise import denoiser
    from stages.render import STAGE
    from stages.rendering.work import denoiser_settings

    options = Options(batch_size, job.low_vram, job.compile, job.attention_backend)
    networks = denoiser(denoiser_settings(job, options)).networks
    clock.watch((networks.unet, *networks.controlnets, *networks.map_embeddings), networks.unet)
    cache = FrameCache(Path(job.output_path) / CACHE_NAME, arrays=arrays())
    steps = Steps(clock)
    with cache.lock():
        run_stage(STAGE, Run(job, cache, steps, options, stages=stages_of(job)))
    return cache["latents"][:], steps.seconds


class Steps(Reporter):
    """Measures the time of steps after the first."""

    def __init__(self, clock: Clock):
        self.clock, self.seconds, self.began = clock, 0.0, 0.0

    def phase(self, name: str) -> None:
        now = time.perf_counter()
        if self.clock.running:
            self.seconds += now - self.began
        self.began, self.clock.running = now, name.startswith("step") and not name.startswith("step 1/")


def joint_networks(job: Job, like: Networks) -> tuple[UNet2DConditionModel, ControlNetModel]:
    """Load the networks with DiffSynth's attention: all frames of a pass see each other."""
    from diffusers import ControlNetModel, UNet2DConditionModel
    from diffusers.models.attention_processor import Attention, AttnProcessor2_0

    class Group(AttnProcessor2_0):
        def __call__(
            self,
            attn: Attention,
            hidden_states: torch.Tensor,
            encoder_hidden_states: torch.Tensor | None = None,
            attention_mask: torch.Tensor | None = None,
            temb: torch.Tensor | None = None,
        ) -> torch.Tensor:
            if encoder_hidden_states is not None:
                return super().__call__(attn, hidden_states, encoder_hidden_states)
            joined = hidden_states.reshape(1, -1, hidden_states.shape[-1])
            return super().__call__(attn, joined).reshape(hidden_states.shape)

    unet = UNet2DConditionModel.from_pretrained(f"{job.model_id}/unet", torch_dtype=like.dtype)
    controlnet = ControlNetModel.from_pretrained(job.controlnet_model_id[0], torch_dtype=like.dtype)
    unet.set_attn_processor(Group())
    controlnet.set_attn_processor(Group())
    return unet.to(like.device).eval(), controlnet.to(like.device).eval()


def plain(job: Job, clock: Clock) -> tuple[Latents, float]:
    """Render with DiffSynth's loop, one frame with its group and one pass of guidance at a time."""
    import torch

    from stages.base.cache import FrameCache
    from stages.base.engine import Options
    from stages.base.record import CACHE_NAME
    from stages.diffusion.denoise import denoiser
    from stages.jobs.maps import recorded_maps
    from stages.rendering.pattern import attended_frames
    from stages.rendering.work import denoiser_settings

    ready = denoiser(denoiser_settings(job, Options()))
    sampler, text, device = ready.sampler, ready.prompts.both.rows, ready.networks.device
    unet, controlnet = joint_networks(job, ready.networks)
    clock.watch((unet, controlnet), unet)
    cache = FrameCache(Path(job.output_path) / CACHE_NAME)
    frames = cache["frames"]
    (pair,) = recorded_maps(cache)
    maps = torch.from_numpy(cache[pair[0]][:]).permute(0, 3, 1, 2).to(device, ready.networks.dtype) / 255
    latents = ready.initial_noise(*frames.shape[1:3]).repeat(len(frames), 1, 1, 1)
    attended = attended_frames(job.combine_pattern, range(len(frames)), range(len(frames)))
    groups = [[int(frame) for frame in group] for group in attended]
    began = 0.0
    with torch.inference_mode():
        for step, timestep in enumerate(sampler.timesteps):
            if step == 1:
                began, clock.running = time.perf_counter(), True
            following = []
            for frame, group in enumerate(groups):
                batch, passes = latents[group].to(device, ready.networks.dtype), []
                for prompt in text.split(1):
                    words = prompt.repeat(len(group), 1, 1)
                    down, middle = controlnet(batch, timestep, words, maps[group], return_dict=False)
                    noise = unet(
                        batch, timestep, words, down_block_additional_residuals=down,
                        mid_block_additional_residual=middle, return_dict=False,
                    )[0]  # fmt: skip
                    passes.append(noise[job.combine_pattern.index(0)].float().cpu())
                noise = passes[0] + job.guidance_scale * (passes[1] - passes[0])
                mine = latents[frame]
                following.append(sampler.step(mine, sampler.clean(mine, noise, timestep), timestep))
            latents = torch.stack(following)
    return latents.numpy(), time.perf_counter() - began


# -- tables ------------------------------------------------------------------------------------------------------------


def row(method: str, job: Path, given: argparse.Namespace) -> dict[str, float]:
    """Measure a method in a process of its own."""
    options = ["--batch-size", str(given.batch_size), "--gpu-memory", str(given.gpu_memory)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.render", "--one", method, str(job), *options],
        stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def side_by_side(folder: Path, weights: str, models: Path, clip: Path, given: argparse.Namespace) -> Table:
    height, width = given.size
    table = Table(
        title=f"{weights} weights, {given.frames} frames of {width}×{height}, groups per batch {given.batch_size}"
    )
    for heading in (
        "pattern",
        "method",
        "frames/s",
        "× plain",
        "U-Net samples",
        "outside",
        "peak MB",
        "differs",
        "edge",
    ):
        table.add_column(heading, justify="right")
    for size in given.patterns:
        reference, speed = None, None
        for method in given.methods:
            keys = {"combine_pattern": PATTERNS[size]} | ({} if method == "plain" else {"attention": method})
            keys |= dict(map(_key, given.set))
            job = write_job(folder, models, clip, f"{weights}-{size}-{method}", given, **keys)
            found = row(method, job, given)
            latents = np.load(job.with_suffix(f".{method}.npy"))
            rate = given.frames * (given.steps - 1) / found["seconds"]
            reference, speed = (latents, rate) if method == "plain" else (reference, speed)
            difference = np.abs(latents - reference) if reference is not None else np.zeros(1)
            table.add_row(
                str(size), method, f"{rate:.3f}", f"{rate / speed:.2f}" if speed else "",
                str(found["calls"]), f"{100 * (1 - found['networks'] / found['seconds']):.1f} %",
                f"{found['host']:.0f}" + (f" + {found['device']:.0f}" if found["device"] else ""),
                f"{difference.max():.1e}, {difference.mean():.1e}", f"{edge(latents, given):.2f}",
            )  # fmt: skip
    return table


def edge(latents: Latents, given: argparse.Namespace) -> float:
    from stages.rendering.tasks import shared_chunk

    chunk = shared_chunk(*given.size)
    change = np.abs(np.diff(latents, axis=0)).mean(axis=(1, 2, 3))
    at = np.arange(1, len(latents)) % chunk == 0
    return float(change[at].mean() / change[~at].mean()) if at.any() and change.any() else float("nan")


def by_length(folder: Path, weights: str, models: Path, clip: Path, given: argparse.Namespace) -> Table:
    table = Table("attention", "frames", "peak MB", "frames/s", title=f"{weights} weights, by length")
    for method in METHODS[1:]:
        for count in given.lengths:
            name = f"{weights}-{method}-{count}"
            keys = {"combine_pattern": PATTERNS[4], "attention": method, "frame_maximum_count": count}
            found = row(method, write_job(folder, models, clip, name, given, **keys), given)
            table.add_row(
                method, str(count),
                f"{found['host']:.0f}" + (f" + {found['device']:.0f}" if found["device"] else ""),
                f"{count * (given.steps - 1) / found['seconds']:.2f}",
            )  # fmt: skip
    return table


if __name__ == "__main__":
    main()
