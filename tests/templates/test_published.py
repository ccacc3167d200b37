"""DiffSynth's five published config files keep every value and run from video to video."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from stages.annotators import published_names
from stages.base.cache import FrameCache
from stages.jobs.job_file import read_job
from stages.video import Encoding, encode, open_source
from templates import PUBLISHED
from tests.conftest import scene
from tests.templates.conftest import Tiny
from tests.typing import Cli, Keys

FOLDER = Path(__file__).parents[2] / "templates/published"
FRAMES = 3

DEPTH, HED, SHUFFLE, TILE = (f"ControlnetImageProcesser{name}" for name in ("Depth", "HED", "Shuffle", "Tile"))
OPENPOSE = "VideoControlnetImageProcesserOpenpose"
SAME: Keys = {
    "smoother": "PySynthSmoother", "frame_interval": 1, "frame_maximum_count": 10, "seed_of_noise": 0,
    "frames_reference": [], "ignore_smoother_steps": 0, "smoother_interval": 1, "output_path": "output_video",
    "img2img_strength": 1.0, "negative_prompt": "",
}  # fmt: skip
WHOLE = {"speed": "fastest", "window_size": 10000}
BLENDED = {"speed": "fastest", "window_size": 30}

# What the files say besides SAME. `networks`: the ends of the ControlNets' names.
VALUES: dict[str, Keys] = {
    "text_guided": {
        "networks": ["f1p_sd15_depth", "p_sd15_softedge"], "controlnet_processor": [DEPTH, HED],
        "controlnet_scale": [1.0, 1.0], "smoother_interval": 5, "num_inference_steps": 20,
        "smoother_config": BLENDED | {"postprocessing": {"contrast": 1.5, "sharpness": 5.0}},
        "post_smoother": "PySynthSmoother",
        "post_smoother_config": BLENDED | {"postprocessing": {"contrast": 1.5, "sharpness": 3.0}},
        "combine_pattern": [-10000, -1, 0, 1], "frame_height": 512, "frame_width": 960,
    },
    "fashion": {
        "networks": ["f1p_sd15_depth", "p_sd15_openpose"], "controlnet_processor": [DEPTH, OPENPOSE],
        "controlnet_scale": [1.0, 0.0], "smoother_config": {"speed": "slowest", "window_size": 3},
        "ignore_smoother_steps": 1, "num_inference_steps": 10, "frames_reference": ["reference.png"],
        "combine_pattern": ["reference_0", -1, 0, 1], "frame_height": 768, "frame_width": 512,
    },
    "image_guided": {
        "networks": ["p_sd15_softedge", "f1p_sd15_depth", "e_sd15_shuffle"],
        "controlnet_processor": [HED, DEPTH, SHUFFLE], "controlnet_scale": [0.0, 1.0, 1.0],
        "smoother_config": WHOLE, "num_inference_steps": 20, "style_image": "style.png",
        "combine_pattern": [-1, 0, 1], "frame_height": 544, "frame_width": 960,
    },
    "restoring": {
        "networks": ["f1e_sd15_tile"], "controlnet_processor": [TILE], "controlnet_scale": [1.0],
        "smoother_config": WHOLE, "num_inference_steps": 10, "img2img_strength": 0.3,
        "combine_pattern": [-1, 0, 1], "frame_height": 1024, "frame_width": 2112,
    },
    "rendering_3d": {
        "networks": ["f1p_sd15_depth", "p_sd15_softedge"], "controlnet_processor": [DEPTH, HED],
        "controlnet_scale": [1.0, 0.0], "smoother_config": WHOLE, "ignore_smoother_steps": 1,
        "num_inference_steps": 20, "combine_pattern": [-1, 0, 1], "frame_height": 544, "frame_width": 960,
    },
}  # fmt: skip


def test_all_of_them_are_here() -> None:
    assert set(PUBLISHED) == set(VALUES) == {path.stem for path in FOLDER.iterdir()}


@pytest.mark.parametrize("task", PUBLISHED)
def test_a_published_file_is_read_with_every_value_kept(task: str) -> None:
    path = FOLDER / f"{task}.json"
    job, warnings = read_job(path)
    assert warnings == []
    given, read = json.loads(path.read_text()), json.loads(job.model_dump_json())
    expected = SAME | VALUES[task]
    networks = [f"lllyasviel/control_v11{end}" for end in expected.pop("networks")]
    assert given["controlnet_model_id"] == read["controlnet_model_id"] == networks
    assert given.keys() == expected.keys() | {"model_id", "controlnet_model_id", "input_video", "prompt"}
    if task == "restoring":
        assert len(read["negative_prompt"]) == 1900
        expected["negative_prompt"] = read["negative_prompt"]
    assert {key: given[key] for key in expected} == expected
    for annotator, name in zip(read.pop("controlnet_processor"), expected.pop("controlnet_processor"), strict=True):
        assert annotator.items() >= published_names()[name].items()
    for key in ("output_path", "style_image"):
        if key in expected:
            expected[key] = str(FOLDER / expected[key])
    expected["frames_reference"] = [str(FOLDER / name) for name in expected["frames_reference"]]
    assert {key: read[key] for key in expected} == expected


@pytest.mark.parametrize("task", PUBLISHED)
def test_a_published_file_runs_from_a_video_to_a_video(task: str, tiny: Tiny, tmp_path: Path, cli: Cli) -> None:
    job = json.loads((FOLDER / f"{task}.json").read_text())
    size = (72, 128) if job["frame_width"] > job["frame_height"] else (128, 72)
    frames = (scene(2 * i, *size) for i in range(FRAMES + 2))
    codec = "vp9" if job["input_video"].endswith(".webm") else "h264"
    encode(tmp_path / job["input_video"], frames, Encoding(fps=Fraction(25), codec=codec))
    path = tmp_path / "job.json"
    path.write_text(json.dumps(tiny(job, tmp_path) | {"frame_maximum_count": FRAMES}))
    code, message = cli("run", path, "--device", "cpu")
    assert code == 0, message
    assert "warning" not in message
    output = tmp_path / "output_video"
    shots = [shot.image() for shot in open_source(output / "video.mp4").shots()]
    assert len(shots) == FRAMES and shots[0].shape[0] / shots[0].shape[1] == pytest.approx(size[0] / size[1], rel=0.2)
    cache = FrameCache(output / "cache.zarr")
    run = [scale > 0 for scale in job["controlnet_scale"]]
    assert len(cache.arrays("control/*")) == sum(run)
    assert ("references" in cache) == bool(job["frames_reference"])
    rendered, smooth = cache["rendered"][:], cache["deflickered"][:]
    assert rendered.std() > 1
    assert np.array_equal(rendered, smooth) == ("post_smoother" not in job)
    assert np.corrcoef(np.stack(shots).ravel(), smooth.ravel())[0, 1] > 0.8
