"""`diffsynth plan`, and the line that `run` shows before it starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import diffsynth_cli as ds
from diffsynth_cli.failures import Interrupted
from stages.base.cache import FrameCache
from stages.base.store import open_store
from stages.control import AnnotateTask
from tests.object_stores import Server
from tests.stages.test_smooth import stopped
from tests.typing import Cli, Keys, MakeJob

STEPS: Keys = {
    "num_inference_steps": 8, "combine_pattern": [-1, 0, 1], "guidance_scale": 7.5, "smoother": "PatchBlendSmoother",
    "smoother_config": {"window": 2}, "smoother_interval": 4, "post_smoother": "EbsynthSmoother", "keep_frames": True,
}  # fmt: skip


@pytest.mark.slow
def test_a_job_is_counted_measured_and_priced(tmp_path: Path, make_job: MakeJob, cli: Cli) -> None:
    job = make_job(20, **STEPS)
    measured = tmp_path / "here.json"
    code, output = cli(
        "plan", job, "--batch-size", 4, "--workers", "1,2", "--calibration", measured, "--worker-price", 3.6, "--json",
        "--set", "frame_maximum_count=18",
    )  # fmt: skip
    assert code == 0, output
    found = json.loads(output.splitlines()[-1])
    assert found["frames"] == 18 and found["workers"] == [1, 2]
    assert found["counts"]["frames through the networks"] == 18 * 3 * 2 * 8
    smoothed = ds.plan(job, calibration=measured, overrides={"batch_size": 4, "frame_maximum_count": 18})
    assert smoothed.seconds == pytest.approx(found["seconds"][:1])
    kinds = {each["kind"]: each for each in found["work"]}
    assert {"decode a video", "control: canny map 0: frames", "extract: scan", "load networks"} <= set(kinds)
    steps = [kinds[kind]["phases"] for kind in ("predict a smoothed step", "denoising step", "smooth a step")]
    assert steps == [2, 6, 2]
    assert kinds["denoising step"]["puts"] == 6 * 18
    assert found["costs"] == pytest.approx([0.001 * found["seconds"][0], 0.002 * found["seconds"][1]])
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"images", "job.json", "here.json"}, "planning leaves nothing else"
    code, output = cli("plan", job, "--batch-size", 4, "--calibration", measured, "--set", "guidance_scale=3")
    assert code == 2 and "here.json was measured with other values of guidance_scale" in output


@pytest.mark.slow
def test_what_is_expected_of_a_short_job_is_what_it_does(tmp_path: Path, make_job: MakeJob, cli: Cli) -> None:
    job = make_job(10, **STEPS)
    planned = ds.plan(job, overrides={"batch_size": 4})
    assert cli("run", job, "-q", "--batch-size", 4) == (0, "")
    cache = FrameCache(tmp_path / "out/cache.zarr")
    size = sum(file.stat().st_size for file in cache.path.rglob("c.*"))
    kept = ("decode a video", "control: canny map 0: frames", "decode", "smooth")
    written = {each.kind.removeprefix("render: ").removeprefix("deflicker: "): each for each in planned.work}
    assert sum(written[kind].puts for kind in kept) == 4 * 10
    latents = 10 * 4 * 8 * 8 * 4
    assert sum(written[kind].bytes_written for kind in kept) == pytest.approx(size - latents, rel=0.15)


def test_run_says_what_it_is_going_to_do(tmp_path: Path, make_job: MakeJob, cli: Cli) -> None:
    job = make_job(4, guidance_scale=1.0)
    line = "plan: 4 frames, 8 frames through the networks, about"
    code, output = cli("extract", job)
    assert code == 0 and "plan:" not in output
    code, output = cli("plan", job, "--batch-size", 2)  # the output folder exists now, and keeps the calibration
    assert code == 0 and "measured on" in output and (tmp_path / "out/calibration.json").exists()
    code, output = cli("run", job, "--batch-size", 2)
    said = next(text for text in output.splitlines() if text.startswith(line))
    assert code == 0 and "MB in the cache, about" in said and said.endswith(" s"), output
    assert "plan:" not in cli("run", job)[1]


def test_a_resumed_run_does_not_count_work_again(make_job: MakeJob, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(12, guidance_scale=1.0)
    with monkeypatch.context() as patch:
        patch.setattr(AnnotateTask, "run", stopped(AnnotateTask.run, 2))
        assert cli("run", job, "--batch-size", 2)[0] == 130
    code, output = cli("run", job, "--batch-size", 2)
    assert code == 0 and "resumes at" in output and "plan:" not in output


def test_a_file_of_the_users_is_not_taken_for_a_calibration(tmp_path: Path, make_job: MakeJob) -> None:
    mine = tmp_path / "out/calibration.json"
    mine.parent.mkdir()
    mine.write_text('{"camera": [1, 2]}')
    ds.plan(make_job(2, num_inference_steps=1), overrides={"batch_size": 2})
    assert mine.read_text() == '{"camera": [1, 2]}'


@pytest.mark.slow
def test_planning_leaves_nothing_in_an_object_store(
    make_job: MakeJob, moto: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = moto.new_url()
    job, overrides = make_job(2, num_inference_steps=1), {"batch_size": 2, "cache": url}
    assert ds.plan(job, overrides=overrides).frames == 2
    beside = open_store(url.rpartition("/")[0])
    assert beside.children("") == []
    monkeypatch.setattr(AnnotateTask, "run", stopped(AnnotateTask.run, 1))
    with pytest.raises(Interrupted):
        ds.plan(job, overrides=overrides)
    assert beside.children("") == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(("--workers", "1 8"), "give numbers separated by commas"), (("--workers", "0"), "numbers of workers from 1 on"),
     (("--calibration", "job.json"), "job.json is not a calibration")],
)  # fmt: skip
def test_wrong_options_are_refused(
    arguments: tuple[str, str],
    expected: str,
    tmp_path: Path,
    make_job: MakeJob,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, output = cli("plan", make_job(2), *arguments)
    assert code == 2 and expected in output


def test_maps_from_files_and_chosen_keyframes_are_planned(tmp_path: Path, make_job: MakeJob, cli: Cli) -> None:
    job = make_job(20, controlnet_processor=["file:images"], keyframes=[0, 5, 10, 15, 19], num_inference_steps=3)
    planned = ds.plan(job, overrides={"batch_size": 4})
    kinds = {each.kind: each for each in planned.work}
    assert kinds["decode a video"].phases == 2 and kinds["denoising step"].frames == 5
    assert kinds["render: paint frames between keyframes"].frames == 20
    assert planned.counts["pairs to match"] == 2 * 15
