"""Prompts over time."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from stages.base.cache import FrameCache
from stages.base.errors import UsageError
from stages.rendering.schedule import Timing, mix_at, schedule_of
from tests.typing import Cli, Keys, MakeJob, Render

EVEN = Timing(Fraction(10))
UNEVEN = Timing(Fraction(4), times=(0.0, 0.1, 0.5, 1.0))
WHOLE = range(20)


def test_prompts_begin_at_frames_or_at_the_first_frame_from_a_time_on() -> None:
    assert schedule_of("winter", EVEN) == ()
    assert schedule_of({"8": "night", "0": "day"}, EVEN) == ((0, 1), (8, 0))
    assert schedule_of({"0s": "a", "0.75s": "b", "1.2s": "c", "-0.5s": "d"}, EVEN) == ((-5, 3), (0, 0), (8, 1), (12, 2))
    moments = {"-0.25s": "a", "0.1s": "b", "0.2s": "c", "1s": "d", "2s": "e"}
    assert [frame for frame, _ in schedule_of(moments, UNEVEN)] == [-1, 1, 2, 3, 7]


def test_prompts_of_the_same_frame_are_refused() -> None:
    with pytest.raises(UsageError, match=r"'5' and '0.5s' are the same frame"):
        schedule_of({"5": "a", "0.5s": "b"}, EVEN)


def test_a_part_of_the_video_has_the_prompts_that_it_has_in_the_whole() -> None:
    schedule, moved = ((0, 0), (10, 1)), ((-4, 0), (6, 1))
    assert mix_at(schedule, 3, range(5), 5) == mix_at(schedule, 3, WHOLE, 20) == (0, 1, 0.3)
    assert mix_at(moved, 2, range(4), 4) == mix_at(schedule, 6, WHOLE, 20)


def test_one_prompt_turns_evenly_into_the_next() -> None:
    schedule = ((4, 1), (8, 0))
    assert [mix_at(schedule, frame, WHOLE, 20) for frame in (0, 4, 5, 6, 8, 19)] == [
        (1, 1, 0.0), (1, 0, 0.0), (1, 0, 0.25), (1, 0, 0.5), (0, 0, 0.0), (0, 0, 0.0),
    ]  # fmt: skip


def test_nothing_turns_into_anything_across_a_cut() -> None:
    schedule = ((0, 0), (10, 1), (16, 2))
    scenes = range(8), range(8, 14), range(14, 15), range(15, 20)
    assert mix_at(schedule, 7, scenes[0], 20) == (0, 0, 0.0)
    assert [mix_at(schedule, frame, scenes[1], 20) for frame in (8, 13)] == [(1, 1, 0.0)] * 2
    assert mix_at(schedule, 14, scenes[2], 20) == (1, 1, 0.0)  # none begins here: the last one holds
    assert [mix_at(schedule, frame, scenes[3], 20) for frame in (15, 19)] == [(2, 2, 0.0)] * 2
    assert mix_at(((9, 3),), 2, scenes[0], 20) == (3, 3, 0.0)


def test_mistakes_are_named(make_job: MakeJob, cli: Cli) -> None:
    for prompt, message in (({}, "prompt"), ({"soon": "a"}, '"2.5s"'), ({"0": 3}, "prompt")):
        code, output = cli("run", make_job(prompt=prompt))
        assert code == 2 and message in output


def test_a_prompt_after_the_end_is_named(make_job: MakeJob, cli: Cli) -> None:
    code, output = cli("run", make_job(prompt={"0": "a", "77": "b"}, num_inference_steps=1))
    assert code == 0 and "there are 6 frames, so these begin after the last one: 77" in output


def test_a_preview_has_the_prompts_of_its_frames(render: Render, make_job: MakeJob, cli: Cli, tmp_path: Path) -> None:
    keys: Keys = {"prompt": {"1": "spring", "0.2s": "winter"}, "combine_pattern": [0], "num_inference_steps": 1}
    whole = render("whole", **keys)["latents"][:]
    assert cli("preview", make_job(**keys), "--frames", 2, "--at", 0.12, "-q")[0] == 0
    part = FrameCache(tmp_path / "out/preview/1/cache.zarr")["latents"][:]
    np.testing.assert_allclose(part, whole[3:5], atol=1e-4)


def test_a_prompt_from_the_first_frame_on_is_a_plain_prompt(render: Render) -> None:
    plain = render("plain", prompt="winter")["latents"][:]
    keyed = render("keyed", prompt={"0": "winter"})["latents"][:]
    assert (plain == keyed).all()


@pytest.mark.parametrize("attention", ["joint", "shared"])
def test_the_order_of_prompts_in_the_file_changes_nothing(attention: str, render: Render) -> None:
    keys: Keys = {"combine_pattern": ["reference_0", 0], "frames_reference": ["images/0.png"], "attention": attention}
    one = render("one", **keys, prompt={"0": "spring", "4": "winter"})["latents"][:]
    other = render("other", **keys, prompt={"4": "winter", "0": "spring"})["latents"][:]
    np.testing.assert_allclose(one, other, atol=1e-6)
