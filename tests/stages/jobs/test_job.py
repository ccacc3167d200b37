"""Job files: those of DiffSynth, defaults, overrides and paths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stages import extract
from stages.annotators import ANNOTATORS
from stages.annotators.depth import DepthOptions
from stages.annotators.files import MapFiles
from stages.annotators.plain import TileOptions
from stages.base.errors import UsageError
from stages.diffusion.attention_backends import BACKENDS
from stages.diffusion.sampler import SAMPLERS
from stages.jobs.job import Job, json_schema
from stages.jobs.job_file import check, read_job
from stages.smoothers import SMOOTHERS, build
from stages.smoothers.pysynth import PySynth
from tests.typing import Keys

MINIMAL: Keys = {"model_id": "owner/model", "input_video": "v.mp4", "output_path": "out", "prompt": "winter"}

# The keys of DiffSynth's published config files, with values of the same kind.
DIFFSYNTH: Keys = {
    "model_id": "../models/DreamShaper7",
    "controlnet_model_id": ["../models/depth", "../models/openpose", "../models/shuffle", "../models/tile"],
    "controlnet_processor": [
        "ControlnetImageProcesserDepth", "VideoControlnetImageProcesserOpenpose",
        "ControlnetImageProcesserShuffle", "ControlnetImageProcesserTile",
    ],
    "controlnet_scale": [1.0, 0.0, 1.0, 1],
    "style_image": "style.jpg",
    "smoother": "VideoPatchMatchSmoother",
    "smoother_config": {
        "engine_name": "Ebsynth", "bin_path": "bin/ebsynth_nnf", "cache_path": "cache",
        "postprocessing": {"contrast": 1.5, "sharpness": 5.0},
    },
    "input_video": "../data/raw.webm", "frame_height": 544, "frame_width": 960, "frame_interval": 1,
    "frame_maximum_count": 10, "prompt": "a diver", "negative_prompt": "", "frames_reference": ["a.png"],
    "num_inference_steps": 20, "seed_of_noise": 0, "combine_pattern": [-10000, "reference_0", -1, 0, 1],
    "img2img_strength": 1.0, "ignore_smoother_steps": 1, "smoother_interval": 5, "extra_deflickering_range": 60,
    "output_path": "output_video", "post_smoother": "PySynthSmoother",
    "post_smoother_config": {"gpu_id": 0, "speed": "slowest", "window_size": 60},
}  # fmt: skip


def write(folder: Path, data: Keys) -> Path:
    path = folder / "job.json"
    path.write_text(json.dumps(data))
    return path


def test_diffsynths_own_file_is_read_unmodified(tmp_path: Path) -> None:
    job, warnings = read_job(write(tmp_path, DIFFSYNTH))
    assert [item.name for item in job.controlnet_processor] == ["depth", "openpose_video", "shuffle", "tile"]
    assert job.controlnet_processor[0] == DepthOptions(name="depth", normalize="max")
    assert isinstance(job.controlnet_processor[3], TileOptions)
    assert job.networks_run == [True, False, True, True]
    assert warnings == [
        "ignored, since they are no longer needed: smoother_config.bin_path, smoother_config.cache_path, "
        "smoother_config.engine_name, "
        "post_smoother_config.gpu_id",
        "extra_deflickering_range: ignored, since post_smoother is set",
    ]


@pytest.mark.parametrize(
    ("name", "means"),
    [
        ("ControlnetImageProcesserDepth", {"name": "depth", "normalize": "max"}),
        ("ControlnetImageProcesserHED", {"name": "hed"}),
        ("ControlnetImageProcesserShuffle", {"name": "shuffle", "resolution": 512}),
        ("ControlnetImageProcesserTile", {"name": "tile"}),
        ("ControlnetImageProcesserPose", {"name": "openpose"}),
        ("VideoControlnetImageProcesserOpenpose", {"name": "openpose_video", "resolution": 512}),
        ("VideoControlnetImageProcesserDepth", {"name": "depth_video", "normalize": "max"}),
    ],
)
def test_diffsynths_names_of_annotators_do_what_diffsynth_did(name: str, means: Keys) -> None:
    data = MINIMAL | {"controlnet_model_id": ["a/b"] * 3, "style_image": "s.png"}
    model = {} if name.endswith(("Shuffle", "Tile")) else {"model": "of/mine"}
    job, problems = check(data | {"controlnet_processor": [name, {"name": name, **model}, means]})
    assert job is not None and problems == []
    theirs, with_options, ours = job.controlnet_processor
    assert theirs == ours
    assert with_options == ours.model_copy(update=model)


@pytest.mark.parametrize(
    ("name", "config", "ignored"),
    [
        ("PySynthSmoother", {"speed": "fastest", "window_size": 10_000}, []),
        ("PySynthSmoother", {"num_iter": 3, "patch_size": 11, "guide_weight": 10.0, "gpu_id": 0}, ["gpu_id"]),
        (
            "PySynthSmoother",
            {"ebsynth_config": {"num_iter": 3, "threads_per_block": 8, "gpu_id": 0}},
            ["ebsynth_config.gpu_id", "ebsynth_config.threads_per_block"],
        ),
        (
            "VideoPatchMatchSmoother",
            {"engine_name": "Pytorch", "bin_path": None, "cache_path": "cache", "num_iter": 1},
            ["cache_path", "engine_name", "num_iter"],
        ),
        (
            "EbsynthSmoother",
            {"bin_path": "ebsynth", "cache_path": "cache", "smooth_index": [-1, 1], "n_jobs": 16},
            ["bin_path", "cache_path", "n_jobs"],
        ),
        ("EbsynthSmoother", {}, []),
    ],
)
def test_options_of_diffsynths_smoothers_are_read_or_named_once(
    tmp_path: Path, name: str, config: Keys, ignored: list[str]
) -> None:
    job, warnings = read_job(write(tmp_path, MINIMAL | {"smoother": name, "smoother_config": config}))
    expected = ", ".join(f"smoother_config.{key}" for key in ignored)
    assert warnings == ([f"ignored, since they are no longer needed: {expected}"] if ignored else [])
    assert build(name, job.smoother_config, [], []) is not None


def test_older_files_may_put_matching_options_at_the_top_level() -> None:
    older = PySynth.model_validate({"num_iter": 3, "ebsynth_config": {"patch_size": 11}})
    newer = PySynth.model_validate({"ebsynth_config": {"num_iter": 3, "patch_size": 11}})
    assert older == newer


@pytest.mark.parametrize("options", [{"patch_size": 20}, {"num_iter": 0}, {"guide_weight": -1.0}, {"patchsize": 21}])
def test_mistakes_in_matching_options_are_named(options: Keys) -> None:
    data = MINIMAL | {"smoother": "PySynthSmoother", "smoother_config": {"ebsynth_config": options}}
    _, problems = check(data)
    assert len(problems) == 1 and f"ebsynth_config.{next(iter(options))}" in problems[0]


@pytest.mark.parametrize("key", ["output_path", "cache"])
def test_a_folder_that_no_file_system_can_hold_is_a_mistake(key: str) -> None:
    assert check({**MINIMAL, key: "a\0b"}) == (None, [f"{key}: must not contain the character NUL"])


@pytest.mark.parametrize("name", ["./~.mp4", "./~nobody/a.mp4", "~nobody-of-this-name/a.mp4"])
def test_a_tilde_that_names_no_home_is_kept(tmp_path: Path, name: str) -> None:
    job, _ = read_job(write(tmp_path, MINIMAL | {"input_video": name}))
    assert job.input_video == str(tmp_path / name)


def test_relative_paths_are_relative_to_the_job_file(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    job, _ = read_job(write(folder, DIFFSYNTH | {"controlnet_processor": ["tile", "tile", "shuffle", "file:maps"]}))
    assert job.input_video == str(folder / "../data/raw.webm")
    assert job.model_id == str(folder / "../models/DreamShaper7")
    assert job.frames_reference == [str(folder / "a.png")]
    annotator = job.controlnet_processor[3]
    assert isinstance(annotator, MapFiles) and annotator.path == str(folder / "maps")


def test_single_files_are_paths_whether_they_are_there_or_not(tmp_path: Path) -> None:
    data = MINIMAL | {"model_id": "a.safetensors", "vae": "vae/b.safetensors", "embeddings": ["c.safetensors"]}
    job, _ = read_job(write(tmp_path, data))
    assert (job.model_id, job.vae) == (str(tmp_path / "a.safetensors"), str(tmp_path / "vae/b.safetensors"))
    assert (job.embeddings[0].path, job.embeddings[0].word) == (str(tmp_path / "c.safetensors"), "c")


def test_every_pickle_is_named_unless_they_are_allowed(tmp_path: Path) -> None:
    data = MINIMAL | {
        "model_id": "a.ckpt", "vae": "b.pt", "loras": ["c.bin", "d.safetensors"], "embeddings": ["e.pt"],
        "controlnet_model_id": ["f.pth"], "controlnet_processor": ["canny"],
    }  # fmt: skip
    with pytest.raises(UsageError) as error:
        read_job(write(tmp_path, data))
    assert all(name in error.value.message for name in ("a.ckpt", "b.pt", "loras[0]", "embeddings[0]", "f.pth"))
    assert error.value.message.count("is a pickle") == 5
    with pytest.raises(UsageError, match=r"unknown key 'promt'") as error:  # with another mistake in the file, too
        read_job(write(tmp_path, data | {"promt": "x"}))
    assert error.value.message.count("is a pickle") == 5
    assert read_job(write(tmp_path, data | {"allow_pickle": True}))[0].allow_pickle


def test_hub_ids_are_no_paths_unless_such_a_folder_lies_there(tmp_path: Path) -> None:
    assert read_job(write(tmp_path, MINIMAL))[0].model_id == "owner/model"
    (tmp_path / "owner/model").mkdir(parents=True)
    assert read_job(write(tmp_path, MINIMAL))[0].model_id == str(tmp_path / "owner/model")


def test_overrides_replace_keys_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, MINIMAL | {"smoother": "TemporalMeanSmoother"})
    overrides = [
        'prompt=a "quoted" fox', "num_inference_steps=7", "smoother_config.radius=3", "output_path=elsewhere",
        "combine_pattern=[-1, 0]",
    ]  # fmt: skip
    job, _ = read_job(path, overrides)
    assert job.prompt == 'a "quoted" fox'
    assert job.num_inference_steps == 7
    assert job.smoother_config == {"radius": 3}
    assert job.output_path == str(tmp_path / "elsewhere")
    assert job.combine_pattern == [-1, 0]


def test_scales_default_to_one() -> None:
    job, problems = check(MINIMAL | {"controlnet_model_id": ["a/b", "a/c"], "controlnet_processor": ["canny", "tile"]})
    assert job is not None and problems == [] and job.controlnet_scale == [1.0, 1.0]


def test_written_config_is_a_job_file_that_means_the_same(tmp_path: Path) -> None:
    job, _ = read_job(write(tmp_path, DIFFSYNTH | {"controlnet_processor": ["canny", "tile", "shuffle", "file:m"]}))
    again, problems = check(json.loads(json.dumps(job.model_dump())))
    assert problems == [] and again == job


def test_every_key_is_documented() -> None:
    assert all(field.description for field in Job.model_fields.values())


def test_schema_describes_every_key() -> None:
    schema: Any
    schema, problems = json_schema()
    assert problems == []
    assert set(schema["properties"]) == set(Job.model_fields)
    assert set(schema["required"]) == {"model_id", "input_video", "output_path", "prompt"}
    assert schema["properties"]["num_inference_steps"]["maximum"] == 1000
    assert {"type": "string"} in schema["properties"]["controlnet_processor"]["items"]["anyOf"]  # "canny" for short
    listed = json.dumps(schema)
    for registry in (ANNOTATORS, SMOOTHERS, SAMPLERS, BACKENDS):
        assert all(json.dumps(name) in listed for name in registry)
    for options in (*ANNOTATORS.values(), *SMOOTHERS.values()):
        assert all(json.dumps(option) in listed for option in options.model_fields)


def test_a_finished_stage_no_longer_needs_its_files(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    with pytest.raises(UsageError, match="input_video: no such file"):
        read_job(path, stages=[extract.STAGE])
    receipt = tmp_path / "out/cache.zarr/receipts/extract.json"
    receipt.parent.mkdir(parents=True)
    receipt.write_text("{}")
    read_job(path, stages=[extract.STAGE])


def test_keys_that_an_earlier_version_did_not_know_are_left_out_at_their_defaults() -> None:
    given = {"model_id": "mini", "prompt": "p", "input_video": "v", "output_path": "o"}
    keys = ["prompt", "noise", "mask_feather"]
    job = Job.model_validate(given)
    assert set(job.inputs(keys, {})) == set(keys)
    assert set(job.inputs(keys, {"prompt": "p"})) == {"prompt"}
    assert set(job.inputs(keys, {"prompt": "p", "noise": "frame"})) == {"prompt", "noise"}
    assert set(Job.model_validate({**given, "noise": "warped"}).inputs(keys, {"prompt": "p"})) == {"prompt", "noise"}
