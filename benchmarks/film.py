"""A feature film, planned as `diffsynth plan` does, from estimates instead of measurements.

    python -m benchmarks.film [--workers 1 8 64] [--minutes 120]

Two ControlNets, 20 steps, shared attention over four frames, smoothed in the first step and at the end. The seconds of
a frame are about those on an H100 (see lengths.py), and the bytes are those of the arrays with the compression measured
for video.
"""

from __future__ import annotations

import argparse
import tempfile
from fractions import Fraction
from pathlib import Path

from benchmarks.lengths import DECODE, ENCODE, SHARED, SMOOTH
from diffsynth_cli.commands.plan import show_plan
from diffsynth_cli.planning import planned
from stages.all_stages import arrays, stages_of
from stages.base.cache import FrameCache
from stages.base.calibration import Calibration, Cost, amount_of, kind_of
from stages.base.chunks import Traffic
from stages.base.engine import Ahead, Footage, Options, Run
from stages.base.json_types import JsonObject
from stages.base.reporting import Reporter
from stages.jobs.job_file import make_job

HEIGHT, WIDTH, FPS = 544, 960, 24
IMAGE, LATENT = 0.75 * HEIGHT * WIDTH * 3, 0.95 * HEIGHT * WIDTH // 4  # bytes of a frame, compressed
MAP = 0.2 * IMAGE
READ, WRITE = 0.005, 0.008  # s for a frame on a local disk, measured at 512×960
ANNOTATE, VIDEO = 0.01, 0.01  # s of a frame for a map of edges, and for decoding or encoding it with several cores
# Of each kind of work, for a frame: seconds of computing, frames read and written, and bytes read and written.
COSTS: dict[str, tuple[float, int, int, float, float]] = {
    "decode a video": (VIDEO, 0, 1, 0, IMAGE),
    "control: canny map 0: frames": (ANNOTATE, 1, 1, IMAGE, MAP),
    "control: tile map 1: frames": (0.001, 1, 1, IMAGE, IMAGE),
    "predict a smoothed step": (SHARED + DECODE, 3, 1, LATENT + MAP + IMAGE, IMAGE),
    "denoising step": (SHARED, 3, 1, LATENT + MAP + IMAGE, LATENT),
    "smooth a step": (SMOOTH + ENCODE, 3, 1, 2 * IMAGE + LATENT, LATENT),
    "render: decode": (DECODE, 1, 1, LATENT, IMAGE),
    "deflicker: smooth": (SMOOTH, 2, 1, 2 * IMAGE, IMAGE),
    "encode the video": (VIDEO, 1, 0, IMAGE, 0),
}
ONE_BY_ONE = {"extract: scan": VIDEO}
LOADING = 30.0  # s
KEYS: JsonObject = {
    "model_id": "mini", "controlnet_model_id": ["mini/canny"] * 2, "controlnet_processor": ["canny", "tile"],
    "input_video": ".", "output_path": "out", "prompt": "winter", "attention": "shared", "device": "cpu",
    "combine_pattern": [-10000, -1, 0, 1], "smoother": "PatchBlendSmoother", "smoother_interval": 20,
    "post_smoother": "PatchBlendSmoother", "batch_size": 8, "attention_backend": "sdpa",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--minutes", type=int, default=120)
    given = parser.parse_args()
    frames = given.minutes * 60 * FPS
    ahead = look_ahead(frames)
    show_plan(planned(ahead, frames, estimates(ahead), given.workers, bandwidth=None, prices=(2.5, 0.005, 0.0004)))


def look_ahead(frames: int) -> dict[str, Ahead]:
    """Return what is known of the stages of a job with so many frames."""
    with tempfile.TemporaryDirectory() as folder:
        job, _ = make_job({**KEYS}, Path(folder), "film", [])
        cache = FrameCache(Path(folder) / "cache.zarr", arrays=arrays())
        run = Run(job, cache, Reporter(), Options(job.batch_size, backend="sdpa"), stages=stages_of(job))
        footage = Footage(frames, HEIGHT, WIDTH, Fraction(FPS))
        return {name: stage.check(run, footage) for name, stage in run.stages.items()}


def estimates(ahead: dict[str, Ahead]) -> Calibration:
    """Return what the work costs according to COSTS."""
    amounts = {
        kind_of(phase, stage): amount_of(phase.task, phase.frames) / phase.frames
        for stage, known in ahead.items()
        for phase in {kind_of(phase, stage): phase for phase in known.phases}.values()
    }
    costs = {
        kind: Cost(
            amounts[kind],
            1,
            computing=seconds,
            reading=READ * gets,
            writing=WRITE * puts,
            traffic=Traffic(gets, puts, round(read), round(written)),
        )
        for kind, (seconds, gets, puts, read, written) in COSTS.items()
    }
    alone = {kind: Cost(1.0, 1, computing=seconds, divided=False) for kind, seconds in ONE_BY_ONE.items()}
    return Calibration({"processor": "estimates of an H100"}, 1, LOADING, {**costs, **alone})


if __name__ == "__main__":
    main()
