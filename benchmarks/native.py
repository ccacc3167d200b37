"""Seconds and quality of the patch-matching library, by task, back end and number of threads.

    python -m benchmarks.native [--shared ../shared] [--backends cpu numba cuda] [--threads 1 2] [--repeat 3]

Needs the examples in SHARED/ebsynth and the clip SHARED/clips/cottonbro.mp4. Seconds are the best of the repetitions.
Quality of syntheses is the exact patch energy of the picture (patches of 5×5, 3,000 places): coherence, the mean
squared distance per value from patches of the output to the nearest of the source, and completeness, the other way
round; of fields, the mean patch error per value. Lower is better for all.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from native import binding
from stages.smoothers.images import matching
from stages.video import VideoFile, fit, read_image

PLACES, PATCH = 3000, 5


@dataclass
class Task:
    name: str
    run: Callable[..., Any]
    quality: Callable[[Any], str]
    pairs: int = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--backends", nargs="+", default=["cpu"], choices=["cpu", "cuda", "numba"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    if not (given.shared / "ebsynth").is_dir():
        sys.exit(f"{given.shared / 'ebsynth'} is not there; --shared names the folder with the examples")
    table = Table(title=str(binding.info() if binding.library_path().exists() else "numba alone"))
    for heading in ("task", "back end", "threads", "seconds", "pairs/s", "quality"):
        table.add_column(heading, justify="right" if heading in ("threads", "seconds", "pairs/s") else "left")
    for task in tasks(given.shared):
        for backend in given.backends:
            # numba takes its threads from NUMBA_NUM_THREADS, CUDA has its own.
            for threads in given.threads if backend == "cpu" else [0]:
                seconds, result = best_of(given.repeat, task, backend=backend, threads=threads)
                rate = f"{task.pairs / seconds:.2f}"
                table.add_row(task.name, backend, str(threads or ""), f"{seconds:.2f}", rate, task.quality(result))
    Console(width=150).print(table)


def best_of(repeat: int, task: Task, **where: Any) -> tuple[float, Any]:
    if where["backend"] == "numba":
        task.run(**where)  # compiles
    times = []
    for _ in range(repeat):
        begin = time.perf_counter()
        result = task.run(**where)
        times.append(time.perf_counter() - begin)
    return min(times), result


def tasks(shared: Path) -> Iterator[Task]:
    texbynum, stylit = shared / "ebsynth" / "texbynum", shared / "ebsynth" / "stylit"
    yield synthesis("texbynum 320×462", texbynum / "source_photo.png", [(texbynum, "segment")], 1.0)
    names = ("fullgi", "dirdif", "dirspc", "indirb")
    yield synthesis("stylit 480×364", stylit / "source_style.png", [(stylit, name) for name in names], 0.5)
    clip = [shot.image() for shot in islice(VideoFile(shared / "clips" / "cottonbro.mp4").shots(), 4)]
    small, large = ([fit(clip[k], *size)[None] for k in (0, 3)] for size in ((256, 480), (512, 960)))
    yield carried("frame carried 480×256, patch 21", *small)
    yield carried("frame carried 960×512, patch 21", *large)
    yield fields("fields 960×512, patches 13…5", *large)
    yield from_flow("field from flow 448×256, patch 5", *(fit(clip[k], 256, 448) for k in (0, 3)))


def synthesis(name: str, style_path: Path, guides: list[tuple[Path, str]], weight: float) -> Task:
    style = read_image(style_path)[None]
    sources, targets = (
        np.concatenate([read_image(folder / f"{side}_{guide}.png") for folder, guide in guides], axis=2)[None]
        for side in ("source", "target")
    )
    weights = np.full(sources.shape[3], weight / 3)

    def run(**where: Any) -> Any:
        return binding.synthesize(style, sources, targets, guide_weights=weights, **where)

    def quality(result: Any) -> str:
        coherence, completeness = energies(style[0], sources[0], targets[0], result.image[0], weight)
        return f"coherence {coherence:.1f}, completeness {completeness:.1f}"

    return Task(name, run, quality)


def carried(name: str, source: np.ndarray, target: np.ndarray) -> Task:
    """A frame painted anew in the place of another, as Ebsynth smoothers do it."""

    def run(**where: Any) -> Any:
        return binding.synthesize(source, source, target, guide_weights=[100 / 3] * 3, patch_size=21, **where)

    def quality(result: Any) -> str:
        error = binding.patch_error(source, target, nnf=result.nnf, patch_size=21, backend="auto").mean() / 21**2
        return (
            f"guide error {error:.2f}, picture {np.square(result.image.astype(int) - target).mean():.1f} from the frame"
        )

    return Task(name, run, quality)


def fields(name: str, source: np.ndarray, target: np.ndarray) -> Task:
    options: dict[str, Any] = {"patch_sizes": [13, 11, 9, 7, 5], "start": "identity", "search_radius": 16}

    def run(**where: Any) -> Any:
        return binding.match(source, target, **options, **where)

    return Task(name, run, lambda result: f"patch error {result.error.mean() / PATCH**2:.2f}")


def from_flow(name: str, source: np.ndarray, target: np.ndarray) -> Task:
    """A frame found in another as smoothers do it, flow and field; the guide error is summed over colours."""

    def run(**where: Any) -> Any:
        return matching.field(target, source, matching.flow(target, source), **where)

    def quality(field: Any) -> str:
        voted = binding.remap(source[None], field[None], patch_size=PATCH)[0]
        return f"guide error {np.square(voted.astype(float) - target).sum(axis=2).mean():.2f}"

    return Task(name, run, quality)


def energies(
    style: np.ndarray, source: np.ndarray, target: np.ndarray, image: np.ndarray, weight: float
) -> tuple[float, float]:
    """Coherence and completeness of a painted image, with the exact nearest patches."""
    keys = torch.cat([patches(style), patches(source) * weight**0.5], 1)
    queries = torch.cat([patches(image), patches(target) * weight**0.5], 1)
    random = torch.Generator().manual_seed(0)
    coherence = nearest(queries[torch.randperm(len(queries), generator=random)[:PLACES]], keys)
    completeness = nearest(patches(style)[torch.randperm(len(keys), generator=random)[:PLACES]], patches(image))
    return coherence / (3 * PATCH**2), completeness / (3 * PATCH**2)


def patches(image: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.unfold(torch.from_numpy(image).float().permute(2, 0, 1)[None], PATCH)[0].T


def nearest(queries: torch.Tensor, keys: torch.Tensor) -> float:
    """Mean squared distance of queries to their nearest keys."""
    norms = (keys**2).sum(1)
    found = [(norms - 2 * part @ keys.T).min(1).values + (part**2).sum(1) for part in queries.split(256)]
    return float(torch.cat(found).mean())


if __name__ == "__main__":
    main()
