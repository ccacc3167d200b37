"""The denoising loop against the published pipeline's numbers (tests/golden/README.md)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from stages.base.cache import FrameCache
from tests.conftest import GOLDEN, write_images
from tests.typing import Cli

EXACT, AFTER_SMOOTHING = 1e-3, 2e-2  # latents; after in-loop smoothing a pixel may round the other way
GREY_LEVELS, SHARE = 2, 0.999
CASES = ("text_guided", "img2img", "image_guided", "in_loop_smoothing", "long_prompt")


def golden_job(case: str, folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A job file that asks for what the case was computed with, its frames and maps as PNG files."""
    given = json.loads((GOLDEN / case / "case.json").read_text())
    data = load_file(GOLDEN / case / "case.safetensors")
    write_images(folder / "frames", data["frames"])
    references = write_images(folder / "references", data["references"])
    processors = []
    for i in range(len(given["controlnets"])):
        write_images(folder / f"map{i}", data[f"control_{i}"])
        entry = {"name": "file", "path": f"map{i}"}
        if len(data["references"]):
            write_images(folder / f"reference{i}", data[f"control_reference_{i}"])
            entry["references"] = f"reference{i}"
        processors.append(entry)
    job = {key: value for key, value in given.items() if key != "controlnets"} | {
        "model_id": str(GOLDEN / "models/sd"),
        "controlnet_model_id": [str(GOLDEN / "models" / name) for name in given["controlnets"]],
        "controlnet_processor": processors,
        "input_video": "frames",
        "frames_reference": [str(references / f"{i}.png") for i in range(len(data["references"]))],
        "output_path": "out",
        "keep_steps": True,
    }
    if given["smoother"] == "box3":
        job |= {"smoother": "TemporalMeanSmoother", "smoother_config": {"radius": 1}}
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    return path, data


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("case", CASES)
def test_golden_cases_are_reproduced(case: str, batch_size: int, tmp_path: Path, cli: Cli) -> None:
    job, data = golden_job(case, tmp_path)
    for stage in ("extract", "control"):
        assert cli(stage, job, "-q") == (0, "")
    assert cli("render", job, "--batch-size", batch_size, "-q") == (0, "")
    cache = FrameCache(tmp_path / "out/cache.zarr")
    np.testing.assert_array_equal(cache["frames"][:], data["frames"])
    tolerance = AFTER_SMOOTHING if case == "in_loop_smoothing" else EXACT
    steps = [name for name in cache.arrays("step_latents/*") if name != "step_latents/0000"] + ["latents"]
    for step, (name, expected) in enumerate(zip(steps, data["latents"], strict=True)):
        found = cache[name][:]
        print(f"{case} batch {batch_size} step {step}: latents differ by {np.abs(found - expected).max():.2e}")
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    difference = np.abs(cache["rendered"][:].astype(int) - data["images"])
    assert (difference <= GREY_LEVELS).mean() >= SHARE
