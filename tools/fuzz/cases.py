"""The cases: invalid jobs, damaged videos and caches, unusual file names. All random choices are seeded."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from stages import all_stages
from stages.base.json_types import Json, JsonObject
from stages.jobs.job import Job
from tools.fuzz.samples import CLIPS, FRAMES, JOB, SIZE, Samples
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
}  # fmt: skip
OTHER_VALUES: tuple[Json, ...] = (
    None, True, "", "x", "auto", "\x00", "\ud800", "é" * 300, [], [[]], [None], {}, {"name": "canny"}, {"": 1}, "../..",
    "/dev/null", "/proc/self/mem", "job.json", "images", "a.mp4", "mini", "owner/model",
)  # fmt: skip
NAMES: tuple[bytes, ...] = (
    b"a b", b" a", b"a ", b"-q", b"--help", b"-", b"a:b", b"c:", b"http:", b"file:a", b"a%d", b"%05d", b"a\nb", b"a\tb",
    b"'a'", b'"a"', b"a\\b", b"[red]a[bold]", b"{a}", b"$HOME", b"~", b"*", b"a;b", b"\xff\xfe", b"caf\xe9",
    "é".encode(), "e\u0301".encode(), "日本語".encode(), "🎬".encode(), b"a" * 230,
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A command line to run in `folder`, named by what is wrong or unusual about it."""

    name: str
    arguments: list[str]
    folder: Path
    new_process: bool = False


def jobs(samples: Samples, rng: random.Random, count: int) -> Iterator[Case]:
    """Yield random job files, some of them valid."""
    places = slots()
    kinds: list[Callable[[JsonObject], JsonObject]] = [
        lambda job: _with_number(job, rng, places),
        lambda job: _with_number(_with_number(job, rng, places), rng, places),
        lambda job: _with_other_value(job, rng),
        lambda job: _without(job, rng.choice([key for key in job if key not in MAXIMA])),
        lambda job: {**job, _misspelled(rng): 1},
    ]
    for index in range(count):
        folder = samples.folder / f"job{index}"
        shutil.copytree(samples.folder / "images", folder / "images")
        job = rng.choice(kinds)(copy.deepcopy(JOB))
        text = json.dumps(_with_files(job))
        if rng.random() < 0.1:
            text = _damaged(text.encode(), rng).decode("latin-1")
        path = folder / "job.json"
        encoding = rng.choices(["utf-8", "utf-8-sig", "utf-16"], weights=[16, 3, 1])[0]
        path.write_text(text, encoding=encoding, errors="surrogatepass")
        for name in ("a.mp4", "file.safetensors"):
            shutil.copy(samples.folder / name, folder / name)
        (folder / "weights").symlink_to(samples.folder / "weights")
        yield Case(f"job {index}: {text[:300]}", ["run", "job.json", "-q"], folder)


def videos(samples: Samples, rng: random.Random, count: int) -> Iterator[Case]:
    """Yield damaged videos and images, with the commands that read them."""
    for index in range(count):
        folder = samples.folder / f"video{index}"
        folder.mkdir()
        source = samples.folder / rng.choice([*CLIPS, "images/0.png"])
        name = source.name
        data = _damaged(source.read_bytes(), rng)
        if source.parent.name == "images":
            name = "images"
            shutil.copytree(samples.folder / "images", folder / name)
            (folder / name / source.name).write_bytes(data)
        else:
            (folder / name).write_bytes(data)
        samples.write_job({**JOB, "input_video": name}, folder / "job.json")
        arguments = rng.choices(
            [["extract", "job.json", "-q"], ["smooth", name, "-o", "out.mp4", "--window=1", "-q"],
             ["metrics", name, str(samples.folder / "a.mp4")], ["init", "fashion", name, "-o", "project"]],
            weights=[6, 2, 1, 1],
        )[0]  # fmt: skip
        yield Case(f"video {index}: {source.name} damaged, {arguments[0]}", arguments, folder)


def caches(samples: Samples, rng: random.Random, count: int) -> Iterator[Case]:
    """Yield caches of finished and interrupted runs with one damaged file."""
    commands = [["status"], ["run", "-q"], ["run", "--restart", "-q"], ["export", "-q"], ["verify", "-q"]]
    commands += [["report", "-q"], ["clean", "--dry-run"], ["clean", "--yes"]]
    commands += [[stage, "--restart", "-q"] for stage in all_stages.NAMES]
    for index in range(count):
        folder = samples.folder / f"cache{index}"
        shutil.copytree(samples.folder / rng.choice(["finished", "finished", "interrupted"]), folder)
        samples.write_job({**JOB}, folder / "job.json")
        files = sorted(path for path in (folder / "out").rglob("*") if path.is_file())
        records = [path for path in files if path.suffix in (".json", ".jsonl")]
        path = rng.choice(rng.choice([files, records]))
        if rng.random() < 0.15:
            path.unlink()
        else:
            path.write_bytes(_damaged(path.read_bytes(), rng))
        command, *options = rng.choice(commands)
        name = f"cache {index}: {path.relative_to(folder)} damaged, {command} {' '.join(options)}"
        yield Case(name, [command, "job.json", *options], folder)


def names(samples: Samples, rng: random.Random, count: int) -> Iterator[Case]:
    """Yield unusual names of videos, job files and folders, some with LANG=C in a new process."""
    order = rng.sample(NAMES, len(NAMES))
    for index in range(count):
        folder = samples.folder / f"name{index}"
        shutil.copytree(samples.folder / "images", folder / "images")
        name, new_process = os.fsdecode(order[index % len(order)]), index % 5 == 0
        use = rng.choice(["video", "job", "output", "smooth", "folder"])
        job, arguments = dict(JOB), ["extract", "job.json", "-q"]
        if use == "video":
            shutil.copy(samples.folder / "a.mp4", folder / f"{name}.mp4")
            job["input_video"] = f"./{name}.mp4"
        elif use == "folder":
            (folder / "images").rename(folder / f"x{name}")
            job["input_video"] = f"x{name}"
        elif use == "output":
            job["output_path"] = name
            arguments = ["extract" if new_process else "run", "job.json", "-q"]
        elif use == "smooth":
            shutil.copy(samples.folder / "a.mp4", folder / f"{name}.mp4")
            arguments = ["smooth", f"./{name}.mp4", "-o", f"./{name}.out.mp4", "--window=1", "-q"]
        else:
            arguments = ["extract", f"./{name}.json", "-q"]
        samples.write_job(job, folder / (f"{name}.json" if use == "job" else "job.json"))
        yield Case(f"name {index}: {use} {name!r}", arguments, folder, new_process)


CASES: dict[str, Callable[[Samples, random.Random, int], Iterator[Case]]] = {
    "jobs": jobs, "videos": videos, "caches": caches, "names": names,
}  # fmt: skip


# --- mutations ------------------------------------------------------------------------------------------


def _with_number(job: JsonObject, rng: random.Random, places: list[Slot]) -> JsonObject:
    slot = rng.choice(places)
    return put(job, slot, rng.choice(EXTREMES) if rng.random() < 0.5 else _sensible(slot, rng))


def _sensible(slot: Slot, rng: random.Random) -> float:
    low = -100.0 if slot.low is None else slot.low
    high = 100.0 if slot.high is None else slot.high
    high = min(high, MAXIMA.get(slot.name, high))
    number = rng.choice([low, high, rng.uniform(low, high), min(high, low + rng.uniform(0, 2 * FRAMES))])
    return round(number) if slot.is_integer else number


def _with_other_value(job: JsonObject, rng: random.Random) -> JsonObject:
    key = rng.choice(list(Job.model_fields))
    value = rng.choice(OTHER_VALUES)
    return {**job, key: value if rng.random() < 0.7 else [value]}


def _without(job: JsonObject, removed: str) -> JsonObject:
    return {key: value for key, value in job.items() if key != removed}


def _misspelled(rng: random.Random) -> str:
    letters = list(rng.choice(list(Job.model_fields)))
    rng.shuffle(letters)
    return "".join(letters)


def _with_files(job: JsonObject) -> JsonObject:
    """Replace the file names in slots.REQUIRED by names of existing files."""
    files = {"controlnet_processor": "images", "loras": "file.safetensors"}
    for key in files.keys() & job.keys():
        if isinstance(items := job[key], list):
            job[key] = [{**item, "path": files[key]} if isinstance(item, dict) and "path" in item else item
                        for item in items]  # fmt: skip
    return job


def _damaged(data: bytes, rng: random.Random) -> bytes:
    """Truncate or replace `data`, flip bits of it, or overwrite, remove or repeat a part of it."""
    if not data:
        return b"\x00"
    start = rng.randrange(len(data))
    stop = min(len(data), start + rng.choice([1, 8, 100, 1000]))
    how = rng.randrange(7)
    if how == 0:
        return data[:start]
    if how == 1:
        return data[:start] + bytes(stop - start) + data[stop:]
    if how == 2:
        return data[:start] + rng.randbytes(stop - start) + data[stop:]
    if how == 3:
        return data[:start] + data[stop:]
    if how == 4:
        return data[:start] + data[start:stop] * 2 + data[stop:]
    if how == 5:
        return rng.choice([b"", b"\n", b"{}", b"[]", b"null", b'{"a": 1}', data[::-1]])
    flipped = bytearray(data)
    for _ in range(rng.choice([1, 3, 20])):
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(flipped)
