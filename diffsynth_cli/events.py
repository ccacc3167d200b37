"""The events that `--json` prints, one JSON object per line of stdout. `diffsynth schema --events` describes them."""

from __future__ import annotations

from typing import Literal, NotRequired, TypeAlias

from pydantic import TypeAdapter, with_config
from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

from stages.base.json_types import JsonObject

described = with_config(use_attribute_docstrings=True)


@described
class Begin(TypedDict):
    """A stage begins or resumes. It may begin twice: first without a total, while its inputs are checked."""

    event: Literal["begin"]
    time: float
    stage: str
    total: int | None
    """Frames of all phases together, null while unknown."""
    done: int
    """How many of them an earlier run has finished."""


@described
class Phase(TypedDict):
    """The next phase of the stage begins."""

    event: Literal["phase"]
    time: float
    name: str


@described
class Advance(TypedDict):
    """Frames are finished and safe on the disk."""

    event: Literal["advance"]
    time: float
    phase: str
    done: int
    """Frames of the stage that are finished, of `total`."""
    gpu_memory: NotRequired[int]
    """Bytes of the GPU's memory that this process has reserved."""


@described
class Note(TypedDict):
    """Information, such as the name of a file that was written."""

    event: Literal["note"]
    time: float
    message: str


@described
class Warning(TypedDict):
    """Something you should know that does not stop the work."""

    event: Literal["warning"]
    time: float
    message: str


@described
class End(TypedDict):
    """A stage is complete."""

    event: Literal["end"]
    time: float
    stage: str
    message: str


@described
class Error(TypedDict):
    """Why the command failed, as its last event. The exit code is 1, 2 or 130."""

    event: Literal["error"]
    time: float
    message: str
    hint: str
    """What to do about it; may be empty."""


Event: TypeAlias = Begin | Phase | Advance | Note | Warning | End | Error
"""`time` is in seconds since 1970. Keys may be added in later versions; none is removed or changes its meaning."""


def schema() -> JsonObject:
    """Return the JSON Schema of events."""
    adapter: TypeAdapter[Event] = TypeAdapter(Event)
    return adapter.json_schema()
