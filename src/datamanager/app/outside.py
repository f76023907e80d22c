"""The configuration outside the data directory, collected for a backup; what keeps it out is told with the remedy."""

from __future__ import annotations

from pathlib import Path

from datamanager.app.context import Context
from datamanager.base.events import PhaseStarted, Warned
from datamanager.engine.backup.run import BackupResult
from datamanager.postgres.connection import ServerAddress
from datamanager.postgres.facts import ServerFacts
from datamanager.postgres.file_access import DiskAccess, FileAccess, ServerAccess
from datamanager.postgres.outside_files import Collected, Wanted, collect_outside
from datamanager.postgres.roles import right_for
from datamanager.repository.repository import Repository

_CONFIG_FILE = b"postgresql.conf"


def collect(context: Context, address: ServerAddress, facts: ServerFacts, local: Path | None) -> Collected:
    """The files of a running cluster: from this machine's disk where it lies here, else through its server.

    Nothing where the role may not know where they are: ``warn_if_unknown`` tells that after the backup.
    Raises: Cancelled.
    """
    if facts.data_directory is None or facts.config_file is None:
        return Collected()
    context.listener(PhaseStarted("reading configuration"))
    rights = facts.rights
    may_ask = rights.get("superuser") or (rights.get("pg_read_server_files") and rights.get("pg_read_file"))
    server = ServerAccess(address, context.stop, context.executed)
    accesses: list[FileAccess] = [DiskAccess()] if local is not None else []
    accesses += [server] if may_ask else []
    settings = {one.name: one.value for one in facts.settings if one.name.startswith("ssl_")}
    named = {"hba_file": facts.hba_file or "", "ident_file": facts.ident_file or ""}
    wanted = Wanted(
        facts.data_directory,
        facts.config_file,
        {**settings, **named},
        [one.source_file for one in facts.settings if one.source_file],
        windows=facts.operating_system == "windows",
        remedy=right_for("outside_files", facts.major, facts.role).remedy(),
    )
    try:
        return collect_outside(wanted, accesses)
    finally:
        server.close()


def warn_if_unknown(context: Context, repository: Repository, facts: ServerFacts, result: BackupResult) -> None:
    """Tell, after a backup, that its cluster's configuration lies elsewhere and nobody could know where."""
    if facts.config_file is not None:
        return
    contents = repository.contents(result.manifest)
    if contents.find(_CONFIG_FILE) is not None:
        return
    rights = (right_for(task, facts.major, facts.role) for task in ("settings", "outside_files"))
    statements = " ".join(statement for right in rights for statement in right.statements)
    warning = (
        "the configuration of this cluster lies outside the data directory and is not in this backup. "
        f"Run `{statements}` as a superuser"
    )
    result.warnings.append(warning)
    context.listener(Warned(warning))
