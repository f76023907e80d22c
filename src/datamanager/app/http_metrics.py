"""``/metrics`` and ``/health`` over HTTP, for monitoring; on this computer alone unless another address is allowed.

    GET /metrics    200, the text for Prometheus
    GET /health     200 while the data is safe or at risk, 503 when it is not protected; the verdict in one sentence

Nothing can be changed through it, and it tells no secret, but it does tell names and ages of backups and has no
password: that is why an address that other computers reach is refused without ``metrics.anybody``. What a client may
take is bounded: connections at once, the length of a request, its time; and however many ask, everything is looked at
once in a while only.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import ThreadingMixIn
from types import TracebackType
from typing import Any, Self

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from datamanager import __version__
from datamanager.app import status
from datamanager.app.context import Context
from datamanager.app.metrics import render
from datamanager.app.verdict import NOT_PROTECTED
from datamanager.base.errors import UsageError

MAX_CONNECTIONS = 16
_REQUEST_SECONDS = 5.0
_LONGEST_PATH = 256
_MOST_HEADER_BYTES = 16 << 10
# How old an answer may be: scrapes come every 15 to 60 seconds, and each look reads every backup location.
FRESH_SECONDS = 10.0
# A sleeping drive takes some seconds to wake.
_PATIENCE_SECONDS = 5.0


class _Answers:
    """What is served; made by one thread at a time, at most once in FRESH_SECONDS. Thread-safe."""

    def __init__(self, gather: Callable[[], status.Status]) -> None:
        self._gather = gather
        self._lock = threading.Lock()
        self._made = -FRESH_SECONDS
        self._metrics = b""
        self._health = (503, b"")

    def metrics(self) -> bytes:
        with self._lock:
            self._refresh()
            return self._metrics

    def health(self) -> tuple[int, bytes]:
        with self._lock:
            self._refresh()
            return self._health

    def _refresh(self) -> None:
        if time.monotonic() - self._made < FRESH_SECONDS:
            return
        found = self._gather()
        verdict = found.verdict
        self._metrics = render(found)
        code = 503 if verdict.exit_code == NOT_PROTECTED else 200
        self._health = (code, f"{verdict.word}: {verdict.sentence}\n".encode())
        self._made = time.monotonic()


class _Handler(BaseHTTPRequestHandler):
    """One connection, one request."""

    server: _Server
    protocol_version = "HTTP/1.0"
    server_version = f"datamanager/{__version__}"
    sys_version = ""
    timeout = _REQUEST_SECONDS

    def setup(self) -> None:
        super().setup()
        # ``timeout`` bounds each read; a client that sends a byte now and then is cut off all the same.
        self._cut = threading.Timer(_REQUEST_SECONDS, self._cut_off)
        self._cut.daemon = True
        self._cut.start()

    def handle_one_request(self) -> None:
        """As in the base class, but the headers are bounded in bytes."""
        self.rfile = _Bounded(self.rfile, _MOST_HEADER_BYTES)  # type: ignore[assignment]
        super().handle_one_request()

    def _cut_off(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RD)

    def finish(self) -> None:
        self._cut.cancel()
        with contextlib.suppress(OSError):
            super().finish()

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        self._cut.cancel()  # the request is read; what follows is our own time
        path = self.path.partition("?")[0]
        if len(self.path) > _LONGEST_PATH:
            self._send(414, b"the address is too long\n", with_body=with_body)
        elif path == "/metrics":
            self._send(200, self.server.answers.metrics(), CONTENT_TYPE_PLAIN_0_0_4, with_body=with_body)
        elif path == "/health":
            code, text = self.server.answers.health()
            self._send(code, text, with_body=with_body)
        else:
            self._send(404, b"there are /metrics and /health\n", with_body=with_body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class refuses, in plain text and without repeating what was sent; other methods are 405."""
        refused = 405 if code == 501 else code
        self._send(refused, b"refused\n")

    def _send(
        self, code: int, body: bytes, content_type: str = "text/plain; charset=utf-8", *, with_body: bool = True
    ) -> None:
        self.close_connection = True
        self.request_version = "HTTP/1.0"  # an answer without a status line would say nothing
        with contextlib.suppress(OSError):
            self.send_response(code)
            if code == 405:
                self.send_header("Allow", "GET, HEAD")
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            if with_body:
                self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what strangers send does not go into our logs."""


class _Bounded:
    """A stream that ends after so many bytes."""

    def __init__(self, stream: Any, most: int) -> None:
        self._stream = stream
        self._left = most

    def readline(self, limit: int = -1) -> bytes:
        most = self._left if limit < 0 else min(limit, self._left)
        line: bytes = self._stream.readline(most) if most else b""
        self._left -= len(line)
        return line

    def close(self) -> None:
        self._stream.close()


class _Server(ThreadingMixIn, HTTPServer):
    daemon_threads = True
    block_on_close = False
    # Windows would let a second program take the same port.
    allow_reuse_address = sys.platform != "win32"
    request_queue_size = 32

    def __init__(self, address: tuple[str, int], family: socket.AddressFamily, answers: _Answers) -> None:
        self.address_family = family
        self.answers = answers
        self._room = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Without asking a name server who we are, which HTTPServer does."""
        super(HTTPServer, self).server_bind()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)  # the client tries again
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._room.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away, or sends nonsense, is no news."""


class MetricsServer:
    """Answers until closed, in threads of its own. Thread-safe.

    Args: port - 0 for any that is free. The address is ``metrics.host`` of the configuration.
    Raises: UsageError, when the port is taken; ConfigurationError.
    """

    def __init__(self, context: Context, port: int) -> None:
        self.host = context.config().metrics.host
        version = ipaddress.ip_address(self.host).version
        family = socket.AF_INET6 if version == 6 else socket.AF_INET
        answers = _Answers(lambda: status.gather(context, patience_seconds=_PATIENCE_SECONDS))
        try:
            self._server = _Server((self.host, port), family, answers)
        except OSError as error:
            raise UsageError(
                f"serve metrics on {self.host} port {port}: {(error.strerror or 'not possible').lower()}",
                hint="Give another port with --metrics-port.",
            ) from error
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.2,), name="metrics", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def close(self) -> None:
        """Take no more questions; those under way are left to end by themselves."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
