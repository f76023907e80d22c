"""Opening the state: history, queue, schedules, alerts, audit and proofs in one database."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from sqlalchemy import inspect, select, text

from datamanager.base.clock import Clock
from datamanager.base.units import Secret
from datamanager.state.alerts import AlertStore
from datamanager.state.audit import AuditStore
from datamanager.state.connections import WAIT_SECONDS, Database, open_database
from datamanager.state.jobs import JobStore
from datamanager.state.known import KnownStore
from datamanager.state.migrating import migrate
from datamanager.state.proofs import ProofStore
from datamanager.state.schedules import ScheduleStore
from datamanager.state.tables import clusters


class State:
    """The stores, one a topic. Thread-safe; closed by ``close`` or at the end of its ``with``.

    ``is_file`` says that it is a file of this home, which no other computer uses.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self.title = database.title
        self.is_file = database.is_sqlite
        self.jobs = JobStore(database, clock)
        self.schedules = ScheduleStore(database)
        self.audit = AuditStore(database, clock)
        self.alerts = AlertStore(database, clock)
        self.proofs = ProofStore(database)
        self.known = KnownStore(database)

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_state(
    url: str,
    *,
    clock: Clock,
    password: Secret | None = None,
    wait_seconds: float = WAIT_SECONDS,
    judge_server: Callable[[str, Mapping[str, str]], None] | None = None,
) -> State:
    """Open the database and bring its tables up to date; a SQLite file that is not there is made.

    Args:
        url: ``sqlite:////absolute/file`` (``config.state_url.sqlite_url`` writes it) or ``postgresql://USER@HOST/DATABASE``.
        password: of the PostgreSQL user, where it needs one.
        wait_seconds: how long a change waits for that of another process.
        judge_server: given the PostgreSQL server's system identifier, and those of the clusters that the state knows by
            name, before anything is made there; raises to refuse.

    Raises: FormatUnsupported, when a newer release made the tables; ConfigurationError (the address); StateUnavailable
        (retryable), StateError; what ``judge_server`` raises.
    """
    database = open_database(url, password, wait_seconds)
    try:
        if judge_server is not None and not database.is_sqlite:
            judge_server(_system_identifier(database), _known_identifiers(database))
        migrate(database)
    except BaseException:
        database.close()
        raise
    return State(database, clock)


def _system_identifier(database: Database) -> str:
    """Tells one cluster from all others. Source: PostgreSQL documentation, pg_control_system(), open to everybody."""
    with database.reading("open state") as connection:
        return str(connection.execute(text("SELECT system_identifier FROM pg_control_system()")).scalar_one())


def _known_identifiers(database: Database) -> dict[str, str]:
    """By name of the cluster; empty where there are no tables yet."""
    with database.reading("open state") as connection:
        if not inspect(connection).has_table(clusters.name):
            return {}
        query = select(clusters.c.name, clusters.c.system_identifier).where(clusters.c.system_identifier != "")
        return {row.name: row.system_identifier for row in connection.execute(query)}
