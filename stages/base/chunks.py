"""Zarr's view of a store, in which a missing chunk is an error."""

from __future__ import annotations

from dataclasses import dataclass

from zarr.abc.store import ByteRequest
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from stages.base.store import CHUNK, MissingChunk


@dataclass(frozen=True)
class Traffic:
    """How many frames were read and written, and how many bytes they were, compressed."""

    gets: int = 0
    puts: int = 0
    bytes_read: int = 0
    bytes_written: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return self.plus(other, 1)

    def __sub__(self, other: Traffic) -> Traffic:
        return self.plus(other, -1)

    def plus(self, other: Traffic, times: float) -> Traffic:
        """Return the sum of this and `times` the other."""
        return Traffic(
            round(self.gets + times * other.gets),
            round(self.puts + times * other.puts),
            round(self.bytes_read + times * other.bytes_read),
            round(self.bytes_written + times * other.bytes_written),
        )


class Chunks(WrapperStore[ZarrStore]):
    """A Zarr store in which missing chunks raise MissingChunk. Zarr would return zeros, a black frame.

    `traffic` counts the chunks that have been read and written.
    """

    def __init__(self, store: ZarrStore):
        super().__init__(store)
        self.traffic = Traffic()

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        found = await super().get(key, prototype, byte_range)
        if is_chunk(key):
            if found is None:
                raise MissingChunk(key)
            self.traffic += Traffic(gets=1, bytes_read=len(found))
        return found

    async def set(self, key: str, value: Buffer) -> None:
        await super().set(key, value)
        if is_chunk(key):
            self.traffic += Traffic(puts=1, bytes_written=len(value))


def is_chunk(key: str) -> bool:
    """Whether Zarr stores a chunk under this key, rather than metadata."""
    return key.rpartition("/")[2].startswith(CHUNK)
