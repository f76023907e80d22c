"""Reaching the database of the state, SQLite or PostgreSQL, and what its refusals mean.

Every change is one transaction that holds the database's only write lock (SQLite: BEGIN IMMEDIATE) or the row and
advisory locks it asks for (PostgreSQL); every read is one transaction too and sees one moment.

Source: SQLAlchemy documentation, SQLite, "Serializable isolation, savepoints, transactional DDL"; sqlite.org/wal.html;
PostgreSQL appendix A (error codes).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, exc, text
from sqlalchemy.dialects import postgresql, sqlite

from datamanager.base.errors import (
    ConfigurationError,
    NotFound,
    ServerError,
    ServerUnreachable,
    StateError,
    StateUnavailable,
)
from datamanager.base.units import Secret
from datamanager.config.state_url import server_address, sqlite_path
from datamanager.postgres.connection import ServerAddress, connect
from datamanager.state.tables import SCHEMA

# How long a change waits for another one before it gives up, in seconds.
WAIT_SECONDS = 10.0
# SQLSTATE classes that pass by themselves: connection, insufficient resources, shutdown; serialization, deadlock; lock.
_PASSING = ("08", "53", "57", "40", "55P03")
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_DENIED = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH)
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Database:
    """A way to the state's database. Thread-safe; closed by ``close``."""

    def __init__(self, engine: Engine, title: str) -> None:
        self._engine = engine
        self.title = title
        self.is_sqlite = engine.dialect.name == "sqlite"

    @contextlib.contextmanager
    def reading(self, doing: str) -> Iterator[Connection]:
        """A transaction that sees one moment and changes nothing.

        Args: doing - verb and noun that begin the message of a failure, as in ``list jobs``.
        Raises: StateUnavailable (retryable), StateError.
        """
        with state_errors(doing, self.title), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def writing(self, doing: str) -> Iterator[Connection]:
        """A transaction that is kept when the block ends well, and else leaves nothing. Raises: as ``reading``."""
        with (
            state_errors(doing, self.title),
            self._engine.connect().execution_options(datamanager_write=True) as connection,
            connection.begin(),
        ):
            yield connection

    def lock(self, connection: Connection, number: int) -> None:
        """Let no other change that asks for ``number`` run beside this one, until the transaction ends."""
        if not self.is_sqlite:
            connection.execute(
                text("SELECT pg_advisory_xact_lock(:family, :number)"), {"family": _FAMILY, "number": number}
            )

    def insert(self, table: Table) -> sqlite.Insert | postgresql.Insert:
        """An INSERT that may say ON CONFLICT."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    def put(self, connection: Connection, table: Table, values: Mapping[str, Any]) -> None:
        """Insert a row, or replace the one with the same primary key."""
        statement = self.insert(table).values(**values)
        keys = [column.name for column in table.primary_key]
        others = {name: statement.excluded[name] for name in values if name not in keys}
        connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=others))

    def close(self) -> None:
        self._engine.dispose()


# Tells our advisory locks from those of other programs in the same database: "dmst".
_FAMILY = 0x646D7374


def open_database(url: str, password: Secret | None = None, wait_seconds: float = WAIT_SECONDS) -> Database:
    """Prepare the way to the database; a SQLite file that is not there is made, readable for its owner alone.

    Raises: ConfigurationError (an address of another kind), StateError, StateUnavailable.
    """
    path = sqlite_path(url)
    if path is not None:
        make_file(path)
        return Database(_sqlite_engine(path, wait_seconds), str(path))
    address = server_address(url, password)
    if address is None:
        raise ConfigurationError("open state: state.url names neither a SQLite file nor a PostgreSQL")
    return Database(_postgres_engine(address, wait_seconds), address.describe())


def make_file(path: Path) -> None:
    """Make the file and its folder where they are missing. Raises: StateError.

    Root gives the file to whoever owns the folder, who else could not write it; SQLite gives the files beside it to the
    owner of the first. Source: findCreateFileMode() and robustFchown() in SQLite's os_unix.c.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = _other_owner(path.parent)
        if owner is not None and path.is_symlink():
            raise StateError(
                f"open state {path}: it is a link in a folder of another account, which root does not follow",
                hint="Run this as that account, or name the file itself with state.url.",
            )
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                if sys.platform != "win32" and owner is not None:
                    os.fchown(descriptor, *owner)
            finally:
                os.close(descriptor)
    except OSError as error:
        raise StateError(
            f"open state {path}: {(error.strerror or 'not possible').lower()}",
            hint="Run this as the account that owns that folder, or name another database with state.url.",
        ) from error


def _other_owner(folder: Path) -> tuple[int, int] | None:
    """The account and group that own a folder, where we are root and they are not."""
    if sys.platform == "win32" or os.geteuid() != 0:
        return None
    status = folder.stat()
    return None if status.st_uid == 0 else (status.st_uid, status.st_gid)


def _sqlite_engine(path: Path, wait_seconds: float) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        connect_args={"timeout": wait_seconds},
        hide_parameters=True,
        pool_size=2,
        max_overflow=20,
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: object) -> None:
        # Transactions are begun by us, not by the driver, which would not begin one for DDL.
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys = ON")
        _use_wal(connection, wait_seconds)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        write = connection.get_execution_options().get("datamanager_write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _use_wal(connection: sqlite3.Connection, wait_seconds: float) -> None:
    """Let readers and a writer go on beside each other; a file system without shared memory keeps the old way.

    The change needs the file alone, and SQLite does not wait for that by itself.
    """
    if connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
        return
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def _postgres_engine(address: ServerAddress, wait_seconds: float) -> Engine:
    def session() -> psycopg.Connection[tuple[object, ...]]:
        try:
            connection = connect(address, application_name="datamanager state")
        except ServerUnreachable as error:
            raise StateUnavailable(f"open state: {error.message}", hint=error.hint) from error
        except (ServerError, NotFound) as error:
            raise StateError(f"open state: {error.message}", hint=error.hint) from error
        connection.execute(f"SET search_path = {SCHEMA}")
        connection.execute(f"SET lock_timeout = {wait_seconds * 1000:.0f}")
        connection.autocommit = False
        return connection

    return create_engine(
        "postgresql+psycopg://",
        creator=session,
        pool_pre_ping=True,
        pool_size=2,
        max_overflow=8,
        hide_parameters=True,
        use_native_hstore=False,
    )


@contextlib.contextmanager
def state_errors(doing: str, title: str) -> Iterator[None]:
    """Turn what the database raises inside the block into this program's errors; no message holds a value of a row."""
    try:
        yield
    except psycopg.Error as error:
        raise _of_postgres(doing, title, error) from error
    except sqlite3.Error as error:
        raise _of_sqlite(doing, title, error) from error
    except exc.SQLAlchemyError as error:
        raise _of_sqlalchemy(doing, title, error) from error


def _of_sqlalchemy(doing: str, title: str, error: exc.SQLAlchemyError) -> StateError:
    cause = getattr(error, "orig", None)
    if isinstance(cause, sqlite3.Error):
        return _of_sqlite(doing, title, cause)
    if isinstance(cause, psycopg.Error):
        return _of_postgres(doing, title, cause)
    if isinstance(error, exc.TimeoutError):
        return StateUnavailable(f"{doing}: too many at once are using {title}")
    return StateError(f"{doing}: {' '.join(str(error).split())}")


def _of_sqlite(doing: str, title: str, error: sqlite3.Error) -> StateError:
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    if code in _BUSY:
        return StateUnavailable(f"{doing}: another process holds {title}")
    if code == sqlite3.SQLITE_FULL:
        return StateError(f"{doing}: the volume of {title} is full", hint="Make room there, then try again.")
    if code in _DENIED:
        return StateError(
            f"{doing}: {title} cannot be opened or written",
            hint=f"Run this as the account that owns {title}.",
        )
    if code in _DAMAGED:
        return StateError(
            f"{doing}: {title} is damaged ({error})",
            hint=f"Move {title} and the files beside it away; a new one is made. Backups do not depend on it, "
            "schedules must be made again.",
        )
    return StateError(f"{doing}: {error}")


def _of_postgres(doing: str, title: str, error: psycopg.Error) -> StateError:
    code = error.sqlstate or ""
    words = " ".join((error.diag.message_primary or str(error)).split())
    message = f"{doing}: {words} ({title})"
    if not code or code.startswith(_PASSING):
        return StateUnavailable(message)
    if code == "42501":
        return StateError(
            message,
            hint="Let the role of state.url own that database, or run `GRANT CREATE ON DATABASE … TO …` as its owner; a"
            f" schema {SCHEMA} that another role made must be given to this one.",
        )
    return StateError(message, hint=error.diag.message_hint or "")
