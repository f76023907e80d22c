"""The replication protocol over libpq, never blocking: every wait ends for data, a stop, or a deadline.

Blocking calls of the driver's C layer (``get_copy_data(0)``, ``get_result``) keep the interpreter's lock, which stops
every other thread and every signal; so results are fetched only when they are there.
Source: PostgreSQL documentation, section 54.4 (Streaming Replication Protocol) and 32.10 (COPY in libpq);
``docs/design.md``, PostgreSQL decision 6.
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
from collections.abc import Callable, Iterator
from typing import NoReturn, Self

import psycopg
from psycopg import pq

from datamanager.base.clock import Clock
from datamanager.base.errors import (
    Cancelled,
    DataManagerError,
    IncrementRefused,
    RightMissing,
    ServerError,
    ServerUnfit,
    StreamBroken,
)
from datamanager.base.pipeline import StopToken

_CANCEL_SECONDS = 3.0
_COPY_BYTES = 64 << 10
_OK = (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK)
# Whatever the server raises there is about increments; unlike the messages, names of files are never translated.
_INCREMENT_FILES = ("basebackup_incremental.c", "walsummarizer.c", "walsummary.c", "walsummaryfuncs.c", "blkreftable.c")


class ReplicationSession:
    """One walsender session. Not thread-safe; owns the connection until ``close``.

    Args:
        connection: opened with ``replication=true``.
        silence_seconds: how long the server may say nothing while we wait for it.
    """

    def __init__(
        self,
        connection: psycopg.Connection[tuple[object, ...]],
        stop: StopToken,
        clock: Clock,
        on_executed: Callable[[str], None],
        silence_seconds: float,
    ) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._pgconn.nonblocking = 1
        self._stop = stop
        self._clock = clock
        self._on_executed = on_executed
        self.silence_seconds = silence_seconds
        self._command = ""
        self.notices: list[str] = []
        connection.add_notice_handler(lambda diagnostic: self.notices.append(diagnostic.message_primary or ""))
        # Waiting on a copy of the descriptor stays valid when libpq closes its own.
        self._socket = socket.socket(fileno=socket.dup(self._pgconn.socket))
        self._wait_readable = _waiter(self._socket, stop, writing=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.close(cancel=error is not None)

    def close(self, *, cancel: bool = False) -> None:
        """End the session; ``cancel`` first asks the server, for 3 s at most, to stop what it is doing."""
        if cancel and not self._connection.closed:
            with contextlib.suppress(psycopg.Error, OSError):
                self._connection.cancel_safe(timeout=_CANCEL_SECONDS)
        self._socket.close()
        self._connection.close()

    def query(self, command: str) -> list[list[str | None]]:
        """Run a command that returns at most one result. Raises: ServerError, Cancelled."""
        self.send(command)
        rows: list[list[str | None]] = []
        while (result := self.result()) is not None:
            rows = result_rows(result)
        return rows

    def send(self, command: str) -> None:
        """Begin a command; its results are then fetched one by one. Raises: StreamBroken."""
        self._on_executed(command)
        self._command = command
        with self._mapped():
            self._pgconn.send_query(command.encode())
            while self._pgconn.flush() == 1:
                self._wait(writing=True)

    def result(self) -> pq.abc.PGresult | None:
        """The next result of the command, None after the last. Raises: ServerError, Cancelled."""
        with self._mapped():
            while self._pgconn.is_busy():
                self._wait()
                self._pgconn.consume_input()
            result = self._pgconn.get_result()
        if result is not None and result.status == pq.ExecStatus.FATAL_ERROR:
            raise error_of(result, self._command)
        return result

    def copy_messages(self) -> Iterator[memoryview]:
        """Every CopyData message of a CopyOut; each view is valid until the next is asked for.

        Raises: StreamBroken, Cancelled; an error of the server comes with the next ``result``.
        """
        get, consume = self._pgconn.get_copy_data, self._pgconn.consume_input
        wait, silence, stopping = self._wait_readable, self.silence_seconds, self._stop
        with self._mapped():
            while True:
                size, data = get(1)
                if size > 0:
                    yield data
                elif size == 0:
                    if not wait(silence) or stopping.stopping:
                        self._gave_up()
                    consume()
                else:
                    return

    def copy_in(self, command: str, data: bytes) -> None:
        """Run a command that takes ``data`` (UPLOAD_MANIFEST). Raises: ServerError, StreamBroken, Cancelled."""
        self.send(command)
        begun = self.result()
        if begun is None or begun.status != pq.ExecStatus.COPY_IN:
            raise StreamBroken("write to server: it does not take what it was to be sent")
        with self._mapped():
            view = memoryview(data)
            while len(view):
                self._pgconn.put_copy_data(view[:_COPY_BYTES])
                view = view[_COPY_BYTES:]
                self._flush()
            self._pgconn.put_copy_end()
            self._flush()
        while self.result() is not None:
            pass

    def parameter(self, name: str) -> str:
        """A parameter that the server reports by itself (``server_version``); empty when it does not."""
        return (self._pgconn.parameter_status(name.encode()) or b"").decode(errors="replace")

    def take(self) -> memoryview | None:
        """The next CopyData message that is here, valid until the next is asked for; empty when none is, None after the
        last. Never waits. Raises: StreamBroken.
        """
        with self._mapped():
            size, data = self._pgconn.get_copy_data(1)
        return None if size < 0 else data if size > 0 else memoryview(b"")

    def wait_for(self, seconds: float, wake: int | None = None, *, reading: bool = True) -> None:
        """Return when data came, ``wake`` (a descriptor) is readable, or the time has passed.

        Args: reading - whether data count; without it the server has to wait once the buffers are full.
        Raises: Cancelled, StreamBroken.
        """
        with self._mapped():
            _waiter(self._socket if reading else None, self._stop, writing=False, wake=wake)(seconds)
            self._stop.check()
            if reading:
                self._pgconn.consume_input()

    def put(self, message: bytes) -> None:
        """Send one CopyData message. Raises: StreamBroken, Cancelled."""
        with self._mapped():
            self._pgconn.put_copy_data(message)
            self._flush()

    def end_copy(self) -> None:
        """Say that no more messages will be sent. Raises: StreamBroken, Cancelled."""
        with self._mapped():
            self._pgconn.put_copy_end()
            self._flush()

    def _flush(self) -> None:
        while self._pgconn.flush() == 1:
            self._wait(writing=True)
            self._pgconn.consume_input()

    def _wait(self, *, writing: bool = False) -> None:
        wait = _waiter(self._socket, self._stop, writing=True) if writing else self._wait_readable
        if not wait(self.silence_seconds) or self._stop.stopping:
            self._gave_up()

    def _gave_up(self) -> NoReturn:
        """Raises: Cancelled when that was asked for, else StreamBroken."""
        self._stop.check()
        raise StreamBroken(
            f"read from server: it said nothing for {self.silence_seconds:.0f} s",
            hint="Check the network and the server's log, then run the command again.",
        )

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            detail = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
            raise StreamBroken(f"read from server: the connection was lost ({detail})") from error


def _waiter(
    connection: socket.socket | None, stop: StopToken, *, writing: bool, wake: int | None = None
) -> Callable[[float], object]:
    """A function that waits up to so many seconds for the connection, a stop or ``wake``; false when none came.

    poll(2) where there is one: a stream of 32 KiB messages waits 30,000 times a GB, and the selectors module adds 3 us
    to each (measured: 5 GB in 2.2 s instead of 2.6).
    """
    readable = [one for one in (connection and connection.fileno(), stop.fileno(), wake) if one is not None]
    writable = [connection.fileno()] if writing and connection is not None else []
    if hasattr(select, "poll"):
        poll = select.poll()
        for one in readable:
            poll.register(one, select.POLLIN | (select.POLLOUT if one in writable else 0))
        return lambda seconds: poll.poll(seconds * 1000)
    return lambda seconds: any(select.select(readable, writable, [], seconds))


def result_rows(result: pq.abc.PGresult) -> list[list[str | None]]:
    """The cells of a result as text."""
    return [
        [None if (cell := result.get_value(row, column)) is None else cell.decode() for column in range(result.nfields)]
        for row in range(result.ntuples)
    ]


# Where the server reports a file that it cannot read, with the same state as a right that a role lacks.
_READING_FILES = ("basebackup.c", "fd.c", "copydir.c")


def error_of(result: pq.abc.PGresult, command: str = "") -> DataManagerError:
    """What a failed result means for the person who started the command.

    Args: command - the replication command that failed; only an increment's can be IncrementRefused.
    """
    state, message = _field(result, pq.DiagnosticField.SQLSTATE), _field(result, pq.DiagnosticField.MESSAGE_PRIMARY)
    if not state:  # libpq's own words: the connection is gone
        said = message or result.error_message.decode(errors="replace").strip() or "no reason given"
        return StreamBroken(f"read from server: the connection was lost ({said.splitlines()[0]})")
    text = f"run on server: {message}"
    failure: ServerError
    if state == "42501":
        if _field(result, pq.DiagnosticField.SOURCE_FILE) in _READING_FILES:
            hint = "Give that file in its data directory to the server's account, or take it away if it is nobody's."
            return RightMissing(text, hint=hint)
        return RightMissing(text, hint="Give the role the REPLICATION attribute: ALTER ROLE name REPLICATION;")
    if state == "57014":
        return Cancelled(text)
    if state.startswith(("57P", "08")):
        return StreamBroken(text)
    if _refuses_increment(result, state, command):
        failure = IncrementRefused(text)
    elif state == "53400":
        return ServerUnfit(text, hint="Raise max_replication_slots (ALTER SYSTEM, then restart) or drop unused slots.")
    elif state == "55000":
        return ServerUnfit(text, hint=_remedy_of_state(result, message))
    else:
        failure = ServerError(text, hint="See the server's log for the details.")
    failure.sqlstate = state
    return failure


def _field(result: pq.abc.PGresult, field: pq.DiagnosticField) -> str:
    return (result.error_field(field) or b"").decode(errors="replace")


def _refuses_increment(result: pq.abc.PGresult, state: str, command: str) -> bool:
    """Whether the same backup without its parent would not meet this error."""
    words = re.sub(r"'[^']*'", "", command).upper()  # a label may say anything
    file = _field(result, pq.DiagnosticField.SOURCE_FILE).replace("\\", "/").rpartition("/")[2]
    if words.startswith("UPLOAD_MANIFEST"):
        return True
    return words.startswith("BASE_BACKUP") and "INCREMENTAL" in words and (state == "55000" or file in _INCREMENT_FILES)


def _remedy_of_state(result: pq.abc.PGresult, message: str) -> str:
    """The remedy for 55000 (the server is not in a state for it); settings keep their names in every language."""
    said = _field(result, pq.DiagnosticField.MESSAGE_HINT)
    if "wal_level" in f"{message} {said}":
        return "Set wal_level = replica and restart the server, then run the backup again."
    if "max_replication_slots" in f"{message} {said}":
        return "Raise max_replication_slots (ALTER SYSTEM, then restart) or drop unused slots."
    return said or "See the server's log for the details."
