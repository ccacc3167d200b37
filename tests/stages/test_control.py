"""Frames → control maps through the command line."""

from __future__ import annotations

import gc
import weakref
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from stages.annotators import controlnet_aux
from stages.annotators.files import MapFiles
from stages.annotators.pose import FACE, PEOPLE, POINTS, Openpose
from stages.base.cache import FrameCache
from stages.base.engine import Task
from stages.control import AnnotateTask, DrawTask, LookTask
from stages.jobs.maps import map_names
from stages.models.weights import Weights
from stages.video import Encoding, encode
from tests.conftest import CONTROLNET, scene, write_images
from tests.stages.annotators.random_weights import write_depth_model, write_weights
from tests.typing import Cli, Floats, Image, Images, Keys, MakeJob


class Maps:
    """The maps of frames and of references in a cache, by the number of the ControlNet."""

    def __init__(self, folder: Path) -> None:
        self.cache = FrameCache(folder / "out/cache.zarr")
        recorded = self.cache.recorded("control")
        assert recorded is not None
        names = map_names(recorded)
        self.of_frames, self.of_references = zip(*(pair or (None, None) for pair in names))

    def __getitem__(self, index: int) -> Images:
        maps: Images = self.cache[self.of_frames[index]][:]
        return maps

    def references(self, index: int) -> Images:
        maps: Images = self.cache[self.of_references[index]][:]
        return maps


class Control:
    """Extracts a job of so many images, makes maps with these annotators, and gives the maps."""

    def __init__(self, folder: Path, make_job: MakeJob, cli: Cli) -> None:
        self.folder, self.make_job, self.cli = folder, make_job, cli

    def __call__(self, *processors: object, frames: int = 10, **keys: object) -> Maps:
        code, output = self.run(*processors, frames=frames, **keys)
        assert code == 0, output
        return Maps(self.folder)

    def refused(self, *processors: object, **keys: object) -> str:
        """The message if making maps must fail."""
        code, output = self.run(*processors, frames=10, **keys)
        assert code != 0
        return output

    def run(self, *processors: object, frames: int, **keys: object) -> tuple[int, str]:
        nets = {"controlnet_model_id": [str(CONTROLNET)] * len(processors), "controlnet_processor": list(processors)}
        job = self.make_job(frames, **nets, **keys)
        assert self.cli("extract", job, "-q", "--restart") == (0, "")
        return self.cli("control", job, "--restart")


@pytest.fixture
def control(tmp_path: Path, make_job: MakeJob, cli: Cli) -> Control:
    return Control(tmp_path, make_job, cli)


@pytest.fixture
def annotated(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int]]:
    """The annotator, source and first frame of each chunk that was annotated, in order."""
    seen = []
    run = AnnotateTask.run

    def spy(task: AnnotateTask, cache: FrameCache, start: int, stop: int) -> None:
        seen.append((task.maker.name, task.source, start))
        run(task, cache, start, stop)

    monkeypatch.setattr(AnnotateTask, "run", spy)
    return seen


def test_a_map_for_every_controlnet_in_job_order(control: Control) -> None:
    maps = control("tile", {"name": "canny", "low_threshold": 50, "high_threshold": 90}, "lineart_standard")
    frames = np.stack([scene(i) for i in range(10)])
    np.testing.assert_array_equal(maps[0], frames)
    edges = np.stack([cv2.cvtColor(cv2.Canny(frame, 50, 90), cv2.COLOR_GRAY2RGB) for frame in frames])
    np.testing.assert_array_equal(maps[1], edges)
    assert maps[2].shape == (10, 64, 64, 3) and maps[2][3].max() > 100


def test_a_map_of_scale_0_is_not_made(control: Control) -> None:
    maps = control("depth", "tile", controlnet_scale=[0.0, 1.0])  # the weights of depth are missing
    assert maps.of_frames[0] is None and maps.cache.arrays("control/*") == [maps.of_frames[1]]


def test_shuffle_is_one_map_of_the_style_image_for_all_frames(tmp_path: Path, control: Control) -> None:
    style = write_images(tmp_path / "style", [scene(7, 128, 200)]) / "0.png"
    maps = control("shuffle", style_image=str(style))[0]
    assert (maps == maps[0]).all()
    assert maps[0].std() > 10
    other = control({"name": "shuffle", "seed": 1}, style_image=str(style))[0][0]
    assert not np.array_equal(maps[0], other)


def test_references_go_through_the_same_annotators(tmp_path: Path, control: Control) -> None:
    images = [scene(30, 96, 64), scene(40)]
    folder = write_images(tmp_path / "more", images)
    maps = control("canny", frames_reference=[str(folder / "0.png"), str(folder / "1.png")])
    references = maps.cache["references"][:]
    np.testing.assert_array_equal(references[1], images[1])
    expected = [cv2.cvtColor(cv2.Canny(image, 100, 200), cv2.COLOR_GRAY2RGB) for image in references]
    np.testing.assert_array_equal(maps.references(0), np.stack(expected))


def test_maps_from_a_folder_and_from_a_video(tmp_path: Path, control: Control) -> None:
    maps = [scene(50 + i) for i in range(10)]
    write_images(tmp_path / "maps", maps)
    encode(tmp_path / "maps.mkv", maps, Encoding(fps=Fraction(25), codec="ffv1"))
    result = control("file:maps", {"name": "file", "path": "maps.mkv"})
    np.testing.assert_array_equal(result[0], np.stack(maps))
    np.testing.assert_array_equal(result[1], np.stack(maps))


def test_maps_of_another_size_are_fitted_with_a_warning(tmp_path: Path, control: Control, cli: Cli) -> None:
    write_images(tmp_path / "maps", [scene(i, 128, 128) for i in range(10)])
    assert control("file:maps")[0].shape == (10, 64, 64, 3)


def test_too_few_maps_are_refused(tmp_path: Path, control: Control) -> None:
    write_images(tmp_path / "maps", [scene(i) for i in range(9)])
    assert "holds 9 maps for 10 frames" in control.refused("file:maps")


def test_missing_maps_of_references_are_refused(tmp_path: Path, control: Control) -> None:
    write_images(tmp_path / "maps", [scene(i) for i in range(10)])
    assert "has no maps for frames_reference" in control.refused("file:maps", frames_reference=["images/0.png"])


# --- values of files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        (np.array([0, 100, 255], np.uint8), {}, [0, 100, 255]),
        (np.array([0, 100, 255], np.uint8), {"invert": True}, [255, 155, 0]),
        (np.array([0, 257, 65535], np.uint16), {}, [0, 1, 255]),
        (np.array([1000, 2500, 4000], np.uint16), {"near": 1000, "far": 4000}, [255, 128, 0]),
        (np.array([0.5, 0.25, np.nan], np.float32), {}, [128, 64, 0]),
        (np.array([1.0, np.inf, np.nan], np.float32), {"near": 1, "far": 9}, [255, 0, 0]),
        (np.array([10, 20, 30], np.uint8), {"near": 30, "far": 10, "invert": True}, [255, 128, 0]),
    ],
)
def test_values_become_greys_from_far_to_near(values: np.ndarray, options: Keys, expected: list[int]) -> None:
    result = MapFiles(name="file", path="maps", **options).as_map(np.repeat(values[None, :, None], 3, axis=2))
    assert result.dtype == np.uint8 and result[0, :, 0].tolist() == expected


def test_sixteen_bit_depth_passes_of_a_renderer(tmp_path: Path, control: Control) -> None:
    (tmp_path / "maps").mkdir()
    for index in range(10):
        depth = np.linspace(500 + 100 * index, 9000, 64 * 64).reshape(64, 64).astype(np.uint16)
        cv2.imwrite(str(tmp_path / f"maps/{index}.png"), depth)
    maps = control({"name": "file", "path": "maps", "near": 500, "far": 9000})[0]
    assert maps[0, 0, 0].tolist() == [255] * 3 and maps[9, 63, 63].tolist() == [0] * 3
    assert len(np.unique(maps[0])) > 200  # not the 8 bits that 500..9000 of 65535 would leave


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"near": 1}, ": controlnet_processor[0]: set both near and far"),
        ({"near": 2, "far": 2}, "near and far must differ"),
    ],
)
def test_half_a_range_is_refused(options: Keys, expected: str, make_job: MakeJob, cli: Cli) -> None:
    code, text = cli("control", make_job(controlnet_processor=[{"name": "file", "path": "maps"} | options]))
    assert code == 2 and expected in text


# --- annotators with weights ----------------------------------------------------------------------------


def test_a_detectors_weights_from_a_folder_by_a_relative_path(tmp_path: Path, control: Control) -> None:
    write_weights("hed", tmp_path)
    maps = control({"name": "hed", "model": "./hed"}, frames=3)[0]
    assert maps.shape == (3, 64, 64, 3) and maps.std() > 0


def test_changed_weights_make_maps_stale(tmp_path: Path, control: Control, make_job: MakeJob, cli: Cli) -> None:
    write_depth_model(tmp_path / "depth")
    control({"name": "depth", "model": "./depth"}, frames=3)
    write_depth_model(tmp_path / "depth", metric=True)
    code, output = cli("control", tmp_path / "job.json")
    assert code != 0 and "controlnet_processor[0].model: the content of" in output


def test_missing_weights_are_refused_before_anything_is_made_or_removed(
    tmp_path: Path, control: Control, annotated: list[tuple[str, str, int]]
) -> None:
    before = control("tile", "canny")
    write_weights("lineart", tmp_path)
    (tmp_path / "lineart/sk_model2.pth").unlink()
    (tmp_path / "empty").mkdir()
    annotated.clear()
    output = control.refused("lineart_standard", {"name": "lineart", "model": "./lineart"})
    assert f"controlnet_processor[1]: {tmp_path / 'lineart'} lacks sk_model2.pth" in output
    output = control.refused("lineart_standard", {"name": "hed", "model": "./empty"})
    assert f"{tmp_path / 'empty'} lacks ControlNetHED.pth" in output
    assert annotated == []
    assert (before[1] > 0).any()  # the old maps are kept


def test_networks_are_freed_when_their_map_is_done(
    tmp_path: Path, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_weights("hed", tmp_path)
    write_weights("softedge_pidi", tmp_path)
    living: list[weakref.ref[object]] = []
    load = controlnet_aux.load

    def spy(name: str, kind: str, weights: Weights | None, device: str) -> object:
        gc.collect()
        assert all(reference() is None for reference in living)
        detector = load(name, kind, weights, device)
        living.append(weakref.ref(detector))
        return detector

    monkeypatch.setattr(controlnet_aux, "load", spy)
    control({"name": "hed", "model": "./hed"}, {"name": "softedge_pidi", "model": "./softedge_pidi"}, frames=3)
    assert len(living) == 2  # each was loaded once


def test_depth_of_the_video_and_of_references_through_the_cache(tmp_path: Path, control: Control) -> None:
    write_depth_model(tmp_path / "depth")
    references = [str(write_images(tmp_path / "more", [scene(40)]) / "0.png")]
    options = {"model": "./depth"}
    processors = [{"name": "depth", "normalize": "video"}, {"name": "depth_video"}, {"name": "depth"}]
    maps = control(*(given | options for given in processors), frames_reference=references, frames=20)
    of_video, shifted, own = (maps[index].astype(float) for index in range(3))
    assert of_video.min() == 0 and of_video.max() == 255 and (own.max(axis=(1, 2, 3)) == 255).all()
    assert (of_video.max(axis=(1, 2, 3)) < 255).any()
    assert np.ptp(shifted.mean(axis=(1, 2, 3))) < 1 < np.ptp(own.mean(axis=(1, 2, 3)))
    assert maps.references(0).shape == maps.references(1).shape == (1, 64, 64, 3)
    assert maps.cache.arrays("notes/*") == []


@pytest.mark.parametrize("name", ["depth_video", "openpose_video"])
def test_annotators_of_the_whole_video_resume_after_an_interruption(
    name: str, tmp_path: Path, control: Control, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    if name == "depth_video":
        write_depth_model(tmp_path / "model")
    else:  # random weights would find nobody
        write_weights("openpose", tmp_path).rename(tmp_path / "model")
        monkeypatch.setattr(Openpose, "poses", lambda self, frames: np.stack([somebody(frame) for frame in frames]))
    expected = control({"name": name, "model": "./model"}, frames=20)[0]
    assert len(np.unique(expected.reshape(20, -1), axis=0)) == 20
    runs: list[tuple[str, int]] = []

    def interrupt(kind: type[Task], at: int) -> None:
        original = kind.run

        def run(task: Task, cache: FrameCache, start: int, stop: int) -> None:
            runs.append((kind.__name__, start))
            if len(runs) == at:
                raise KeyboardInterrupt
            original(task, cache, start, stop)

        monkeypatch.setattr(kind, "run", run)

    interrupt(LookTask, 2)
    interrupt(DrawTask, 6)
    codes = [cli("control", tmp_path / "job.json", *options)[0] for options in (["--restart"], [], [])]
    assert [code == 0 for code in codes] == [False, False, True]
    np.testing.assert_array_equal(Maps(tmp_path)[0], expected)
    assert [start for kind, start in runs if kind == "LookTask"] == [0, 8, 8, 16]
    assert [start for kind, start in runs if kind == "DrawTask"] == [0, 8, 8, 16]


def somebody(frame: Image) -> Floats:
    """Poses of one person whose face trembles in a way that depends on the frame."""
    pose = np.full((PEOPLE, POINTS, 2), np.nan, np.float32)
    trembling = np.random.default_rng(int(frame.sum())).normal(0, 0.02, (70, 2))
    angles = np.linspace(0, 2 * np.pi, 70)
    pose[0, FACE] = 0.5 + 0.3 * np.stack([np.cos(angles), np.sin(angles)], axis=1) + trembling
    return pose


# --- one map for many jobs ------------------------------------------------------------------------------


def test_equal_maps_are_made_once(control: Control, annotated: list[tuple[str, str, int]]) -> None:
    maps = control("canny", "tile", "canny")
    np.testing.assert_array_equal(maps[0], maps[2])
    assert maps.of_frames[0] == maps.of_frames[2]
    assert annotated == [(name, "frames", start) for name in ("canny", "tile") for start in (0, 8)]


def test_a_changed_job_makes_only_the_missing_maps(
    tmp_path: Path, control: Control, annotated: list[tuple[str, str, int]]
) -> None:
    first = control("canny", "tile")
    annotated.clear()
    second = control("lineart_standard", "canny")
    assert {name for name, _, _ in annotated} == {"lineart_standard"}
    np.testing.assert_array_equal(second[1], first[0])
    annotated.clear()
    control("tile", "canny")
    assert annotated == []


def test_other_references_keep_the_maps_of_frames(
    tmp_path: Path, control: Control, annotated: list[tuple[str, str, int]]
) -> None:
    folder = write_images(tmp_path / "more", [scene(30), scene(40)])
    control("canny", frames_reference=[str(folder / "0.png")])
    annotated.clear()
    maps = control("canny", frames_reference=[str(folder / "1.png")])
    assert annotated == [("canny", "references", 0)]
    np.testing.assert_array_equal(maps.references(0)[0][..., 0], cv2.Canny(scene(40), 100, 200))


def test_maps_of_other_frames_are_removed(tmp_path: Path, control: Control) -> None:
    control("canny", "tile")
    maps = control("canny", frame_maximum_count=5)
    assert maps.cache.arrays("control/*") == [maps.of_frames[0]] and len(maps[0]) == 5


def test_restarting_an_unchanged_job_redoes_every_map(
    tmp_path: Path, control: Control, annotated: list[tuple[str, str, int]]
) -> None:
    control("canny", "tile")
    control("canny")
    annotated.clear()
    maps = control("canny")
    assert annotated == [("canny", "frames", 0), ("canny", "frames", 8)]
    assert maps.cache.arrays("control/*") == [maps.of_frames[0]]


def test_another_prompt_redoes_no_map(
    tmp_path: Path, control: Control, make_job: MakeJob, cli: Cli, annotated: list[tuple[str, str, int]]
) -> None:
    control("canny")
    annotated.clear()
    assert cli("control", make_job(prompt="summer"))[0] == 0
    assert annotated == []


def test_a_damaged_map_is_redone_with_the_changed_ones(
    tmp_path: Path, control: Control, annotated: list[tuple[str, str, int]]
) -> None:
    maps = control("canny")
    (maps.cache.path / maps.of_frames[0] / "zarr.json").write_text("{")
    annotated.clear()
    again = control("canny", "tile")
    assert {name for name, _, _ in annotated} == {"canny", "tile"}
    assert again[0].any()
