"""A store in an object store such as S3. The only user of obstore, which the optional extra `cloud` installs.

Credentials and the endpoint come from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL and so on).
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TypeVar
from uuid import uuid4

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, GenericError, PreconditionError
from obstore.store import ObjectStore as Objects
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore as ZarrObjectStore

from stages.base.chunks import Chunks
from stages.base.errors import DiffSynthError, UsageError
from stages.base.lease import DURATION, Lease, Version, holder
from stages.base.store import CHUNK, Journal, Store, open_store

SCHEMES = ("s3://", "s3a://", "gs://", "az://", "abfs://", "abfss://")
PROBE = "probe-"  # the beginning of names of objects with which a store is tried
COMMIT_INTERVAL = 1.0  # s between objects of a journal
LONGEST_BREAK = 5.0  # s for which such requests are repeated that obstore does not repeat
REPEATED = " retries"  # in messages about requests that obstore has repeated
BROKEN = "HTTP error"  # in messages about connections, but not about replies of the store
HALFWAY = "body error"  # in messages about those that broke in the middle, after which obstore repeats nothing
LISTED = 1000  # names that are listed before they are deleted

Result = TypeVar("Result")


class ObjectStore:
    """Objects whose names start with a prefix.

    Args:
        url: Bucket and prefix, `s3://bucket/prefix`.

    Raises:
        UsageError: The URL is of an unknown kind, or has no bucket.
    """

    readers = 32

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        try:
            if not url.startswith(SCHEMES):
                raise ValueError
            self.objects: Objects = obstore.store.from_url(self.url)
        except (BaseError, ValueError):
            raise UsageError(f"cache: unknown URL {url}", "give a folder, or a URL such as s3://BUCKET/NAME") from None
        self.arrays = Chunks(ZarrObjects(self.objects, self.url))
        self.lease: Lease | None = None

    def __str__(self) -> str:
        return self.url

    def __reduce__(self) -> tuple[Callable[[str], Store], tuple[str]]:
        return open_store, (self.url,)  # another process has a connection of its own and does not hold the lease

    # --- reading ----------------------------------------------------------------------------------------

    def get(self, name: str) -> bytes | None:
        found = self.get_version(name)
        return None if found is None else found[0]

    def get_version(self, name: str) -> tuple[bytes, Version] | None:
        """Return an object and its version. None if it does not exist."""

        def get() -> tuple[bytes, Version] | None:
            try:
                result = obstore.get(self.objects, name)
                return bytes(result.bytes()), (result.meta["e_tag"], result.meta["version"])
            except FileNotFoundError:
                return None

        return repeated(self.url, get)

    def get_many(self, names: Sequence[str]) -> list[bytes | None]:
        """Do what `get` does for many names at once."""
        with ThreadPoolExecutor(self.readers) as pool:
            return list(pool.map(self.get, names))

    def children(self, folder: str) -> list[str]:
        listed = repeated(self.url, lambda: obstore.list_with_delimiter(self.objects, folder or None))
        paths = [*listed["common_prefixes"], *(item["path"] for item in listed["objects"])]
        return [path.rpartition("/")[2] for path in paths]

    # --- writing ----------------------------------------------------------------------------------------

    def put(self, name: str, data: bytes) -> None:
        self._check_lease()
        repeated(self.url, lambda: obstore.put(self.objects, name, data))

    def put_if(self, name: str, data: bytes, version: Version | None) -> Version | None:
        """Store an object if its current version is this one or, for None, if it does not exist.

        Returns:
            The new version. None if the condition was not met.

        Raises:
            UsageError: The store ignores conditions.
        """
        assert self.has_conditions
        return self._put_if(name, data, version)

    def delete(self, name: str) -> None:
        self._delete([name])

    def delete_all(self, folder: str) -> None:
        self._delete_listed(folder, "")

    def delete_chunks(self, array: str) -> None:
        self._delete_listed(array, CHUNK)

    def size(self, name: str) -> int:
        def listed() -> int:
            return sum(item["size"] for batch in obstore.list(self.objects, name) for item in batch)

        return repeated(self.url, listed) or len(self.get(name) or b"")

    def flush(self, names: Sequence[str]) -> None:
        """Do nothing: what has been stored is durable."""

    def sweep(self, folder: str) -> None:
        """Do nothing: objects are complete or do not exist."""

    def leftovers(self) -> list[str]:
        return [name for name in self.children("") if name.startswith(PROBE)]

    def journal(self, name: str) -> Journal:
        return ObjectJournal(self, name)

    # --- lock -------------------------------------------------------------------------------------------

    @contextmanager
    def lock(self, waiting: Callable[[str], object]) -> Iterator[None]:
        """Hold the lease. While it is held, `put` and `delete` raise DiffSynthError once it has been lost."""
        lease = Lease(self, DURATION)
        lease.acquire(waiting)
        self.lease = lease
        try:
            yield
        finally:
            self.lease = None
            lease.release()

    def holder(self) -> str | None:
        return holder(self)

    @cached_property
    def has_conditions(self) -> bool:
        """True. Raises UsageError if the store ignores the conditions of writes, as some do without saying so."""
        name = f"{PROBE}{uuid4().hex}"
        try:
            created = self._put_if(name, b"probe", None) is not None
            created = created or self.get(name) is not None  # its reply was lost, and the repeated request refused
            ignored = any(self._put_if(name, b"probe", version) for version in (None, ('"0"', "0")))
        finally:
            self._delete([name])
        if ignored or not created:
            raise UsageError(
                f"{self}: this store ignores conditional writes, so it cannot keep two runs apart",
                "use a store that supports If-None-Match and If-Match, or a folder",
            )
        return True

    def _put_if(self, name: str, data: bytes, version: Version | None) -> Version | None:
        def put() -> Version | None:
            try:
                stored = obstore.put(self.objects, name, data, mode=_condition(version))
                return stored["e_tag"], stored["version"]
            except (AlreadyExistsError, PreconditionError):
                return None

        return repeated(self.url, put)

    def _check_lease(self) -> None:
        if self.lease is not None:
            self.lease.check()

    def _delete(self, names: Sequence[str]) -> None:
        self._check_lease()

        def delete() -> None:
            with suppress(FileNotFoundError):  # some stores say so
                obstore.delete(self.objects, names)

        repeated(self.url, delete)

    def _delete_listed(self, folder: str, beginning: str) -> None:
        """Delete all objects in a folder whose own names have this beginning."""

        def delete() -> None:
            for batch in obstore.list(self.objects, folder, chunk_size=LISTED):
                paths = [item["path"] for item in batch]
                self._delete([path for path in paths if path.rpartition("/")[2].startswith(beginning)])

        repeated(self.url, delete)


def _condition(version: Version | None) -> obstore.PutMode:
    """Return the condition that an object has this version or, for None, does not exist."""
    if version is None:
        return "create"
    condition: obstore.UpdateVersion = {}
    if version[0] is not None:
        condition["e_tag"] = version[0]
    if version[1] is not None:
        condition["version"] = version[1]
    return condition


class ZarrObjects(ZarrObjectStore[Objects]):
    """Zarr's view of an object store, with errors for users. A chunk is one request, whatever its size."""

    def __init__(self, store: Objects, url: str, *, read_only: bool = False):
        super().__init__(store, read_only=read_only)
        self.url = url

    def with_read_only(self, read_only: bool = False) -> ZarrObjects:
        return ZarrObjects(self.store, self.url, read_only=read_only)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        read = super().get
        return await repeated_async(self.url, lambda: read(key, prototype, byte_range))

    async def set(self, key: str, value: Buffer) -> None:
        data = value.as_buffer_like()
        await repeated_async(self.url, lambda: obstore.put_async(self.store, key, data, use_multipart=False))

    async def exists(self, key: str) -> bool:
        exists = super().exists
        return await repeated_async(self.url, lambda: exists(key))

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Do without a conditional write, which would not be repeated. The lease keeps others from writing."""
        if not await self.exists(key):
            await self.set(key, value)

    async def delete_dir(self, prefix: str) -> None:
        def delete() -> None:
            for batch in obstore.list(self.store, prefix, chunk_size=LISTED):
                obstore.delete(self.store, [item["path"] for item in batch])

        await asyncio.to_thread(repeated, self.url, delete)


# --- marks ----------------------------------------------------------------------------------------------


class ObjectJournal:
    """A journal in one object and, for lines added since the last `commit`, a group of further ones.

    Lines are stored at most once a second. A process that is killed loses those that it added since then.

    Args:
        store: The store.
        name: Name of the journal. The group has the same name without its suffix.
        now: How time passes, in seconds.
    """

    def __init__(self, store: ObjectStore, name: str, now: Callable[[], float] = time.monotonic):
        self.store, self.name, self.group, self.now = store, name, name.rpartition(".")[0], now
        self.stored, self.pending = "", ""
        self.groups, self.written = 0, now()

    def read(self) -> str:
        added = sorted(self.store.children(self.group))
        parts = self.store.get_many([self.name, *(f"{self.group}/{part}" for part in added)])
        try:
            text = "".join((part or b"").decode() for part in parts)
        except UnicodeDecodeError:
            return ""
        self.stored, self.groups = text, len(added)
        return text

    def start(self, line: str) -> None:
        self.remove()
        self.stored, self.pending = line + "\n", ""
        self.store.put(self.name, self.stored.encode())

    def append(self, line: str) -> None:
        self.pending += line + "\n"
        if self.now() - self.written >= COMMIT_INTERVAL:
            self.store.put(f"{self.group}/{self.groups:08}.jsonl", self.pending.encode())
            self.stored, self.pending = self.stored + self.pending, ""
            self.groups, self.written = self.groups + 1, self.now()

    def commit(self) -> None:
        """Store all lines as one object."""
        if not (self.groups or self.pending):
            return
        text = self.stored + self.pending
        self.store.put(self.name, text.encode())
        if self.groups:
            self.store.delete_all(self.group)
        self.stored, self.pending, self.groups, self.written = text, "", 0, self.now()

    def remove(self) -> None:
        self.store.delete_all(self.group)
        self.store.delete(self.name)
        self.stored, self.pending, self.groups = "", "", 0


# --- errors ---------------------------------------------------------------------------------------------


def repeated(url: str, request: Callable[[], Result]) -> Result:
    """Send a request that may be sent twice, again and again for a few seconds if the connection breaks.

    obstore itself repeats neither conditional writes nor requests whose reply breaks off. All others it does repeat.

    Raises:
        DiffSynthError: It failed for another reason, or for too long.
    """
    repeats = _Repeats()
    while True:
        with explained(url):
            try:
                return request()
            except GenericError as error:
                pause = repeats.pause_after(error)
        time.sleep(pause)


async def repeated_async(url: str, request: Callable[[], Awaitable[Result]]) -> Result:
    """Do what `repeated` does, for an asynchronous request."""
    repeats = _Repeats()
    while True:
        with explained(url):
            try:
                return await request()
            except GenericError as error:
                pause = repeats.pause_after(error)
        await asyncio.sleep(pause)


class _Repeats:
    """When to repeat a request, beginning with its first failure."""

    def __init__(self) -> None:
        self.until, self.pause = 0.0, 0.05

    def pause_after(self, error: GenericError) -> float:
        """Return after how many seconds to repeat a request. Raises the error if that is useless."""
        self.until = self.until or time.monotonic() + LONGEST_BREAK
        about = _first_line(error)
        given_up = REPEATED in about and HALFWAY not in about
        if BROKEN not in about or given_up or time.monotonic() > self.until:
            raise error
        self.pause *= 2
        return self.pause


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn errors of the store at `url` into DiffSynthError."""
    try:
        yield
    except (BaseError, FileNotFoundError) as error:
        reason, hint = _explanation(str(error))
        raise DiffSynthError(f"{url}: {reason}", hint) from error


def _explanation(text: str) -> tuple[str, str]:
    """Return what an error of obstore means, and what to do about it."""
    if "169.254.169.254" in text or "metadata.google" in text:  # where cloud machines look for credentials
        return "no credentials were found", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or those of your store"
    code, message = (re.search(f"<{tag}>(.*?)</{tag}>", text) for tag in ("Code", "Message"))
    if code is not None:
        reason = f"{message[1].rstrip('.')} ({code[1]})" if message is not None else code[1]
        return reason, "check the URL, AWS_ENDPOINT_URL and the credentials, then run the same command to resume"
    if "builder error" in text and os.environ.get("AWS_ENDPOINT_URL", "").startswith("http:"):
        return "the endpoint is not encrypted", "set AWS_ALLOW_HTTP=true to allow that, or give an https:// endpoint"
    return (
        f"the store cannot be reached ({_first_line(text).rpartition(' - ')[2]})",
        "check the connection, the URL and AWS_ENDPOINT_URL, then run the same command to resume",
    )


def _first_line(error: object) -> str:
    return str(error).partition("\n")[0]
