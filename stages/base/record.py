"""What is done: marks while a stage runs, a receipt when it is complete.

A stage's marks are a text file of JSON lines. The first holds what the stage was begun with (its inputs), each
further line one finished chunk of one phase. Only the driving process writes it, only after the chunk's data
is on the disk, and a line that a kill cut short does not count.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any, TypeGuard

from stages.base.fingerprint import Inputs

CACHE_NAME = "cache.zarr"  # in the job's output folder

# Whose versions a receipt notes: they are what can change a frame's bytes.
NOTED_PACKAGES = (
    "diffsynth-cli", "torch", "diffusers", "transformers", "controlnet_aux", "zarr", "av", "opencv-python-headless",
    "onnxruntime",
)  # fmt: skip


def receipt_path(cache: Path, stage: str) -> Path:
    """Where a stage's receipt lies: the target of a Makefile."""
    return cache / "receipts" / f"{stage}.json"


class StageRecord:
    """Marks and receipt of one stage in one cache."""

    def __init__(self, cache: Path, stage: str):
        self.stage = stage
        self.marks_path = cache / "marks" / f"{stage}.jsonl"
        self.receipt_path = receipt_path(cache, stage)
        self.inputs: Inputs | None = None
        """What the stage was begun with, None if it never was."""
        self.done: set[tuple[str, int]] = set()
        """(phase, first frame) of every finished chunk."""
        self.chunks = 0
        """How many chunks there are in all."""
        self.seconds = 0.0
        self.receipt = _receipt(self.receipt_path)
        if self.receipt is not None:
            self.inputs = self.receipt["inputs"]
        else:
            self._read_marks()

    @property
    def complete(self) -> bool:
        return self.receipt is not None

    def begin(self, inputs: Inputs, chunks: int) -> None:
        """Starts the marks anew."""
        self.inputs, self.done, self.chunks, self.seconds, self.receipt = inputs, set(), chunks, 0.0, None
        write_text(self.marks_path, json.dumps({"inputs": inputs, "chunks": chunks}) + "\n")

    def mark(self, phase: str, start: int, seconds: float) -> None:
        """Notes that a chunk's data is on the disk. Costs one small write, whatever came before."""
        line = json.dumps({"phase": phase, "start": start, "seconds": round(seconds, 3)})
        with self.marks_path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.done.add((phase, start))
        self.seconds += seconds

    def finish(self, fingerprint: str, frames: int, arrays: Iterable[str] = ()) -> None:
        """Writes the receipt and drops the marks. `arrays` are those that stay in the cache."""
        self.receipt = {
            "stage": self.stage, "fingerprint": fingerprint, "frames": frames, "seconds": round(self.seconds, 3),
            "arrays": sorted(arrays),
            "finished": time.strftime("%Y-%m-%d %H:%M:%S"), "versions": _versions(), "inputs": self.inputs,
        }  # fmt: skip
        write_json(self.receipt_path, self.receipt)
        self.marks_path.unlink(missing_ok=True)

    def clear(self) -> None:
        self.receipt_path.unlink(missing_ok=True)
        self.marks_path.unlink(missing_ok=True)
        self.inputs, self.done, self.seconds, self.receipt = None, set(), 0.0, None

    def touch(self) -> None:
        """Makes the receipt newer than what it depends on, as make wants it, when there was nothing to do."""
        os.utime(self.receipt_path)

    def _read_marks(self) -> None:
        try:
            text = self.marks_path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return
        whole = text[: text.rfind("\n") + 1]
        if whole != text:  # the line that a kill cut short; new lines must not be glued to it
            write_text(self.marks_path, whole)
        try:
            header, *marks = [json.loads(line) for line in whole.splitlines()] or [{}]
            if not header:
                return
            chunks, done = header["chunks"], {(mark["phase"], mark["start"]) for mark in marks}
            seconds = sum(mark["seconds"] for mark in marks)
        except (ValueError, KeyError, TypeError):
            return  # damaged: what was done cannot be known, so nothing was
        if _are_inputs(header["inputs"]):
            self.inputs, self.chunks, self.done, self.seconds = header["inputs"], chunks, done, seconds


def _receipt(path: Path) -> dict[str, Any] | None:
    """A receipt; None if there is none or it is damaged."""
    receipt = read_json(path)
    expected = {"fingerprint": str, "frames": int, "seconds": int | float, "finished": str}
    whole = isinstance(receipt, dict) and all(isinstance(receipt.get(key), kind) for key, kind in expected.items())
    return receipt if whole and _are_inputs(receipt.get("inputs")) else None


def _are_inputs(value: object) -> TypeGuard[Inputs]:
    """Whether this is what a stage depends on (see fingerprint.py)."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("keys"), dict)
        and isinstance(value.get("after"), dict)
        and all(_are_inputs(inputs) for inputs in value["after"].values())
    )


def write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False)
    if any("\ud800" <= character <= "\udfff" for character in text):  # of a file name that is not UTF-8
        text = json.dumps(value, indent=1)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """Replaces a file's text in one go: a reader, or a kill, sees the old text or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def read_json(path: Path) -> Any:
    """The value in a JSON file; None if there is no such file or it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in NOTED_PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
