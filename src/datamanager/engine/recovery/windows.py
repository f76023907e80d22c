"""What the archive allows: which moments can be reached from which backup, and where WAL is missing. Pure.

A *path* is the way of one timeline through its ancestors, with the lines of the archive that hold its WAL. A segment in
which a timeline was left begins its child's line, too, so what the parent's line lacks there may come from the child's.
A backup holds the WAL from its start to its stop itself; from its stop on the archive must go without a hole.
Source: decisions 3, 12 and 14; docs/format.md, WAL.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from datamanager.base.units import Lsn
from datamanager.postgres.control_file import CLEAN_STATES
from datamanager.postgres.wal.history import TimelineHistory
from datamanager.postgres.wal.names import segment_start
from datamanager.repository.manifest import Manifest
from datamanager.repository.wal.archive import Line
from datamanager.repository.wal.names import Range, merged


@dataclass(frozen=True, slots=True)
class LineReach:
    """What the archive holds of a line. ``created`` is RFC 3339, ``ranges`` ascend without touching."""

    id: str
    history: TimelineHistory
    segment_size: int
    created: str
    ranges: tuple[Range, ...]

    @classmethod
    def of(cls, line: Line) -> Self:
        """Raises: StoreError."""
        return cls(line.id, line.history, line.segment_size, line.record.created, tuple(line.reach()))

    @property
    def timeline(self) -> int:
        return self.history.timeline

    @property
    def began(self) -> datetime:
        return datetime.fromisoformat(self.created)


@dataclass(frozen=True, slots=True)
class BackupPoint:
    """A backup as recovery sees it.

    Args: stop - where replay must at least come to; refused - why no WAL can be replayed onto it, empty if it can;
        mark - how the record ends that lies right before ``stop``: MARK_BACKUP, MARK_CHECKPOINT, or empty.
    """

    backup: str
    sequence: int
    timeline: int
    start: Lsn
    stop: Lsn
    started: datetime
    ended: datetime
    damaged: bool = False
    refused: str = ""
    mark: str = ""

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        crashed = manifest.cold and manifest.control.get("state") not in CLEAN_STATES
        # A standby's backup ends with any record, so does that of one that was stopped.
        mark = "" if manifest.cold or manifest.server.get("in_recovery") is not False else MARK_BACKUP
        if manifest.cold and manifest.control.get("state") == CLEAN_STATES[0]:
            mark = MARK_CHECKPOINT
        return cls(
            manifest.backup,
            manifest.sequence,
            manifest.timeline,
            Lsn.parse(manifest.start_lsn),
            manifest.stop,
            datetime.fromisoformat(manifest.started),
            datetime.fromisoformat(manifest.ended),
            manifest.damaged,
            "it was copied from a server that had crashed, and when it is consistent is not known" if crashed else "",
            mark,
        )


MARK_BACKUP, MARK_CHECKPOINT = "backup", "checkpoint"


@dataclass(frozen=True, slots=True)
class Part:
    """WAL that one line holds, from ``start`` up to ``end``."""

    line: str
    start: Lsn
    end: Lsn


@dataclass(frozen=True, slots=True)
class Path:
    """One timeline with its ancestors.

    Args: line - the id of its own line, empty for a timeline that has none; lines - of each timeline of the history
        that has one; parts - ascending, none overlap; abandoned - nobody goes on there by himself.
    """

    line: str
    history: TimelineHistory
    segment_size: int
    lines: dict[int, LineReach]
    parts: tuple[Part, ...]
    abandoned: bool

    @property
    def ranges(self) -> list[Range]:
        """What is covered without a hole."""
        return merged([Range(one.start, one.end) for one in self.parts])

    def around(self, at: int) -> Range:
        """The stretch without a hole that holds the byte before ``at`` or the one at it; empty where there is none."""
        for one in self.ranges:
            if one.start <= at <= one.end:
                return one
        return Range(Lsn(at), Lsn(at))

    def within(self, start: int, end: int) -> list[Part]:
        """The parts that lie there, cut."""
        cut = [Part(one.line, Lsn(max(start, one.start)), Lsn(min(end, one.end))) for one in self.parts]
        return [one for one in cut if one.start < one.end]

    def holds(self, backup: BackupPoint) -> bool:
        """Whether the backup's timeline is one of this path, and was not left yet when the backup stopped."""
        span = next((one for one in self.history.spans() if one.timeline == backup.timeline), None)
        return span is not None and backup.stop >= span.begin and (span.end is None or backup.stop <= span.end)


@dataclass(frozen=True, slots=True)
class Window:
    """What one backup can be brought to on one path: any moment from its ``start`` to the last record before ``end``.

    Args: line, timeline - of the path; start - the backup's stop; end - of the WAL; equal where nothing follows it;
        likely - whether times say that the backup is of this history, see ``candidates``.
    """

    line: str
    timeline: int
    backup: BackupPoint
    start: Lsn
    end: Lsn
    abandoned: bool
    likely: bool = True


@dataclass(frozen=True, slots=True)
class Gap:
    """WAL that is missing between two stretches; ``timeline`` is the one on which it was written."""

    line: str
    timeline: int
    start: Lsn
    end: Lsn


def paths(lines: Iterable[LineReach], abandoned: Collection[str] = ()) -> list[Path]:
    """The path of every line, the one to go on with first: the newest timeline, of two of one timeline the newer line.

    Args: abandoned - ids of lines, or timelines as decimal numbers; they come last.
    """
    known = sorted(lines, key=lambda one: (one.timeline, one.began, one.id))
    found = [_path(one, known, one.id in abandoned or str(one.timeline) in abandoned) for one in reversed(known)]
    return sorted(found, key=lambda one: one.abandoned)


def windows(ways: Sequence[Path], backups: Iterable[BackupPoint]) -> list[Window]:
    """What can be reached, by path as they come, then by backup, oldest first."""
    return [one for one in candidates(ways, backups) if one.likely]


def candidates(ways: Sequence[Path], backups: Iterable[BackupPoint]) -> list[Window]:
    """As ``windows``, and also where two lines of a timeline contradict each other and times speak for the other one.

    A server that was put back to an older state writes a second line of the same timeline. A backup is likely to be of
    the newest line that had begun when it ended; the archive's own bytes decide (``PathWal.is_history_of``).
    """
    known = sorted(backups, key=lambda one: one.sequence)
    found: list[Window] = []
    for way in ways:
        for one in known:
            if not one.refused and way.holds(one):
                end = max(one.stop, way.around(one.stop).end)
                likely = _is_likely(way, one, ways)
                found.append(Window(way.line, way.history.timeline, one, one.stop, end, way.abandoned, likely))
    return found


def gaps(way: Path) -> list[Gap]:
    """Where WAL is missing on a path between the first byte that is there and the last."""
    stretches = way.ranges
    found: list[Gap] = []
    for before, after in itertools.pairwise(stretches):
        for span in way.history.spans():
            start, end = max(before.end, span.begin), after.start if span.end is None else min(after.start, span.end)
            if start < end:
                line = way.lines.get(span.timeline)
                found.append(Gap(line.id if line else "", span.timeline, Lsn(start), Lsn(end)))
    return found


def _is_likely(way: Path, backup: BackupPoint, ways: Sequence[Path]) -> bool:
    rivals = {one.lines[backup.timeline].id: one.lines[backup.timeline] for one in ways if backup.timeline in one.lines}
    own = way.lines.get(backup.timeline)
    if own is None or len(rivals) < 2:
        return True
    same = [one for one in rivals.values() if one.history.switches == own.history.switches]
    ordered = sorted(same, key=lambda one: (one.began, one.id))
    begun = [one for one in ordered if one.began <= backup.ended] or ordered[:1]
    return begun[-1].id == own.id


def _path(tip: LineReach, lines: Sequence[LineReach], abandoned: bool) -> Path:
    history = tip.history
    chosen: dict[int, LineReach] = {tip.timeline: tip}
    child = tip
    for number in range(len(history.switches) - 1, -1, -1):
        timeline = history.switches[number].timeline
        # A timeline left the line that was being written when it began, not one that came later.
        fitting = [
            one
            for one in lines
            if one.timeline == timeline
            and one.segment_size == tip.segment_size
            and one.history.switches == history.switches[:number]
            and one.began <= child.began
        ]
        if fitting:
            child = chosen[timeline] = fitting[-1]
    parts: list[Part] = []
    for span in reversed(history.spans()):
        line = chosen.get(span.timeline)
        if line is not None:
            parts = sorted([*parts, *_missing(line, span.begin, span.end, parts)], key=lambda one: one.start)
    for span in history.spans():
        line = chosen.get(span.timeline)
        if line is not None and span.begin:
            head = segment_start(span.begin, tip.segment_size)
            parts = sorted([*parts, *_missing(line, head, span.begin, parts)], key=lambda one: one.start)
    return Path(tip.id, history, tip.segment_size, chosen, tuple(parts), abandoned)


def _missing(line: LineReach, begin: int, end: int | None, parts: Sequence[Part]) -> Iterator[Part]:
    """What a line holds between two places and ``parts``, ascending, do not."""
    for one in line.ranges:
        at, limit = max(one.start, begin), one.end if end is None else min(one.end, end)
        for other in parts:
            if at >= limit or other.start >= limit:
                break
            if other.end <= at:
                continue
            if at < other.start:
                yield Part(line.id, Lsn(at), other.start)
            at = max(at, other.end)
        if at < limit:
            yield Part(line.id, Lsn(at), Lsn(limit))
