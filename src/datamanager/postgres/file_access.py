"""Reading configuration files: from this machine's disk, or through the server that has them.

Both say FileNotFoundError for what is not there and OSError for what they may not or cannot read.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psycopg
from psycopg import sql

from datamanager.base.errors import DataManagerError
from datamanager.base.pipeline import StopToken
from datamanager.postgres.connection import ServerAddress, cancelled_by, connect
from datamanager.postgres.outside_model import MOST_OUTSIDE_BYTES

_UNKNOWN_MODE = 0o640
_NO_SUCH_FILE, _DENIED = ("58P01", "42704"), "42501"
# One byte more than is kept tells a file that is too large.
_LIMIT = MOST_OUTSIDE_BYTES + 1


@dataclass(frozen=True, slots=True)
class ReadFile:
    """``data`` ends after MOST_OUTSIDE_BYTES + 1 bytes; ``size`` is that of the whole file, as far as it is known."""

    data: bytes
    mode: int
    size: int


class FileAccess(Protocol):
    """One way to the server's files."""

    @property
    def title(self) -> str:
        """``disk`` or ``server``."""
        ...

    def read(self, path: str) -> ReadFile:
        """Raises: FileNotFoundError, OSError; Cancelled."""
        ...

    def names(self, folder: str) -> list[str]:
        """What is in a folder, sorted. Raises: FileNotFoundError, OSError; Cancelled."""
        ...

    def is_link(self, path: str) -> bool:
        """Whether a link is known to be there, which BASE_BACKUP leaves out."""
        ...


class DiskAccess:
    """This machine's own files. Thread-safe."""

    title = "disk"

    def read(self, path: str) -> ReadFile:
        with Path(path).open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "no regular file", path)
            return ReadFile(file.read(_LIMIT), stat.S_IMODE(status.st_mode) & 0o777, status.st_size)

    def names(self, folder: str) -> list[str]:
        return sorted(one.name for one in Path(folder).iterdir())

    def is_link(self, path: str) -> bool:
        return Path(path).is_symlink()


class ServerAccess:
    """The server's files through an SQL session, which is made when it is first needed. Closed by ``close``.

    Works for a superuser, and for a role with pg_read_server_files and EXECUTE on pg_read_file (and pg_ls_dir).
    """

    title = "server"

    def __init__(self, address: ServerAddress, stop: StopToken, on_sql: Callable[[str], None]) -> None:
        self._address = address
        self._stop = stop
        self._on_sql = on_sql
        self._connection: psycopg.Connection[tuple[object, ...]] | None = None
        self._binary = False

    def read(self, path: str) -> ReadFile:
        self._connect()
        # Without pg_read_binary_file the bytes come as text of the database's encoding, and are kept as that.
        call = "pg_read_binary_file({}, 0, {})" if self._binary else "pg_read_file({}, 0, {})"
        statement = sql.SQL(f"SELECT {call}").format(sql.Literal(path), sql.Literal(_LIMIT))
        if not self._binary:
            statement = sql.SQL("SELECT convert_to(({}), getdatabaseencoding())").format(statement)
        data = self._rows(statement, path)[0][0]
        raw = bytes(data) if isinstance(data, (bytes, memoryview)) else b""
        return ReadFile(raw, _UNKNOWN_MODE, len(raw))

    def names(self, folder: str) -> list[str]:
        statement = sql.SQL("SELECT n::text FROM pg_ls_dir({}) n ORDER BY n").format(sql.Literal(folder))
        return [str(row[0]) for row in self._rows(statement, folder)]

    def is_link(self, path: str) -> bool:
        return False  # the server does not tell

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _connect(self) -> psycopg.Connection[tuple[object, ...]]:
        if self._connection is None:
            try:
                self._connection = connect(self._address, stop=self._stop, on_executed=self._on_sql)
            except DataManagerError as error:
                self._stop.check()
                raise OSError(errno.EACCES, error.message) from error
            self._rows(sql.SQL("SET default_transaction_read_only = on"), "")
            granted = sql.SQL("SELECT has_function_privilege({}, 'EXECUTE')").format(
                sql.Literal("pg_catalog.pg_read_binary_file(text, bigint, bigint)")
            )
            self._binary = bool(self._rows(granted, "")[0][0])
        return self._connection

    def _rows(self, statement: sql.SQL | sql.Composed, path: str) -> list[tuple[object, ...]]:
        connection = self._connect()
        self._stop.check()
        try:
            with cancelled_by(self._stop, connection):
                cursor = connection.execute(statement)
                return cursor.fetchall() if cursor.description else []
        except (psycopg.Error, UnicodeError) as error:
            code = getattr(error, "sqlstate", "")
            if code in _NO_SUCH_FILE:
                raise FileNotFoundError(errno.ENOENT, "not there", path) from error
            reason = str(error).split("\n", 1)[0]
            raise OSError(errno.EACCES if code == _DENIED else errno.EIO, reason, path) from error
