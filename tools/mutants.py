"""Check that the tests of the CUDA back end catch mistakes in it: plant one at a time and run them.

    python -m tools.mutants [NAME ...]

Takes about half a minute per mutant. Exits with 1 if one survives.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.native import emulator

NATIVE = Path(__file__).parents[1] / "native"
TESTS = ("tests/native/test_cuda.py", "tests/native/test_reference.py", "tests/native/test_binding.py")
SECONDS = 300  # a mutant may hang


@dataclass(frozen=True)
class Mutant:
    """A mistake: `old`, which occurs once in `file`, becomes `new`."""

    name: str
    file: str
    old: str
    new: str


MUTANTS = (
    Mutant("no barrier between diagonals", "cuda_search.cuh", "++diagonal, __syncthreads())", "++diagonal)"),
    Mutant(
        "a warp without work leaves early",
        "cuda_search.cuh",
        "if (!__syncthreads_or(active)) return;",
        "if (!row_active) return; __syncthreads_or(active);",
    ),
    Mutant(
        "a lane skips a collective",
        "cuda_search.cuh",
        "for (unsigned left = __ballot_sync(kAll, valid); left;) {",
        "if (!valid && threadIdx.x % 2) return;\n    for (unsigned left = __ballot_sync(kAll, valid); left;) {",
    ),
    Mutant(
        "the last of equal candidates wins", "cuda_search.cuh", "if (theirs > most)", "if (theirs && theirs >= most)"
    ),
    Mutant("the bound is too high", "cuda_search.cuh", "kSafety = 1 - 1e-5f", "kSafety = 1.2f"),
    Mutant(
        "the last candidate is never tried", "cuda_search.cuh", "valid = lane < draws;", "valid = lane < draws - 1;"
    ),
    Mutant(
        "the radius shrinks too fast",
        "cuda_search.cuh",
        "level.radius >> lane * level.shift",
        "level.radius >> 2 * lane",
    ),
    Mutant(
        "a row counts twice in sums over patches", "cuda.cu", "to[c] = (float)sum;", "to[c] = (float)(sum + from[c]);"
    ),
    Mutant("no barrier between rows and columns", "cuda_box.cuh", "    __syncthreads();\n", ""),
    Mutant(
        "nothing stands for what is beyond the border",
        "cuda_box.cuh",
        "return common + before + after;",
        "return common + before;",
    ),
    Mutant("a tile is read past its end", "cuda_search.cuh", "lane < width;", "lane <= width;"),
    Mutant("usage is not taken back", "cuda_search.cuh", "atomicSub(level.used", "(void)(level.used"),
    Mutant(
        "a vote ignores the last column",
        "cuda.cu",
        "tx <= min(x + radius, v.width - 1)",
        "tx < min(x + radius, v.width - 1)",
    ),
    Mutant("results are not waited for", "cuda.cu", "ignore(cudaStreamSynchronize(stream))", "(void)0"),
    Mutant("buffers are not given back", "cuda.cu", "if (data_) pool_->give(data_, bytes_);", "(void)0;"),
    Mutant(
        "buffers are a byte too short",
        "cuda.cu",
        "count * sizeof(T) + 256) / 256 * 256",
        "count * sizeof(T) - 1) / 256 * 256",
    ),
    Mutant("always the first device", "cuda.cu", "device_(settings.device)", "device_(0)"),
    Mutant("the device before gets a context", "cuda_memory.cuh", "&& has_context(before_)", ""),
    Mutant(
        "no fallback to the CPU", "api.cpp", "settings.backend == EBSYNTH_CUDA || failure", "failure.status || failure"
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only these mutants")
    wanted = parser.parse_args().names
    table, survivors = Table("mutant", "caught by"), 0
    with tempfile.TemporaryDirectory() as folder:
        native, build = Path(folder) / "native", Path(folder) / "build"
        shutil.copytree(NATIVE, native, ignore=shutil.ignore_patterns("*.so", "*.py", "__pycache__"))
        for mutant in MUTANTS:
            if wanted and mutant.name not in wanted:
                continue
            with planted(mutant, native):
                emulator.build.cache_clear()
                caught_by = failure(emulator.build(native, build))
            print(f"{mutant.name}: {caught_by or 'survived'}", flush=True)
            table.add_row(mutant.name, caught_by or "[red]nothing")
            survivors += not caught_by
    Console(width=140).print(table)
    sys.exit(bool(survivors))


@contextmanager
def planted(mutant: Mutant, native: Path) -> Iterator[None]:
    """Change the source folder `native` for a scope. Files change their time stamp when they change back, too."""
    file = native / "src" / mutant.file
    text = file.read_text()
    if text.count(mutant.old) != 1:
        sys.exit(f"{mutant.name}: {mutant.old!r} occurs {text.count(mutant.old)} times in {mutant.file}, not once")
    file.write_text(text.replace(mutant.old, mutant.new))
    yield
    file.write_text(text)


def failure(library: Path) -> str:
    """Run the tests with a library and return the first that fails, "" if none does."""
    environment = os.environ | {"EMULATED_LIBRARY": str(library), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-k",
        "emulated or test_cuda",
        "-p",
        "no:cacheprovider",
        *TESTS,
    ]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return "hangs"
    failed = [line.split(" ")[1] for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    aborted = [line for line in done.stderr.splitlines() if line.startswith("CUDA emulator: ")]
    return "" if not done.returncode else (failed + aborted + [f"exit code {done.returncode}"])[0]


if __name__ == "__main__":
    main()
