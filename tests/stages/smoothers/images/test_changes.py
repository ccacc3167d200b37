"""Reports of what smoothing changed: numbers for the video, and places worth looking at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import pytest

from stages.smoothers.images.changes import CROP, PLACES, POOL, Changes, Place, Places, percent
from tests.stages.smoothers.scenes import scene
from tests.typing import Image

HEIGHT, WIDTH = 160, 320
BLOCK = slice(100, 130), slice(200, 230)


def texture(seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.float32)
    levels: Image = np.clip((cv2.GaussianBlur(noise, (0, 0), 2) - 127.5) * 4 + 128, 40, 215).astype(np.uint8)
    return levels


def flickering(count: int) -> list[np.ndarray]:
    levels = np.random.default_rng(3).integers(-30, 31, count)
    return [(texture().astype(int) + level).astype(np.uint8) for level in levels]


def watched(styles: Sequence[Image], results: Sequence[Image], keep_places: bool = False) -> Changes:
    changes = Changes(keep_places)
    passed = list(changes.watch(styles, results, len(results)))
    assert all(frame is result for frame, result in zip(passed, results, strict=True))
    return changes


def covers(place: Place, block: tuple[slice, slice]) -> bool:
    rows, columns = block
    return bool(
        place.y <= rows.start and rows.stop <= place.y + CROP
        and place.x <= columns.start and columns.stop <= place.x + CROP
    )  # fmt: skip


def test_the_line_says_what_changed() -> None:
    clip = scene("light")
    changes = watched(list(clip.styles), list(clip.truth))
    summary = changes.summary()
    steps = [np.diff([cv2.cvtColor(f, cv2.COLOR_RGB2GRAY).mean() for f in x]).std() for x in (clip.styles, clip.truth)]
    assert summary.startswith(f"flicker {steps[0]:.1f} → {steps[1]:.1f} levels, structure kept 0.")
    assert summary.endswith(" of the picture left as it was") and changes.warning() == ""
    assert not changes.changed.best()  # crops are kept only when asked for


def test_what_is_left_alone_is_counted() -> None:
    styles = flickering(4)
    results = [style.copy() for style in styles]
    assert (
        watched(styles, results)
        .summary()
        .endswith("structure kept 1.00 (worst frame 0: 1.00), 100 % of the picture and 4 of 4 frames left as it was")
    )
    results[2][:, : WIDTH // 2] = 255 - results[2][:, : WIDTH // 2]
    changes = watched(styles, results)
    assert changes.unchanged == [1, 1, 0.5, 1]
    assert "88 % of the picture and 3 of 4 frames left as it was" in changes.summary()
    assert changes.warning().startswith("lost structure in 1 of 4 frames, worst in frame 2 (-")


def test_one_frame_has_no_flicker() -> None:
    assert watched([texture()], [texture()]).summary().startswith("structure kept 1.00")


def test_damage_is_found_where_it_is() -> None:
    styles = flickering(12)
    results = [texture() for _ in styles]
    results[5][BLOCK] = texture(1)[BLOCK]
    changes = watched(styles, results, keep_places=True)
    worst = changes.lost.best()[0]
    assert worst.frame == 5 and covers(worst, BLOCK) and worst.structure < 0.5
    area = slice(worst.y, worst.y + CROP), slice(worst.x, worst.x + CROP)
    np.testing.assert_array_equal(worst.before, styles[5][area])
    np.testing.assert_array_equal(worst.after, results[5][area])


def test_the_largest_change_is_found_where_it_is() -> None:
    styles = [texture() for _ in range(12)]
    styles[7][BLOCK] //= 4
    most = watched(styles, [texture()] * 12, keep_places=True).changed.best()[0]
    assert most.frame == 7 and covers(most, BLOCK)
    assert most.change == pytest.approx(np.abs(most.before.astype(int) - most.after).mean(), rel=1e-4)


def test_flicker_left_alone_is_found_and_still_areas_are_not() -> None:
    styles = flickering(12)
    results = [texture() for _ in styles]
    for style, result in zip(styles, results):
        style[:, :40] = result[:, :40] = 0  # a black bar is unchanged, too, but nothing happened there
        result[96:136, 200:240] = style[96:136, 200:240]
    best = watched(styles, results, keep_places=True).kept.best()
    assert best and all(covers(place, BLOCK) and 0.1 < place.unchanged < 0.3 for place in best)


def test_places_are_few_separate_and_reproducible() -> None:
    rng = np.random.default_rng(0)
    styles = [texture(seed) for seed in range(40)]
    results = [np.clip(style + rng.normal(0, 20, style.shape), 0, 255).astype(np.uint8) for style in styles]
    first, second = (watched(styles, results, keep_places=True) for _ in range(2))
    for name in ("changed", "lost"):
        places, again = getattr(first, name), getattr(second, name)
        assert len(places.best()) == PLACES and len(places.pool) <= POOL
        assert [(p.frame, p.x, p.y) for p in places.pool] == [(p.frame, p.x, p.y) for p in again.pool]
        for index, a in enumerate(places.pool):
            for b in places.pool[:index]:
                assert abs(a.frame - b.frame) >= 8 or abs(a.x - b.x) >= CROP or abs(a.y - b.y) >= CROP


def test_a_better_place_replaces_those_close_to_it() -> None:
    def place(frame: int, score: float) -> Place:
        return Place(frame, 0, 0, score, np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8), 0, 0, 0)

    places = Places(gap=4)
    for frame, score in ((0, 1.0), (6, 2.0), (3, 1.5), (20, 0.5)):
        places.offer(place(frame, score))
    assert [other.frame for other in places.best()] == [6, 0, 20]
    places.offer(place(4, 3.0))
    assert [other.frame for other in places.best()] == [4, 0, 20]


def test_frames_are_not_kept() -> None:
    alive, most = [0], [0]

    class Counted(np.ndarray):
        def __del__(self) -> None:
            alive[0] -= 1

    def frames() -> Iterator[Image]:
        for seed in range(12):
            alive[0] += 1
            most[0] = max(most[0], alive[0])
            yield texture(seed).view(Counted)

    for _ in Changes().watch(frames(), frames(), 12):
        pass
    assert most[0] <= 6


@pytest.mark.parametrize(("share", "expected"), [(0, "0 %"), (0.001, "under 1 %"), (0.03, "3 %"), (0.999, "over 99 %")])
def test_small_shares_are_not_rounded_to_zero(share: float, expected: str) -> None:
    assert percent(share) == expected


def test_small_frames_are_cropped_to_what_there_is() -> None:
    styles = [np.full((9, 20, 3), level, np.uint8) for level in (10, 90)]
    changes = watched(styles, [styles[0]] * 2, keep_places=True)
    assert changes.changed.best()[0].before.shape == (9, 20, 3)
