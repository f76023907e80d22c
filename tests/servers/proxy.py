"""A TCP proxy on loopback that loses the network on request."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Mapping
from types import TracebackType

CHUNK_BYTES = 65536

# Closing with this lingering time of 0 sends RST: the peer sees "connection reset", as with a dead router.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Proxy:
    """Forwards connections on ``127.0.0.1:port`` to a server's TCP port until told otherwise.

    ``cut`` resets every connection, and new ones at once; ``stall`` keeps connections open but moves no byte;
    ``resume`` ends either. ``delay`` holds back each piece in each direction (seconds). Thread-safe; a context manager.
    """

    def __init__(self, port: int, *, host: str = "127.0.0.1", parameters: Mapping[str, str] | None = None) -> None:
        """Listen on a free port and forward to ``host:port``; ``parameters`` complete ``dsn`` (user, dbname)."""
        self.delay = 0.0
        self.connections_seen = 0
        self.bytes_from_server = 0
        self._parameters = dict(parameters or {})
        self._target = (host, port)
        self._lock = threading.Lock()
        self._flows = threading.Event()
        self._flows.set()
        self._is_cut = False
        self._closed = False
        self._cut_after: int | None = None
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._spawn(self._accept)

    @property
    def dsn(self) -> str:
        """The connection string that leads through this proxy."""
        words = {"host": "127.0.0.1", "port": str(self.port), **self._parameters}
        return " ".join(f"{name}={value}" for name, value in words.items())

    def cut(self) -> None:
        """Reset every connection, and reset new ones until ``resume``."""
        with self._lock:
            self._is_cut = True
            self._cut_after = None
            pairs = list(self._pairs)
        for pair in pairs:
            self._reset(pair)
        self._flows.set()

    def cut_after(self, bytes_from_server: int) -> None:
        """Cut by itself once the server has sent this many more bytes, all of which are delivered first."""
        with self._lock:
            self._cut_after = self.bytes_from_server + bytes_from_server

    def stall(self) -> None:
        """Keep every connection open and let nothing through."""
        self._flows.clear()

    def resume(self) -> None:
        """Let bytes and new connections through again."""
        with self._lock:
            self._is_cut = False
        self._flows.set()

    def close(self) -> None:
        """End every connection and the listener; waits for the threads."""
        with self._lock:
            self._closed = True
            threads = list(self._threads)
        # A thread blocked in accept() wakes at a connection, not when another thread closes the socket.
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        self.cut()
        for thread in threads:
            thread.join(timeout=5)
        self._listener.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _spawn(self, target: object, *arguments: object) -> None:
        if not callable(target):
            raise TypeError("start thread: not callable")
        thread = threading.Thread(target=target, args=arguments, daemon=True, name="test-proxy")
        with self._lock:
            self._threads = [other for other in self._threads if other.is_alive()]
            self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                refuse, closed = self._is_cut, self._closed
            if closed:
                client.close()
                return
            try:
                server = None if refuse else socket.create_connection(self._target, timeout=5)
            except OSError:
                server = None
            if server is None:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                client.close()
                continue
            server.settimeout(None)
            pair = (client, server)
            with self._lock:
                self._pairs.add(pair)
                self.connections_seen += 1
            self._spawn(self._pump, client, server, pair, False)
            self._spawn(self._pump, server, client, pair, True)

    def _pump(
        self, source: socket.socket, sink: socket.socket, pair: tuple[socket.socket, socket.socket], from_server: bool
    ) -> None:
        """Move bytes one way until either side ends."""
        try:
            while data := source.recv(CHUNK_BYTES):
                if self.delay:
                    time.sleep(self.delay)
                self._flows.wait()
                if from_server and self._must_cut_within(data, sink):
                    return
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            self._reset(pair)

    def _must_cut_within(self, data: bytes, sink: socket.socket) -> bool:
        """Count ``data``; deliver its first part and cut when the agreed number of bytes lies within it."""
        with self._lock:
            before = self.bytes_from_server
            limit = self._cut_after
            if limit is None or before + len(data) < limit:
                self.bytes_from_server += len(data)
                return False
            allowed = max(limit - before, 0)
            self.bytes_from_server += allowed
        sink.sendall(data[:allowed])
        # A reset drops what the receiver has not read yet, so it must not overtake the bytes that were promised.
        time.sleep(0.05)
        self.cut()
        return True

    def _reset(self, pair: tuple[socket.socket, socket.socket]) -> None:
        with self._lock:
            self._pairs.discard(pair)
        for end in pair:
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                # shutdown wakes the other thread that is blocked in recv on this socket; the reset follows on close.
                end.shutdown(socket.SHUT_RD)
            end.close()
