"""Reading the facts of a cluster: as much as the role may see, with a warning for what it may not.

A plain LOGIN REPLICATION role gets most of it; where no SQL session is allowed at all, a replication session still
tells version, system identifier, timeline and the settings that everybody may see.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import PurePath, PurePosixPath, PureWindowsPath
from typing import TypeVar

import psycopg

from datamanager.base.errors import AuthenticationFailed, DataManagerError, NotFound, RightMissing
from datamanager.base.pipeline import StopToken
from datamanager.base.units import parse_size
from datamanager.postgres import fact_queries as queries
from datamanager.postgres.connection import ServerAddress, connect, server_errors
from datamanager.postgres.connection_errors import quote_identifier
from datamanager.postgres.facts_model import (
    CollationFact,
    DatabaseFact,
    ExtensionFact,
    MembershipFact,
    RoleFact,
    ServerFacts,
    SettingFact,
    TablespaceFact,
)

__all__ = [
    "CollationFact",
    "DatabaseFact",
    "ExtensionFact",
    "MembershipFact",
    "RoleFact",
    "ServerFacts",
    "SettingFact",
    "TablespaceFact",
    "collect_facts",
]

# Looking into every database takes a connection each (about 5 ms locally); a cluster of thousands is not looked
# through to the end before its backup may begin.
_LOOK_INTO_SECONDS = 60.0
_NUMBERS = (
    "max_connections", "max_worker_processes", "max_wal_senders", "max_prepared_transactions",
    "max_locks_per_transaction",
)  # fmt: skip
_SIZES = ("block_size", "wal_block_size", "segment_size", "wal_segment_size")
_TEXTS = ("server_version", "server_version_num", "wal_level", "archive_mode", "data_checksums")
# These need superuser or pg_read_all_settings in SQL.
_GUARDED = ("data_directory", "config_file", "hba_file", "ident_file", "shared_preload_libraries")

T = TypeVar("T")


def collect_facts(
    address: ServerAddress, stop: StopToken, fingerprint_key: bytes, on_sql: Callable[[str], None]
) -> ServerFacts:
    """Describe the cluster at ``address``.

    Args:
        fingerprint_key: 32 bytes that key the digests of password verifiers.
        on_sql: is told each statement before it runs.

    Returns: facts bounded to 2 MiB of JSON; what could not be read stands in ``warnings``.
    Raises: ServerUnreachable, AuthenticationFailed, RightMissing, ServerUnfit (no session of any kind), Cancelled.
    """
    if len(fingerprint_key) != 32:
        raise ValueError("collect facts: the fingerprint key must have 32 bytes")
    warnings: list[str] = []
    try:
        connection = _sql_session(address, stop)
    except (AuthenticationFailed, RightMissing) as denied:
        try:
            return _by_replication(address, stop, on_sql, denied)
        except DataManagerError:
            raise denied from None
    with connection:
        with queries.Reader(connection, stop, on_sql) as reader:
            with server_errors("read server facts"):
                reader.prepare()
                facts = _cluster(reader)
            collector = _Collector(reader, warnings)
            facts = _guarded(facts, collector)
            facts = _lists(facts, collector, fingerprint_key)
        databases = _look_into_all(address, stop, on_sql, collector.databases(), warnings)
    return replace(facts, databases=databases, warnings=tuple(warnings)).bounded()


class _Collector:
    """Runs one topic after the other; a topic that fails becomes a warning and its default. One thread."""

    def __init__(self, reader: queries.Reader, warnings: list[str]) -> None:
        self._reader = reader
        self._warnings = warnings

    def topic(self, name: str, read: Callable[[queries.Reader], T], default: T) -> T:
        """Raises: ServerUnreachable, when the session was lost; Cancelled."""
        try:
            return read(self._reader)
        except psycopg.Error as error:
            # A session that is gone fails the whole collection, at once and retryably.
            if error.sqlstate is None or error.sqlstate.startswith(("08", "57P")):
                with server_errors(f"read {name}"):
                    raise
            self.warn(f"cannot read {name}: {_line(error)}")
            return default

    def databases(self) -> tuple[tuple[str, DatabaseFact], ...]:
        none: tuple[tuple[str, DatabaseFact], ...] = ()
        found = self.topic("databases with their sizes", lambda it: queries.read_databases(it, sizes=True), none)
        return found or self.topic("databases", lambda it: queries.read_databases(it, sizes=False), none)

    def tablespaces(self) -> tuple[TablespaceFact, ...]:
        none: tuple[TablespaceFact, ...] = ()
        found = self.topic("tablespaces with their sizes", lambda it: queries.read_tablespaces(it, sizes=True), none)
        return found or self.topic("tablespaces", lambda it: queries.read_tablespaces(it, sizes=False), none)

    def warn(self, text: str) -> None:
        self._warnings.append(text)


def _sql_session(address: ServerAddress, stop: StopToken) -> psycopg.Connection[tuple[object, ...]]:
    """A session in the address's database, or in template1 where that one does not exist."""
    try:
        return connect(address, stop=stop)
    except NotFound:
        return connect(address, stop=stop, database="template1")


def _cluster(reader: queries.Reader) -> ServerFacts:
    """What every role may read of the cluster as a whole. Raises: psycopg.Error."""
    names = (*_TEXTS, *_NUMBERS, *_SIZES)
    shown = reader.row("SELECT " + ", ".join(f"current_setting('{name}')" for name in names))
    values = dict(zip(names, map(str, shown), strict=True))
    recovering, text, identifier = reader.row(
        "SELECT pg_is_in_recovery(), version(), (SELECT system_identifier FROM pg_control_system())"
    )
    # On a primary the control file tells the old timeline until the checkpoint that follows a promotion.
    timeline = reader.row(
        "SELECT timeline_id FROM pg_control_checkpoint()"
        if recovering
        else "SELECT ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int"
    )
    role, rights = queries.read_rights(reader)
    facts = _from_settings(values, int(str(identifier)), int(str(timeline[0])), str(text))
    return replace(facts, in_recovery=bool(recovering), role=role, rights=rights)


def _from_settings(values: Mapping[str, str], identifier: int, timeline: int, text: str) -> ServerFacts:
    number = int(values["server_version_num"])
    system, architecture = build_target(text)
    sizes = {name: parse_size(values[name]) for name in _SIZES}
    numbers = {name: int(values[name]) for name in _NUMBERS}
    return ServerFacts(
        version=values["server_version"],
        version_number=number,
        major=number // 10000,
        system_identifier=identifier,
        version_text=text,
        operating_system=system,
        architecture=architecture,
        timeline=timeline,
        data_checksums=values["data_checksums"] == "on",
        wal_level=values["wal_level"],
        archive_mode=values["archive_mode"],
        block_size=sizes["block_size"],
        wal_block_size=sizes["wal_block_size"],
        segment_size=sizes["segment_size"],
        wal_segment_size=sizes["wal_segment_size"],
        max_connections=numbers["max_connections"],
        max_worker_processes=numbers["max_worker_processes"],
        max_wal_senders=numbers["max_wal_senders"],
        max_prepared_transactions=numbers["max_prepared_transactions"],
        max_locks_per_transaction=numbers["max_locks_per_transaction"],
    )


def build_target(version_text: str) -> tuple[str, str]:
    """Operating-system family and architecture of the build, from ``version()``; empty when it does not say.

    MSVC builds before 17 name no system: ``PostgreSQL 16.1, compiled by Visual C++ build 1937, 64-bit``.
    """
    if "Visual C++" in version_text or "msvc" in version_text:
        return "windows", "x86" if "32-bit" in version_text else "aarch64" if "aarch64" in version_text else "x86_64"
    target = re.search(r" on ([^,]+),", version_text)
    if target is None:
        return "", ""
    triple = target[1].strip()
    families = ("linux", "darwin", "freebsd", "openbsd", "netbsd", "solaris", "windows", "mingw", "cygwin", "aix")
    family = next((name for name in families if name in triple), "")
    return {"mingw": "windows", "cygwin": "windows"}.get(family, family), triple.split("-")[0]


def _guarded(facts: ServerFacts, collector: _Collector) -> ServerFacts:
    """Add the settings that only superuser and pg_read_all_settings may see."""
    if not (facts.rights.get("superuser") or facts.rights.get("pg_read_all_settings")):
        collector.warn(_guarded_warning(facts.role))
        return facts
    statement = "SELECT " + ", ".join(f"current_setting('{name}')" for name in _GUARDED)
    unknown: tuple[object, ...] = ("",) * len(_GUARDED)
    shown = collector.topic("file locations", lambda it: it.row(statement), unknown)
    return _with_files(facts, dict(zip(_GUARDED, map(queries.printable, shown), strict=True)))


def _guarded_warning(role: str) -> str:
    grant = f"GRANT pg_monitor TO {quote_identifier(role)};"
    return f"where the data directory and the configuration files lie is unknown, and some settings: run `{grant}`"


def _show(reader: queries.Reader, names: tuple[str, ...]) -> dict[str, str]:
    """Settings by SHOW, the only statement about them that a replication session knows. Raises: psycopg.Error."""
    return {name: queries.printable(reader.row(f"SHOW {name}")[0]) for name in names}


def _with_files(facts: ServerFacts, values: Mapping[str, str]) -> ServerFacts:
    flavour: type[PurePath] = PureWindowsPath if facts.operating_system == "windows" else PurePosixPath
    directory = values["data_directory"]
    files = [values[name] for name in ("config_file", "hba_file", "ident_file") if values[name]]
    outside = tuple(one for one in files if directory and not flavour(one).is_relative_to(flavour(directory)))
    return replace(
        facts,
        data_directory=directory or None,
        config_file=values["config_file"] or None,
        hba_file=values["hba_file"] or None,
        ident_file=values["ident_file"] or None,
        shared_preload_libraries=values["shared_preload_libraries"],
        files_outside=outside,
    )


def _lists(facts: ServerFacts, collector: _Collector, fingerprint_key: bytes) -> ServerFacts:
    superuser = facts.rights.get("superuser", False)
    if not superuser:
        collector.warn(
            "whether passwords of roles changed is not recorded: only a superuser reads the verifiers"
            f" (`ALTER ROLE {quote_identifier(facts.role)} SUPERUSER;`, seldom worth it)"
        )
    return replace(
        facts,
        tablespaces=collector.tablespaces(),
        settings=collector.topic("settings", queries.read_settings, ()),
        roles=collector.topic("roles", lambda it: queries.read_roles(it, fingerprint_key, verifiers=superuser), ()),
    )


def _look_into_all(
    address: ServerAddress,
    stop: StopToken,
    on_sql: Callable[[str], None],
    databases: tuple[tuple[str, DatabaseFact], ...],
    warnings: list[str],
) -> tuple[DatabaseFact, ...]:
    """Extensions and collations of every database that allows connections; a failure is a warning."""
    ends = time.monotonic() + _LOOK_INTO_SECONDS
    looked: list[DatabaseFact] = []
    skipped = 0
    for name, fact in databases:
        stop.check()
        if not fact.allows_connections:
            looked.append(fact)
        elif time.monotonic() > ends:
            skipped += 1
            looked.append(fact)
        else:
            looked.append(_look_into(address, stop, on_sql, name, fact, warnings))
    if skipped:
        warnings.append(
            f"{skipped} databases were not looked into for extensions: {_LOOK_INTO_SECONDS:.0f} s were over"
        )
    return tuple(looked)


def _look_into(
    address: ServerAddress,
    stop: StopToken,
    on_sql: Callable[[str], None],
    name: str,
    fact: DatabaseFact,
    warnings: list[str],
) -> DatabaseFact:
    try:
        with (
            connect(address, stop=stop, database=name) as connection,
            queries.Reader(connection, stop, on_sql) as reader,
        ):
            reader.prepare()
            return replace(
                fact,
                looked_into=True,
                extensions=queries.read_extensions(reader),
                collations=queries.read_collations(reader),
                enabled_subscriptions=queries.read_subscriptions(reader),
            )
    except (DataManagerError, psycopg.Error) as error:
        stop.check()
        hint = f"; {error.hint}" if isinstance(error, RightMissing) else ""
        warnings.append(f"cannot look into database {fact.name} for its extensions: {_line(error)}{hint}")
        return fact


def _by_replication(
    address: ServerAddress, stop: StopToken, on_sql: Callable[[str], None], denied: DataManagerError
) -> ServerFacts:
    """The little that a replication session tells, where no SQL session is admitted."""
    with connect(address, stop=stop, replication=True) as connection, server_errors("read server facts"):
        reader = queries.Reader(connection, stop, on_sql)
        identifier, timeline, *_ = reader.row("IDENTIFY_SYSTEM")
        values = _show(reader, (*_TEXTS, *_NUMBERS, *_SIZES))
        recovering = _show(reader, ("in_hot_standby",))["in_hot_standby"] == "on"
        role = queries.printable(connection.info.user)
        warnings = [
            "only a replication session is admitted, so databases, roles, extensions and tablespaces are not described:"
            f" {denied.message}. {denied.hint}"
        ]
        try:
            values |= _show(reader, _GUARDED)
        except psycopg.errors.InsufficientPrivilege:
            # Any role may SHOW here, but not these settings (seen on 14 to 18).
            values |= dict.fromkeys(_GUARDED, "")
            warnings.append(_guarded_warning(role))
    facts = _from_settings(values, int(str(identifier)), int(str(timeline)), f"PostgreSQL {values['server_version']}")
    facts = replace(facts, in_recovery=recovering, role=role, rights={"replication": True}, warnings=tuple(warnings))
    return _with_files(facts, values)


def _line(error: Exception) -> str:
    text = error.message if isinstance(error, DataManagerError) else str(error)
    return " ".join(text.split("\n")[0].split())
