"""A TCP proxy on loopback that loses the network on request.

It runs as a process of its own (``tests.servers.forwarder``): a call of libpq that waits while it holds the
interpreter's lock would stop a proxy thread in the same process, and so wait for ever.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

CHECKOUT = Path(__file__).resolve().parents[2]


class Proxy:
    """Forwards connections on ``127.0.0.1:port`` to a server's TCP port until told otherwise.

    Thread-safe; a context manager, which ends its process and with it every connection.
    """

    def __init__(self, port: int, *, host: str = "127.0.0.1", parameters: Mapping[str, str] | None = None) -> None:
        """Listen on a free port and forward to ``host:port``; ``parameters`` complete ``dsn`` (user, dbname)."""
        self._parameters = dict(parameters or {})
        self._delay = 0.0
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.servers.forwarder", host, str(port)],
            cwd=CHECKOUT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.port = self._read()["port"]

    @property
    def dsn(self) -> str:
        """The connection string that leads through this proxy."""
        words = {"host": "127.0.0.1", "port": str(self.port), **self._parameters}
        return " ".join(f"{name}={value}" for name, value in words.items())

    @property
    def delay(self) -> float:
        """How long each piece is held back in each direction, in seconds."""
        return self._delay

    @delay.setter
    def delay(self, seconds: float) -> None:
        self._delay = seconds
        self._tell("set_delay", seconds)

    @property
    def connections_seen(self) -> int:
        """How many connections have reached the server through this proxy."""
        return self._tell("count")["connections_seen"]

    @property
    def bytes_from_server(self) -> int:
        """How many bytes the server has sent, over all connections."""
        return self._tell("count")["bytes_from_server"]

    def cut(self) -> None:
        """Reset every connection, and reset new ones until ``resume``."""
        self._tell("cut")

    def cut_after(self, bytes_from_server: int) -> None:
        """Cut by itself once the server has sent this many more bytes, all of which are delivered first."""
        self._tell("cut_after", bytes_from_server)

    def stall(self) -> None:
        """Keep every connection open and let nothing through."""
        self._tell("stall")

    def resume(self) -> None:
        """Let bytes and new connections through again."""
        self._tell("resume")

    def close(self) -> None:
        """End every connection and the proxy; may be called twice."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tell(self, method: str, *arguments: float) -> dict[str, int]:
        with self._lock:
            if self._process.stdin is None:
                raise ConnectionError("tell proxy: its process has no input")
            self._process.stdin.write(json.dumps([method, *arguments]) + "\n")
            self._process.stdin.flush()
            return self._read()

    def _read(self) -> dict[str, int]:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            raise ConnectionError(f"tell proxy: its process has ended with status {self._process.poll()}")
        answer: dict[str, int] = json.loads(line)
        return answer
