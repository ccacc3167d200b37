"""Quality of smoothers on flicker with known truth, and speed and memory by length of the video.

    python -m benchmarks.smoothing FOLDER... [--smoothers NAME...] [--devices cpu cuda]
                                             [--lengths 32 128 512] [--size HEIGHT WIDTH] [--window FRAMES]
                                             [--compile] [--keyframes 4]
    python -m benchmarks.smoothing --pairs GUIDE STYLE [--pairs ...] [--smoothers NAME...] [--devices cpu cuda]
    python -m benchmarks.smoothing --kernels [--size HEIGHT WIDTH] [--window FRAMES]

Each FOLDER has the PNG images guide/, style/ and clean/: the original, its flickering stylised
frames, and those without flicker. `ends` is the squared error of the first and the last frame
relative to those in the middle. Compare `warp1` and `flicker` with those of the truth: lower values
are due to blur. A pair is a video and its stylised version without known truth. Lost and invented
detail are measured; `light` is the mean absolute second difference of the mean level of frames.
With --lengths, `diffsynth smooth` runs on a generated video in a process of its own; with --keyframes
N, it paints the frames between every Nth one. With --kernels, the kernels that PatchBlendSmoother
launches on a GPU are counted; this needs no GPU.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable
from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.kernels import count_kernels
from benchmarks.stages import run
from stages.base.arrays import Image, Images
from stages.base.json_types import JsonObject
from stages.smoothers import build
from stages.smoothers.images.metrics import Curves, measure
from stages.video import Encoding, encode, fit, open_source, save_png

SMOOTHERS: dict[str, tuple[str, JsonObject]] = {
    "PatchBlend": ("PatchBlendSmoother", {}),
    "PySynth fastest, 15": ("PySynthSmoother", {"speed": "fastest", "window_size": 15}),
    "PySynth slowest, 3": ("PySynthSmoother", {"speed": "slowest", "window_size": 3}),
    "mean of 3": ("TemporalMeanSmoother", {"radius": 1}),
}
COUNTED_FRAMES = 8  # a block of small frames
NUMBERS = ("psnr", "sharp_reference", "sharp", "warp1", "flicker")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--pairs", nargs=2, type=Path, action="append", default=[], metavar=("GUIDE", "STYLE"))
    parser.add_argument("--smoothers", nargs="+", choices=SMOOTHERS, default=list(SMOOTHERS))
    parser.add_argument("--devices", nargs="+", default=["cpu"])
    parser.add_argument("--lengths", nargs="*", type=int, default=[])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--keyframes", type=int, default=0, metavar="N")
    parser.add_argument("--kernels", action="store_true")
    parser.add_argument("--window", type=int, default=15)
    parser.add_argument("--size", type=int, nargs=2, default=(128, 160), metavar=("HEIGHT", "WIDTH"))
    given = parser.parse_args()
    out = Console()
    if given.folders:
        table = Table("clip", "smoother", "s", "dB", "sharp/truth", "sharp/input", "warp1", "flicker", "ends")
        for folder in given.folders:
            compare(folder, list(product(given.smoothers, given.devices)), table)
        out.print(table)
    if given.pairs:
        table = Table("style", "smoother", "s", "frames", "structure", "min", "invented", "own warp", "sharp", "light")
        for guide, style in given.pairs:
            judge(guide, style, list(product(given.smoothers, given.devices)), table)
        out.print(table)
    height, width = given.size
    if given.kernels:
        out.print(kernels(height, width, given.window))
    for device in given.devices if given.lengths else ():
        options = ["--device", device, "--window", str(given.window), *["--compile"] * given.compile]
        out.print(lengths(given.lengths, height, width, given.keyframes, options))


def compare(folder: Path, smoothers: list[tuple[str, str]], table: Table) -> None:
    """Add a row per smoother, given with its device, on a clip with known truth."""
    guides, styles, truth = (load(folder / name) for name in ("guide", "style", "clean"))
    results, seconds = smooth(guides, styles, smoothers)
    curves = measure(guides, [styles, *results], truth)
    add_row(table, folder.name, "input", 0, curves[0], curves)
    for (name, device), curve, took in zip(smoothers, curves[1:-1], seconds, strict=True):
        add_row(table, "", name if device == "cpu" else f"{name}, {device}", took, curve, curves)
    add_row(table, "", "truth", 0, curves[-1], curves)
    table.add_section()


def judge(guide: Path, style: Path, smoothers: list[tuple[str, str]], table: Table) -> None:
    """Add a row per smoother, given with its device, on a style without known truth."""
    styles = load(style)
    guides = np.stack([fit(frame, *styles.shape[1:3]) for frame in load(guide)[: len(styles)]])
    styles = styles[: len(guides)]
    results, seconds = smooth(guides, styles, smoothers)
    *curves, of_style = measure(guides, results, style=styles)
    for (name, device), result, curve, took in zip(smoothers, results, curves, seconds, strict=True):
        found = curve.summary(of_style)
        numbers = [f"{found[key]:.3f}" for key in ("structure", "structure_min")]
        numbers += [f"{found['invented']:.4f}", f"{found['own_warp_style']:.2f}→{found['own_warp']:.2f}"]
        numbers += [
            f"{np.mean(curve.detail) / np.mean(of_style.detail):.2f}",
            f"{light(styles):.2f}→{light(result):.2f}",
        ]
        label = name if device == "cpu" else f"{name}, {device}"
        table.add_row(style.stem, label, f"{took:.1f}", str(len(result)), *numbers)
    table.add_section()


def light(frames: Images) -> float:
    """Return how much the mean level of frames varies, in levels."""
    return float(np.abs(np.diff([frame.mean() for frame in frames], n=2)).mean())


def smooth(guides: Images, styles: Images, smoothers: list[tuple[str, str]]) -> tuple[list[Images], list[float]]:
    """Return each smoother's frames and the seconds they took."""
    results, seconds = [], []
    for name, device in smoothers:
        smoother, config = SMOOTHERS[name]
        started = time.perf_counter()
        results.append(build(smoother, config, list(guides), list(styles), device=device).smooth(0, len(styles)))
        seconds.append(time.perf_counter() - started)
    return results, seconds


def add_row(table: Table, clip: str, name: str, seconds: float, curve: Curves, curves: list[Curves]) -> None:
    numbers = curve.summary(curves[0], curves[-1])
    cells = [f"{numbers[key]:.2f}" if key in numbers else "" for key in NUMBERS]
    quarter = len(curve.error) // 4
    middle = np.mean(curve.error[quarter:-quarter]) if curve.error else 0
    ends = f"{curve.error[0] / middle:.2f} {curve.error[-1] / middle:.2f}" if curve.error else ""
    table.add_row(clip, name, f"{seconds:.1f}" if seconds else "", *cells, ends)


def load(folder: Path) -> Images:
    """Read all frames of a video or folder."""
    return np.stack([shot.image() for shot in open_source(folder).shots()])


def lengths(counts: list[int], height: int, width: int, keyframes: int, options: list[str]) -> Table:
    """Measure time per frame and peak memory by number of frames."""
    options = [*options, *["--mode", "interpolate"] * bool(keyframes)]
    title = f"diffsynth smooth {' '.join(options)}, {width}×{height}"
    table = Table("frames", "total seconds", "ms per frame", "peak MB", title=title)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for count in counts:
            guide = folder / f"guide{count}.mp4"
            encode(guide, (scene(index, height, width) for index in range(count)), Encoding(Fraction(25)))
            style = folder / f"style{count}.mp4"
            if keyframes:
                style = write_keyframes(folder / f"keys{count}", range(0, count, keyframes), height, width)
            else:
                encode(style, (flickering(index, height, width) for index in range(count)), Encoding(Fraction(25)))
            arguments = ["smooth", str(guide), str(style), "-o", str(folder / f"out{count}.mp4"), "-q", *options]
            seconds, peak = run(arguments)
            table.add_row(str(count), f"{seconds:.1f}", f"{1e3 * seconds / count:.0f}", f"{peak:.0f}")
    return table


def write_keyframes(folder: Path, indexes: Iterable[int], height: int, width: int) -> Path:
    """Write frames with inverted colours as images, named by their numbers, and return the folder."""
    folder.mkdir()
    for index in indexes:
        save_png(folder / f"{index:05d}.png", 255 - scene(index, height, width), "keyframe")
    return folder


def kernels(height: int, width: int, window: int) -> Table:
    """List the functions that launch kernels on a GPU, most first, and the memory of its tensors."""
    found = count_kernels(height, width, window, COUNTED_FRAMES)
    title = f"PatchBlendSmoother, {width}×{height}, window {window}, {found.peak_bytes / 2**20:.0f} MB of GPU memory"
    table = Table("function", "kernels per frame", title=title)
    for function, count in (("all", found.kernels.total()), *found.kernels.most_common()):
        table.add_row(function, f"{count / COUNTED_FRAMES:.1f}")
    return table


def scene(index: int, height: int, width: int) -> Image:
    """Draw a frame of a camera that pans across a texture and back."""
    world = np.random.default_rng(0).integers(0, 256, (height // 4, width // 2, 3), np.uint8)
    world = np.kron(world, np.ones((4, 4, 1), np.uint8))
    shift = abs(2 * index % (2 * width) - width)
    return np.ascontiguousarray(world[:height, shift : shift + width])


def flickering(index: int, height: int, width: int) -> Image:
    """Draw the same frame with inverted colours and random brightness."""
    light = np.random.default_rng(index + 1).uniform(0.85, 1.15, 3)
    return np.clip((255 - scene(index, height, width)) * light, 0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
