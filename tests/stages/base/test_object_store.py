"""What is special about object stores: requests, marks, missing and wrong servers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from stages.base.cache import ArraySpec, FrameCache
from stages.base.engine import LocalEngine, Task
from stages.base.errors import DiffSynthError, UsageError
from stages.base.lease import Version
from stages.base.overlap import Reads
from tests.object_stores import PAGE, Server
from tools.chaos.network import Network

FRAMES = 12
CHUNKS = [(0, 4), (4, 8), (8, 12)]
Use = Callable[[], object]

pytest.importorskip("obstore")
import obstore  # noqa: E402
from obstore.exceptions import GenericError  # noqa: E402

from stages.base.object_store import ObjectJournal, ObjectStore, repeated  # noqa: E402


class Copy(Task):
    """Copy each frame, which needs the array of the frames three times."""

    def reads(self, start: int, stop: int) -> Reads:
        return [("source", range(start, stop))]

    def run(self, cache: FrameCache, start: int, stop: int) -> None:
        assert len(cache["source"]) == FRAMES
        cache["target"].write(start, cache["source"].read(range(start, stop)))


def test_a_phase_takes_one_request_per_frame_and_array_read_or_written(moto: Server) -> None:
    cache = FrameCache(moto.new_url())
    for name in ("source", "target"):
        cache.create(ArraySpec(name, (FRAMES, 8, 8, 3), "uint8"))
    cache["source"].write(0, np.ones((FRAMES, 8, 8, 3), np.uint8))
    _ = cache.group
    before = len(moto.requests())
    assert list(LocalEngine().map(Copy(), cache, CHUNKS)) == CHUNKS
    made = Counter((method, path.rpartition("job.zarr/")[2]) for method, path in moto.requests()[before:])
    chunks = {(method, f"{name}/c.{index}.0.0.0"): 1
              for method, name in (("GET", "source"), ("PUT", "target")) for index in range(FRAMES)}  # fmt: skip
    assert chunks.items() <= made.items()
    others = made - Counter(chunks)
    assert set(others) == {("GET", "source/zarr.json"), ("GET", "target/zarr.json")}
    assert others.total() <= 8  # once per phase, not once per chunk


def test_large_frames_are_one_request_too(moto: Server) -> None:
    shape = (1, 1200, 1800, 3)  # more than the 5 MB from which obstore would upload parts
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    array = FrameCache(moto.new_url()).create(ArraySpec("frames", shape, "uint8"))
    before = len(moto.requests())
    array.write(0, noise)
    np.testing.assert_array_equal(array[:], noise)
    assert [method for method, _ in moto.requests()[before:]] == ["PUT", "GET"]


def test_long_lists_are_read_to_their_end(moto: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.base.object_store.LISTED", 4)
    store, names = ObjectStore(moto.new_url()), [f"c.{index}" for index in range(2 * PAGE + 1)]
    for name in names:
        store.put(f"frames/{name}", b"")
    assert sorted(store.children("frames")) == sorted(names)
    store.delete_all("frames")
    assert store.children("") == []


def test_marks_are_stored_once_a_second_and_folded(moto: Server) -> None:
    store, seconds = ObjectStore(moto.new_url()), [0.0]
    journal = ObjectJournal(store, "marks/render.jsonl", lambda: seconds[0])
    journal.start("header")
    for mark in range(30):  # 10 a second
        seconds[0] = 0.1 * mark
        journal.append(str(mark))
    assert store.children("marks/render") == ["00000000.jsonl", "00000001.jsonl"]
    survivor = store.journal("marks/render.jsonl")  # of a kill
    assert survivor.read().split() == ["header", *map(str, range(21))]
    survivor.append("again")
    survivor.commit()
    assert store.journal("marks/render.jsonl").read().split() == ["header", *map(str, range(21)), "again"]
    assert sorted(store.children("marks")) == ["render.jsonl"]


def test_marks_survive_a_kill_before_they_are_folded(moto: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    store, journal = journal_with_group(moto)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store, "put", interrupt)
        journal.commit()
    assert store.journal("marks/render.jsonl").read().split() == ["header", "mark"]


def test_a_new_journal_has_no_marks_of_a_killed_run(moto: Server) -> None:
    store, _ = journal_with_group(moto)
    store.journal("marks/render.jsonl").start("new header")
    assert store.journal("marks/render.jsonl").read() == "new header\n" and store.children("marks/render") == []


def journal_with_group(moto: Server) -> tuple[ObjectStore, ObjectJournal]:
    """A journal with two lines, the second of which is an object of its group."""
    store, seconds = ObjectStore(moto.new_url()), iter([0.0, 1.0, 1.0])
    journal = ObjectJournal(store, "marks/render.jsonl", lambda: next(seconds))
    journal.start("header")
    journal.append("mark")
    assert store.children("marks/render") == ["00000000.jsonl"]
    return store, journal


def interrupt(name: str, data: bytes) -> None:
    raise KeyboardInterrupt


def test_marks_that_a_kill_left_folded_and_in_groups_count_once(moto: Server) -> None:
    store = ObjectStore(moto.new_url())
    record = FrameCache(store).record("render")
    record.begin({"keys": {}, "after": {}}, chunks=2)
    record.mark("step 1", 0, 0.5)
    record.commit()
    store.put("marks/render/00000000.jsonl", b'{"phase": "step 1", "start": 0, "seconds": 0.5}\n')
    again = FrameCache(store).record("render")
    assert again.done == {("step 1", 0)} and again.seconds == 0.5


def test_a_bucket_that_does_not_exist_is_named(moto: Server) -> None:
    store = ObjectStore("s3://no-such-bucket/job.zarr")
    uses: list[Callable[[], object]] = [
        lambda: store.children(""),
        lambda: store.put("a", b""),
        store.lock(str).__enter__,
    ]
    for use in uses:
        with pytest.raises(DiffSynthError, match=r"s3://no-such-bucket/job.zarr: .*NoSuchBucket") as error:
            use()
        assert "\n" not in error.value.message and "AWS_ENDPOINT_URL" in error.value.hint


def test_wrong_credentials_are_named(rclone: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    cache = FrameCache(rclone.new_url())
    for use in (cache.is_cache, lambda: cache.create(ArraySpec("frames", (1, 1), "uint8")), lambda: "frames" in cache):
        with pytest.raises(DiffSynthError, match="SignatureDoesNotMatch") as error:
            use()
        assert "\n" not in error.value.message and "credentials" in error.value.hint


def test_a_server_that_does_not_answer_is_named(moto: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    array = FrameCache(moto.new_url()).create(ArraySpec("frames", (2, 1), "uint8"))
    url = str(array.store)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    broken = FrameCache(url)
    uses: list[Use] = [lambda: broken["frames"], lambda: broken.create(ArraySpec("frames", (2, 1), "uint8"))]
    for use in uses:
        with pytest.raises(DiffSynthError, match="the store cannot be reached") as error:
            use()
        assert "\n" not in error.value.message and "resume" in error.value.hint


def test_an_endpoint_without_encryption_needs_consent(moto: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(DiffSynthError, match="not encrypted") as error:
        ObjectStore(moto.new_url()).get("a")
    assert "AWS_ALLOW_HTTP" in error.value.hint


def test_without_obstore_a_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.delitem(sys.modules, "stages.base.object_store")
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(UsageError, match="need the package obstore") as error:
        FrameCache("s3://bucket/job.zarr")
    assert "diffsynth-cli[cloud]" in error.value.hint


def test_a_probe_whose_reply_was_lost_does_not_condemn_the_store(moto: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ObjectStore(moto.new_url())
    real = store._put_if

    def without_reply(name: str, data: bytes, version: Version | None) -> Version | None:
        real(name, data, version)
        return real(name, data, version)

    monkeypatch.setattr(store, "_put_if", without_reply)
    assert store.has_conditions


def test_a_probe_that_a_killed_run_left_does_not_stop_the_next_one(moto: Server) -> None:
    store = ObjectStore(moto.new_url())
    store.put("probe-1", b"probe")
    assert FrameCache(store).is_cache()
    store.put("holiday.jpg", b"mine")
    assert not FrameCache(store).is_cache()


def lock(cache: FrameCache) -> None:
    with cache.lock():
        pass


LOST: dict[str, Callable[[FrameCache], object]] = {
    "create": lambda cache: cache.create(ArraySpec("control/new", (1, 8, 8, 3), "uint8")),
    "remove": lambda cache: cache.remove("frames"),
    "empty": lambda cache: cache.empty("frames"),
    "list": lambda cache: cache.arrays("*"),
    "write": lambda cache: cache["frames"].write(0, np.ones((1, 8, 8, 3), np.uint8)),
    "read": lambda cache: cache["frames"][:],
    "lock": lock,
}


@pytest.mark.parametrize("name", LOST)
def test_what_breaks_off_is_repeated(name: str, moto: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    network, url = Network(moto.port), moto.new_url()
    FrameCache(url).create(ArraySpec("frames", (1, 8, 8, 3), "uint8")).write(0, np.ones((1, 8, 8, 3), np.uint8))
    monkeypatch.setenv("AWS_ENDPOINT_URL", network.address)
    for unanswered in (1, 2):
        network.unanswered = unanswered
        LOST[name](FrameCache(url))
        assert network.unanswered == 0
    network.lose()


@pytest.mark.parametrize("sent", ["put", "put_async", "head_async"])
def test_requests_that_break_in_the_middle_are_sent_again(
    sent: str, moto: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy cannot choose the moment: obstore repeats what breaks before or after it by itself."""
    cache, frames = FrameCache(moto.new_url()), np.ones((1, 8, 8, 3), np.uint8)
    cache.create(ArraySpec("frames", frames.shape, "uint8"))
    send, failures = getattr(obstore, sent), [1, 1]

    def breaking(*arguments: Any, **options: Any) -> Any:
        if failures:
            failures.pop()
            raise GenericError("after 1 retries, max_retries: 10 - HTTP error: request or response body error")
        return send(*arguments, **options)

    monkeypatch.setattr(obstore, sent, breaking)
    cache.store.put("name", b"data")
    cache["frames"].write(0, frames)
    cache.create(ArraySpec("others", frames.shape, "uint8"))
    assert cache.store.get("name") == b"data" and (cache["frames"][:] == frames).all()
    assert failures == []


def test_a_store_that_stays_away_is_named(moto: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(moto.port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", network.address)
    monkeypatch.setattr("stages.base.object_store.LONGEST_BREAK", 0.5)
    network.unanswered = 1000
    store = ObjectStore(moto.new_url())
    with pytest.raises(DiffSynthError, match="cannot be reached"):
        store._put_if("name", b"", None)
    network.lose()


@pytest.mark.parametrize("slow", [0.0, 0.3])
def test_repeats_count_from_the_first_failure(slow: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.base.object_store.LONGEST_BREAK", 0.2)
    errors = [GenericError("reply: HTTP error: body")]

    def request() -> str:
        time.sleep(slow)
        if errors:
            raise errors.pop()
        return "reply"

    assert repeated("s3://bucket", request) == "reply"


def test_a_connection_that_breaks_in_the_middle_of_a_repeated_request_is_no_end() -> None:
    errors = [GenericError("after 1 retries, max_retries: 10 - HTTP error: request or response body error")]

    def request() -> str:
        if errors:
            raise errors.pop()
        return "reply"

    assert repeated("s3://bucket", request) == "reply"


def test_what_obstore_has_repeated_is_not_repeated_again() -> None:
    errors = [GenericError("after 10 retries - HTTP error: error sending request"), ZeroDivisionError()]

    def request() -> None:
        raise errors.pop(0)

    with pytest.raises(DiffSynthError, match="cannot be reached"):
        repeated("s3://bucket", request)
    assert len(errors) == 1
