"""Marks and receipts, including those that a kill leaves incomplete."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stages.base.fingerprint import Inputs
from stages.base.record import StageRecord
from stages.base.store import FolderStore

MARKS, RECEIPT = "marks/render.jsonl", "receipts/render.json"
INPUTS: Inputs = {"keys": {"prompt": "winter"}, "after": {}}


@pytest.fixture
def record(tmp_path: Path) -> StageRecord:
    return StageRecord(FolderStore(tmp_path), "render")


def test_marks_are_read_back(tmp_path: Path, record: StageRecord) -> None:
    assert record.inputs is None and not record.complete
    record.begin(INPUTS, chunks=4)
    record.mark("step 1", 0, 0.5)
    record.mark("step 1", 8, 0.25)
    record.mark("step 2", 0, 2.0)
    again = StageRecord(FolderStore(tmp_path), "render")
    assert again.inputs == INPUTS and not again.complete
    assert again.done == {("step 1", 0), ("step 1", 8), ("step 2", 0)}
    assert (again.chunks, again.seconds) == (4, 2.75)


def test_a_receipt_has_the_seconds_of_each_phase_also_of_those_before_a_kill(
    tmp_path: Path, record: StageRecord
) -> None:
    record.begin(INPUTS, chunks=3)
    record.mark("step 1", 0, 0.5)
    again = StageRecord(FolderStore(tmp_path), "render")
    again.mark("step 1", 8, 0.25)
    again.mark("step 2", 0, 2.0)
    again.finish("fingerprint", 16)
    receipt = StageRecord(FolderStore(tmp_path), "render").receipt
    assert receipt is not None
    assert (receipt["seconds"], receipt["phases"]) == (2.75, {"step 1": 0.75, "step 2": 2.0})


@pytest.mark.parametrize("torn", ['{"phase": "st', '{"phase": "step 1", "start": 16, "seconds": 1}'])
def test_a_truncated_mark_is_ignored_and_later_marks_count(tmp_path: Path, record: StageRecord, torn: str) -> None:
    record.begin(INPUTS, chunks=4)
    record.mark("step 1", 0, 0.5)
    with (tmp_path / MARKS).open("a") as file:
        file.write(torn)  # no end of line: the kill came first
    again = StageRecord(FolderStore(tmp_path), "render")
    assert again.done == {("step 1", 0)}
    again.mark("step 1", 16, 0.5)
    assert StageRecord(FolderStore(tmp_path), "render").done == {("step 1", 0), ("step 1", 16)}


def test_a_truncated_header_counts_as_not_started(tmp_path: Path, record: StageRecord) -> None:
    record.begin(INPUTS, chunks=4)
    (tmp_path / MARKS).write_text('{"inputs": {"keys"')
    assert StageRecord(FolderStore(tmp_path), "render").inputs is None


def test_the_receipt_holds_inputs_fingerprint_and_versions(tmp_path: Path, record: StageRecord) -> None:
    record.begin(INPUTS, chunks=1)
    record.mark("step 1", 0, 0.5)
    record.finish("abc", frames=8)
    receipt = json.loads((tmp_path / "receipts/render.json").read_text())
    assert receipt["fingerprint"] == "abc" and receipt["inputs"] == INPUTS and receipt["seconds"] == 0.5
    assert {"python", "torch", "zarr", "diffsynth-cli"} <= set(receipt["versions"])
    again = StageRecord(FolderStore(tmp_path), "render")
    assert again.complete and again.inputs == INPUTS
    again.clear()
    assert not StageRecord(FolderStore(tmp_path), "render").complete


@pytest.mark.parametrize("damage", ["", "{", "null", "3", "[]", "{}", '{"inputs": {}}', '{"inputs": {"keys": 3}}'])
def test_damaged_records_count_as_missing(tmp_path: Path, record: StageRecord, damage: str) -> None:
    record.begin(INPUTS, chunks=1)
    record.mark("step 1", 0, 0.5)
    marks = (tmp_path / MARKS).read_text()
    (tmp_path / MARKS).write_text(f"{damage}\n{marks}")
    assert StageRecord(FolderStore(tmp_path), "render").inputs is None
    (tmp_path / MARKS).write_text(f"{marks}{damage or '?'}\n{marks}")
    assert StageRecord(FolderStore(tmp_path), "render").inputs is None
    for old, new in (('"chunks": 1', '"chunks": "1"'), ('"inputs"', '"puts"')):
        (tmp_path / MARKS).write_text(marks.replace(old, new))
        assert StageRecord(FolderStore(tmp_path), "render").inputs is None
    (tmp_path / MARKS).write_bytes(b"\xff\n")
    assert StageRecord(FolderStore(tmp_path), "render").inputs is None
    record.finish("abc", frames=8)
    (tmp_path / RECEIPT).write_text(damage)
    again = StageRecord(FolderStore(tmp_path), "render")
    assert again.inputs is None and not again.complete


@pytest.mark.parametrize(
    "changed",
    [{"arrays": 3}, {"removed": [3]}, {"versions": {"python": [3]}}, {"phases": {"step 1": "long"}}, {"frames": 1.5},
     {"inputs": {"keys": {}, "after": {"extract": 3}}}],
)  # fmt: skip
def test_a_receipt_with_a_value_of_the_wrong_type_counts_as_missing(
    tmp_path: Path, record: StageRecord, changed: dict[str, object]
) -> None:
    record.begin(INPUTS, chunks=1)
    record.finish("abc", frames=8)
    path = tmp_path / RECEIPT
    path.write_text(json.dumps({**json.loads(path.read_text()), "note": "of a later version"}))
    assert StageRecord(FolderStore(tmp_path), "render").complete
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    assert not StageRecord(FolderStore(tmp_path), "render").complete
