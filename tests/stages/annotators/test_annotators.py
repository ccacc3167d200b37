"""One contract for all annotators, at sizes that controlnet_aux would have changed."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from stages.annotators import ANNOTATORS, FromFiles, OverTime, Weighted, build
from stages.base.errors import DiffSynthError
from stages.models.weights import Weights
from tests.conftest import scene
from tests.stages.annotators.random_weights import write_dpt, write_weights

ROOT = Path(__file__).parents[3]
MAKING = {name: model for name, model in ANNOTATORS.built_in.items() if not issubclass(model, FromFiles)}
PLAIN = [name for name, model in MAKING.items() if not issubclass(model, Weighted) and not model.missing_package()]
WITH_WEIGHTS = [name for name, model in MAKING.items() if issubclass(model, Weighted)]
EXTRAS = [name for name, model in MAKING.items() if model.extra]
# Of a network of 350 million numbers, `python -m benchmarks.annotators` shows that it runs.
TOO_LARGE = ("zoe",)
NOTHING_SEEN = ("mediapipe_face", "openpose", "openpose_video", "dwpose")  # in frames that show no people


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights of an annotator, in their published layout."""
    folder = tmp_path_factory.mktemp("weights")

    def write(name: str) -> Weights:
        model = write_dpt(folder / "dpt") if name.startswith("depth") else write_weights(name, folder)
        return Weights("controlnet_processor[0]", str(model), ANNOTATORS[name].files)

    return write


def maps_of(annotator, frames):
    if not isinstance(annotator, OverTime):
        return annotator.maps(frames)
    notes = annotator.look(frames)
    return annotator.draw(notes, 0, len(frames), annotator.measure(notes), frames.shape[1:3])


@pytest.mark.parametrize("size", [(64, 64), (72, 104), (200, 120)])
@pytest.mark.parametrize("name", PLAIN)
def test_maps_are_frames_in_size_and_kind_and_the_same_every_time(name, size):
    frames = np.stack([scene(i, *size) for i in range(3)])
    before = frames.copy()
    maps = build(name, {}, scene(9, *size)).maps(frames)
    assert maps.shape == frames.shape and maps.dtype == np.uint8
    assert name in NOTHING_SEEN or maps.std() > 5
    np.testing.assert_array_equal(build(name, {}, scene(9, *size)).maps(frames), maps)
    np.testing.assert_array_equal(build(name, {}, scene(9, *size)).maps(frames[1:]), maps[1:])
    np.testing.assert_array_equal(frames, before)


@pytest.mark.parametrize("name", [name for name in WITH_WEIGHTS if name not in TOO_LARGE])
def test_networks_in_their_published_layout_give_maps_too(name, weights, capfd):
    if missing := ANNOTATORS[name].missing_package():
        pytest.skip(missing)
    frames = np.stack([scene(i, 72, 104) for i in range(2)])
    annotator = build(name, {}, None, weights(name), "cpu")
    capfd.readouterr()  # what writing the weights said
    maps = maps_of(annotator, frames)
    assert maps.shape == frames.shape and maps.dtype == np.uint8
    assert name in NOTHING_SEEN or maps.std() > 0
    if not isinstance(annotator, OverTime):
        np.testing.assert_array_equal(annotator.maps(frames[1:]), maps[1:])
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_options_reach_the_detector(weights):
    frames = scene(0, 128, 128)[None]
    plain, safe = (build("hed", {"safe": safe}, None, weights("hed"), "cpu").maps(frames) for safe in (False, True))
    assert len(np.unique(safe)) < len(np.unique(plain))
    small = build("hed", {"resolution": 64}, None, weights("hed"), "cpu").maps(frames)
    assert small.shape == frames.shape and not np.array_equal(small, plain)


def test_a_style_image_may_be_shuffled_at_a_size_of_its_own():
    style, frames = scene(9, 72, 104), scene(0, 72, 104)[None]
    (at_64,) = build("shuffle", {"resolution": 64}, style).maps(frames)
    assert at_64.shape == style.shape and not np.array_equal(at_64, build("shuffle", {}, style).maps(frames)[0])
    small = cv2.resize(style, (64, 64), interpolation=cv2.INTER_AREA)  # 104 × 64 / 72, to a multiple of 64
    (expected,) = build("shuffle", {}, small).maps(small[None])
    difference = np.abs(at_64.astype(int) - cv2.resize(expected, (104, 72), interpolation=cv2.INTER_LINEAR))
    assert np.median(difference) <= 2


@pytest.mark.parametrize("name", ["canny", "lineart_standard"])
def test_lines_lie_where_the_frame_has_them(name):
    frame = np.full((120, 200, 3), 230, np.uint8)
    cv2.line(frame, (30, 20), (150, 90), (10, 10, 10), 3)
    drawn = cv2.dilate((frame[..., 0] < 100).astype(np.uint8), np.ones((9, 9)))
    (found,) = build(name, {}).maps(frame[None])
    assert (found[..., 0] > 128).sum() > 100
    assert drawn[found[..., 0] > 128].all()


def test_shuffle_leaves_numpys_generator_alone():
    np.random.seed(5)
    expected = np.random.random(3)
    np.random.seed(5)
    build("shuffle", {}, scene(0)).maps(scene(0)[None])
    np.testing.assert_array_equal(np.random.random(3), expected)


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_missing_files_are_named(name, tmp_path):
    files = ANNOTATORS[name].files
    with pytest.raises(DiffSynthError, match=re.escape(f"{tmp_path} lacks {', '.join(files)}")):
        Weights("controlnet_processor[0]", str(tmp_path), files).folder()


def test_a_hub_model_that_is_not_there_says_what_is_missing_where_and_how_to_place_it(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    hed = Weights("controlnet_processor[1]", "lllyasviel/Annotators", ANNOTATORS["hed"].files)
    with pytest.raises(DiffSynthError) as missing:
        hed.folder()
    for part in ("controlnet_processor[1]", "ControlNetHED.pth", "lllyasviel/Annotators", str(tmp_path)):
        assert part in missing.value.message
    assert "https://huggingface.co/lllyasviel/Annotators/resolve/main/" in missing.value.hint


@pytest.mark.parametrize("content", [b"not weights", {"of": torch.zeros(2)}], ids=["garbage", "another network's"])
def test_wrong_files_are_named(content, tmp_path):
    file = tmp_path / "ControlNetHED.pth"
    torch.save(content, file) if isinstance(content, dict) else file.write_bytes(content)
    hed = Weights("controlnet_processor[0]", str(tmp_path), ANNOTATORS["hed"].files)
    with pytest.raises(DiffSynthError, match=re.escape(f"{file} (weights of 'hed') cannot be loaded")):
        build("hed", {}, None, hed, "cpu").maps(scene(0)[None])


def test_what_a_file_could_run_is_not_run(tmp_path):
    """A pickle may name any function; only tensors are read."""

    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"norm": Evil()}, tmp_path / "ControlNetHED.pth")
    hed = Weights("controlnet_processor[0]", str(tmp_path), ANNOTATORS["hed"].files)
    with pytest.raises(DiffSynthError, match="cannot be loaded"):
        build("hed", {}, None, hed, "cpu").maps(scene(0)[None])
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(bool(ANNOTATORS["mediapipe_face"].missing_package()), reason="needs the extra mediapipe")
def test_a_face_is_drawn_in_silence(capfd):
    frame = cv2.resize(cv2.cvtColor(face(), cv2.COLOR_GRAY2RGB), (200, 200))
    maps = build("mediapipe_face", {"max_faces": 1, "min_confidence": 0.1}).maps(np.stack([frame, frame[:, ::-1]]))
    assert maps.shape == (2, 200, 200, 3) and maps.std() > 5
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def face():
    """A photograph of a face, grey, that comes with scikit-image."""
    from skimage.data import lfw_subset

    return (lfw_subset()[0] * 255).astype(np.uint8)


@pytest.mark.parametrize("name", EXTRAS)
def test_packages_that_are_not_there_are_named_and_how_to_install_them(name, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    library = ANNOTATORS[name].requires.partition(".")[0]
    said = ANNOTATORS[name].missing_package()
    assert f"{name!r} needs {library}" in said
    (extra,) = re.findall(r"pip install 'diffsynth-cli\[(\w+)\]'", said)
    offered = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(requirement.startswith(library) for requirement in offered[extra])


def test_the_docs_name_every_annotator_its_weights_and_its_extra():
    text = (ROOT / "docs/annotators.md").read_text()
    wanted = {f"`{name}`" for name in ANNOTATORS.built_in} | {f"diffsynth-cli[{MAKING[name].extra}]" for name in EXTRAS}
    for name in WITH_WEIGHTS:
        default = str(MAKING[name].model_fields["model"].default)
        files = () if name.startswith("depth") else MAKING[name].files  # any depth model in safetensors will do
        wanted |= {f"`{part}`" for part in (default, *files)}
    assert {part for part in wanted if part not in text} == set()
