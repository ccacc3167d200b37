"""A connection to a server that can be lost: a proxy for TCP on the loopback interface."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

HOST = "127.0.0.1"
BLOCK = 1 << 16  # bytes that are passed on at once
RESET = struct.pack("ii", 1, 0)  # makes closing a connection break it


class Network:
    """Pass on connections to a server, until the network is lost.

    Args:
        server: The server's port.

    Attributes:
        port: The port to use instead.
        unanswered: How many of the next replies do not arrive, because their connections break.
    """

    def __init__(self, server: int):
        self.server = server
        self.flowing = threading.Event()
        self.flowing.set()
        self.unanswered = 0
        self.connections: list[socket.socket] = []
        self.listener = socket.create_server((HOST, 0))
        self.port: int = self.listener.getsockname()[1]
        _in_thread(self._accept, self.listener)

    @property
    def address(self) -> str:
        """Its http:// address."""
        return f"http://{HOST}:{self.port}"

    def reset(self) -> None:
        """Break all connections. New ones can be made."""
        while self.connections:
            _break(self.connections.pop())

    def lose(self) -> None:
        """Break all connections and refuse new ones."""
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)  # ends `accept`
        self.listener.close()
        self.reset()

    def find(self) -> None:
        """Accept connections again."""
        self.listener = socket.create_server((HOST, self.port))
        _in_thread(self._accept, self.listener)

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """Pass on nothing, and keep all connections, while this context is active."""
        self.flowing.clear()
        try:
            yield
        finally:
            self.flowing.set()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # it was closed
                return
            server = socket.create_connection((HOST, self.server))
            self.connections += [client, server]
            _in_thread(self._pass_on, client, server)
            _in_thread(self._pass_on, server, client, True)

    def _pass_on(self, source: socket.socket, target: socket.socket, is_reply: bool = False) -> None:
        with suppress(OSError):
            while block := source.recv(BLOCK):
                self.flowing.wait()
                if is_reply and self.unanswered:
                    self.unanswered -= 1
                    _break(target)
                    return
                target.sendall(block)
            target.shutdown(socket.SHUT_WR)


def _break(connection: socket.socket) -> None:
    """Close a connection, and let the other side see "connection reset"."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        connection.shutdown(socket.SHUT_RD)
    connection.close()


def _in_thread(work: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=work, args=arguments, daemon=True).start()
