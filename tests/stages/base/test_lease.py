"""One process at a time holds a lease, which a server's conditional writes decide."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from stages.base.errors import DiffSynthError
from stages.base.lease import Clock, Lease, Version, holder
from stages.base.store import LOCK
from tests.object_stores import Server

DURATION = 600.0  # s; so long that no thread renews a lease during a test


@dataclass
class Time:
    """A clock that runs only while somebody sleeps. Then, `meanwhile` is called."""

    seconds: float = 1000.0
    meanwhile: Callable[[], object] = lambda: None

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        self.meanwhile()


class Shop:
    """Leases on one object store."""

    def __init__(self, server: Server):
        from stages.base.object_store import ObjectStore

        self.url = server.new_url()
        self.objects = ObjectStore(self.url)
        self.time = Time()
        self.said: list[str] = []

    def lease(self, duration: float = DURATION) -> Lease:
        return Lease(self.objects, duration, Clock(self.time.now, self.time.sleep))

    def taken(self) -> Lease:
        lease = self.lease()
        lease.acquire(self.said.append)
        return lease


@pytest.fixture
def shop(moto: Server) -> Shop:
    return Shop(moto)


def abandon(lease: Lease) -> None:
    """Leave a lease as a killed process does."""
    lease.ended.set()
    lease.renewer.join()


def test_a_released_lease_is_taken_at_once(shop: Shop) -> None:
    assert holder(shop.objects) is None
    for _ in range(2):
        lease = shop.taken()
        assert "process" in (holder(shop.objects) or "")
        lease.check()
        lease.release()
        assert holder(shop.objects) is None
    assert shop.said == [] and shop.time.seconds == 1000.0


def test_a_lease_that_is_renewed_is_refused(shop: Shop) -> None:
    first = shop.taken()
    shop.time.meanwhile = first.check  # which renews it once half of its duration has passed
    with pytest.raises(DiffSynthError, match=r"in use by process \d+ on"):
        shop.taken()
    assert DURATION / 2 <= shop.time.seconds - 1000 < DURATION and "waiting up to 600 s" in shop.said[0]
    first.check()
    first.release()


def test_a_lease_that_stands_still_is_taken_over_after_its_duration_and_lost(shop: Shop) -> None:
    first = shop.taken()
    abandon(first)
    second = shop.taken()
    assert shop.time.seconds - 1000 >= DURATION
    second.check()
    with pytest.raises(DiffSynthError, match="has taken over"):
        first.check()
    first.release()  # leaves the lease of the second alone
    second.check()
    with pytest.raises(DiffSynthError, match="in use by"):
        shop.time.meanwhile = second.check
        shop.taken()
    second.release()


def test_the_last_holder_says_how_long_to_wait(shop: Shop) -> None:
    abandon(shop.taken())
    impatient = shop.lease(duration=10.0)
    impatient.acquire(shop.said.append)
    impatient.release()
    assert shop.time.seconds - 1000 >= DURATION


def test_a_renewal_counts_from_its_beginning(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shop.objects._put_if

    def slowly(name: str, data: bytes, version: Version | None) -> Version | None:
        shop.time.seconds += 100
        return real(name, data, version)

    assert shop.objects.has_conditions
    monkeypatch.setattr(shop.objects, "_put_if", slowly)
    lease = shop.taken()
    assert lease.renewed == 1000.0 and shop.time.seconds == 1100.0
    lease.release()


def test_one_of_two_that_wait_takes_over(shop: Shop) -> None:
    abandon(shop.taken())
    others: list[Lease] = []

    def overtake() -> None:
        if not others and shop.time.seconds - 1000 >= DURATION:
            shop.time.meanwhile = lambda: None
            others.append(shop.taken())

    shop.time.meanwhile = overtake
    with pytest.raises(DiffSynthError, match="in use by"):
        shop.taken()
    others[0].check()
    others[0].release()


def test_a_lease_that_is_released_meanwhile_is_taken(shop: Shop) -> None:
    first = shop.taken()
    shop.time.meanwhile = first.release
    second = shop.taken()
    assert shop.time.seconds - 1000 < DURATION / 10
    second.check()
    second.release()


def test_a_refused_repetition_of_a_write_that_succeeded_is_no_loss(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shop.objects._put_if

    def without_reply(name: str, data: bytes, version: Version | None) -> Version | None:
        real(name, data, version)
        return real(name, data, version)

    assert shop.objects.has_conditions
    monkeypatch.setattr(shop.objects, "_put_if", without_reply)
    lease = shop.taken()
    shop.time.seconds += DURATION / 2 + 1
    lease.check()
    assert not lease.lost and lease.renewals == 2
    lease.release()


@pytest.mark.parametrize("damage", [b"{", b"[]"])
def test_a_damaged_lease_is_waited_for(shop: Shop, damage: bytes) -> None:
    shop.objects.put(LOCK, damage)
    shop.taken().release()
    assert shop.time.seconds - 1000 >= DURATION


def wait_for_renewals(lease: Lease, count: int) -> None:
    until = time.monotonic() + 60
    while lease.renewals < count and time.monotonic() < until:
        time.sleep(0.01)
    assert lease.renewals >= count and lease.renewer.is_alive()


def test_a_renewal_that_fails_is_repeated(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    real, failed = shop.objects._put_if, list[str]()

    def after_two_failures(name: str, data: bytes, version: Version | None) -> Version | None:
        if len(failed) < 2:
            failed.append(name)
            raise DiffSynthError("the store cannot be reached")
        return real(name, data, version)

    lease = shop.lease(duration=0.3)
    lease.acquire(shop.said.append)
    monkeypatch.setattr(shop.objects, "_put_if", after_two_failures)
    wait_for_renewals(lease, 5)
    assert failed == [LOCK, LOCK] and not lease.lost
    lease.release()


@pytest.mark.parametrize(("age", "named"), [(20, True), (100, False)])
def test_a_holder_elsewhere_that_has_not_renewed_for_long_is_not_named(age: float, named: bool, shop: Shop) -> None:
    who = {"pid": 1, "host": "elsewhere", "since": "now", "command": "mine", "duration": 10.0}
    shop.objects.put(LOCK, json.dumps({**who, "written": time.time() - age}).encode())
    assert (holder(shop.objects) is not None) == named


def test_a_thread_renews_the_lease_until_it_is_lost(shop: Shop) -> None:
    lease = shop.lease(duration=0.3)
    lease.acquire(shop.said.append)
    wait_for_renewals(lease, 3)
    other = {"pid": 1, "host": "elsewhere", "since": "now", "command": "mine", "written": time.time()}
    shop.objects.put(LOCK, json.dumps(other).encode())
    lease.renewer.join(60)
    with pytest.raises(DiffSynthError, match="process 1 on elsewhere since now"):
        lease.check()


def test_what_is_put_without_the_lease_is_refused(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    with shop.objects.lock(shop.said.append):
        shop.objects.put("a", b"one")
        assert shop.objects.lease is not None
        shop.objects.lease.lost = True
        with pytest.raises(DiffSynthError, match="has taken over"):
            shop.objects.put("a", b"two")
        with pytest.raises(DiffSynthError, match="has taken over"):
            shop.objects.delete("a")
    assert shop.objects.get("a") == b"one"
