"""Restoring a backup into a new directory, and exporting one."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from datamanager.app.backups import processors
from datamanager.app.context import Context
from datamanager.app.opening import Unlocking, choose_holding, opened
from datamanager.base.errors import ConfigurationError, TargetUnfit, UsageError
from datamanager.base.events import PhaseStarted
from datamanager.engine.restore.export import export_backup
from datamanager.engine.restore.outside import PutBack, check_outside_folder, outside_folder, write_outside_files
from datamanager.engine.restore.plan import RestoreOptions, RestorePlan, plan_restore
from datamanager.engine.restore.run import RestoreResult, apply_restore
from datamanager.postgres.account import UnixAccount, service_account
from datamanager.repository.manifest import Manifest

if sys.platform != "win32":
    import pwd


@dataclass(frozen=True)
class Request:
    """Which backup goes where.

    Args:
        backup: id, the beginning of one, or ``latest``.
        repository: a name or an address; None for the cluster's, or the only one.
        tablespaces: old location (or oid) to new.
        owner: account that gets the files; needs root. A restore by root gives them to ``postgres`` by default.
    """

    backup: str
    target: Path
    repository: str | None = None
    cluster: str | None = None
    tablespaces: Mapping[str, Path] = field(default_factory=dict)
    owner: str | None = None
    any_platform: bool = False


@dataclass(frozen=True)
class Restored:
    """A plan, and what came of it; ``result`` is None for a dry run. ``owner`` is whose files they will be.

    ``outside`` is the configuration that lay outside the data directory, and lies beside the target now.
    """

    plan: RestorePlan
    result: RestoreResult | None
    owner: str
    outside: tuple[PutBack, ...] = ()


def run(context: Context, request: Request, unlocking: Unlocking, *, dry_run: bool) -> Restored:
    """Restore a backup, or only say what that would do.

    Raises: NotFound, UsageError, RestoreRefused, RepositoryError, StoreError, Cancelled.
    """
    owner = request.owner or default_owner()
    options = _options(request, owner)
    named = choose_holding(context, request.repository, request.cluster, request.backup)
    with opened(context, named, unlocking) as repository:
        context.listener(PhaseStarted("planning"))
        plan = plan_restore(repository, repository.find(request.backup, request.cluster), options)
        check_outside_folder(plan.manifest, outside_folder(options.target))
        if dry_run:
            return Restored(plan, None, owner or "this account")
        result = apply_restore(repository, plan, context.stop, context.listener)
        outside = _put_outside(plan.manifest, options)
        return Restored(plan, result, owner or "this account", outside)


def _put_outside(manifest: Manifest, options: RestoreOptions) -> tuple[PutBack, ...]:
    """Write what lay outside the data directory beside the target. Raises: TargetUnfit, IntegrityError."""
    folder = outside_folder(options.target)
    try:
        return tuple(write_outside_files(manifest, folder, options.owner))
    except OSError as error:
        raise TargetUnfit(
            f"restore configuration: {error.filename or folder}: {(error.strerror or 'cannot be written').lower()}",
            hint=f"The data directory is complete; delete {folder}, make room, and restore the backup once more.",
        ) from error


def default_owner() -> str | None:
    """For root, who may run no server, the account ``postgres`` where there is one; else nobody else."""
    try:
        account = service_account()
    except ConfigurationError:
        return None
    return account.name if isinstance(account, UnixAccount) else None


def export(
    context: Context, request: Request, unlocking: Unlocking
) -> tuple[Manifest, RestoreResult, tuple[PutBack, ...]]:
    """Write a backup as a plain directory of PostgreSQL's own. Raises: as ``run``."""
    options = _options(request, request.owner)
    named = choose_holding(context, request.repository, request.cluster, request.backup)
    with opened(context, named, unlocking) as repository:
        manifest = repository.find(request.backup, request.cluster)
        check_outside_folder(manifest, outside_folder(options.target))
        result = export_backup(repository, manifest, options, context.stop, context.listener)
        return manifest, result, _put_outside(manifest, options)


def _options(request: Request, owner: str | None) -> RestoreOptions:
    return RestoreOptions(
        target=request.target,
        tablespaces=request.tablespaces,
        owner=owner_ids(owner),
        threads=processors(),
        any_platform=request.any_platform,
    )


def owner_ids(name: str | None) -> tuple[int, int] | None:
    """User and group of an account. Raises: UsageError: no such account, not root, or not POSIX."""
    if name is None:
        return None
    if sys.platform == "win32":
        raise UsageError("set owner: not possible on this system", hint="Leave --owner out.")
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise UsageError(f"set owner: this machine has no account {name!r}", hint="Check --owner.") from None
    if os.geteuid() not in (0, entry.pw_uid):
        raise UsageError(
            f"set owner: only root can give files to {name}", hint=f"Run the command as root, or as {name}."
        )
    return entry.pw_uid, entry.pw_gid
