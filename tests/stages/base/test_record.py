"""Marks and receipts, as a kill may leave them."""

from __future__ import annotations

import json

import pytest

from stages.base.record import StageRecord

INPUTS = {"keys": {"prompt": "winter"}, "after": {}}


@pytest.fixture
def record(tmp_path):
    return StageRecord(tmp_path, "render")


def test_marks_are_read_back(tmp_path, record):
    assert record.inputs is None and not record.complete
    record.begin(INPUTS, chunks=4)
    record.mark("step 1", 0, 0.5)
    record.mark("step 1", 8, 0.25)
    again = StageRecord(tmp_path, "render")
    assert again.inputs == INPUTS and not again.complete
    assert again.done == {("step 1", 0), ("step 1", 8)}
    assert (again.chunks, again.seconds) == (4, 0.75)


@pytest.mark.parametrize("torn", ['{"phase": "st', '{"phase": "step 1", "start": 16, "seconds": 1}'])
def test_a_line_that_was_cut_short_does_not_count_and_spoils_none_after_it(tmp_path, record, torn):
    record.begin(INPUTS, chunks=4)
    record.mark("step 1", 0, 0.5)
    with record.marks_path.open("a") as file:
        file.write(torn)  # no end of line: the kill came first
    again = StageRecord(tmp_path, "render")
    assert again.done == {("step 1", 0)}
    again.mark("step 1", 16, 0.5)
    assert StageRecord(tmp_path, "render").done == {("step 1", 0), ("step 1", 16)}


def test_a_header_that_was_cut_short_is_no_beginning(tmp_path, record):
    record.begin(INPUTS, chunks=4)
    record.marks_path.write_text('{"inputs": {"keys"')
    assert StageRecord(tmp_path, "render").inputs is None


def test_the_receipt_says_what_when_and_with_what(tmp_path, record):
    record.begin(INPUTS, chunks=1)
    record.mark("step 1", 0, 0.5)
    record.finish("abc", frames=8)
    receipt = json.loads((tmp_path / "receipts/render.json").read_text())
    assert receipt["fingerprint"] == "abc" and receipt["inputs"] == INPUTS and receipt["seconds"] == 0.5
    assert {"python", "torch", "zarr", "diffsynth-cli"} <= set(receipt["versions"])
    again = StageRecord(tmp_path, "render")
    assert again.complete and again.inputs == INPUTS
    again.clear()
    assert not StageRecord(tmp_path, "render").complete


@pytest.mark.parametrize("damage", ["", "{", "null", "3", "[]", "{}", '{"inputs": {}}', '{"inputs": {"keys": 3}}'])
def test_damaged_records_are_as_good_as_none(tmp_path, record, damage):
    record.begin(INPUTS, chunks=1)
    record.mark("step 1", 0, 0.5)
    marks = record.marks_path.read_text()
    record.marks_path.write_text(f"{damage}\n{marks}")
    assert StageRecord(tmp_path, "render").inputs is None
    record.marks_path.write_text(f"{marks}{damage or '?'}\n{marks}")
    assert StageRecord(tmp_path, "render").inputs is None
    record.marks_path.write_bytes(b"\xff\n")
    assert StageRecord(tmp_path, "render").inputs is None
    record.finish("abc", frames=8)
    record.receipt_path.write_text(damage)
    again = StageRecord(tmp_path, "render")
    assert again.inputs is None and not again.complete
