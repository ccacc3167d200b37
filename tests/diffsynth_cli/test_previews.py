"""`diffsynth preview`: a few frames of a job, and values of its keys side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import diffsynth_cli as ds
from diffsynth_cli.previews import combinations, read_grid
from stages.base.cache import FrameCache
from tests.typing import Cli, Keys, MakeJob, Render

KEYS: Keys = {"num_inference_steps": 2, "post_smoother": "TemporalMeanSmoother"}


def test_each_value_gives_what_a_job_with_it_gives(tmp_path: Path, make_job: MakeJob, render: Render, cli: Cli) -> None:
    command = ("preview", make_job(6, **KEYS), "--frames", 3, "--batch-size", 2, "--grid", "seed_of_noise=0,7")
    code, output = cli(*command)
    assert code == 0, output
    assert output.count("extract: nothing to do") == output.count("control: nothing to do") == 1
    code, output = cli(*command)
    assert code == 0 and output.count("nothing to do") == 8
    place = tmp_path / "out/preview"
    for folder, seed in ((place / "1", 0), (place / "2", 7)):
        alone = render(f"seed {seed}", **KEYS, seed_of_noise=seed, frame_maximum_count=3)
        assert arrays(FrameCache(folder / "cache.zarr")) == arrays(alone)
    with Image.open(place / "preview.png") as sheet:
        assert min(sheet.size) > 3 * alone["frames"].shape[1]  # three frames of the source and of two results


def arrays(cache: FrameCache) -> dict[str, bytes]:
    return {name: cache[name][:].tobytes() for name in ("frames", "rendered", "deflickered")}


def test_frames_from_the_middle_are_those_of_the_video(tmp_path: Path, make_job: MakeJob) -> None:
    job = make_job(6, **KEYS, keyframes=[0, 5], scenes=[3])
    made = ds.preview(job, tmp_path / "sheet.png", frames=2, at=0.12)
    assert made.sheet == tmp_path / "sheet.png" and made.sheet.exists()
    (cell,) = made.cells
    assert cell.values == {} and cell.result.video is not None
    ds.run(job, ["extract"])
    shown, whole = (
        FrameCache(folder / "cache.zarr")["frames"] for folder in (cell.result.output_path, tmp_path / "out")
    )
    assert np.array_equal(shown[:], whole[3:5])


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("seed_of_noise=1,two", "seed_of_noise"),
        ("sed_of_noise=1,2", "unknown key 'sed_of_noise'; did you mean 'seed_of_noise'?"),
        ("seed_of_noise", "must be KEY=VALUE,VALUE"),
        ("output_path=a,b", "a preview sets output_path itself"),
    ],
)
def test_mistakes_stop_it_before_any_work(grid: str, message: str, tmp_path: Path, make_job: MakeJob, cli: Cli) -> None:
    code, output = cli("preview", make_job(4, **KEYS), "--grid", grid)
    assert code == 2 and message in output
    assert not (tmp_path / "out").exists()


def test_files_of_the_user_are_kept(tmp_path: Path, make_job: MakeJob, cli: Cli) -> None:
    painting = tmp_path / "painting.png"
    Image.new("RGB", (8, 8)).save(painting)
    before = painting.read_bytes()
    code, output = cli("preview", make_job(4, **KEYS), "-o", painting)
    assert code == 2 and "painting.png" in output and painting.read_bytes() == before
    assert not (tmp_path / "out").exists()


def test_values_of_a_grid_are_texts_numbers_or_lists() -> None:
    grid = read_grid(["prompt=winter,summer", 'steps=["a, b", 3]', "scale=1.5,null", "flag=true"])
    assert grid == {"prompt": ["winter", "summer"], "steps": ["a, b", 3], "scale": [1.5, None], "flag": [True]}
    assert combinations({"a": [1, 2], "b": ["x", "y"]}) == [
        {"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"}
    ]  # fmt: skip
    assert combinations({}) == [{}]
