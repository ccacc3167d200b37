"""Two scenes in one video give the same bytes as each scene alone, in every stage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from diffsynth_cli.failures import Interrupted
from stages import control, tasks
from stages.annotators.pose import Openpose
from stages.base.cache import FrameCache
from stages.base.engine import Task
from stages.base.scenes import split
from stages.jobs.maps import recorded_maps
from stages.rendering import tasks as render_tasks
from stages.video import find_cuts
from tests.conftest import CONTROLNET, scene, write_images
from tests.stages.annotators.random_weights import write_depth_model, write_weights
from tests.stages.test_control import somebody
from tests.typing import Cli, Image, Keys, MakeJob, Render, Run

CUT, COUNT = 11, 20  # both scenes are more than one chunk, and neither is whole chunks
SCENES = split(COUNT, [CUT])
TWO_NETS = {"controlnet_model_id": [str(CONTROLNET)] * 2, "num_inference_steps": 2, "keep_steps": True}
JOBS: dict[str, Keys] = {
    "joint attention, PatchBlend in the loop": {
        "controlnet_processor": ["canny", {"name": "depth_video", "model": "./depth"}],
        "combine_pattern": [-10000, -1, 0, 1],
        "scheduler": "dpm++2m",
        "smoother": "PatchBlendSmoother",
        "smoother_config": {"window": 2},
        "smoother_interval": 2,
        "post_smoother": "PySynthSmoother",
        "post_smoother_config": {"window_size": 2, "patch_size": 5, "num_iter": 1},
    },
    "shared attention, PatchBlend after the loop": {
        "controlnet_processor": [
            {"name": "depth", "normalize": "video", "model": "./depth"},
            {"name": "openpose_video", "model": "./openpose"},
        ],
        "combine_pattern": [-10000, -1, 0, 2],
        "attention": "shared",
        "smoother": "TemporalMeanSmoother",
        "post_smoother": "PatchBlendSmoother",
        "post_smoother_config": {"window": 4},
    },
    "every third frame, img2img": {
        "controlnet_processor": ["canny", "tile"],
        "combine_pattern": [-10000, -1, 0, 1],
        "num_inference_steps": 3,
        "img2img_strength": 0.7,
        "smoother": "VideoPatchMatchSmoother",
        "smoother_config": {"ebsynth_config": {"patch_size": 5, "num_iter": 1}},
        "keyframes": 3,
        "extra_deflickering_range": 1,
    },
}


def clip(number: int) -> list[Image]:
    """The frames of one of two scenes that look different."""
    if number == 0:
        return [scene(index) for index in SCENES[0]]
    return [255 - scene(2 * index).transpose(1, 0, 2) for index in range(len(SCENES[1]))]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The two scenes, and both joined; also the annotators' weights. The annotator of poses sees somebody."""
    write_depth_model(tmp_path / "depth")
    write_weights("openpose", tmp_path)
    monkeypatch.setattr(Openpose, "poses", lambda self, frames: np.stack([somebody(frame) for frame in frames]))
    clips = [clip(0), clip(1)]
    clips.append(clips[0] + clips[1])
    return [write_images(tmp_path / name, images) for name, images in zip(("one", "two", "both"), clips, strict=True)]


def arrays(cache: FrameCache) -> dict[str, str]:
    """What the job made of its frames, each under a name that does not depend on the frames."""
    maps = {f"map {index}": name for index, (name, _) in enumerate(recorded_maps(cache))}
    steps = {name: name for name in cache.arrays("step_latents/*")}
    return {"frames": "frames", **maps, **steps, "latents": "latents", "rendered": "rendered", "smooth": "deflickered"}


def assert_joined(both: FrameCache, alone: list[FrameCache]) -> None:
    """Every array of `both` is that of the first scene, followed by that of the second."""
    for label, name in arrays(both).items():
        parts = [cache[arrays(cache)[label]][:] for cache in alone]
        np.testing.assert_array_equal(both[name][:], np.concatenate(parts), err_msg=label)
        assert len({part.tobytes() for part in both[name][:]}) > len(both[name]) // 2  # the frames differ


@pytest.mark.slow
@pytest.mark.parametrize("case", JOBS)
def test_each_scene_is_rendered_as_if_it_were_alone(case: str, folders: list[Path], render: Render) -> None:
    keys = TWO_NETS | JOBS[case]
    both = render("both cut", input_video="both", scenes=[CUT], **keys)
    alone = [render(f"{name} alone", input_video=name, **keys) for name in ("one", "two")]
    assert both["scenes"][:].tolist() == [0, CUT]
    assert_joined(both, alone)


@pytest.mark.slow
@pytest.mark.parametrize("chosen", ["listed", "auto"])
def test_frames_are_painted_from_keyframes_of_their_scene(chosen: str, folders: list[Path], render: Render) -> None:
    listed = {"both": [0, 5, 10, 12, 18], "one": [0, 5, 10], "two": [1, 7]}
    keys = {"num_inference_steps": 1, "combine_pattern": [-1, 0, 1]}

    def run(name: str, **more: object) -> FrameCache:
        keyframes = listed[name] if chosen == "listed" else "auto"
        return render(f"{name} {chosen}", input_video=name, keyframes=keyframes, **keys, **more)

    assert_joined(run("both", scenes=[CUT]), [run("one"), run("two")])


@pytest.mark.slow
@pytest.mark.parametrize("case", list(JOBS)[::2])
def test_a_job_interrupted_in_its_second_scene_resumes_to_the_same_bytes(
    case: str, folders: list[Path], render: Render, make_job: MakeJob, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = TWO_NETS | JOBS[case] | {"input_video": "both", "scenes": "auto"}
    straight = render("straight", **keys)
    stopped: list[type[Task]] = []
    kinds: list[type[Task]] = [
        control.AnnotateTask, control.DrawTask, render_tasks.StepTask, render_tasks.SmoothStepTask, tasks.PaintTask,
        tasks.SmoothTask,
    ]  # fmt: skip

    def interrupting(kind: type[Task], run: Run) -> Callable[[Task, FrameCache, int, int], None]:
        def interrupted(task: Task, cache: FrameCache, start: int, stop: int) -> None:
            count = len(task.plan.keys) if isinstance(task, render_tasks.RenderTask) else COUNT
            if stop == count and kind not in stopped:
                stopped.append(kind)
                raise Interrupted
            run(task, cache, start, stop)

        return interrupted

    for kind in kinds:
        monkeypatch.setattr(kind, "run", interrupting(kind, kind.run))
    monkeypatch.setattr("stages.scenes.find_cuts", once(find_cuts))
    job = make_job(**keys, output_path="interrupted")
    codes = [cli("run", job, "-q", "--batch-size", 2)[0] for _ in range(6)]
    assert codes == [130] * 5 + [0]
    resumed = FrameCache(job.parent / "interrupted/cache.zarr")
    for label, name in arrays(straight).items():
        np.testing.assert_array_equal(resumed[arrays(resumed)[label]][:], straight[name][:], err_msg=label)


def once(function: Callable[..., list[int]]) -> Callable[..., list[int]]:
    """The function, which fails when it is called again."""
    calls: list[int] = []

    def called(*arguments: object) -> list[int]:
        calls.append(1)
        assert len(calls) == 1, "what an earlier run found was not used"
        return function(*arguments)

    return called


# --- finding scenes, and telling about them -------------------------------------------------------------


def told(cli: Cli, job: Path) -> list[list[int]]:
    """The scenes that `status` lists."""
    scenes: list[list[int]] = json.loads(cli("status", job, "--json")[1])["scenes"]
    return scenes


def test_scenes_are_found_reported_and_recorded(folders: list[Path], make_job: MakeJob, cli: Cli) -> None:
    job = make_job(input_video="both", scenes="auto")
    assert cli("extract", job, "-q") == (0, "")
    assert told(cli, job) == []
    code, output = cli("control", job)
    assert code == 0 and "found 2 scenes: 0–10, 11–19" in output
    assert FrameCache(job.parent / "out/cache.zarr")["scenes"][:].tolist() == [0, CUT]
    assert "\n2 scenes: 0–10, 11–19\n" in cli("status", job)[1]
    assert told(cli, job) == [[0, 10], [11, 19]]


def test_a_video_without_cuts_is_one_scene(folders: list[Path], make_job: MakeJob, cli: Cli) -> None:
    job = make_job(input_video="one", scenes="auto")
    assert cli("extract", job, "-q") == (0, "")
    assert "found 1 scene: 0–10" in cli("control", job)[1]
    assert FrameCache(job.parent / "out/cache.zarr")["scenes"][:].tolist() == [0]


def test_without_scenes_nothing_is_recorded(make_job: MakeJob, cli: Cli) -> None:
    job = make_job(3)
    assert cli("extract", job, "-q") == cli("control", job, "-q") == (0, "")
    assert "scenes" not in FrameCache(job.parent / "out/cache.zarr")
    assert told(cli, job) == [] and " scene" not in cli("status", job)[1]


# --- what depends on scenes -----------------------------------------------------------------------------


def test_other_scenes_make_all_stages_but_extraction_stale(make_job: MakeJob, cli: Cli) -> None:
    keys = {"num_inference_steps": 1, "controlnet_scale": [0]}
    assert cli("run", make_job(**keys), "-q") == (0, "")
    job = make_job(**keys, scenes=[3])
    states = {stage["stage"]: stage for stage in json.loads(cli("status", job, "--json")[1])["stages"]}
    assert {name: stage["state"] for name, stage in states.items()} == {
        "extract": "done", "control": "stale", "render": "stale", "deflicker": "stale",
    }  # fmt: skip
    assert states["render"]["changes"] == ["scenes: null → [3]"]
    assert told(cli, job) == []
    assert cli("run", job, "-q", "--restart") == (0, "")
    assert told(cli, job) == [[0, 2], [3, 5]]
    assert told(cli, make_job(**keys, scenes=[2])) == []  # those of the old job are stale


def test_other_scenes_redo_only_the_maps_that_need_the_whole_video(
    folders: list[Path], make_job: MakeJob, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def watched(run: Run) -> Callable[[Task, FrameCache, int, int], None]:
        def watch(task: Task, cache: FrameCache, start: int, stop: int) -> None:
            assert isinstance(task, control.AnnotatorTask)
            made.append(task.maker.name)
            run(task, cache, start, stop)

        return watch

    for kind in (control.AnnotateTask, control.DrawTask):
        monkeypatch.setattr(kind, "run", watched(kind.run))
    keys = TWO_NETS | {"input_video": "both", "frames_reference": ["one/0.png"]}
    keys["controlnet_processor"] = ["canny", {"name": "depth_video", "model": "./depth"}]

    def maps(**more: object) -> tuple[set[str], bytes]:
        made.clear()
        job = make_job(**keys, **more)
        assert cli("extract", job, "-q") == cli("control", job, "-q", "--restart") == (0, "")
        cache = FrameCache(job.parent / "out/cache.zarr")
        return {*made}, cache[recorded_maps(cache)[1][0]][:].tobytes()

    whole = maps()
    assert whole[0] == {"canny", "depth_video"}
    cut = maps(scenes=[CUT])
    assert cut[0] == {"depth_video"} and cut[1] != whole[1]
    assert maps(scenes="auto") == (set(), cut[1])  # the same cuts
    assert maps() == ({"depth_video"}, whole[1])


# --- wrong lists ----------------------------------------------------------------------------------------


def test_a_scene_after_the_end_is_refused_before_any_work(make_job: MakeJob, cli: Cli) -> None:
    job = make_job(6, scenes=[3, 6])
    code, output = cli("run", job)
    assert code == 2 and "scenes: the frames are numbered 0 to 5, so no scene begins at 6" in output
    assert not (job.parent / "out").exists()


def test_a_scene_after_the_last_frame_of_a_video_of_unknown_length_is_refused_after_extraction(
    tmp_path: Path, make_job: MakeJob, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.extract._certain_count", lambda job, source: (1, np.inf))
    job = make_job(6, scenes=[3, 6])
    code, output = cli("run", job)
    assert code == 2 and "scenes: the frames are numbered 0 to 5, so no scene begins at 6" in output
    assert FrameCache(tmp_path / "out/cache.zarr").recorded("control") is None


def test_a_scene_without_a_keyframe_is_refused_before_any_work(make_job: MakeJob, cli: Cli) -> None:
    job = make_job(6, scenes=[2, 4], keyframes=[0, 4])
    code, output = cli("run", job)
    assert code == 2 and "keyframes: none is in the scene that begins at frame 2" in output
    assert not (job.parent / "out").exists()
