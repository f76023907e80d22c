"""Bringing the database to the tables of this release, one process at a time, in one transaction.

Alembic is imported only when there is something to do.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from datamanager.base.errors import FormatUnsupported
from datamanager.state.connections import Database
from datamanager.state.tables import REVISION, SCHEMA

FOLDER = Path(__file__).parent / "migrations"
_MIGRATING = 2
# Alembic's own table, one row.
_VERSION_TABLE = "alembic_version"


def migrate(database: Database) -> None:
    """Raises: FormatUnsupported, when a newer release made the tables; StateUnavailable, StateError."""
    with database.reading("open state") as connection:
        if _revision(connection) == REVISION:
            return
    with database.writing("prepare state") as connection:
        database.lock(connection, _MIGRATING)
        if not database.is_sqlite:
            connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
        if _revision(connection) != REVISION:
            _upgrade(connection, database.title)


def _revision(connection: Connection) -> str | None:
    """The revision of the tables; None where there are none yet."""
    if not inspect(connection).has_table(_VERSION_TABLE):
        return None
    return connection.execute(text(f"SELECT version_num FROM {_VERSION_TABLE}")).scalar_one_or_none()


def _upgrade(connection: Connection, title: str) -> None:
    from alembic import command  # noqa: PLC0415 - takes 0.1 s, which only the first start of a release needs
    from alembic.config import Config  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    config = Config()
    # ConfigParser takes a percent sign for the beginning of a name.
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    found = _revision(connection)
    if found is not None and found not in known:
        raise FormatUnsupported(f"open state: a newer release wrote {title} (revision {found})")
    command.upgrade(config, REVISION)
