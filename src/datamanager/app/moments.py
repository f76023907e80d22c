"""From what a person asks (the newest, a time, a position, a name) to a backup and the WAL to replay onto it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from zoneinfo import ZoneInfo

from datamanager.app.context import Context
from datamanager.app.wal_beat import WalFiles, read_wal_beat
from datamanager.base.errors import TargetUnfit, UsageError
from datamanager.base.units import Lsn
from datamanager.engine.in_place.prepare import FromBackup, Preparation
from datamanager.engine.in_place.run import Prepare
from datamanager.engine.recovery.plan import RecoveryPlan
from datamanager.engine.recovery.planner import plan_recovery
from datamanager.engine.recovery.replay import Replay, own_end
from datamanager.engine.recovery.targets import Target, parse_time
from datamanager.repository.manifest import Manifest
from datamanager.repository.repository import Repository
from datamanager.repository.wal.archive import Line, WalArchive
from datamanager.schedule.recurrence import check_zone
from datamanager.schedule.zones import machine_zone


@dataclass(frozen=True)
class Moment:
    """What was asked for; nothing means the newest moment for ``latest``, and for a backup its own end.

    Args: time - as typed; zone - whose clocks it is on, None for this computer's; lsn - as typed; name - of a restore
        point; timeline - the number of one to recover along, else the plan chooses.
    """

    time: str | None = None
    lsn: str | None = None
    name: str | None = None
    timeline: int | None = None
    zone: str | None = None

    @property
    def is_given(self) -> bool:
        return any(one is not None for one in (self.time, self.lsn, self.name, self.timeline))

    @property
    def clocks(self) -> str:
        """The zone that times are read in and shown in, empty when nobody says. Raises: UsageError (no such zone)."""
        if self.zone:
            return check_zone(self.zone)
        with contextlib.suppress(UsageError):
            return machine_zone()
        return ""

    @property
    def shown_in(self) -> tzinfo:
        """As ``clocks``, and UTC when nobody says."""
        return ZoneInfo(self.clocks or "UTC")

    def target(self) -> Target:
        """Raises: UsageError: more than one, not a time, a time that the clocks showed twice or never."""
        given = [one for one in (self.time, self.lsn, self.name) if one is not None]
        if len(given) > 1:
            raise UsageError(
                "read target: more than one is given", hint="Give one of --to-time, --to-lsn and --to-name."
            )
        if self.time is not None:
            zone = ZoneInfo(self.clocks) if self.clocks else None
            return Target.at_time(parse_time(self.time, zone), self.timeline)
        if self.lsn is not None:
            return Target.at_lsn(_position(self.lsn), self.timeline)
        if self.name is not None:
            return Target.at_name(self.name, self.timeline)
        return Target.latest(self.timeline)


@dataclass(frozen=True)
class Chosen:
    """A backup, and how to get from it to the moment; ``recovery`` is None for the backup as it is."""

    manifest: Manifest
    recovery: RecoveryPlan | None = None
    lines: tuple[Line, ...] = ()

    @property
    def sentence(self) -> str:
        """The moment for people, in UTC."""
        return self.recovery.words() if self.recovery is not None else f"the end of backup {self.manifest.backup}"

    @property
    def replay(self) -> Replay | None:
        """What is replayed; None where the backup's own WAL is all."""
        plan = self.recovery
        if plan is None or plan.target is None:
            return None
        return Replay(plan.history, plan.target, plan.needs, plan.segment_size, self.lines)


def choose(context: Context, repository: Repository, backup: str, cluster: str | None, moment: Moment) -> Chosen:
    """Choose the backup and plan the way to the moment; nothing is written.

    Args: backup - an id, to restrict the choice to that one, or ``latest``.
    Raises: NotFound, UsageError; TargetUnreachable, with what can be reached; TargetUnfit; IntegrityError, StoreError.
    """
    found = repository.find(backup, cluster)
    newest = backup == "latest"
    if not newest and not moment.is_given:
        return Chosen(found)
    target = moment.target()
    archive = WalArchive(repository, int(found.system_identifier))
    lines, abandoned = tuple(archive.lines()), archive.abandoned()
    if not lines and not abandoned and not moment.is_given:
        return Chosen(found)
    manifests = [one for one in repository.manifests() if _is_same(one, found)] if newest else [found]
    plan = plan_recovery(
        lines,
        manifests,
        target,
        context.stop,
        abandoned=abandoned,
        proven=_proven(context, found.cluster, lines),
        zone=moment.shown_in,
    )
    if plan.tablespaces:
        first = plan.tablespaces[0]
        raise TargetUnfit(
            f"recover: the WAL before that moment creates a tablespace in {first.location}; replay would write there",
            hint=f"Choose a moment before position {first.lsn}, or make a backup and restore from that one.",
        )
    return Chosen(next(one for one in manifests if one.backup == plan.backup.backup), plan, lines)


def preparing(context: Context, repository: Repository, chosen: Chosen, how: Preparation) -> Prepare:
    """What makes the chosen cluster beside the one whose place it takes."""
    replay = chosen.replay or own_end(chosen.manifest, how.histories)
    return FromBackup(repository, chosen.manifest, replay, how, context.stop, context.listener)


def _proven(context: Context, cluster: str, lines: Sequence[Line]) -> dict[str, datetime]:
    """Until when a receiver of this computer knew that its line had all that the server had written.

    A quiet night leaves no WAL, so the archive alone cannot tell that nothing is missing (PostgreSQL decision 14).
    """
    beat = read_wal_beat(WalFiles.of(context.home, cluster).beat)
    until = beat.progress.complete_time if beat is not None else None
    if beat is None or until is None:
        return {}
    # What it had sealed must still be there.
    its = [one for one in lines if one.id == beat.progress.line]
    return {one.id: until for one in its if any(each.end >= beat.progress.sealed for each in one.stored())}


def _is_same(one: Manifest, other: Manifest) -> bool:
    return (one.cluster, one.system_identifier) == (other.cluster, other.system_identifier)


def _position(text: str) -> Lsn:
    try:
        return Lsn.parse(text.strip())
    except ValueError:
        raise UsageError(f"read position: {text!r} is none", hint="Write it like 0/5A3F1C8.") from None
