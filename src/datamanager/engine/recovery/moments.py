"""What stands in the WAL of a path: commits, restore points, the last record; exact, and with little read.

The index of each stored segment tells which of them can matter; those are walked record by record. Where there is no
index the bytes are looked through. Source: decision 14; postgres/wal/index.py, records.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from datamanager.base.pipeline import StopToken
from datamanager.base.units import MIB, Lsn
from datamanager.engine.recovery.windows import MARK_BACKUP, MARK_CHECKPOINT, BackupPoint, Part, Path
from datamanager.postgres.wal.index import index_segment
from datamanager.postgres.wal.names import segment_start
from datamanager.postgres.wal.pages import PAGE_BYTES, Geometry
from datamanager.postgres.wal.records import XLOG, Record, Walker, commit_time, is_commit_kind
from datamanager.repository.wal.archive import Line
from datamanager.repository.wal.names import StoredWal

EVER = -(1 << 63)  # before any time in the WAL
_BACKUP_END, _SHUTDOWN = 0x50, 0x00  # info of XLOG
_BACKUP_END_BYTES = 40  # of its record in the stream of records
_READ_BYTES = MIB  # at a time, of a record that goes on


@dataclass(frozen=True, slots=True)
class Commit:
    """A transaction's commit: where its record begins, and when, in microseconds since 2000."""

    lsn: Lsn
    time: int


@dataclass(frozen=True, slots=True)
class RestorePoint:
    lsn: Lsn
    time: int
    name: str


@dataclass(frozen=True, slots=True)
class Extent:
    """Where a record begins and ends."""

    start: Lsn
    end: Lsn


@dataclass(frozen=True, slots=True)
class _Unit:
    """What of one segment lies in a stretch, and its index."""

    start: Lsn
    end: Lsn
    index: dict[str, Any]

    @property
    def last_commit(self) -> Lsn | None:
        return Lsn(self.index["last_commit"][0]) if self.index["commits"] else None

    @property
    def begun(self) -> Extent | None:
        """A record that goes on in the next segment and may be a commit."""
        found = self.index["begun"]
        if found is None or (found[2] is not None and not is_commit_kind(found[2])):
            return None
        return Extent(Lsn(found[0]), Lsn(found[1]))


class PathWal:
    """Reads the WAL of a path. Not thread-safe; remembers indexes and listings, so it is for one plan.

    Args: lines - by id. Raises in all methods: StoreError, IntegrityError, WalMissing, Cancelled.
    """

    def __init__(self, path: Path, lines: Mapping[str, Line], stop: StopToken) -> None:
        self.path = path
        self._lines = lines
        self._stop = stop
        self._geometry = Geometry(path.segment_size)
        self._stored: dict[str, dict[Lsn, list[StoredWal]]] = {}
        self._units: dict[Lsn, _Unit] = {}

    # -- commits ---------------------------------------------------------------------------------------------------

    def first_commit(self, start: int, end: int, later_than: int = EVER) -> Record | None:
        """The first commit in WAL order that begins in [start, end) with a time beyond ``later_than``.

        Args: start - where a record begins, or the beginning of what is covered.
        """
        for unit in self._forward(start, end):
            found: Record | None = None
            last = unit.last_commit
            if last is not None and last >= start and unit.index["greatest"] > later_than:
                found = self._first_in(unit, start, end, later_than)
            elif unit.begun is not None and start <= unit.begun.start < end:
                found = self._later(self._record(unit.begun), later_than)
            if found is not None:
                return found
        return None

    def last_commit(self, floor: int, end: int) -> Commit | None:
        """The last commit in WAL order that begins in [floor, end)."""
        for unit in self._backward(floor, end):
            begun = self._record(unit.begun) if unit.begun is not None and unit.begun.start < end else None
            if begun is not None and begun.lsn >= floor and (time := commit_time(begun)) is not None:
                return Commit(begun.lsn, time)
            last = unit.last_commit
            if last is None or unit.index["first_commit"][0] >= end:
                continue
            if last < end:
                return Commit(last, unit.index["last_commit"][1]) if last >= floor else None
            found = None
            for record in self._records(unit, floor):
                if record.lsn >= end:
                    break
                time = commit_time(record)
                found = Commit(record.lsn, time) if time is not None and record.lsn >= floor else found
            if found is not None:
                return found
        return None

    def _first_in(self, unit: _Unit, start: int, end: int, later_than: int) -> Record | None:
        for record in self._records(unit, start):
            if record.lsn >= end:
                break
            if record.lsn >= start and self._later(record, later_than) is not None:
                return record
        return None

    @staticmethod
    def _later(record: Record | None, than: int) -> Record | None:
        time = commit_time(record) if record is not None else None
        return record if time is not None and time > than else None

    # -- other records ---------------------------------------------------------------------------------------------

    def last_record(self, floor: int, end: int) -> Extent | None:
        """The last record that begins at ``floor`` or behind it and is whole before ``end``, the end of a stretch."""
        for unit in self._backward(floor, end):
            begun = unit.index["begun"]
            if begun is not None and floor <= begun[0] and begun[1] <= end and self._record(Extent(*begun[:2])):
                return Extent(Lsn(begun[0]), Lsn(begun[1]))
            last = unit.index["last"]
            if last is not None:
                return Extent(Lsn(last[0]), Lsn(last[1])) if last[0] >= floor else None
        return None

    def record_at(self, floor: int, position: int) -> Extent | None:
        """The last whole record that begins at ``floor`` or behind it, and not behind ``position``."""
        end = self.path.around(position).end
        for unit in self._backward(floor, min(position + 1, end)):
            found: Extent | None = None
            for record in self._records(unit, floor):
                if record.lsn > position:
                    break
                if record.lsn >= floor:
                    found = Extent(record.lsn, record.end)
            if found is not None:
                return found
        return None

    def restore_points(self, start: int, end: int) -> list[RestorePoint]:
        """Every named restore point in [start, end), in WAL order."""
        found = [
            RestorePoint(Lsn(lsn), time, name)
            for unit in self._forward(start, end)
            for lsn, time, name in unit.index.get("points", ())
        ]
        return [one for one in found if start <= one.lsn < end]

    def noted(self, kind: str, start: int, end: int) -> list[list[Any]]:
        """Entries of the index's lists ``tablespaces``, ``copied`` and ``removed`` in [start, end)."""
        return [one for unit in self._forward(start, end) for one in unit.index.get(kind, ()) if start <= one[0] < end]

    def is_history_of(self, backup: BackupPoint) -> bool | None:
        """Whether this WAL is the one that the backup's server wrote; None when the WAL before its stop is not there.

        The record of the end of a backup says where that backup began; a cold copy ends with the checkpoint of a
        shutdown.
        """
        if backup.mark == MARK_BACKUP:
            begin, kind = self._geometry.begin(self._geometry.offset(backup.stop) - _BACKUP_END_BYTES), _BACKUP_END
        elif backup.mark == MARK_CHECKPOINT:
            begin, kind = backup.start, _SHUTDOWN
        else:
            return None
        if self.path.around(backup.stop).start > begin:
            return None
        record = self._record(Extent(begin, backup.stop))
        return (
            record is not None
            and (record.rmid, record.info & 0xF0) == (XLOG, kind)
            and int.from_bytes(record.main[:8], "little") == backup.start
        )

    # -- bytes -----------------------------------------------------------------------------------------------------

    def received(self, end: int) -> str:
        """When the byte before ``end`` came, RFC 3339; empty when nobody says."""
        for part in self.path.within(end - 1, end):
            for one in self._listing(part.line).get(part.end, ()):
                return self._lines[part.line].info(one).received
        return ""

    def read(self, start: int, end: int) -> bytes:
        """The bytes of a stretch, whichever lines hold them."""
        return b"".join(self._lines[one.line].read(one.start, one.end) for one in self.path.within(start, end))

    def _record(self, extent: Extent) -> Record | None:
        """The record that begins there; None when it is not whole on this path."""
        around = self.path.around(extent.start)
        if not around.start <= extent.start < extent.end <= around.end:
            return None
        walker = Walker(extent.start, self.path.segment_size)
        found = list(walker.feed(self.read(extent.start, extent.end)))
        # Where a crash took the rest of it, another one is found behind.
        return found[0] if found and found[0].lsn == extent.start else None

    def _records(self, unit: _Unit, start: int) -> Iterator[Record]:
        """The records that begin in a unit, from ``start`` on where that lies in it and in the middle of a page."""
        stretch = self.path.around(unit.start)
        begin = max(unit.start, start) if unit.start % PAGE_BYTES else unit.start
        timeline = self.path.history.timeline
        walker = Walker(begin, self.path.segment_size, inside=begin != start, timeline=timeline)
        at, end = int(begin), int(unit.end)
        while at < stretch.end and not walker.stopped:
            self._stop.check()
            data = self.read(at, end)
            for record in walker.feed(data):
                if record.lsn >= unit.end:
                    return
                yield record
            if end >= unit.end and (walker.begun is None or walker.begun >= unit.end):
                return
            at, end = end, int(min(stretch.end, end + _READ_BYTES))

    def _forward(self, start: int, end: int) -> Iterator[_Unit]:
        at = int(start)
        while at < end:
            unit = self._unit(at, start)
            yield unit
            at = unit.end

    def _backward(self, floor: int, end: int) -> Iterator[_Unit]:
        at = int(end)
        while at > floor:
            unit = self._unit(at - 1, floor)
            yield unit
            at = unit.start

    def _unit(self, at: int, known: int) -> _Unit:
        """What is covered of the segment that holds the byte at ``at``; ``known`` is where a record begins."""
        stretch = self.path.around(at)
        segment = segment_start(at, self.path.segment_size)
        start = Lsn(max(stretch.start, segment))
        end = Lsn(min(stretch.end, segment + self.path.segment_size))
        if start not in self._units:
            self._stop.check()
            index = self._stored_index(start, end)
            if index is None:
                # In the middle of a page nothing but the backup tells where a record begins.
                begin = max(start, known) if start % PAGE_BYTES and segment_start(known, PAGE_BYTES) <= start else start
                data = self.read(begin, end)
                index = index_segment(data, begin, self.path.segment_size, at_record=begin == known)
            self._units[start] = _Unit(start, end, index)
        return self._units[start]

    def _stored_index(self, start: Lsn, end: Lsn) -> dict[str, Any] | None:
        """The index that was made when these bytes were sealed, if there is one that speaks of all of them."""
        last: Part = self.path.within(end - 1, end)[0]
        for one in self._listing(last.line).get(end, ()):
            index = self._lines[last.line].info(one).index
            held = index.get("range")
            if held and held[0] <= start and held[1] == end:
                return index
        return None

    def _listing(self, line: str) -> dict[Lsn, list[StoredWal]]:
        """The objects of a line by where they end."""
        if line not in self._stored:
            found = self._stored[line] = {}
            for one in self._lines[line].stored():
                found.setdefault(one.end, []).append(one)
        return self._stored[line]
