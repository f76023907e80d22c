"""Restoring in place of a cluster's data, going back, and what was set aside.

A safety backup first, then the restored cluster beside the present one, then the exchange (engine/in_place). Afterwards
a backup begins by itself: the restored cluster is on a timeline of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from datamanager.app import backups, clusters, cold_backups, moments
from datamanager.app.addresses import address_of, is_local, local_directory
from datamanager.app.audit import audited
from datamanager.app.backups import Taken
from datamanager.app.context import Context
from datamanager.app.moments import Moment
from datamanager.app.opening import Named, Unlocking, choose, choose_holding, opened
from datamanager.base.errors import (
    AuthenticationFailed,
    Cancelled,
    DataManagerError,
    NotFound,
    RightMissing,
    ServerUnreachable,
    UsageError,
)
from datamanager.base.events import PhaseStarted, Touched, Warned
from datamanager.config.model import ClusterConfig
from datamanager.engine.in_place.kept import Kept, forget_kept, list_kept
from datamanager.engine.in_place.plan import InPlaceOptions, InPlacePlan, plan_in_place
from datamanager.engine.in_place.prepare import Preparation
from datamanager.engine.in_place.recovery import Finished, finish_or_undo
from datamanager.engine.in_place.roles import RoleChange, Roles, read_all_roles, role_changes
from datamanager.engine.in_place.run import InPlaceResult, known_histories, run_in_place
from datamanager.engine.in_place.undo import UndoOptions, UndoPlan, UndoResult, plan_undo, run_undo
from datamanager.postgres.connection import ServerAddress
from datamanager.postgres.facts_model import ServerFacts
from datamanager.postgres.programs import find_programs
from datamanager.postgres.stopped_server import server_process
from datamanager.repository.format import canonical_json
from datamanager.repository.manifest import Manifest
from datamanager.repository.repository import Repository
from datamanager.repository.wal.archive import WalArchive

SAFETY_NAME = "before restore"


@dataclass(frozen=True)
class Around:
    """How the cluster's server is handled; for a restore as for the way back.

    Args:
        data_directory: None for that of the running server, the configured one, or that of the newest backup.
        service: what the system calls the server's service, where that is not to be found out.
        managed: the owner has taken the cluster out of its manager's hands.
        drain_seconds: how long connected sessions are waited for before they are ended.
    """

    data_directory: Path | None = None
    service: str | None = None
    managed: bool = False
    drain_seconds: float = 0.0


@dataclass(frozen=True)
class Request:
    """What is restored in place of which cluster.

    Args:
        backup: id, the beginning of one, or ``latest``.
        moment: where the restored data are to end.
        safety: take a backup of what is there first; without it only the kept directory is left of it.
        unreadable: the directory is this cluster's although its control file cannot be read.
    """

    cluster: str
    backup: str
    moment: Moment = field(default_factory=Moment)
    repository: str | None = None
    around: Around = field(default_factory=Around)
    safety: bool = True
    unreadable: bool = False


@dataclass(frozen=True)
class Planned:
    """A restore in place as it would happen; ``roles`` are those that will be as they were then."""

    cluster: str
    manifest: Manifest
    chosen: moments.Chosen
    plan: InPlacePlan
    roles: tuple[RoleChange, ...]
    roles_known: bool

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the owner should know before it happens."""
        return (*self.manifest.warnings, *(self.chosen.recovery.warnings if self.chosen.recovery else ()))


@dataclass(frozen=True)
class Done:
    """What happened. ``safety`` is the backup made before, ``following`` the one after; None where there is none."""

    planned: Planned
    result: InPlaceResult
    safety: Taken | None
    following: Taken | None


@dataclass(frozen=True)
class _Cluster:
    """A configured cluster on this computer. ``address`` is None where its server does not answer."""

    name: str
    config: ClusterConfig
    data_directory: Path
    address: ServerAddress | None
    facts: ServerFacts | None = field(repr=False)


def plan(context: Context, request: Request, unlocking: Unlocking) -> Planned:
    """What a restore in place would do. Raises: as ``run``, but nothing was touched."""
    named = choose_holding(context, request.repository, request.cluster, request.backup)
    with opened(context, named, unlocking) as repository:
        return _plan(context, repository, request, _look(context, repository, request.cluster, request.around))


def run(context: Context, request: Request, unlocking: Unlocking) -> Done:
    """Restore in place. An earlier exchange that did not come to its end is finished first.

    Raises: NotFound, UsageError, RestoreRefused, ServerError, RepositoryError, StoreError, ServiceError, Busy,
        Cancelled; with the present data in force.
    """
    named = choose_holding(context, request.repository, request.cluster, request.backup)
    with opened(context, named, unlocking) as repository:
        cluster = _look(context, repository, request.cluster, request.around)
        _finish(context, cluster.data_directory)
        planned = _plan(context, repository, request, cluster)
        safety = _safety_backup(context, request, cluster, named, unlocking) if request.safety else None
        result = _exchange(context, repository, planned, cluster)
    audited(
        context,
        "restored in place",
        request.cluster,
        before={"kept": str(result.kept.place), "safety_backup": safety.result.manifest.backup if safety else None},
        after={"backup": planned.manifest.backup, "moment": planned.chosen.sentence},
    )
    return Done(planned, result, safety, _following_backup(context, request.cluster, named, unlocking))


def plan_back(
    context: Context, name: str, around: Around, identity: str | None
) -> tuple[UndoPlan, ServerAddress | None]:
    """What an undo would do. Raises: as ``back``."""
    cluster = _look(context, None, name, around)
    _finish(context, cluster.data_directory)
    options = UndoOptions(
        cluster.data_directory,
        identity,
        service=around.service,
        managed=around.managed,
        drain_seconds=around.drain_seconds,
    )
    return plan_undo(options, context.stop, address=cluster.address), cluster.address


def back(context: Context, name: str, around: Around, identity: str | None) -> UndoResult:
    """Put kept data back in force; what is in force now is kept likewise.

    Raises: NotFound (nothing is kept), Busy, TargetUnfit, IntegrityError, RightMissing, ServiceError, Cancelled;
        with the data in force that were in force before.
    """
    plan, address = plan_back(context, name, around, identity)
    result = run_undo(plan, context.stop, context.listener, address=address)
    audited(
        context,
        "restore undone",
        name,
        before={"kept": str(result.kept.place)},
        after={"data_of": plan.kept.at.isoformat()},
    )
    _turn_archive(context, name, plan, result)
    return result


def _turn_archive(context: Context, name: str, plan: UndoPlan, result: UndoResult) -> None:
    """Have recovery no more choose the timeline that was set aside by itself (PostgreSQL decision 12)."""
    aside, again = result.kept.position, plan.kept.position
    if aside is None or again is None or aside.timeline == again.timeline:
        return
    try:
        with opened(context, choose(context, None, name), Unlocking()) as repository:
            archive = WalArchive(repository, plan.system_identifier)
            for line in archive.lines():
                if line.timeline == aside.timeline:
                    archive.abandon(line)
                elif line.timeline == again.timeline:
                    archive.take_up(line)
    except DataManagerError as error:
        context.listener(
            Warned(
                f"the archive was not told that timeline {aside.timeline} is set aside: {error.message}; until a newer "
                f"backup is made, restore with --timeline {again.timeline}"
            )
        )


def finish(context: Context, name: str, around: Around) -> Finished | None:
    """Bring an exchange that was cut off to its end. Raises: Busy, IntegrityError, RightMissing, ServiceError."""
    return _finish(context, _look(context, None, name, around).data_directory)


def kept(context: Context, name: str, around: Around) -> list[Kept]:
    """What was set aside of a cluster, newest first. Raises: NotFound, IntegrityError, RightMissing."""
    return list_kept(_look(context, None, name, around).data_directory)


def forget(context: Context, name: str, around: Around, identity: str) -> Kept:
    """Delete a state that was set aside, for good. Raises: NotFound, Busy, TargetUnfit, RightMissing."""
    for one in kept(context, name, around):
        if one.identity == identity:
            forget_kept(one)
            audited(context, "kept data deleted", name, before={"place": str(one.place), "of": one.at.isoformat()})
            return one
    raise NotFound(
        f"delete kept data: nothing is kept as {identity!r}",
        hint=f"Run `datamanager restore kept {name}` to see what is.",
    )


def _look(context: Context, repository: Repository | None, name: str, around: Around) -> _Cluster:
    """Where the cluster's data lie, and whether its server answers.

    Raises: NotFound, UsageError, ConfigurationError.
    """
    config = context.cluster(name)
    address = address_of(config)
    if not is_local(address):
        raise UsageError(
            f"restore in place: the server of {name} runs on another computer",
            hint="Run the command there; DataManager must be installed on it.",
        )
    facts: ServerFacts | None = None
    try:
        key = bytes(32) if repository is None else repository.ring.fingerprint_key.reveal()
        facts = clusters.look(context, config, key)
    except (ServerUnreachable, AuthenticationFailed, RightMissing) as error:
        context.listener(Touched(f"cluster {name}, whose server was not asked: {error.message}"))
    told = local_directory(address, facts.data_directory) if facts is not None else None
    directory = around.data_directory or told or config.data_directory
    if directory is None and repository is not None:
        directory = cold_backups.find_directory(repository, name, config, None).path
    if directory is None:
        raise UsageError(
            f"restore in place: where the data of {name} lie is not known, and its server does not tell",
            hint=f"Give --data-directory DIR, or set it with `datamanager cluster set {name} data_directory=DIR`.",
        )
    if told is not None and around.data_directory is not None and told.resolve() != directory.resolve():
        raise UsageError(
            f"restore in place: the server of {name} runs on {told}, not on {directory}", hint="Leave the option out."
        )
    return _Cluster(name, config, directory, address if facts is not None else None, facts)


def _finish(context: Context, data_directory: Path) -> Finished | None:
    finished = finish_or_undo(data_directory, context.listener)
    if finished is not None:
        context.listener(Warned(str(finished)))
    return finished


def _plan(context: Context, repository: Repository, request: Request, cluster: _Cluster) -> Planned:
    context.listener(PhaseStarted("planning"))
    chosen = moments.choose(context, repository, request.backup, request.cluster, request.moment)
    manifest = chosen.manifest
    plan = plan_in_place(
        InPlaceOptions(
            cluster.data_directory,
            int(manifest.system_identifier),
            manifest.major,
            f"backup {manifest.backup} ({manifest.label})",
            manifest.volumes,
            {one.oid: one.location for one in manifest.tablespaces},
            service=request.around.service,
            managed=request.around.managed,
            unreadable=request.unreadable,
            drain_seconds=request.around.drain_seconds,
        )
    )
    roles = _roles(context, repository, cluster, manifest)
    return Planned(request.cluster, manifest, chosen, plan, tuple(roles or ()), roles is not None)


def _roles(context: Context, repository: Repository, cluster: _Cluster, manifest: Manifest) -> list[RoleChange] | None:
    """Roles that will be as they were (R74); None where that cannot be known."""
    if cluster.address is None:
        return None
    then = ServerFacts.from_json(canonical_json(manifest.server))
    if not then.roles:
        return None
    try:
        now = read_all_roles(cluster.address, repository.ring.fingerprint_key.reveal(), context.stop)
    except Cancelled:
        raise
    except DataManagerError as error:
        context.listener(Warned(f"which roles change back is not known: {error.message}"))
        return None
    return role_changes(now, Roles(then.roles, then.rights.get("superuser", False)))


def _safety_backup(context: Context, request: Request, cluster: _Cluster, named: Named, unlocking: Unlocking) -> Taken:
    """Back up what is there, by whichever way it can be read. Raises: what the backup raises."""
    context.listener(PhaseStarted("safety backup"))
    options = backups.RunOptions(
        request.cluster, named.name or named.config.url, f"{request.cluster} {SAFETY_NAME}", append_date=True
    )
    try:
        if server_process(cluster.data_directory) is None:
            return cold_backups.run(context, options, cluster.data_directory, unlocking)
        return backups.run(context, options, unlocking)
    except Cancelled:
        raise
    except DataManagerError as error:
        error.hint = (
            f"{error.hint} Nothing was changed. With --no-safety-backup the restore goes on without one; the present"
            " data are kept beside the restored ones all the same."
        ).strip()
        raise


def _exchange(context: Context, repository: Repository, planned: Planned, cluster: _Cluster) -> InPlaceResult:
    plan = planned.plan
    account = cold_backups.account_of(cluster.data_directory)
    preparation = Preparation(
        account=account,
        programs=find_programs(planned.manifest.major, cluster.config.install_path, account=account),
        owner=plan.owner,
        within=plan.within,
        histories=known_histories(plan),
        threads=backups.processors(),
    )
    prepare = moments.preparing(context, repository, planned.chosen, preparation)
    return run_in_place(plan, prepare, context.stop, context.listener, address=cluster.address)


def _following_backup(context: Context, name: str, named: Named, unlocking: Unlocking) -> Taken | None:
    """The first backup of the restored cluster; that it fails is a warning, for the restore is done."""
    context.listener(PhaseStarted("backing up the restored cluster"))
    try:
        return backups.run(context, backups.RunOptions(name, named.name or named.config.url), unlocking)
    except DataManagerError as error:
        context.listener(
            Warned(f"the restored cluster is not backed up yet: {error.message}; run `datamanager backup run {name}`")
        )
        return None
