"""Every chunk is dealt, contiguously and without idle workers, whatever happens to workers."""

from __future__ import annotations

import random

import pytest

from stages.base.cluster.dealer import MOST_CALLS, Dealer
from stages.base.engine import Chunk


def chunks(count: int) -> list[Chunk]:
    return [(8 * k, 8 * k + 8) for k in range(count)]


def dealt(dealer: Dealer, worker: int, times: int) -> list[int]:
    """The numbers of the next chunks of a worker."""
    return [chunk[0] // 8 for _ in range(times) for chunk in dealer.next(worker)]


def test_each_worker_goes_through_its_own_part_in_order() -> None:
    dealer = Dealer(chunks(6), 2)
    assert dealt(dealer, 1, 2) == [3, 4]
    assert dealt(dealer, 0, 2) == [0, 1]
    assert dealer.following(0) == (16, 24) and dealer.following(1) == (40, 48)


def test_a_part_without_a_worker_is_taken_whole() -> None:
    dealer = Dealer(chunks(6), 3)
    assert dealt(dealer, 0, 2) == [0, 1]
    assert dealt(dealer, 1, 2) == [2, 3]
    assert dealt(dealer, 0, 1) == [4] and dealer.following(0) == (40, 48)


def test_an_idle_worker_takes_the_back_half_of_the_longest_part() -> None:
    dealer = Dealer(chunks(12), 2)
    assert dealt(dealer, 0, 6) == [0, 1, 2, 3, 4, 5]
    assert dealt(dealer, 1, 1) == [6]
    assert dealt(dealer, 0, 3) == [9, 10, 11]
    assert dealt(dealer, 1, 2) == [7, 8]


def test_a_worker_that_arrives_later_takes_half_of_a_part() -> None:
    dealer = Dealer(chunks(9), 1)
    assert dealt(dealer, 0, 1) == [0]
    assert dealt(dealer, 7, 4) == [5, 6, 7, 8]


@pytest.mark.parametrize(("warm_up", "taken"), [(0, [4, 5, 6, 7]), (3, [6, 7]), (7, []), (100, [])])
def test_the_end_of_a_part_stays_with_its_owner_if_warming_up_takes_longer(warm_up: int, taken: list[int]) -> None:
    dealer = Dealer(chunks(8), 1, warm_up)
    assert dealt(dealer, 0, 1) == [0]
    assert dealt(dealer, 1, max(len(taken), 1)) == taken


def test_what_a_lost_worker_held_is_dealt_again_before_anything_is_halved() -> None:
    dealer = Dealer(chunks(8), 2)
    assert dealt(dealer, 0, 2) == [0, 1]
    assert dealt(dealer, 1, 4) == [4, 5, 6, 7]
    dealer.give_back(0, [(0, 8), (8, 16)])
    assert dealt(dealer, 1, 4) == [0, 1, 2, 3]
    assert dealer.next(0) == []


def test_a_replacement_continues_where_the_lost_worker_was() -> None:
    dealer = Dealer(chunks(8), 2)
    assert dealt(dealer, 0, 2) == [0, 1]
    dealer.give_back(0, [(8, 16)])
    assert dealt(dealer, 0, 3) == [1, 2, 3]


def test_several_chunks_are_dealt_at_once_and_fewer_at_the_end() -> None:
    dealer = Dealer(chunks(12), 1, hand=4)
    hands = [dealer.next(0) for _ in range(6)]
    assert [len(hand) for hand in hands] == [4, 4, 2, 1, 1, 0]
    assert [chunk for hand in hands for chunk in hand] == chunks(12)


def test_a_busy_worker_is_given_more_of_its_own_part_but_not_the_last_chunk() -> None:
    dealer = Dealer(chunks(8), 2)
    assert dealt(dealer, 0, 1) == [0]
    assert [dealer.next(0, busy=True) for _ in range(3)] == [[(8, 16)], [(16, 24)], []]
    assert dealt(dealer, 1, 5) == [4, 5, 6, 7, 3]
    assert dealer.next(0) == []


def test_a_busy_worker_takes_nothing_from_others() -> None:
    dealer = Dealer(chunks(8), 2)
    assert dealt(dealer, 0, 4) == [0, 1, 2, 3]
    assert dealer.next(0, busy=True) == []
    assert dealt(dealer, 0, 1) == [4]


@pytest.mark.parametrize("seed", range(20))
def test_every_chunk_is_finished_once_whatever_happens(seed: int) -> None:
    chance = random.Random(seed)
    todo = chunks(chance.randint(1, 40))
    dealer = Dealer(todo, chance.randint(1, 6), chance.choice([0, 0, 2, 50]), hand=chance.choice([1, 3]))
    held: dict[int, list[list[Chunk]]] = {}
    finished: list[Chunk] = []
    while len(finished) < len(todo):
        worker = chance.randrange(8)
        calls = held.setdefault(worker, [])
        if calls and chance.random() < 0.1:
            dealer.give_back(worker, [chunk for call in held.pop(worker) for chunk in call])
        elif len(calls) == MOST_CALLS:
            finished += calls.pop(0)
        elif taken := dealer.next(worker, busy=bool(calls)):
            calls.append(taken)
        elif calls:
            finished += calls.pop(0)
    assert sorted(finished) == todo
