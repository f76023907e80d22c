"""Restoring in place of a cluster's data, going back, and what was set aside.

A safety backup first, then the restored cluster beside the present one, then the exchange (engine/in_place). Afterwards
a backup begins by itself: the restored cluster is on a timeline of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from datamanager.app import backups, cold_backups, moments, readiness
from datamanager.app.audit import audited
from datamanager.app.backups import Taken
from datamanager.app.context import Context
from datamanager.app.in_place_cluster import Around, LocalCluster, following_backup, look, roles_changed, safety_backup
from datamanager.app.in_place_ending import RESTORE, UNDO, end_unfinished, noted
from datamanager.app.in_place_notes import read_note
from datamanager.app.moments import Moment
from datamanager.app.opening import Unlocking, choose, choose_holding, opened
from datamanager.app.readiness import Finding, NotReady
from datamanager.app.timelines import abandon_what_was_set_aside, taken_timelines
from datamanager.base.errors import Busy, DataManagerError, NotFound
from datamanager.base.events import PhaseStarted, Warned
from datamanager.engine.in_place.delta import find_record, require_not_halfway
from datamanager.engine.in_place.journal import find_journal
from datamanager.engine.in_place.kept import Kept, forget_kept, list_kept
from datamanager.engine.in_place.plan import FINISH, InPlaceOptions, InPlacePlan, plan_in_place
from datamanager.engine.in_place.prepare import Preparation
from datamanager.engine.in_place.recovery import Finished
from datamanager.engine.in_place.roles import RoleChange
from datamanager.engine.in_place.run import InPlaceResult, known_histories, run_in_place
from datamanager.engine.in_place.undo import UndoOptions, UndoPlan, UndoResult, plan_undo, run_undo
from datamanager.engine.restore.plan import VolumeNeed
from datamanager.postgres.connection import ServerAddress
from datamanager.postgres.programs import find_programs
from datamanager.repository.manifest import Manifest
from datamanager.repository.repository import Repository

_WITHOUT = "the present data are kept beside the restored ones all the same."


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
    """A restore in place as it would happen; ``roles`` are those that will be as they were then.

    Args: findings - whether it will succeed on this machine, worst first.
    """

    cluster: str
    manifest: Manifest
    chosen: moments.Chosen
    plan: InPlacePlan
    roles: tuple[RoleChange, ...]
    roles_known: bool
    findings: Sequence[Finding]

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
class Ended:
    """How what was cut off has ended. ``following`` is the backup of what was restored; None where there is none."""

    finished: Finished
    following: Taken | None


def plan(context: Context, request: Request, unlocking: Unlocking, *, finishing: bool = False) -> Planned | NotReady:
    """What a restore in place would do, and whether it will succeed here.

    Args: finishing - first bring an earlier exchange to its end that was cut off; else that is refused.
    Raises: as ``run``; nothing else was touched.
    """
    named = choose_holding(context, request.repository, request.cluster, request.backup)
    with opened(context, named, unlocking) as repository:
        cluster = look(context, repository, request.cluster, request.around)
        if finishing:
            cluster = _finished(context, repository, request, cluster)
        return _plan(context, repository, request, cluster)


def run(context: Context, request: Request, unlocking: Unlocking) -> Done:
    """Restore in place. An earlier exchange that did not come to its end is finished first.

    Raises: NotFound, UsageError, RestoreRefused, ServerError, RepositoryError, StoreError, ServiceError, Busy,
        Cancelled; with the present data in force.
    """
    named = choose_holding(context, request.repository, request.cluster, request.backup)
    with opened(context, named, unlocking) as repository:
        cluster = look(context, repository, request.cluster, request.around)
        cluster = _finished(context, repository, request, cluster)
        planned = _plan(context, repository, request, cluster)
        if isinstance(planned, NotReady):
            raise planned.error
        readiness.require(planned.findings, context.listener)
        safety = safety_backup(context, cluster, named, unlocking, _WITHOUT) if request.safety else None
        with noted(context, request.cluster, RESTORE, cluster.data_directory, named.name or named.config.url):
            result = _exchange(context, repository, planned, cluster)
    audited(
        context,
        "restored in place",
        request.cluster,
        before={"kept": str(result.kept.place), "safety_backup": safety.result.manifest.backup if safety else None},
        after={"backup": planned.manifest.backup, "moment": planned.chosen.sentence},
    )
    return Done(planned, result, safety, following_backup(context, request.cluster, named, unlocking))


def plan_back(
    context: Context, name: str, around: Around, identity: str | None
) -> tuple[UndoPlan, ServerAddress | None]:
    """What an undo would do. Raises: as ``back``."""
    cluster = look(context, None, name, around)
    end_unfinished(context, name, cluster.data_directory)
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
    with noted(context, name, UNDO, plan.places.data_directory):
        result = run_undo(plan, context.stop, context.listener, address=address)
    audited(
        context,
        "restore undone",
        name,
        before={"kept": str(result.kept.place)},
        after={"data_of": plan.kept.at.isoformat()},
    )
    abandon_what_was_set_aside(context, name, plan.places.data_directory)
    return result


def finish(context: Context, name: str, around: Around) -> Ended | None:
    """Bring an exchange that was cut off to its end, and back up what was restored; None when there is none.

    Raises: Busy (it is under way), IntegrityError, RightMissing, ServerDidNotStart, ServiceError, TargetUnfit.
    """
    note = read_note(context.home, name)
    if around.data_directory is None and note is not None:
        around = replace(around, data_directory=note.data_directory)
    finished = end_unfinished(context, name, look(context, None, name, around).data_directory)
    return None if finished is None else Ended(finished, _back_up_finished(context, name, finished))


def _finished(context: Context, repository: Repository, request: Request, cluster: LocalCluster) -> LocalCluster:
    """The cluster without an unfinished exchange; one that is completed is backed up, by the safety backup if any."""
    finished = end_unfinished(context, request.cluster, cluster.data_directory)
    if finished is None:
        return cluster
    if not request.safety:
        _back_up_finished(context, request.cluster, finished)
    return look(context, repository, request.cluster, request.around)


def _back_up_finished(context: Context, name: str, finished: Finished) -> Taken | None:
    if not finished.completed or finished.kind == UNDO:
        return None
    note = read_note(context.home, name)
    try:
        named = choose(context, note.repository if note else None, name)
    except DataManagerError as error:
        # The configuration has changed since; the exchange is done all the same.
        context.listener(Warned(f"the restored cluster is not backed up yet: {error.message}"))
        return None
    return following_backup(context, name, named, Unlocking())


def kept(context: Context, name: str, around: Around) -> list[Kept]:
    """What was set aside of a cluster, newest first. Raises: NotFound, IntegrityError, RightMissing."""
    return list_kept(look(context, None, name, around).data_directory)


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


def refuse_unfinished_exchange(data_directory: Path) -> None:
    """Raises: Busy."""
    if (journal := find_journal(data_directory)) is not None:
        raise Busy(
            f"restore in place: an exchange of {data_directory} did not come to its end ({journal})", hint=FINISH
        )


def _plan(context: Context, repository: Repository, request: Request, cluster: LocalCluster) -> Planned | NotReady:
    context.listener(PhaseStarted("planning"))
    if (record := find_record(cluster.data_directory)) is not None:
        require_not_halfway(record)
    chosen = moments.choose(context, repository, request.backup, request.cluster, request.moment)
    manifest = chosen.manifest
    options = InPlaceOptions(
        cluster.data_directory,
        int(manifest.system_identifier),
        manifest.major,
        f"backup {manifest.backup} ({manifest.label})",
        manifest.volumes,
        {one.oid: one.location for one in manifest.tablespaces},
        taken_timelines(repository, int(manifest.system_identifier)),
        service=request.around.service,
        managed=request.around.managed,
        unreadable=request.unreadable,
        drain_seconds=request.around.drain_seconds,
    )
    try:
        plan = plan_in_place(options)
    except readiness.REFUSALS as error:
        return NotReady(options.source, readiness.of_cluster(repository, manifest, cluster, error), error)
    rooms = [VolumeNeed(one.path, one.need, one.free) for one in plan.rooms]
    findings = readiness.of_cluster(repository, manifest, cluster, rooms)
    roles = roles_changed(context, repository, cluster, manifest)
    return Planned(request.cluster, manifest, chosen, plan, tuple(roles or ()), roles is not None, findings)


def _exchange(context: Context, repository: Repository, planned: Planned, cluster: LocalCluster) -> InPlaceResult:
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
