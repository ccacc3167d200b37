"""Disturb a job in every way that a long night can, and compare its bytes with those of an undisturbed run.

    python -m tools.chaos [--minutes 15] [--times N] [--fault NAME ...] [--seed 0] [--verbose]

After every fault, the program must say what is wrong and what to do, or finish the job. Once the job is finished, its
arrays and its video must have the bytes of an undisturbed run. A fault that damages files may be answered by a refusal,
after which `run --restart` must repair everything. Exits with 1 at the first wrong byte, traceback or unexplained exit,
and leaves the folder for inspection.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tools.chaos.faults import FAULTS, disturb, usable
from tools.chaos.world import Wrong, world


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--times", type=int, help="stop after so many faults")
    parser.add_argument("--fault", choices=FAULTS, action="append", help="repeatable; all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true")
    given = parser.parse_args()
    names, counts, until = given.fault or usable(), Counter[str](), time.monotonic() + 60 * given.minutes
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    with world(folder, given.seed) as disturbed:
        while time.monotonic() < until and counts.total() != given.times:
            name = names[counts.total() % len(names)]
            try:
                disturb(disturbed, name)
            except Wrong as wrong:
                print(*disturbed.log, f"WRONG after {counts.total()} faults: {wrong}; see {folder}", sep="\n")
                return 1
            counts[name] += 1
            if given.verbose:
                print(name, flush=True)
    show(counts)
    shutil.rmtree(folder)
    return 0


def show(counts: Counter[str]) -> None:
    """Print how often each fault was brought about."""
    table = Table(title=f"{counts.total()} faults, no wrong byte")
    table.add_column("fault")
    table.add_column("times", justify="right")
    for name, count in counts.items():
        table.add_row(name, str(count))
    for name in FAULTS.keys() - counts:
        table.add_row(name, "needs root" if name not in usable() else "0")
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
