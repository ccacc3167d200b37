"""Records of finished work: marks while a stage runs, a receipt when it is complete.

A stage's marks are a journal of JSON lines. The first line holds the inputs the stage was started with, each further
line one finished chunk of one phase. Only the main process writes them, and only after the chunk's data is stored. An
incomplete last line, left by a killed process, is ignored.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import NotRequired, TypeGuard

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from stages.base.errors import DiffSynthError
from stages.base.fingerprint import Inputs
from stages.base.store import Store, as_json, from_json, write_bytes

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
    phases: NotRequired[dict[str, float]]
    arrays: NotRequired[list[str]]
    removed: NotRequired[list[str]]
    finished: str
    versions: NotRequired[dict[str, str]]
    inputs: Inputs


def receipt_name(name: str) -> str:
    """Return where the receipt of a stage or output is stored. Makefiles use that of a stage as a target."""
    return f"receipts/{name}.json"


class StageRecord:
    """Marks and receipt of one stage in one cache."""

    def __init__(self, store: Store, stage: str):
        self.store, self.stage = store, stage
        self.marks = store.journal(f"marks/{stage}.jsonl")
        self.inputs: Inputs | None = None
        """What the stage was started with. None if it was never started."""
        self.done: set[tuple[str, int]] = set()
        """(phase, first frame) of every finished chunk."""
        self.chunks = 0
        """Number of chunks in all phases."""
        self.phases: dict[str, float] = {}
        """Seconds that the finished chunks of each phase took."""
        self.receipt = self._read_receipt()
        if self.receipt is not None:
            self.inputs = self.receipt["inputs"]
        else:
            self._read_marks()

    @property
    def complete(self) -> bool:
        return self.receipt is not None

    @property
    def seconds(self) -> float:
        """Seconds that all finished chunks took."""
        return sum(self.phases.values())

    @property
    def removed(self) -> set[str]:
        """The arrays whose frames were removed after the stage was complete."""
        return set() if self.receipt is None else set(self.receipt.get("removed", ()))

    def note_removed(self, arrays: Iterable[str]) -> None:
        """Note in the receipt that the frames of these arrays are about to be removed."""
        assert self.receipt is not None, "only arrays of complete stages are removed"
        self.receipt["removed"] = sorted({*self.removed, *arrays})
        self.receipt["arrays"] = sorted({*self.receipt.get("arrays", ())} - self.removed)
        self.touch()

    def begin(self, inputs: Inputs, chunks: int) -> None:
        """Start the marks of a run, discarding those of an earlier one."""
        self.inputs, self.done, self.chunks, self.phases, self.receipt = inputs, set(), chunks, {}, None
        self.marks.start(json.dumps({"inputs": inputs, "chunks": chunks}))

    def mark(self, phase: str, start: int, seconds: float) -> None:
        """Note that a chunk's data is stored. The note itself is durable after `commit` at the latest."""
        self.marks.append(json.dumps({"phase": phase, "start": start, "seconds": round(seconds, 3)}))
        self.done.add((phase, start))
        self.phases[phase] = self.phases.get(phase, 0.0) + seconds

    def commit(self) -> None:
        """Make all marks durable, which is required before anything is removed that their chunks were made from."""
        self.marks.commit()

    @contextmanager
    def committing(self) -> Iterator[None]:
        """Commit the marks at the end, also after an error, which is then raised."""
        try:
            yield
        except BaseException:
            with suppress(DiffSynthError):
                self.commit()
            raise
        self.commit()

    def finish(self, fingerprint: str, frames: int, arrays: Iterable[str] = ()) -> None:
        """Write the receipt and remove the marks. `arrays` are those that remain in the cache."""
        assert self.inputs is not None, "finish() without begin()"
        self.receipt = {
            "stage": self.stage, "fingerprint": fingerprint, "frames": frames, "seconds": round(self.seconds, 3),
            "phases": {phase: round(seconds, 3) for phase, seconds in self.phases.items()}, "arrays": sorted(arrays),
            "finished": time.strftime("%Y-%m-%d %H:%M:%S"), "versions": versions(), "inputs": self.inputs,
        }  # fmt: skip
        self.store.put(receipt_name(self.stage), as_json(self.receipt))
        self.marks.remove()

    def clear(self) -> None:
        """Remove the receipt and the marks."""
        self.store.delete(receipt_name(self.stage))
        self.marks.remove()
        self.inputs, self.done, self.phases, self.receipt = None, set(), {}, None

    def touch(self) -> None:
        """Make the receipt newer than its inputs, as make requires, when there was nothing to do."""
        self.store.put(receipt_name(self.stage), as_json(self.receipt))

    def _read_receipt(self) -> Receipt | None:
        """Read the receipt. None if it does not exist or is damaged."""
        receipt = from_json(self.store.get(receipt_name(self.stage)))
        return receipt if _is_receipt(receipt) else None

    def _read_marks(self) -> None:
        try:
            header, *marks = [json.loads(line) for line in self.marks.read().splitlines()] or [{}]
            if not header:
                return
            seconds = {(mark["phase"], mark["start"]): mark["seconds"] for mark in marks}
            inputs, chunks, phases = header["inputs"], header["chunks"], _by_phase(seconds)
        except (ValueError, KeyError, TypeError):
            return  # damaged, so nothing counts as done
        if _are_inputs(inputs) and isinstance(chunks, int):
            self.inputs, self.chunks, self.done, self.phases = inputs, chunks, set(seconds), phases


def _by_phase(seconds: dict[tuple[str, int], float]) -> dict[str, float]:
    """Add up the seconds of chunks, which are given by phase and first frame."""
    total: dict[str, float] = {}
    for (phase, _), spent in seconds.items():
        total[phase] = total.get(phase, 0.0) + spent
    return total


def _is_receipt(value: object) -> TypeGuard[Receipt]:
    with suppress(ValidationError):
        _receipts().validate_python(value, strict=True)
        return True
    return False


@cache
def _receipts() -> TypeAdapter[Receipt]:
    return TypeAdapter(Receipt)


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
    write_bytes(path, as_json(value))


def write_text(path: Path, text: str) -> None:
    """Replace a file's text atomically."""
    write_bytes(path, text.encode())


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that can change a frame."""
    found = {"python": platform.python_version()}
    for package in NOTED_PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
