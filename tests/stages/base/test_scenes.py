"""Cuts and the scenes between them."""

from __future__ import annotations

import pytest

from stages.base.errors import UsageError
from stages.base.scenes import check_cuts, check_scenes, described, scene_of, scene_without, split


def test_scenes_begin_at_cuts_and_end_with_the_video() -> None:
    assert split(10, ()) == [range(10)]
    assert split(10, (3, 4)) == [range(3), range(3, 4), range(4, 10)]
    assert [scene_of(index, 10, (3, 4)).start for index in range(6)] == [0, 0, 0, 3, 4, 4]


def test_a_scene_without_any_of_some_frames_is_found() -> None:
    assert scene_without([0, 3, 9], (3, 4)) is None
    assert scene_without([3, 9], (3, 4)) == 0
    assert scene_without([0, 2, 9], (3, 4)) == 3
    assert scene_without([0, 3], (3, 4)) == 4


@pytest.mark.parametrize("value", [None, "auto", [], [1], [3, 4, 10]])
def test_what_a_user_may_ask_for(value: object) -> None:
    assert check_scenes(value) == value


@pytest.mark.parametrize("value", ["all", 3, [0], [-1], [4, 3], [3, 3], [True], [1.5], ["3"], {"3": 4}, (3,)])
def test_anything_else_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match='give "auto", or the first frame of each scene after the first'):
        check_scenes(value)


def test_a_scene_must_begin_within_the_video() -> None:
    check_cuts([3, 9], 10)
    check_cuts([], 1)
    with pytest.raises(UsageError, match="numbered 0 to 9, so no scene begins at 10"):
        check_cuts([3, 10], 10)


def test_descriptions_name_first_and_last_frames_and_are_short() -> None:
    assert described(split(10, ())) == "1 scene: 0–9"
    assert described(split(10, (3, 4))) == "3 scenes: 0–2, 3–3, 4–9"
    assert described(split(100, range(1, 100))).endswith("18–18, 19–19, …")
