"""What can happen to a job: signals, damaged files, full disks, a store that cannot be reached."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from tests.object_stores import expire_soon, moto_server
from tools.chaos.network import Network
from tools.chaos.world import FAILED, FRAMES, INTERRUPTED, REFUSED, World

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


@contextmanager
def remote_cache(world: World) -> Iterator[Network]:
    """Keep the cache in an object store while this context is active, and yield the network on the way there."""
    world.start_over()
    with tempfile.TemporaryDirectory() as folder, moto_server(Path(folder)) as server:
        network = Network(server.port)
        world.url, world.environment = server.new_url(), server.environment | {"AWS_ENDPOINT_URL": network.address}
        try:
            with patch.dict(os.environ, server.environment):
                yield network
        finally:
            network.lose()
            world.url, world.environment = "", {}
            world.start_over()


def _breaks(world: World, network: Network) -> None:
    """Connections break, and requests are repeated."""
    for _ in range(world.chance.randint(1, 3)):
        network.reset()
        time.sleep(world.chance.random() * 0.3)


def _leaves_replies_out(world: World, network: Network) -> None:
    """Requests arrive, but their replies do not."""
    network.unanswered = world.chance.randint(1, 3)


def _stalls(world: World, network: Network) -> None:
    """Nothing arrives for a while."""
    with network.stalled():
        time.sleep(world.chance.random() * 5)


def _is_away(world: World, network: Network) -> None:
    """Connections are refused for less time than requests are repeated."""
    network.lose()
    time.sleep(world.chance.random() * 0.5)
    network.find()


OUTAGES = (_breaks, _leaves_replies_out, _stalls, _is_away)


@fault
def store_away(world: World) -> None:
    """The object store with the cache cannot be reached for a moment, of which the run must not take notice."""
    with remote_cache(world) as network:
        program = world.start()
        for _ in range(world.chance.randint(1, 3)):
            world.let_it_work(program)
            outage = world.chance.choice(OUTAGES)
            world.log.append(f"the store {outage.__name__.strip('_').replace('_', ' ')}")
            outage(world, network)
        world.finish(program)
        world.complete()


@fault
def store_lost(world: World) -> None:
    """The object store with the cache is lost until the run gives up or is killed, and later it is back."""
    with remote_cache(world) as network:
        program = world.start()
        world.let_it_work(program)
        network.lose()
        world.log.append("the store is lost")
        if killed := world.chance.random() < 0.5:
            time.sleep(world.chance.random())
            world.send(program, signal.SIGKILL)
        world.finish(program, FAILED, *([-signal.SIGKILL] if killed else []))
        network.find()
        world.log.append("the store is back")
        expire_soon(world.url)
        world.complete()


ROOT_ONLY = ("disk full", "disk read only")
REMOTE = ("store away", "store lost")
# These end with a comparison of their own.
REPAIRED = ("flipped", "truncated", "deleted", "zeroed", "source changed", *REMOTE, *ROOT_ONLY)


# --- choosing -------------------------------------------------------------------------------------------


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
        world.log.clear()
