"""The server that a dump goes into: what it has, and a new database on it that gets its name last.

Until everything is in it the database bears a name of its own, so that no kill at any moment leaves a part of a dump
under the name that was asked for.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from datamanager.base.errors import RightMissing, ServerError, UsageError
from datamanager.base.events import Listener, Warned
from datamanager.base.pipeline import StopToken
from datamanager.engine.foreign.statements import quoted
from datamanager.postgres.connection import ServerAddress, cancelled_by, connect, server_errors

# A name has 63 bytes at most.
_NAME_BYTES = 63
_WORKING = "{}_restoring_{}"
_OBJECT_NAME_BYTES = 40


@dataclass(frozen=True)
class Target:
    """A server, as the connecting role sees it. ``data_directory`` is None where the role may not know it."""

    version: str
    major: int
    role: str
    superuser: bool
    create_databases: bool
    create_roles: bool
    roles: frozenset[str]
    databases: frozenset[str]
    tablespaces: dict[str, str]
    data_directory: Path | None


_FACTS = """
SELECT current_setting('server_version'), current_setting('server_version_num')::int / 10000, current_user::text,
       r.rolsuper, r.rolcreatedb, r.rolcreaterole,
       ARRAY(SELECT rolname::text FROM pg_catalog.pg_roles), ARRAY(SELECT datname::text FROM pg_catalog.pg_database),
       ARRAY(SELECT spcname::text FROM pg_catalog.pg_tablespace ORDER BY oid),
       ARRAY(SELECT pg_catalog.pg_tablespace_location(oid) FROM pg_catalog.pg_tablespace ORDER BY oid),
       r.rolsuper OR pg_catalog.pg_has_role(r.oid, 'pg_read_all_settings', 'USAGE'),
       pg_catalog.pg_is_in_recovery()
  FROM pg_catalog.pg_roles r WHERE r.rolname = current_user
"""


class NewDatabases:
    """Sessions to the server for making, renaming and dropping. Not thread-safe; ``close`` ends it."""

    def __init__(
        self, address: ServerAddress, stop: StopToken, listener: Listener, on_executed: Callable[[str], None]
    ) -> None:
        self._stop = stop
        self._listener = listener
        self._connection = connect(address, stop=stop, on_executed=on_executed)

    def close(self) -> None:
        self._connection.close()

    def look(self) -> Target:
        """What the server has. Raises: ServerError."""
        with server_errors("look at server"):
            row = self._connection.execute(_FACTS).fetchone()
            if row is None:
                raise ServerError("look at server: the role is not in pg_roles")
            values = cast(
                "tuple[str, int, str, bool, bool, bool, list[str], list[str], list[str], list[str], bool, bool]", row
            )
            if values[11]:
                raise UsageError(
                    "restore dump: the server is a standby, which takes no changes", hint="Give its primary."
                )
            place = self._connection.execute("SHOW data_directory").fetchone() if values[10] else None
        return Target(
            *values[:6], frozenset(values[6]), frozenset(values[7]), dict(zip(values[8], values[9], strict=True)),
            Path(cast("str", place[0])) if place else None,
        )  # fmt: skip

    def create_roles(self, names: Sequence[str]) -> None:
        """Make roles that may not log in, all or none. Raises: ServerError, RightMissing."""
        with server_errors("create roles"), self._connection.transaction():
            for name in names:
                self._run(f"CREATE ROLE {quoted(name)} NOLOGIN")

    def drop_roles(self, names: Sequence[str]) -> None:
        """Take back what ``create_roles`` made. Raises: ServerError."""
        with server_errors("drop roles"):
            for name in names:
                self._run(f"DROP ROLE IF EXISTS {quoted(name)}")

    def create(self, wanted: str, attributes: Sequence[str]) -> str:
        """Make an empty database under a name for now, by the first of ``attributes`` that this server takes.

        Raises: RightMissing, ServerError, Cancelled. Returns: the name for now.
        """
        begin = wanted.encode()[:_OBJECT_NAME_BYTES].decode(errors="ignore")
        name = _WORKING.format(begin, secrets.token_hex(4))
        for number, text in enumerate(attributes):
            try:
                with server_errors("create database"), cancelled_by(self._stop, self._connection):
                    self._run(f"CREATE DATABASE {quoted(name)} WITH TEMPLATE = template0 {text}".strip())
            except RightMissing:
                raise
            except ServerError as error:
                if number == len(attributes) - 1:
                    raise
                self._listener(Warned(f"the new database cannot be as the dump's was ({text}): {error.message}"))
            else:
                return name
        raise ServerError("create database: no attributes were given")

    def rename(self, name: str, wanted: str) -> None:
        """Give the database its name. Raises: ServerError."""
        with server_errors("rename database"):
            self._run(f"ALTER DATABASE {quoted(name)} RENAME TO {quoted(wanted)}")

    def drop(self, name: str) -> None:
        """Remove the database, whoever is in it. Raises: ServerError."""
        with server_errors("drop database"):
            self._run(f"DROP DATABASE IF EXISTS {quoted(name)} WITH (FORCE)")

    def _run(self, statement: str) -> None:
        # The names in it are quoted; nothing else of it comes from outside but a dump's own CREATE DATABASE.
        self._connection.execute(statement.encode())


def check_name(name: str, target: Target) -> None:
    """Raises: UsageError, for a name that no new database of this server can have."""
    if not name or "\0" in name or len(name.encode()) > _NAME_BYTES:
        raise UsageError("restore dump: a database's name has 1 to 63 bytes", hint="Choose another name for --into.")
    if name in target.databases:
        raise UsageError(
            f"restore dump: the database {name} exists already",
            hint="Choose another name for --into; a restore never writes into a database that is there.",
        )
