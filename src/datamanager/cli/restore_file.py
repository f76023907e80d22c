"""``datamanager restore FILE``: what ``cli/restore.py`` calls when it is given a file in place of a backup."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from datamanager.base.errors import UsageError
from datamanager.base.units import format_duration, format_size
from datamanager.cli.command import FILE
from datamanager.cli.lazy import lazy
from datamanager.cli.outcome import Outcome

if TYPE_CHECKING:
    from datamanager.app import foreign
    from datamanager.app.foreign import FileRestored
    from datamanager.app.opening import Unlocking
    from datamanager.cli import readiness_text, restore_text
    from datamanager.cli.session import Session
else:
    foreign = lazy("datamanager.app.foreign")
    readiness_text = lazy("datamanager.cli.readiness_text")
    restore_text = lazy("datamanager.cli.restore_text")


@dataclass(frozen=True)
class FileOptions:
    """The options of ``restore`` that are for files alone."""

    into: str | None = None
    conninfo: str | None = None
    password_file: Path | None = None
    create_roles: bool = False
    no_owner: bool = False
    keep_failed: bool = False

    def refused(self, target: Path | None) -> Path:
        """The target, for a backup of a repository. Raises: UsageError, without one or with one of these options."""
        if self != FileOptions():
            raise UsageError(
                "read options: --into, --conninfo, --password-file, --create-roles, --no-owner and --keep-failed are "
                "for the dump of a database, and no file was given",
                hint="Leave them out, or give the dump's file instead of a backup.",
            )
        if target is None:
            raise UsageError("restore backup: it goes into a new data directory", hint="Name it: --target DIR.")
        return target


@dataclass(frozen=True)
class FilePlace:
    """Where a file goes, by options that backups have as well."""

    target: Path | None
    cluster: str | None
    tablespaces: Mapping[str, Path]
    owner: str | None


def file_options(body: Callable[..., Any]) -> Callable[..., Any]:
    """The options that a file needs; the body gets one ``for_file``."""

    @functools.wraps(body)
    def command(
        session: Session,
        *,
        into: str | None,
        conninfo: str | None,
        password_file: Path | None,
        create_roles: bool,
        no_owner: bool,
        keep_failed: bool,
        **parameters: Any,
    ) -> Outcome:
        given = FileOptions(into, conninfo, password_file, create_roles, no_owner, keep_failed)
        outcome: Outcome = body(session, for_file=given, **parameters)
        return outcome

    made: Callable[..., Any] = command
    for option in (
        click.option("--keep-failed", is_flag=True, help="Leave the database of a dump that failed, to look at."),
        click.option("--no-owner", is_flag=True, help="For a dump: all is the connecting role's, rights are left out."),
        click.option("--create-roles", is_flag=True, help="For a dump: make missing roles, which may not log in."),
        click.option(
            "--password-file", type=FILE, metavar="FILE", help="With --conninfo: the password, on its first line."
        ),
        click.option("--conninfo", metavar="TEXT", help="For a dump: the server, else that of --cluster."),
        click.option("--into", metavar="NAME", help="For a dump: the new database that takes it."),
    ):
        made = option(made)
    return made


def is_file(argument: str) -> bool:
    """Whether what was given in place of a backup is a path; no backup's name holds a slash."""
    if argument == "latest":
        return False
    separators = [os.sep, *([os.altsep] if os.altsep else [])]
    return any(one in argument for one in separators) or Path(argument).exists()


def restore_file(
    session: Session,
    argument: str,
    given: FileOptions,
    place: FilePlace,
    unlocking: Unlocking,
    others: Mapping[str, object],
    *,
    start_at: int | None,
    dry_run: bool,
) -> Outcome:
    """Restore a file.

    Args:
        others: what was given for the options that only a backup of a repository has.
        start_at: the port of a server that is to be started on the result.

    Raises: UsageError, for such an option; as ``app.foreign.run`` and ``start``.
    """
    keys = {
        "--key-file": unlocking.key_file,
        "--passphrase-file": unlocking.passphrase_file,
        "--recovery-code-file": unlocking.recovery_code_file,
    }
    misplaced = [name for name, value in {**others, **keys}.items() if value]
    if misplaced:
        raise UsageError(
            f"read options: {misplaced[0]} is for a backup of a repository, and {argument} is a file",
            hint=f"Leave {misplaced[0]} out.",
        )
    request = foreign.FileRequest(
        Path(argument),
        place.target,
        given.into,
        place.cluster,
        given.conninfo,
        given.password_file,
        place.tablespaces,
        place.owner,
        given.create_roles,
        given.no_owner,
        given.keep_failed,
        start_at is not None,
    )
    if start_at is not None and (dry_run or given.into is not None):
        raise UsageError("read options: --start needs a new directory to be restored", hint="Leave it out.")
    restored = foreign.run(session.context, request, dry_run=dry_run)
    data = {**_fields(restored), "dry_run": dry_run}
    if restored.result is None:
        return readiness_text.planned(_planned(restored), data, restored.findings, restored.warnings)
    text = _done(restored)
    if start_at is not None:
        running = foreign.start(session.context, restored, start_at)
        text += restore_text.server_sentences(running)
        data["server"] = restore_text.server_fields(running)
    return Outcome(text, data, restored.warnings)


def _words(restored: FileRestored) -> str:
    file = restored.foreign
    version = f" of PostgreSQL {file.version}" if file.version else ""
    names = f", {', '.join(file.databases)}" if file.databases else ""
    return f"{file.path} ({file.kind.value}{version}{names}, {format_size(file.size)})"


def _place(restored: FileRestored) -> str:
    plan = restored.plan
    if isinstance(plan, foreign.DatabasePlan):
        return f"the new database {plan.options.into}"
    return str(plan.options.target if isinstance(plan, foreign.BasePlan) else plan.target)


def _planned(restored: FileRestored) -> str:
    lines = [f"Would restore {_words(restored)}.", f"Into: {_place(restored)}; owner: {restored.owner}."]
    if isinstance(restored.plan, foreign.DatabasePlan) and restored.plan.missing_roles:
        lines.append(f"Roles to be made: {', '.join(restored.plan.missing_roles)}.")
    lines += [
        f"{one.path}: needs {format_size(one.need)}, its volume has {format_size(one.free)} free."
        for one in restored.plan.volumes
    ]
    return "\n".join(lines)


def _done(restored: FileRestored) -> str:
    result = restored.result
    if result is None:
        return _planned(restored)
    text = f"{_words(restored)} was restored into {_place(restored)} in {format_duration(result.seconds)}."
    if isinstance(result, foreign.DatabaseResult) and result.roles_created:
        text += f"\nRoles were made that may not log in: {', '.join(result.roles_created)}."
    if isinstance(result, foreign.BaseResult) and result.verified:
        text += "\nIts files are those of its backup_manifest (pg_verifybackup)."
    return text


def _fields(restored: FileRestored) -> dict[str, Any]:
    file, plan, result = restored.foreign, restored.plan, restored.result
    found: dict[str, Any] = {
        "file": str(file.path),
        "kind": file.kind.value,
        "server_version": file.version,
        "databases": list(file.databases),
        "owner": restored.owner,
        "volumes_needed": [
            {"path": str(one.path), "need_bytes": one.need, "free_bytes": one.free} for one in plan.volumes
        ],
    }
    if isinstance(plan, foreign.DatabasePlan):
        found |= {"database": plan.options.into, "roles_missing": list(plan.missing_roles)}
    else:
        found["target"] = _place(restored)
    if result is not None:
        found |= {"bytes": result.bytes, "seconds": round(result.seconds, 3)}
    if isinstance(result, foreign.BaseResult):
        found |= {"files": result.files, "verified": result.verified}
    return found
