"""Pages of the write-ahead log: their headers, and where the bytes of records lie between them.

A page has 8 KiB and begins with a header of 24 bytes, a segment's first of 40. What is left is one stream of records,
each aligned to 8 bytes; a place in that stream is called an *offset* here, counted from position 0 of the WAL.
Source: PostgreSQL src/include/access/xlog_internal.h; xlogreader.c, XLogReaderValidatePageHeader; xlog.c,
XLogBytePosToRecPtr.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct

from datamanager.base.units import Lsn

PAGE_BYTES = 8192
SHORT_HEADER, LONG_HEADER = 24, 40
_EXTRA = LONG_HEADER - SHORT_HEADER
_ROOM = PAGE_BYTES - SHORT_HEADER
_HEADER = Struct("<HHIQI")  # magic, flags, timeline, address, rest of the record that began before
_LONG = Struct("<QII")  # at byte 24: system identifier, bytes of a segment, of a page
MAJORS = {0xD10D: 14, 0xD110: 15, 0xD113: 16, 0xD116: 17, 0xD118: 18}
_IS_LONG, _OVERWRITES, _ALL_FLAGS = 0x0002, 0x0008, 0x000F


@dataclass(frozen=True, slots=True)
class Geometry:
    """Between positions and offsets of a WAL with segments of so many bytes."""

    segment_size: int

    @property
    def _segment_room(self) -> int:
        return self.segment_size // PAGE_BYTES * _ROOM - _EXTRA

    def offset(self, position: int) -> int:
        """How many bytes of records lie before a position."""
        segment, within = divmod(position, self.segment_size)
        page, byte = divmod(within, PAGE_BYTES)
        first = page * _ROOM - _EXTRA if page else 0
        return segment * self._segment_room + first + max(0, byte - (SHORT_HEADER if page else LONG_HEADER))

    def begin(self, offset: int) -> Lsn:
        """The position of the byte at ``offset``: where a record begins."""
        segment, within = divmod(offset, self._segment_room)
        page, byte = divmod(within + _EXTRA, _ROOM)
        return Lsn(segment * self.segment_size + page * PAGE_BYTES + SHORT_HEADER + byte)

    def end(self, offset: int) -> Lsn:
        """Where a record ends whose last byte is the one before ``offset``: never behind the header of a page."""
        begin = self.begin(offset)
        into = begin % self.segment_size
        header = LONG_HEADER if into < PAGE_BYTES else SHORT_HEADER
        return Lsn(begin - header) if into % PAGE_BYTES == header else begin

    def segment_end(self, position: int) -> Lsn:
        """Where the segment ends in which the byte before ``position`` lies."""
        return Lsn(-(-position // self.segment_size) * self.segment_size)


class PageReader:
    """Takes the headers out of contiguous WAL. Not thread-safe.

    Args: start - of the first byte that will be fed; timeline - newer pages are a fault; system - the identifier that
        the pages must name.
    ``fault`` says why nothing more is read; ``rest`` is how much the first page holds of a record begun before, None
    until a page has begun; ``overwrites`` says that the next page makes an unfinished record void.
    """

    def __init__(
        self, start: int, segment_size: int, *, timeline: int | None = None, system: int | None = None
    ) -> None:
        self.at = Lsn(start)
        self.fault = ""
        self.rest: int | None = None
        self.overwrites = False
        self._segment_size = segment_size
        self._timeline, self._system = timeline, system
        self._page_timeline = 0
        self._magic = 0
        self._raw = memoryview(b"")
        self._next = 0  # in ``_raw``; behind its end while bytes are skipped that have not come

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """The bytes that follow those before."""
        if self._next < len(self._raw):
            data = bytes(self._raw[self._next :]) + bytes(data)
            self._next = 0
        else:
            self._next -= len(self._raw)
        self._raw = memoryview(data)

    def skip_to(self, position: int) -> None:
        """Go on there, whatever lies before it."""
        self._next += position - self.at
        self.at = Lsn(position)
        self.fault = ""

    def take(self) -> list[memoryview]:
        """The bytes of records so far, up to a fault or to a page that overwrites: for that one ``take`` again."""
        parts: list[memoryview] = []
        raw, place, at = self._raw, self._next, int(self.at)
        while place < len(raw) and not self.fault:
            size = PAGE_BYTES - at % PAGE_BYTES
            header = 0
            if size == PAGE_BYTES:
                header = SHORT_HEADER if at % self._segment_size else LONG_HEADER
                if len(raw) - place < header:
                    break
                magic, flags, timeline, address, rest = _HEADER.unpack_from(raw, place)
                self.fault = self._judge(place, at, magic, flags, timeline, address)
                if self.fault:
                    break
                if flags & _OVERWRITES and not self.overwrites:
                    self.overwrites = True
                    break
                self.overwrites = False
                self._page_timeline = timeline
                if self.rest is None:
                    self.rest = rest if flags & 1 else 0
            size = min(size, len(raw) - place)
            parts.append(raw[place + header : place + size])
            place += size
            at += size
        self._next, self.at = place, Lsn(at)
        return parts

    def _judge(self, place: int, at: int, magic: int, flags: int, timeline: int, address: int) -> str:
        """What is wrong with the header of the page at ``at``."""
        if address != at or (magic != self._magic and (self._magic or magic not in MAJORS)):
            if not any(self._raw[place : place + SHORT_HEADER]):
                return f"zeros at {Lsn(at)}"
            if magic not in MAJORS:
                return f"no page of WAL at {Lsn(at)}"
            return f"the page at {Lsn(at)} was written for {Lsn(address)}"
        self._magic = magic
        if flags & ~_ALL_FLAGS or bool(flags & _IS_LONG) != (at % self._segment_size == 0):
            return f"the header of the page at {Lsn(at)} is damaged"
        if timeline < self._page_timeline or (self._timeline is not None and timeline > self._timeline):
            return f"the page at {Lsn(at)} is of timeline {timeline}"
        if flags & _IS_LONG:
            system, segment, page = _LONG.unpack_from(self._raw, place + SHORT_HEADER)
            if (segment, page) != (self._segment_size, PAGE_BYTES):
                return f"the page at {Lsn(at)} is of segments of {segment} bytes in pages of {page}"
            if self._system is not None and system != self._system:
                return f"the page at {Lsn(at)} is of another server, {system}"
        return ""
