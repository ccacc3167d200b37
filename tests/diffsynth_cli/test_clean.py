"""`keep` and `diffsynth clean`: what is removed, what stays, and how the other commands cope."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import diffsynth_cli as ds
from diffsynth_cli.results import Removable
from stages.all_stages import all_stages
from stages.base.cache import FrameCache
from stages.base.removal import matching
from stages.base.store import Store, open_store
from stages.jobs.keeping import GROUPS
from tests.conftest import scene, write_images
from tests.object_stores import Server
from tests.typing import Cli, MakeJob

SMALL = {"scenes", "unseen", "large_unseen"}  # always stay
WHILE_RENDERING = {
    "reference_latents", "keyframes", "step_clean/*", "step_predicted/*", "notes/*", "source_latents", "region_masks/*",
    "noise_origins", "noise_ends",
}  # fmt: skip
WHILE_UPSCALING = {"large_start", "large_references", *(f"large_{name}" for name in WHILE_RENDERING - {"notes/*"})}
EARLIER = {"latents_other", "latents_steps", "clean", "clean_other", "predicted"}  # of earlier versions


def cache_of(job: Path) -> FrameCache:
    return FrameCache(job.parent / "out/cache.zarr")


def stored(store: Store) -> set[str]:
    """The arrays of the job that have frames."""
    cache = FrameCache(store)
    names = cache.arrays(*(pattern for stage in all_stages().values() for pattern in stage.arrays))
    return {name.partition("/")[0] for name in names if cache.has_frames(name)}


@pytest.fixture
def finished(make_job: MakeJob, cli: Cli) -> Path:
    """A complete job of 3 frames."""
    job = make_job(3)
    assert cli("run", job, "-q", "--batch-size", 1) == (0, "")
    return job


def found(cli: Cli, job: Path, *arguments: object) -> list[str]:
    """The names that `clean --dry-run` lists."""
    code, output = cli("clean", job, "--json", *arguments)
    assert code == 0, output
    return [item["name"] for item in json.loads(output)["found"]]


def test_the_time_to_make_an_array_again_is_named(finished: Path) -> None:
    receipt = cache_of(finished).record("render").receipt
    assert receipt is not None
    receipt["seconds"] = 7300.0
    path = finished.parent / "out/cache.zarr/receipts/render.json"
    path.write_text(json.dumps(receipt))
    reasons = {item.name: item.reason for item in ds.clean(finished, dry_run=True).found}
    assert reasons["rendered"] == "only redoing a later stage needs it; render took 2.03 h"


def test_every_array_is_in_one_group_or_always_stays() -> None:
    patterns = [pattern for group in GROUPS.values() for pattern in group]
    arrays = {pattern for stage in all_stages().values() for pattern in stage.arrays}
    assert len(patterns) == len(set(patterns))
    assert set(patterns) == arrays - SMALL - WHILE_RENDERING - WHILE_UPSCALING - EARLIER


def test_stages_need_arrays_of_the_stages_before_them(finished: Path) -> None:
    from stages.jobs.job_file import read_job

    stages = all_stages()
    job, _ = read_job(finished)
    for stage in stages.values():
        before = [pattern for name in stage.after for pattern in stages[name].arrays]
        assert set(stage.needs(job)) <= set(before)


def test_keep_removes_the_other_arrays_and_everything_copes(finished: Path, cli: Cli, tmp_path: Path) -> None:
    before = {name: cache_of(finished)[name][:] for name in ("rendered", "deflickered")}
    video = (tmp_path / "out/video.mp4").read_bytes()
    keep = ("--set", 'keep=["rendered"]')
    assert cli("run", finished, "-q", "--preview", *keep) == (0, "")
    assert stored(cache_of(finished).store) == {"rendered"}
    code, output = cli("status", finished, *keep)
    assert code == 0 and "without frames" in output and "without deflickered" in output and "done" in output
    assert cli("verify", finished, "-q") == (0, "")
    assert cli("run", finished, "-q", *keep) == (0, "")
    code, output = cli("export", finished, "-q", "--codec", "ffv1")
    assert code == 1 and "export needs deflickered, which was removed" in output
    assert f"diffsynth deflicker {finished} --restart" in output and "render" not in output
    assert cli("deflicker", finished, "-q", "--restart") == (0, "")
    assert np.array_equal(cache_of(finished)["deflickered"][:], before["deflickered"])
    assert (tmp_path / "out/video.mp4").read_bytes() == video
    assert cli("export", finished, "-q", "--codec", "ffv1") == (0, "")
    assert np.array_equal(cache_of(finished)["rendered"][:], before["rendered"])


def test_a_stage_says_what_to_redo_and_run_restart_redoes_it(finished: Path, cli: Cli) -> None:
    before = cache_of(finished)["deflickered"][:]
    assert cli("run", finished, "-q", "--set", "keep=[]") == (0, "")
    assert stored(cache_of(finished).store) == set()
    code, output = cli("render", finished, "-q", "--restart")
    commands = " && ".join(f"diffsynth {name} {finished} --restart" for name in ("extract", "control"))
    assert code == 1 and "render needs control/canny-" in output and commands in output
    summer = ("--set", "prompt=summer", "--batch-size", 1)
    assert cli("run", finished, "-q", "--restart", *summer) == (0, "")
    assert not np.array_equal(cache_of(finished)["deflickered"][:], before)
    assert cli("run", finished, "-q", "--restart", "--batch-size", 1) == (0, "")
    assert np.array_equal(cache_of(finished)["deflickered"][:], before)


def test_a_video_that_has_to_be_written_again_names_all_that_it_needs(finished: Path, cli: Cli) -> None:
    assert cli("run", finished, "-q", "--set", "keep=[]") == (0, "")
    code, output = cli("run", finished, "-q", "--set", "fps=5")
    stages = [f"diffsynth {stage} {finished} --set=fps=5 --restart" for stage in all_stages() if stage != "upscale"]
    assert code == 1 and "video.mp4 needs deflickered" in output and " && ".join(stages) in output


def test_a_removal_that_was_interrupted_is_finished_by_the_next_run(
    finished: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(FrameCache, "empty", lambda cache, name: (_ for _ in ()).throw(OSError("killed")))
        assert cli("run", finished, "-q", "--set", "keep=[]")[0] == 1
    assert stored(cache_of(finished).store) != set() and cli("verify", finished, "-q") == (0, "")
    assert cli("run", finished, "-q", "--set", "keep=[]") == (0, "")
    assert stored(cache_of(finished).store) == set()


def test_a_report_shows_what_is_left(finished: Path, cli: Cli, tmp_path: Path) -> None:
    assert cli("run", finished, "-q", "--set", 'keep=["frames", "deflickered"]') == (0, "")
    assert cli("report", finished, "-q") == (0, "")
    assert (tmp_path / "out/report.html").exists()
    assert cli("run", finished, "-q", "--set", "keep=[]") == (0, "")
    code, output = cli("report", finished, "-q")
    assert code == 1 and f"diffsynth extract {finished} --restart" in output
    code, output = cli("run", finished, "-q", "--preview")
    assert code == 1 and "no frames to show" in output


def test_an_unfinished_job_keeps_everything(make_job: MakeJob, cli: Cli) -> None:
    job = make_job(3, keep=[])
    for stage in ("extract", "control"):
        assert cli(stage, job, "-q") == (0, "")
    assert stored(cache_of(job).store) == {"frames", "control"}
    assert found(cli, job) == ["frames"]  # which neither render, without a smoother, nor deflicker reads
    assert [name.partition("/")[0] for name in found(cli, job, "--set", "smoother=PatchBlendSmoother")] == []


def test_clean_deletes_exactly_what_it_lists(finished: Path, cli: Cli, tmp_path: Path) -> None:
    cache, keep = cache_of(finished), ("--set", 'keep=["deflickered", "control"]')
    mine = [cache.path / "notes.txt", cache.path / "control/mine/picture.png", tmp_path / "out/mine.part"]
    for file in mine:
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    (cache.path / "receipts/render.json.part").write_text("half")
    (tmp_path / "out/.video.mp4.part").write_text("half")
    listed = found(cli, finished, *keep)
    expected = {"frames", "latents", "rendered", "receipts/render.json.part", str(tmp_path / "out/.video.mp4.part")}
    assert set(listed) == expected and found(cli, finished, *keep, "--dry-run") == listed
    before = sum(file.stat().st_size for file in cache.path.rglob("*") if file.is_file())
    code, output = cli("clean", finished, "--yes", *keep)
    freed = before - sum(file.stat().st_size for file in cache.path.rglob("*") if file.is_file())
    assert code == 0 and "Deleted" in output and freed > 3 * 64 * 64
    assert all(file.read_text() == "mine" for file in mine)
    assert stored(cache.store) == {"control", "deflickered"}
    assert cli("verify", finished, "-q") == (0, "") and cli("run", finished, "-q") == (0, "")
    assert cli("clean", finished, "--yes", *keep) == (0, "Nothing can be deleted.\n")


def test_clean_asks_and_deletes_nothing_without_an_answer(finished: Path, cli: Cli) -> None:
    before = stored(cache_of(finished).store)
    code, output = cli("clean", finished)
    assert code == 2 and "deflickered" in output and "--yes" in output
    assert cli("clean", finished, "--dry-run")[0] == 0
    asked: list[tuple[Removable, ...]] = []

    def refuse(items: tuple[Removable, ...]) -> bool:
        asked.append(items)
        return False

    done = ds.clean(finished, confirm=refuse)
    assert asked == [done.found] and not done.deleted and done.bytes > 0
    assert stored(cache_of(finished).store) == before


def test_stale_arrays_can_be_deleted_and_are_made_again(finished: Path, cli: Cli) -> None:
    summer = ("--set", "prompt=summer")
    listed = found(cli, finished, *summer)
    assert set(listed) == {"latents", "rendered", "deflickered", "frames"}
    assert cli("clean", finished, "--yes", *summer)[0] == 0
    assert stored(cache_of(finished).store) == {"control"}
    assert "to do" in cli("status", finished, *summer)[1]
    assert cli("run", finished, "-q", *summer, "--batch-size", 1) == (0, "")


def test_what_an_interrupted_removal_has_left_is_found(finished: Path, cli: Cli) -> None:
    cache = cache_of(finished)
    cache.record("extract").note_removed(["frames"])
    assert "frames" in found(cli, finished, "--set", 'keep=["frames"]')
    assert ds.clean(finished, overrides={"keep": ["rendered"]}).deleted
    assert stored(cache.store) == {"rendered"} and cli("verify", finished, "-q") == (0, "")


def test_a_cache_in_use_is_left_alone(finished: Path, cli: Cli) -> None:
    with cache_of(finished).lock():
        code, output = cli("clean", finished, "--yes")
    assert code == 1 and "is in use by" in output


def test_a_job_that_was_never_run_has_nothing_to_delete(make_job: MakeJob, cli: Cli, tmp_path: Path) -> None:
    assert cli("clean", make_job()) == (0, "Nothing can be deleted.\n")
    assert not (tmp_path / "out").exists()


def test_a_cache_in_an_object_store_is_cleaned(make_job: MakeJob, cli: Cli, moto: Server) -> None:
    url = moto.new_url()
    job = make_job(3, cache=url)
    for stage in ("extract", "control"):
        assert cli(stage, job, "-q") == (0, "")
    store = open_store(url)
    store.put("probe-1", b"")
    assert set(found(cli, job)) == {"frames", "probe-1"}
    code, output = cli("clean", job, "--yes")
    assert code == 0 and "Deleted" in output, output
    assert stored(store) == {"control"} and matching(store.children(""), ["probe-*"]) == []
    assert store.size("control") > 0 and store.size("receipts/extract.json") > 0 == store.size("none")


def test_the_cache_of_an_interrupted_smooth_is_deleted(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = [write_images(tmp_path / name, [scene(index) for index in range(4)]) for name in ("guide", "style")]
    output, arguments = tmp_path / "smooth", ("smooth", *videos, "-o", tmp_path / "smooth", "--window", 1, "-q")
    (videos[1] / "3.png").write_bytes((videos[1] / "0.png").read_bytes())  # differs from the guide
    with monkeypatch.context() as patch:
        patch.setattr("stages.tasks.SmoothTask.run", interrupt)
        assert cli(*arguments)[0] == 130
    cache = tmp_path / "smooth.cache.zarr"
    (listed,) = ds.clean(output, dry_run=True).found
    assert listed.name == str(cache) and listed.bytes > 1000 and "smooth was interrupted" in listed.reason
    with FrameCache(cache).lock():
        code, said = cli("clean", output, "--yes")
        assert code == 1 and "in use" in said and cache.exists()
    code, said = cli("clean", output, "--yes")
    assert code == 0 and "Deleted" in said and not cache.exists()
    assert cli(*arguments) == (0, "") and len([*output.iterdir()]) == 4
    assert cli("clean", output)[0] == 2  # which is no job


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt
