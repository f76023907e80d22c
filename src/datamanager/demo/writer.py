"""A writer that never pauses: it numbers its commits and notes how far the write-ahead log had come after each.

What it notes is what a restored copy is held against (see ``compare.check_commit_run``): a commit whose noted position
is at or before a backup's end must be in that backup, and no number may be missing before the last.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

import psycopg
from psycopg.rows import TupleRow

from datamanager.base.errors import DataManagerError, ServerError, ServerUnreachable
from datamanager.base.units import Lsn
from datamanager.postgres.connection import server_errors

# 60 to 360 bytes to a row, so that a few thousand commits change a few hundred pages.
_NOTE = "Blood pressure taken, patient rests, next check in an hour. "
_CONNECT_SECONDS = 10
_RECONNECT_SECONDS = 0.2

_CREATE = "CREATE TABLE IF NOT EXISTS commit_log (n bigint PRIMARY KEY, note text NOT NULL)"
_LAST = "SELECT coalesce(max(n), 0) FROM commit_log"
_INSERT = "INSERT INTO commit_log VALUES (%s, %s)"
_POSITION = "SELECT pg_current_wal_insert_lsn()::text"


class CommitWriter:
    """Commits rows n = 1, 2, 3, … to ``commit_log`` in a thread with a connection of its own, until stopped.

    Numbers go on from the table's highest where it exists. One writer a table: two would collide. ``commits``,
    ``failures`` and ``stop`` may be used from any thread; ``start`` once.
    """

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="commit writer", daemon=True)
        self._commits: list[tuple[int, Lsn]] = []
        self._failures: list[str] = []
        self._connection: psycopg.Connection[TupleRow] | None = None
        self._next = 1

    @property
    def commits(self) -> list[tuple[int, Lsn]]:
        """A copy of what was committed so far: number, and a position at or after the end of its commit record."""
        return self._commits.copy()

    @property
    def failures(self) -> list[str]:
        """A copy of the server's messages of failed transactions; empty when all went well."""
        return self._failures.copy()

    def start(self) -> None:
        """Connect, make the table, begin. Raises: ServerUnreachable (retryable), RightMissing, ServerError."""
        try:
            self._open()
        except DataManagerError:
            self._close()
            raise
        self._thread.start()

    def stop(self) -> None:
        """End after the commit in work and close the connection; harmless when called again or never started."""
        self._ending.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _open(self) -> None:
        with server_errors("start writer"):
            connection = psycopg.connect(
                self._conninfo, autocommit=True, connect_timeout=_CONNECT_SECONDS, application_name="datamanager demo"
            )
            self._connection = connection
            connection.execute(_CREATE)
            row = connection.execute(_LAST).fetchone()
        self._next = 1 + (int(row[0]) if row else 0)

    def _work(self) -> None:
        while not self._ending.is_set():
            try:
                if self._connection is None:
                    self._open()
                self._commit_once()
            except (psycopg.Error, DataManagerError) as error:
                self._failures.append(_first_line(error))
                # The commit may or may not have happened: a new connection asks the table for its highest number.
                self._close()
                self._ending.wait(_RECONNECT_SECONDS)

    def _commit_once(self) -> None:
        """One transaction, committed when ``execute`` returns (autocommit); then the log's position, never before."""
        if self._connection is None:
            raise ServerUnreachable("commit row: the writer has no connection")
        number = self._next
        self._connection.execute(_INSERT, (number, _NOTE * (1 + number % 6)))
        row = self._connection.execute(_POSITION).fetchone()
        if row is None:
            raise ServerError("note position: the server gave no answer")
        self._commits.append((number, Lsn.parse(row[0])))
        self._next = number + 1

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
