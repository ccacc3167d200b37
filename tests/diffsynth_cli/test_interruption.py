"""After kills, interruptions and locks, the results are the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest

from stages.base.cache import FrameCache
from tests.conftest import ROUNDS
from tests.object_stores import contents
from tests.processes import Program
from tests.typing import Cli, MakeJob

FRAMES = 16 + 8 * ROUNDS  # three chunks per phase, and one more for each further round
# Kills of each stage per round, and the chunks that it may finish first, at most.
KILLS = {"extract": (1, 1), "control": (1, 1), "render": (3, 5), "deflicker": (1, 18)}
KEYS = {
    "combine_pattern": [-10000, -1, 0, 1], "img2img_strength": 0.7, "num_inference_steps": 3, "keep_steps": True,
    "smoother": "TemporalMeanSmoother", "post_smoother": "PatchBlendSmoother",
}  # fmt: skip
pytestmark = pytest.mark.chaos


def wait_for(program: Program, kind: str, times: int = 1) -> str | None:
    """Read events until the stage itself has sent so many of this kind, and return the last; None if it ended first."""
    for line in program.out:
        event = json.loads(line)
        times -= event["event"] == kind and event.get("phase") != "scan"
        if times <= 0:
            return line
    return None


def decoded(video: Path) -> list[bytes]:
    with av.open(str(video)) as container:
        return [frame.to_ndarray(format="rgb24").tobytes() for frame in container.decode(video=0)]


def kill_somewhere(stage: str, job: Path, chunks: int, chance: random.Random) -> str:
    """Start a stage and kill it at a random moment: during start-up, between marks, or in the middle of a write."""
    program = Program(stage, job, "--json")
    last = (
        wait_for(program, "begin") if chance.random() < 0.2 else wait_for(program, "advance", chance.randint(1, chunks))
    )
    slow = 0.3 if stage == "render" else 0.01  # s; about what a chunk takes
    time.sleep(slow * chance.random())
    program.process.kill()
    return "had finished" if program.finish()[0] == 0 else f"{stage} was killed after {(last or '').strip()}"


@pytest.mark.slow
@pytest.mark.timeout(180 + 90 * ROUNDS)
def test_a_job_that_is_killed_again_and_again_gives_the_same_bytes(tmp_path: Path, make_job: MakeJob, cli: Cli) -> None:
    straight = make_job(FRAMES, output_path="straight", **KEYS)
    for stage in KILLS:
        assert cli(stage, straight, "-q") == (0, "")
    job = make_job(FRAMES, output_path="killed", **KEYS)
    chance, ends = random.Random(1), []
    for stage, (times, chunks) in KILLS.items():
        ends += [kill_somewhere(stage, job, chunks, chance) for _ in range(ROUNDS * times)]
        assert cli(stage, job, "-q") == (0, ""), ends
    print(*ends, sep="\n")
    assert ends.count("had finished") <= 0.2 * len(ends)  # a stage may be done before its last kill
    assert contents(tmp_path / "killed/cache.zarr") == contents(tmp_path / "straight/cache.zarr")
    assert decoded(tmp_path / "killed/video.mp4") == decoded(tmp_path / "straight/video.mp4")
    assert (tmp_path / "killed/video.mp4").read_bytes() == (tmp_path / "straight/video.mp4").read_bytes()


@pytest.mark.slow
def test_a_kill_while_the_video_is_written_keeps_the_old_one(tmp_path: Path, make_job: MakeJob, cli: Cli) -> None:
    job = make_job(FRAMES, frame_height=256, img2img_strength=0.5, combine_pattern=[0], controlnet_scale=[0.0])
    assert cli("run", job, "-q") == (0, "")
    video, receipt = tmp_path / "out/video.mp4", tmp_path / "out/cache.zarr/receipts/deflicker.json"
    whole = video.read_bytes()
    program = Program("deflicker", job, "--json", "--restart")
    while '"video.mp4"' not in (wait_for(program, "begin") or '"video.mp4"'):
        pass
    program.process.kill()
    assert program.finish()[0] == -signal.SIGKILL
    assert not receipt.exists()  # make must not consider the stage done
    assert video.read_bytes() == whole  # the old one is kept until the new one is complete
    assert cli("deflicker", job, "-q") == (0, "")
    assert receipt.exists() and video.read_bytes() == whole


def test_a_locked_cache_names_its_holder_and_a_killed_holder_releases_it(
    tmp_path: Path, make_job: MakeJob, cli: Cli
) -> None:
    job = make_job(FRAMES, num_inference_steps=20)
    assert cli("extract", job, "-q")[0] == cli("control", job, "-q")[0] == 0
    holder = Program("render", job, "--json")
    assert wait_for(holder, "advance")
    code, output = cli("render", job)
    assert code == 1
    assert f"process {holder.pid} on" in output and "render" in output
    assert f"in use by process {holder.pid}" in cli("status", job)[1]
    holder.process.kill()
    holder.finish()
    assert FrameCache(tmp_path / "out/cache.zarr").holder() is None
    with FrameCache(tmp_path / "out/cache.zarr").lock():
        pass


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_render_says_how_to_resume(how: signal.Signals, make_job: MakeJob, cli: Cli) -> None:
    job = make_job(FRAMES, num_inference_steps=20)
    assert cli("extract", job, "-q")[0] == cli("control", job, "-q")[0] == 0
    program = Program("render", job, "--json", "--restart")
    assert wait_for(program, "advance")
    os.kill(program.pid, how)
    code, _, output = program.finish()
    assert code == 130
    assert "Nothing was lost" in output
    assert f"Resume with: diffsynth render {job} --json\n" in output
    assert "Traceback" not in output
    assert "partly" in cli("status", job)[1]


STUBBORN = """
import time
from diffsynth_cli import __main__, app

def work(*arguments, **options):
    print("ready", flush=True)
    try:
        time.sleep(60)
    except BaseException:
        pass  # as some libraries do
    time.sleep(60)

app.app = work
__main__.PATIENCE = 0.2
__main__.entry()
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="has no timers")
def test_an_interruption_that_a_library_swallows_comes_again() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, output = process.communicate(timeout=30)
    assert process.returncode == 130 and "Nothing was lost" in output
