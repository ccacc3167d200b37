"""Doing work of one stage a second time, in another stage, with arrays of its own: all names get a prefix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from stages.base.cache import ArraySpec, FrameArray, FrameCache
from stages.base.engine import Phase, Task
from stages.base.overlap import Reads


class PrefixedCache(FrameCache):
    """A cache whose arrays are known by the part of their names that follows a prefix.

    Args:
        cache: The cache that holds them.
        prefix: What their names begin with.
    """

    def __init__(self, cache: FrameCache, prefix: str):
        super().__init__(cache.store, cache.arguments, cache.made_by, cache.kept)
        self.plain, self.prefix = cache, prefix

    def __getitem__(self, name: str) -> FrameArray:
        return self.plain[self.prefix + name]

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.plain


@dataclass
class PrefixedTask(Task):
    """A task on a `PrefixedCache`.

    Args:
        task: The task.
        prefix: What the names of its arrays begin with.
    """

    task: Task
    prefix: str

    @property
    def chunk(self) -> int:
        return self.task.chunk

    @property
    def warm_up(self) -> int:
        return self.task.warm_up

    @property
    def kind(self) -> str:
        """Another one than without the prefix, since frames may have another size."""
        return self.task.kind and f"{self.task.kind} ({self.prefix.rstrip('_')})"

    def reads(self, start: int, stop: int) -> Reads:
        return [(self.prefix + name, frames) for name, frames in self.task.reads(start, stop)]

    def work(self, frames: int) -> dict[str, float]:
        return self.task.work(frames)

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        self.task.run(PrefixedCache(cache, self.prefix), start, stop)

    def close(self) -> None:
        self.task.close()


def prefixed_phase(phase: Phase, prefix: str) -> Phase:
    """Return a phase whose arrays have a prefix."""
    note = partial(_noted, phase, prefix)
    drops = tuple(prefix + name for name in phase.drops)
    completes = phase.completes and prefix + phase.completes
    return replace(phase, task=PrefixedTask(phase.task, prefix), drops=drops, completes=completes, note=note)


def _noted(phase: Phase, prefix: str, cache: FrameCache) -> str:
    return phase.note(PrefixedCache(cache, prefix))


def prefixed_arrays(arrays: Sequence[ArraySpec], prefix: str) -> list[ArraySpec]:
    """Return arrays whose names have a prefix."""
    return [replace(spec, name=prefix + spec.name) for spec in arrays]
