"""Work of the CUDA back end, counted on an emulated GPU: launches, comparisons, memory. It says nothing about time.

    python -m benchmarks.emulated [NATIVE ...] [--side 96]

Counts this project's library, or the source folders NATIVE of other versions beside it. A comparison
is one pass of a warp over the patches of up to four candidates, 4 to 32 pixels of each.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from native import binding
from stages.smoothers.images import matching
from stages.video import fit
from stages.video.video_file import VideoFile
from tests.native import emulator

SHUFFLES = 3  # per comparison: the lanes of a team add up their shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("native", type=Path, nargs="*", help="source folders of other versions")
    parser.add_argument("--side", type=int, default=96, help="height of the images, px")
    given = parser.parse_args()
    table = Table(title=f"{given.side * 2}×{given.side}, one pair")
    for heading in ("task", "version", "launches", "blocks", "comparisons", "allocations", "peak MB"):
        table.add_column(heading, justify="left" if heading in ("task", "version") else "right")
    with tempfile.TemporaryDirectory() as folder:
        machines = {
            str(native): emulator.Emulator(emulator.build(native.resolve(), Path(folder) / str(index)))
            for index, native in enumerate(given.native)
        } | {"this one": emulator.Emulator(emulator.build())}
        for name, run in tasks(given.side).items():
            for version, machine in machines.items():
                table.add_row(name, version, *count(machine, run))
    Console(width=140).print(table)


def tasks(side: int) -> dict[str, Callable[[], object]]:
    """Searches as the smoothers, keyframes and the command `ebsynth` make them."""
    (video,) = (Path(__file__).parents[1] / "templates").glob("*.mp4")
    shots = [fit(shot.image(), side, 2 * side)[None] for shot in islice(VideoFile(video).shots(), 4)]
    source, target = shots[0], shots[3]
    own = np.ascontiguousarray(np.indices((side, 2 * side), np.int32).transpose(1, 2, 0)[None])
    return {
        "fields, patches 13…5": lambda: binding.match(source, target, patch_sizes=[13, 11, 9, 7, 5], backend="cuda"),
        "PatchBlendSmoother's search": lambda: binding.match(
            source, target, start="given", nnf=own, patch_sizes=(matching.PATCH,) * matching.SWEEPS,
            patch_match_iterations=1, pyramid_levels=matching.LEVELS, search_radius=matching.SEARCH_RADIUS,
            backend="cuda",
        ),
        "PySynthSmoother's search": lambda: binding.match(
            source, target, source, guide_weight=100.0, patch_sizes=[21] * 6, patch_match_iterations=1, border="zero",
            backend="cuda",
        ),
        "guided synthesis, patch 5": lambda: binding.synthesize(source, source, target, backend="cuda"),
        "guided synthesis, patch 21": lambda: binding.synthesize(
            source, source, target, guide_weights=[100 / 3] * 3, patch_size=21, backend="cuda"
        ),
    }  # fmt: skip


def count(machine: emulator.Emulator, run: Callable[[], object]) -> list[str]:
    """Run a task on an emulated machine and return the row's numbers."""
    names = ("launches", "blocks", "exchanges", "allocations")
    machine.counts.peak_bytes = machine.counts.live_bytes
    before = [getattr(machine.counts, name) for name in names]
    os.environ["EBSYNTH_LIBRARY"] = str(machine.library)
    run()
    launches, blocks, exchanges, allocations = (
        getattr(machine.counts, name) - old for name, old in zip(names, before, strict=True)
    )
    peak = machine.counts.peak_bytes / 2**20
    return [f"{launches}", f"{blocks}", f"{exchanges // SHUFFLES:,}", f"{allocations}", f"{peak:.1f}"]


if __name__ == "__main__":
    main()
