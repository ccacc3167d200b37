"""`diffsynth report`: what stands on its page. test_report_in_browser.py is about what the page does."""

from __future__ import annotations

import json
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from diffsynth_cli.__main__ import main
from stages.base.cache import FrameCache
from stages.base.words import duration
from stages.smoothers.images.metrics import measure
from stages.video import open_source
from tests.conftest import write_images, write_job
from tests.processes import Program
from tests.stages.smoothers.scenes import scene
from tests.stages.test_smooth import OPTIONS
from tests.typing import Cli, Images, Keys, MakeJob

PROMPT = "winter <script>alert(1)</script> & \"snow\" </script><img src='http://127.0.0.1/x'>"
WORST, LIGHT = 3, np.array([1, 0.8, 1, 0.75, 0.9])
SMOOTHED = {"post_smoother": "TemporalMeanSmoother"}


class Page(HTMLParser):
    """The elements of a page with their attributes, and the text in each script, style sheet and cell."""

    def __init__(self, path: Path):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(path.read_text(encoding="utf-8"))
        self.data: Keys = json.loads(self.texts["script"][0])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.setdefault(self.elements[-1][0], []).append(data.strip())

    def clip(self, folder: Path) -> Images:
        """The frames of each video, uint8 [videos, N, H, W, 3]."""
        path = folder / "clip-of-page.mp4"
        path.write_bytes(b64decode(self.texts["script"][1]))
        pictures = np.stack([shot.image() for shot in open_source(path).shots()])
        height, width, columns = (self.data[key] for key in ("height", "width", "columns"))
        corners = [divmod(index, columns) for index in range(len(self.data["videos"]))]
        return np.stack(
            [
                pictures[:, row * height : (row + 1) * height, column * width : (column + 1) * width]
                for row, column in corners
            ]
        )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished job whose video flickered, and was damaged by smoothing in frame WORST."""
    folder = tmp_path_factory.mktemp("job")
    assert main(["run", str(write_job(folder, 5, prompt=PROMPT, **SMOOTHED)), "-q"]) == 0
    cache = FrameCache(folder / "out/cache.zarr")
    negative = 255 - cache["frames"][:]  # of what the random model paints, the codec would keep little
    smooth = (negative * 0.9).astype(np.uint8)
    smooth[WORST, 16:48, 16:48] = 128
    cache["rendered"].write(0, (negative * LIGHT[:, None, None, None]).astype(np.uint8))
    cache["deflickered"].write(0, smooth)
    return folder


@pytest.fixture
def page(finished: Path, tmp_path: Path, cli: Cli) -> Page:
    assert cli("report", finished / "job.json", "-o", tmp_path / "page.html", "-q") == (0, "")
    return Page(tmp_path / "page.html")


def test_the_page_needs_nothing_else_and_text_of_the_job_is_only_text(page: Page) -> None:
    assert [attributes.get("type") for tag, attributes in page.elements if tag == "script"] == [
        "application/json", "text/plain", None,
    ]  # fmt: skip
    assert "alert(1)" not in page.texts["script"][2] and PROMPT in page.texts["td"]
    addresses = [
        value for _, attributes in page.elements for key, value in attributes.items() if key in ("src", "href")
    ]
    assert len(addresses) > 2 and all(str(address).startswith("data:") for address in addresses)
    policies = [str(attributes["content"]) for _, attributes in page.elements if "http-equiv" in attributes]
    assert len(policies) == 1 and policies[0].startswith("default-src 'none'; script-src 'sha256-")


def test_the_clip_shows_the_frames_of_every_stage(page: Page, finished: Path, tmp_path: Path) -> None:
    cache = FrameCache(finished / "out/cache.zarr")
    names = ["frames", *cache.arrays("control/*"), "rendered", "deflickered"]
    assert page.data["videos"] == ["input", "map 0: canny", "rendered", "deflickered"]
    assert page.data["wiped"] == [2, 3] and (page.data["first"], page.data["count"], page.data["frames"]) == (0, 5, 5)
    for name, shown in zip(names, page.clip(tmp_path), strict=True):
        for index, frame in enumerate(shown):
            differences = np.abs(cache[name][:].astype(int) - frame).mean(axis=(1, 2, 3))
            assert differences[index] < 8 and differences.argmin() == index, (name, index, differences)


def test_curves_are_those_of_metrics(page: Page, finished: Path) -> None:
    cache = FrameCache(finished / "out/cache.zarr")
    result, style = measure(cache["frames"], [cache["deflickered"]], style=cache["rendered"])
    panels = {panel["measure"]: panel["lines"] for panel in page.data["panels"]}
    for name, expected in (
        ("warp1 (×1000)", [result.warp[1], style.warp[1]]),
        ("flicker (levels)", [result.flicker, style.flicker]),
        ("luminance (levels)", [result.luminance, style.luminance]),
        ("structure", [result.structure]),
    ):
        assert [line["label"] for line in panels[name]] == ["deflickered", "rendered"][: len(expected)]
        for line, values in zip(panels[name], expected, strict=True):
            np.testing.assert_allclose(line["values"], values, rtol=1e-3)
    assert f"{result.summary(style)['warp1']:.3f}" in page.texts["td"]


def test_time_settings_and_versions_are_listed(page: Page, finished: Path) -> None:
    for stage in ("extract", "control", "render", "deflicker"):
        receipt = FrameCache(finished / "out/cache.zarr").record(stage).receipt
        assert receipt is not None and receipt["versions"]["torch"] in page.texts["td"]
        assert stage in page.texts["th"] and duration(receipt["seconds"]) in page.texts["td"]
        if stage == "render":
            assert {"step 1/2", "step 2/2", "decode"} < set(receipt["phases"]) <= set(page.texts["th"])
    assert {"prompt", "num_inference_steps", "post_smoother", "device"} <= set(page.texts["th"])
    assert not {"guidance_scale", "scheduler", "seed_of_noise"} & set(page.texts["th"])  # the defaults


def test_run_names_the_command(finished: Path, cli: Cli) -> None:
    code, output = cli("run", finished / "job.json", "--set", "device=cpu")
    assert code == 0 and f"diffsynth report {finished / 'job.json'} --set=device=cpu" in output
    code, output = cli("run", finished / "job.json", "--json")
    assert code == 0 and "diffsynth report" not in output


def test_an_unfinished_job_shows_what_there_is(tmp_path: Path, make_job: MakeJob, cli: Cli) -> None:
    job, before = make_job(3), set(tmp_path.rglob("*"))
    code, output = cli("report", job)
    assert code == 1 and "report needs extract" in output and f"diffsynth run {job}" in output
    assert set(tmp_path.rglob("*")) == before | {job}
    for stages, videos, panels in (
        (("extract", "control"), ["input", "map 0: canny"], 0),
        (("render",), ["input", "map 0: canny", "rendered"], 4),
    ):
        for stage in stages:
            assert cli(stage, job, "-q")[0] == 0
        assert cli("report", job, "-q") == (0, "")
        page = Page(tmp_path / "out/report.html")
        assert page.data["videos"] == videos and len(page.data["panels"]) == panels and "to do" in page.texts["td"]
    code, output = cli("report", job, "--set", "prompt=night")
    assert code == 0 and "render is stale" in output and "stale" in Page(tmp_path / "out/report.html").texts["td"]


def test_a_long_video_is_cut_around_its_worst_frame_and_its_curves_keep_their_peaks(
    finished: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffsynth_cli.clip.MOST_FRAMES", 3)
    monkeypatch.setattr("diffsynth_cli.page.POINTS", 2)
    assert cli("report", finished / "job.json", "-o", tmp_path / "page.html", "-q") == (0, "")
    page, frames = Page(tmp_path / "page.html"), FrameCache(finished / "out/cache.zarr")["frames"][:]
    assert (page.data["first"], page.data["count"]) == (WORST - 1, 3)
    assert np.abs(page.clip(tmp_path)[0][1].astype(int) - frames).mean(axis=(1, 2, 3)).argmin() == WORST
    line = {panel["measure"]: panel["lines"][0] for panel in page.data["panels"]}["structure"]
    assert line["step"] == 3 and line["values"][0] > 0.9 > 0.5 > line["values"][1]  # not the mean of frames 3 and 4
    assert cli("report", finished / "job.json", "-o", tmp_path / "page.html", "-q", "--first", 3) == (0, "")
    page = Page(tmp_path / "page.html")
    assert (page.data["first"], page.data["count"]) == (3, 2)
    code, output = cli("report", finished / "job.json", "-o", tmp_path / "page.html", "--first", 5)
    assert code == 2 and "--first 5: the video has 5 frames" in output


def test_a_clip_that_would_be_too_large_is_compressed_more_then_cut(
    finished: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written(most: int) -> tuple[int, int]:
        monkeypatch.setattr("diffsynth_cli.clip.MOST_BYTES", most)
        assert cli("report", finished / "job.json", "-o", tmp_path / "page.html", "-q") == (0, "")
        page = Page(tmp_path / "page.html")
        return len(b64decode(page.texts["script"][1])), page.data["count"]

    size, count = written(10**6)
    smaller, same = written(size - 1)
    smallest, fewer = written(3000)
    assert count == same == 5 > fewer and size > smaller > 3000 >= smallest


def test_smooth_writes_a_page_too(tmp_path: Path, cli: Cli) -> None:
    clip = scene("light", frames=4)
    guide, style = write_images(tmp_path / "guide", clip.guides), write_images(tmp_path / "style", clip.styles)
    path = tmp_path / "changes.html"
    command = ("smooth", guide, style, "-o", tmp_path / "out.mp4", *OPTIONS, "--report", path)
    assert cli(*command, "-q") == (0, "")
    page = Page(path)
    assert page.data["videos"] == ["input", "stylised", "smoothed"] and page.data["wiped"] == [1, 2]
    assert {"smooth", "decode the style", "window"} <= set(page.texts["th"])
    assert not (tmp_path / "out.mp4.cache.zarr").exists()
    assert cli(*command, "-q", "--force")[0] == 0  # its own page is replaced
    assert cli("smooth", style, "-o", tmp_path / "alone", *OPTIONS, "--report", path, "-q") == (0, "")
    assert Page(path).data["videos"] == ["stylised", "smoothed"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_video(tmp_path: Path, cli: Cli) -> None:
    peaks = []
    for count in (12, 240):
        job = write_job(tmp_path, 240, frame_maximum_count=count, output_path=f"out{count}", **SMOOTHED)
        assert cli("run", job, "-q") == (0, "")
        peaks.append(Program("report", job, "-q").peak())
    assert peaks[1] - peaks[0] < 50, peaks
