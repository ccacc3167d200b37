"""A connection to a server that can be lost: a proxy for TCP on the loopback interface."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

HOST = "127.0.0.1"
BLOCK = 1 << 16  # bytes that are passed on at once
RESET = struct.pack("ii", 1, 0)  # close at once, so that the other side sees "connection reset"


class Network:
    """Pass on connections to a server, until the network is lost.

    Args:
        server: The server's port.

    Attributes:
        port: The port to use instead.
    """

    def __init__(self, server: int):
        self.server = server
        self.flowing = threading.Event()
        self.flowing.set()
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
            connection = self.connections.pop()
            with suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                connection.shutdown(socket.SHUT_RD)
            connection.close()

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
            _in_thread(self._pass_on, server, client)

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while block := source.recv(BLOCK):
                self.flowing.wait()
                target.sendall(block)
            target.shutdown(socket.SHUT_WR)


def _in_thread(work: Callable[..., None], *arguments: socket.socket) -> None:
    threading.Thread(target=work, args=arguments, daemon=True).start()
