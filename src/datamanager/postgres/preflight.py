"""Whether a server can be backed up, asked before anything is begun, with one sentence of remedy for each obstacle.

A replication session and a temporary slot are really made, for that is what the backup will need; what else is told
comes from SHOW, which every replication role may use. Where no replication session is admitted, an SQL session, if
there is one, says why.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import psycopg

from datamanager.base.errors import (
    AuthenticationFailed,
    DataManagerError,
    RightMissing,
    ServerError,
    ServerUnfit,
    ServerUnreachable,
)
from datamanager.base.pipeline import StopToken
from datamanager.postgres.connection import ServerAddress, cancelled_by, connect, server_errors
from datamanager.postgres.roles import right_for

OLDEST_MAJOR = 14
NEWEST_TESTED_MAJOR = 18
NEWEST_MAJOR = 19
# End of support by the project's calendar: 14 since November 2026.
OUT_OF_SUPPORT = (14,)
_MINIMAL = (
    "Run `ALTER SYSTEM SET wal_level = replica;` and `ALTER SYSTEM SET max_wal_senders = 10;`, then restart the server;"
    " or stop the server and run `datamanager backup run CLUSTER --cold`."
)
_SETTINGS = (
    "server_version_num", "wal_level", "max_wal_senders", "max_replication_slots", "max_slot_wal_keep_size",
    "data_checksums", "in_hot_standby",
)  # fmt: skip


class Severity(StrEnum):
    """A blocker makes a backup impossible; a warning changes what it is; an advice is about tomorrow."""

    BLOCKER = "blocker"
    WARNING = "warning"
    ADVICE = "advice"


@dataclass(frozen=True)
class Finding:
    """One thing the check found; ``code`` is stable, ``sentence`` and ``remedy`` are for people."""

    code: str
    severity: Severity
    sentence: str
    remedy: str = ""

    def error(self) -> ServerError:
        """The finding as the error to raise for it."""
        kinds: dict[str, type[ServerError]] = {
            "authentication": AuthenticationFailed,
            "replication_not_admitted": AuthenticationFailed,
            "replication_right": RightMissing,
        }
        sentence = self.sentence[:1].lower() + self.sentence[1:].rstrip(".")
        return kinds.get(self.code, ServerUnfit)(f"check server: {sentence}", hint=self.remedy)


def check_backup_source(
    address: ServerAddress, stop: StopToken, on_executed: Callable[[str], None] | None = None
) -> list[Finding]:
    """Find out what stands in a backup's way, blockers first; empty when nothing is worth a word.

    Raises: ServerUnreachable (retryable), ConfigurationError, Cancelled.
    """
    try:
        connection = connect(address, stop=stop, replication=True, on_executed=on_executed)
    except ServerUnreachable:
        raise
    except ServerError as refused:
        return _ordered(_why_refused(address, stop, refused, on_executed))
    with connection, cancelled_by(stop, connection):
        with server_errors("check server"):
            major = int(_show(connection, "server_version_num")) // 10000
            if major < OLDEST_MAJOR:
                return _judge_version(major)
            values = {name: _show(connection, name) for name in _SETTINGS}
        findings = _judge(values)
        slot = _slot_finding(connection, values)
    return _ordered([*findings, *slot])


def require_backup_source(
    address: ServerAddress, stop: StopToken, on_executed: Callable[[str], None] | None = None
) -> list[Finding]:
    """Like ``check_backup_source``, without blockers.

    Raises: the first blocker (AuthenticationFailed, RightMissing, ServerUnfit), and as ``check_backup_source``.
    """
    findings = check_backup_source(address, stop, on_executed)
    for finding in findings:
        if finding.severity is Severity.BLOCKER:
            raise finding.error()
    return findings


def _ordered(findings: list[Finding]) -> list[Finding]:
    rank = list(Severity)
    return sorted(findings, key=lambda finding: rank.index(finding.severity))


def _show(connection: psycopg.Connection[tuple[object, ...]], name: str) -> str:
    row = connection.execute(f"SHOW {name}".encode()).fetchone()
    return "" if row is None else str(row[0])


def _judge(values: dict[str, str]) -> list[Finding]:
    """What the settings alone tell."""
    major = int(values["server_version_num"]) // 10000
    findings = _judge_version(major)
    if values["wal_level"] == "minimal":
        findings.append(Finding("wal_level", Severity.BLOCKER, "The server writes too little WAL (minimal).", _MINIMAL))
    if values["in_hot_standby"] == "on":
        remedy = "Back up the primary where that is possible; increments are made only there."
        sentence = "The server is a standby: every backup of it reads everything, and a promotion midway discards it."
        findings.append(Finding("standby", Severity.WARNING, sentence, remedy))
    if values["data_checksums"] != "on":
        remedy = "Stop the server in a quiet hour and run `pg_checksums --enable -D DIRECTORY`."
        sentence = "Data checksums are off, so damage on the server's disk goes unnoticed and into the backup."
        findings.append(Finding("checksums_off", Severity.ADVICE, sentence, remedy))
    keep = values["max_slot_wal_keep_size"]
    if keep != "-1":
        remedy = "Raise it (`ALTER SYSTEM SET max_slot_wal_keep_size = '...';` and reload) if backups are cut off."
        sentence = f"max_slot_wal_keep_size is {keep}: a backup is cut off when the server writes more WAL meanwhile."
        findings.append(Finding("slot_wal_limited", Severity.ADVICE, sentence, remedy))
    return findings


def _judge_version(major: int) -> list[Finding]:
    if major < OLDEST_MAJOR:
        sentence = f"PostgreSQL {major} is too old: 14 to 18 are supported."
        return [Finding("version", Severity.BLOCKER, sentence, "Upgrade the server; PostgreSQL 18 is a good choice.")]
    if major > NEWEST_MAJOR:
        sentence = f"PostgreSQL {major} is newer than this release knows."
        return [Finding("version", Severity.BLOCKER, sentence, "Install a newer release of DataManager.")]
    if major > NEWEST_TESTED_MAJOR:
        sentence = f"PostgreSQL {major} was not tested with this release."
        return [Finding("version", Severity.WARNING, sentence, "Look for a newer release, and do a test restore.")]
    if major in OUT_OF_SUPPORT:
        sentence = f"PostgreSQL {major} gets no security fixes any more."
        return [Finding("out_of_support", Severity.ADVICE, sentence, "Plan the upgrade; backups go on meanwhile.")]
    return []


def _slot_finding(connection: psycopg.Connection[tuple[object, ...]], values: dict[str, str]) -> list[Finding]:
    """Make the temporary slot that a backup needs; it goes with the session."""
    try:
        connection.execute(f"CREATE_REPLICATION_SLOT dm_check_{secrets.token_hex(6)} TEMPORARY PHYSICAL".encode())
    except psycopg.Error as error:
        if error.sqlstate in ("53400", "55000"):
            sentence = f"No replication slot is free (max_replication_slots is {values['max_replication_slots']})."
            remedy = (
                "Drop slots that nobody uses (`SELECT slot_name FROM pg_replication_slots WHERE NOT active;`), or run"
                " `ALTER SYSTEM SET max_replication_slots = 10;` (or more than now) and restart the server."
            )
            return [Finding("no_free_slot", Severity.BLOCKER, sentence, remedy)]
        with server_errors("check server: make temporary slot"):
            raise
    return []


def _why_refused(
    address: ServerAddress, stop: StopToken, refused: ServerError, on_executed: Callable[[str], None] | None
) -> list[Finding]:
    """Why no replication session was admitted; an SQL session, where there is one, knows more."""
    said = _sentence(refused)
    try:
        connection = connect(address, stop=stop, on_executed=on_executed)
    except ServerUnreachable:
        raise
    except DataManagerError:
        code = "authentication" if isinstance(refused, AuthenticationFailed) else _code_of(refused)
        return [Finding(code, Severity.BLOCKER, said, refused.hint)]
    with connection, cancelled_by(stop, connection), server_errors("check server"):
        may, role, client, level, senders, number = connection.execute(
            "SELECT rolreplication OR rolsuper, rolname::text, coalesce(host(inet_client_addr()), '[local]'),"
            " current_setting('wal_level'), current_setting('max_wal_senders'), current_setting('server_version_num')"
            " FROM pg_roles WHERE rolname = current_user"
        ).fetchall()[0]
    major = int(str(number)) // 10000
    findings = _judge_version(major)
    right = right_for("backup", major, str(role), client=str(client))
    if not may:
        sentence = f"The role {role} lacks the REPLICATION attribute."
        findings.append(Finding("replication_right", Severity.BLOCKER, sentence, right.remedy()))
    if isinstance(refused, AuthenticationFailed):
        remedy = f"Add `{right.hba}` to pg_hba.conf and run `SELECT pg_reload_conf();`."
        sentence = f"pg_hba.conf does not admit the role {role} for replication: `all` there does not mean replication."
        findings.append(Finding("replication_not_admitted", Severity.BLOCKER, sentence, remedy))
    if level == "minimal":
        findings.append(Finding("wal_level", Severity.BLOCKER, "The server writes too little WAL (minimal).", _MINIMAL))
    elif isinstance(refused, ServerUnfit):
        sentence = f"No WAL sender is free (max_wal_senders is {senders})."
        findings.append(Finding("no_free_sender", Severity.BLOCKER, sentence, refused.hint))
    return findings or [Finding(_code_of(refused), Severity.BLOCKER, said, refused.hint)]


def _code_of(refused: ServerError) -> str:
    return "replication_right" if isinstance(refused, RightMissing) else "server_unfit"


def _sentence(error: DataManagerError) -> str:
    return error.message[:1].upper() + error.message[1:] + "."
