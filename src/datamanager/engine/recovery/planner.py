"""From what a person asks to an exact plan of recovery.

1 way     the path that is gone on with; another only where it was asked for, or where the target lies before it began
2 backup  the newest one that ends before the target and from which the WAL goes there without a hole; damaged ones last
3 record  the last one to be replayed: recovery is never open-ended, and what is not reached is a fault

Source: decisions 3, 12 and 14; PostgreSQL documentation 20.5.6, recovery_target_lsn with recovery_target_inclusive.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo

from datamanager.base.errors import NotFound, TargetUnreachable
from datamanager.base.pipeline import StopToken
from datamanager.base.units import Lsn
from datamanager.engine.recovery.moments import EVER, Extent, PathWal, RestorePoint
from datamanager.engine.recovery.plan import NeededWal, RecoveryPlan
from datamanager.engine.recovery.targets import Kind, Target, format_time
from datamanager.engine.recovery.windows import BackupPoint, LineReach, Path, Window, candidates, paths
from datamanager.postgres.replay_hazards import CopiedDatabase, CreatedTablespace, ReplayHazards
from datamanager.postgres.wal.history import TimelineHistory
from datamanager.postgres.wal.pages import Geometry
from datamanager.postgres.wal.records import commit_time, microseconds, moment
from datamanager.repository.manifest import Manifest
from datamanager.repository.wal.archive import Line


def plan_recovery(
    lines: Sequence[Line],
    manifests: Sequence[Manifest],
    target: Target,
    stop: StopToken,
    *,
    abandoned: Collection[str] = (),
    proven: Mapping[str, datetime] | None = None,
    zone: tzinfo = UTC,
) -> RecoveryPlan:
    """Choose backup, timeline and last record for a target.

    Args: lines, manifests - of one system identifier; abandoned - ids of lines, or timelines as decimal numbers;
        proven - by id of a line, until when the archive is known to have had all that the server had written; zone -
        for messages.
    Raises: TargetUnreachable, with what can be reached; NotFound (no such backup); StoreError, IntegrityError;
    Cancelled.
    """
    return _Planner(lines, manifests, target, stop, abandoned, proven or {}, zone).plan()


@dataclass(frozen=True, slots=True)
class _Found:
    window: Window
    extent: Extent | None
    warnings: tuple[str, ...] = ()


class _Planner:
    def __init__(
        self,
        lines: Sequence[Line],
        manifests: Sequence[Manifest],
        target: Target,
        stop: StopToken,
        abandoned: Collection[str],
        proven: Mapping[str, datetime],
        zone: tzinfo,
    ) -> None:
        self._lines = {one.id: one for one in lines}
        self._target, self._stop, self._proven, self._zone = target, stop, proven, zone
        self._backups = [BackupPoint.of(one) for one in manifests]
        sizes = {one.wal_segment_size for one in manifests} | {one.segment_size for one in lines}
        self._ways = paths([LineReach.of(one) for one in lines], abandoned)
        told = {span.timeline for way in self._ways for span in way.history.spans()}
        # Backups of a timeline of which the archive knows nothing are still what they are.
        for number in {one.timeline for one in self._backups} - told:
            history = TimelineHistory(number)
            self._ways.append(Path("", history, min(sizes), {}, (), str(number) in abandoned))
        self._ways.sort(key=lambda way: (way.abandoned, -way.history.timeline))
        self._windows = candidates(self._ways, self._backups)
        self._wal: dict[str, PathWal] = {}
        self._why, self._is_weak = "", True

    def plan(self) -> RecoveryPlan:
        if self._target.kind is Kind.BACKUP:
            return self._as_it_is()
        ways = self._choice()
        for number, way in enumerate(ways):
            found = self._on(way)
            if found is not None:
                warnings = found.warnings
                if number:
                    newest = ways[0].history.timeline
                    warnings += (f"this is not on the newest history, of timeline {newest}: {self._why}",)
                return self._built(way, found, warnings)
        raise TargetUnreachable(
            f"recover to {self._target.words(self._zone)}: {self._why or 'there is no backup to begin with'};"
            f" {self._reachable()}"
        )

    def _choice(self) -> list[Path]:
        """The ways on which the target may lie, the likeliest first."""
        asked = self._target.timeline
        if asked is not None:
            return [way for way in self._ways if way.history.timeline == asked]
        ways = [way for way in self._ways if not way.abandoned]
        if self._target.kind in (Kind.LATEST, Kind.NAME):
            return ways
        # What the newest way left behind at a switch is never taken for the history of that time.
        return [way for number, way in enumerate(ways) if not number or self._was_before(way, ways[0])]

    def _was_before(self, way: Path, newest: Path) -> bool:
        """Whether the target lies before the line of the newest way began, which contradicts this one."""
        time, tip = self._target.time, newest.lines.get(newest.history.timeline)
        same = way.history.switches == newest.history.switches and way.history.timeline == newest.history.timeline
        return same and time is not None and tip is not None and time < tip.began

    # -- on one way ------------------------------------------------------------------------------------------------

    def _on(self, way: Path) -> _Found | None:
        mine = self._mine(way)
        if not mine:
            self._note(f"no backup leads onto timeline {way.history.timeline}")
            return None
        match self._target.kind:
            case Kind.LATEST:
                return self._latest(way, mine)
            case Kind.TIME:
                return self._at_time(way, mine)
            case Kind.LSN:
                return self._at_lsn(way, mine)
        return self._at_name(way, mine)

    def _mine(self, way: Path) -> list[Window]:
        return [one for one in self._windows if one.line == way.line and one.timeline == way.history.timeline]

    def _latest(self, way: Path, mine: list[Window]) -> _Found | None:
        for one in sorted(mine, key=lambda one: (one.end, not one.backup.damaged, one.start), reverse=True):
            if self._is_sound(way, one):
                return _Found(one, self._wal_of(way).last_record(one.start, one.end))
        return None

    def _at_time(self, way: Path, mine: list[Window]) -> _Found | None:
        if self._target.time is None:
            return None
        wanted, wal = microseconds(self._target.time), self._wal_of(way)
        for one in self._by_preference(way, mine):
            if not self._ended_before(way, one, wanted):
                self._note(f"backup {one.backup.backup} ended only later", weak=True)
                continue
            later = wal.first_commit(one.start, one.end, wanted)
            if later is not None:
                geometry = Geometry(way.segment_size)
                return _Found(one, Extent(later.prev, geometry.end(geometry.offset(later.lsn))))
            known = self._known_until(way, one)
            if known is not None and self._target.time <= known:
                quiet = f"no later commit is in the archive, which holds all that came until {self._zoned(known)}"
                proof = self._proven_until(way, one)
                doubts = () if proof is not None and self._target.time <= proof else (quiet,)
                return _Found(one, wal.last_record(one.start, one.end), doubts)
            if one.end < way.ranges[-1].end:
                self._note(f"the archive lacks the WAL from {one.end} on, behind backup {one.backup.backup}")
            else:
                until = f"only until {self._zoned(known)}" if known else "not what came after the backup"
                self._note(f"the archive tells {until} what the server wrote")
        return None

    def _at_lsn(self, way: Path, mine: list[Window]) -> _Found | None:
        if self._target.lsn is None:
            return None
        wanted, wal, geometry = self._target.lsn, self._wal_of(way), Geometry(way.segment_size)
        for one in self._by_preference(way, mine):
            if one.start > wanted:
                self._note(f"backup {one.backup.backup} ended only at {one.start}", weak=True)
                continue
            last = wal.last_record(one.start, one.end)
            end = last.end if last is not None else one.start
            if wanted <= geometry.begin(geometry.offset(end)):
                return _Found(one, wal.record_at(one.start, wanted) if last is not None else None)
            self._note(f"the WAL behind backup {one.backup.backup} ends at {end}")
        return None

    def _at_name(self, way: Path, mine: list[Window]) -> _Found | None:
        wal = self._wal_of(way)
        points: dict[Lsn, RestorePoint] = {}
        for one in sorted(mine, key=lambda one: one.start):
            if not any(one.start >= other.start and one.end == other.end for other in mine if other.start < one.start):
                points |= {found.lsn: found for found in wal.restore_points(one.start, one.end)}
        named = [points[lsn] for lsn in sorted(points) if points[lsn].name == self._target.name]
        if not named:
            self._note("the WAL behind the backups has no such restore point")
            return None
        wanted = named[-1]
        warnings: tuple[str, ...] = ()
        if len(named) > 1:
            others = ", ".join(f"{self._time(other.time)} at {other.lsn}" for other in named[:-1])
            warnings = (
                f"there are {len(named)} restore points of that name; this is the newest, others are: {others}",
            )
        for one in self._by_preference(way, mine):
            if one.start <= wanted.lsn < one.end:
                return _Found(one, wal.record_at(one.start, wanted.lsn), warnings)
        return None

    # -- backups ---------------------------------------------------------------------------------------------------

    def _by_preference(self, way: Path, mine: list[Window]) -> Iterator[Window]:
        ordered = sorted(mine, key=lambda one: (not one.backup.damaged, one.start, one.backup.sequence), reverse=True)
        return (one for one in ordered if self._is_sound(way, one))

    def _is_sound(self, way: Path, window: Window) -> bool:
        """Whether the WAL behind a backup is that of its own server's history: by what it says, else by times."""
        proof = self._wal_of(way).is_history_of(window.backup)
        if proof or (proof is None and window.likely):
            return True
        self._note(f"backup {window.backup.backup} is of another history than the WAL in the archive")
        return False

    def _ended_before(self, way: Path, window: Window, wanted: int) -> bool:
        """Whether all that a backup holds had been committed by then."""
        backup, wal = window.backup, self._wal_of(way)
        floor = way.around(backup.stop).start
        if floor < backup.stop:
            if wal.first_commit(max(floor, backup.start), backup.stop, wanted) is not None:
                return False
            last = wal.last_commit(floor, backup.stop)
            if last is not None:
                return last.time <= wanted
        if microseconds(backup.ended) <= wanted:
            return True
        following = wal.first_commit(window.start, window.end)
        time = commit_time(following) if following is not None else None
        return time is not None and time <= wanted

    def _proven_until(self, way: Path, window: Window) -> datetime | None:
        """Until when nothing is missing at the end of a window: by the beginning of a backup within it, whose WAL
        tells all that was committed before, or by the receiver's word.
        """
        proven = [one.started for one in self._backups if way.holds(one) and window.start < one.stop <= window.end]
        if window.end == way.ranges[-1].end and way.line in self._proven:
            proven.append(self._proven[way.line])
        return max(proven, default=None)

    def _known_until(self, way: Path, window: Window) -> datetime | None:
        """Until when the archive is taken to hold all that was written up to the end of a window.

        When the last bytes came is no proof: others may have been on their way. It says nothing where more came behind
        a hole.
        """
        wal = self._wal_of(way)
        proven = self._proven_until(way, window)
        known = [proven] if proven is not None else []
        if window.end == window.start:
            return max([*known, window.backup.started])
        if window.end == way.ranges[-1].end:
            received = wal.received(window.end)
            known += [datetime.fromisoformat(received)] if received else []
        else:
            last = wal.last_commit(window.start, window.end)
            known += [moment(last.time)] if last is not None else []
        return max(known, default=None)

    # -- the plan --------------------------------------------------------------------------------------------------

    def _as_it_is(self) -> RecoveryPlan:
        backup = next((one for one in self._backups if one.backup == self._target.name), None)
        if backup is None:
            raise NotFound(f"find backup: there is none called {self._target.name}")
        way = next(way for way in self._ways if any(one.timeline == backup.timeline for one in way.history.spans()))
        history = _history_of(way, backup.timeline)
        return RecoveryPlan(
            self._target, backup, history, None, (), way.segment_size, None, None, way.abandoned, (), _doubts(backup)
        )

    def _built(self, way: Path, found: _Found, warnings: tuple[str, ...]) -> RecoveryPlan:
        window, extent = found.window, found.extent
        backup, wal, stretch = window.backup, self._wal_of(way), way.around(window.start)
        warnings = (*_doubts(backup), *warnings)
        if extent is None:
            history = _history_of(way, backup.timeline)
            return RecoveryPlan(
                self._target, backup, history, None, (), way.segment_size, None, None, way.abandoned, (), warnings
            )
        history = _history_of(way, way.history.timeline_at(extent.start))
        last = wal.last_commit(stretch.start, extent.start + 1)
        following = wal.first_commit(extent.end, stretch.end, EVER)
        time = commit_time(following) if following is not None else None
        return RecoveryPlan(
            self._target,
            backup,
            history,
            extent.start,
            tuple(
                NeededWal(
                    self._lines[one.line], one.start, one.end, min(self._lines[one.line].timeline, history.timeline)
                )
                for one in way.within(window.start, extent.end)
            ),
            way.segment_size,
            moment(last.time) if last is not None else None,
            moment(time) if time is not None else None,
            way.abandoned,
            tuple(
                CreatedTablespace(Lsn(lsn), oid, location)
                for lsn, oid, location in wal.noted("tablespaces", window.start, extent.end)
            ),
            (*warnings, *self._copied(wal, window, extent)),
        )

    def _copied(self, wal: PathWal, window: Window, extent: Extent) -> list[str]:
        """Databases copied by files during the backup whose source was removed later, see ``replay_hazards``."""
        floor = max(wal.path.around(window.start).start, window.backup.start)
        copies = [CopiedDatabase(Lsn(one[0]), *one[1:]) for one in wal.noted("copied", floor, window.start)]
        if not copies:
            return []
        removed = wal.noted("removed", floor, extent.end)
        lost = [
            copy
            for copy in copies
            if copy.is_move
            or any(
                lsn > copy.lsn and database == copy.source_database and copy.source_tablespace in spaces
                for lsn, database, *spaces in removed
            )
        ]
        return ReplayHazards(databases=lost).warnings

    # -- words -----------------------------------------------------------------------------------------------------

    def _reachable(self) -> str:
        asked = self._target.timeline
        shown: list[str] = []
        for way in self._ways:
            if way.abandoned if asked is None else way.history.timeline != asked:
                continue
            mine = [one for one in self._mine(way) if self._is_sound(way, one)]
            for end in sorted({one.end for one in mine}):
                first = min((one for one in mine if one.end == end), key=lambda one: one.start)
                shown.append(self._window_words(way, first))
            if shown and self._target.kind is not Kind.NAME:
                break
        return "reachable: " + "; ".join(shown) if shown else "nothing can be reached: there is no usable backup"

    def _window_words(self, way: Path, window: Window) -> str:
        wal, ended = self._wal_of(way), self._zoned(window.backup.ended)
        last = wal.last_record(window.start, window.end)
        if last is None:
            return f"{ended} (backup {window.backup.backup} alone)"
        commit = wal.last_commit(window.start, window.end)
        times = [self._known_until(way, window), moment(commit.time) if commit is not None else None]
        until = max((one for one in times if one is not None), default=window.backup.ended)
        where = f"positions {window.start} to {last.end}, timeline {window.timeline}"
        return f"{ended} to {self._zoned(until)} ({where})"

    def _time(self, time: int) -> str:
        return self._zoned(moment(time))

    def _zoned(self, time: datetime) -> str:
        return format_time(time, self._zone)

    def _note(self, why: str, *, weak: bool = False) -> None:
        """Keep the first reason, for it is of the backup that came closest; a weak one only until there is another."""
        if not self._why or (self._is_weak and not weak):
            self._why, self._is_weak = why, weak

    def _wal_of(self, way: Path) -> PathWal:
        key = way.line or str(way.history.timeline)
        if key not in self._wal:
            self._wal[key] = PathWal(way, self._lines, self._stop)
        return self._wal[key]


def _history_of(way: Path, timeline: int) -> TimelineHistory:
    """The history of one of the timelines of a path."""
    if timeline == way.history.timeline:
        return way.history
    line = way.lines.get(timeline)
    if line is not None:
        return line.history
    before = tuple(one for one in way.history.switches if one.timeline < timeline)
    text = "".join(f"{one.timeline}\t{one.at}\t{one.reason}\n" for one in before).encode("utf-8", "replace")
    return TimelineHistory(timeline, before, text)


def _doubts(backup: BackupPoint) -> tuple[str, ...]:
    if not backup.damaged:
        return ()
    return (f"backup {backup.backup} has pages that were damaged on the server already",)
