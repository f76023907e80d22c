"""The process behind ``tests.servers.proxy.Proxy``: forwards connections, and obeys lines on its standard input.

Each line is a JSON list, a method and its arguments; each is answered by a JSON object: the counters, or the error.

    python -m tests.servers.forwarder HOST PORT
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable

CHUNK_BYTES = 65536

# Closing with this lingering time of 0 sends RST: the peer sees "connection reset", as with a dead router.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Forwarder:
    """Forwards connections on ``127.0.0.1:port`` to ``host:port``, with a thread for each direction. Thread-safe."""

    def __init__(self, host: str, port: int) -> None:
        """Listen on a free port and begin to forward."""
        self.delay = 0.0
        self.connections_seen = 0
        self.bytes_from_server = 0
        self._target = (host, port)
        self._lock = threading.Lock()
        self._flows = threading.Event()
        self._flows.set()
        self._is_cut = False
        self._cut_after: int | None = None
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._spawn(self._accept)

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

    def set_delay(self, seconds: float) -> None:
        """Hold back each piece in each direction by this much from now on."""
        self.delay = seconds

    def stall(self) -> None:
        """Keep every connection open and let nothing through."""
        self._flows.clear()

    def resume(self) -> None:
        """Let bytes and new connections through again."""
        with self._lock:
            self._is_cut = False
        self._flows.set()

    def _spawn(self, target: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=target, args=arguments, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            with self._lock:
                refuse = self._is_cut
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


def main() -> None:
    """Forward until standard input ends, which it does when the test's process ends, whatever the reason."""
    forwarder = Forwarder(sys.argv[1], int(sys.argv[2]))
    methods: dict[str, Callable[..., None]] = {
        "cut": forwarder.cut,
        "cut_after": forwarder.cut_after,
        "stall": forwarder.stall,
        "resume": forwarder.resume,
        "set_delay": forwarder.set_delay,
        "count": lambda: None,
    }
    _answer(forwarder)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        methods[name](*arguments)
        _answer(forwarder)


def _answer(forwarder: Forwarder) -> None:
    counters = {
        "port": forwarder.port,
        "connections_seen": forwarder.connections_seen,
        "bytes_from_server": forwarder.bytes_from_server,
    }
    sys.stdout.write(json.dumps(counters) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
