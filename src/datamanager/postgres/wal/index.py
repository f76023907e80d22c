"""What stands in a segment of WAL, found in one pass when it is sealed, so that nobody need read it again to plan.

Lengths lead from record to record and each must name the one before it; that is exact, and numpy looks at the rest.
CRCs are checked where it matters, at the end. An index is a JSON object of less than 2 KiB as a rule; positions are
integers, times are microseconds since 2000 as in the WAL:

    range        [start, end] of the bytes that were looked through
    first        where the first record begins in them, null when none does
    last         [start, end] of the last record that is whole in them, null when none is
    begun        [start, end, kind] of a record that begins in them and goes on behind them, else null; kind is info and
                 256 times the resource manager, null where its header is cut off
    commits      how many; first_commit and last_commit [position, time] in order of WAL; least and greatest time
    points       [position, time, name] of each restore point
    tablespaces  [position, oid, location] of each CREATE TABLESPACE outside the data directory
    copied       [position, database, tablespace, source's database, source's tablespace] of databases copied by files
    removed      [position, database, tablespace, ...] of directories of databases that were removed

Source: decision 14; ``records.py``, ``replay_hazards.py``.
"""

from __future__ import annotations

from array import array
from struct import Struct
from typing import Any

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from datamanager.postgres.wal.pages import PAGE_BYTES, Geometry, PageReader
from datamanager.postgres.wal.records import (
    COMMITS,
    FIRST_CUSTOM,
    HEADER,
    LAST_BUILT_IN,
    RECORD_HEADER,
    main_data,
    parse_restore_point,
)

I64 = npt.NDArray[np.int64]
# Bytes 16 to 19 of a record: info, resource manager, padding. The lowest four bits are flags of any record.
_SWITCH, _RESTORE_POINT = 0x0040, 0x0070
_COMMITS = tuple(0x0100 | one for one in COMMITS)
_CREATE_TABLESPACE, _COPY_DATABASE, _DROP_DATABASE = 0x0500, 0x0400, (0x0410, 0x0420)
_COPY = Struct("<IIII")
_SHORT_DATA = 0xFF
_LAST_CHECKED = 16  # records whose CRC is checked at the end; pages that were never written break the chain itself


def index_segment(
    data: bytes | bytearray | memoryview, start: int, segment_size: int, *, at_record: bool = False
) -> dict[str, Any]:
    """Look through WAL of one segment, or of a part of one.

    Args: data - any length; start - its position; in the middle of a page nothing says where a record begins, and what
        lies before the next page is not looked at, unless ``at_record`` says that one begins at ``start``.
    """
    geometry = Geometry(segment_size)
    found: dict[str, Any] = {
        "range": [int(start), start + len(data)],
        "first": None,
        "last": None,
        "begun": None,
        "commits": 0,
    }
    pages = PageReader(start, segment_size)
    before: int | None = None
    skip: int | None = None
    if start % PAGE_BYTES and at_record:
        skip = 0
    else:
        pages.skip_to(-(-start // PAGE_BYTES) * PAGE_BYTES)
    pages.feed(data)
    while True:
        base = geometry.offset(pages.at)
        parts = pages.take()
        content = b"".join(parts)
        if skip is None and pages.rest is not None:
            skip = -(-pages.rest // 8) * 8
        run = _Run(content, base, geometry)
        run.walk(skip or 0, before)
        before = run.note(found) or before
        if run.switched or not pages.overwrites:
            break
        found["begun"], skip = None, 0
    if pages.fault and not run.switched:
        found["begun"] = None
    return found


class _Run:
    """Records that follow one another; ``content`` is what they have between the headers of pages."""

    def __init__(self, content: bytes, base: int, geometry: Geometry) -> None:
        self.content = content
        self.base = base
        self.geometry = geometry
        self.switched = False
        whole = len(content) & ~7
        self._words = np.frombuffer(content[:whole] if whole != len(content) else content, "<u8")
        self._places: I64 = np.empty(0, np.int64)  # of whole records, in words
        self._lsns: I64 = np.empty(0, np.int64)
        self._kinds: npt.NDArray[np.uint64] = np.empty(0, np.uint64)
        self._after = self._skip = 0
        self._begun = False

    def walk(self, skip: int, before: int | None) -> None:
        """Find every whole record from byte ``skip`` on; ``before`` is where the record before it begins."""
        count = len(self._words)
        lengths = memoryview(self.content)[: count * 8].cast("I") if count else memoryview(b"")
        place = first = skip >> 3
        places = array("q")  # a list would have to be converted, which takes as long as the walk
        note = places.append
        while place < count:
            length = lengths[place + place]
            if length < RECORD_HEADER:
                break
            note(place)
            place += (length + 7) >> 3
        self._after = self._skip = first * 8
        if not places:
            return
        self._begun = place > count
        found: I64 = np.frombuffer(places, np.int64)
        # A header that is cut off says nothing of the record before it.
        headed = found if found[-1] + 3 <= count else found[:-1]
        lsns = self._positions(headed)
        prevs = self._words[headed + 1].astype(np.int64)
        kinds = self._words[headed + 2] & np.uint64(0xFFFF)
        rmids = kinds >> np.uint64(8)
        wrong = (rmids > LAST_BUILT_IN) & (rmids < FIRST_CUSTOM)
        wrong[1:] |= prevs[1:] != lsns[:-1]
        if len(headed):
            wrong[0] |= prevs[0] >= lsns[0] if before is None else prevs[0] != before
        switches = np.flatnonzero(kinds & np.uint64(0xFFF0) == _SWITCH)
        end = len(headed) - (self._begun and len(headed) == len(found))
        bad = np.flatnonzero(wrong)
        if len(bad):
            end, self._begun = min(end, int(bad[0])), False
        if len(switches) and switches[0] < end:
            end, self.switched, self._begun = int(switches[0]) + 1, True, False
        self._keep(found, lsns, kinds, end)

    def _keep(self, found: I64, lsns: I64, kinds: npt.NDArray[np.uint64], end: int) -> None:
        for number in range(max(0, end - _LAST_CHECKED), end):
            if not self._sound(int(found[number]) * 8):
                end, self._begun, self.switched = number, False, False
                break
        self._places, self._lsns, self._kinds = found[:end], lsns[:end], kinds[:end]
        if end:
            last = int(found[end - 1]) * 8
            self._after = last + (int.from_bytes(self.content[last : last + 4], "little") + 7 & ~7)

    def note(self, found: dict[str, Any]) -> int | None:
        """Add what stands here to an index; returns where the last whole record begins."""
        if found["first"] is None and (len(self._places) or self._begun):
            found["first"] = int(self.geometry.begin(self.base + self._skip))
        if self._begun:
            place = self._after
            length = int.from_bytes(self.content[place : place + 4], "little")
            kind = self.content[place + 16 : place + 18] if len(self.content) - place >= RECORD_HEADER else b""
            found["begun"] = [
                int(self.geometry.begin(self.base + place)),
                int(self.geometry.end(self.base + place + (length + 7 & ~7))),
                int.from_bytes(kind, "little") if kind else None,
            ]
        if not len(self._places):
            return None
        end = self.geometry.end(self.base + self._after)
        last = int(self._lsns[-1])
        found["last"] = [last, int(self.geometry.segment_end(end) if self.switched else end)]
        masked = self._kinds & np.uint64(0xFF70)
        self._note_commits(found, np.flatnonzero(np.isin(masked, _COMMITS)))
        plain = self._kinds & np.uint64(0xFFF0)
        rare = (_RESTORE_POINT, _CREATE_TABLESPACE, _COPY_DATABASE, *_DROP_DATABASE)
        for number in np.flatnonzero(np.isin(plain, rare)).tolist():
            self._note_rare(found, number, int(plain[number]))
        return last

    def _note_commits(self, found: dict[str, Any], commits: I64) -> None:
        if not len(commits):
            return
        places = self._places[commits]
        words = self._words
        # The usual commit has its time behind two bytes: id and length of the main data.
        times = (words[places + 3] >> np.uint64(16) | words[places + 4] << np.uint64(48)).astype(np.int64)
        for number in np.flatnonzero(words[places + 3] & np.uint64(0xFF) != _SHORT_DATA).tolist():
            main = self._main(int(places[number]))
            times[number] = int.from_bytes(main[:8], "little", signed=True)
        lsns = self._lsns[commits]
        found["commits"] += len(commits)
        found.setdefault("first_commit", [int(lsns[0]), int(times[0])])
        found["last_commit"] = [int(lsns[-1]), int(times[-1])]
        found["least"] = min(found.get("least", int(times[0])), int(times.min()))
        found["greatest"] = max(found.get("greatest", int(times[0])), int(times.max()))

    def _note_rare(self, found: dict[str, Any], number: int, kind: int) -> None:
        main, lsn = self._main(int(self._places[number])), int(self._lsns[number])
        if kind == _RESTORE_POINT:
            point = parse_restore_point(main)
            if point is not None:
                found.setdefault("points", []).append([lsn, *point])
        elif kind == _CREATE_TABLESPACE:
            location = main[4:].split(b"\0", 1)[0].decode(errors="replace")
            if location:
                found.setdefault("tablespaces", []).append([lsn, int.from_bytes(main[:4], "little"), location])
        elif kind == _COPY_DATABASE and len(main) == _COPY.size:
            found.setdefault("copied", []).append([lsn, *_COPY.unpack(main)])
        elif kind in _DROP_DATABASE and len(main) > 8 and len(main) == 8 + 4 * int.from_bytes(main[4:8], "little"):
            oids = np.frombuffer(main, "<u4")
            found.setdefault("removed", []).append([lsn, int(oids[0]), *oids[2:].tolist()])

    def _main(self, place: int) -> bytes:
        begin = place * 8
        length = int.from_bytes(self.content[begin : begin + 4], "little")
        return main_data(self.content[begin + RECORD_HEADER : begin + length])

    def _sound(self, place: int) -> bool:
        length, *_, crc = HEADER.unpack_from(self.content, place)
        body = crc32c(self.content[place + RECORD_HEADER : place + length])
        return bool(crc32c(self.content[place : place + RECORD_HEADER - 4], body) == crc)

    def _positions(self, places: I64) -> I64:
        """``Geometry.begin`` of each."""
        size, pages = self.geometry.segment_size, PAGE_BYTES
        room = pages - 24
        segments, within = np.divmod(places * 8 + self.base, size // pages * room - 16)
        numbers, rest = np.divmod(within + 16, room)
        positions: I64 = segments * size + numbers * pages + 24 + rest
        return positions
