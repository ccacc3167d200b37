"""A network that is lost behaves as a real one does."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tools.chaos.network import HOST, Network


@pytest.fixture
def network() -> Iterator[Network]:
    """A network with a server that sends back what it gets."""
    listener = socket.create_server((HOST, 0))
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
    with listener:
        network = Network(listener.getsockname()[1])
        yield network
        network.lose()


def serve(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=echo, args=(connection,), daemon=True).start()


def echo(connection: socket.socket) -> None:
    with connection, suppress(ConnectionError):
        while data := connection.recv(100):
            connection.sendall(data)


def connect(network: Network) -> socket.socket:
    return socket.create_connection((HOST, network.port), timeout=5)


def say(connection: socket.socket, word: bytes) -> bytes:
    connection.sendall(word)
    return connection.recv(100)


def test_what_is_sent_arrives(network: Network) -> None:
    with connect(network) as first, connect(network) as second:
        assert [say(first, b"one"), say(second, b"two")] == [b"one", b"two"]


def test_connections_break(network: Network) -> None:
    with connect(network) as connection:
        assert say(connection, b"one") == b"one"
        network.reset()
        with pytest.raises(ConnectionError):
            if say(connection, b"two") == b"":
                raise ConnectionError  # closed in order, which is a break, too
    with connect(network) as connection:
        assert say(connection, b"three") == b"three"


def test_a_lost_network_refuses_connections_until_it_is_found(network: Network) -> None:
    network.lose()
    with pytest.raises(ConnectionRefusedError):
        connect(network)
    network.find()
    with connect(network) as connection:
        assert say(connection, b"one") == b"one"


def test_nothing_arrives_while_it_is_stalled(network: Network) -> None:
    with connect(network) as connection:
        with network.stalled():
            connection.settimeout(0.1)
            with pytest.raises(TimeoutError):
                say(connection, b"one")
        connection.settimeout(5)
        assert connection.recv(100) == b"one"


def test_a_reply_that_must_not_arrive_breaks_its_connection(network: Network) -> None:
    network.unanswered = 1
    with connect(network) as connection, pytest.raises(ConnectionResetError):
        say(connection, b"one")
    with connect(network) as connection:
        assert say(connection, b"two") == b"two"
