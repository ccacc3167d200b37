"""Frames per second of every annotator, and the peak memory of `diffsynth control` with it.

    python -m benchmarks.annotators [--only hed depth_video] [--size HEIGHT WIDTH] [--memory 8 80]

Annotators run with random weights in the published layout, depth annotators with a tiny model. Loading is not measured.
Memory is the peak resident set of the process, measured if --memory is given.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.stages import make_clip, run
from stages.annotators import ANNOTATORS, FromFiles, VideoAnnotator, Weighted, build
from stages.base.json_types import JsonObject
from tests.conftest import scene, write_images
from tests.stages.annotators.random_weights import MAKERS, write_dpt, write_weights

FRAMES = 4  # timed frames, after one to warm up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ANNOTATORS, metavar="NAME")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 256), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--memory", type=int, nargs="+", default=[], metavar="FRAMES")
    given = parser.parse_args()
    table = Table(title=f"annotators at {given.size[1]}×{given.size[0]}")
    for heading in ("annotator", "weights needed", "measured with"):
        table.add_column(heading)
    for heading in ("frames/s", *(f"MB at {count} frames" for count in given.memory)):
        table.add_column(heading, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        for name in given.only or [name for name, model in ANNOTATORS.items() if not issubclass(model, FromFiles)]:
            cells = row(Path(folder), name, given)
            print("  ".join(cells), flush=True)  # some take minutes
            table.add_row(*cells)
    Console(width=160).print(table)


def row(folder: Path, name: str, given: argparse.Namespace) -> list[str]:
    """Measure an annotator and return the cells of its row."""
    model = ANNOTATORS[name]
    if missing := model.missing_package():
        return [name, "", f"not measured: {missing}"]
    settings: JsonObject = {"name": name}
    about = "no weights"
    if name == "dwpose":
        settings["model"], about = str(write_weights(name, folder)), "tiny networks"
    elif name in MAKERS:
        settings["model"], about = str(write_weights(name, folder)), "real class, random weights"
    elif name.startswith("depth"):
        settings["model"], about = str(write_dpt(folder / "dpt")), "real class, tiny, random weights"
    files = " ".join(model.files) if issubclass(model, Weighted) else ""
    return [name, files, about, f"{speed(settings, given.size):.2f}", *peaks(folder, settings, given)]


def speed(settings: JsonObject, size: tuple[int, int]) -> float:
    """Return frames per second once the networks are loaded."""
    options = ANNOTATORS[str(settings["name"])].model_validate(settings)
    annotator = build(options.name, settings, scene(9, *size), options.weights("model"))
    annotate = annotator.look if isinstance(annotator, VideoAnnotator) else annotator.maps
    frames = np.stack([scene(index, *size) for index in range(FRAMES + 1)])
    annotate(frames[:1])
    started = time.monotonic()
    annotate(frames[1:])
    return FRAMES / (time.monotonic() - started)


def peaks(folder: Path, settings: JsonObject, given: argparse.Namespace) -> list[str]:
    """Return the peak memory of `diffsynth control` in MB for each number of frames."""
    if not given.memory:
        return []
    video = make_clip(folder / "clip.mp4", max(given.memory), *given.size)
    found = []
    for count in given.memory:
        job = write_job(folder, video, settings, count, given.size)
        run(["extract", str(job), "--quiet"])
        found.append(f"{run(['control', str(job), '--quiet'])[1]:.0f}")
    return found


def write_job(folder: Path, video: Path, settings: JsonObject, count: int, size: tuple[int, int]) -> Path:
    style = folder / "style"
    if not style.exists():
        write_images(style, [scene(5, *size)])
    path = folder / f"{settings['name']}{count}.json"
    path.write_text(json.dumps({
        "model_id": "not/read", "controlnet_model_id": ["not/read"], "controlnet_processor": [settings],
        "style_image": str(style / "0.png"), "input_video": str(video), "output_path": f"{settings['name']}{count}",
        "frame_height": size[0], "frame_width": size[1], "frame_maximum_count": count, "prompt": "",
    }))  # fmt: skip
    return path


if __name__ == "__main__":
    main()
