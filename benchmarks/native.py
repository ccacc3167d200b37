"""Speed and quality of the patch-matching library, by task, back end and number of threads.

    python -m benchmarks.native [--shared ../shared] [--backends cpu numba cuda] [--threads 1 2] [--repeat 3]

Uses the examples in SHARED/ebsynth and the clip SHARED/clips/cottonbro.mp4. Without them, the
demo's clip takes the place of both. Seconds are those of the fastest repetition. The quality of a
synthesis is the mean squared distance per value of 3,000 patches of 5×5 to their exact nearest
patches: from the output to the source (coherence) and from the source to the output (completeness).
That of a field is the mean patch error per value. Lower is better.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from native import binding
from stages.base.arrays import Field, Image, Images
from stages.smoothers.images import matching
from stages.smoothers.images.pixels import flow
from stages.video import fit, read_image
from stages.video.video_file import VideoFile

SAMPLES, PATCH = 3000, 5
DEMO = Path(__file__).resolve().parents[1] / "templates" / "demo.mp4"


Result = TypeVar("Result")


@dataclass
class Task(Generic[Result]):
    """A measured call: `run` takes the back end and the number of threads, `quality` describes its result."""

    name: str
    run: Callable[[str, int], Result]
    quality: Callable[[Result], str]

    def measure(self, repeat: int, backend: str, threads: int) -> tuple[float, str]:
        """Return the seconds of the fastest repetition, and the quality."""
        if backend == "numba":
            self.run(backend, threads)  # compiles
        times = []
        for _ in range(repeat):
            begin = time.perf_counter()
            result = self.run(backend, threads)
            times.append(time.perf_counter() - begin)
        return min(times), self.quality(result)


AnyTask: TypeAlias = Task[binding.Synthesis] | Task[binding.Fields] | Task[Field]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--backends", nargs="+", default=["cpu"], choices=["cpu", "cuda", "numba"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    table = Table(title=str(binding.info() if binding.library_path().exists() else "numba only"))
    for heading in ("task", "back end", "threads", "seconds", "pairs/s", "quality"):
        table.add_column(heading, justify="right" if heading in ("threads", "seconds", "pairs/s") else "left")
    for task in tasks(given.shared):
        for backend in given.backends:
            # The number of numba's threads is set by NUMBA_NUM_THREADS, and CUDA has none.
            for threads in given.threads if backend == "cpu" else [0]:
                seconds, quality = task.measure(given.repeat, backend, threads)
                table.add_row(task.name, backend, str(threads or ""), f"{seconds:.2f}", f"{1 / seconds:.2f}", quality)
    Console(width=150).print(table)


def tasks(shared: Path) -> Iterator[AnyTask]:
    """Yield all tasks, on the examples in the folder `shared`."""
    texbynum, stylit = shared / "ebsynth" / "texbynum", shared / "ebsynth" / "stylit"
    if texbynum.is_dir():
        yield synthesis("texbynum 320×462", texbynum / "source_photo.png", [(texbynum, "segment")], 1.0)
        names = ("fullgi", "dirdif", "dirspc", "indirb")
        yield synthesis("stylit 480×364", stylit / "source_style.png", [(stylit, name) for name in names], 0.5)
    footage = shared / "clips" / "cottonbro.mp4"
    clip = [shot.image() for shot in islice(VideoFile(footage if footage.exists() else DEMO).shots(), 4)]
    small, large = ([fit(clip[k], *size)[None] for k in (0, 3)] for size in ((256, 480), (512, 960)))
    yield propagation("propagate frame 480×256, patch 21", *small)
    yield propagation("propagate frame 960×512, patch 21", *large)
    yield fields("fields 960×512, patches 13…5", *large)
    yield from_flow("field from flow 448×256, patch 5", *(fit(clip[k], 256, 448) for k in (0, 3)))


def synthesis(name: str, style_path: Path, guides: list[tuple[Path, str]], weight: float) -> Task[binding.Synthesis]:
    style = read_image(style_path)[None]
    sources, targets = (
        np.concatenate([read_image(folder / f"{side}_{guide}.png") for folder, guide in guides], axis=2)[None]
        for side in ("source", "target")
    )
    weights = [weight / 3] * sources.shape[3]

    def run(backend: str, threads: int) -> binding.Synthesis:
        return binding.synthesize(style, sources, targets, guide_weights=weights, backend=backend, threads=threads)

    def quality(result: binding.Synthesis) -> str:
        coherence, completeness = energies(style[0], sources[0], targets[0], result.image[0], weight)
        return f"coherence {coherence:.1f}, completeness {completeness:.1f}"

    return Task(name, run, quality)


def propagation(name: str, source: Images, target: Images) -> Task[binding.Synthesis]:
    """Return the task of painting a frame from another, as Ebsynth smoothers do."""
    weights = [100 / 3] * 3

    def run(backend: str, threads: int) -> binding.Synthesis:
        return binding.synthesize(
            source, source, target, guide_weights=weights, patch_size=21, backend=backend, threads=threads
        )

    def quality(result: binding.Synthesis) -> str:
        error = binding.patch_error(source, target, nnf=result.nnf, patch_size=21, backend="auto").mean() / 21**2
        return f"guide error {error:.2f}, squared difference {np.square(result.image.astype(int) - target).mean():.1f}"

    return Task(name, run, quality)


def fields(name: str, source: Images, target: Images) -> Task[binding.Fields]:
    """Return the task of matching with patches of decreasing size."""

    def run(backend: str, threads: int) -> binding.Fields:
        return binding.match(
            source,
            target,
            patch_sizes=[13, 11, 9, 7, 5],
            start="identity",
            search_radius=16,
            backend=backend,
            threads=threads,
        )

    return Task(name, run, lambda result: f"patch error {result.error.mean() / PATCH**2:.2f}")


def from_flow(name: str, source: Image, target: Image) -> Task[Field]:
    """Return the task of matching as smoothers do, by flow and field; the guide error is summed over colours."""

    def run(backend: str, threads: int) -> Field:
        found: Field = matching.field(target, source, flow(target, source), backend=backend, threads=threads)
        return found

    def quality(field: Field) -> str:
        voted = binding.remap(source[None], field[None], patch_size=PATCH)[0]
        return f"guide error {np.square(voted.astype(float) - target).sum(axis=2).mean():.2f}"

    return Task(name, run, quality)


def energies(style: Image, source: Image, target: Image, image: Image, weight: float) -> tuple[float, float]:
    """Return coherence and completeness of a painted image, by the exact nearest patches."""
    keys = torch.cat([patches(style), patches(source) * weight**0.5], 1)
    queries = torch.cat([patches(image), patches(target) * weight**0.5], 1)
    random = torch.Generator().manual_seed(0)
    coherence = nearest(queries[torch.randperm(len(queries), generator=random)[:SAMPLES]], keys)
    completeness = nearest(patches(style)[torch.randperm(len(keys), generator=random)[:SAMPLES]], patches(image))
    return coherence / (3 * PATCH**2), completeness / (3 * PATCH**2)


def patches(image: Image) -> torch.Tensor:
    """Return all patches of an image [count, values]."""
    return torch.nn.functional.unfold(torch.from_numpy(image).float().permute(2, 0, 1)[None], PATCH)[0].T


def nearest(queries: torch.Tensor, keys: torch.Tensor) -> float:
    """Return the mean squared distance of queries to their nearest keys."""
    norms = (keys**2).sum(1)
    found = [(norms - 2 * part @ keys.T).min(1).values + (part**2).sum(1) for part in queries.split(256)]
    return float(torch.cat(found).mean())


if __name__ == "__main__":
    main()
