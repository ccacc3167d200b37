"""The cases: wrong and odd jobs, damaged videos, damaged caches, odd file names. All random choices are seeded."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages import all_stages
from stages.jobs.job import Job
from tools.fuzz.slots import Slot, put, slots
from tools.fuzz.workshop import CLIPS, FRAMES, JOB, SIZE, Workshop

WILD = (-1, 0, 0.5, 1e18, 10**20, 10**400, 1e300, 1e-300, 5e-324, 2**63, float("inf"), float("-inf"), float("nan"))
# Sensible numbers that cost time; larger ones are tried where they are refused or cost nothing (tests of the job).
AFFORDABLE = {
    "frame_height": 2 * SIZE, "frame_width": 2 * SIZE, "num_inference_steps": 2, "num_iter": 2, "resolution": 2 * SIZE,
}  # fmt: skip
OTHER_VALUES: tuple[Any, ...] = (
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
    """A command line, to be run in `folder`, and what is odd about it."""

    name: str
    arguments: list[str]
    folder: Path
    apart: bool = False


def jobs(shop: Workshop, chance: random.Random, count: int) -> Iterator[Case]:
    """Random job files, of which some are right."""
    places = slots()
    kinds: list[Callable[[dict[str, Any]], dict[str, Any]]] = [
        lambda job: _with_number(job, chance, places),
        lambda job: _with_number(_with_number(job, chance, places), chance, places),
        lambda job: _with_other_value(job, chance),
        lambda job: _without(job, chance.choice([key for key in job if key not in AFFORDABLE])),
        lambda job: {**job, _misspelled(chance): 1},
    ]
    for index in range(count):
        folder = shop.folder / f"job{index}"
        shutil.copytree(shop.folder / "images", folder / "images")
        job = chance.choice(kinds)(copy.deepcopy(JOB))
        text = json.dumps(_with_files(job))
        if chance.random() < 0.1:
            text = _damaged(text.encode(), chance).decode("latin-1")
        path = folder / "job.json"
        encoding = chance.choices(["utf-8", "utf-8-sig", "utf-16"], weights=[16, 3, 1])[0]
        path.write_text(text, encoding=encoding, errors="surrogatepass")
        for name in ("a.mp4", "file.safetensors"):
            shutil.copy(shop.folder / name, folder / name)
        (folder / "weights").symlink_to(shop.folder / "weights")
        yield Case(f"job {index}: {text[:300]}", ["run", "job.json", "-q"], folder)


def videos(shop: Workshop, chance: random.Random, count: int) -> Iterator[Case]:
    """Damaged videos and images, through the commands that read them."""
    for index in range(count):
        folder = shop.folder / f"video{index}"
        folder.mkdir()
        source = shop.folder / chance.choice([*CLIPS, "images/0.png"])
        name = source.name
        data = _damaged(source.read_bytes(), chance)
        if source.parent.name == "images":
            name = "images"
            shutil.copytree(shop.folder / "images", folder / name)
            (folder / name / source.name).write_bytes(data)
        else:
            (folder / name).write_bytes(data)
        shop.write_job({**JOB, "input_video": name}, folder / "job.json")
        arguments = chance.choices(
            [["extract", "job.json", "-q"], ["smooth", name, "-o", "out.mp4", "--window=1", "-q"],
             ["metrics", name, str(shop.folder / "a.mp4")], ["init", "fashion", name, "-o", "project"]],
            weights=[6, 2, 1, 1],
        )[0]  # fmt: skip
        yield Case(f"video {index}: {source.name} damaged, {arguments[0]}", arguments, folder)


def caches(shop: Workshop, chance: random.Random, count: int) -> Iterator[Case]:
    """Caches of finished and interrupted runs with one damaged file."""
    commands = [["status"], ["run", "-q"], ["run", "--restart", "-q"], ["export", "-q"]]
    commands += [[stage, "--restart", "-q"] for stage in all_stages.NAMES]
    for index in range(count):
        folder = shop.folder / f"cache{index}"
        shutil.copytree(shop.folder / chance.choice(["finished", "finished", "begun"]), folder)
        shop.write_job({**JOB}, folder / "job.json")
        files = sorted(path for path in (folder / "out").rglob("*") if path.is_file())
        notes = [path for path in files if path.suffix in (".json", ".jsonl")]
        path = chance.choice(chance.choice([files, notes]))
        if chance.random() < 0.15:
            path.unlink()
        else:
            path.write_bytes(_damaged(path.read_bytes(), chance))
        command, *options = chance.choice(commands)
        name = f"cache {index}: {path.relative_to(folder)} damaged, {command} {' '.join(options)}"
        yield Case(name, [command, "job.json", *options], folder)


def names(shop: Workshop, chance: random.Random, count: int) -> Iterator[Case]:
    """Odd names of videos, job files and folders, some of them in a process of their own with LANG=C."""
    order = chance.sample(NAMES, len(NAMES))
    for index in range(count):
        folder = shop.folder / f"name{index}"
        shutil.copytree(shop.folder / "images", folder / "images")
        name, apart = os.fsdecode(order[index % len(order)]), index % 5 == 0
        use = chance.choice(["video", "job", "output", "smooth", "folder"])
        job, arguments = dict(JOB), ["extract", "job.json", "-q"]
        if use == "video":
            shutil.copy(shop.folder / "a.mp4", folder / f"{name}.mp4")
            job["input_video"] = f"./{name}.mp4"
        elif use == "folder":
            (folder / "images").rename(folder / f"x{name}")
            job["input_video"] = f"x{name}"
        elif use == "output":
            job["output_path"] = name
            arguments = ["extract" if apart else "run", "job.json", "-q"]
        elif use == "smooth":
            shutil.copy(shop.folder / "a.mp4", folder / f"{name}.mp4")
            arguments = ["smooth", f"./{name}.mp4", "-o", f"./{name}.out.mp4", "--window=1", "-q"]
        else:
            arguments = ["extract", f"./{name}.json", "-q"]
        shop.write_job(job, folder / (f"{name}.json" if use == "job" else "job.json"))
        yield Case(f"name {index}: {use} {name!r}", arguments, folder, apart)


CASES: dict[str, Callable[[Workshop, random.Random, int], Iterator[Case]]] = {
    "jobs": jobs, "videos": videos, "caches": caches, "names": names,
}  # fmt: skip


# --- what is changed ------------------------------------------------------------------------------------


def _with_number(job: dict[str, Any], chance: random.Random, places: list[Slot]) -> dict[str, Any]:
    slot = chance.choice(places)
    return put(job, slot, chance.choice(WILD) if chance.random() < 0.5 else _sensible(slot, chance))


def _sensible(slot: Slot, chance: random.Random) -> float:
    low = -100.0 if slot.low is None else slot.low
    high = 100.0 if slot.high is None else slot.high
    high = min(high, AFFORDABLE.get(slot.name, high))
    number = chance.choice([low, high, chance.uniform(low, high), min(high, low + chance.uniform(0, 2 * FRAMES))])
    return round(number) if slot.whole else number


def _with_other_value(job: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    key = chance.choice(list(Job.model_fields))
    value = chance.choice(OTHER_VALUES)
    return {**job, key: value if chance.random() < 0.7 else [value]}


def _without(job: dict[str, Any], left_out: str) -> dict[str, Any]:
    return {key: value for key, value in job.items() if key != left_out}


def _misspelled(chance: random.Random) -> str:
    letters = list(chance.choice(list(Job.model_fields)))
    chance.shuffle(letters)
    return "".join(letters)


def _with_files(job: dict[str, Any]) -> dict[str, Any]:
    """`job` with the names of files that are there for those that slots leave open."""
    files = {"controlnet_processor": "images", "loras": "file.safetensors"}
    for key in files.keys() & job.keys():
        if isinstance(job[key], list):
            job[key] = [{**item, "path": files[key]} if isinstance(item, dict) and "path" in item else item
                        for item in job[key]]  # fmt: skip
    return job


def _damaged(data: bytes, chance: random.Random) -> bytes:
    """`data` cut off, emptied, with bits flipped, a part overwritten, left out or moved."""
    if not data:
        return b"\x00"
    start = chance.randrange(len(data))
    stop = min(len(data), start + chance.choice([1, 8, 100, 1000]))
    how = chance.randrange(7)
    if how == 0:
        return data[:start]
    if how == 1:
        return data[:start] + bytes(stop - start) + data[stop:]
    if how == 2:
        return data[:start] + chance.randbytes(stop - start) + data[stop:]
    if how == 3:
        return data[:start] + data[stop:]
    if how == 4:
        return data[:start] + data[start:stop] * 2 + data[stop:]
    if how == 5:
        return chance.choice([b"", b"\n", b"{}", b"[]", b"null", b'{"a": 1}', data[::-1]])
    flipped = bytearray(data)
    for _ in range(chance.choice([1, 3, 20])):
        flipped[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(flipped)
