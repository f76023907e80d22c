"""A backup written over a cluster's own data, for a volume that does not hold them twice: there is no way back.

What was begun and cut off goes on with the same command: its record lies beside the data directory
(engine/in_place/delta.py). It comes to the backup's own end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from datamanager.app import backups, cold_backups, moments
from datamanager.app.audit import audited
from datamanager.app.backups import Taken
from datamanager.app.context import Context
from datamanager.app.in_place import refuse_unfinished_exchange
from datamanager.app.in_place_cluster import Around, LocalCluster, following_backup, look, roles_changed, safety_backup
from datamanager.app.opening import Named, Unlocking, choose_holding, opened
from datamanager.app.timelines import taken_timelines
from datamanager.base.errors import TargetUnfit
from datamanager.base.events import PhaseStarted, Warned
from datamanager.base.units import format_size
from datamanager.engine.in_place.configuration import histories_known
from datamanager.engine.in_place.delta import (
    DeltaDone,
    DeltaInPlace,
    Phase,
    Record,
    find_record,
    require_same,
)
from datamanager.engine.in_place.journal import require_abandoned_by
from datamanager.engine.in_place.kept import list_kept, outside_of
from datamanager.engine.in_place.places import Places, new_identity
from datamanager.engine.in_place.plan import check_account, check_layout
from datamanager.engine.in_place.prepare import FromBackup, Preparation
from datamanager.engine.in_place.roles import RoleChange
from datamanager.engine.in_place.run import require_answer
from datamanager.engine.restore.delta import DeltaOptions, DeltaPlan, DeltaResult, apply_delta, plan_delta
from datamanager.postgres.drain import wait_until_alone
from datamanager.postgres.managers import manager_of
from datamanager.postgres.postmaster import postmaster_of
from datamanager.postgres.programs import find_programs
from datamanager.postgres.server_control import control_of
from datamanager.postgres.service_of import find_control
from datamanager.repository.manifest import Manifest
from datamanager.repository.repository import Repository
from datamanager.system.processes import this_process

_START_SECONDS, _STOP_SECONDS = 600.0, 120.0
_MOST_NAMED = 20
_WITHOUT = "then nothing at all is left of the present data."


@dataclass(frozen=True)
class Request:
    """What is written over which cluster's data.

    Args: backup - id, the beginning of one, or ``latest`` for the newest; safety - back up first what is there.
    """

    cluster: str
    backup: str
    repository: str | None = None
    around: Around = field(default_factory=Around)
    safety: bool = True


@dataclass(frozen=True)
class Planned:
    """A delta restore as it would happen; ``unfinished`` when one was cut off and goes on."""

    cluster: str
    delta: DeltaPlan
    record: Record
    unfinished: bool
    safety: bool
    control: str
    roles: tuple[RoleChange, ...]
    roles_known: bool
    warnings: tuple[str, ...]

    def lines(self) -> list[str]:
        """The plan for people."""
        place, delta = self.record.places.data_directory, self.delta
        ends = "what is committed between that backup and the stop is lost"
        first = f"make a backup of the present data first; {ends}" if self.safety else "make no backup of them first"
        shown = delta.removed[:_MOST_NAMED]
        more = f" and {len(delta.removed) - len(shown)} more" if len(delta.removed) > len(shown) else ""
        removed = f"{delta.removed_files} files ({format_size(delta.removed_bytes)})"
        return [
            f"write backup {delta.manifest.backup} ({delta.manifest.label}) over the data in {place}",
            "there is no way back: nothing of the present data is kept, and `restore undo` cannot bring them back",
            *(["go on with what was cut off"] if self.unfinished else [first]),
            f"stop the server by {self.control}, if it runs",
            f"compare {format_size(delta.total_bytes)} with the backup, and fetch and write what differs",
            f"remove {removed} that the backup does not have" + (f": {', '.join(shown)}{more}" if shown else ""),
            "keep the present configuration in force",
            f"recover to the backup's end on a new timeline, and start the server by {self.control}",
            *(f"note: {text}" for text in self.warnings),
        ]


@dataclass(frozen=True)
class Done:
    """What happened. ``safety`` is the backup made before, ``following`` the one after; None where there is none."""

    planned: Planned
    result: DeltaDone
    ended: int
    safety: Taken | None
    following: Taken | None
    warnings: tuple[str, ...]


def plan(context: Context, request: Request, unlocking: Unlocking) -> Planned:
    """What a delta restore would do. Raises: as ``run``, but nothing was touched."""
    return _Session(context, request, unlocking).plan()


def run(context: Context, request: Request, unlocking: Unlocking) -> Done:
    """Write the backup over the cluster's data, or go on with that.

    Raises: NotFound, UsageError, RestoreRefused, ServerError, RepositoryError, StoreError, ServiceError, Busy,
        Cancelled. Each says whether the present data are in force or the same command goes on.
    """
    return _Session(context, request, unlocking).run()


class _Session:
    """One command."""

    def __init__(self, context: Context, request: Request, unlocking: Unlocking) -> None:
        self._context = context
        self._request = request
        self._unlocking = unlocking
        self._named: Named = choose_holding(context, request.repository, request.cluster, request.backup)

    def plan(self) -> Planned:
        with opened(self._context, self._named, self._unlocking) as repository:
            cluster = look(self._context, repository, self._request.cluster, self._request.around)
            return self._plan(repository, cluster)

    def run(self) -> Done:
        context, name = self._context, self._request.cluster
        with opened(context, self._named, self._unlocking) as repository:
            cluster = look(context, repository, name, self._request.around)
            planned = self._plan(repository, cluster)
            safety = None
            if planned.safety:
                safety = safety_backup(context, cluster, self._named, self._unlocking, _WITHOUT)
            ended = self._drain(cluster)
            result, warnings = self._carry_out(repository, planned, cluster)
        manifest = planned.delta.manifest
        audited(
            context,
            "restored in place, by delta",
            name,
            before={"safety_backup": safety.result.manifest.backup if safety else None},
            after={"backup": manifest.backup, "timeline": result.timeline},
        )
        following = following_backup(context, name, self._named, self._unlocking)
        return Done(planned, result, ended, safety, following, tuple(warnings))

    def _plan(self, repository: Repository, cluster: LocalCluster) -> Planned:
        context, request, place = self._context, self._request, cluster.data_directory
        context.listener(PhaseStarted("planning"))
        refuse_unfinished_exchange(place)
        unfinished = find_record(place)
        if unfinished is not None:
            require_abandoned_by(unfinished.process)
        manifest = self._manifest(repository, unfinished)
        check_account(place)
        warnings: tuple[str, ...] = ()
        if unfinished is None:
            check_layout(place, tuple(outside_of(place)))
            record, warnings = self._begin(repository, cluster, manifest)
        else:
            require_same(unfinished, request.cluster, manifest.backup)
            record = unfinished
        options = DeltaOptions(place, manifest.cluster, backups.processors())
        delta = plan_delta(repository, manifest, options, at_rest=postmaster_of(place) is None)
        roles = roles_changed(context, repository, cluster, manifest)
        return Planned(
            request.cluster,
            delta,
            record,
            unfinished is not None,
            request.safety and (unfinished is None or unfinished.phase is Phase.STOPPING),
            control_of(record.control).words,
            tuple(roles or ()),
            roles is not None,
            (*warnings, *delta.warnings),
        )

    def _manifest(self, repository: Repository, unfinished: Record | None) -> Manifest:
        """Raises: NotFound, UsageError."""
        request = self._request
        if request.backup != "latest":
            return repository.find(request.backup, request.cluster)
        if unfinished is not None:  # the newest one may be the safety backup by now
            return repository.manifest(unfinished.backup)
        return moments.newest(self._context, repository, request.cluster)

    def _begin(
        self, repository: Repository, cluster: LocalCluster, manifest: Manifest
    ) -> tuple[Record, tuple[str, ...]]:
        """The record of a new one, not written yet. Raises: TargetUnfit, ServiceError, ProgramMissing."""
        place, around = cluster.data_directory, self._request.around
        places = Places.of(place)
        found = find_control(places.data_directory, places.log, service=around.service)
        if not around.managed and (one := manager_of(place, found.above)) is not None:
            raise TargetUnfit(f"restore in place: {one.name} manages {place} ({one.noticed})", hint=one.remedy)
        taken = taken_timelines(repository, int(manifest.system_identifier))
        record = Record(
            new_identity(),
            Phase.STOPPING,
            this_process(),
            places,
            cluster.name,
            manifest.backup,
            found.control.record(),
            found.running,
            _START_SECONDS,
            histories_known([*(one.place for one in list_kept(place)), place], taken),
        )
        return record, found.doubts

    def _drain(self, cluster: LocalCluster) -> int:
        if cluster.address is None:
            return 0
        self._context.listener(PhaseStarted("waiting for sessions to end"))
        seconds = self._request.around.drain_seconds
        left = wait_until_alone(cluster.address, seconds, self._context.stop, lambda sessions: None)
        if left:
            self._context.listener(Warned(f"{len(left)} sessions are ended with the server"))
        return len(left)

    def _carry_out(
        self, repository: Repository, planned: Planned, cluster: LocalCluster
    ) -> tuple[DeltaDone, list[str]]:
        context, record, manifest = self._context, planned.record, planned.delta.manifest
        place = record.places.data_directory
        account = cold_backups.account_of(place)
        programs = find_programs(manifest.major, cluster.config.install_path, account=account)
        preparation = Preparation(account, programs, histories=record.histories)
        recovery = FromBackup(repository, manifest, preparation, context.stop, context.listener)
        options = planned.delta.options
        warnings: list[str] = []

        def write(before_start: Callable[[Path], None]) -> DeltaResult:
            plan = plan_delta(repository, manifest, options)
            return apply_delta(repository, plan, context.stop, context.listener, before_start=before_start)

        def answers() -> None:
            if cluster.address is not None:
                warnings.extend(require_answer(cluster.address, int(manifest.system_identifier)))

        delta = DeltaInPlace(record, context.listener, write=write, recover=recovery.recover, answers=answers)
        return delta.run(context.stop, _STOP_SECONDS), warnings
