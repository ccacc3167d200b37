"""Checks before the first stage: a job that cannot finish is refused before any frame is extracted."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections import namedtuple
from fractions import Fraction
from pathlib import Path

import pytest

from stages.all_stages import all_stages, stages_of
from stages.base.cache import FrameCache
from stages.base.engine import Footage, Reporter, Run
from stages.base.errors import DiffSynthError
from stages.base.preflight import check_ahead, room
from stages.jobs.job_file import read_job
from stages.video import Encoding, encode
from tests.conftest import CONTROLNET, MODEL, scene, write_images
from tests.typing import Cli, Keys, MakeJob

# Wrong keys, the exit code, and part of the message.
DOOMED = [
    ({"model_id": "owner/model"}, 1, "model_id: owner/model is not a local folder"),
    ({"model_id": "no hub id"}, 2, "model_id: no hub id is neither a folder nor a hub id"),
    ({"controlnet_model_id": ["owner/net"]}, 1, "controlnet_model_id[0]: owner/net is not a local folder"),
    ({"vae": "owner/vae"}, 1, "vae: owner/vae is not a local folder"),
    ({"controlnet_processor": ["hed"]}, 1, "controlnet_processor[0]: lllyasviel/Annotators is not a local folder"),
    ({"device": "mps"}, 2, "device: mps is not available"),
    ({"attention_backend": "xformers"}, 2, "attention_backend: xformers is not installed"),
    ({"attention_backend": "cudnn", "device": "cpu"}, 2, "attention_backend: cudnn needs an NVIDIA GPU"),
    ({"attention_backend": "cuddn"}, 2, "unknown attention backend 'cuddn'; did you mean 'cudnn'?"),
    ({"loras": ["broken.safetensors"]}, 1, "loras[0]: "),
    ({"embeddings": ["broken.safetensors"]}, 1, "embeddings[0]: "),
    ({"style_image": "broken.safetensors"}, 2, "broken.safetensors is not an image"),
    ({"frames_reference": ["broken.safetensors"]}, 2, "broken.safetensors is not an image"),
    ({"controlnet_processor": ["file:broken.safetensors"]}, 2, "broken.safetensors is not a video"),
    ({"controlnet_processor": ["file:images"], "frames_reference": ["images/0.png"]}, 2, "has no maps for frames_ref"),
    ({"controlnet_processor": ["file:odd"]}, 2, "odd holds 2 maps for 6 frames"),
    ({"controlnet_processor": ["file:odd"], "input_video": "fast.mp4", "frame_maximum_count": 1}, 2, "2 maps for"),
    ({"controlnet_processor": [{"name": "file", "path": "images", "references": "odd"}],
      "frames_reference": ["images/0.png"]}, 2, "references: "),
    ({"keyframes": [0, 6]}, 2, "keyframes: the frames are numbered 0 to 5"),
    ({"keyframes": [0, 20], "input_video": "fast.mp4"}, 2, "keyframes: the frames are numbered 0 to 19"),
    ({"output_path": "broken.safetensors/out"}, 2, "broken.safetensors is a file"),
    ({"start_time": 9.0}, 2, "images has no frames between 9 s and its end"),
    ({"input_video": "odd.mp4"}, 2, "both must be multiples of 8"),
    ({"input_video": "fast.mp4"}, 2, "h264 cannot hold frames of 64×64 at 20000 frames/s"),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "code", "expected"), DOOMED, ids=lambda value: str(value)[:50])
def test_a_job_that_cannot_finish_is_refused_before_it_starts(
    keys: Keys, code: int, expected: str, tmp_path: Path, make_job: MakeJob, cli: Cli
) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"cut off")
    write_images(tmp_path / "odd", [scene(0), scene(1)])
    encode(tmp_path / "odd.mp4", (scene(index, 70, 90) for index in range(2)), Encoding(Fraction(25)))
    encode(tmp_path / "fast.mp4", (scene(index) for index in range(20)), Encoding(Fraction(20_000)))
    given = cli("run", make_job(**keys), "-q")
    assert given[0] == code and expected in given[1], given
    assert not (tmp_path / "out").exists()


def test_an_incomplete_download_is_found(tmp_path: Path, make_job: MakeJob, cli: Cli) -> None:
    shutil.copytree(MODEL, tmp_path / "model")
    weights = tmp_path / "model/unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    code, output = cli("run", make_job(model_id="model"), "-q")
    assert code == 1 and f"model_id: {weights} cannot be read" in output and "is the download complete?" in output
    assert not (tmp_path / "out").exists()


def test_networks_of_scale_0_are_not_required(make_job: MakeJob, cli: Cli) -> None:
    off = {"controlnet_model_id": [str(CONTROLNET), "owner/net"], "controlnet_processor": ["canny", "hed"]}
    assert cli("run", make_job(**off, controlnet_scale=[1.0, 0.0]), "-q") == (0, "")


def test_a_finished_stage_is_not_checked_again(tmp_path: Path, make_job: MakeJob, cli: Cli) -> None:
    model = shutil.copytree(MODEL, tmp_path / "model")
    job = make_job(model_id=str(model))
    assert cli("run", job, "-q") == (0, "")
    shutil.rmtree(model)
    assert cli("run", job, "-q") == (0, "")
    assert cli("deflicker", job, "-q", "--restart") == (0, "")
    code, output = cli("render", job, "-q", "--restart")
    assert code == 2 and f"model_id: no such folder: {model}" in output


def test_stale_stages_are_refused_before_others_run(tmp_path: Path, make_job: MakeJob, cli: Cli) -> None:
    assert cli("run", make_job(), "-q") == (0, "")
    shutil.rmtree(tmp_path / "out/cache.zarr/control")
    (tmp_path / "out/cache.zarr/receipts/control.json").unlink()
    code, output = cli("run", make_job(prompt="summer"), "-q")
    assert code == 1 and "render is stale" in output
    assert not (tmp_path / "out/cache.zarr/control").exists()


Disk = namedtuple("Disk", "total used free")


@pytest.mark.parametrize(
    ("free", "code", "expected"), [(1e9, 0, ""), (6e5, 0, "has 0.0006 GB free"), (1e4, 1, "has 1e-05 GB free")]
)
def test_free_disk_space_is_checked(
    free: float, code: int, expected: str, make_job: MakeJob, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """6 frames of 128 x 128 are 295 kB, and the results 4 times as much: frames, maps, rendered, deflickered."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(free, 0, free))
    given, output = cli("run", make_job(frame_height=128, frame_width=128), "-q")
    assert given == code and expected in output and bool(output) == bool(expected), output


def test_kept_frames_count_towards_disk_space(make_job: MakeJob, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(9.5e5, 0, 9.5e5))
    code, output = cli("run", make_job(frame_height=128, frame_width=128), "-q")
    assert (code, output) == (0, "")
    code, output = cli("run", make_job(frame_height=128, frame_width=128, output_path="kept", keep_frames=True), "-q")
    assert code == 0 and "has 0.00095 GB free" in output


def test_video_and_segments_count_towards_disk_space(make_job: MakeJob) -> None:
    job, _ = read_job(make_job())
    frames = Footage(1000, 1080, 1920, Fraction(25))
    arrays = all_stages()["deflicker"].check(Run(job, FrameCache(job.cache_place), Reporter()), frames).arrays
    needed = {spec.name: room(spec) for spec in arrays}
    assert set(needed) == {"deflickered", "segments", "video.mp4"}
    assert needed["segments"] == needed["video.mp4"] and 1e8 < needed["video.mp4"][1] < 1e9


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a second disk")
def test_each_disk_is_compared_with_what_is_written_to_it(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        job, _ = read_job(make_job(cache=f"{folder}/cache"))
        run = Run(job, FrameCache(job.cache_place), Reporter(), stages=stages_of(job))

        def check(free: dict[str, float]) -> None:
            monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(0, 0, free[Path(path).parts[1]]))
            check_ahead([*run.stages.values()], run, Path(job.output_path))

        check({"tmp": 1e5, "dev": 1e9})  # the video is small
        for free in ({"tmp": 1.0, "dev": 1e9}, {"tmp": 1e9, "dev": 1e4}):
            with pytest.raises(DiffSynthError, match=f"/{min(free, key=lambda disk: free[disk])}.* GB free"):
                check(free)


def test_finished_stages_need_no_disk_space(make_job: MakeJob, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job()
    assert cli("run", job, "-q") == (0, "")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(0, 0, 0))
    assert cli("run", job, "-q") == (0, "")
    assert cli("deflicker", job, "-q", "--restart") == (0, "")


def test_checking_imports_no_torch(tmp_path: Path, make_job: MakeJob) -> None:
    job = make_job(model_id="owner/model", smoother="PatchBlendSmoother", post_smoother="PySynthSmoother")
    program = (
        "import sys; from diffsynth_cli.__main__ import main; "
        f"code = main(['run', {str(job)!r}, '-q']); print(code, 'torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stdout == "1 False\n", ran
    assert json.loads(job.read_text())["model_id"] in ran.stderr
