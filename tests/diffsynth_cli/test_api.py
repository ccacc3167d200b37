"""The Python API does what the commands do."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
from PIL import Image

import diffsynth_cli as ds
from native.binding import synthesize
from stages.base.cache import FrameCache
from stages.jobs.job_file import read_job
from stages.smoothers.images.synthesis import SynthesisOptions
from stages.smoothers.patch_blend import PatchBlend
from stages.video import open_source
from tests.conftest import STAGES, scene, write_images
from tests.typing import Cli, Keys, MakeJob


class Heard(ds.Reporter):
    """A reporter that records finished stages and warnings."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.warnings: list[str] = []

    def end(self, stage: str, message: str) -> None:
        self.ended.append(stage)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def styled(folder: Path, count: int = 6) -> tuple[Path, Path]:
    """A guide and a flickering style, as folders of images."""
    rng = np.random.default_rng(0)
    frames = [scene(i) for i in range(count)]
    style = [np.clip(frame.astype(int) + rng.integers(-20, 20), 0, 255).astype(np.uint8) for frame in frames]
    return write_images(folder / "guide", frames), write_images(folder / "style", style)


def test_importing_the_package_loads_no_heavy_library() -> None:
    heavy = {"torch", "numpy", "pydantic", "typer", "av"}
    program = f"import sys, diffsynth_cli; sys.exit(' '.join({heavy} & set(sys.modules)) or None)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_run_takes_a_path_its_keys_or_a_job(tmp_path: Path, make_job: MakeJob) -> None:
    path = make_job(3)
    heard = Heard()
    result = ds.run(path, ["extract"], reporter=heard)
    assert heard.ended == ["extract"] and result.video is None
    assert [stage.state for stage in result.stages] == ["done"]
    result = ds.run(str(path), preview=True)
    assert result.video == tmp_path / "out/video.mp4" and result.output_path == tmp_path / "out"
    assert result.preview is not None and Image.open(result.preview).width > 64
    job, _ = read_job(path)
    heard = Heard()
    assert ds.run(job, reporter=heard).video == result.video
    assert ds.run(job.model_dump(), overrides={"fps": 10}).video == result.video
    assert ds.status(job).next_command is None


def test_overrides_are_keys_and_values_or_texts(tmp_path: Path, make_job: MakeJob) -> None:
    path = make_job(2)
    ds.run(path, ["extract"], overrides={"prompt": "3", "frame_interval": 2, "output_path": str(tmp_path / "a b")})
    written = json.loads((tmp_path / "a b/config.json").read_text())
    assert written["prompt"] == "3" and written["frame_interval"] == 2
    assert len(FrameCache(tmp_path / "a b/cache.zarr")["frames"]) == 1
    again = ds.status(path, overrides=['prompt="3"', "frame_interval=2", f"output_path={tmp_path / 'a b'}"])
    assert again.stages[0].state == "done"


def test_a_job_without_a_file_resumes_from_its_config(tmp_path: Path, make_job: MakeJob, cli: Cli) -> None:
    job, _ = read_job(make_job(2))
    ds.run(job, ["extract"])
    command = ds.status(job).next_command
    assert command == f"diffsynth run {tmp_path}/out/config.json"
    assert cli(*command.split()[1:], "-q") == (0, "")


def test_status_verify_and_export(tmp_path: Path, make_job: MakeJob) -> None:
    path = make_job(2)
    with pytest.raises(ds.DiffSynthError, match="export needs deflicker"):
        ds.export(path)
    status = ds.status(path)
    assert [stage.stage for stage in status.stages] == list(STAGES) and status.next_command == f"diffsynth run {path}"
    ds.run(path)
    ds.verify(path)
    assert ds.export(path, codec=ds.Codec.VP9) == tmp_path / "out/video-vp9.webm"
    assert ds.export(path, tmp_path / "frames", codec="png") == tmp_path / "frames"
    assert len(list((tmp_path / "frames").iterdir())) == 2
    with pytest.raises(ds.UsageError, match="unknown codec 'h266'; did you mean"):
        ds.export(path, codec="h266")
    chunk = tmp_path / "out/cache.zarr/frames/c.0.0.0.0"
    chunk.write_bytes(chunk.read_bytes()[:-9])
    with pytest.raises(ds.DiffSynthError, match="damaged"):
        ds.verify(path)


def test_mistakes_are_usage_errors(make_job: MakeJob) -> None:
    with pytest.raises(ds.UsageError, match="did you mean 'prompt'"):
        ds.run(make_job(promt="x"))
    with pytest.raises(ds.UsageError, match="job: 3 mistakes"):
        ds.run({"prompt": 3, "model_id": "mini", "input_video": "x", "output_path": ""})
    with pytest.raises(ds.UsageError, match="did you mean 'render'"):
        ds.run(make_job(), ["rendr"])


def test_warnings_go_to_the_reporter_or_to_the_warnings_module(make_job: MakeJob) -> None:
    path = make_job(2, extra_deflickering_range=1, post_smoother="TemporalMeanSmoother")
    with pytest.warns(ds.DiffSynthWarning, match="extra_deflickering_range"):
        ds.status(path)
    heard = Heard()
    ds.run(path, ["extract"], reporter=heard)
    assert len(heard.warnings) == 1 and "extra_deflickering_range" in heard.warnings[0]


def test_smooth_and_metrics(tmp_path: Path, cli: Cli) -> None:
    guide, style = styled(tmp_path)
    result = ds.smooth(guide, style, tmp_path / "smooth", window=2, detail=1)
    assert result.output == tmp_path / "smooth" and result.changes is not None
    assert len(result.changes.structure) == 6 and "flicker" in result.changes.summary()
    assert ds.smooth(guide, style, tmp_path / "smooth", window=2, detail=1).changes is None  # complete
    assert cli("smooth", guide, style, "-o", tmp_path / "same", "--window", 2, "--detail", 1, "-q") == (0, "")
    for one, other in zip(open_source(result.output).shots(), open_source(tmp_path / "same").shots(), strict=True):
        np.testing.assert_array_equal(one.image(), other.image())
    measured = ds.metrics(guide, [style, result.output], style=style, plot=tmp_path / "plot.png")
    before, after = measured.videos
    assert measured.frames == 6 and before.path == style and (tmp_path / "plot.png").exists()
    assert after.numbers["flicker"] < before.numbers["flicker"]
    assert ds.metrics(guide, style).videos[0].numbers["flicker"] == before.numbers["flicker"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "interpolat"}, "unknown mode 'interpolat'; did you mean 'interpolate'"),
        ({"mode": "interpolate", "offset": 0.5}, "whole frames"),
        ({"patch_size": 6}, "patch_size: must be odd"),
        ({"strength": 5}, "strength: must be less than or equal to 1, not 5"),
        ({"window": -1}, "window: must be greater than or equal to 0, not -1"),
        ({"device": "tpu"}, "tpu"),
    ],
)
def test_wrong_options_of_smooth_write_nothing(options: Keys, message: str, tmp_path: Path) -> None:
    guide, style = styled(tmp_path, 2)
    with pytest.raises(ds.UsageError, match=message):
        ds.smooth(guide, style, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_defaults_of_smooth_are_the_smoothers() -> None:
    defaults = {name: parameter.default for name, parameter in inspect.signature(ds.smooth).parameters.items()}
    settings = PatchBlend().model_dump(exclude={"postprocessing"})
    assert {name: defaults[name] for name in settings} == settings


def test_ebsynth(tmp_path: Path, cli: Cli) -> None:
    frames = [scene(i, 40, 48) for i in range(2)]
    images = write_images(tmp_path / "images", frames)
    shares: list[float] = []
    path = ds.ebsynth(
        images / "0.png", [(images / "0.png", images / "1.png", 2.0)], tmp_path / "out.png", progress=shares.append
    )
    assert path == tmp_path / "out.png" and shares
    pair = ["--guide", images / "0.png", images / "1.png", "--weight", 2, "--device", "cpu"]
    assert cli("ebsynth", "--style", images / "0.png", *pair, "-o", tmp_path / "same.png", "-q") == (0, "")
    np.testing.assert_array_equal(np.array(Image.open(path)), np.array(Image.open(tmp_path / "same.png")))
    with pytest.raises(ds.UsageError, match="exists"):
        ds.ebsynth(images / "0.png", [(images / "0.png", images / "1.png")], path)


def test_options_of_ebsynth_are_the_librarys() -> None:
    ours, librarys = get_type_hints(SynthesisOptions), get_type_hints(synthesize)
    assert ours == {name: librarys[name] for name in ours}
