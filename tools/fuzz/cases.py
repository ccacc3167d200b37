"""The cases, as strategies of hypothesis: invalid jobs, damaged videos and caches, unusual file names."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from stages import all_stages
from stages.base.json_types import Json, JsonObject
from stages.jobs.job import Job
from tools.fuzz.samples import CLIPS, FRAMES, JOB, OUTPUT, PLAIN, RUNS, SIZE, Samples
from tools.fuzz.slots import Slot, put, slots

EXTREMES = (
    -1,
    0,
    0.5,
    1e18,
    10**20,
    10**400,
    1e300,
    1e-300,
    5e-324,
    2**63,
    float("inf"),
    float("-inf"),
    float("nan"),
)
# The largest values of keys that make a run slow. Larger ones are covered by the tests of the job model.
MAXIMA = {
    "frame_height": 2 * SIZE, "frame_width": 2 * SIZE, "num_inference_steps": 2, "num_iter": 2, "resolution": 2 * SIZE,
    "factor": 2, "steps": 4,
}  # fmt: skip
OTHER_VALUES: tuple[Json, ...] = (
    "", "x", "auto", "\x00", "\ud800", "é" * 300, [[]], [None], {"name": "canny"}, {"": 1}, "../..", "/dev/null",
    "/proc/self/mem", "job.json", "images", "a.mp4", "mini", "owner/model",
)  # fmt: skip
NAMES: tuple[bytes, ...] = (
    b"a b", b" a", b"a ", b"-q", b"--help", b"-", b"a:b", b"c:", b"http:", b"file:a", b"a%d", b"%05d", b"a\nb", b"a\tb",
    b"'a'", b'"a"', b"a\\b", b"[red]a[bold]", b"{a}", b"$HOME", b"~", b"*", b"a;b", b"\xff\xfe", b"caf\xe9",
    "é".encode(), "e\u0301".encode(), "日本語".encode(), "🎬".encode(), b"a" * 230,
)  # fmt: skip


JOB_FILE = "job.json"
COMMANDS = [
    ["status"], ["run", "-q"], ["run", "--restart", "-q"], ["export", "-q"], ["verify", "-q"], ["report", "-q"],
    ["clean", "--dry-run"], ["clean", "--yes"], *([stage, "--restart", "-q"] for stage in all_stages.NAMES),
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A command line and the files that it is run with, named by what is wrong or unusual about them.

    Attributes:
        base: The folder of samples in whose copy it is run.
        files: The contents of further and of other files. None removes a file.
        writes: Where it may write.
    """

    name: str
    arguments: Sequence[str]
    base: str = PLAIN
    files: Mapping[str, bytes | None] = field(default_factory=dict)
    writes: Sequence[str] = (OUTPUT,)
    new_process: bool = False

    def build(self, samples: Samples, folder: Path) -> None:
        """Write the files into a new folder."""
        shutil.copytree(samples.folder / self.base, folder, symlinks=True)
        for name, data in self.files.items():
            path = folder / name
            if data is None:
                path.unlink()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)


def jobs(_: Samples) -> SearchStrategy[Case]:
    """Job files with missing, misspelled and other keys, numbers and values of any type, some of them valid."""
    changed = st.one_of(_with_numbers(), _with_value(), _with_nested_value(), _without_key(), _misspelled())
    return _texts(changed.map(_with_files)).map(_run)


@st.composite
def videos(draw: DrawFn, samples: Samples) -> Case:
    """Damaged videos and images, with the commands that read them."""
    name = draw(st.sampled_from([*CLIPS, "images/0.png"]))
    video = name.partition("/")[0]
    job = json.dumps({**JOB, "input_video": video}).encode()
    commands = [["extract", JOB_FILE, "-q"], ["smooth", video, "-o", "out.mp4", "--window=1", "-q"]]
    commands += [["metrics", video, str(samples.folder / "a.mp4")], ["init", "fashion", video, "-o", "project"]]
    arguments = draw(st.sampled_from([*[commands[0]] * 6, commands[1], *commands[1:]]))
    data = draw(_damaged((samples.folder / name).read_bytes()))
    writes = (OUTPUT, "out.mp4", "project")
    return Case(f"{name} damaged, {arguments[0]}", arguments, files={JOB_FILE: job, name: data}, writes=writes)


@st.composite
def caches(draw: DrawFn, samples: Samples) -> Case:
    """Caches of finished and interrupted runs with one damaged file, or a wrong value in a field of a record."""
    base = draw(st.sampled_from(RUNS))
    folder = samples.folder / base
    files = sorted(path for path in (folder / OUTPUT).rglob("*") if path.is_file())
    records = [path for path in files if path.suffix in (".json", ".jsonl")]
    damage, chosen = draw(st.sampled_from([(_damaged, files), (_damaged, records), (_wrong_field, records)]))
    path = draw(st.sampled_from(chosen))
    data = draw(st.one_of([damage(path.read_bytes())] * 6 + [st.none()]))
    command, *options = draw(st.sampled_from(COMMANDS))
    name = str(path.relative_to(folder))
    title = f"{name} of {base} {'removed' if data is None else 'damaged'}, {command} {' '.join(options)}"
    return Case(title, [command, JOB_FILE, *options], base, {name: data})


@st.composite
def names(draw: DrawFn, samples: Samples) -> Case:
    """Unusual names of videos, job files and folders, some with LANG=C in a new process."""
    name = os.fsdecode(draw(st.sampled_from(NAMES)))
    use = draw(st.sampled_from(["video", "job", "output", "smooth", "folder"]))
    new_process = draw(st.integers(0, 4)) == 4
    job, arguments, clip = dict(JOB), ["extract", JOB_FILE, "-q"], (samples.folder / "a.mp4").read_bytes()
    files: dict[str, bytes | None] = {}
    if use == "video":
        job["input_video"], files[f"{name}.mp4"] = f"./{name}.mp4", clip
    elif use == "folder":
        images = (samples.folder / "images").iterdir()
        job["input_video"] = f"x{name}"
        files |= {f"x{name}/{image.name}": image.read_bytes() for image in images}
    elif use == "output":
        job["output_path"] = name
        arguments = ["extract" if new_process else "run", JOB_FILE, "-q"]
    elif use == "smooth":
        files[f"{name}.mp4"] = clip
        arguments = ["smooth", f"./{name}.mp4", "-o", f"./{name}.out.mp4", "--window=1", "-q"]
    else:
        arguments = ["extract", f"./{name}.json", "-q"]
    files[f"{name}.json" if use == "job" else JOB_FILE] = json.dumps(job).encode()
    return Case(f"{use} {name!r}", arguments, PLAIN, files, (OUTPUT, name, f"{name}.out.mp4"), new_process)


CASES: dict[str, Callable[[Samples], SearchStrategy[Case]]] = {
    "jobs": jobs, "videos": videos, "caches": caches, "names": names,
}  # fmt: skip


# --- values ---------------------------------------------------------------------------------------------


def _harmless(text: str) -> bool:
    """Whether a name leads to no place outside the folder of the case."""
    return not text.startswith(("/", "~")) and ".." not in text and "://" not in text


def _values() -> SearchStrategy[Json]:
    """Values of all types of JSON, and some that programs stumble over."""
    text = st.text(max_size=20).filter(_harmless)
    plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), text, st.sampled_from(EXTREMES))
    nested = st.recursive(
        plain,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
        max_leaves=5,
    )
    return st.one_of(st.sampled_from(OTHER_VALUES), nested)


def _is_quick(key: str, value: Json) -> bool:
    """Whether a job with this value does not take long."""
    return not isinstance(value, int | float) or not value > MAXIMA.get(key, value)


@st.composite
def _sensible(draw: DrawFn, slot: Slot) -> float:
    low = -100.0 if slot.low is None else slot.low
    high = 100.0 if slot.high is None else slot.high
    high = min(high, MAXIMA.get(slot.name, high))
    number = draw(st.sampled_from([low, high]) | st.floats(low, high) | st.floats(low, min(high, low + 2 * FRAMES)))
    return round(number) if slot.is_integer else number


@st.composite
def _damaged(draw: DrawFn, data: bytes) -> bytes:
    """Truncate or replace `data`, flip bits of it, or overwrite, remove or repeat a part of it."""
    start = draw(st.integers(0, max(0, len(data) - 1)))
    stop = min(len(data), start + draw(st.sampled_from([1, 8, 100, 1000])))
    before, part, after = data[:start], data[start:stop], data[stop:]
    flips = [1 << bit for bit in range(8)]
    changed: bytes = draw(
        st.one_of(
            st.just(before),
            st.just(before + bytes(len(part)) + after),
            st.randoms().map(lambda rng: before + rng.randbytes(len(part)) + after),
            st.just(before + after),
            st.just(before + part * 2 + after),
            st.sampled_from([b"", b"\n", b"{}", b"[]", b"null", b'{"a": 1}', data[::-1]]),
            st.sampled_from(flips).map(lambda flip: before + bytes(byte ^ flip for byte in part) + after),
        )
    )
    return changed


@st.composite
def _wrong_field(draw: DrawFn, data: bytes) -> bytes:
    """Give a field of a record in JSON, or of one of its lines, another value, or remove it."""
    lines = data.splitlines() if b"\n{" in data else [data]
    number = draw(st.integers(0, len(lines) - 1))
    record = json.loads(lines[number])
    target, key = draw(st.sampled_from([*_fields(record)] or [(None, "")]))
    assume(target is not None)
    if draw(st.booleans()):
        target[key] = draw(_values())
    else:
        del target[key]
    lines[number] = json.dumps(record).encode()
    return b"\n".join(lines)


def _fields(record: Any) -> list[tuple[Any, Any]]:
    """Return the object or list and the key or index of every field, at any depth."""
    items = record.items() if isinstance(record, dict) else enumerate(record) if isinstance(record, list) else ()
    return [place for key, value in items for place in ((record, key), *_fields(value))]


# --- jobs -----------------------------------------------------------------------------------------------


@st.composite
def _with_numbers(draw: DrawFn) -> JsonObject:
    """A job with one or two other numbers, half of them sensible."""
    job = copy.deepcopy(JOB)
    for slot in draw(st.lists(st.sampled_from(slots()), min_size=1, max_size=2)):
        job = put(job, slot, draw(_sensible(slot) | st.sampled_from(EXTREMES)))
    return job


@st.composite
def _with_value(draw: DrawFn) -> JsonObject:
    key, value = draw(st.sampled_from([*Job.model_fields])), draw(_values())
    assume(_is_quick(key, value))
    return {**JOB, key: value if draw(st.booleans()) else [value]}


@st.composite
def _with_nested_value(draw: DrawFn) -> JsonObject:
    """A job with any value where a number belongs, which may be in an object in a list."""
    slot, value = draw(st.sampled_from(slots())), draw(_values())
    assume(_is_quick(slot.name, value))
    return put(copy.deepcopy(JOB), slot, value)


def _without_key() -> SearchStrategy[JsonObject]:
    removable = [key for key in JOB if key not in MAXIMA]
    return st.sampled_from(removable).map(lambda removed: {key: JOB[key] for key in JOB if key != removed})


def _misspelled() -> SearchStrategy[JsonObject]:
    letters = st.sampled_from([*Job.model_fields]).flatmap(st.permutations)
    return letters.map(lambda letters: {**JOB, "".join(letters): 1})


def _with_files(job: JsonObject) -> JsonObject:
    """Replace the file names in slots.REQUIRED by names of existing files."""
    files = {"controlnet_processor": "images", "loras": "file.safetensors"}
    for key in files.keys() & job.keys():
        if isinstance(items := job[key], list):
            job[key] = [{**item, "path": files[key]} if isinstance(item, dict) and "path" in item else item
                        for item in items]  # fmt: skip
    return job


@st.composite
def _texts(draw: DrawFn, jobs: SearchStrategy[JsonObject]) -> tuple[JsonObject, bytes]:
    """A job and its file, in one of several encodings and now and then damaged."""
    job = draw(jobs)
    encoding = draw(st.sampled_from([*["utf-8"] * 16, *["utf-8-sig"] * 3, "utf-16"]))
    data = json.dumps(job).encode(encoding, errors="surrogatepass")
    return job, draw(_damaged(data)) if draw(st.integers(0, 9)) == 9 else data


def _run(job_and_data: tuple[JsonObject, bytes]) -> Case:
    job, data = job_and_data
    writes = [place for key in ("output_path", "cache") if isinstance(place := job.get(key, OUTPUT), str)]
    return Case(data.decode("latin-1")[:300], ["run", JOB_FILE, "-q"], files={JOB_FILE: data}, writes=[OUTPUT, *writes])
