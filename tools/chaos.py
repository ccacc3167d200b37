"""Disturb a job in every way that a long night can, and compare its bytes with those of an undisturbed run.

    python -m tools.chaos [--minutes 15] [--times N] [--fault NAME ...] [--seed 0] [--verbose]

After every fault, the program must say what is wrong and what to do, or finish the job. Once the job is finished, its
arrays and its video must have the bytes of an undisturbed run. A fault that damages files may be answered by a refusal,
after which `run --restart` must repair everything. Exits with 1 at the first wrong byte, traceback or unexplained exit,
and leaves the folder for inspection.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from rich.console import Console
from rich.table import Table

from stages.base.outputs import VIDEO
from tests.conftest import scene, write_images, write_job
from tests.object_stores import contents
from tests.processes import Program
from tools.fuzz.outcome import UNEXPLAINED

FRAMES = 16
KEYS = {
    "combine_pattern": [-10000, -1, 0, 1], "num_inference_steps": 2, "keep_steps": True,
    "smoother": "TemporalMeanSmoother", "post_smoother": "PatchBlendSmoother", "batch_size": 2,
}  # fmt: skip
DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130
PATIENCE = 120  # s that a command may take
MOST_EVENTS = 30  # after which a fault comes, of about as many that a run has
ATTEMPTS = 3  # to finish a damaged job


class Wrong(Exception):
    """The program did something that it must never do."""


@dataclass
class World:
    """A job that is disturbed.

    Args:
        folder: Where its files are.
        chance: Decides when and where faults happen.
        expected: What arrays and video must be.
    """

    folder: Path
    chance: random.Random
    expected: dict[str, str] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    """What happened since the last start."""

    @property
    def job(self) -> Path:
        return self.folder / "job.json"

    @property
    def output(self) -> Path:
        return self.folder / "out"

    def start(self, *options: str) -> Program:
        """Start or resume the job."""
        self.log.append(" ".join(["run", *options]))
        return Program("run", self.job, "--json", *options)

    def let_it_work(self, program: Program) -> None:
        """Wait for a random moment of a run."""
        for _ in range(self.chance.randint(0, MOST_EVENTS)):
            if not program.out.readline():
                return
        time.sleep(self.chance.random() * 0.05)

    def send(self, program: Program, *how: signal.Signals) -> None:
        """Send signals to a run, a moment apart, unless it has ended."""
        for each in how:
            with suppress(ProcessLookupError):
                os.kill(program.pid, each)
            time.sleep(0.1 if len(how) > 1 else 0)

    def finish(self, program: Program, *codes: int) -> int:
        """Wait for the end of a run, and return its exit code, which must be 0 or one of these."""
        program.process.join(PATIENCE)
        if program.process.exitcode is None:
            program.process.kill()
            raise Wrong(f"it did not end within {PATIENCE} s")
        code, _, printed = program.finish()
        self.log.append(f"  exit code {code}: {printed.strip()[-500:]}")
        if "Traceback" in printed or UNEXPLAINED in printed or code not in (DONE, *codes):
            raise Wrong(f"exit code {code}")
        if code in (FAILED, REFUSED) and "error:" not in printed:
            raise Wrong("it failed without a message")
        return code

    def complete(self, *, damaged: bool = False) -> None:
        """Finish the job, and compare its bytes. A run may refuse damaged files, and is then restarted."""
        self.finish(self.start(), *([FAILED] if damaged else []))
        codes = (self.finish(self.start("--restart"), FAILED) for _ in range(ATTEMPTS))
        if damaged and all(code != DONE for code in codes):
            raise Wrong("--restart does not repair it")
        if damaged:
            self.heed_verify()
        self.compare()

    def heed_verify(self) -> None:
        """Delete the video if `verify` says that it is damaged, and have it written again.

        The user may have changed it, so no run replaces it unasked.
        """
        self.log.append("verify")
        if self.finish(Program("verify", self.job, "--json"), FAILED) == FAILED:
            (self.output / VIDEO).unlink()
            self.finish(self.start())

    def compare(self) -> None:
        """Raise Wrong unless the results are those of an undisturbed run."""
        found = results(self.output)
        different = sorted(name for name in {*found, *self.expected} if found.get(name) != self.expected.get(name))
        if different:
            raise Wrong(f"{len(different)} of {len(self.expected)} files differ: {', '.join(different[:5])}")

    def start_over(self) -> None:
        """Remove all results."""
        shutil.rmtree(self.output, ignore_errors=True)
        self.log.clear()

    def files(self) -> list[Path]:
        """Return all files that the program has written, in order."""
        return sorted(path for path in self.output.rglob("*") if path.is_file())


def results(output: Path) -> dict[str, str]:
    """Return the hashes of all arrays' files and of the video. Metadata of groups says only that they are groups."""
    video, files = output / VIDEO, contents(output / "cache.zarr")
    arrays = {name.rpartition("/c.")[0] for name in files if "/c." in name}
    kept = {name: digest for name, digest in files.items() if "/c." in name or name.rpartition("/")[0] in arrays}
    return {**kept, video.name: sha256(video.read_bytes()).hexdigest() if video.exists() else ""}


# --- faults ---------------------------------------------------------------------------------------------

Fault = Callable[[World], None]
FAULTS: dict[str, Fault] = {}


def fault(disturb: Fault) -> Fault:
    """Register a fault under its function's name."""
    FAULTS[disturb.__name__.replace("_", " ")] = disturb
    return disturb


def _stopped(world: World, how: signal.Signals, *codes: int) -> None:
    """Send a signal at a random moment, perhaps before the program handles it."""
    program = world.start()
    world.let_it_work(program)
    world.send(program, how)
    world.finish(program, -how, *codes)


@fault
def killed(world: World) -> None:
    """SIGKILL at a random moment."""
    _stopped(world, signal.SIGKILL)


@fault
def interrupted(world: World) -> None:
    """SIGINT at a random moment, as Ctrl-C sends it."""
    _stopped(world, signal.SIGINT, INTERRUPTED)


@fault
def terminated(world: World) -> None:
    """SIGTERM at a random moment."""
    _stopped(world, signal.SIGTERM, INTERRUPTED)


@fault
def paused(world: World) -> None:
    """SIGSTOP and SIGCONT, as when a laptop sleeps, then SIGKILL."""
    program = world.start()
    world.let_it_work(program)
    world.send(program, signal.SIGSTOP, signal.SIGCONT)
    world.let_it_work(program)
    program.process.kill()
    world.finish(program, -signal.SIGKILL)


@fault
def started_twice(world: World) -> None:
    """Two runs of the same job at once. One may find the cache locked."""
    first, second = world.start(), world.start()
    world.let_it_work(first)
    first.process.kill()
    world.finish(first, -signal.SIGKILL, FAILED)
    world.finish(second, FAILED)


@fault
def killed_while_restarting(world: World) -> None:
    """SIGKILL while stages are redone."""
    program = world.start("--restart")
    world.let_it_work(program)
    program.process.kill()
    world.finish(program, -signal.SIGKILL)


@fault
def clock_set_back(world: World) -> None:
    """All files seem to be from tomorrow."""
    killed(world)
    tomorrow = time.time() + 86_400
    for file in world.files():
        os.utime(file, (tomorrow, tomorrow))


@fault
def source_changed(world: World) -> None:
    """A frame of the source becomes another one while the job runs, and returns later."""
    image = world.folder / "images" / f"{world.chance.randrange(FRAMES)}.png"
    original = image.read_bytes()
    program = world.start()
    world.let_it_work(program)
    other = world.folder / "images" / f"{world.chance.randrange(FRAMES)}.png"
    image.write_bytes(other.read_bytes())
    world.log.append(f"{image.name} becomes {other.name}")
    world.finish(program, FAILED)
    world.finish(world.start(), FAILED)
    image.write_bytes(original)
    world.log.append(f"{image.name} is itself again")
    world.complete(damaged=True)


def _damage(world: World, change: Callable[[Path], object]) -> None:
    """Damage a random file of a job that is finished or not, and have it repaired."""
    if world.chance.random() < 0.5:
        killed(world)
    else:
        world.finish(world.start())
    if not any(world.output.glob("cache.zarr/[mr]*s/*.json*")):  # killed before anything was recorded
        return
    if files := world.files():
        file = world.chance.choice(files)
        world.log.append(f"{file.relative_to(world.output)} is damaged")
        change(file)
    world.complete(damaged=True)


@fault
def flipped(world: World) -> None:
    """A bit of a file flips."""

    def flip(file: Path) -> None:
        if data := bytearray(file.read_bytes()):
            data[world.chance.randrange(len(data))] ^= 1 << world.chance.randrange(8)
            file.write_bytes(data)

    _damage(world, flip)


@fault
def truncated(world: World) -> None:
    """A file loses its end."""
    _damage(world, lambda file: os.truncate(file, world.chance.randint(0, max(0, file.stat().st_size - 1))))


@fault
def deleted(world: World) -> None:
    """A file is deleted."""
    _damage(world, lambda file: file.unlink())


@fault
def zeroed(world: World) -> None:
    """A file becomes zeros, as after a power failure."""
    _damage(world, lambda file: file.write_bytes(bytes(file.stat().st_size)))


@contextmanager
def small_disk(world: World, size: str) -> Iterator[None]:
    """A disk of its own for the results while this context is active. Needs root."""
    world.start_over()
    world.output.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "chaos", world.output], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", world.output], check=True)
        world.start_over()


def _remount(world: World, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", world.output], check=True)
    world.log.append(f"the disk becomes {options}")


@fault
def disk_full(world: World) -> None:
    """The disk is full, and later it is not."""
    with small_disk(world, f"{world.chance.randint(40, 1500)}k"):
        world.finish(world.start(), FAILED)
        _remount(world, "size=100M")
        world.complete()


@fault
def disk_read_only(world: World) -> None:
    """The disk becomes read-only between two runs, and writable later."""
    with small_disk(world, "100M"):
        killed(world)
        _remount(world, "ro")
        world.finish(world.start(), FAILED, REFUSED)
        _remount(world, "rw")
        world.complete()


ROOT_ONLY = ("disk full", "disk read only")
REPAIRED = ("flipped", "truncated", "deleted", "zeroed", "source changed", *ROOT_ONLY)  # compare bytes themselves


# --- running --------------------------------------------------------------------------------------------


@contextmanager
def world(folder: Path, seed: int) -> Iterator[World]:
    """Yield a job in a new folder, after an undisturbed run of it."""
    write_images(folder / "images", (scene(index) for index in range(FRAMES)))
    write_job(folder, FRAMES, **KEYS)
    made = World(folder, random.Random(seed))
    made.finish(made.start())
    made.expected = results(made.output)
    made.start_over()
    yield made


def usable() -> list[str]:
    """Return the faults that this user can bring about."""
    mounts = sys.platform == "linux" and os.geteuid() == 0
    return [name for name in FAULTS if mounts or name not in ROOT_ONLY]


def disturb(world: World, name: str) -> None:
    """Bring about a fault. Now and then finish the job, compare its bytes, and start over."""
    world.log.append(f"*** {name}")
    FAULTS[name](world)
    if name in REPAIRED or world.chance.random() < 0.3:
        if name not in REPAIRED:
            world.complete()
        world.start_over()


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
