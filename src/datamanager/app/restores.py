"""Restoring a backup into a new directory, to its own end or to a moment after it, and exporting one."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from datamanager.app import readiness
from datamanager.app.backups import processors
from datamanager.app.context import Context
from datamanager.app.moments import Chosen, Moment, choose
from datamanager.app.opening import Unlocking, choose_holding, opened
from datamanager.app.readiness import Finding, NotReady, Use
from datamanager.base.errors import ConfigurationError, DataManagerError, ProgramMissing, TargetUnfit, UsageError
from datamanager.base.events import PhaseStarted
from datamanager.engine.recovery.pause import Paused
from datamanager.engine.recovery.plan import RecoveryPlan
from datamanager.engine.recovery.room import with_room_for_wal
from datamanager.engine.recovery.run import MomentRestored, RecoveryOptions, restore_to_moment
from datamanager.engine.recovery.workplace import Recovered, check_folder
from datamanager.engine.restore.export import export_backup
from datamanager.engine.restore.outside import PutBack, check_outside_folder, outside_folder, write_outside_files
from datamanager.engine.restore.plan import RestoreOptions, RestorePlan, VolumeNeed, plan_restore
from datamanager.engine.restore.run import RestoreResult, apply_restore
from datamanager.postgres.account import UnixAccount, named_account, service_account
from datamanager.postgres.programs import find_programs
from datamanager.repository.manifest import Manifest
from datamanager.repository.repository import Repository

if sys.platform != "win32":
    import pwd


@dataclass(frozen=True)
class Request:
    """Which backup goes where.

    Args:
        backup: id, the beginning of one, or ``latest``.
        moment: where the restored data end.
        pause: leave a server on it, read-only and not promoted, to look at that moment; ``port`` is that of its socket.
        starts: a server is going to be started on it.
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
    moment: Moment = field(default_factory=Moment)
    pause: bool = False
    port: int = 5433
    starts: bool = False


@dataclass(frozen=True)
class Restored:
    """A plan, and what came of it; ``result`` is None for a dry run. ``owner`` is whose files they will be.

    Args:
        outside: the configuration that lay outside the data directory, and lies beside the target now.
        recovery: the way to the moment; None for the backup as it is.
        recovered: how replay ended; paused - the server that waits to be looked at.
        findings: whether it will succeed on this machine, worst first.
    """

    plan: RestorePlan
    result: RestoreResult | None
    owner: str
    outside: tuple[PutBack, ...] = ()
    recovery: RecoveryPlan | None = None
    recovered: Recovered | None = None
    paused: Paused | None = None
    findings: Sequence[Finding] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the owner should know: of the backup, of the way to the moment, and of what was restored."""
        on_the_way = self.recovery.warnings if self.recovery is not None else ()
        return (*self.plan.warnings, *on_the_way, *(self.result.warnings if self.result is not None else ()))


@dataclass(frozen=True)
class _Prepared:
    chosen: Chosen
    plan: RestorePlan
    recovery: RecoveryOptions | None
    findings: Sequence[Finding]

    def restored(self, owner: str | None, result: RestoreResult | None = None) -> Restored:
        return Restored(
            self.plan, result, owner or "this account", recovery=self.chosen.recovery, findings=self.findings
        )


def plan(context: Context, request: Request, unlocking: Unlocking) -> Restored | NotReady:
    """What a restore would do, and whether it will succeed here. Raises: as ``run``, but for what makes it NotReady."""
    owner = request.owner or default_owner()
    options = _options(request, owner)
    named = choose_holding(context, request.repository, request.cluster, request.backup)
    with opened(context, named, unlocking) as repository:
        prepared = _prepare(context, repository, request, options, owner)
        return prepared if isinstance(prepared, NotReady) else prepared.restored(owner)


def run(context: Context, request: Request, unlocking: Unlocking) -> Restored:
    """Restore a backup.

    Raises: NotFound, UsageError, RestoreRefused, RepositoryError, StoreError, ServerError, Cancelled.
    """
    owner = request.owner or default_owner()
    options = _options(request, owner)
    named = choose_holding(context, request.repository, request.cluster, request.backup)
    with opened(context, named, unlocking) as repository:
        prepared = _prepare(context, repository, request, options, owner)
        if isinstance(prepared, NotReady):
            raise prepared.error
        # Of damaged pages the plan warns by itself.
        readiness.require(prepared.findings, context.listener, told=("damage",))
        done = _carry_out(context, repository, prepared.plan, prepared.chosen, prepared.recovery)
        outside = _put_outside(prepared.plan.manifest, options)
        restored = prepared.restored(owner, done.restored)
        return replace(restored, outside=outside, recovered=done.recovered, paused=done.paused)


def _prepare(
    context: Context, repository: Repository, request: Request, options: RestoreOptions, owner: str | None
) -> _Prepared | NotReady:
    context.listener(PhaseStarted("planning"))
    chosen = choose(context, repository, request.backup, request.cluster, request.moment)
    manifest, replay = chosen.manifest, chosen.replay
    use = Use.FILES if replay is None and not request.starts else Use.CLONE
    port = request.port if request.starts or request.pause else None

    def findings(planned: Sequence[VolumeNeed] | DataManagerError) -> Sequence[Finding]:
        return readiness.of_new_directory(context, repository, manifest, options, owner, use, planned, port=port)

    try:
        plan = plan_restore(repository, manifest, options)
        check_outside_folder(manifest, outside_folder(options.target))
        recovery = _recovery_options(context, request, chosen, owner)
        if replay is not None:
            plan = with_room_for_wal(plan, replay.needs, replay.segment_size)
    except readiness.REFUSALS as error:
        return NotReady(f"backup {manifest.backup} ({manifest.label})", findings(error), error)
    return _Prepared(chosen, plan, recovery, findings(plan.volumes))


def _recovery_options(context: Context, request: Request, chosen: Chosen, owner: str | None) -> RecoveryOptions | None:
    """How to recover; None where nothing is to be replayed. Raises: UsageError, TargetUnfit, ProgramMissing."""
    if chosen.replay is None:
        if request.pause:
            raise UsageError(
                "pause restore: nothing is replayed after the end of that backup",
                hint="Leave --pause out; with --start a server runs on it, cut off from everything.",
            )
        return None
    if request.any_platform:
        raise UsageError(
            "recover: WAL is replayed only where the server ran, or on its like",
            hint="Leave --any-platform out, or restore a backup as it is, by its name.",
        )
    manifest = chosen.manifest
    account = named_account(owner) if owner is not None else service_account()
    check_folder(request.target, account)
    known = context.config().clusters.get(manifest.cluster)
    try:
        programs = find_programs(manifest.major, known.install_path if known else None, account=account)
    except ProgramMissing as error:
        error.hint += f" WAL is replayed by the server itself; backup {manifest.backup}, by its name, needs no program."
        raise
    return RecoveryOptions(account, programs, request.pause, request.port)


def _carry_out(
    context: Context, repository: Repository, plan: RestorePlan, chosen: Chosen, recovery: RecoveryOptions | None
) -> MomentRestored:
    if recovery is None or chosen.replay is None:
        return MomentRestored(apply_restore(repository, plan, context.stop, context.listener), None, None)
    return restore_to_moment(repository, plan, chosen.replay, recovery, context.stop, context.listener)


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
