"""A plan of recovery: a backup, a timeline by its number, the last record to be replayed, the WAL that it takes. Pure.

Recovery is never open-ended: what does not reach the record that the plan names is a fault, never the end of the WAL.
Source: decisions 3 and 12; PostgreSQL documentation 20.5.6, recovery_target_lsn with recovery_target_inclusive.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo

from datamanager.base.units import Lsn
from datamanager.engine.recovery.targets import Target, format_time
from datamanager.engine.recovery.windows import BackupPoint
from datamanager.postgres.replay_hazards import CreatedTablespace
from datamanager.postgres.wal.history import TimelineHistory
from datamanager.repository.wal.archive import Line


@dataclass(frozen=True, slots=True)
class NeededWal:
    """WAL of one line. ``timeline`` is in the names of the files under which the server asks for it."""

    line: Line
    start: Lsn
    end: Lsn
    timeline: int


@dataclass(frozen=True, slots=True)
class RecoveryPlan:
    """How to get to a moment.

    Args:
        asked: what the plan is for.
        backup: the one to restore.
        history: of the timeline to recover along; its number is ``timeline``.
        target: where the last record begins that is replayed (recovery_target_lsn, inclusive); None for a backup as it
            is, with no other WAL than its own.
        needs: the WAL from the backup's stop to the end of that record, in order; empty if the backup holds it all.
        last_commit: the time of the last commit included, None where the archive does not tell.
        next_commit: of the first one in the WAL behind it, None where there is none.
        tablespaces: created in the WAL to be replayed; see ``replay_hazards``.
        warnings: what the owner should know before it is begun.
    """

    asked: Target
    backup: BackupPoint
    history: TimelineHistory
    target: Lsn | None
    needs: tuple[NeededWal, ...]
    segment_size: int
    last_commit: datetime | None
    next_commit: datetime | None
    abandoned: bool
    tablespaces: tuple[CreatedTablespace, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def timeline(self) -> int:
        return self.history.timeline

    @property
    def wal_bytes(self) -> int:
        return sum(one.end - one.start for one in self.needs)

    def words(self, zone: tzinfo = UTC) -> str:
        """The moment for people, with the two commits on either side of it."""
        if self.target is None:
            return f"the end of backup {self.backup.backup}, at {format_time(self.backup.ended, zone)}"
        last = "the last commit included is not known"
        if self.last_commit is not None:
            last = f"the last commit included is of {format_time(self.last_commit, zone)}"
        after = "no later one is in the archive"
        if self.next_commit is not None:
            after = f"the next one, of {format_time(self.next_commit, zone)}, is not"
        return f"position {self.target} on timeline {self.timeline}: {last}; {after}"
