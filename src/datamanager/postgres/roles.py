"""Which right each task needs, by major version, and the statements that give it.

REPLICATION is an attribute, not a grant; EXECUTE on a function counts for one database only, the one that is
connected to. The tests carry out every row with real roles. Source: decision 21; PostgreSQL documentation 21.5
(predefined roles), 9.28 (administration functions).
"""

from __future__ import annotations

from dataclasses import dataclass

from datamanager.postgres.connection_errors import hba_line, quote_identifier

# What the server-log schemes change; reload is enough for all of them.
LOG_SETTINGS = (
    "log_filename", "log_rotation_age", "log_rotation_size", "log_truncate_on_rotation", "log_line_prefix",
    "log_min_duration_statement",
)  # fmt: skip


@dataclass(frozen=True)
class Right:
    """One task, in words, and how a superuser lets ``role`` do it. ``statements`` run in the connected database."""

    task: str
    meaning: str
    statements: tuple[str, ...]
    hba: str = ""

    def remedy(self) -> str:
        """One sentence that names everything to run."""
        parts = [f"run `{' '.join(self.statements)}` as a superuser"] if self.statements else []
        if self.hba:
            parts.append(f"add `{self.hba}` to pg_hba.conf and run `SELECT pg_reload_conf();`")
        sentence = ", then ".join(parts)
        return sentence[:1].upper() + sentence[1:] + "."


def rights_table(major: int, role: str, *, client: str = "") -> tuple[Right, ...]:
    """Every task's right for ``role`` on a server of ``major``.

    Args: client - the address the server sees us at, for the pg_hba.conf line; empty when unknown.
    """
    name = quote_identifier(role)
    superuser = (f"ALTER ROLE {name} SUPERUSER;",)
    execute = "GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO " + name + ";"
    reads = tuple(
        execute.format(function=function)
        for function in ("pg_read_file(text)", "pg_read_file(text, bigint, bigint)", "pg_ls_dir(text)")
    )
    parameters = (
        f"GRANT ALTER SYSTEM ON PARAMETER {', '.join(LOG_SETTINGS)} TO {name};",
        execute.format(function="pg_reload_conf()"),
    )
    return (
        Right("backup", "stream a base backup and WAL", (f"ALTER ROLE {name} REPLICATION;",),
              hba_line(role, replication=True, client=client)),
        Right("settings", "see every setting, size and activity", (f"GRANT pg_monitor TO {name};",)),
        Right("outside_files", "save configuration files that lie outside the data directory",
              (f"GRANT pg_read_server_files TO {name};", *reads)),
        Right("restore_point", "name a moment to restore to",
              (execute.format(function="pg_create_restore_point(text)"),)),
        Right("wal_switch", "close the current WAL segment", (execute.format(function="pg_switch_wal()"),)),
        Right("maintenance", "vacuum, analyze and reindex tables of others",
              (f"GRANT pg_maintain TO {name};",) if major >= 17 else superuser),
        Right("log_settings", "change the settings of the server's log", parameters if major >= 15 else superuser),
        Right("drain", "end sessions of others (never those of superusers)", (f"GRANT pg_signal_backend TO {name};",)),
        Right("verifiers", "notice changed passwords of roles", superuser),
    )  # fmt: skip


def right_for(task: str, major: int, role: str, *, client: str = "") -> Right:
    """One row of the table. Raises: KeyError for a task that is not in it."""
    return {right.task: right for right in rights_table(major, role, client=client)}[task]
