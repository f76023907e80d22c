"""What is recorded about a cluster beside its files: the values a restore is planned with, as JSON.

Every record reads what an older or newer release wrote: unknown names are ignored, missing ones take their default.
Sizes are bytes; an unknown size, location or version is None. No password and no verifier is ever in here.
"""

from __future__ import annotations

import functools
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar

# A record stands in every manifest, so it stays small whatever the number of databases and roles.
MOST_BYTES = 2 * 1024 * 1024
MOST_DATABASES = 2000
MOST_ROLES = 5000
MOST_SETTINGS = 1000
MOST_PER_DATABASE = 300

R = TypeVar("R")


@dataclass(frozen=True)
class ExtensionFact:
    """An extension installed in one database; ``default_version`` is what this server would install now."""

    name: str
    version: str
    default_version: str | None = None
    schema: str = ""


@dataclass(frozen=True)
class CollationFact:
    """A collation that columns of one database use: the version its indexes were built with, and the library's now."""

    name: str
    provider: str
    version: str | None
    actual_version: str | None = None


@dataclass(frozen=True)
class DatabaseFact:
    """One database; ``locale`` is ICU's or the builtin provider's, ``collate`` and ``ctype`` the C library's.

    ``looked_into`` is False where no connection was possible, so that extensions and collations are unknown.
    """

    oid: int
    name: str
    owner: str
    encoding: str
    locale_provider: str
    collate: str
    ctype: str
    locale: str | None = None
    collation_version: str | None = None
    actual_collation_version: str | None = None
    size_bytes: int | None = None
    allows_connections: bool = True
    is_template: bool = False
    looked_into: bool = False
    extensions: tuple[ExtensionFact, ...] = ()
    collations: tuple[CollationFact, ...] = ()
    enabled_subscriptions: int | None = None


@dataclass(frozen=True)
class TablespaceFact:
    """A tablespace; ``location`` is empty for the two built-in ones."""

    oid: int
    name: str
    location: str
    size_bytes: int | None = None


@dataclass(frozen=True)
class SettingFact:
    """A setting that is not at its default; secrets in ``value`` are masked."""

    name: str
    value: str
    unit: str | None = None
    source: str = ""
    source_file: str | None = None
    pending_restart: bool = False


@dataclass(frozen=True)
class MembershipFact:
    """Membership in ``role``; the last two exist from PostgreSQL 16 on."""

    role: str
    admin: bool = False
    inherit: bool | None = None
    set_role: bool | None = None


@dataclass(frozen=True)
class RoleFact:
    """A role. ``verifier_digest`` is a keyed BLAKE3 of its password verifier (32 hexadecimal digits).

    Equal digests under one key mean equal passwords since; the verifier itself cannot be had from it.
    """

    name: str
    superuser: bool = False
    inherit: bool = True
    create_role: bool = False
    create_database: bool = False
    login: bool = False
    replication: bool = False
    bypass_row_security: bool = False
    connection_limit: int = -1
    valid_until: str | None = None
    settings: tuple[str, ...] = ()
    member_of: tuple[MembershipFact, ...] = ()
    verifier_method: str | None = None
    verifier_digest: str | None = None


@dataclass(frozen=True)
class ServerFacts:
    """One cluster as its server described it. ``warnings`` names what could not be read and what would allow it."""

    version: str
    version_number: int
    major: int
    system_identifier: int
    version_text: str = ""
    operating_system: str = ""
    architecture: str = ""
    in_recovery: bool | None = None
    timeline: int | None = None
    block_size: int = 8192
    wal_block_size: int = 8192
    segment_size: int = 1 << 30
    wal_segment_size: int = 16 << 20
    data_checksums: bool | None = None
    wal_level: str = ""
    archive_mode: str = ""
    shared_preload_libraries: str = ""
    max_connections: int | None = None
    max_worker_processes: int | None = None
    max_wal_senders: int | None = None
    max_prepared_transactions: int | None = None
    max_locks_per_transaction: int | None = None
    data_directory: str | None = None
    config_file: str | None = None
    hba_file: str | None = None
    ident_file: str | None = None
    files_outside: tuple[str, ...] = ()
    role: str = ""
    rights: Mapping[str, bool] = field(default_factory=dict)
    databases: tuple[DatabaseFact, ...] = ()
    tablespaces: tuple[TablespaceFact, ...] = ()
    settings: tuple[SettingFact, ...] = ()
    roles: tuple[RoleFact, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def to_json(self) -> bytes:
        """The record as ASCII JSON of at most 2 MiB; equal facts give equal bytes."""
        return _encode(self)

    @classmethod
    def from_json(cls, data: bytes) -> ServerFacts:
        """Read what ``to_json`` wrote. Raises: ValueError when it is not such a record."""
        try:
            return _build(cls, json.loads(data))
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"read server facts: {error}") from error

    @property
    def superuser(self) -> str:
        """The role to connect to a copy as: ``postgres`` unless the source's superuser had another name."""
        known = [one.name for one in self.roles if one.superuser and one.login]
        if self.rights.get("superuser") and self.role:
            known.insert(0, self.role)
        return "postgres" if "postgres" in known or not known else known[0]

    def bounded(self, most_bytes: int = MOST_BYTES) -> ServerFacts:
        """The same facts cut down to ``most_bytes`` of JSON; what was cut is counted in ``left_out`` and warned of."""
        databases = tuple(
            replace(one, extensions=one.extensions[:MOST_PER_DATABASE], collations=one.collations[:MOST_PER_DATABASE])
            for one in self.databases[:MOST_DATABASES]
        )
        cut = replace(self, databases=databases, roles=self.roles[:MOST_ROLES], settings=self.settings[:MOST_SETTINGS])
        weights = {name: [len(_text(item)) + 1 for item in getattr(cut, name)] for name in _LISTS}
        others = len(_encode(replace(cut, **dict.fromkeys(_LISTS, ()))))  # type: ignore[arg-type]
        # Room for the counts and warnings that are added below.
        while others + sum(map(sum, weights.values())) > most_bytes - 4096 and any(weights.values()):
            longest = max(weights, key=lambda name: sum(weights[name]))
            weights[longest] = weights[longest][: len(weights[longest]) // 2]
        kept: dict[str, Any] = {name: getattr(cut, name)[: len(weights[name])] for name in _LISTS}
        cut = replace(cut, **kept)
        return self._with_counts(cut, databases)

    def _with_counts(self, cut: ServerFacts, databases: tuple[DatabaseFact, ...]) -> ServerFacts:
        left_out = {
            name: len(getattr(self, name)) - len(getattr(cut, name))
            for name in _LISTS
            if len(getattr(self, name)) > len(getattr(cut, name))
        }
        shortened = sum(
            len(one.extensions) > MOST_PER_DATABASE or len(one.collations) > MOST_PER_DATABASE for one in self.databases
        )
        if shortened:
            left_out["extensions or collations of databases"] = shortened
        said = tuple(f"the record leaves out {count} {name}: there are too many" for name, count in left_out.items())
        return replace(cut, left_out=left_out, warnings=cut.warnings + said) if left_out else cut


_LISTS = ("databases", "tablespaces", "settings", "roles", "warnings")


def _text(value: object) -> str:
    return json.dumps(value, default=vars, sort_keys=True, separators=(",", ":"))


def _encode(facts: ServerFacts) -> bytes:
    return _text(facts).encode("ascii")


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _build(kind: type[R], values: Mapping[str, Any]) -> R:
    """Make a record from JSON's mapping: lists become tuples, and records where the field says so."""
    hints = _hints(kind)  # type: ignore[arg-type]
    arguments: dict[str, Any] = {}
    for one in fields(kind):  # type: ignore[arg-type]
        if one.name not in values:
            continue
        value = values[one.name]
        inner = typing.get_args(hints[one.name])
        if isinstance(value, list):
            of_records = bool(inner) and is_dataclass(inner[0])
            value = tuple(_build(inner[0], item) if of_records else item for item in value)
        arguments[one.name] = value
    return kind(**arguments)
