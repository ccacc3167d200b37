"""Prompts over time."""

from __future__ import annotations

import pytest

from stages.base.errors import UsageError
from stages.render.schedule import mix_at, schedule_of
from tests.typing import Cli, MakeJob, Render

TIMES = [index / 10 for index in range(20)]
WHOLE = range(20)


def test_prompts_begin_at_frames_or_at_the_first_frame_from_a_time_on() -> None:
    assert schedule_of("winter", TIMES) == ()
    assert schedule_of({"8": "night", "0": "day"}, TIMES) == ((0, 1), (8, 0))
    assert schedule_of({"0s": "a", "0.75s": "b", "1.2s": "c"}, TIMES) == ((0, 0), (8, 1), (12, 2))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"0": "a", "20": "b"}, "'20' is after the last frame"),
        ({"0": "a", "1.95s": "b"}, r"'1.95s' is after the last frame"),
        ({"5": "a", "0.5s": "b"}, "'5' and '0.5s' are the same frame"),
    ],
)
def test_moments_that_do_not_exist_or_coincide_are_refused(prompt: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        schedule_of(prompt, TIMES)


def test_one_prompt_turns_evenly_into_the_next() -> None:
    schedule = ((4, 1), (8, 0))
    assert [mix_at(schedule, frame, WHOLE) for frame in (0, 4, 5, 6, 8, 19)] == [
        (1, 1, 0.0), (1, 0, 0.0), (1, 0, 0.25), (1, 0, 0.5), (0, 0, 0.0), (0, 0, 0.0),
    ]  # fmt: skip


def test_nothing_turns_into_anything_across_a_cut() -> None:
    schedule = ((0, 0), (10, 1), (16, 2))
    scenes = range(8), range(8, 14), range(14, 15), range(15, 20)
    assert mix_at(schedule, 7, scenes[0]) == (0, 0, 0.0)
    assert [mix_at(schedule, frame, scenes[1]) for frame in (8, 13)] == [(1, 1, 0.0)] * 2
    assert mix_at(schedule, 14, scenes[2]) == (1, 1, 0.0)  # none begins here: the last one holds
    assert [mix_at(schedule, frame, scenes[3]) for frame in (15, 19)] == [(2, 2, 0.0)] * 2
    assert mix_at(((9, 3),), 2, scenes[0]) == (3, 3, 0.0)


def test_mistakes_are_named(make_job: MakeJob, cli: Cli) -> None:
    for prompt, message in (({}, "prompt"), ({"soon": "a"}, '"2.5s"'), ({"0": 3}, "prompt")):
        code, output = cli("run", make_job(prompt=prompt))
        assert code == 2 and message in output
    code, output = cli("run", make_job(prompt={"0": "a", "77": "b"}))
    assert code == 2 and "'77' is after the last frame" in output


def test_a_prompt_from_the_first_frame_on_is_a_plain_prompt(render: Render) -> None:
    plain = render("plain", prompt="winter")["latents"][:]
    keyed = render("keyed", prompt={"0": "winter"})["latents"][:]
    assert (plain == keyed).all()
