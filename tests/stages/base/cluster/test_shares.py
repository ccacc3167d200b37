"""How machines are divided among workers, and what is said about addresses that lead nowhere."""

from __future__ import annotations

import socket
import sys

import pytest

from stages.base.cluster import Share, connected, share
from stages.base.errors import DiffSynthError, UsageError

BOX = {"GPU": 8.0, "CPU": 64.0}
LAPTOP = {"CPU": 8.0}


def test_a_worker_gets_one_gpu_and_its_part_of_the_cores() -> None:
    assert share([BOX, LAPTOP], None, None) == Share(1, 8, 8)
    assert share([BOX, {"GPU": 1.0, "CPU": 4.0}], None, None) == Share(1, 4, 9)
    assert share([BOX, {"GPU": 3.0, "CPU": 64.0}], None, 2) == Share(2, 16, 5)


def test_without_gpus_a_worker_gets_some_cores() -> None:
    assert share([LAPTOP, LAPTOP], None, None) == Share(0, 4, 4)
    assert share([{"CPU": 2.0}], None, None) == Share(0, 2, 1)
    assert share([BOX], None, 0) == Share(0, 4, 16)


@pytest.mark.parametrize(
    ("cores", "workers", "each"), [([8], 2, 4), ([8], 3, 2), ([8, 8], 3, 4), ([8, 2], 1, 8), ([2, 2], 9, 1)]
)
def test_cores_suffice_for_as_many_workers_as_are_asked_for(cores: list[int], workers: int, each: int) -> None:
    assert share([{"CPU": float(count)} for count in cores], workers, None).cpus == each


def test_machines_that_are_too_small_hold_no_worker() -> None:
    assert share([LAPTOP], None, 1).places == share([BOX], None, 9).places == share([], None, None).places == 0


def test_a_cluster_that_is_not_there_is_reported_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with (
        pytest.raises(DiffSynthError, match=f"no Ray cluster answers at 127.0.0.1:{port}"),
        connected(f"127.0.0.1:{port}"),
    ):
        pass


@pytest.mark.parametrize("address", ["here", "ray://head:10001", "head:port", ":6379"])
def test_an_address_needs_a_host_and_a_port(address: str) -> None:
    with pytest.raises(UsageError, match="is not HOST:PORT"), connected(address):
        pass


def test_without_ray_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="not installed") as caught, connected("auto"):
        pass
    assert caught.value.hint == "pip install 'diffsynth-cli[ray]'"
