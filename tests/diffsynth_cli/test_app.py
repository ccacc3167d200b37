"""The commands, used through the command line."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest

from diffsynth_cli.project import fitting_size
from stages.all_stages import NAMES
from stages.base.cache import FrameCache
from stages.jobs.job_file import read_job
from stages.video import Encoding, encode, open_source
from templates import Task
from tests.conftest import STAGES, scene, write_images
from tests.typing import Cli, MakeJob


def states(cli: Cli, job: Path) -> dict[str, str]:
    code, output = cli("status", job, "--json")
    assert code == 0
    return {line["stage"]: line["state"] for line in json.loads(output)["stages"]}


def test_from_video_to_video(tmp_path: Path, make_job: MakeJob, cli: Cli) -> None:
    job = make_job(10, combine_pattern=[-1, 0, 1], smoother="TemporalMeanSmoother")
    assert states(cli, job) == dict.fromkeys(STAGES, "to do")
    assert not (tmp_path / "out").exists()  # asking makes nothing
    code, output = cli("run", job)
    assert code == 0 and "video.mp4" in output
    assert states(cli, job) == dict.fromkeys(STAGES, "done")
    assert len(list(open_source(tmp_path / "out/video.mp4").shots())) == 10
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("c.*")}
    code, output = cli("run", job)
    assert code == 0 and output.count("nothing to do") == 4
    assert written == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("c.*")}


def test_each_stage_says_what_must_come_first(make_job: MakeJob, cli: Cli) -> None:
    job = make_job()
    for stage, before in (("control", "extract"), ("render", "extract"), ("deflicker", "extract")):
        code, output = cli(stage, job)
        assert code == 1 and f"{stage} needs {before}" in output and f"run diffsynth {before} {job}" in output


def test_a_stale_stage_stops_with_old_and_new_value_and_restart_redoes_it(
    tmp_path: Path, make_job: MakeJob, cli: Cli
) -> None:
    assert cli("run", make_job(2), "-q")[0] == 0
    before = FrameCache(tmp_path / "out/cache.zarr")["rendered"][:]
    job = make_job(prompt="summer")
    assert states(cli, job) == {"extract": "done", "control": "done", "render": "stale", "deflicker": "stale"}
    code, output = cli("run", job)
    assert code == 1 and 'prompt: "winter" → "summer"' in output and f"diffsynth render {job} --restart" in output
    np.testing.assert_array_equal(FrameCache(tmp_path / "out/cache.zarr")["rendered"][:], before)
    frames = (tmp_path / "out/cache.zarr/frames/c.0.0.0.0").stat().st_mtime_ns
    code, output = cli("run", job, "--restart")
    assert code == 0 and output.count("nothing to do") == 2  # what is not stale is kept
    assert (tmp_path / "out/cache.zarr/frames/c.0.0.0.0").stat().st_mtime_ns == frames
    assert states(cli, job) == dict.fromkeys(STAGES, "done")
    assert not np.array_equal(FrameCache(tmp_path / "out/cache.zarr")["rendered"][:], before)


def test_hints_name_the_overrides_too(tmp_path: Path, make_job: MakeJob, cli: Cli) -> None:
    job = make_job()
    code, output = cli("control", job, "--set", f"output_path={tmp_path / 'else where'}")
    assert code == 1 and f"run diffsynth extract {job} '--set=output_path={tmp_path}/else where'" in output


def test_hints_can_be_pasted_whatever_the_job_is_called(
    make_job: MakeJob, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(1)
    monkeypatch.chdir(job.parent)
    for name in ("-j.json", "my job.json", "it's.json"):
        job = job.rename(job.with_name(name))
        hint = cli("status", f"./{name}")[1].splitlines()[-1].removeprefix("→ diffsynth ")
        assert cli(*shlex.split(hint), "-q", "--set", f"output_path=of {name}") == (0, "")


def test_the_written_file_is_named_once_and_one_frame_is_singular(make_job: MakeJob, cli: Cli) -> None:
    job = make_job(1)
    code, output = cli("run", job)
    assert code == 0 and "1 frame in" in output and "1 frames" not in output
    assert f"written: {job.parent}/out/video.mp4: 1 frame, 25 frames/s\n" in output
    assert "1 frame in" in cli("status", job)[1]


def test_a_half_done_stage_can_be_stale_too(make_job: MakeJob, cli: Cli) -> None:
    job = make_job()
    assert cli("extract", job, "-q")[0] == 0
    record = FrameCache(job.parent / "out/cache.zarr").record("extract")
    record.clear()
    record.begin(record.inputs or json.loads('{"keys": {}, "after": {}}'), chunks=1)
    code, output = cli("extract", job)
    assert code == 1 and "extract is stale" in output and "frame_interval: null → 1" in output


def test_a_flipped_bit_is_repaired_by_restarting_its_stage(tmp_path: Path, make_job: MakeJob, cli: Cli) -> None:
    job = make_job(4)
    assert cli("extract", job, "-q")[0] == 0
    chunk = tmp_path / "out/cache.zarr/frames/c.3.0.0.0"
    right = chunk.read_bytes()
    wrong = bytearray(right)
    wrong[40] ^= 1
    chunk.write_bytes(wrong)
    code, output = cli("control", job)
    assert code == 1 and "frame 3 of the array 'frames'" in output
    assert f"diffsynth extract {job} --restart" in output
    assert cli("extract", job, "--restart", "-q")[0] == 0
    assert chunk.read_bytes() == right
    assert cli("run", job, "-q")[0] == 0


def test_the_source_is_not_needed_after_extraction(tmp_path: Path, make_job: MakeJob, cli: Cli) -> None:
    job = make_job(2)
    assert cli("extract", job, "-q")[0] == 0
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    code, output = cli("run", job)
    assert code == 0, output


def test_the_written_config_runs_as_a_job_and_means_the_same(tmp_path: Path, make_job: MakeJob, cli: Cli) -> None:
    assert cli("run", make_job(2), "-q")[0] == 0
    code, output = cli("run", tmp_path / "out/config.json")
    assert code == 0 and output.count("nothing to do") == 4


def test_json_events_are_json_and_nothing_else(make_job: MakeJob, cli: Cli, capfd: pytest.CaptureFixture[str]) -> None:
    code, output = cli("extract", make_job(), "--json")
    events = [json.loads(line) for line in output.splitlines()]
    assert code == 0 and {"begin", "phase", "advance", "end"} == {event["event"] for event in events}
    assert [event["done"] for event in events if event["event"] == "advance"][-1] == 6


def test_failures_are_events_too(make_job: MakeJob, cli: Cli, capfd: pytest.CaptureFixture[str]) -> None:
    code, output = cli("render", make_job(), "--json")
    (event,) = [json.loads(line) for line in output.splitlines() if '"error"' in line]
    assert code == 1 and event["event"] == "error" and "render needs extract" in event["message"]


@pytest.mark.parametrize("in_the_way", ["out", "out/cache.zarr"])
def test_a_file_where_results_should_go_is_named(in_the_way: str, tmp_path: Path, make_job: MakeJob, cli: Cli) -> None:
    (tmp_path / in_the_way).parent.mkdir(exist_ok=True)
    (tmp_path / in_the_way).write_text("mine")
    code, output = cli("extract", make_job())
    assert code == 2 and str(tmp_path / in_the_way) in output and "Traceback" not in output
    assert (tmp_path / in_the_way).read_text() == "mine"


def test_unexpected_errors_are_one_message_unless_debugging(
    make_job: MakeJob, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr("stages.base.engine.LocalEngine.run", fail)
    code, output = cli("extract", make_job())
    assert code == 1 and "RuntimeError: boom" in output and "Traceback" not in output
    with pytest.raises(RuntimeError):
        cli("extract", make_job(), "--debug")


def test_a_full_disk_is_explained_and_nothing_is_lost(
    make_job: MakeJob, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "frames/c.0")

    job = make_job()
    with monkeypatch.context() as patch:
        patch.setattr("stages.base.cache.FrameArray.write", full)
        code, output = cli("extract", job)
    assert code == 1 and "The disk is full" in output and "run the same command to resume" in output
    assert cli("extract", job)[0] == 0


def test_help_imports_nothing_heavy() -> None:
    program = """
import sys
from diffsynth_cli.__main__ import main
assert main(["--help"]) == 0
sys.exit(" ".join({"torch", "zarr", "pydantic", "cv2", "av", "numpy"} & set(sys.modules)) or None)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "deflicker" in done.stdout


def test_status_imports_nothing_that_reads_frames(make_job: MakeJob, cli: Cli) -> None:
    job = make_job()
    assert cli("extract", job, "-q") == (0, "")
    program = f"""
import sys
from diffsynth_cli.__main__ import main
assert main(["status", {str(job)!r}]) == 0
sys.exit(" ".join({{"torch", "zarr", "av", "cv2", "numba"}} & set(sys.modules)) or None)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "extract   done" in done.stdout


# --- init -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", Task)
def test_init_writes_a_job_that_is_read_without_complaint(task: Task, tmp_path: Path, cli: Cli) -> None:
    video = write_images(tmp_path / "clip", [scene(0, 90, 160)])
    code, output = cli("init", task, video, "-o", tmp_path / "project")
    assert code == 0, output
    job, warnings = read_job(tmp_path / "project/job.json")
    assert warnings == [] and job.input_video == str(video)
    assert bool(job.loras) == ("hf download" in output)
    assert job.frame_height and job.frame_width and job.frame_height < job.frame_width
    assert (tmp_path / "project/Makefile").exists()
    code, output = cli("init", task, video, "-o", tmp_path / "project")
    assert code == 2 and "job.json exists" in output
    assert cli("init", task, video, "-o", tmp_path / "project", "--force")[0] == 0


def test_sizes_follow_the_videos_shape() -> None:
    assert fitting_size(512 * 960, 1080, 1920) == (512, 960)
    assert fitting_size(512 * 960, 1920, 1080) == (960, 512)
    assert fitting_size(512 * 512, 512, 512) == (512, 512)


class Make(Protocol):
    def __call__(self, *arguments: str) -> str: ...


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Run make with the template's Makefile on the folder clips and return its output."""
    template = Path(__file__).parents[2] / "templates/Makefile"
    (tmp_path / "Makefile").write_text(template.read_text(encoding="utf-8"), encoding="utf-8")
    environment = {
        **os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
    }  # fmt: skip

    def run(*arguments: str) -> str:
        done = subprocess.run(
            ["make", "VIDEOS=clips", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    return run


def test_make_takes_names_with_spaces_and_large_letters(tmp_path: Path, make_job: MakeJob, make: Make) -> None:
    names = ("my clip.mp4", "two  spaces.mov", "D.MP4", "it's.mkv", "a:b.mp4", "no #1.mp4", "$HOME.mp4", "ü.webm")
    (tmp_path / "clips").mkdir()
    for name in (*names, ".hidden.mp4", "notes.txt", "a=b.mp4"):
        (tmp_path / "clips" / name).write_bytes(b"never read")
    planned = make("-n", "JOB=job.json", f"--assume-old={make_job()}").splitlines()
    commands = [shlex.split(line) for line in planned if line.startswith("diffsynth ")]
    assert len(commands) == len(NAMES) * len(names)
    expected = {(f"input_video=clips/{name}", f"output_path=output/{name.rpartition('.')[0]}") for name in names}
    assert {(command[4], command[6]) for command in commands} == expected
    assert "skipped: make cannot handle the name clips/a=b.mp4" in "\n".join(planned)


def test_make_skips_videos_that_differ_only_in_their_suffixes(tmp_path: Path, make_job: MakeJob, make: Make) -> None:
    (tmp_path / "clips").mkdir()
    for name in ("a b.mp4", "a b.mov", "a.mp4", "b.mp4"):
        (tmp_path / "clips" / name).write_bytes(b"never read")
    planned = make("-n", "JOB=job.json", f"--assume-old={make_job()}")
    assert {shlex.split(line)[4] for line in planned.splitlines() if line.startswith("diffsynth ")} == {
        "input_video=clips/a.mp4", "input_video=clips/b.mp4",
    }  # fmt: skip
    for name in ("a b.mp4", "a b.mov"):
        assert f"skipped: clips/{name} and another video differ only in their suffixes" in planned
    assert "overriding recipe" not in planned


@pytest.mark.slow
def test_make_processes_a_folder_and_resumes_where_it_stopped(
    tmp_path: Path, make_job: MakeJob, cli: Cli, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(3, input_video="from the command line", num_inference_steps=1)
    for name in ("one", "two words"):
        encode(tmp_path / f"clips/{name}.mp4", (scene(i) for i in range(3)), Encoding(fps=Fraction(25)))
    make("output/two words/cache.zarr/receipts/control.json")
    assert not (tmp_path / "output/one").exists()
    monkeypatch.chdir(tmp_path)
    for stage, name in (("extract", "one"), ("control", "one"), ("render", "one"), ("render", "two words")):
        # In this process, which has imported the networks; make's processes would take seconds for that.
        keys = (f"--set=input_video=clips/{name}.mp4", f"--set=output_path=output/{name}")
        assert cli(stage, "job.json", "-q", *keys) == (0, "")
    started = [shlex.split(line) for line in make("-j2").splitlines() if line.startswith("diffsynth ")]
    assert sorted((words[1], words[4]) for words in started) == [
        (stage, f"input_video=clips/{name}.mp4") for stage in ("deflicker", "upscale") for name in ("one", "two words")
    ]  # fmt: skip
    for name in ("one", "two words"):
        assert (tmp_path / f"output/{name}/video.mp4").exists()
    assert "Nothing to be done" in make("-j2")
    job.write_text(job.read_text())  # newer, but with the same keys
    assert make("-j2", "output/two words.done").count("nothing to do") == len(NAMES)
    assert "Nothing to be done" in make("-j2", "output/two words.done")
