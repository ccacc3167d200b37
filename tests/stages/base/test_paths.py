"""Keys of a path type are resolved, checked, protected and fingerprinted because of their type alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Protocol

import pytest
from pydantic import Field

from stages.all_stages import all_stages
from stages.base.engine import Stage, stage_inputs
from stages.base.errors import UsageError
from stages.base.fingerprint import changes
from stages.base.mistakes import Strict
from stages.base.paths import (
    InputFile,
    ModelName,
    OutputFolder,
    TensorFile,
    WeightsName,
    find_paths,
    identified,
    replace_paths,
    value_at,
)
from stages.jobs import job_file
from stages.jobs.job import Job
from stages.jobs.job_file import input_paths, read_job


class Item(Strict):
    path: TensorFile = Field(serialization_alias="file")
    scale: float = 1.0


class Weighted(Strict):
    files: ClassVar[tuple[str, ...]] = ("a.bin",)
    model: WeightsName = "owner/weights"


class Model(Strict):
    video: InputFile
    images: list[InputFile] = Field(default_factory=list)
    model: ModelName | None = None
    items: list[Item] = Field(default_factory=list)
    weighted: list[Weighted | Item] = Field(default_factory=list)
    output: OutputFolder = "out"
    prompt: str = "images/a.png"  # text, even if it looks like a path


def test_every_path_is_found_where_it_is() -> None:
    model = Model(
        video="v.mp4", images=["a", ""], model="b/c", items=[Item(path="d")], weighted=[Weighted(), Item(path="e")]
    )
    assert [(place.label, place.name) for place in find_paths(model)] == [
        ("video", "v.mp4"),
        ("images[0]", "a"),
        ("model", "b/c"),
        ("items[0]", "d"),
        ("weighted[0].model", "owner/weights"),
        ("weighted[1]", "e"),
        ("output", "out"),
    ]


def test_the_same_model_comes_back_with_other_paths() -> None:
    model = Model(video="v.mp4", items=[Item(path="d", scale=2.0)])
    changed = replace_paths(model, lambda place: f"x/{place.name}")
    assert changed == Model(video="x/v.mp4", items=[Item(path="x/d", scale=2.0)], output="x/out")
    assert model.video == "v.mp4"


def test_names_of_hub_models_are_no_paths_unless_they_lie_there(tmp_path: Path) -> None:
    (tmp_path / "owner/here").mkdir(parents=True)
    kind = find_paths(Model(video="v", model="a"))[1].kind
    for name in ("owner/model", "mini", "mini/canny"):
        assert kind.resolve(name, tmp_path) == name and kind.local(name) is None
    for name in ("owner/here", "./owner", "x.safetensors", "/x"):
        assert kind.local(kind.resolve(name, tmp_path)) == tmp_path / name


def test_files_are_identified_by_content_and_the_rest_by_value(tmp_path: Path) -> None:
    for name in ("v.mp4", "d", "w/a.bin", "w/other.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"one")
    model = Model(
        video=str(tmp_path / "v.mp4"), items=[Item(path=str(tmp_path / "d"))], model="owner/model",
        weighted=[Weighted(model=str(tmp_path / "w"))],
    )  # fmt: skip
    keys = ("video", "items", "model", "weighted", "output")
    before = identified(model, keys, {})
    assert tuple(before) == keys
    assert (before["model"], before["output"]) == ("owner/model", "out")
    assert value_at(before, ("items", 0, "scale")) == 1.0
    assert value_at(before, ("items", 0, "file", "sha256")) == value_at(before, ("video", "sha256"))
    (tmp_path / "w/other.bin").write_bytes(b"not read")
    assert identified(model, keys, {}) == before
    (tmp_path / "w/a.bin").write_bytes(b"two")
    assert identified(model, keys, {})["weighted"] != before["weighted"]
    (tmp_path / "d").unlink()
    assert identified(model, ("items",), before)["items"] == before["items"]  # believed


@pytest.mark.parametrize("where", [("a", 1), ("b",), ("a", "c"), ("a", 0, "c")])
def test_no_value_where_there_is_none(where: tuple[str | int, ...]) -> None:
    assert value_at({"a": [1]}, where) is None


# --- a new key -----------------------------------------------------------------------------------------


class Extended(Job):
    lut: InputFile | None = None
    """One line for a key that names a file."""
    adapters: list[ModelName] = Field(default_factory=list)
    """And one for a list of models."""


class ReadExtended(Protocol):
    """Reads a job file that has these keys besides the required ones; `overrides` are those of the command line."""

    def __call__(self, *overrides: str, **keys: object) -> tuple[Extended, Stage[Job]]: ...


@pytest.fixture
def extended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReadExtended:
    """Read a job of the class Extended, whose keys a stage reads."""
    stage = replace(all_stages()["extract"], reads=("input_video", "lut", "adapters"))
    monkeypatch.setattr(job_file, "Job", Extended)
    (tmp_path / "v.mp4").write_bytes(b"video")

    def read(*overrides: str, **keys: object) -> tuple[Extended, Stage[Job]]:
        content = {"model_id": "a/b", "input_video": "v.mp4", "output_path": "out", "prompt": "p", **keys}
        (tmp_path / "job.json").write_text(json.dumps(content))
        job, _ = read_job(tmp_path / "job.json", overrides, [stage])
        assert isinstance(job, Extended)
        return job, stage

    return read


def test_a_new_path_key_needs_one_line(tmp_path: Path, extended: ReadExtended) -> None:
    with pytest.raises(UsageError) as error:
        extended(lut="film.cube", adapters=["hub/id", "a.ckpt"], promt="")
    for mistake in ("lut: no such file or folder", "adapters[1]: ", "a.ckpt is a pickle", "unknown key 'promt'"):
        assert mistake in error.value.message
    for name in ("film.cube", "a.safetensors"):
        (tmp_path / name).write_bytes(b"one")
    job, stage = extended(lut="film.cube", adapters=["hub/id", "a.safetensors"])
    assert (job.lut, job.adapters) == (str(tmp_path / "film.cube"), ["hub/id", str(tmp_path / "a.safetensors")])
    assert {tmp_path / "film.cube", tmp_path / "a.safetensors"} <= set(input_paths(job))
    before = stage_inputs(stage, {}, job, lambda stage: None)
    (tmp_path / "film.cube").write_bytes(b"two")
    (change,) = changes("extract", before, stage_inputs(stage, {}, job, {"extract": before}.get))
    assert str(change) == f"lut: the content of {tmp_path / 'film.cube'} changed"


def test_paths_on_the_command_line_are_relative_to_the_current_folder(
    tmp_path: Path, extended: ReadExtended, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "film.cube").write_bytes(b"")
    monkeypatch.chdir(folder)
    assert extended("lut=film.cube")[0].lut == str(folder / "film.cube")
