"""On a Ray cluster of two machines, which are processes here: the same bytes as without, whatever is lost."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import ray
from ray.cluster_utils import Cluster

from stages.all_stages import arrays, stages_of
from stages.base.cache import ArraySpec, FrameCache
from stages.base.cluster import ClusterOptions, connected
from stages.base.cluster.engine import RayEngine, ray_engine
from stages.base.engine import Chunk, Engine, LocalEngine, Options, Phase, Run, run_stage
from stages.base.errors import DiffSynthError
from stages.base.reporting import Reporter
from stages.identity import identify, program_versions
from stages.jobs.job_file import read_job
from tests.conftest import CONTROLNET, MODEL, scene, write_images
from tests.object_stores import Server, contents, expire_soon
from tests.stages.base.cluster.tasks import SIDE, Asking, Failing, Numbering, Waiting

if TYPE_CHECKING:
    from ray._private.node import Node

ROOT = Path(__file__).parents[4]
FRAMES = 24  # three chunks per phase
KEYS = {
    "combine_pattern": [-10000, -1, 0, 1], "img2img_strength": 0.7, "num_inference_steps": 3, "keep_steps": True,
    "smoother": "PatchBlendSmoother", "smoother_config": {"window": 2}, "post_smoother": "TemporalMeanSmoother",
}  # fmt: skip
MACHINE = {"num_cpus": 1, "node_ip_address": "127.0.0.1"}
PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
LEAN = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two machines with one core each, to which this process is connected."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_worker_niceness", "0")  # other tests may be running
        started = Cluster()
        try:
            add(started, **LEAN)
            add(started)
            with connected(started.address):
                yield started
        finally:
            started.shutdown()


def add(cluster: Cluster, **options: object) -> Node:
    """Add a machine. Ray waits only so long for its daemons, which can be too short while other tests run."""
    for _ in range(3):
        ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))  # if they are given, it need not wait for them
        arguments: dict[str, Any] = {**MACHINE, **options, **ports}
        try:
            return cast("Node", cluster.add_node(**arguments))
        except Exception as error:
            problem = error
    raise problem


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in servers]


class Noting(Reporter):
    """Keeps warnings, and calls `then` with the name of each phase that begins."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.then: Callable[[str], None] = lambda phase: None

    def phase(self, name: str) -> None:
        self.then(name)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture
def reporter() -> Noting:
    return Noting()


@contextmanager
def engine(reporter: Reporter, workers: int | None = None) -> Iterator[RayEngine]:
    with ray_engine(ClusterOptions(workers=workers), identify, program_versions(), reporter) as started:
        yield started


@pytest.fixture
def cache(tmp_path: Path) -> FrameCache:
    cache = FrameCache(tmp_path / "cache.zarr")
    cache.create(ArraySpec("numbers", (FRAMES, SIDE, SIDE, 3), "uint8"))
    return cache


def numbers(cache: FrameCache) -> list[int]:
    return [int(frame[0, 0, 0]) for frame in cache["numbers"]]


def chunks(task: Numbering) -> list[Chunk]:
    return Phase("number", FRAMES, task).chunks()


def process(running: RayEngine, number: int) -> int:
    """The process of a worker that is idle."""
    return cast(int, ray.get(running.crew.hired[number].handle.call.remote(pickle.dumps(os.getpid))))


def wait_until(true: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


def looked(running: RayEngine) -> RayEngine:
    """An engine that has hired the workers that have arrived meanwhile."""
    running.crew.hire()
    running.crew.wait(())
    return running


def everyone(running: RayEngine, count: int) -> None:
    """Wait until so many workers have been hired."""
    wait_until(lambda: len(looked(running).crew.hired) >= count)


# --- small tasks ----------------------------------------------------------------------------------------


def test_workers_run_chunks_and_close_the_task(cluster: Cluster, cache: FrameCache, reporter: Noting) -> None:
    task = Asking(seconds=0.1)
    with engine(reporter, workers=2) as running:
        everyone(running, 2)
        assert running.call(partial(int, "7")) == 7
        assert sorted(running.map(task, cache, chunks(task))) == chunks(task)
        processes = {str(process(running, number)) for number in (0, 1)}
    assert numbers(cache) == [*range(FRAMES)] and reporter.warnings == []
    assert {file.name.partition("-")[2] for file in cache.path.glob("run-*")} == processes
    assert {file.name.partition("-")[2] for file in cache.path.glob("closed-*")} == processes


def test_a_machine_that_joins_is_used_and_its_chunk_runs_again_once_it_is_lost(
    cluster: Cluster, cache: FrameCache, reporter: Noting
) -> None:
    task = Waiting()
    with engine(reporter) as running, ThreadPoolExecutor(1) as driver:
        phase = driver.submit(list, running.map(task, cache, chunks(task)))
        machine = add(cluster)
        wait_until(lambda: len([*cache.path.glob("run-*")]) == 3)
        cluster.remove_node(machine, allow_graceful=False)
        wait_until(lambda: reporter.warnings)
        (cache.path / "go").touch()
        assert sorted(phase.result()) == chunks(task)
    assert numbers(cache) == [*range(FRAMES)]
    (warning,) = reporter.warnings
    assert "was lost" in warning and "are done again by another one" in warning


@pytest.mark.parametrize(
    ("how", "message", "lost"), [("user", "frame 4", 0), ("error", "no 4", 2), ("death", "frames 4 to 11 failed", 2)]
)
def test_a_chunk_that_fails_three_times_stops_the_run_and_errors_for_users_at_once(
    how: str, message: str, lost: int, cluster: Cluster, cache: FrameCache, reporter: Noting
) -> None:
    with engine(reporter, workers=1) as running:
        with pytest.raises(ValueError if how == "error" else DiffSynthError, match=message):
            list(running.map(Failing(how=how), cache, chunks(Numbering())[2:]))
        assert running.crew.hired == {} and len(reporter.warnings) == lost


def test_a_worker_that_is_lost_with_calls_that_wait_in_it_is_replaced(
    cluster: Cluster, cache: FrameCache, reporter: Noting
) -> None:
    task = Failing(how="once")
    with engine(reporter, workers=1) as running:
        assert sorted(running.map(task, cache, chunks(task))) == chunks(task)
    assert numbers(cache) == [*range(FRAMES)]
    (warning,) = reporter.warnings
    assert "frames 0 to 7 are done again" in warning


def test_a_machine_with_another_version_is_not_used(
    cluster: Cluster, cache: FrameCache, reporter: Noting, tmp_path: Path
) -> None:
    metadata = tmp_path / "old" / "zarr-0.0.1.dist-info" / "METADATA"  # Ray puts what is in ROOT before PYTHONPATH
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: zarr\nVersion: 0.0.1\n")
    path = f"{tmp_path / 'old'}{os.pathsep}{ROOT}"
    machine = add(cluster, env_vars={"PYTHONPATH": path})
    try:
        with engine(reporter) as running:
            wait_until(lambda: looked(running) and running.crew.refused)
            task = Numbering()
            assert sorted(running.map(task, cache, chunks(task))) == chunks(task)
    finally:
        cluster.remove_node(machine)
    (warning,) = reporter.warnings
    assert "has zarr 0.0.1 instead of" in warning and "is not used" in warning


@pytest.mark.parametrize(
    ("gpus", "library", "message"),
    [(None, "9", "no machine of the Ray cluster can be used: .* libebsynth .* instead of 9"),
     (1, "", "no machine of the Ray cluster has 1 GPU for a worker")],
)  # fmt: skip
def test_without_a_machine_that_can_be_used_the_reason_is_given(
    gpus: int | None, library: str, message: str, cluster: Cluster, reporter: Noting
) -> None:
    versions = program_versions() | ({"libebsynth": library} if library else {})
    starting = ray_engine(ClusterOptions(gpus_per_worker=gpus), identify, versions, reporter)
    with pytest.raises(DiffSynthError, match=message), starting:
        pass


# --- whole jobs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a clip and the results of a local run."""
    folder = tmp_path_factory.mktemp("jobs")
    write_images(folder / "images", (scene(index) for index in range(FRAMES)))
    run_job(write_job(folder, "local"), LocalEngine(), Reporter())
    return folder


def write_job(folder: Path, name: str) -> Path:
    path = folder / f"{name}.json"
    path.write_text(json.dumps({
        "model_id": str(MODEL), "controlnet_model_id": [str(CONTROLNET)], "controlnet_processor": ["canny"],
        "input_video": "images", "output_path": name, "prompt": "winter", "batch_size": 2, **KEYS,
    }))  # fmt: skip
    return path


def run_job(path: Path, where: Engine, reporter: Reporter) -> None:
    job, _ = read_job(path)
    cache = FrameCache(Path(job.output_path) / "cache.zarr", arrays=arrays())
    stages = stages_of(job)
    for stage in stages.values():
        run_stage(stage, Run(job, cache, reporter, Options(job.batch_size), where, stages=stages))


def results(output: Path, cache: str = "") -> dict[str, str]:
    """The hash of every file of every array, and of the video."""
    video = hashlib.sha256((output / "video.mp4").read_bytes()).hexdigest()
    return contents(cache or output / "cache.zarr") | {"video.mp4": video}


def test_two_workers_compute_the_same_bytes_even_if_one_is_killed(
    cluster: Cluster, folder: Path, reporter: Noting
) -> None:
    with engine(reporter, workers=2) as running:
        everyone(running, 2)
        run_job(write_job(folder, "two"), running, reporter)
        assert reporter.warnings == []
        assert results(folder / "two") == results(folder / "local")
        victim = process(running, 1)

        def kill(phase: str) -> None:
            if phase.startswith("step 2") and not killed:
                killed.append(phase)
                os.kill(victim, signal.SIGKILL)

        killed: list[str] = []
        reporter.then = kill
        run_job(write_job(folder, "killed"), running, reporter)
    assert killed and "was lost" in reporter.warnings[0] and len(reporter.warnings) == 1
    assert results(folder / "killed") == results(folder / "local")


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "diffsynth_cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def wait_for(driver: subprocess.Popen[str], phase: str) -> None:
    """Read events until a chunk of this phase is done. Nothing else may be on stdout."""
    assert driver.stdout is not None
    for line in driver.stdout:
        event = json.loads(line)
        if event["event"] == "advance" and event["phase"] == phase:
            return
    raise AssertionError(f"ended before {phase}: {driver.stderr and driver.stderr.read()}")


def test_a_killed_driver_is_resumed_locally_and_on_the_cluster(cluster: Cluster, folder: Path) -> None:
    job, on = write_job(folder, "resumed"), ("--json", "--engine", "ray", "--ray-address", cluster.address)
    driver = start("run", job, *on, "--workers", 1)
    wait_for(driver, "step 2/2: smooth")
    driver.kill()
    driver.communicate()
    wait_until(lambda: ray.available_resources().get("CPU") == 2)  # its worker has ended, too
    shutil.copytree(folder / "resumed", folder / "copied")
    run_job(write_job(folder, "copied"), LocalEngine(), Reporter())
    assert results(folder / "copied") == results(folder / "local")

    driver = start("run", job, *on)
    wait_for(driver, "decode")
    driver.send_signal(signal.SIGINT)
    out, err = driver.communicate()
    assert driver.returncode == 130 and all(json.loads(line) for line in out.splitlines())
    assert "Nothing was lost" in err and f"Resume with: diffsynth run {job} --json --engine ray" in err
    assert "Traceback" not in err and "raylet" not in out + err
    driver = start("run", job, "--engine", "ray", "--ray-address", cluster.address)
    out, err = driver.communicate()
    assert (driver.returncode, out) == (0, ""), err
    assert results(folder / "resumed") == results(folder / "local")


def test_a_cache_in_an_object_store_has_the_same_bytes_after_a_kill(
    cluster: Cluster, folder: Path, moto: Server
) -> None:
    job, url = write_job(folder, "remote"), moto.new_url()
    on = ("--engine", "ray", "--ray-address", cluster.address, "--cache", url)
    driver = start("run", job, "--json", *on)
    wait_for(driver, "step 2/2: smooth")
    driver.kill()
    driver.communicate()
    expire_soon(url)
    wait_until(lambda: ray.available_resources().get("CPU") == 2)
    driver = start("run", job, *on)
    out, err = driver.communicate()
    assert (driver.returncode, out) == (0, ""), err
    assert results(folder / "remote", url) == results(folder / "local")
    assert FrameCache(url).holder() is None


def test_a_store_that_workers_cannot_reach_is_named(
    cluster: Cluster, reporter: Noting, moto: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with engine(reporter, workers=1) as running, pytest.raises(DiffSynthError, match="the store cannot be reached"):
        list(running.map(Numbering(), FrameCache("s3://bucket/a.zarr"), [(0, 2)]))
    assert reporter.warnings == []
