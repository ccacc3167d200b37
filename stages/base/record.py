"""Records of finished work: marks while a stage runs, a receipt when it is complete.

A stage's marks are a file of JSON lines. The first line holds the inputs the stage was started with, each further line
one finished chunk of one phase. Only the main process writes the file, and only after the chunk's data is on the disk.
An incomplete last line, left by a killed process, is ignored.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import NotRequired, TypedDict, TypeGuard

from stages.base.fingerprint import Inputs
from stages.base.json_types import Json

CACHE_NAME = "cache.zarr"  # in the job's output folder

# Packages that can change a frame's bytes. Receipts note their versions.
NOTED_PACKAGES = (
    "diffsynth-cli", "torch", "diffusers", "transformers", "controlnet_aux", "zarr", "av", "opencv-python-headless",
    "onnxruntime", "scenedetect-headless",
)  # fmt: skip


class Receipt(TypedDict):
    """What is noted about a complete stage."""

    stage: NotRequired[str]
    fingerprint: str
    frames: int
    seconds: float
    arrays: NotRequired[list[str]]
    finished: str
    versions: NotRequired[dict[str, str]]
    inputs: Inputs


def receipt_path(cache: Path, stage: str) -> Path:
    """Return the path of a stage's receipt, which Makefiles use as a target."""
    return cache / "receipts" / f"{stage}.json"


class StageRecord:
    """Marks and receipt of one stage in one cache."""

    def __init__(self, cache: Path, stage: str):
        self.stage = stage
        self.marks_path = cache / "marks" / f"{stage}.jsonl"
        self.receipt_path = receipt_path(cache, stage)
        self.inputs: Inputs | None = None
        """What the stage was started with. None if it was never started."""
        self.done: set[tuple[str, int]] = set()
        """(phase, first frame) of every finished chunk."""
        self.chunks = 0
        """Number of chunks in all phases."""
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
        """Start the marks of a run, discarding those of an earlier one."""
        self.inputs, self.done, self.chunks, self.seconds, self.receipt = inputs, set(), chunks, 0.0, None
        write_text(self.marks_path, json.dumps({"inputs": inputs, "chunks": chunks}) + "\n")

    def mark(self, phase: str, start: int, seconds: float) -> None:
        """Note that a chunk's data is on the disk. Appends one line, however many there are."""
        line = json.dumps({"phase": phase, "start": start, "seconds": round(seconds, 3)})
        with self.marks_path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.done.add((phase, start))
        self.seconds += seconds

    def finish(self, fingerprint: str, frames: int, arrays: Iterable[str] = ()) -> None:
        """Write the receipt and remove the marks. `arrays` are those that remain in the cache."""
        assert self.inputs is not None, "finish() without begin()"
        self.receipt = {
            "stage": self.stage, "fingerprint": fingerprint, "frames": frames, "seconds": round(self.seconds, 3),
            "arrays": sorted(arrays),
            "finished": time.strftime("%Y-%m-%d %H:%M:%S"), "versions": _versions(), "inputs": self.inputs,
        }  # fmt: skip
        write_json(self.receipt_path, self.receipt)
        self.marks_path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove the receipt and the marks."""
        self.receipt_path.unlink(missing_ok=True)
        self.marks_path.unlink(missing_ok=True)
        self.inputs, self.done, self.seconds, self.receipt = None, set(), 0.0, None

    def touch(self) -> None:
        """Make the receipt newer than its inputs, as make requires, when there was nothing to do."""
        os.utime(self.receipt_path)

    def _read_marks(self) -> None:
        try:
            text = self.marks_path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return
        whole = text[: text.rfind("\n") + 1]
        if whole != text:  # remove the incomplete line, or the next mark would be appended to it
            write_text(self.marks_path, whole)
        try:
            header, *marks = [json.loads(line) for line in whole.splitlines()] or [{}]
            if not header:
                return
            chunks, done = header["chunks"], {(mark["phase"], mark["start"]) for mark in marks}
            seconds = sum(mark["seconds"] for mark in marks)
        except (ValueError, KeyError, TypeError):
            return  # damaged, so nothing counts as done
        if _are_inputs(header["inputs"]):
            self.inputs, self.chunks, self.done, self.seconds = header["inputs"], chunks, done, seconds


def _receipt(path: Path) -> Receipt | None:
    """Read a receipt. None if it does not exist or is damaged."""
    receipt = read_json(path)
    return receipt if _is_receipt(receipt) else None


def _is_receipt(value: object) -> TypeGuard[Receipt]:
    expected = {"fingerprint": str, "frames": int, "seconds": int | float, "finished": str}
    return (
        isinstance(value, dict)
        and all(isinstance(value.get(key), kind) for key, kind in expected.items())
        and _are_inputs(value.get("inputs"))
    )


def _are_inputs(value: object) -> TypeGuard[Inputs]:
    """Whether `value` has the form of a stage's inputs."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("keys"), dict)
        and isinstance(value.get("after"), dict)
        and all(_are_inputs(inputs) for inputs in value["after"].values())
    )


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON, atomically."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    if any("\ud800" <= character <= "\udfff" for character in text):  # from a file name that is not UTF-8
        text = json.dumps(value, indent=1)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a file's text atomically: the file holds the old text or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def read_json(path: Path) -> Json:
    """Read a JSON file. None if it does not exist or is damaged."""
    try:
        value: Json = json.loads(path.read_text(encoding="utf-8"))
        return value
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
