"""Walking the records of the write-ahead log, one by one and exactly as the server would.

A record is valid when its header makes sense, it names the record before it and its CRC is right; the first that is not
is the end of the WAL, whether zeros, garbage or pages of a segment's former use follow.
Source: PostgreSQL src/include/access/xlogrecord.h, xact.h, xlog_internal.h; xlogreader.c, XLogDecodeNextRecord.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from datamanager.base.lazy import lazy
from datamanager.base.units import Lsn
from datamanager.postgres.wal.pages import PAGE_BYTES, Geometry, PageReader

if TYPE_CHECKING:
    import crc32c
else:
    crc32c = lazy("crc32c")  # loads much to know its own version, while ``wal push`` compresses

RECORD_HEADER = 24
HEADER = Struct("<IIQBBHI")  # length, transaction, record before, info, resource manager, padding, CRC
_CRC_OFFSET = 20
_LONGEST = 0x3FFFFFFF  # MaxAllocSize
XLOG, XACT = 0, 1  # resource managers
LAST_BUILT_IN, FIRST_CUSTOM = 21, 128
SWITCH, RESTORE_POINT, END_OF_RECOVERY = 0x40, 0x70, 0x90  # info of XLOG
CHECKPOINTS = 0x00, 0x10  # of a shutdown, and online
_KIND, _XACT_KIND = 0xF0, 0x70  # without the flags of every record, and of XACT
COMMITS = 0x00, 0x30  # info of XACT: of a transaction, and of a prepared one
_SHORT, _LONG, _ORIGIN, _TOP_LEVEL = 255, 254, 253, 252  # ids of what stands before the main data
_TIME = Struct("<q")
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


class Record(NamedTuple):
    """One record. ``end`` is where the server says it ends: aligned, and for a switch the end of the segment."""

    lsn: Lsn
    end: Lsn
    prev: Lsn
    rmid: int
    info: int
    xid: int
    length: int
    body: bytes  # all behind the header

    @property
    def main(self) -> bytes:
        """The main data of a record that names no blocks; empty for one that does."""
        return main_data(self.body)


class Walker:
    """Walks WAL that comes in pieces, and says how far it got. Not thread-safe; holds an unfinished record.

    Args: start - of the first byte that will be fed: the beginning of a record or of a page, in which a record may go
        on that began before; inside - it may lie anywhere: begin with the first page; timeline, system - as PageReader.
    ``first`` is where the first record begins, ``last`` the last valid one, ``end`` its end (``start`` until there is
    one), ``begun`` where a record begins of which the rest is to come, ``stopped`` why nothing more is read.
    """

    def __init__(
        self,
        start: int,
        segment_size: int,
        *,
        inside: bool = False,
        timeline: int | None = None,
        system: int | None = None,
    ) -> None:
        self.first: Lsn | None = None
        self.last: Record | None = None
        self.end = Lsn(start)
        self.begun: Lsn | None = None
        self.stopped = ""
        self._geometry = Geometry(segment_size)
        self._pages = PageReader(start, segment_size, timeline=timeline, system=system)
        if inside:
            self._pages.skip_to(-(-start // PAGE_BYTES) * PAGE_BYTES)
        self._base = self._geometry.offset(self._pages.at)  # of the first byte in ``_parts``
        self._parts: list[bytes | memoryview] = []
        self._size = 0
        self._needed = 1
        self._skip = 0 if self._pages.at % PAGE_BYTES else None  # before the first record; None: the page will say

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[Record]:
        """The records that are whole with these bytes, which follow those before. To be exhausted before the next."""
        if self.stopped:
            return
        self._pages.feed(data)
        while True:
            for part in self._pages.take():
                self._parts.append(part)
                self._size += len(part)
            if self._skip is None and self._pages.rest is not None:
                self._skip = -(-self._pages.rest // 8) * 8
            switched = False
            if self._skip is not None and self._size >= self._skip + self._needed:
                for record in self._whole():
                    yield record
                    switched = record.rmid == XLOG and record.info & _KIND == SWITCH
            if self.stopped:
                return
            if switched:
                self._go_on(self.end)
            elif self._pages.overwrites:
                self._go_on(self._pages.at)
            else:
                break
        self.stopped = self._pages.fault
        if self.stopped:
            self.begun = None
        self._parts = [bytes(one) for one in self._parts]

    def _go_on(self, position: int) -> None:
        """Forget what is unfinished; the next record is the first of the page at ``position``."""
        if position != self._pages.at:
            self._pages.skip_to(position)
        self._parts, self._size, self._needed, self._skip = [], 0, 1, 0
        self._base = self._geometry.offset(position)
        self.begun = None

    def _whole(self) -> Iterator[Record]:
        """Every whole record of what has come; stops behind a switch."""
        checksum = crc32c.crc32c
        content = b"".join(self._parts)
        size, base, geometry = len(content), self._base, self._geometry
        place = self._skip or 0
        before = self.last.lsn if self.last is not None else None
        boundary = distance = -1  # where the page ends, and from places to positions within it
        while True:
            if place >= boundary:
                distance = geometry.begin(base + place) - place
                boundary = place + PAGE_BYTES - (place + distance) % PAGE_BYTES
            if self.first is None:
                self.first = Lsn(place + distance)
            if size - place < RECORD_HEADER:
                # Of a record that is cut off here the length is there, if any: nothing but zeros is no beginning.
                if any(content[place : place + 4]):
                    self.begun = Lsn(place + distance)
                break
            length, xid, prev, info, rmid, _, crc = HEADER.unpack_from(content, place)
            lsn = place + distance
            if (
                not RECORD_HEADER <= length <= _LONGEST
                or (prev != before if before is not None else prev >= lsn)
                or LAST_BUILT_IN < rmid < FIRST_CUSTOM
            ):
                self.stopped = f"no record at {Lsn(lsn)}" if length else f"zeros at {Lsn(lsn)}"
                break
            after = place + (length + 7 & ~7)
            if after > size:
                self.begun = Lsn(lsn)
                self._needed = after - place
                break
            body = content[place + RECORD_HEADER : place + length]
            if checksum(content[place : place + _CRC_OFFSET], checksum(body)) != crc:
                self.stopped = f"the record at {Lsn(lsn)} is damaged"
                break
            natural = end = Lsn(after + distance) if after <= boundary else geometry.end(base + after)
            if rmid == XLOG and info & _KIND == SWITCH:
                end = geometry.segment_end(natural)
            place, before, self.end, self.begun, self._needed = after, Lsn(lsn), end, None, 1
            self.last = record = Record(before, end, Lsn(prev), rmid, info, xid, length, body)
            yield record
            if end != natural:
                break
        self._parts, self._size, self._base, self._skip = [content[place:]], size - place, base + place, 0


class Walk(Iterator[Record]):
    """A walk over bytes that are all there; ``walker`` says how far it got."""

    def __init__(self, walker: Walker, data: bytes | bytearray | memoryview) -> None:
        self.walker = walker
        self._records = walker.feed(data)

    def __next__(self) -> Record:
        return next(self._records)

    @property
    def end(self) -> Lsn:
        """The end of the last valid record so far."""
        return self.walker.end


def walk(
    data: bytes | bytearray | memoryview,
    start: int,
    segment_size: int,
    *,
    inside: bool = False,
    timeline: int | None = None,
    system: int | None = None,
) -> Walk:
    """Walk contiguous WAL that may span segments; arguments as for Walker."""
    return Walk(Walker(start, segment_size, inside=inside, timeline=timeline, system=system), data)


def main_data(body: bytes) -> bytes:
    """The main data of a record by what stands behind its header; empty when it names blocks or has none."""
    place = 0
    while place < len(body):
        kind = body[place]
        if kind == _SHORT:
            return body[place + 2 :]
        if kind == _LONG:
            return body[place + 5 :]
        if kind not in (_ORIGIN, _TOP_LEVEL):
            break
        place += 3 if kind == _ORIGIN else 5
    return b""


def is_commit_kind(kind: int) -> bool:
    """Whether records with this resource manager (times 256) and info are commits."""
    return kind >> 8 == XACT and kind & _XACT_KIND in COMMITS


def commit_time(record: Record) -> int | None:
    """When the transaction committed, in microseconds since 2000; None for any other record."""
    if record.rmid != XACT or record.info & _XACT_KIND not in COMMITS:
        return None
    main = record.main
    return int(_TIME.unpack_from(main)[0]) if len(main) >= _TIME.size else None


def restore_point(record: Record) -> tuple[int, str] | None:
    """Time (as ``commit_time``) and name of a named restore point; None for any other record."""
    if record.rmid != XLOG or record.info & _KIND != RESTORE_POINT:
        return None
    return parse_restore_point(record.main)


def parse_restore_point(main: bytes) -> tuple[int, str] | None:
    if len(main) <= _TIME.size:
        return None
    name = main[_TIME.size :].split(b"\0", 1)[0].decode("utf-8", "replace")
    return int(_TIME.unpack_from(main)[0]), name


def moment(microseconds: int) -> datetime:
    """A time in the WAL as a datetime in UTC. Raises: OverflowError, for one that no calendar has."""
    return _EPOCH + timedelta(microseconds=microseconds)


def microseconds(time: datetime) -> int:
    """An aware datetime as it would stand in the WAL."""
    return (time - _EPOCH) // timedelta(microseconds=1)
