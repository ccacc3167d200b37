"""No command overwrites an input, or another existing file without --force."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
from PIL import Image

from stages.video import Encoding, encode, read_comment
from tests.conftest import scene, write_images
from tests.typing import Cli, MakeJob


def clip(path: Path, frames: int = 6) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    encode(path, (scene(i) for i in range(frames)), Encoding(fps=Fraction(25)))
    return path


class Refused(Protocol):
    def __call__(self, *arguments: object, says: str) -> None: ...


@pytest.fixture
def refused(tmp_path: Path, cli: Cli) -> Refused:
    """Run a command that must be refused with one message and exit code 2, and must not change any file."""

    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def run(*arguments: object, says: str) -> None:
        before = contents()
        code, output = cli(*arguments)
        assert code == 2 and output.count("error:") == 1 and says in output, output
        assert contents() == before

    return run


@pytest.mark.parametrize("stage", ["extract", "run"])
def test_a_jobs_input_is_not_its_output(tmp_path: Path, make_job: MakeJob, refused: Refused, stage: str) -> None:
    video = clip(tmp_path / "out/video.mp4")
    (tmp_path / "link.mp4").symlink_to(video)
    for name in ("out/video.mp4", "link.mp4", "./out/../out/video.mp4"):
        for force in ((), ("--force",)):
            refused(stage, make_job(input_video=name), *force, says="which would be overwritten")


def test_a_jobs_reference_is_not_its_preview(tmp_path: Path, make_job: MakeJob, refused: Refused) -> None:
    write_images(tmp_path / "out", [scene(0)])
    (tmp_path / "out/0.png").rename(tmp_path / "out/preview.png")
    job = make_job(frames_reference=["out/preview.png"], combine_pattern=[0, "reference_0"])
    refused("run", job, "--preview", "--force", says="which would be overwritten")


def test_results_are_not_written_among_the_input_images(make_job: MakeJob, refused: Refused) -> None:
    refused("run", make_job(output_path="images"), says="one of the files of the input")


@pytest.mark.parametrize(("name", "options"), [("video.mp4", ()), ("preview.png", ("--preview",)), ("config.json", ())])
def test_files_in_the_output_folder_that_are_not_the_jobs_own_need_force(
    tmp_path: Path, make_job: MakeJob, cli: Cli, refused: Refused, name: str, options: tuple[str, ...]
) -> None:
    job, mine = make_job(2, smoother=None), tmp_path / "out" / name
    mine.parent.mkdir()
    mine.write_text('{"mine": 1}')
    refused("run", job, *options, says=f"{mine} exists")
    assert cli("run", job, *options, "--force")[0] == 0
    assert mine.read_bytes() != b'{"mine": 1}'
    code, output = cli("run", job, "--restart", "--set", "prompt=night", *options)  # now it is the job's own
    assert code == 0, output


def test_a_job_file_in_its_own_output_folder_is_kept(tmp_path: Path, make_job: MakeJob, cli: Cli) -> None:
    job = make_job(2, output_path=".").rename(tmp_path / "config.json")
    before = job.read_bytes()
    assert cli("extract", job)[0] == 0
    assert job.read_bytes() == before


def test_export(tmp_path: Path, make_job: MakeJob, cli: Cli, refused: Refused) -> None:
    video = clip(tmp_path / "film.mp4", 2)
    job = make_job(input_video="film.mp4")
    assert cli("run", job)[0] == 0
    for force in ((), ("--force",)):
        refused("export", job, "-o", video, *force, says="which would be overwritten")
    refused("export", job, "-o", tmp_path / "out/video.mp4", says="video.mp4 exists")
    other = clip(tmp_path / "other.mp4", 2)
    refused("export", job, "-o", other, says="other.mp4 exists")
    assert cli("export", job, "-o", other, "--force")[0] == 0
    default = tmp_path / "out/video-h264.mp4"
    assert cli("export", job)[0] == 0
    first = default.read_bytes()
    assert cli("export", job, "--crf", 40)[0] == 0 and default.read_bytes() != first  # its own is replaced
    clip(default, 2)
    refused("export", job, says="video-h264.mp4 exists")
    assert cli("export", job, "-o", tmp_path / "small.webm")[0] == 0  # the codec follows from the suffix
    refused("export", job, "-o", tmp_path / "small.avi", says="cannot write .avi")


def test_report(tmp_path: Path, make_job: MakeJob, cli: Cli, refused: Refused) -> None:
    job, page = make_job(2), tmp_path / "out/report.html"
    assert cli("extract", job)[0] == 0
    page.write_text("<p>mine")
    refused("report", job, says="report.html exists")
    assert cli("report", job, "--force")[0] == 0 and cli("report", job)[0] == 0  # now it is the program's own
    refused("report", job, "-o", tmp_path / "page.htm", says="must end in .html")
    refused("report", job, "-o", tmp_path / "images/page.html", "--force", says="one of the files of the input")
    link = tmp_path / "link.html"
    link.symlink_to(job)
    refused("report", job, "-o", link, "--force", says="which would be overwritten")


def test_ebsynth(tmp_path: Path, refused: Refused, cli: Cli) -> None:
    folder = write_images(tmp_path / "images", [scene(i, 32, 32) for i in range(3)])
    style, source, target = (folder / f"{index}.png" for index in range(3))
    command = ("ebsynth", "--style", style, "--guide", source, target)
    for image in (style, source, target):
        refused(*command, "-o", image, says="which would be overwritten")
        refused(*command, "-o", image, "--force", says="which would be overwritten")
    painted, field = tmp_path / "painted.png", tmp_path / "field.npy"
    field.write_bytes(b"mine")
    refused(*command, "-o", painted, "--nnf", field, says="field.npy exists")
    assert cli(*command, "-o", painted, "--nnf", field, "--force")[0] == 0
    assert np.load(field).shape == (32, 32, 2)
    refused(*command, "-o", painted, says="painted.png exists")
    assert Image.open(painted).size == (32, 32)


def test_metrics(tmp_path: Path, refused: Refused, cli: Cli) -> None:
    folder = write_images(tmp_path / "images", [scene(i) for i in range(3)])
    refused("metrics", folder, folder, "--plot", folder / "0.png", "--force", says="one of the files of the input")
    refused("metrics", folder, folder, "--plot", folder / "plot.png", says="one of the files of the input")
    plot = write_images(tmp_path / "mine", [scene(0)]) / "0.png"
    refused("metrics", folder, folder, "--plot", plot, says="0.png exists")
    assert cli("metrics", folder, folder, "--plot", plot, "--force")[0] == 0


def test_init(tmp_path: Path, refused: Refused, cli: Cli) -> None:
    video = clip(tmp_path / "film.mp4")
    (tmp_path / "Makefile").write_text("mine")
    refused("init", "text_guided", video, "-o", tmp_path, says="Makefile exists")
    images = write_images(tmp_path / "images", [scene(0)])
    refused("init", "text_guided", images, "-o", images, says="one of the files of the input")
    assert cli("init", "text_guided", video, "-o", tmp_path, "--force")[0] == 0
    assert json.loads((tmp_path / "job.json").read_text())["input_video"] == "film.mp4"


def test_demo(tmp_path: Path, make_job: MakeJob, refused: Refused) -> None:
    video = clip(tmp_path / "demo/output/video.mp4")
    refused("demo", "--video", video, "-o", tmp_path / "demo", says="which would be overwritten")
    refused("demo", "-o", make_job().parent, says="job.json exists")
    images = write_images(tmp_path / "frames", [scene(0)])
    refused("demo", "--video", images, "-o", images, says="one of the files of the input")
    (tmp_path / "new").mkdir()
    (tmp_path / "new/contact-sheet.png").write_bytes(b"mine")
    refused("demo", "--video", images, "-o", tmp_path / "new", says="contact-sheet.png exists")


def test_videos_say_who_wrote_them(tmp_path: Path, make_job: MakeJob, cli: Cli) -> None:
    assert cli("run", make_job(2), "--preview")[0] == 0
    for name in ("video.mp4", "preview.png"):
        assert read_comment(tmp_path / "out" / name).startswith("diffsynth-cli ")
    assert read_comment(clip(tmp_path / "mine.mp4", 2)) == read_comment(tmp_path / "absent.mp4") == ""
