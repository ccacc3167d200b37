"""Zarr's view of a store, in which a missing chunk is an error."""

from __future__ import annotations

from zarr.abc.store import ByteRequest
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from stages.base.store import CHUNK, MissingChunk


class Chunks(WrapperStore[ZarrStore]):
    """A Zarr store in which missing chunks raise MissingChunk. Zarr would return zeros, a black frame."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        found = await super().get(key, prototype, byte_range)
        if found is None and key.rpartition("/")[2].startswith(CHUNK):
            raise MissingChunk(key)
        return found
