"""What every store does alike: files in a folder, and objects on two servers."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from stages.base.cache import ArraySpec, FrameCache
from stages.base.errors import DiffSynthError, UsageError
from stages.base.fingerprint import Inputs
from stages.base.record import StageRecord
from stages.base.store import FolderStore, Store, open_store, store_settings
from tests.typing import Images

SPEC = ArraySpec("control/a", (12, 8, 8, 3), "uint8")
INPUTS: Inputs = {"keys": {"prompt": "winter"}, "after": {}}


@pytest.fixture(params=["folder", "moto", "rclone"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return FolderStore(tmp_path / "cache.zarr")
    return open_store(request.getfixturevalue(request.param).new_url())


@pytest.fixture
def frames() -> Images:
    return np.random.default_rng(0).integers(0, 256, SPEC.shape, np.uint8)


def test_bytes_come_back_as_they_were_put(store: Store) -> None:
    assert store.get("a/b.json") is None and store.children("") == store.children("a") == []
    store.put("a/b.json", b"one")
    store.put("a/b.json", b"two")
    store.put("a/c/d", b"")
    store.put("ab", b"three")
    assert (store.get("a/b.json"), store.get("a/c/d"), store.get("a")) == (b"two", b"", None)
    assert sorted(store.children("")) == ["a", "ab"] and sorted(store.children("a")) == ["b.json", "c"]
    store.delete("a/b.json")
    store.delete("a/b.json")
    assert store.get("a/b.json") is None and store.children("a") == ["c"]
    store.put("a/e", b"four")
    for _ in range(2):
        store.delete_all("a")
    assert store.children("") == ["ab"] and store.get("ab") == b"three"


def test_another_process_sees_the_same(store: Store) -> None:
    store.put("a", b"one")
    assert pickle.loads(pickle.dumps(store)).get("a") == open_store(str(store)).get("a") == b"one"


def test_a_journal_is_read_back(store: Store) -> None:
    journal = store.journal("marks/render.jsonl")
    assert journal.read() == ""
    journal.start("1")
    for line in "234":
        journal.append(line)
    journal.commit()
    assert store.journal("marks/render.jsonl").read() == "1\n2\n3\n4\n"
    journal.append("5")
    journal.commit()
    assert store.journal("marks/render.jsonl").read() == "1\n2\n3\n4\n5\n"
    journal.start("6")
    assert store.journal("marks/render.jsonl").read() == "6\n"
    journal.remove()
    assert store.journal("marks/render.jsonl").read() == "" and store.children("marks") == []


def test_records_are_read_back(store: Store) -> None:
    record = StageRecord(store, "render")
    record.begin(INPUTS, chunks=2)
    with pytest.raises(ZeroDivisionError), record.committing():
        record.mark("step 1", 0, 0.5)
        record.mark("step 1", 8, 0.25)
        _ = 1 / 0
    again = StageRecord(store, "render")
    assert (again.inputs, again.done, again.seconds) == (INPUTS, {("step 1", 0), ("step 1", 8)}, 0.75)
    again.finish("abc", frames=8)
    done = StageRecord(store, "render")
    assert done.complete and done.inputs == INPUTS and store.children("marks") == []
    done.touch()
    done.clear()
    assert StageRecord(store, "render").inputs is None


def test_frames_come_back_as_they_were_written(store: Store, frames: Images) -> None:
    FrameCache(store).create(SPEC).write(0, frames)
    FrameCache(store)[SPEC.name].note(keys=[1, 2])
    used = FrameCache(store)
    assert len(used["control/a"]) == len(frames)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(used))["control/a"][3], frames[3])
    array = FrameCache(str(store))["control/a"]
    np.testing.assert_array_equal(array[:], frames)
    np.testing.assert_array_equal(array.read([7, 0, 11, 7]), frames[[7, 0, 11, 7]])
    np.testing.assert_array_equal(np.stack(list(array)), frames)
    assert array.attrs["keys"] == [1, 2]


def test_black_frames_are_data_and_missing_and_damaged_ones_are_named(store: Store, frames: Images) -> None:
    cache = FrameCache(store, "job.json", {"control": ("control/*",)})
    array = cache.create(SPEC)
    array.write(0, frames[:4])
    array.write(4, np.zeros_like(frames[:1]))
    data = bytearray(store.get("control/a/c.2.0.0.0") or b"")
    data[len(data) // 2] ^= 1
    store.put("control/a/c.2.0.0.0", bytes(data))
    assert array[4].max() == 0
    where = f"{store}: frame [25] of the array 'control/a'"
    with pytest.raises(DiffSynthError, match=f"{where} does not match its checksum"):
        array.read(range(5))
    with pytest.raises(DiffSynthError, match=f"{where} is missing"):
        array.read([0, 4, 5])
    cache.record("control").begin(INPUTS, chunks=1)
    assert len(list(cache.damage("control"))) == 1
    cache.record("control").finish("abc", frames=12)
    assert len(list(cache.damage("control"))) == 8


def test_arrays_are_listed_and_removed(store: Store) -> None:
    cache = FrameCache(store)
    assert cache.arrays("frames", "control/*") == [] and "frames" not in cache
    for name in ("frames", "control/a", "control/b"):
        cache.create(ArraySpec(name, (1, 2), "uint8")).write(0, np.ones((1, 2), np.uint8))
    assert cache.arrays("frames", "control/*") == ["control/a", "control/b", "frames"] and "frames" in cache
    assert cache.is_cache()
    cache.remove_all(["control/*"], keep=["control/a"])
    assert cache.arrays("frames", "control/*") == ["control/a", "frames"]
    cache.remove("control/a")
    assert sorted(store.children("")) == ["frames", "zarr.json"]
    with pytest.raises(DiffSynthError, match="the array 'control/a' is missing"):
        cache["control/a"]


def test_an_array_that_is_created_again_is_empty_and_others_stay(store: Store) -> None:
    cache = FrameCache(store)
    for name in ("control/a", "control/ab", "control/a"):
        array = cache.create(ArraySpec(name, (1, 2), "uint8"))
        with pytest.raises(DiffSynthError, match="is missing"):
            _ = array[0]
        array.write(0, np.ones((1, 2), np.uint8))
    assert cache["control/ab"][0].min() == 1


def test_other_contents_are_no_cache(store: Store) -> None:
    store.put("holiday.jpg", b"mine")
    assert not FrameCache(store).is_cache()


def test_only_one_process_holds_the_lock(
    store: Store, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if request.node.callspec.params["store"] == "rclone":
        with pytest.raises(UsageError, match="ignores conditional writes"), store.lock(str):
            pass
        assert store.children("") == []
        return
    monkeypatch.setattr("stages.base.object_store.DURATION", 3.0)
    other = open_store(str(store))
    with store.lock(str):
        assert "process" in (other.holder() or "")
        with pytest.raises(DiffSynthError, match=r"in use by process \d+ on"), other.lock(str):
            pass
    assert other.holder() is None
    with other.lock(str):
        pass


@pytest.mark.parametrize("url", ["s4://bucket/a", "https://example.com/a", "s3://", "s3:///a"])
def test_unknown_urls_are_refused(url: str) -> None:
    pytest.importorskip("obstore")
    with pytest.raises(UsageError, match=f"unknown URL {url}"):
        open_store(url)


def test_file_urls_are_folders(tmp_path: Path) -> None:
    store = open_store((tmp_path / "a b.zarr").as_uri())
    assert isinstance(store, FolderStore) and store.path == tmp_path / "a b.zarr"


def test_settings_are_those_of_object_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    assert store_settings()["AWS_REGION"] == "eu-central-1" and "PATH" not in store_settings()


# --- what survives a power failure ----------------------------------------------------------------------


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The inodes of the files and folders that have been flushed to the disk."""
    inodes, real = [], os.fsync

    def fsync(descriptor: int) -> None:
        inodes.append(os.fstat(descriptor).st_ino)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return inodes


@pytest.mark.skipif(os.name != "posix", reason="cannot open folders")
def test_frames_and_their_folder_are_flushed(tmp_path: Path, frames: Images, flushed: list[int]) -> None:
    FrameCache(tmp_path).create(SPEC).write(0, frames)
    folder = tmp_path / SPEC.name
    chunks = [*folder.glob("c.*")]
    assert len(chunks) == len(frames) and {path.stat().st_ino for path in (folder, *chunks)} <= set(flushed)


def test_records_and_each_mark_are_flushed(tmp_path: Path, flushed: list[int]) -> None:
    store, file = FolderStore(tmp_path), tmp_path / "marks.jsonl"
    journal = store.journal(file.name)
    journal.start("header")
    journal.append("mark")
    assert flushed == [file.stat().st_ino] * 2


def test_a_file_that_cannot_be_replaced_keeps_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError("no space left on the disk")

    store = FolderStore(tmp_path)
    store.put("receipt.json", b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        store.put("receipt.json", b"new")
    assert store.get("receipt.json") == b"old"
