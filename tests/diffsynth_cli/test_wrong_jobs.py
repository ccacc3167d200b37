"""Wrong job files and command lines end with exit code 2 and one message that names the mistake."""

from __future__ import annotations

import json
import math
import re
import struct
import zlib
from pathlib import Path

import pytest

from tests.conftest import GOLDEN, scene, write_images
from tests.typing import Cli, Keys, MakeJob

# Changes to a valid job, and part of the message.
WRONG_KEYS = [
    ({"promt": "x"}, "unknown key 'promt'; did you mean 'prompt'?"),
    ({"prompt": ...}, "prompt: missing"),
    ({"prompt": 3}, "prompt: give a text, or texts by the frames or seconds at which they begin, not 3"),
    ({"prompt": {"soon": "snow"}}, '("2.5s") as the keys of prompts, not "soon"'),
    ({"model_id": "/no/such/model"}, "model_id: no such file or folder: /no/such/model"),
    ({"input_video": "nowhere.mp4"}, "input_video: no such file or folder"),
    ({"controlnet_scale": 1}, "controlnet_scale: must be a list, not 1"),
    ({"guidance_scale": "7"}, 'guidance_scale: must be a number, not "7"'),
    ({"keep_audio": 1}, "keep_audio: must be true or false, not 1"),
    ({"frame_height": 513}, "frame_height: must be a multiple of 8, not 513"),
    ({"frame_width": "512"}, 'frame_width: must be a whole number, not "512"'),
    ({"frame_interval": 0}, "frame_interval: must be greater than or equal to 1, not 0"),
    ({"num_inference_steps": 20.5}, "num_inference_steps: must be a whole number"),
    ({"num_inference_steps": 2, "img2img_strength": 0.3}, "img2img_strength: 0.3 of 2 steps is less than one step"),
    ({"num_inference_steps": 51, "scheduler": "lcm"}, "num_inference_steps: lcm takes at most 50 steps, not 51"),
    ({"scheduler": "dpm2"}, "scheduler: "),
    ({"guidance_scale": 0.5}, "guidance_scale: must be greater than or equal to 1"),
    ({"seed_of_noise": True}, "seed_of_noise: must be a whole number, not true"),
    ({"combine_pattern": [-1, 1]}, "combine_pattern: must contain 0"),
    ({"combine_pattern": [0, "refrence_0"]}, "combine_pattern[1]: give offsets"),
    ({"combine_pattern": [0, "reference_0"]}, "frames_reference holds 0 images"),
    ({"controlnet_processor": ["cany"]}, "unknown annotator 'cany'; did you mean 'canny'?"),
    ({"controlnet_processor": []}, "give one annotator per ControlNet (1, not 0)"),
    ({"controlnet_processor": [{"name": "canny", "low": 3}]}, "did you mean 'low_threshold'?"),
    ({"controlnet_processor": ["shuffle"]}, "style_image: missing"),
    ({"controlnet_processor": ["file:no/maps"]}, "controlnet_processor[0]: no such file or folder"),
    ({"controlnet_scale": [1.0, 0.5]}, "controlnet_scale: give one per ControlNet (1, not 2), or none"),
    ({"smoother": "TemporalMean"}, "did you mean 'TemporalMeanSmoother'?"),
    ({"smoother": "TemporalMeanSmoother", "smoother_config": {"radus": 2}}, "did you mean 'radius'?"),
    ({"smoother_config": {"radius": 2}}, "smoother_config: needs smoother, which is not set"),
    ({"start_time": 3.0, "end_time": 2.0}, "end_time: 2.0 must be after start_time 3.0"),
    ({"device": "gpu"}, "device: unknown device 'gpu'; choose auto, cpu, cuda, cuda:N or mps"),
    ({"model_id": ""}, "model_id: must not be empty"),
    ({"combine_pattern": []}, "combine_pattern: must not be empty"),
    ({"combine_pattern": [0] * 65}, "combine_pattern: must hold at most 64, not 65"),
    ({"keyframes": "every"}, 'keyframes: give a number from 1, a list of frame numbers from 0, or "auto", not "every"'),
    ({"keyframes": 0}, "keyframes: give a number from 1"),
    ({"keyframes": [-1]}, "keyframes: give a number from 1"),
    ({"embeddings": [{"path": "a.safetensors", "token": "a b"}]}, "embeddings[0]: token: must be one word"),
    ({"embeddings": [3]}, "embeddings[0]: must be an object, not 3"),
    ({"smoother": "PySynthSmoother", "smoother_config": 3}, "smoother_config: must be an object, not 3"),
    ({"loras": [{"file": "a.safetensors"}]}, "loras[0]: path: missing"),
    ({"attention": "shard"}, "attention: "),
    ({"model_id": "dream.safetensors"}, "model_id: no such file"),
    ({"model_id": "dream.ckpt"}, "dream.ckpt is a pickle, which can run code on this machine"),
    ({"loras": [{"path": "detail.pt"}]}, "detail.pt is a pickle, which can run code on this machine"),
    ({"embeddings": [{"token": "cat"}]}, "embeddings[0]: path: missing"),
    ({"embeddings": ["cat.safetensors"]}, "embeddings[0]: no such file"),
    ({"loras": ["detail.safetensors"]}, "loras[0]: no such file"),
    ({"smoother": "EbsynthSmoother", "smoother_config": {"patch_size": 20}}, "smoother_config: patch_size: "),
    ({"start_time": 1e18}, "start_time: must be less than or equal to 1000000000, not 1e+18"),
    ({"end_time": math.inf}, "end_time: must be a finite number, not Infinity"),
    ({"fps": 1e-300}, "fps: must be greater than or equal to 0.01, not 1e-300"),
    ({"fps": 1e-6}, "fps: must be greater than or equal to 0.01, not 1e-06"),
    ({"frame_interval": 10**20}, "frame_interval: must be less than or equal to 1000000000"),
    ({"combine_pattern": [0, 10**30]}, "combine_pattern[1]: give offsets"),
    ({"keyframes": [0, -1]}, 'keyframes: give a number from 1, a list of frame numbers from 0, or "auto", not [0, -1]'),
    ({"keyframes": []}, "keyframes: give a number"),
    ({"scenes": "often"}, 'scenes: give "auto", or the first frame of each scene after the first, ascending from 1'),
    ({"scenes": [5, 3]}, "ascending from 1, not [5, 3]"),
    ({"scenes": [3, 3]}, "ascending from 1, not [3, 3]"),
    ({"scenes": [0, 3]}, "ascending from 1, not [0, 3]"),
    ({"scenes": [3, 6]}, "scenes: the frames are numbered 0 to 5, so no scene begins at 6"),
    ({"scenes": [2, 4], "keyframes": [0, 4]}, "keyframes: none is in the scene that begins at frame 2"),
    ({"smoother": "EbsynthSmoother", "smoother_config": {"postprocessing": {"contrast": math.nan}}},
     "smoother_config: postprocessing.contrast: must be a finite number, not NaN"),
    ({"controlnet_processor": [{"name": "file", "path": "job.json", "near": 1e308, "far": 0}]},
     "controlnet_processor[0]: near: must be less than"),
]  # fmt: skip

WRONG_TEXTS = [
    ("", "not JSON"),
    ('{"prompt": "x",}', "line 1, column"),
    ("[1, 2]", "must be a JSON object"),
    ('{"prompt": "x", "prompt": "y"}', "the key 'prompt' appears twice"),
    (f'{{"fps": {"1" * 5000}}}', "the number 11111111111111111111... has 5000 digits"),
    ("[" * 100_000, "nested too deeply"),
]


@pytest.mark.parametrize(("keys", "expected"), WRONG_KEYS, ids=lambda value: str(value)[:40])
def test_wrong_key_is_named(keys: Keys, expected: str, make_job: MakeJob, cli: Cli) -> None:
    code, output = cli("run", make_job(**keys))
    assert code == 2, output
    assert expected in output
    assert not re.search(
        r"Traceback|instance of|dictionary|match pattern|String|literal|constrained|\.\*|\\S", output
    ), output


@pytest.mark.parametrize(("text", "expected"), WRONG_TEXTS)
def test_wrong_file_is_explained(text: str, expected: str, tmp_path: Path, cli: Cli) -> None:
    path = tmp_path / "job.json"
    path.write_text(text)
    code, output = cli("run", path)
    assert code == 2 and expected in output and "Traceback" not in output


def test_a_single_mistake_is_not_counted(make_job: MakeJob, cli: Cli) -> None:
    job = make_job(promt="x")
    assert cli("run", job) == (2, f"error: {job}: unknown key 'promt'; did you mean 'prompt'?\n")


def test_all_mistakes_are_reported_at_once(make_job: MakeJob, cli: Cli) -> None:
    code, output = cli("run", make_job(promt="x", frame_height=13, combine_pattern=[1], controlnet_scale=[1, 2]))
    assert code == 2
    for part in ("4 mistakes", "promt", "frame_height", "combine_pattern", "controlnet_scale"):
        assert part in output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("run", "nowhere.json"), "no such job file"),
        (("rum", "job.json"), "No such command"),
        (("run",), "Missing argument"),
        (("export", "job.json", "--codec", "h266"), "unknown codec 'h266'"),
        (("init", "restyle", "clip.mp4"), "unknown task 'restyle'"),
    ],
)
def test_wrong_command_line_is_explained(arguments: tuple[str, ...], expected: str, cli: Cli) -> None:
    code, output = cli(*arguments)
    assert code == 2 and expected in output and "Traceback" not in output


def test_set_is_checked_like_the_file(make_job: MakeJob, cli: Cli) -> None:
    job = make_job()
    assert "--set steps: give key=value" in cli("extract", job, "--set", "steps")[1]
    code, output = cli("extract", job, "--set", "num_inference_steps=many")
    assert code == 2 and 'num_inference_steps: must be a whole number, not "many"' in output


def test_a_wrong_job_starts_and_deletes_nothing(tmp_path: Path, make_job: MakeJob, cli: Cli) -> None:
    assert cli("run", make_job(frame_interval=0))[0] == 2
    assert not (tmp_path / "out").exists()


def test_missing_model_parts_are_named(tmp_path: Path, make_job: MakeJob, cli: Cli) -> None:
    (tmp_path / "half").mkdir()
    (tmp_path / "half/model_index.json").write_text(json.dumps({}))
    job = make_job(model_id=str(tmp_path / "half"))
    code, output = cli("run", job)
    assert code == 2 and "unet/diffusion_pytorch_model.safetensors" in output and "Traceback" not in output
    assert not (tmp_path / "out").exists()


def test_controlnet_of_another_size_is_refused(tmp_path: Path, make_job: MakeJob, cli: Cli) -> None:
    config = json.loads((GOLDEN / "models/control0/config.json").read_text())
    from diffusers import ControlNetModel

    other = {**config, "cross_attention_dim": 16}
    ControlNetModel.from_config(other).save_pretrained(tmp_path / "other")
    code, output = cli("run", make_job(controlnet_model_id=[str(tmp_path / "other")]), "-q")
    assert code == 1 and "does not fit" in output and "cross_attention_dim" in output


def test_images_of_two_sizes_are_refused(tmp_path: Path, make_job: MakeJob, cli: Cli) -> None:
    write_images(tmp_path / "mixed", [scene(0), scene(1, 72, 64)])
    code, output = cli("extract", make_job(input_video="mixed"))
    assert code == 2 and "must have the same size" in output


def huge_image(path: Path) -> Path:
    """A small PNG file whose header states 20000×20000 pixels."""
    write_images(path.parent / f"of {path.stem}", [scene(0)])
    data = bytearray((path.parent / f"of {path.stem}/0.png").read_bytes())
    data[16:24] = struct.pack(">II", 20_000, 20_000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("what", ["absent.mp4", "absent/", "empty", "text.mp4", "huge", "huge/1.png"])
@pytest.mark.parametrize("command", ["run", "smooth", "smooth guide", "metrics", "init", "demo", "ebsynth"])
def test_a_missing_or_unreadable_input_is_a_usage_error(
    command: str, what: str, tmp_path: Path, make_job: MakeJob, cli: Cli
) -> None:
    job = make_job(input_video=str(tmp_path / what))
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("no video")
    huge_image(tmp_path / "huge/1.png")
    path, output = tmp_path / what, tmp_path / "o.mp4"
    arguments = {
        "run": ("run", job),
        "smooth": ("smooth", path, "-o", output),
        "smooth guide": ("smooth", path, tmp_path / "images", "-o", output),
        "metrics": ("metrics", tmp_path / "images", path),
        "init": ("init", "text_guided", path, "-o", tmp_path / "project"),
        "demo": ("demo", "--video", path, "-o", tmp_path / "demo"),
        "ebsynth": ("ebsynth", "--style", path, "--guide", path, path, "-o", tmp_path / "o.png"),
    }[command]
    code, message = cli(*arguments)
    assert code == 2 and message.count("error:") == 1 and what.strip("/") in message, message
    assert not output.exists() and not list(tmp_path.glob("*.cache.zarr"))
