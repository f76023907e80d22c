"""The restored directory as a server that keeps to itself, and sessions on it that nothing of the source disturbs."""

from __future__ import annotations

import contextlib
import re
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

from datamanager.base.errors import DataManagerError, NotFound, ServerError, ServerUnfit
from datamanager.base.events import Executed, Listener, Warned
from datamanager.base.pipeline import StopToken
from datamanager.drills.plan import DrillPlan
from datamanager.drills.workplace import PORT
from datamanager.postgres.clone import prepare_clone
from datamanager.postgres.connection import ServerAddress, cancelled_by, connect
from datamanager.postgres.fact_queries import Text, printable
from datamanager.postgres.isolation import assert_tablespaces_isolated, running_data_directories
from datamanager.postgres.local_server import LocalServer

Connection = psycopg.Connection[tuple[object, ...]]

# The copy lives for minutes and is thrown away: nothing of it must outlast a power cut (decision 25).
_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "default_transaction_read_only": "on",
    "max_wal_size": "1GB",
    "log_min_messages": "error",
}
_STOP_SECONDS = 5.0
_LOG_TAIL_BYTES = 64 * 1024
_CRASH = re.compile(r"\bPANIC:\s*(.*)|(was terminated by .*)")
# How long a server may take to end after a crash of one of its processes (it does not start again by itself).
_CRASH_SECONDS = 2.0


@dataclass(frozen=True)
class Database:
    """One database of the clone; ``name`` exactly as the server holds it."""

    name: str
    encoding: str


class Clone:
    """A running clone. Thread-safe but for ``stop``."""

    def __init__(self, plan: DrillPlan, server: LocalServer, major: int, stop: StopToken, listener: Listener) -> None:
        self._plan = plan
        self._server = server
        self._major = major
        self._stop = stop
        self._listener = listener
        self.user = plan.facts.superuser

    def stays_up(self) -> bool:
        """Whether the server is there; after a crash of one of its processes it goes within moments."""
        deadline = time.monotonic() + _CRASH_SECONDS
        while self._server.is_running:
            if time.monotonic() > deadline:
                return True
            if self._stop.wait(0.05):
                return True
        return False

    def last_crash(self) -> str:
        """What the server's log says of the process that crashed; empty when none did.

        ``killed`` stands for signal 9, which comes from outside and never from bad data.
        """
        try:
            with self._server.log_file.open("rb") as file:
                file.seek(max(0, self._server.log_file.stat().st_size - _LOG_TAIL_BYTES))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return ""
        found = _CRASH.findall(text)
        if not found:
            return ""
        said = " ".join("".join(found[-1]).split())
        return "killed" if re.search(r"by signal 9\b", said) else said

    @property
    def socket(self) -> Path:
        return self._plan.workplace.socket

    @property
    def port(self) -> int:
        return self._server.port

    @property
    def session_options(self) -> str:
        """Settings of every session, which beat those that the source gave its roles and databases."""
        return _words(_session_settings(self._major))

    @contextlib.contextmanager
    def session(self, database: str, *, writing: bool = False) -> Iterator[Connection]:
        """A superuser's session whose statement ends when stopping is asked for. Names that are no UTF-8 survive.

        Raises: Cancelled; what ``connect`` raises.
        """
        settings = {**_READING, **({"default_transaction_read_only": "off"} if writing else {})}
        options = f"{self.session_options} {_words(settings)}"
        host = "127.0.0.1" if sys.platform == "win32" else str(self.socket)
        address = ServerAddress(make_conninfo("", host=host, port=self.port, user=self.user, options=options))
        connection = connect(
            address, stop=self._stop, database=database, application_name="datamanager drill", on_executed=self.executed
        )
        try:
            for kind in ("text", "name", "varchar", "bpchar"):
                connection.adapters.register_loader(kind, Text)
            if connection.info.parameter_status("server_encoding") == "SQL_ASCII":
                connection.execute("SET client_encoding = 'SQL_ASCII'")
            with cancelled_by(self._stop, connection):
                yield connection
        finally:
            connection.close()

    def executed(self, text: str) -> None:
        self._listener(Executed(text.encode("utf-8", "replace").decode()))

    def open_all(self) -> tuple[list[Database], list[str]]:
        """Allow connections to every database; returns them by name, and names of those that are no databases any more.

        The latter were being dropped when the server stopped; nobody can connect to them.
        Raises: ServerError, Cancelled.
        """
        dropped = "datconnlimit = -2"
        with self._first_session() as session:
            for (name,) in session.execute(
                f"SELECT format('%I', datname) FROM pg_database WHERE NOT datallowconn AND NOT {dropped}"
            ).fetchall():
                run(session, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
            found = session.execute(
                f"SELECT datname, pg_encoding_to_char(encoding), {dropped} FROM pg_database ORDER BY datname"
            ).fetchall()
        good = [Database(str(name), str(encoding)) for name, encoding, lost in found if not lost]
        return good, [printable(name) for name, _, lost in found if lost]

    def release_prepared(self, session: Connection) -> int:
        """Roll back the prepared transactions of the session's database, whose locks nobody would ever give back here.

        Returns how many there were; the session may write. Raises: psycopg.Error.
        """
        found = session.execute(
            "SELECT quote_literal(gid) FROM pg_prepared_xacts WHERE database = current_database()"
        ).fetchall()
        for (gid,) in found:
            run(session, f"ROLLBACK PREPARED {gid}")
        return len(found)

    @contextlib.contextmanager
    def _first_session(self) -> Iterator[Connection]:
        """To whichever database admits one. Raises: ServerUnfit, when none does."""
        known = [one.name for one in self._plan.facts.databases if one.allows_connections]
        refusals: list[DataManagerError] = []
        with contextlib.ExitStack() as stack:
            for name in dict.fromkeys(["postgres", *known, "template1"]):
                try:
                    session = stack.enter_context(self.session(name, writing=True))
                except (NotFound, ServerError) as error:
                    refusals.append(error)
                    continue
                yield session
                return
        raise ServerUnfit(f"open databases: {refusals[0].message}", hint=refusals[0].hint)


def run(session: Connection, statement: str) -> psycopg.Cursor[tuple[object, ...]]:
    """Run a statement whose names the server itself quoted; they may not be UTF-8."""
    return session.execute(statement.encode("utf-8", "surrogateescape"))


@contextlib.contextmanager
def running_clone(plan: DrillPlan, stop: StopToken, listener: Listener) -> Iterator[Clone]:
    """Start what was restored, and end it at the end of the block, however that comes.

    Raises: TargetUnfit (something of it leads out of its folders), ServerDidNotStart, ProgramMissing, Cancelled.
    """
    workplace, account, manifest = plan.workplace, plan.options.account, plan.manifest
    links = plan.restore.links
    inside = {
        int(one.name): one
        for one in (workplace.data / "pg_tblspc").glob("[0-9]*")
        if one.is_dir() and not one.is_symlink()
    }
    assert_tablespaces_isolated(workplace.data, {**inside, **links}, running_data_directories())
    port = PORT if sys.platform != "win32" else _free_port()
    settings = {**_SETTINGS, **({"recovery_init_sync_method": "syncfs"} if sys.platform == "linux" else {})}
    prepared = prepare_clone(
        workplace.data,
        workplace.side,
        plan.facts,
        port=port,
        socket_directory=workplace.socket,
        account=account,
        programs=plan.programs,
        shared_preload_libraries=plan.facts.shared_preload_libraries,
        settings=settings,
    )
    # That other libraries are not loaded is meant; only what concerns the clone itself is worth a warning.
    for warning in prepared.warnings[len(prepared.dropped_libraries) :]:
        listener(Warned(warning))
    server = LocalServer(
        workplace.data,
        plan.programs,
        account,
        workplace.socket,
        port,
        prepared.options,
        workplace.side / "server.log",
        on_executed=lambda text: listener(Executed(text)),
    )
    try:
        server.start(stop)
        yield Clone(plan, server, manifest.major, stop, listener)
    finally:
        server.stop("immediate", limit_seconds=_STOP_SECONDS)


# Rows are counted in the table itself, whatever an index or several processes could do sooner.
_READING = {
    "row_security": "off",
    "synchronize_seqscans": "off",
    "enable_indexscan": "off",
    "enable_indexonlyscan": "off",
    "enable_bitmapscan": "off",
    "max_parallel_workers_per_gather": "0",
}


def _session_settings(major: int) -> dict[str, str]:
    settings = {
        "search_path": "pg_catalog",
        "statement_timeout": "0",
        "lock_timeout": "0",
        "idle_in_transaction_session_timeout": "0",
        "idle_session_timeout": "0",
        "session_preload_libraries": "",
        "local_preload_libraries": "",
        "default_transaction_read_only": "on",
        "default_tablespace": "",
        "lc_messages": "C",
    }
    if major >= 17:
        settings |= {"transaction_timeout": "0", "event_triggers": "off"}
    return settings


def _words(settings: dict[str, str]) -> str:
    return " ".join(f"-c {name}={value}" for name, value in settings.items())


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
