"""The frame cache in an object store or in a folder of its own, with the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from stages.base.cache import FrameCache
from stages.base.store import CHUNK, open_store
from tests.conftest import ROUNDS
from tests.object_stores import Server, contents, expire_soon
from tests.typing import Cli, MakeJob

FRAMES = 16
PATTERN = {"combine_pattern": [-1, 0], "post_smoother": "TemporalMeanSmoother"}
ARRAYS = ("frames", "control/*", "latents", "rendered", "deflickered")
REREAD = {"frames": 3}  # by `control` and both smoothers, each once
MOST_OTHERS = 650  # requests for metadata, records, lists and the lease
long = pytest.mark.skipif(ROUNDS == 1, reason="takes minutes; `make chaos` runs it")
DEMO = {  # as the demo, which has another model
    "scheduler": "dpm++2m", "num_inference_steps": 6, "attention": "shared", "combine_pattern": [-10000, -1, 0, 1],
    "smoother": "PatchBlendSmoother", "smoother_interval": 4, "post_smoother": "PatchBlendSmoother",
}  # fmt: skip
DEMO_KILLS = [("extract", 1), ("control", 2), ("render", 2), ("render", 9), ("render", 20), ("deflicker", 2)]


def kill_in(stage: str, chunks: int, *arguments: object) -> None:
    """Start the program and kill it once it has finished so many chunks of a stage."""
    words = [sys.executable, "-m", "diffsynth_cli", *map(str, arguments), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        running = ""
        for event in map(json.loads, process.stdout):
            running = event.get("stage", running)
            chunks -= running == stage and event["event"] == "advance"
            if chunks == 0:
                break
        process.kill()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(480)
def test_a_job_with_its_cache_in_an_object_store_is_killed_and_gives_the_same_frames(
    tmp_path: Path, make_job: MakeJob, cli: Cli, moto: Server
) -> None:
    url = moto.new_url()
    job = make_job(FRAMES, output_path="remote", **PATTERN)
    kill_in("render", 2, "run", job, "--cache", url)
    expire_soon(url)
    record = FrameCache(url).record("render")
    assert record.inputs is not None and not record.complete
    code, output = cli("run", job, "-q", "--cache", url)
    assert code == 0 and "waiting up to 1 s" in output and FrameCache(url).holder() is None
    assert sorted(path.name for path in (tmp_path / "remote").iterdir()) == ["config.json", "video.mp4"]

    assert cli("run", make_job(output_path="local", **PATTERN), "-q") == (0, "")
    remote, local = FrameCache(url), FrameCache(tmp_path / "local/cache.zarr")
    assert remote.arrays(*ARRAYS) == local.arrays(*ARRAYS)
    for name in local.arrays(*ARRAYS):
        np.testing.assert_array_equal(remote[name][:], local[name][:])
        for index in range(FRAMES):
            chunk = f"{name}/c.{index}.0.0.0"
            assert remote.store.get(chunk) == local.store.get(chunk)

    elsewhere = make_job(output_path="elsewhere", **PATTERN)  # as on another machine
    status = json.loads(cli("status", elsewhere, "--cache", url, "--json")[1])
    assert [stage["state"] for stage in status["stages"]] == ["done"] * 4 and status["video"] is None
    code, output = cli("verify", elsewhere, "--cache", url, "-q")
    assert code == 1 and "video.mp4 is missing" in output and f"--set=cache={url}" in output
    assert cli("deflicker", elsewhere, "--cache", url, "-q") == (0, "")
    assert cli("verify", elsewhere, "--cache", url, "-q") == (0, "")
    videos = [(tmp_path / name / "video.mp4").read_bytes() for name in ("remote", "local", "elsewhere")]
    assert videos[0] == videos[1] == videos[2]
    assert cli("export", elsewhere, "--cache", url, "-q", "-o", tmp_path / "smaller.webm", "--crf", 40) == (0, "")
    assert (tmp_path / "smaller.webm").exists()


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(1500)
@long
def test_the_demo_is_killed_in_every_stage_and_gives_the_same_bytes(tmp_path: Path, cli: Cli, moto: Server) -> None:
    url = moto.new_url()
    for stage, chunks in DEMO_KILLS:
        kill_in(stage, chunks, "demo", "-o", tmp_path / "remote", "--cache", url)
        expire_soon(url)
    assert cli("demo", "-o", tmp_path / "remote", "-q", "--cache", url)[0] == 0
    assert cli("demo", "-o", tmp_path / "local", "-q") == (0, "")
    assert contents(url) == contents(tmp_path / "local/output/cache.zarr")
    for name in ("output/video.mp4", "contact-sheet.png"):
        assert (tmp_path / "remote" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(1500)
@long
def test_a_whole_job_takes_one_request_per_frame_and_phase(make_job: MakeJob, cli: Cli, moto: Server) -> None:
    url, before = moto.new_url(), len(moto.requests())
    assert cli("run", make_job(FRAMES, **DEMO), "-q", "--cache", url) == (0, "")
    requests = [(method, path) for method, path in moto.requests()[before:] if "continuation-token" not in path]
    made = Counter((method, path.rpartition("job.zarr/")[2]) for method, path in requests)
    chunks = {key: count for key, count in made.items() if f"/{CHUNK}" in key[1]}
    for (method, name), count in chunks.items():
        array = name.rpartition("/")[0]
        assert count <= (1 if method == "PUT" else REREAD.get(array, 1)), name
    written = {name for method, name in chunks if method == "PUT"}
    assert len(written) % FRAMES == 0 and {name for method, name in chunks if method == "GET"} <= written
    assert sum(made.values()) - sum(chunks.values()) <= MOST_OTHERS


@pytest.mark.parametrize("as_url", [False, True])
def test_a_folder_of_its_own_holds_the_cache(as_url: bool, tmp_path: Path, make_job: MakeJob, cli: Cli) -> None:
    folder = tmp_path / "shared/winter.zarr"
    job = make_job(cache=folder.as_uri() if as_url else "shared/winter.zarr")
    assert cli("extract", job, "-q") == (0, "")
    assert len(FrameCache(folder)["frames"]) == 6 and not (tmp_path / "out/cache.zarr").exists()
    states = [stage["state"] for stage in json.loads(cli("status", job, "--json")[1])["stages"]]
    assert states == ["done", "to do", "to do", "to do"]


def test_a_folder_with_other_files_is_refused(tmp_path: Path, make_job: MakeJob, cli: Cli) -> None:
    (tmp_path / "holiday/frames").mkdir(parents=True)
    (tmp_path / "holiday/frames/0.png").write_bytes(b"mine")
    for command in ("run", "status", "verify", "export"):
        code, output = cli(command, make_job(), "--cache", tmp_path / "holiday")
        assert code == 2 and "holiday is not a frame cache" in output
    assert (tmp_path / "holiday/frames/0.png").read_bytes() == b"mine" and not (tmp_path / "out").exists()


def test_a_prefix_with_other_objects_is_refused(make_job: MakeJob, cli: Cli, moto: Server) -> None:
    url = moto.new_url()
    open_store(url).put("holiday.jpg", b"mine")
    code, output = cli("run", make_job(), "--cache", url)
    assert code == 2 and f"{url} is not a frame cache" in output


def test_a_store_that_cannot_lock_is_refused_before_any_work(
    tmp_path: Path, make_job: MakeJob, cli: Cli, rclone: Server
) -> None:
    url = rclone.new_url()
    code, output = cli("run", make_job(), "--cache", url)
    assert code == 2 and "ignores conditional writes" in output and "Traceback" not in output
    assert open_store(url).children("") == [] and not (tmp_path / "out").exists()


def test_a_missing_bucket_ends_with_a_message(make_job: MakeJob, cli: Cli, moto: Server) -> None:
    for command in ("run", "status", "verify"):
        code, output = cli(command, make_job(), "--cache", "s3://no-such-bucket/winter.zarr")
        assert code == 1 and "NoSuchBucket" in output and output.count("error:") == 1 and "Traceback" not in output
