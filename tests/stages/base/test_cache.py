"""The frame cache: black frames, damage, half-written files, the lock."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.core.metadata import ArrayV3Metadata

from stages.base.cache import ArraySpec, FrameCache
from stages.base.errors import DiffSynthError
from tests.conftest import forget
from tests.typing import Images

SPEC = ArraySpec("frames", (5, 16, 24, 3), "uint8")


@pytest.fixture
def cache(tmp_path: Path) -> FrameCache:
    return FrameCache(tmp_path / "cache.zarr", "job.json", {"extract": ("frames",), "control": ("control/*",)})


@pytest.fixture
def frames() -> Images:
    return np.random.default_rng(0).integers(0, 256, SPEC.shape, np.uint8)


def chunk(cache: FrameCache, index: int, name: str = "frames") -> Path:
    return cache.path / name / f"c.{index}.0.0.0"


def test_frames_come_back_as_they_were_written(cache: FrameCache, frames: Images) -> None:
    array = cache.create(SPEC)
    array.write(0, frames[:2])
    array.write(2, frames[2:])
    reopened = FrameCache(cache.path)["frames"]
    np.testing.assert_array_equal(reopened[:], frames)
    np.testing.assert_array_equal(reopened.read([3, 0, 3]), frames[[3, 0, 3]])
    np.testing.assert_array_equal(reopened[-1], frames[4])
    assert len(reopened) == 5 and list(map(np.shape, reopened)) == [(16, 24, 3)] * 5


def test_the_group_is_plain_zarr_v3_with_one_chunk_per_frame(cache: FrameCache, frames: Images) -> None:
    cache.create(SPEC).write(0, frames)
    array = zarr.open_array(str(cache.path / "frames"), mode="r", zarr_format=3)
    assert isinstance(array.metadata, ArrayV3Metadata)
    assert array.chunks == (1, 16, 24, 3)
    assert array.metadata.codecs[-1].to_dict()["name"] == "crc32c"
    np.testing.assert_array_equal(array[:], frames)


def test_a_black_frame_is_data_and_a_missing_one_is_not_black(cache: FrameCache) -> None:
    FrameCache(cache.path)  # opened before the array is made
    array = cache.create(SPEC)
    array.write(1, np.zeros((1, 16, 24, 3), np.uint8))
    FrameCache(cache.path)["frames"].write(2, np.zeros((1, 16, 24, 3), np.uint8))
    assert chunk(cache, 1).exists() and chunk(cache, 2).exists()
    assert array[1].max() == array[2].max() == 0
    with pytest.raises(DiffSynthError, match=r"frame 3 of the array 'frames' is missing"):
        array[3]


@pytest.mark.parametrize("where", [0.0, 0.3, 0.6, 0.99])
def test_a_flipped_bit_is_found_and_named(cache: FrameCache, frames: Images, where: float) -> None:
    array = cache.create(SPEC)
    array.write(0, frames)
    data = bytearray(chunk(cache, 3).read_bytes())
    data[int(where * len(data))] ^= 0x10
    chunk(cache, 3).write_bytes(data)
    with pytest.raises(DiffSynthError, match=r"frame 3 of the array 'frames' does not match its checksum") as error:
        array.read(range(5))
    assert error.value.hint == "rebuild it with diffsynth extract job.json --restart"


def test_arrays_of_a_group_have_the_maker_of_the_group(cache: FrameCache, frames: Images) -> None:
    for name in ("frames", "control/a", "control/b"):
        cache.create(replace(SPEC, name=name)).write(0, frames)
    assert cache.arrays("control/*", "frames", "rendered/*", "latents") == ["control/a", "control/b", "frames"]
    chunk(cache, 3, "control/b").unlink()
    cache.record("control").begin({"keys": {}, "after": {}}, chunks=1)
    assert list(cache.damage("control")) == []  # not written yet
    cache.record("control").finish("a fingerprint", 5)
    (damage,) = cache.damage("control")
    assert damage.endswith("frame 3 of the array 'control/b' is missing")
    with pytest.raises(DiffSynthError) as error:
        cache["control/b"][3]
    assert error.value.hint == "rebuild it with diffsynth control job.json --restart"
    cache.remove_all(["control/*"], keep=["control/a"])
    assert cache.arrays("control/*", "frames") == ["control/a", "frames"]


@pytest.mark.parametrize("content", [b"", b"short"])
def test_a_truncated_chunk_is_found(cache: FrameCache, frames: Images, content: bytes) -> None:
    array = cache.create(SPEC)
    array.write(0, frames)
    chunk(cache, 0).write_bytes(content)
    with pytest.raises(DiffSynthError, match="frame 0"):
        array[0]


def test_damaged_metadata_is_named(cache: FrameCache, frames: Images) -> None:
    cache.create(SPEC).write(0, frames)
    (cache.path / "frames/zarr.json").write_text("{")
    with pytest.raises(DiffSynthError, match="'frames'"):
        FrameCache(cache.path)["frames"]


def test_a_group_is_removed_with_its_last_array(cache: FrameCache, frames: Images) -> None:
    for name in ("step_latents/0001", "step_latents/0002"):
        cache.create(replace(SPEC, name=name)).write(0, frames)
    cache.remove("step_latents/0001")
    assert cache.arrays("step_latents/*") == ["step_latents/0002"]
    cache.remove("step_latents/0002")
    assert not (cache.path / "step_latents").exists()
    assert cache.create(replace(SPEC, name="step_latents/0001")).shape == SPEC.shape


def test_remains_of_a_removed_array_are_removed_with_the_stage(cache: FrameCache, frames: Images) -> None:
    late = cache.create(replace(SPEC, name="step_latents/0001"))
    cache.remove("step_latents/0001")
    late.write(0, frames[:1])
    assert (cache.path / "step_latents/0001").exists() and cache.arrays("step_latents/*") == []
    cache.remove_all(["step_latents/*"])
    assert not (cache.path / "step_latents").exists()


def test_half_written_files_are_swept_away(cache: FrameCache, frames: Images) -> None:
    cache.create(SPEC).write(0, frames)
    cache.create(replace(SPEC, name="control/canny"))
    names = ("frames/c.1.0.0.abc.partial", "zarr.abc.partial", "control/zarr.abc.partial")
    leftovers = [cache.path / name for name in names]
    for leftover in leftovers:
        leftover.write_bytes(b"half")
    cache.sweep(["frames", "control/canny", "no such array"])
    assert not any(leftover.exists() for leftover in leftovers) and chunk(cache, 1).exists()


def test_only_one_holds_the_lock(cache: FrameCache) -> None:
    with cache.lock(), pytest.raises(DiffSynthError, match=r"in use by process \d+ on"), FrameCache(cache.path).lock():
        pass
    assert cache.holder() is None
    with FrameCache(cache.path).lock():
        pass


@pytest.mark.parametrize("metadata", ['{"zarr_format": 3, "node_type": "array"}', "null", "[]", ""])
def test_a_folder_that_is_no_cache_is_named(tmp_path: Path, metadata: str) -> None:
    (tmp_path / "cache.zarr").mkdir()
    (tmp_path / "cache.zarr/zarr.json").write_text(metadata)
    with pytest.raises(DiffSynthError, match="cannot be opened"):
        FrameCache(tmp_path / "cache.zarr").create(SPEC)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"fps": "25"', '"fps": "24"'),
        ('"fps": "25",', ""),
        ('"attributes": {', '"attributes": 3, "other": {'),
        ('"uint8"', '"int8"'),
        ('"fill_value": 0', '"fill_value": -1'),
        ("    24,\n", "    25,\n"),
        ("    5,\n", "    4,\n"),
        ('"checksum": "', '"checksum": "0'),
    ],
)
def test_metadata_that_was_changed_is_found(cache: FrameCache, frames: Images, old: str, new: str) -> None:
    cache.create(SPEC).note(fps="25", keys=[1, 2])
    assert FrameCache(cache.path)["frames"].attrs == {"fps": "25", "keys": [1, 2]}
    path = cache.path / "frames/zarr.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(DiffSynthError, match="the array 'frames' has damaged metadata"):
        FrameCache(cache.path)["frames"]


def test_attributes_of_earlier_versions_have_no_checksum(cache: FrameCache) -> None:
    array = cache.create(SPEC)
    array.note(fps="25", start=0.0)
    forget(array, "start")
    assert FrameCache(cache.path)["frames"].attrs == {"fps": "25"}
    with pytest.raises(DiffSynthError, match="the array 'frames' has damaged metadata"):
        FrameCache(cache.path)["frames"].attrs["start"]
