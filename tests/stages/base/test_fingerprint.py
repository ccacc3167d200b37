"""Changes that make stages stale."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeAlias

import pytest

from stages.all_stages import stages_of
from stages.base.engine import stage_inputs
from stages.base.errors import DiffSynthError
from stages.base.fingerprint import Inputs, changes, fingerprint, identify
from stages.jobs.job_file import check
from tests.conftest import STAGES
from tests.typing import Keys

Recorded: TypeAlias = Callable[[str], Inputs | None]


class MakeInputs(Protocol):
    """What each stage of a job with these keys depends on. `recorded`: what it depended on before."""

    def __call__(self, recorded: Recorded = ..., /, **keys: object) -> dict[str, Inputs]: ...


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "v.mp4"
    path.write_bytes(b"one")
    return path


@pytest.fixture
def inputs(video: Path, tmp_path: Path) -> MakeInputs:
    def make(recorded: Recorded = lambda stage: None, /, **keys: object) -> dict[str, Inputs]:
        given: Keys = {
            "model_id": "owner/model", "controlnet_model_id": ["a/b"], "controlnet_processor": ["canny"],
            "input_video": str(video), "output_path": str(tmp_path / "out"), "prompt": "winter",
        } | keys  # fmt: skip
        job, problems = check(given)
        assert job is not None and problems == []
        stages = stages_of(job)
        return {name: stage_inputs(stage, stages, job, recorded) for name, stage in stages.items()}

    return make


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        ({"frame_height": 64}, STAGES),
        ({"controlnet_processor": [{"name": "canny", "low_threshold": 50}]}, ("control", "render", "deflicker")),
        ({"prompt": "summer"}, ("render", "deflicker")),
        ({"controlnet_scale": [0.5]}, ("render", "deflicker")),
        ({"controlnet_scale": [0.0]}, ("control", "render", "deflicker")),  # the map is not made then
        ({"post_smoother": "TemporalMeanSmoother"}, ("deflicker",)),
        ({"extra_deflickering_range": 2}, ("deflicker",)),
        ({"device": "cuda"}, ()),
        ({"allow_pickle": True}, ()),
        ({"fps": 12.0, "keep_audio": False}, ()),
        ({"output_path": "/elsewhere"}, ()),
        ({"style_image": "/not/used.png"}, ()),  # no annotator works on it
    ],
)
def test_a_changed_key_makes_exactly_the_stages_that_depend_on_it_stale(
    inputs: MakeInputs, change: Keys, stale: tuple[str, ...]
) -> None:
    before, after = inputs(), inputs(**change)
    for stage in STAGES:
        found = changes(stage, before[stage], after[stage])
        assert bool(found) == (stage in stale) == (fingerprint(before[stage]) != fingerprint(after[stage]))


def test_an_extra_range_that_a_post_smoother_takes_the_place_of_makes_nothing_stale(inputs: MakeInputs) -> None:
    post = {"post_smoother": "TemporalMeanSmoother"}
    before, after = inputs(**post), inputs(**post, extra_deflickering_range=2)
    assert changes("deflicker", before["deflicker"], after["deflicker"]) == []
    (change,) = changes("deflicker", after["deflicker"], inputs(extra_deflickering_range=3)["deflicker"])[:1]
    assert change.key in ("extra_deflickering_range", "post_smoother")


def test_a_change_names_its_key_with_old_and_new_value(inputs: MakeInputs) -> None:
    before, after = inputs(), inputs(prompt="summer", frame_height=64)
    assert [str(change) for change in changes("render", before["render"], after["render"])] == [
        "frame_height: null → 64",
        'prompt: "winter" → "summer"',
    ]
    after = inputs(controlnet_processor=[{"name": "canny", "low_threshold": 50}])
    (change,) = changes("control", before["control"], after["control"])
    assert str(change) == "controlnet_processor[0].low_threshold: 100 → 50"


def test_other_content_under_the_same_name_is_a_change(inputs: MakeInputs, video: Path) -> None:
    before = inputs()
    video.write_bytes(b"two")
    (change,) = changes("extract", before["extract"], inputs()["extract"])
    assert str(change) == f"input_video: the content of {video} changed"


def test_the_same_content_elsewhere_or_later_is_none(inputs: MakeInputs, video: Path, tmp_path: Path) -> None:
    before = inputs()
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(video.read_bytes())
    os.utime(copy, (1, 1))
    assert changes("extract", before["extract"], inputs(input_video=str(copy))["extract"]) == []


def test_an_unchanged_file_is_not_read_again(inputs: MakeInputs, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = inputs()
    stat = video.stat()
    video.write_bytes(b"two")  # same size; put the date back: only reading could tell
    os.utime(video, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert changes("extract", before["extract"], inputs(before.get)["extract"]) == []
    assert changes("extract", before["extract"], inputs()["extract"]) != []


def test_a_removed_input_counts_as_unchanged(inputs: MakeInputs, video: Path) -> None:
    before = inputs()
    video.unlink()
    assert changes("deflicker", before["deflicker"], inputs(before.get)["deflicker"]) == []
    with pytest.raises(DiffSynthError, match="no such file"):
        inputs()


def test_a_wrong_path_does_not_count_as_unchanged(inputs: MakeInputs, video: Path, tmp_path: Path) -> None:
    first = inputs()
    video.unlink()
    moved = str(tmp_path / "elsewhere/v.mp4")
    assert not changes("extract", first["extract"], inputs(first.get, input_video=moved)["extract"])
    with pytest.raises(DiffSynthError, match="no such file"):
        inputs(first.get, input_video=str(tmp_path / "typo.mp4"))


def test_images_that_changed_places_are_found_without_a_new_date(tmp_path: Path) -> None:
    for index in range(2):
        (tmp_path / f"{index}.png").write_bytes(b"%d" % index)
    known = identify(tmp_path)
    for old, new in (("0.png", "x"), ("1.png", "0.png"), ("x", "1.png")):
        stat = (tmp_path / old).stat()
        (tmp_path / old).rename(tmp_path / new)
        os.utime(tmp_path / new, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert identify(tmp_path, known)["sha256"] != known["sha256"]


def test_a_textual_inversion_is_identified_by_content_and_token(inputs: MakeInputs, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"one")
    path = str(tmp_path / "a.safetensors")
    before = inputs(embeddings=[path])["render"]
    assert changes("render", before, inputs(embeddings=[{"path": path, "token": "a"}])["render"]) == []
    (change,) = changes("render", before, inputs(embeddings=[str(tmp_path / "b.safetensors")])["render"])
    assert str(change) == 'embeddings[0].token: "a" → "b"'
    (tmp_path / "a.safetensors").write_bytes(b"two")
    (change,) = changes("render", before, inputs(embeddings=[path])["render"])
    assert str(change) == f"embeddings[0].file: the content of {path} changed"


def test_a_single_file_is_identified_by_content_and_neighbouring_tokenizer(inputs: MakeInputs, tmp_path: Path) -> None:
    path = tmp_path / "models/a.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"one")
    before = inputs(model_id=str(path))
    assert changes("render", before["render"], inputs(before.get, model_id=str(path))["render"]) == []
    path.write_bytes(b"two")
    (change,) = changes("render", before["render"], inputs(model_id=str(path))["render"])
    assert str(change) == f"model_id: the content of {path} changed"
    (path.parent / "tokenizer").mkdir()
    (path.parent / "tokenizer/vocab.json").write_text("{}")
    before = inputs(model_id=str(path))
    (path.parent / "tokenizer/vocab.json").write_text('{"a": 0}')
    (change,) = changes("render", before["render"], inputs(before.get, model_id=str(path))["render"])
    assert "model_id.tokenizer" in str(change)


def test_a_folder_is_identified_by_names_and_contents(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(b"x")
    assert identify(tmp_path / "a")["sha256"] == identify(tmp_path / "b")["sha256"]
    (tmp_path / "b/.DS_Store").write_bytes(b"looked at")
    assert identify(tmp_path / "a")["sha256"] == identify(tmp_path / "b")["sha256"]
    (tmp_path / "b/0.png").rename(tmp_path / "b/1.png")
    assert identify(tmp_path / "a")["sha256"] != identify(tmp_path / "b")["sha256"]
