"""`diffsynth verify` finds damage anywhere in a cache, and `run --restart` repairs it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from diffsynth_cli.__main__ import main
from tests.conftest import STAGES, write_job
from tests.typing import Cli, MakeJob


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job that is done, in the folder `work`, of which `kept` is a copy."""
    folder = tmp_path_factory.mktemp("done")
    job = write_job(folder / "work", 3, keep_frames=True, keep_steps=True, num_inference_steps=2)
    assert main(["run", str(job), "-q"]) == 0
    shutil.copytree(folder / "work", folder / "kept")
    return job


@pytest.fixture
def finished(done: Path) -> Path:
    """A job that is done, for a test to damage."""
    shutil.rmtree(done.parent)
    shutil.copytree(done.parent.with_name("kept"), done.parent)
    return done


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def chunk(job: Path, pattern: str) -> Path:
    return sorted((job.parent / "out/cache.zarr").glob(pattern))[1]


def files(job: Path) -> dict[Path, bytes]:
    return {
        path: path.read_bytes() for path in (job.parent / "out").rglob("*")
        if path.is_file() and (path.name.startswith("c.") or path.suffix in (".png", ".mp4"))
    }  # fmt: skip


def test_an_intact_cache_verifies_without_errors(finished: Path, cli: Cli) -> None:
    code, output = cli("verify", finished)
    assert code == 0 and output.count("intact") == len(STAGES)


def test_a_job_that_was_not_started_has_nothing_to_verify(make_job: MakeJob, cli: Cli) -> None:
    job = make_job()
    assert cli("verify", job) == (0, "") and not (job.parent / "out").exists()


@pytest.mark.parametrize(
    ("damage", "pattern", "stage"),
    [
        ("flipped", "frames/c.*", "extract"),
        ("gone", "control/*/c.*", "control"),
        ("flipped", "step_latents/0001/c.*", "render"),
        ("gone", "rendered/c.*", "render"),
        ("flipped", "deflickered/c.*", "deflicker"),
    ],
)
def test_damage_is_named_and_repaired(damage: str, pattern: str, stage: str, finished: Path, cli: Cli) -> None:
    before, path = files(finished), chunk(finished, pattern)
    flip_bit(path) if damage == "flipped" else path.unlink()
    code, output = cli("verify", finished)
    assert code == 1 and output.count("error:") == 1
    assert f"frame 1 of the array '{path.parent.relative_to(finished.parent / 'out/cache.zarr')}'" in output
    assert f"Redo {stage} with: diffsynth run {finished} --restart\n" in output
    assert cli("run", finished, "--restart")[0] == 0
    assert cli("verify", finished)[0] == 0
    assert files(finished) == before


def test_a_missing_array_is_named(finished: Path, cli: Cli) -> None:
    before = files(finished)
    for name in ("frames", "rendered"):
        shutil.rmtree(finished.parent / "out/cache.zarr" / name)
    code, output = cli("verify", finished)
    assert code == 1 and "the array 'frames' is missing" in output and "Redo extract and render with: " in output
    assert cli("run", finished, "--restart")[0] == 0
    assert files(finished) == before


@pytest.mark.parametrize(
    ("group", "damage"),
    [("zarr.json", b""), ("zarr.json", b"{}"), ("control/zarr.json", b"[]"), ("control/zarr.json", b"\xff")],
)
def test_damaged_group_metadata_loses_no_frames(group: str, damage: bytes, finished: Path, cli: Cli) -> None:
    before = files(finished)
    (finished.parent / "out/cache.zarr" / group).write_bytes(damage)
    assert cli("verify", finished)[0] == 0
    assert cli("run", finished, "--restart")[0] == 0
    assert cli("run", finished, "--restart", "--set", "frame_maximum_count=2")[0] == 0
    assert cli("run", finished, "--restart")[0] == 0
    assert files(finished) == before


@pytest.mark.parametrize("output", ["video.mp4", "frames/00001.png"])
def test_a_changed_output_is_named(output: str, finished: Path, cli: Cli) -> None:
    before = files(finished)
    path = finished.parent / "out" / output
    flip_bit(path)
    code, message = cli("verify", finished)
    assert code == 1 and f"{finished.parent / 'out' / output.split('/')[0]} has been changed" in message
    hint = message.split("→ ")[1].strip()
    changed = finished.parent / "out" / output.split("/")[0]
    assert hint == f"Delete {changed}. Write it again with: diffsynth run {finished}"
    shutil.rmtree(changed) if changed.is_dir() else changed.unlink()
    code, message = cli("verify", finished)
    assert code == 1 and f"{changed} is missing" in message
    assert f"→ Write it again with: diffsynth run {finished}" in message
    code, message = cli("run", finished)
    assert code == 0, message
    assert cli("verify", finished)[0] == 0 and files(finished) == before


@pytest.mark.parametrize("name", ["frames/zarr.json", "rendered/zarr.json", "zarr.json"])
@pytest.mark.parametrize("content", [None, b"", b"{"])
def test_lost_arrays_are_made_again_also_by_stages_that_had_begun(
    name: str, content: bytes | None, finished: Path, cli: Cli
) -> None:
    before, cache = files(finished), finished.parent / "out/cache.zarr"
    for begun in ("deflicker", "render", "control", "extract"):
        receipt = json.loads((cache / f"receipts/{begun}.json").read_text())
        journal = json.dumps({"inputs": receipt["inputs"], "chunks": 9})
        (cache / "marks").mkdir(exist_ok=True)
        (cache / f"marks/{begun}.jsonl").write_text(journal + "\n")
        (cache / f"receipts/{begun}.json").unlink()
        path = cache / name
        path.unlink() if content is None else path.write_bytes(content)
        assert cli("run", finished, "--restart", "-q") == (0, "")
        assert files(finished) == before
