"""Fuzz the command line and print a table of outcomes, or the smallest case that ends badly.

python -m tools.fuzz [--seed 0] [--jobs 1200] [--only jobs] [--verbose]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tools.fuzz.cases import CASES
from tools.fuzz.tally import BadOutcome, run_all

COUNTS = {"jobs": 1200, "videos": 400, "caches": 350, "names": 50}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument("--only", choices=CASES, action="append", help="run only this kind of case; repeatable")
    parser.add_argument("--verbose", action="store_true", help="print every case")
    for name, count in COUNTS.items():
        parser.add_argument(f"--{name}", type=int, default=count, help=f"number of cases (default: {count})")
    options = parser.parse_args()
    counts = {name: getattr(options, name) for name in options.only or CASES}
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        try:
            tally = run_all(Path(folder), counts, options.seed, sys.stdout if options.verbose else None)
        except BadOutcome as bad:
            print(bad)
            return 1
    print(tally.report())
    return 0


if __name__ == "__main__":
    sys.exit(main())
