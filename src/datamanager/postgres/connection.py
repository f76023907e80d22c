"""Connecting to a PostgreSQL server: where it is, how long to wait, and what a refusal means.

The attempt runs on libpq's nonblocking calls so that a StopToken ends it at once. Hosts and addresses are tried one
after another, each with its own ``connect_timeout``, as libpq's blocking call does and its nonblocking one does not.
A dead peer is noticed by keepalives and ``tcp_user_timeout`` unless the connection string sets its own.

Source: PostgreSQL documentation 34.1 (database connection control functions); decision 22.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self, cast

import psycopg
from psycopg import pq, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq.abc import PGconn

from datamanager.base.errors import ConfigurationError, DataManagerError, ServerError, ServerUnreachable
from datamanager.base.pipeline import StopToken
from datamanager.base.units import Secret
from datamanager.postgres.connection_errors import Refusal, error_of_query, error_of_refusal

# A dead peer is noticed after 30 + 3 x 10 s of silence, or 60 s after data that nobody acknowledges (decision 22).
KEEPALIVES: Mapping[str, str] = {
    "connect_timeout": "10",
    "keepalives": "1",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}
# How long making a cancel request may take, and then the server's reaction to it.
_CANCEL_SECONDS, _REACT_SECONDS = 2.0, 1.0
# Parameters that never appear in a message or a repr.
_SECRET_PARAMETERS = ("password", "sslpassword", "oauth_client_secret")
# PQERRORS_VERBOSE and PQERRORS_DEFAULT of libpq-fe.h.
_VERBOSE, _DEFAULT = 2, 1


@dataclass(frozen=True)
class ServerAddress:
    """Where a cluster is reached: a libpq connection string, and the password kept apart from it.

    A password inside ``conninfo`` works too, and is hidden from every message and from ``repr``.
    """

    conninfo: str = field(repr=False)
    password: Secret | None = None

    def parameters(self) -> dict[str, str]:
        """The connection string as keywords and values, without the separate password.

        Raises: ConfigurationError, which does not repeat the string, for it may hold a password.
        """
        try:
            parsed = conninfo_to_dict(self.conninfo)
        except psycopg.Error:
            raise ConfigurationError(
                "read connection string: not a libpq connection string",
                hint="Write it as `host=NAME port=5432 user=NAME dbname=NAME`, with values that hold spaces quoted.",
            ) from None
        return {name: str(value) for name, value in parsed.items() if value is not None}

    def describe(self) -> str:
        """The address for people: host, port and user, never a secret."""
        shown = {name: value for name, value in self.parameters().items() if name not in _SECRET_PARAMETERS}
        return make_conninfo("", **shown)

    def secrets(self) -> tuple[str, ...]:
        """Every secret that a message must not contain."""
        values = self.parameters()
        found = [values[name] for name in _SECRET_PARAMETERS if values.get(name)]
        if self.password is not None:
            found.append(self.password.reveal().decode("utf-8", "surrogateescape"))
        return tuple(found)

    def __repr__(self) -> str:
        try:
            return f"ServerAddress({self.describe()!r})"
        except ConfigurationError:
            return "ServerAddress(<unreadable>)"


def connect(
    address: ServerAddress,
    *,
    stop: StopToken | None = None,
    replication: bool = False,
    database: str | None = None,
    application_name: str = "datamanager",
    on_executed: Callable[[str], None] | None = None,
) -> psycopg.Connection[tuple[object, ...]]:
    """Open a session, autocommit; the caller closes it.

    Args:
        on_executed: told each statement that the session's cursors run, without its parameters (requirement R2).
        replication: a physical replication session, which knows only replication commands and SHOW.
        database: overrides the connection string's; without either, ``postgres``. Not used with ``replication``.

    Raises: ServerUnreachable (retryable), AuthenticationFailed, RightMissing, ServerUnfit, NotFound (no such
        database), ConfigurationError (the string), Cancelled. No message holds a password.
    """
    parameters = _session_parameters(address, replication, database, application_name)
    failures: list[DataManagerError] = []
    for attempt in _attempts(parameters):
        try:
            pgconn = _attempt(attempt, stop, replication, address.secrets())
        except ServerUnreachable as error:
            failures.append(error)
            continue
        return _session(pgconn, replication, stop, on_executed)
    if len(failures) == 1:
        raise failures[0]
    raise ServerUnreachable("; ".join(dict.fromkeys(failure.message for failure in failures)), hint=failures[-1].hint)


@contextlib.contextmanager
def server_errors(doing: str) -> Iterator[None]:
    """Turn what psycopg raises inside the block into this program's errors.

    Args: doing - verb and noun that begin the message, as in ``read settings``.
    Raises: RightMissing, ServerUnfit, ServerUnreachable (retryable: the connection went away), Cancelled.
    """
    try:
        yield
    except psycopg.Error as error:
        raise error_of_query(doing, error) from error


@contextlib.contextmanager
def cancelled_by(stop: StopToken, connection: psycopg.Connection[tuple[object, ...]]) -> Iterator[None]:
    """Cancel the statement that runs on ``connection`` as soon as stopping is asked for; then Cancelled is raised.

    Where the server does not react in time, for the network is dead, the connection is hung up.
    """
    ended, end = socket.socketpair()

    def watch() -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(ended, selectors.EVENT_READ)
            selector.register(stop.fileno(), selectors.EVENT_READ)
            if any(key.fileobj is ended for key, _ in selector.select()):
                return
            with contextlib.suppress(psycopg.Error):
                connection.cancel_safe(timeout=_CANCEL_SECONDS)
            selector.unregister(stop.fileno())
            if not selector.select(_REACT_SECONDS):
                hang_up(connection)

    watcher = threading.Thread(target=watch, name="cancel on stop", daemon=True)
    watcher.start()
    try:
        yield
    except (psycopg.Error, ServerError):
        stop.check()
        raise
    finally:
        end.send(b"x")
        watcher.join()
        end.close()
        ended.close()


def hang_up(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    """Make whoever waits on this connection fail at once, from any thread."""
    with (
        contextlib.suppress(OSError, psycopg.Error),
        socket.socket(fileno=socket.dup(connection.fileno())) as own,
    ):
        own.shutdown(socket.SHUT_RDWR)


def _session_parameters(
    address: ServerAddress, replication: bool, database: str | None, application_name: str
) -> dict[str, str]:
    """All of libpq's keywords for one session; what the connection string says wins over our defaults."""
    parameters = address.parameters()
    for name, value in KEEPALIVES.items():
        parameters.setdefault(name, value)
    parameters.setdefault("client_encoding", "UTF8")
    parameters.setdefault("fallback_application_name", application_name)
    if address.password is not None:
        parameters["password"] = address.password.reveal().decode("utf-8", "surrogateescape")
    if replication:
        parameters["replication"] = "true"
        parameters.pop("dbname", None)
    elif database is not None:
        parameters["dbname"] = database
    elif "service" not in parameters:
        parameters.setdefault("dbname", "postgres")
    return parameters


def _attempts(parameters: dict[str, str]) -> Iterator[dict[str, str]]:
    """One set of parameters for every address of every host, in the order given.

    ``prefer-standby`` needs libpq to see all hosts at once, so such a string is one attempt.
    """
    names = parameters.get("host", "").split(",")
    addresses = parameters.get("hostaddr", "").split(",")
    count = max(len(names), len(addresses))
    if parameters.get("target_session_attrs") == "prefer-standby" or (count == 1 and not names[0]):
        yield parameters
        return
    ports = parameters.get("port", "").split(",")
    for position in range(count):
        one = dict(parameters)
        _put(one, "host", names[position] if position < len(names) else "")
        _put(one, "hostaddr", addresses[position] if position < len(addresses) else "")
        _put(one, "port", ports[position] if position < len(ports) else ports[-1] if len(ports) == 1 else "")
        yield from _resolved(one)


def _put(parameters: dict[str, str], name: str, value: str) -> None:
    if value:
        parameters[name] = value
    else:
        parameters.pop(name, None)


def _resolved(parameters: dict[str, str]) -> Iterator[dict[str, str]]:
    """The same parameters once for each address that the host's name has; unresolvable ones are left to libpq."""
    host = parameters.get("host", "")
    if not host or host.startswith(("/", "@")) or host[1:2] == ":" or "hostaddr" in parameters:
        yield parameters
        return
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        yield parameters
        return
    for numeric in dict.fromkeys(str(entry[4][0]) for entry in found):
        yield {**parameters, "hostaddr": numeric}


def _attempt(parameters: dict[str, str], stop: StopToken | None, replication: bool, secrets: tuple[str, ...]) -> PGconn:
    """Connect to one address. Raises: see ``connect``."""
    if stop is not None:
        stop.check()
    pgconn = pq.PGconn.connect_start(_assembled(parameters))
    try:
        _set_verbosity(pgconn, _VERBOSE)
        arrived = _drive(pgconn, float(parameters["connect_timeout"]), stop)
        if pgconn.status == pq.ConnStatus.OK:
            _set_verbosity(pgconn, _DEFAULT)
            pgconn.nonblocking = 1
            return pgconn
        raise error_of_refusal(_refusal(pgconn, parameters, replication, secrets, arrived))
    except BaseException:
        pgconn.finish()
        raise


def _assembled(parameters: Mapping[str, str]) -> bytes:
    """The connection string in bytes; psycopg's own maker refuses names that are not UTF-8."""
    quoted = (
        f"{name}='{value.replace(chr(92), chr(92) * 2).replace(chr(39), chr(92) + chr(39))}'"
        for name, value in parameters.items()
    )
    return " ".join(quoted).encode("utf-8", "surrogateescape")


def _drive(pgconn: PGconn, timeout_seconds: float, stop: StopToken | None) -> bool:
    """Poll until connected or refused; False when the time ran out (0 or less: no limit, as in libpq)."""
    deadline = time.monotonic() + max(timeout_seconds, 2) if timeout_seconds > 0 else None
    while pgconn.status not in (pq.ConnStatus.OK, pq.ConnStatus.BAD):
        wanted = pgconn.connect_poll()
        if wanted not in (pq.PollingStatus.READING, pq.PollingStatus.WRITING):
            break
        events = selectors.EVENT_READ if wanted == pq.PollingStatus.READING else selectors.EVENT_WRITE
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            if _ready(pgconn.socket, events, stop, left):
                break
    return True


def _ready(descriptor: int, events: int, stop: StopToken | None, left_seconds: float | None) -> bool:
    """Wait for the socket; False when the wait ended first. Raises: Cancelled."""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, events)
        if stop is not None:
            selector.register(stop.fileno(), selectors.EVENT_READ)
        found = selector.select(left_seconds)
    if stop is not None:
        stop.check()
    return any(key.fd == descriptor for key, _ in found)


def _refusal(
    pgconn: PGconn, parameters: dict[str, str], replication: bool, secrets: tuple[str, ...], arrived: bool
) -> Refusal:
    text = pgconn.error_message.decode("utf-8", "replace") if arrived else "connection timed out"
    for secret in secrets:
        text = text.replace(secret, "***")
    user = parameters.get("user") or _decoded(pgconn, "user")
    where = parameters.get("host") or parameters.get("hostaddr") or _decoded(pgconn, "host") or "the server"
    port = parameters.get("port") or _decoded(pgconn, "port") or "5432"
    return Refusal(
        text=text,
        where=f"{where}:{port}",
        user=user,
        database=parameters.get("dbname", ""),
        replication=replication,
        needs_password=arrived and pgconn.needs_password,
        used_password=arrived and pgconn.used_password,
    )


def _decoded(pgconn: PGconn, name: str) -> str:
    """What libpq itself took for a parameter (environment, service file, default); empty when unknown."""
    try:
        value = getattr(pgconn, name)
    except psycopg.Error:
        return ""
    return bytes(value).decode("utf-8", "replace")


def _telling_cursor(tell: Callable[[str], None]) -> type[psycopg.Cursor[tuple[object, ...]]]:
    """A cursor class that says what it runs."""

    class TellingCursor(psycopg.Cursor[tuple[object, ...]]):
        def execute(self, query: Any, *arguments: Any, **options: Any) -> Self:
            text = query.as_string(self) if isinstance(query, sql.Composable) else query
            tell(text.decode(errors="replace") if isinstance(text, bytes) else str(text))
            return super().execute(query, *arguments, **options)

    return TellingCursor


def _session(
    pgconn: PGconn, replication: bool, stop: StopToken | None, on_executed: Callable[[str], None] | None
) -> psycopg.Connection[tuple[object, ...]]:
    """The connected session as psycopg's object, prepared so that nobody's schema can shadow a function we call."""
    connection: psycopg.Connection[tuple[object, ...]] = psycopg.Connection(pgconn)
    connection.autocommit = True
    connection.prepare_threshold = None
    if on_executed is not None:
        connection.cursor_factory = _telling_cursor(on_executed)
    if not replication:
        try:
            watched = contextlib.nullcontext() if stop is None else cancelled_by(stop, connection)
            with watched, server_errors("prepare session"):
                connection.execute("SELECT pg_catalog.set_config('search_path', '', false)")
        except BaseException:
            connection.close()
            raise
    return connection


def _set_verbosity(pgconn: PGconn, verbosity: int) -> None:
    """Make libpq put the SQLSTATE into the text of a refusal, which is otherwise only in the server's language.

    libpq keeps no result of a refused connection, and psycopg does not expose PQsetErrorVerbosity; its compiled module
    resolves it from the libpq that it is linked with. Where that is not so, the text is read without a code.
    """
    pointer = getattr(pgconn, "pgconn_ptr", None)
    function = _verbosity_setter()
    if pointer is not None and function is not None:
        function(pointer, verbosity)


@functools.cache
def _verbosity_setter() -> Callable[[int, int], int] | None:
    path = getattr(sys.modules.get(pq.PGconn.__module__), "__file__", None) or ""
    if path.endswith(".py"):
        return None
    try:
        function = ctypes.CDLL(path).PQsetErrorVerbosity
    except (OSError, AttributeError):
        return None
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_int], ctypes.c_int
    return cast("Callable[[int, int], int]", function)
