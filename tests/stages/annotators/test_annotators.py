"""The contract of all annotators, at sizes that controlnet_aux would change."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from stages.annotators import ANNOTATORS, Annotator, FromFiles, VideoAnnotator, Weighted, build
from stages.annotators.people import PeopleOptions
from stages.annotators.pretrained import FILES
from stages.base.errors import DiffSynthError
from stages.models.weights import Weights
from tests.conftest import scene
from tests.stages.annotators.people_networks import write_detector, write_people_model
from tests.stages.annotators.random_weights import write_dpt, write_weights
from tests.typing import Image, Images, Keys

ROOT = Path(__file__).parents[3]
MAKING = {name: model for name, model in ANNOTATORS.built_in.items() if not issubclass(model, FromFiles)}
PLAIN = [name for name, model in MAKING.items() if not issubclass(model, Weighted) and not model.missing_package()]
WITH_WEIGHTS = [name for name, model in MAKING.items() if issubclass(model, Weighted)]
EXTRAS = [name for name, model in MAKING.items() if model.extra]
# Of a network of 350 million numbers, `python -m benchmarks.annotators` shows that it runs.
TOO_LARGE = ("zoe",)
LARGE = ("leres", "midas")
NOTHING_SEEN = (
    "mediapipe_face",
    "openpose",
    "openpose_video",
    "dwpose",
    "person_mask",
    "vitpose",
)  # in frames that show no people


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Weights]:
    """Random weights of an annotator, in their published layout."""
    folder = tmp_path_factory.mktemp("weights")

    def write(name: str) -> Weights:
        if issubclass(ANNOTATORS[name], PeopleOptions):
            detector = Weights("controlnet_processor[0].detector", str(write_detector(folder / "detector")), FILES)
            return Weights("controlnet_processor[0]", str(write_people_model(name, folder / name)), FILES, (detector,))
        model = write_dpt(folder / "dpt") if name.startswith("depth") else write_weights(name, folder)
        return Weights("controlnet_processor[0]", str(model), files_of(name))

    return write


def files_of(name: str) -> tuple[str, ...]:
    options = ANNOTATORS[name]
    assert issubclass(options, Weighted)
    return options.files


def framewise(name: str, options: Keys, style_image: Image | None = None, weights: Weights | None = None) -> Annotator:
    """An annotator that looks at each frame alone."""
    annotator = build(name, options, style_image, weights, "cpu")
    assert not isinstance(annotator, VideoAnnotator)
    return annotator


def maps_of(annotator: Annotator | VideoAnnotator, frames: Images) -> Images:
    if not isinstance(annotator, VideoAnnotator):
        return annotator.maps(frames)
    notes = annotator.look(frames)
    return annotator.draw(list(notes), 0, len(frames), annotator.measure(notes), frames.shape[1:3])


@pytest.mark.parametrize("size", [(64, 64), (72, 104), (200, 120)])
@pytest.mark.parametrize("name", PLAIN)
def test_maps_have_the_frames_shape_and_are_reproducible(name: str, size: tuple[int, int]) -> None:
    frames = np.stack([scene(i, *size) for i in range(3)])
    before = frames.copy()
    maps = framewise(name, {}, scene(9, *size)).maps(frames)
    assert maps.shape == frames.shape and maps.dtype == np.uint8
    assert name in NOTHING_SEEN or maps.std() > 5
    np.testing.assert_array_equal(framewise(name, {}, scene(9, *size)).maps(frames), maps)
    np.testing.assert_array_equal(framewise(name, {}, scene(9, *size)).maps(frames[1:]), maps[1:])
    np.testing.assert_array_equal(frames, before)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else [])
        for name in WITH_WEIGHTS
        if name not in TOO_LARGE
    ],
)
def test_networks_load_from_their_published_layout(
    name: str, weights: Callable[[str], Weights], capfd: pytest.CaptureFixture[str]
) -> None:
    if missing := ANNOTATORS[name].missing_package():
        pytest.skip(missing)
    frames = np.stack([scene(i, 72, 104) for i in range(2)])
    annotator = build(name, {}, None, weights(name), "cpu")
    capfd.readouterr()  # output of writing the weights
    maps = maps_of(annotator, frames)
    assert maps.shape == frames.shape and maps.dtype == np.uint8
    assert name in NOTHING_SEEN or maps.std() > 0
    if not isinstance(annotator, VideoAnnotator):
        np.testing.assert_array_equal(annotator.maps(frames[1:]), maps[1:])
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_options_reach_the_detector(weights: Callable[[str], Weights]) -> None:
    frames = scene(0, 128, 128)[None]
    plain, safe = (framewise("hed", {"safe": safe}, None, weights("hed")).maps(frames) for safe in (False, True))
    assert len(np.unique(safe)) < len(np.unique(plain))
    small = framewise("hed", {"resolution": 64}, None, weights("hed")).maps(frames)
    assert small.shape == frames.shape and not np.array_equal(small, plain)


def test_a_style_image_can_be_shuffled_at_another_resolution() -> None:
    style, frames = scene(9, 72, 104), scene(0, 72, 104)[None]
    (at_64,) = framewise("shuffle", {"resolution": 64}, style).maps(frames)
    assert at_64.shape == style.shape and not np.array_equal(at_64, framewise("shuffle", {}, style).maps(frames)[0])
    small = np.asarray(
        cv2.resize(style, (64, 64), interpolation=cv2.INTER_AREA), np.uint8
    )  # 104 × 64 / 72, to a multiple of 64
    (expected,) = framewise("shuffle", {}, small).maps(small[None])
    difference = np.abs(at_64.astype(int) - cv2.resize(expected, (104, 72), interpolation=cv2.INTER_LINEAR))
    assert np.median(difference) <= 2


@pytest.mark.parametrize("name", ["canny", "lineart_standard"])
def test_lines_are_where_the_frame_has_them(name: str) -> None:
    frame = np.full((120, 200, 3), 230, np.uint8)
    cv2.line(frame, (30, 20), (150, 90), (10, 10, 10), 3)
    drawn = cv2.dilate((frame[..., 0] < 100).astype(np.uint8), np.ones((9, 9)))
    (found,) = framewise(name, {}).maps(frame[None])
    assert (found[..., 0] > 128).sum() > 100
    assert drawn[found[..., 0] > 128].all()


def test_shuffle_does_not_change_numpys_global_generator() -> None:
    np.random.seed(5)
    expected = np.random.random(3)
    np.random.seed(5)
    framewise("shuffle", {}, scene(0)).maps(scene(0)[None])
    np.testing.assert_array_equal(np.random.random(3), expected)


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_missing_files_are_named(name: str, tmp_path: Path) -> None:
    files = files_of(name)
    with pytest.raises(DiffSynthError, match=re.escape(f"{tmp_path} lacks {', '.join(files)}")):
        Weights("controlnet_processor[0]", str(tmp_path), files).folder()


def test_a_missing_hub_model_names_its_files_and_where_to_put_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    hed = Weights("controlnet_processor[1]", "lllyasviel/Annotators", files_of("hed"))
    with pytest.raises(DiffSynthError) as missing:
        hed.folder()
    for part in ("controlnet_processor[1]", "ControlNetHED.pth", "lllyasviel/Annotators", str(tmp_path)):
        assert part in missing.value.message
    assert "https://huggingface.co/lllyasviel/Annotators/resolve/main/" in missing.value.hint


@pytest.mark.parametrize("content", [b"not weights", {"of": torch.zeros(2)}], ids=["garbage", "another network's"])
def test_wrong_files_are_named(content: bytes | dict[str, torch.Tensor], tmp_path: Path) -> None:
    file = tmp_path / "ControlNetHED.pth"
    torch.save(content, file) if isinstance(content, dict) else file.write_bytes(content)
    hed = Weights("controlnet_processor[0]", str(tmp_path), files_of("hed"))
    with pytest.raises(DiffSynthError, match=re.escape(f"{file} (weights of 'hed') cannot be loaded")):
        framewise("hed", {}, None, hed).maps(scene(0)[None])


def test_code_in_a_weights_file_is_not_run(tmp_path: Path) -> None:
    """A pickle may name any function; only tensors are read."""

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"norm": Evil()}, tmp_path / "ControlNetHED.pth")
    hed = Weights("controlnet_processor[0]", str(tmp_path), files_of("hed"))
    with pytest.raises(DiffSynthError, match="cannot be loaded"):
        framewise("hed", {}, None, hed).maps(scene(0)[None])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["dpt", "unknown"])
def test_code_in_a_model_folder_is_not_run(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    folder = write_dpt(tmp_path / "model")
    (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    config = json.loads((folder / "config.json").read_text())
    named = {"AutoConfig": "evil.Config", "AutoModelForDepthEstimation": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": kind, "auto_map": named}))
    depth = framewise("depth", {}, None, Weights("controlnet_processor[0]", str(folder), files_of("depth")))
    with nullcontext() if kind == "dpt" else pytest.raises(DiffSynthError, match="cannot be loaded"):
        depth.maps(scene(0)[None])
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(bool(ANNOTATORS["mediapipe_face"].missing_package()), reason="needs the extra mediapipe")
def test_a_face_is_drawn_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    frame = cv2.resize(cv2.cvtColor(face(), cv2.COLOR_GRAY2RGB), (200, 200))
    maps = framewise("mediapipe_face", {"max_faces": 1, "min_confidence": 0.1}).maps(np.stack([frame, frame[:, ::-1]]))
    assert maps.shape == (2, 200, 200, 3) and maps.std() > 5
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def face() -> Image:
    """A photograph of a face, grey, that comes with scikit-image."""
    from skimage.data import lfw_subset

    photograph: Image = (lfw_subset()[0] * 255).astype(np.uint8)
    return photograph


@pytest.mark.parametrize("name", EXTRAS)
def test_missing_packages_are_named_with_the_command_that_installs_them(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    library = ANNOTATORS[name].requires.partition(".")[0]
    message = ANNOTATORS[name].missing_package()
    assert f"{name!r} needs {library}" in message
    (extra,) = re.findall(r"pip install 'diffsynth-cli\[(\w+)\]'", message)
    offered = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(requirement.startswith(library) for requirement in offered[extra])


def test_the_docs_name_every_annotator_its_weights_and_its_extra() -> None:
    text = (ROOT / "docs/annotators.md").read_text()
    wanted = {f"`{name}`" for name in ANNOTATORS.built_in} | {f"diffsynth-cli[{MAKING[name].extra}]" for name in EXTRAS}
    for name in WITH_WEIGHTS:
        default = str(MAKING[name].model_fields["model"].default)
        files = () if name.startswith("depth") else files_of(name)  # any depth model in safetensors will do
        wanted |= {f"`{part}`" for part in (default, *files)}
    assert {part for part in wanted if part not in text} == set()
