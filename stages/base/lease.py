"""A lock in an object store: an object that its holder keeps changing, and that others take over once it stands still.

Clocks of different machines are never compared. A process takes over a lease only after it has seen the same version
of the object for the lease's whole duration, by its own clock. Conditional writes decide who wins.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, TypeAlias
from uuid import uuid4

from stages.base.errors import DiffSynthError
from stages.base.json_types import Values
from stages.base.store import LOCK, as_json, describe_process, from_json, in_use, this_process

DURATION = 30.0  # s
RENEWALS = 3  # in this time
POLLS = 15  # in this time, of a process that waits for the lease
GIVEN_UP = 4  # durations after which `holder` takes a process for dead

Version: TypeAlias = tuple[str | None, str | None]
"""The entity tag of an object, and its version or generation."""


class Objects(Protocol):
    """An object store with conditional writes. `str` returns its address."""

    def get_version(self, name: str) -> tuple[bytes, Version] | None:
        """Return an object and its version. None if it does not exist."""

    def put_if(self, name: str, data: bytes, version: Version | None) -> Version | None:
        """Store an object if its current version is this one or, for None, if it does not exist.

        Returns:
            The new version. None if the condition was not met.
        """


def boot_time() -> float:
    """Return the seconds since some moment. On Linux, they include those in which the machine was suspended."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


@dataclass(frozen=True)
class Clock:
    """How time passes, in seconds."""

    now: Callable[[], float] = boot_time
    sleep: Callable[[float], None] = time.sleep


REAL = Clock()


class Lease:
    """The lease on an object store.

    Args:
        objects: The store.
        duration: Seconds without a renewal after which another process may take over.
        clock: How time passes.
    """

    def __init__(self, objects: Objects, duration: float, clock: Clock = REAL):
        self.objects, self.duration, self.clock = objects, duration, clock
        self.owner: Values = {**this_process(), "lease": uuid4().hex, "duration": duration}
        self.version: Version | None = None
        self.renewals, self.renewed, self.lost = 0, 0.0, False
        self.writing, self.ended = threading.Lock(), threading.Event()
        self.renewer = threading.Thread(target=self._keep_renewing, name="renew the lease", daemon=True)

    def acquire(self, waiting: Callable[[str], object]) -> None:
        """Take the lease, and keep renewing it in a thread.

        Args:
            waiting: Called with a message before waiting to see whether the last holder is alive.

        Raises:
            DiffSynthError: Another process has the lease.
        """
        if not self._write(None) and not self._write(self._vacated(waiting)):
            raise in_use(str(self.objects), holder(self.objects))
        self.renewer.start()

    def check(self) -> None:
        """Raise DiffSynthError if another process may have taken over."""
        if self.clock.now() - self.renewed > self.duration / 2:  # the thread could not renew it in time
            self._renew()
        if self.lost:
            who = holder(self.objects) or "another process"
            raise DiffSynthError(
                f"{self.objects}: {who} has taken over, since this process could not renew its lock for "
                f"{self.duration:g} s",
                "Nothing was lost. Let the other process finish, or stop it and run the same command to resume.",
            )

    def release(self) -> None:
        """Let the next process have the lease at once."""
        self.ended.set()
        self.renewer.join()
        if not self.lost:
            with suppress(DiffSynthError):  # then the next process has to wait
                self._write(self.version, released=True)

    def _vacated(self, waiting: Callable[[str], object]) -> Version | None:
        """Return the version of a lease that nobody holds, after waiting until that is certain."""
        owner, version = _read(self.objects)
        if owner.get("released"):
            return version
        duration = float(owner.get("duration", self.duration))
        who = describe_process(owner) or "a process that was killed"
        waiting(f"the cache was last used by {who}; waiting up to {duration:g} s to see whether that still runs")
        until = self.clock.now() + duration
        while self.clock.now() < until:
            self.clock.sleep(duration / POLLS)
            owner, current = _read(self.objects)
            if owner.get("released"):
                return current
            if current != version:
                raise in_use(str(self.objects), describe_process(owner))
        return version

    def _keep_renewing(self) -> None:
        while not self.lost and not self.ended.wait(self.duration / RENEWALS):
            with suppress(DiffSynthError):  # the next attempt may succeed; until then `check` decides
                self._renew()

    def _renew(self) -> None:
        with self.writing:
            self.lost = self.lost or not self._write(self.version)

    def _write(self, version: Version | None, released: bool = False) -> bool:
        """Write the lease if its version is this one, and return whether it was."""
        self.renewals += 1  # makes every version differ from all others
        started = self.clock.now()
        data = as_json({**self.owner, "renewals": self.renewals, "released": released, "written": time.time()})
        new = self.objects.put_if(LOCK, data, version)
        if new is None:  # perhaps it was written, but the reply was lost and the repeated request was refused
            found = self.objects.get_version(LOCK)
            new = found[1] if found is not None and found[0] == data else None
        if new is not None:
            self.version, self.renewed = new, started
        return new is not None


def holder(objects: Objects) -> str | None:
    """Describe the process that has the lease. None if there is none, or if it was given up long ago."""
    owner, _ = _read(objects)
    age = time.time() - float(owner.get("written", 0))
    if owner.get("released") or age > GIVEN_UP * float(owner.get("duration", DURATION)):
        return None
    return describe_process(owner)


def _read(objects: Objects) -> tuple[Values, Version | None]:
    """Return what is known about the holder, and the version of the lease. Without a lease, it counts as released."""
    found = objects.get_version(LOCK)
    if found is None:
        return {"released": True}, None
    owner = from_json(found[0])
    return (owner if isinstance(owner, dict) else {}), found[1]
