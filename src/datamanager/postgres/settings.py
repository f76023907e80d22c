"""Changing settings of a server by ALTER SYSTEM and a reload, so that each can be put back later.

First a plan, which only reads and refuses what cannot work; then the change, after which the values in force are read
again, for a line on the server's command line beats ``postgresql.auto.conf``. Nothing here restarts a server.

Source: PostgreSQL documentation, ALTER SYSTEM; 19.1.2 (configuration files); 54.24 (pg_settings, its contexts).
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from psycopg import sql

from datamanager.base.errors import DataManagerError, NotFound, RightMissing, ServerUnfit
from datamanager.base.pipeline import StopToken
from datamanager.postgres.connection import ServerAddress, cancelled_by, connect, server_errors
from datamanager.postgres.connection_errors import quote_identifier

# What a reload changes in sessions that exist already.
RELOADABLE = ("sighup", "superuser", "user")
RELOAD = "SELECT pg_reload_conf();"
# The postmaster passes a reload on within milliseconds; an overloaded machine takes longer.
_RELOAD_SECONDS = 10.0
_LOOK_SECONDS = 0.05
_PLAIN_NAME = re.compile(r"[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)*")

_READ = (
    "SELECT name, current_setting(name), context, coalesce(source, ''), coalesce(sourcefile, '')"
    " FROM pg_catalog.pg_settings WHERE name = ANY (%s)"
)
_MAY_READ_LINES = "SELECT has_function_privilege('pg_catalog.pg_show_all_file_settings()', 'EXECUTE')"
_LINES = (
    "SELECT name, setting FROM pg_catalog.pg_file_settings"
    r" WHERE name = ANY (%s) AND sourcefile ~ '[/\\]postgresql[.]auto[.]conf$' ORDER BY seqno"
)
_RIGHTS = (
    "SELECT rolname::text, rolsuper, has_function_privilege('pg_catalog.pg_reload_conf()', 'EXECUTE'),"
    " coalesce(current_setting('allow_alter_system', true), 'on') = 'on'"
    " FROM pg_catalog.pg_roles WHERE rolname = current_user"
)
_GRANTED = "SELECT bool_and(has_parameter_privilege(name, 'ALTER SYSTEM')) FROM unnest(%s::text[]) AS name"
_FIRST_WITH_GRANTS = 150000  # GRANT ALTER SYSTEM ON PARAMETER


@dataclass(frozen=True)
class SettingChange:
    """One setting as it was and as it is to be.

    Args:
        before: its line in ``postgresql.auto.conf``; None when it had none there.
        after: the value given to ALTER SYSTEM.
        shown_before, shown_after: the value in force, as SHOW prints it; the latter is empty until it was changed.
    """

    name: str
    before: str | None
    after: str
    shown_before: str = ""
    shown_after: str = ""

    @property
    def statement(self) -> str:
        """The SQL that makes the change."""
        return alter(self.name, self.after)

    @property
    def undo(self) -> str:
        """The SQL that takes it back."""
        return alter(self.name, self.before)


@dataclass(frozen=True)
class PutBack:
    """What became of changes: ``restored`` are as before; ``left`` are not as we set them, so somebody changed them."""

    restored: tuple[SettingChange, ...] = ()
    left: tuple[SettingChange, ...] = ()


def alter(name: str, value: str | None) -> str:
    """The ALTER SYSTEM statement for a value; None resets."""
    words = name if _PLAIN_NAME.fullmatch(name) else ".".join(map(quote_identifier, name.split(".")))
    if value is None:
        return f"ALTER SYSTEM RESET {words};"
    return f"ALTER SYSTEM SET {words} = {sql.Literal(value).as_string(None).strip()};"


def to_run(statements: Iterable[str]) -> str:
    """Statements and the reload in one line for a person, each in backquotes."""
    return " ".join(f"`{one}`" for one in (*statements, RELOAD))


def plan_settings(
    address: ServerAddress, stop: StopToken, on_sql: Callable[[str], None], wanted: Mapping[str, str]
) -> list[SettingChange]:
    """Read what there is, and refuse what could not be changed. Nothing is changed; values in force are left out.

    Raises: RightMissing, ServerUnfit (needs a restart, is unknown to this server, set on its command line, ALTER SYSTEM
        not allowed), the hint naming what to run instead; ServerUnreachable (retryable), AuthenticationFailed,
        ConfigurationError, Cancelled.
    """
    with _session(address, stop, on_sql) as connection:
        found = _read(connection, list(wanted))
        for name in wanted:
            _check_changeable(name, wanted[name], found.get(name))
        planned = [
            SettingChange(name, found[name].line, value, found[name].shown)
            for name, value in wanted.items()
            if found[name].shown != value
        ]
        _check_rights(connection, planned, [one.statement for one in planned])
    return planned


def apply_settings(
    address: ServerAddress, stop: StopToken, on_sql: Callable[[str], None], planned: Sequence[SettingChange]
) -> list[SettingChange]:
    """Make the planned changes, reload, and read the values in force.

    Returns: the changes with ``shown_after``.
    Raises: as ``plan_settings``; ServerUnfit also when a value did not come into force. After RightMissing and
        ServerUnfit everything is as it was; after another error what was changed is not known.
    """
    with _session(address, stop, on_sql) as connection:
        done: list[SettingChange] = []
        try:
            for one in planned:
                _run(connection, one.statement)
                done.append(one)
            return _in_force(connection, planned, stop)
        except (RightMissing, ServerUnfit):
            with contextlib.suppress(DataManagerError):
                _undo(connection, done)
            raise


def put_back(
    address: ServerAddress, stop: StopToken, on_sql: Callable[[str], None], changes: Sequence[SettingChange]
) -> PutBack:
    """Make settings what they were before our changes, but for those that are not as we set them.

    Raises: as ``plan_settings``; after RightMissing and ServerUnfit nothing was changed.
    """
    with _session(address, stop, on_sql) as connection:
        found = _read(connection, [one.name for one in changes])
        ours = tuple(one for one in changes if one.name in found and found[one.name].is_still(one))
        _check_rights(connection, ours, [one.undo for one in ours])
        _undo(connection, ours)
    return PutBack(ours, tuple(one for one in changes if one not in ours))


@dataclass(frozen=True)
class _State:
    """A setting now; ``line`` is that of postgresql.auto.conf, certain only where ``line_known``."""

    shown: str
    context: str
    source: str
    line: str | None
    line_known: bool

    def is_still(self, change: SettingChange) -> bool:
        """Whether it is as the change left it."""
        if self.line_known:
            return self.line == change.after
        return bool(change.shown_after) and self.shown == change.shown_after


@contextlib.contextmanager
def _session(
    address: ServerAddress, stop: StopToken, on_sql: Callable[[str], None]
) -> Iterator[psycopg.Connection[Any]]:
    try:
        connection = connect(address, stop=stop, on_executed=on_sql)
    except NotFound:
        connection = connect(address, stop=stop, on_executed=on_sql, database="template1")
    with connection, cancelled_by(stop, connection):
        yield connection


def _run(connection: psycopg.Connection[Any], statement: str, *parameters: object) -> list[tuple[Any, ...]]:
    with server_errors("change settings"):
        cursor = connection.execute(statement.encode(), parameters or None)
        return cursor.fetchall() if cursor.description is not None else []


def _read(connection: psycopg.Connection[Any], names: list[str]) -> dict[str, _State]:
    """The settings that the server knows, by name."""
    ((lines_known,),) = _run(connection, _MAY_READ_LINES)
    lines: dict[str, str] = dict(_run(connection, _LINES, names)) if lines_known else {}
    found: dict[str, _State] = {}
    for name, shown, context, source, file in _run(connection, _READ, names):
        own = file.replace("\\", "/").endswith("/postgresql.auto.conf")
        # Without the right to see the file, a value from some file is kept as it is.
        line = (
            lines.get(name) if lines_known else shown if own or (source == "configuration file" and not file) else None
        )
        found[name] = _State(shown, context, source, line, bool(lines_known))
    return found


def _check_changeable(name: str, value: str, state: _State | None) -> None:
    """Raises: ServerUnfit."""
    if state is None:
        raise ServerUnfit(f"change setting {name}: this server does not have it")
    if state.context not in RELOADABLE:
        hint = "It cannot be set at all."
        if state.context != "internal":
            hint = f"Run `{alter(name, value)}` as a superuser, then restart the server."
        raise ServerUnfit(f"change setting {name}: a reload does not change it", hint=hint)
    if state.source in ("command line", "environment variable"):
        raise ServerUnfit(
            f"change setting {name}: it stands on the {state.source.replace('command line', 'server command line')}",
            hint=f"Start the server with {name}={value} there, or take {name} out of it and run this again.",
        )


def _check_rights(connection: psycopg.Connection[Any], changes: Sequence[SettingChange], statements: list[str]) -> None:
    """Raises: RightMissing, ServerUnfit, with what to run instead."""
    if not changes:
        return
    names = ", ".join(one.name for one in changes)
    ((role, superuser, may_reload, allowed),) = _run(connection, _RIGHTS)
    if not allowed:
        raise ServerUnfit(
            f"change settings {names}: ALTER SYSTEM is not allowed (allow_alter_system is off)",
            hint=_lines_hint(changes, statements),
        )
    may = superuser
    if not superuser and connection.info.server_version >= _FIRST_WITH_GRANTS:
        ((may,),) = _run(connection, _GRANTED, [one.name for one in changes])
    if not (may and may_reload):
        raise RightMissing(
            f"change settings {names}: the role {role} may not",
            hint=f"Run {to_run(statements)} on the server as a superuser.",
        )


def _lines_hint(changes: Sequence[SettingChange], statements: list[str]) -> str:
    """What to do in postgresql.conf in place of the statements."""
    put, removed = [], []
    for one, statement in zip(changes, statements, strict=True):
        value = one.after if statement == one.statement else one.before
        if value is None:
            removed.append(f"`{one.name}`")
        else:
            escaped = value.replace("'", "''")
            put.append(f"`{one.name} = '{escaped}'`")
    words = [f"put {' and '.join(put)} into postgresql.conf"] if put else []
    words += [f"take {' and '.join(removed)} out of postgresql.auto.conf"] if removed else []
    text = " and ".join(words)
    return f"{text[:1].upper()}{text[1:]}, then run `{RELOAD}` on the server."


def _in_force(
    connection: psycopg.Connection[Any], changes: Sequence[SettingChange], stop: StopToken
) -> list[SettingChange]:
    """Reload and wait until every value has changed. Raises: ServerUnfit, Cancelled."""
    _run(connection, RELOAD)
    ends = time.monotonic() + _RELOAD_SECONDS
    while True:
        found = _read(connection, [one.name for one in changes])
        waiting = [one.name for one in changes if found[one.name].shown == one.shown_before]
        if not waiting:
            return [replace(one, shown_after=found[one.name].shown) for one in changes]
        if time.monotonic() > ends:
            states = ", ".join(f"{name} is still {found[name].shown} ({found[name].source})" for name in waiting)
            raise ServerUnfit(f"change settings: {states}", hint="See the server's log for what became of its reload.")
        if stop.wait(_LOOK_SECONDS):
            stop.check()


def _undo(connection: psycopg.Connection[Any], changes: Sequence[SettingChange]) -> None:
    """Put the earlier lines back and reload."""
    for one in changes:
        _run(connection, one.undo)
    if changes:
        _run(connection, RELOAD)
