"""The statements that read facts from a server of any supported major, each with the rights it needs.

Every function takes a Reader and returns records; none writes anything. Names that are not valid UTF-8 (clusters with
SQL_ASCII databases) are kept losslessly while the session runs and made printable in what is returned.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from types import TracebackType
from typing import Self

import blake3
import psycopg
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from datamanager.base.pipeline import StopToken
from datamanager.postgres.connection import cancelled_by
from datamanager.postgres.facts_model import (
    CollationFact,
    DatabaseFact,
    ExtensionFact,
    MembershipFact,
    RoleFact,
    SettingFact,
    TablespaceFact,
)

PROVIDERS = {"b": "builtin", "c": "libc", "d": "default", "i": "icu"}
# Functions whose EXECUTE decides what this role may do; the signatures are those of 14 to 18.
_FUNCTIONS = {
    "pg_read_file": "pg_catalog.pg_read_file(text)",
    "pg_switch_wal": "pg_catalog.pg_switch_wal()",
    "pg_create_restore_point": "pg_catalog.pg_create_restore_point(text)",
    "pg_reload_conf": "pg_catalog.pg_reload_conf()",
}
_PREDEFINED = (
    "pg_monitor", "pg_read_all_settings", "pg_read_all_stats", "pg_read_server_files", "pg_signal_backend",
    "pg_checkpoint", "pg_maintain",
)  # fmt: skip
_SECRET_NAME = re.compile(r"passphrase|password|passwd|secret|token|api_?key|credential", re.I)
_SECRET_VALUE = re.compile(
    r"((?:pass(?:word|wd|phrase)?|secret|token|key)\s*[=:]\s*)('[^']*'|\"[^\"]*\"|[^\s'\"]+)", re.I
)
_URL_PASSWORD = re.compile(r"(\w+://[^\s:/@]+:)[^\s@]+@")


class Text(Loader):
    """Loads text and names so that bytes which are not UTF-8 survive (as lone surrogates)."""

    def load(self, data: Buffer) -> str:
        return bytes(data).decode("utf-8", "surrogateescape")


class Reader:
    """Runs statements on one session, telling each to ``on_sql`` first; not thread-safe, does not own the session.

    A ``with`` block has one thread that looks out for a stop; outside of one each statement has its own (0.5 ms).
    """

    def __init__(
        self, connection: psycopg.Connection[tuple[object, ...]], stop: StopToken, on_sql: Callable[[str], None]
    ) -> None:
        self._connection = connection
        self._stop = stop
        self._on_sql = on_sql
        self._watch = contextlib.ExitStack()
        self._watched = False
        self.version_number = connection.info.server_version

    def __enter__(self) -> Self:
        self._watch.enter_context(cancelled_by(self._stop, self._connection))
        self._watched = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watched = False
        self._watch.__exit__(kind, error, trace)

    def prepare(self) -> None:
        """Make the session harmless: read-only, bounded in time, UTF-8 where the database has an encoding."""
        for kind in ("text", "name", "varchar", "bpchar"):
            self._connection.adapters.register_loader(kind, Text)
        # From a database without an encoding, UTF8 would let the server refuse to send names that are not UTF-8.
        raw = self._connection.info.parameter_status("server_encoding") == "SQL_ASCII"
        self.rows(
            f"SET client_encoding = '{'SQL_ASCII' if raw else 'UTF8'}'; SET default_transaction_read_only = on;"
            " SET lock_timeout = '5s'; SET statement_timeout = '30s'"
        )

    def rows(self, sql: str) -> list[tuple[object, ...]]:
        """All rows of one statement, one line of SQL. Raises: psycopg.Error, Cancelled."""
        self._stop.check()
        text = " ".join(sql.split())
        self._on_sql(text)
        with contextlib.nullcontext() if self._watched else cancelled_by(self._stop, self._connection):
            try:
                cursor = self._connection.execute(text.encode())
                return cursor.fetchall() if cursor.description else []
            except psycopg.Error:
                self._stop.check()
                raise

    def row(self, sql: str) -> tuple[object, ...]:
        """The first row. Raises: psycopg.Error; psycopg.DataError where there is none."""
        found = self.rows(sql)
        if not found:
            raise psycopg.DataError("no row")
        return found[0]


def printable(value: object) -> str:
    """Text that can be shown and stored: bytes that are not UTF-8 appear as ``\\xNN``."""
    return str(value).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def masked(name: str, value: str) -> str:
    """A setting's value without secrets: connection strings lose their password, commands what looks like one."""
    if _SECRET_NAME.search(name) and value not in ("", "on", "off", "scram-sha-256", "md5"):
        return "***"
    if name.endswith("conninfo") and value:
        try:
            parsed = conninfo_to_dict(value)
        except psycopg.Error:
            return "***"
        for secret in ("password", "sslpassword", "oauth_client_secret"):
            if parsed.get(secret):
                parsed[secret] = "***"
        return make_conninfo("", **parsed)
    return _URL_PASSWORD.sub(r"\1***@", _SECRET_VALUE.sub(r"\1***", value))


def read_rights(reader: Reader) -> tuple[str, dict[str, bool]]:
    """The session's role and what it may do: superuser, replication, predefined roles, EXECUTE on a few functions."""
    functions = ", ".join(
        f"has_function_privilege('{signature}', 'EXECUTE') AS {name}" for name, signature in _FUNCTIONS.items()
    )
    first = reader.row(
        f"SELECT current_user::text, rolsuper, rolreplication, rolcreaterole, {functions}"
        " FROM pg_roles WHERE rolname = current_user"
    )
    names = ("superuser", "replication", "create_role", *_FUNCTIONS)
    rights = {name: bool(value) for name, value in zip(names, first[1:], strict=True)}
    listed = ", ".join(f"'{name}'" for name in _PREDEFINED)
    for name, held in reader.rows(
        f"SELECT rolname::text, pg_has_role(current_user, oid, 'USAGE') FROM pg_roles WHERE rolname IN ({listed})"
    ):
        rights[str(name)] = bool(held)
    return printable(first[0]), rights


def read_databases(reader: Reader, *, sizes: bool) -> tuple[tuple[str, DatabaseFact], ...]:
    """Every database, with its name exactly as the server holds it beside the record."""
    number = reader.version_number
    locale = "datlocale" if number >= 170000 else "daticulocale" if number >= 150000 else "NULL"
    provider = "datlocprovider::text" if number >= 150000 else "'c'"
    versions = "datcollversion, pg_database_collation_actual_version(oid)" if number >= 150000 else "NULL, NULL"
    size = (
        "CASE WHEN has_database_privilege(oid, 'CONNECT') OR pg_has_role('pg_read_all_stats', 'USAGE')"
        " THEN pg_database_size(oid) END"
        if sizes
        else "NULL"
    )
    found = reader.rows(
        f"SELECT oid::bigint, datname, pg_get_userbyid(datdba), pg_encoding_to_char(encoding), {provider},"
        f" datcollate::text, datctype::text, {locale}::text, {versions}, {size}, datallowconn, datistemplate"
        " FROM pg_database ORDER BY oid"
    )
    databases = []
    for oid, name, owner, encoding, kind, collate, ctype, own, version, actual, size_bytes, allows, template in found:
        fact = DatabaseFact(
            oid=_number(oid),
            name=printable(name),
            owner=printable(owner),
            encoding=str(encoding),
            locale_provider=PROVIDERS.get(str(kind), str(kind)),
            collate=printable(collate),
            ctype=printable(ctype),
            locale=_optional(own),
            collation_version=_optional(version),
            actual_collation_version=_optional(actual),
            size_bytes=None if size_bytes is None else _number(size_bytes),
            allows_connections=bool(allows),
            is_template=bool(template),
        )
        databases.append((str(name), fact))
    return tuple(databases)


def read_tablespaces(reader: Reader, *, sizes: bool) -> tuple[TablespaceFact, ...]:
    size = (
        "CASE WHEN has_tablespace_privilege(oid, 'CREATE') OR pg_has_role('pg_read_all_stats', 'USAGE')"
        " THEN pg_tablespace_size(oid) END"
        if sizes
        else "NULL"
    )
    return tuple(
        TablespaceFact(_number(oid), printable(name), printable(place), None if found is None else _number(found))
        for oid, name, place, found in reader.rows(
            f"SELECT oid::bigint, spcname, pg_tablespace_location(oid), {size} FROM pg_tablespace ORDER BY oid"
        )
    )


def read_settings(reader: Reader) -> tuple[SettingFact, ...]:
    """What the configuration changed; this session's own and this role's settings are not the cluster's."""
    return tuple(
        SettingFact(
            str(name), masked(str(name), printable(value)), _optional(unit), str(source), _optional(file), bool(pending)
        )
        for name, value, unit, source, file, pending in reader.rows(
            "SELECT name, coalesce(setting, ''), unit, source, sourcefile, pending_restart FROM pg_settings"
            " WHERE source NOT IN ('default', 'override', 'client', 'session', 'user', 'database', 'database user')"
            " ORDER BY name"
        )
    )


def read_roles(reader: Reader, fingerprint_key: bytes, *, verifiers: bool) -> tuple[RoleFact, ...]:
    """Every role but the predefined ones; with ``verifiers`` (superuser) a keyed digest of each password verifier."""
    memberships = _memberships(reader)
    secret, table = ("r.rolpassword", "pg_authid") if verifiers else ("NULL", "pg_roles")
    found = reader.rows(
        "SELECT r.rolname, r.rolsuper, r.rolinherit, r.rolcreaterole, r.rolcreatedb, r.rolcanlogin, r.rolreplication,"
        " r.rolbypassrls, r.rolconnlimit::bigint, r.rolvaliduntil::text, s.setconfig,"
        f" {secret}::text FROM {table} r LEFT JOIN pg_db_role_setting s ON s.setrole = r.oid AND s.setdatabase = 0"
        " WHERE r.rolname !~ '^pg_' ORDER BY r.oid"
    )
    roles = []
    for name, superuser, inherit, role, database, login, replication, bypass, limit, until, config, verifier in found:
        settings = tuple(_masked_pair(printable(one)) for one in config) if isinstance(config, list) else ()
        fact = RoleFact(
            name=printable(name),
            superuser=bool(superuser),
            inherit=bool(inherit),
            create_role=bool(role),
            create_database=bool(database),
            login=bool(login),
            replication=bool(replication),
            bypass_row_security=bool(bypass),
            connection_limit=_number(limit),
            valid_until=_optional(until),
            settings=settings,
            member_of=tuple(memberships.get(str(name), ())),
            verifier_method=None if verifier is None else _method(str(verifier)),
            verifier_digest=None if verifier is None else verifier_digest(str(verifier), fingerprint_key),
        )
        roles.append(fact)
    return tuple(roles)


def verifier_digest(verifier: str, fingerprint_key: bytes) -> str:
    """16 bytes of BLAKE3 keyed by ``fingerprint_key`` (32 bytes), in hexadecimal."""
    data = verifier.encode("utf-8", "surrogateescape")
    return blake3.blake3(data, key=fingerprint_key).digest(16).hex()


def read_extensions(reader: Reader) -> tuple[ExtensionFact, ...]:
    """The extensions of the session's own database."""
    return tuple(
        ExtensionFact(printable(name), printable(version), _optional(default), printable(schema))
        for name, version, default, schema in reader.rows(
            "SELECT e.extname, e.extversion, a.default_version, n.nspname FROM pg_extension e"
            " JOIN pg_namespace n ON n.oid = e.extnamespace LEFT JOIN pg_available_extensions a ON a.name = e.extname"
            " ORDER BY e.extname"
        )
    )


def read_collations(reader: Reader) -> tuple[CollationFact, ...]:
    """Versioned collations that columns or indexes of the session's database use, or that somebody made there."""
    return tuple(
        CollationFact(printable(name), PROVIDERS.get(str(kind), str(kind)), _optional(version), _optional(actual))
        for name, kind, version, actual in reader.rows(
            "SELECT quote_ident(n.nspname) || '.' || quote_ident(c.collname), c.collprovider::text, c.collversion,"
            " pg_collation_actual_version(c.oid) FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace"
            " WHERE c.collversion IS NOT NULL AND (c.oid >= 16384 OR c.oid IN"
            " (SELECT attcollation FROM pg_attribute)) ORDER BY 1"
        )
    )


def read_subscriptions(reader: Reader) -> int:
    """How many enabled subscriptions the session's database has: a clone must not let them run."""
    return _number(
        reader.row(
            "SELECT count(*) FROM pg_subscription WHERE subenabled"
            " AND subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )[0]
    )


def _memberships(reader: Reader) -> dict[str, list[MembershipFact]]:
    options = "m.inherit_option, m.set_option" if reader.version_number >= 160000 else "NULL::bool, NULL::bool"
    found: dict[str, list[MembershipFact]] = {}
    for member, role, admin, inherit, set_role in reader.rows(
        f"SELECT u.rolname, r.rolname, m.admin_option, {options} FROM pg_auth_members m"
        " JOIN pg_roles u ON u.oid = m.member JOIN pg_roles r ON r.oid = m.roleid ORDER BY u.oid, r.oid"
    ):
        fact = MembershipFact(
            role=printable(role),
            admin=bool(admin),
            inherit=None if inherit is None else bool(inherit),
            set_role=None if set_role is None else bool(set_role),
        )
        found.setdefault(str(member), []).append(fact)
    return found


def _masked_pair(pair: str) -> str:
    name, _, value = pair.partition("=")
    return f"{name}={masked(name, value)}"


def _method(verifier: str) -> str:
    if verifier.startswith("SCRAM-SHA-256$"):
        return "scram-sha-256"
    return "md5" if re.fullmatch(r"md5[0-9a-f]{32}", verifier) else "unknown"


def _number(value: object) -> int:
    return int(str(value))


def _optional(value: object) -> str | None:
    return None if value is None else printable(value)
