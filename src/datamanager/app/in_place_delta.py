"""A backup written over a cluster's own data, for a volume that does not hold them twice: there is no way back.

What was begun and cut off goes on with the same command: its record lies beside the data directory
(engine/in_place/delta.py). It comes to the backup's own end, or to a moment after it. What can be checked is checked
before anything is touched: that the moment is reachable, that all WAL up to it can be read, that there is room for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from datamanager.app import backups, cold_backups, readiness
from datamanager.app.audit import audited
from datamanager.app.backups import Taken
from datamanager.app.context import Context
from datamanager.app.in_place import refuse_unfinished_exchange
from datamanager.app.in_place_cluster import Around, LocalCluster, following_backup, look, roles_changed, safety_backup
from datamanager.app.in_place_ending import RESTORE, noted
from datamanager.app.in_place_moment import Wanted, choose, chosen_before, words_of
from datamanager.app.moments import Moment
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
    require_fits,
)
from datamanager.engine.in_place.journal import require_abandoned_by
from datamanager.engine.in_place.kept import list_kept, outside_of
from datamanager.engine.in_place.places import Places, new_identity
from datamanager.engine.in_place.plan import check_account, check_layout
from datamanager.engine.in_place.roles import RoleChange
from datamanager.engine.in_place.run import require_answer
from datamanager.engine.recovery.replay import Replay, own_end, replay_to_json, require_wal
from datamanager.engine.recovery.room import room_for_wal
from datamanager.engine.recovery.run import RecoveryOptions, recover
from datamanager.engine.recovery.workplace import Workplace, check_folder
from datamanager.engine.restore.delta import DeltaOptions, DeltaPlan, DeltaResult, apply_delta, plan_delta
from datamanager.postgres.drain import wait_until_alone
from datamanager.postgres.managers import manager_of
from datamanager.postgres.postmaster import postmaster_of
from datamanager.postgres.programs import find_programs
from datamanager.postgres.server_control import control_of
from datamanager.postgres.service_of import find_control
from datamanager.repository.repository import Repository
from datamanager.system.processes import this_process

_START_SECONDS, _STOP_SECONDS = 600.0, 120.0
_MOST_NAMED = 20
_WITHOUT = "then nothing at all is left of the present data."


@dataclass(frozen=True)
class Request:
    """What is written over which cluster's data.

    Args:
        backup: id, the beginning of one, or ``latest``.
        moment: where the restored data are to end.
        safety: back up first what is there.
    """

    cluster: str
    backup: str
    moment: Moment = field(default_factory=Moment)
    repository: str | None = None
    around: Around = field(default_factory=Around)
    safety: bool = True


@dataclass(frozen=True)
class Planned:
    """A delta restore as it would happen; ``unfinished`` is one that was cut off, and goes on or gives way."""

    cluster: str
    delta: DeltaPlan
    replay: Replay | None
    record: Record
    unfinished: Record | None
    safety: bool
    control: str
    roles: tuple[RoleChange, ...]
    roles_known: bool
    warnings: tuple[str, ...]
    findings: Sequence[readiness.Finding] = ()

    @property
    def goes_on(self) -> bool:
        """Whether it is the very one that was cut off, with nothing left of the data before it."""
        return self.unfinished == self.record and self.record.phase is not Phase.STOPPING

    def _first(self) -> str:
        if self.unfinished is None:
            ends = "what is committed between that backup and the stop is lost"
            return f"make a backup of the present data first; {ends}" if self.safety else "make no backup of them first"
        if self.unfinished == self.record:
            return "go on with what was cut off"
        return f"do this instead of what was cut off, which was to end at {self.unfinished.moment}"

    def lines(self) -> list[str]:
        """The plan for people."""
        place, delta = self.record.places.data_directory, self.delta
        shown = delta.removed[:_MOST_NAMED]
        more = f" and {len(delta.removed) - len(shown)} more" if len(delta.removed) > len(shown) else ""
        removed = f"{delta.removed_files} files ({format_size(delta.removed_bytes)})"
        return [
            f"write backup {delta.manifest.backup} ({delta.manifest.label}) over the data in {place}",
            "there is no way back: nothing of the present data is kept, and `restore undo` cannot bring them back",
            self._first(),
            f"stop the server by {self.control}, if it runs",
            f"compare {format_size(delta.total_bytes)} with the backup, and fetch and write what differs",
            f"remove {removed} that the backup does not have" + (f": {', '.join(shown)}{more}" if shown else ""),
            "keep the present configuration in force",
            f"recover to {self.record.moment}, on a new timeline",
            f"start the server by {self.control}",
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


def plan(context: Context, request: Request, unlocking: Unlocking, *, read_wal: bool = True) -> Planned:
    """What a delta restore would do. Raises: as ``run``, but nothing was touched.

    Args: read_wal - see that all the WAL can be read; ``run`` does it in any case.
    """
    return _Session(context, request, unlocking).plan(read_wal=read_wal)


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

    def plan(self, *, read_wal: bool) -> Planned:
        with opened(self._context, self._named, self._unlocking) as repository:
            cluster = look(self._context, repository, self._request.cluster, self._request.around)
            planned = self._plan(repository, cluster)
            if read_wal:
                self._read_wal(repository, planned)
            return planned

    def run(self) -> Done:
        context, name = self._context, self._request.cluster
        with opened(context, self._named, self._unlocking) as repository, self._holding(repository):
            cluster = look(context, repository, name, self._request.around)
            planned = self._plan(repository, cluster)
            readiness.require(planned.findings, context.listener)
            self._read_wal(repository, planned)
            safety = None
            if planned.safety:
                safety = safety_backup(context, cluster, self._named, self._unlocking, _WITHOUT)
            ended = self._drain(cluster)
            where = self._named.name or self._named.config.url
            with noted(context, name, RESTORE, cluster.data_directory, where):
                result, warnings = self._carry_out(repository, planned, cluster)
        manifest = planned.delta.manifest
        audited(
            context,
            "restored in place, by delta",
            name,
            before={"safety_backup": safety.result.manifest.backup if safety else None},
            after={"backup": manifest.backup, "moment": planned.record.moment, "timeline": result.timeline},
        )
        following = following_backup(context, name, self._named, self._unlocking)
        return Done(planned, result, ended, safety, following, tuple(warnings))

    def _read_wal(self, repository: Repository, planned: Planned) -> None:
        """Of one that is not begun yet. Raises: WalMissing, IntegrityError, StoreError, Cancelled."""
        if planned.replay is not None and not planned.goes_on:
            context, manifest = self._context, planned.delta.manifest
            require_wal(repository, manifest, planned.replay, context.stop, context.listener)

    @contextlib.contextmanager
    def _holding(self, repository: Repository) -> Iterator[None]:
        """No prune takes the WAL away that the plan has found."""
        context = self._context
        lease = repository.take_lease_if_possible(
            "restore", (), lambda text: context.listener(Warned(text)), stop=context.stop
        )
        try:
            yield
        finally:
            if lease is not None:
                lease.release()

    def _plan(self, repository: Repository, cluster: LocalCluster) -> Planned:
        context, request, place = self._context, self._request, cluster.data_directory
        context.listener(PhaseStarted("planning"))
        refuse_unfinished_exchange(place)
        unfinished = find_record(place)
        if unfinished is not None:
            require_abandoned_by(unfinished.process)
        check_account(place)
        words = words_of(repository, request.backup, request.cluster, request.moment)
        doubts: tuple[str, ...] = ()
        if unfinished is not None and require_fits(unfinished, request.cluster, words):
            wanted, record = chosen_before(repository, unfinished), unfinished
        else:
            wanted = choose(context, repository, request.backup, request.cluster, request.moment)
            if unfinished is None:
                check_layout(place, tuple(outside_of(place)))
                record, doubts = self._begin(repository, cluster, wanted, words)
            else:
                record = _instead(unfinished, wanted, words)
        manifest, replay = wanted.manifest, wanted.replay
        options = DeltaOptions(place, manifest.cluster, backups.processors(), _room_beside(record, replay))
        delta = plan_delta(repository, manifest, options, at_rest=postmaster_of(place) is None)
        check_folder(place, cold_backups.account_of(place), record.wal)
        roles = roles_changed(context, repository, cluster, manifest)
        return Planned(
            request.cluster,
            delta,
            replay,
            record,
            unfinished,
            request.safety and (unfinished is None or unfinished.phase is Phase.STOPPING),
            control_of(record.control).words,
            tuple(roles or ()),
            roles is not None,
            (*doubts, *wanted.warnings, *delta.warnings),
            () if unfinished is not None else readiness.of_cluster(repository, manifest, cluster, delta.volumes),
        )

    def _begin(
        self, repository: Repository, cluster: LocalCluster, wanted: Wanted, words: tuple[str, ...]
    ) -> tuple[Record, tuple[str, ...]]:
        """The record of a new one, not written yet. Raises: TargetUnfit, ServiceError, ProgramMissing."""
        place, around, manifest = cluster.data_directory, self._request.around, wanted.manifest
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
            words,
            wanted.moment,
            _saved(wanted.replay),
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
        replay = replace(planned.replay or own_end(manifest, {}), histories=record.histories)
        options = planned.delta.options
        warnings: list[str] = []

        def write(before_start: Callable[[Path], None], then: Callable[[Path], None]) -> DeltaResult:
            plan = plan_delta(repository, manifest, options)
            return apply_delta(
                repository, plan, context.stop, context.listener, before_start=before_start, recover=then
            )

        def recovered(_: Path) -> None:
            workplace = Workplace.of(place, planned.delta.target.roots[1:], account, record.wal)
            recover(workplace, manifest, replay, RecoveryOptions(account, programs), context.stop, context.listener)

        def answers() -> None:
            if cluster.address is not None:
                warnings.extend(require_answer(cluster.address, int(manifest.system_identifier)))

        delta = DeltaInPlace(record, context.listener, write=write, recover=recovered, answers=answers)
        return delta.run(context.stop, _STOP_SECONDS), warnings


def _saved(replay: Replay | None) -> Mapping[str, Any] | None:
    return None if replay is None else replay_to_json(replay)


def _instead(unfinished: Record, wanted: Wanted, words: tuple[str, ...]) -> Record:
    """Another restore over data of which one that was cut off has left nothing whole."""
    backup, replay = wanted.manifest.backup, _saved(wanted.replay)
    return replace(unfinished, backup=backup, words=words, moment=wanted.moment, replay=replay)


def _room_beside(record: Record, replay: Replay | None) -> Mapping[Path, int]:
    """The bytes that WAL takes, by the directory in which."""
    if replay is None:
        return {}
    replayed = record.places.data_directory / "pg_wal"
    return room_for_wal(replayed, record.wal, replay.needs, replay.segment_size)
