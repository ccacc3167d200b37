"""Frames per second and peak memory of every annotator on the CPU or a GPU.

    python -m benchmarks.annotators [VIDEO] [--only hed depth_video] [--frames 4 40] [--size HEIGHT WIDTH]

Each runs as `diffsynth control`, a process of its own, on the real classes of controlnet_aux or transformers. Weights
are random, in the published layout (depth: a tiny model). Loading is counted. Memory is the process's peak resident
set.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.stages import make_clip, run
from stages.annotators.controlnet_aux import PACKAGES
from stages.base.annotators import ANNOTATORS, Weighted
from tests.conftest import scene, write_images
from tests.stages.annotators.random_weights import MAKERS, write_dpt, write_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", nargs="?", type=Path)
    parser.add_argument("--only", nargs="+", choices=ANNOTATORS, metavar="NAME")
    parser.add_argument("--frames", type=int, nargs="+", default=[4])
    parser.add_argument("--size", type=int, nargs=2, default=(256, 448), metavar=("HEIGHT", "WIDTH"))
    given = parser.parse_args()
    table = Table(title=f"{given.video or 'moving scene'}, {given.size[1]}×{given.size[0]}")
    table.add_column("annotator")
    table.add_column("weights needed")
    table.add_column("measured with")
    for count in given.frames:
        table.add_column(f"frames/s of {count}", justify="right")
        table.add_column("peak MB", justify="right")
    with tempfile.TemporaryDirectory() as folder:
        video = given.video or make_clip(Path(folder) / "clip.mp4", max(given.frames), *given.size)
        for name in given.only or [name for name in ANNOTATORS if name != "file"]:
            cells = row(Path(folder), video.resolve(), name, given)
            print("  ".join(cells), flush=True)  # some take minutes
            table.add_row(*cells)
    Console(width=160).print(table)


def row(folder: Path, video: Path, name: str, given: argparse.Namespace) -> list[str]:
    model = ANNOTATORS[name]
    files = " ".join(model.files) if issubclass(model, Weighted) else ""
    if name in PACKAGES:
        return [name, "its own", f"not: needs {PACKAGES[name][-1].partition('.')[0]}"]
    settings: dict[str, Any] = {"name": name}
    about = "no weights"
    if name in MAKERS:
        settings["model"], about = str(write_weights(name, folder)), "real class, random weights"
    elif name.startswith("depth"):
        settings["model"], about = str(write_dpt(folder / "dpt")), "real class, tiny, random weights"
    figures = []
    for count in given.frames:
        job = write_job(folder, video, settings, count, given.size)
        run(["extract", str(job), "--quiet"])
        _, peak = run(["control", str(job), "--quiet"])
        receipt = json.loads((folder / f"{name}{count}/cache.zarr/receipts/control.json").read_text())
        figures += [f"{receipt['frames'] / receipt['seconds']:.2f}", f"{peak:.0f}"]
    return [name, files, about, *figures]


def write_job(folder: Path, video: Path, settings: dict[str, Any], count: int, size: tuple[int, int]) -> Path:
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
