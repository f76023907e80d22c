"""Restoring files that other programs made: where they go, with whose rights, and a server on the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from datamanager.app import readiness
from datamanager.app.addresses import address_of, is_local
from datamanager.app.context import Context
from datamanager.app.restores import default_owner, owner_ids
from datamanager.app.started import Started
from datamanager.base.errors import UsageError
from datamanager.base.events import PhaseStarted, Touched, Warned
from datamanager.config.conninfo import check_conninfo
from datamanager.config.model import ClusterConfig
from datamanager.config.secret_files import read_secret_line
from datamanager.engine.foreign.base import BasePlan, BaseResult, apply_base, plan_base
from datamanager.engine.foreign.cluster import ClusterPlan, ClusterResult, NoLimits, apply_cluster, plan_cluster
from datamanager.engine.foreign.database import (
    DatabaseOptions,
    DatabasePlan,
    DatabaseResult,
    apply_database,
    plan_database,
)
from datamanager.engine.foreign.recognise import ForeignFile, Kind, recognise
from datamanager.engine.foreign.target import NewDatabases
from datamanager.engine.restore.plan import RestoreOptions
from datamanager.postgres.account import named_account, service_account
from datamanager.postgres.clone import ClusterLimits, prepare_clone
from datamanager.postgres.connection import ServerAddress
from datamanager.postgres.local_server import LocalServer
from datamanager.postgres.programs import find_programs

__all__ = [
    "BasePlan",
    "BaseResult",
    "ClusterPlan",
    "ClusterResult",
    "DatabasePlan",
    "DatabaseResult",
    "FileRequest",
    "FileRestored",
    "run",
    "start",
]
_INTO_A_DATABASE = (Kind.ARCHIVE, Kind.SCRIPT)


@dataclass(frozen=True)
class FileRequest:
    """Which file goes where.

    Args:
        target: a new data directory, for a base backup, an export or a script of pg_dumpall.
        into: a new database, for a dump of one; on the server of ``cluster`` or at ``conninfo``.
        tablespaces: old location (or oid) to new.
        owner: account that gets the files; needs root, which else takes ``postgres``.
        create_roles, no_owner, keep_failed: see DatabaseOptions.
        starts: a server is going to be started on it.
    """

    file: Path
    target: Path | None = None
    into: str | None = None
    cluster: str | None = None
    conninfo: str | None = None
    password_file: Path | None = None
    tablespaces: Mapping[str, Path] = field(default_factory=dict)
    owner: str | None = None
    create_roles: bool = False
    no_owner: bool = False
    keep_failed: bool = False
    starts: bool = False


@dataclass(frozen=True)
class FileRestored:
    """What a file is, what is done with it, and what came of it; ``result`` is None for a dry run.

    Args: findings - whether it will succeed on this machine, worst first; of a base backup or an export.
    """

    foreign: ForeignFile
    plan: DatabasePlan | BasePlan | ClusterPlan
    result: DatabaseResult | BaseResult | ClusterResult | None
    owner: str
    findings: Sequence[readiness.Finding] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is known before, and what was found meanwhile."""
        found = self.result.warnings if isinstance(self.result, BaseResult) else ()
        return tuple(dict.fromkeys((*self.plan.warnings, *found)))


def run(context: Context, request: FileRequest, *, dry_run: bool) -> FileRestored:
    """Restore a file, or only say what that would do.

    Raises: UsageError (no backup of PostgreSQL, or options that do not fit), NotFound, IntegrityError (cut off,
        damaged, hostile), RestoreRefused, RestoreFailed (a statement failed, or files are not as they were),
        ServerError, Cancelled.
    """
    context.listener(PhaseStarted("recognising the file"))
    foreign = recognise(request.file, context.stop)
    context.listener(Touched(f"{foreign.kind.value} {foreign.path}"))
    if foreign.kind in _INTO_A_DATABASE:
        return _into_database(context, request, foreign, dry_run=dry_run)
    if request.into is not None or request.create_roles or request.no_owner or request.keep_failed:
        raise UsageError(
            f"restore {foreign.path}: a {foreign.kind.value} holds a whole cluster and goes into no database",
            hint="Give a new data directory with --target DIR, and leave out what is for dumps of one database.",
        )
    if request.target is None:
        raise UsageError(
            f"restore {foreign.path}: a {foreign.kind.value} goes into a new data directory",
            hint="Name it: --target DIR.",
        )
    owner = request.owner or default_owner()
    if foreign.kind is Kind.CLUSTER_SCRIPT:
        account = named_account(owner) if owner and owner_ids(owner) else service_account()
        cluster = plan_cluster(foreign, request.target, request.tablespaces, account, _install_path(context, request))
        made = (
            None if dry_run else apply_cluster(cluster, context.clock, context.stop, context.listener, context.executed)
        )
        found = readiness.of_dump(cluster.programs, cluster.volumes)
        return FileRestored(foreign, cluster, made, owner or "this account", found)
    options = RestoreOptions(request.target, request.tablespaces, owner_ids(owner))
    base = plan_base(foreign, options, context.stop, context.listener)
    install_path = _install_path(context, request)
    findings = readiness.of_base(request.target, base.major, owner, install_path, base.volumes, starts=request.starts)
    planned = FileRestored(foreign, base, None, owner or "this account", findings)
    if dry_run:
        return planned
    readiness.require(findings, context.listener)
    restored = apply_base(base, context.clock, context.stop, context.listener, context.executed, install_path)
    return replace(planned, result=restored)


def start(context: Context, restored: FileRestored, port: int) -> Started:
    """Start a restored directory as a clone: no archive, no primary, no subscription, no network.

    Raises: UsageError (a dump, a dry run), ProgramMissing, ServerDidNotStart, TargetUnfit, Cancelled.
    """
    plan, result = restored.plan, restored.result
    if isinstance(plan, DatabasePlan) or isinstance(result, DatabaseResult) or result is None:
        raise UsageError("start server: no new directory was restored", hint="Leave --start out.")
    context.listener(PhaseStarted("starting the server"))
    target = result.target
    account = service_account(target)
    side = target.with_name(f"{target.name}.server")
    socket = side / "socket"
    limits: ClusterLimits
    if isinstance(plan, BasePlan):
        programs, limits, user = find_programs(plan.major, account=account), plan.control, "postgres"
    else:
        programs, limits, user = plan.programs, NoLimits(), plan.superuser
    clone = prepare_clone(target, side, limits, port=port, socket_directory=socket, account=account, programs=programs)
    for warning in clone.warnings:
        context.listener(Warned(warning))
    server = LocalServer(
        target, programs, account, socket, port, clone.options, side / "server.log",
        user=user, on_executed=context.executed,
    )  # fmt: skip
    server.start(context.stop)
    return Started(side, server.address.describe(), account.name, f"{programs.path('pg_ctl')} stop -D {target}")


def _into_database(context: Context, request: FileRequest, foreign: ForeignFile, *, dry_run: bool) -> FileRestored:
    if request.target is not None or request.tablespaces or request.owner is not None:
        raise UsageError(
            f"restore {foreign.path}: a {foreign.kind.value} goes into a database of a running server",
            hint="Leave out --target, --tablespace-map and --owner; give --into NEWNAME and --cluster or --conninfo.",
        )
    if request.into is None:
        raise UsageError(
            f"restore {foreign.path}: a {foreign.kind.value} goes into a new database", hint="Name it: --into NEWNAME."
        )
    address, install_path = _server(context, request)
    options = DatabaseOptions(
        request.into,
        request.create_roles,
        request.no_owner,
        request.keep_failed,
        is_local(address),
        install_path,
    )
    context.listener(PhaseStarted("planning"))
    databases = NewDatabases(address, context.stop, context.listener, context.executed)
    try:
        plan = plan_database(foreign, options, databases)
        if dry_run:
            return FileRestored(foreign, plan, None, plan.target.role, readiness.of_dump(plan.programs, plan.volumes))
        result = apply_database(
            plan, address, databases, context.clock, context.stop, context.listener, context.executed
        )
        return FileRestored(foreign, plan, result, plan.target.role)
    finally:
        databases.close()


def _server(context: Context, request: FileRequest) -> tuple[ServerAddress, Path | None]:
    if (request.cluster is None) == (request.conninfo is None):
        raise UsageError(
            "restore dump: which server is meant", hint="Give one of --cluster NAME and --conninfo 'host=... user=...'."
        )
    if request.conninfo is not None:
        check_conninfo(request.conninfo)
        file = request.password_file
        return ServerAddress(request.conninfo, read_secret_line(file, "password file") if file else None), None
    if request.password_file is not None:
        raise UsageError("read options: --password-file belongs to --conninfo", hint="Leave it out.")
    cluster = _cluster(context, request)
    if cluster is None:
        raise UsageError("restore dump: which server is meant", hint="Give --cluster NAME.")
    return address_of(cluster), cluster.install_path


def _cluster(context: Context, request: FileRequest) -> ClusterConfig | None:
    return None if request.cluster is None else context.cluster(request.cluster)


def _install_path(context: Context, request: FileRequest) -> Path | None:
    cluster = _cluster(context, request)
    return cluster.install_path if cluster is not None else None
