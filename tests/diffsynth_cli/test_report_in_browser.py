"""What the page of `diffsynth report` does in Chromium. Skipped if there is no Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image as Pillow

from diffsynth_cli.__main__ import main
from stages.base.cache import FrameCache
from tests.conftest import write_job
from tests.typing import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium (on Debian: apt install chromium)")
PROMPT = "winter <script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">"
COLOURS = {False: [250, 29], True: [22, 232]}  # in dark mode or not: red of the background and of text
COUNT = 8
GREY = [20 + 25 * index for index in range(COUNT)]  # of the input; `rendered` is green and `deflickered` red
LIGHT = {"input": (1, 1, 1), "rendered": (0, 1, 0), "deflickered": (1, 0, 0)}


@dataclass
class Opened:
    """A page in a browser, and what the browser had to say about it."""

    page: Page
    requests: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def evaluate(self, expression: str) -> object:
        found: object = self.page.evaluate(expression)
        return found

    def wait(self, condition: str) -> None:
        """Wait until this is true. The page's policy does not let Playwright's own function evaluate a text."""
        for _ in range(500):
            if self.evaluate(condition):
                return
            self.page.wait_for_timeout(20)
        raise AssertionError(f"{condition} did not become true")

    def wait_for_frame(self, index: int) -> None:
        """Wait until this frame is on all canvases."""
        self.wait(f"shown === {index} && !clip.seeking")
        self.page.wait_for_timeout(50)

    def colour(self, selector: str, share: float = 0.5) -> Image:
        """The colour in the middle of an element's height, at this share of its width, uint8 [3]."""
        shot = Pillow.open(BytesIO(self.page.locator(selector).screenshot())).convert("RGB")
        colour: Image = np.asarray(shot)[shot.height // 2, int(share * (shot.width - 1))]
        return colour


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a job whose frames have one colour each."""
    folder = tmp_path_factory.mktemp("job")
    job = write_job(folder, COUNT, prompt=PROMPT)
    assert main(["run", str(job), "-q"]) == 0
    cache = FrameCache(folder / "out/cache.zarr")
    frames = np.ones((COUNT, 64, 64, 3)) * np.array(GREY)[:, None, None, None]
    for name, colour in LIGHT.items():
        cache["frames" if name == "input" else name].write(0, (frames * colour).astype(np.uint8))
    assert main(["report", str(job), "-q"]) == 0
    return folder / "out/report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser, report: Path) -> Iterator[Callable[..., Opened]]:
    """Open the page in a window of this size. At the end, there must have been no message and no request."""
    visits: list[Opened] = []

    def run(width: int = 1000, height: int = 800, dark: bool = False) -> Opened:
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light")
        opened = Opened(page)
        page.on("request", lambda request: opened.requests.append(request.url))
        page.on("console", lambda message: opened.messages.append(message.text))
        page.on("pageerror", lambda error: opened.messages.append(str(error)))
        page.goto(report.as_uri())
        opened.wait("clip.readyState >= 2")
        opened.wait_for_frame(0)
        visits.append(opened)
        return opened

    yield run
    for opened in visits:
        assert opened.messages == []
        assert {url.partition(":")[0] for url in opened.requests} <= {"file", "blob"} and len(opened.requests) <= 3
        assert opened.page.title() == "images → out"  # no script of the job has run
        opened.page.close()


Visit = Callable[..., Opened]


def test_the_players_play_in_step_and_pause(visit: Visit) -> None:
    opened = visit()
    assert opened.evaluate("clip.paused") is True
    opened.page.click("#play")
    opened.wait("shown >= 2")
    opened.page.keyboard.press("Space")  # the button still has the focus
    opened.wait("clip.paused && !clip.seeking")
    opened.page.wait_for_timeout(50)
    shown = int(str(opened.evaluate("shown")))
    assert shown >= 2 and opened.page.inner_text("#play") == "Play"
    assert opened.page.inner_text("#number") == f"frame {shown}"
    for index, colour in ((0, (1, 1, 1)), (2, (0, 1, 0)), (3, (1, 0, 0))):
        found = opened.colour(f".tile >> nth={index}")
        assert np.abs(found - np.array(colour) * GREY[shown]).max() < 12, (index, found, shown)


def test_keys_show_single_frames(visit: Visit) -> None:
    opened = visit()
    for key, expected in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1)):
        opened.page.keyboard.press(key)
        opened.wait_for_frame(expected)
        assert np.abs(opened.colour(".tile >> nth=0").astype(int) - GREY[expected]).max() < 12


def test_the_slider_wipes_between_any_two(visit: Visit) -> None:
    opened = visit()
    opened.page.focus("#frame")
    opened.page.keyboard.press("End")
    opened.wait_for_frame(COUNT - 1)

    def sides() -> list[str]:
        colours = [opened.colour("#wipe", share).astype(int) for share in (0.25, 0.75)]
        return ["grey" if np.ptp(colour) < 30 else ("red", "green", "blue")[colour.argmax()] for colour in colours]

    assert sides() == ["green", "red"]
    opened.page.focus("#position")
    opened.page.keyboard.press("End")
    assert sides() == ["green", "green"]
    opened.page.keyboard.press("Home")
    assert sides() == ["red", "red"]
    box = opened.page.locator("#wipe").bounding_box()
    assert box is not None
    opened.page.mouse.move(box["x"] + 2, box["y"] + box["height"] / 2)
    opened.page.mouse.down()
    opened.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    opened.page.mouse.up()
    assert sides() == ["green", "red"]
    opened.page.select_option("#left", label="input")
    assert sides() == ["grey", "red"]
    assert opened.page.get_attribute("#position", "aria-valuetext") == "50 % input, 50 % deflickered"


def test_a_click_on_a_curve_and_on_a_place_seeks_all_players(visit: Visit) -> None:
    opened = visit()
    plot = opened.page.get_by_label("flicker (levels), by frame")
    box = plot.bounding_box()
    assert box is not None
    plot.click(position={"x": box["width"] * 5 / (COUNT - 1), "y": box["height"] / 2})
    opened.wait_for_frame(5)
    for index, colour in ((0, (1, 1, 1)), (2, (0, 1, 0)), (3, (1, 0, 0))):
        assert np.abs(opened.colour(f".tile >> nth={index}") - np.array(colour) * GREY[5]).max() < 12
    assert str(plot.get_attribute("aria-valuetext")).startswith("frame 5: deflickered ")
    plot.focus()
    opened.page.keyboard.press("Home")
    opened.wait_for_frame(0)
    button = opened.page.locator("[data-frame]").first
    button.click()
    opened.wait_for_frame(int(str(button.get_attribute("data-frame"))))


def test_small_screens_and_dark_mode(visit: Visit) -> None:
    for dark in (False, True):
        opened = visit(360, 640, dark)
        assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth") is True
        red = "[style.backgroundColor, style.color].map((colour) => Number(colour.match(/[0-9]+/)[0]))"
        assert opened.evaluate(f"((style) => {red})(getComputedStyle(document.body))") == COLOURS[dark]


def test_a_screen_reader_can_name_every_control(visit: Visit) -> None:
    opened = visit()
    tree = opened.page.locator("body").aria_snapshot()
    for name in (
        'button "Play"', 'button "Next frame"', 'slider "Frame"', 'slider "Wipe position"', 'combobox "Left"',
        'slider "structure, by frame"', 'img "rendered on the left, deflickered on the right"', 'img "map 0: canny"',
        'heading "Measures"',
    ):  # fmt: skip
        assert name in tree, tree
    controls = 'button, select, input, canvas, img, [role="slider"]'
    named = "(each) => each.ariaLabel || each.alt || each.textContent || each.labels?.length"
    assert opened.evaluate(f"[...document.querySelectorAll('{controls}')].every({named})")
