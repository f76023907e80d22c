"""Which WAL is kept: what leads from a kept backup to every moment behind it, and nothing else; a pure plan.

    backups   ──B1────────B2──────────B3──          without a window   kept from B1 on
    WAL       ══════════════════════════════        with a window      kept from B2 on: it is the newest backup
                                  │<─ window ─>│                       that is older than the window

A backup needs nothing of the archive to come back as it was made. Each line is asked for itself: the WAL that leads to
it may lie on the lines that it branched from. So the branch that a restore left behind stays until the last backup is
gone from which it can be reached. Source: issue 5; ``repository/wal/archive.py``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from datamanager.base.units import Lsn
from datamanager.postgres.wal.history import TimelineHistory
from datamanager.postgres.wal.names import segment_start
from datamanager.repository.wal.names import Range, StoredWal

# WAL that no backup reaches may be waiting for the first backup, which is being made.
ORPHAN = timedelta(days=1)
_FOR_EVER = Lsn((1 << 64) - 1)


@dataclass(frozen=True, slots=True)
class LineFacts:
    """A line of the archive. Args: created - when it began; stored - by start."""

    id: str
    timeline: int
    segment_size: int
    history: TimelineHistory
    created: datetime
    stored: tuple[StoredWal, ...] = ()

    @property
    def origin(self) -> tuple[tuple[int, int], ...]:
        """Which timelines it came from, and where they were left."""
        return tuple((one.timeline, int(one.at)) for one in self.history.switches)


@dataclass(frozen=True, slots=True)
class BackupNeed:
    """A backup as the archive sees it.

    Args: stop - where it is consistent; ended - the moment of that; good - WAL can be replayed on it, and it has no
        damaged pages.
    """

    backup: str
    timeline: int
    start: Lsn
    stop: Lsn
    ended: datetime
    good: bool = True


@dataclass(frozen=True, slots=True)
class LinePlan:
    """What becomes of a line.

    Args:
        line, timeline: which one.
        going: objects that nothing needs, oldest first.
        covered: pieces that a longer object holds as well.
        whole: nothing of it is needed; its record goes, too.
        since: the backup from which on every moment of it can be restored, as far as it has no gap; None without one.
    """

    line: str
    timeline: int
    going: tuple[StoredWal, ...] = ()
    covered: tuple[StoredWal, ...] = ()
    whole: bool = False
    since: BackupNeed | None = None

    @property
    def bytes(self) -> int:
        """What goes, in the repository."""
        return sum(one.size for one in (*self.going, *self.covered))


def plan_lines(
    lines: Sequence[LineFacts],
    backups: Sequence[BackupNeed],
    window: timedelta | None,
    now: datetime,
    live: Collection[str] = (),
) -> list[LinePlan]:
    """What of one server's archive goes.

    Args:
        backups: of that server, every one that can still be restored.
        window: how far back every moment must be reachable; None is as far as the oldest backup.
        now: by the store's clock, which gave objects their times.
        live: lines that somebody is known to write.
    """
    anchors = {one.id: _anchor(one, backups, window, now) for one in lines}
    needed: dict[str, list[Range]] = {one.id: [] for one in lines}
    for one in lines:
        anchor = anchors[one.id]
        if anchor is not None:
            for other, held in _path(one, anchor, lines):
                needed[other.id].append(held)
    stays = _staying(lines, anchors, now, live)
    return [_plan(one, needed[one.id], anchors[one.id], now, stays=one.id in stays) for one in lines]


def _anchor(
    line: LineFacts, backups: Sequence[BackupNeed], window: timedelta | None, now: datetime
) -> BackupNeed | None:
    """The backup from which on the WAL that leads to a line is kept."""
    reaching = [one for one in backups if _reaches(one, line.history)]
    older = [
        one
        for one in reaching
        if window is not None and one.good and one.ended <= now - window and _is_in_order(one, reaching)
    ]
    if older:
        return max(older, key=lambda one: (one.start, one.ended))
    return min(reaching, key=lambda one: one.start, default=None)


def _is_in_order(backup: BackupNeed, others: Sequence[BackupNeed]) -> bool:
    """Whether none from before it ended after it: the clock may have been wrong, and then it may be new."""
    return not any(one.start < backup.start and one.ended > backup.ended for one in others)


def _reaches(backup: BackupNeed, history: TimelineHistory) -> bool:
    """Whether replay can lead from a backup to the timeline with this history."""
    return any(
        span.timeline == backup.timeline
        and span.begin <= backup.start
        and (span.end is None or (backup.start < span.end and backup.stop <= span.end))
        for span in history.spans()
    )


def _path(line: LineFacts, anchor: BackupNeed, lines: Sequence[LineFacts]) -> list[tuple[LineFacts, Range]]:
    """What a replay from a backup to a line reads, of which lines; of two that may be meant both."""
    found = []
    for span in line.history.spans():
        begin, end = max(span.begin, anchor.start), span.end if span.end is not None else _FOR_EVER
        if begin >= end:
            continue
        origin = tuple(one for one in line.origin if one[0] < span.timeline)
        for other in lines:
            same = other.id == line.id if span.end is None else other.origin == origin
            if other.timeline == span.timeline and same:
                found.append((other, Range(segment_start(begin, other.segment_size), end)))
    return found


def _staying(
    lines: Sequence[LineFacts], anchors: dict[str, BackupNeed | None], now: datetime, live: Collection[str]
) -> set[str]:
    """The lines whose records stay, also where no WAL of them does."""
    newest = max(lines, key=lambda one: (one.created, one.id), default=None)
    stays = {one.id for one in lines if anchors[one.id] is not None or one.id in live or one is newest}
    stays |= {one.id for one in lines if now - one.created < ORPHAN or any(_is_young(each, now) for each in one.stored)}
    # From the histories of those that stay a server learns which numbers of timelines are taken.
    for one in lines:
        if one.id in stays:
            stays |= {other.id for other in lines if (other.timeline, other.origin) in _ancestors(one)}
    return stays


def _ancestors(line: LineFacts) -> set[tuple[int, tuple[tuple[int, int], ...]]]:
    return {(timeline, line.origin[:number]) for number, (timeline, _) in enumerate(line.origin)}


def _plan(line: LineFacts, needed: list[Range], anchor: BackupNeed | None, now: datetime, *, stays: bool) -> LinePlan:
    going: list[StoredWal] = []
    kept: list[StoredWal] = []
    for one in line.stored:
        wanted = any(one.start < held.end and held.start < one.end for held in needed)
        orphan = anchor is None and _is_young(one, now)
        (kept if wanted or orphan else going).append(one)
    return LinePlan(line.id, line.timeline, tuple(going), tuple(covered(kept)), not stays and not kept, anchor)


def _is_young(stored: StoredWal, now: datetime) -> bool:
    return now.timestamp() - stored.mtime < ORPHAN.total_seconds()


def covered(objects: Sequence[StoredWal]) -> list[StoredWal]:
    """Those of which a longer one holds every byte."""
    found = []
    best: StoredWal | None = None
    for one in sorted(objects, key=lambda one: (one.start, -one.end)):
        if best is not None and one.end <= best.end:
            found.append(one)
        else:
            best = one
    return found


def covering(one: StoredWal, objects: Sequence[StoredWal]) -> list[StoredWal]:
    """The objects that hold every byte of ``one``, the longest first."""
    found = [other for other in objects if other.key != one.key and other.start <= one.start and one.end <= other.end]
    return sorted(found, key=lambda other: other.start - other.end)
