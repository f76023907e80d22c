"""What stands in a segment of WAL, found in one pass when it is sealed, so that nobody need read it again to plan.

Lengths lead from record to record and each must name the one before it; CRCs are checked where it matters, at the end.
Of 200,000 records a segment it takes some 0.1 s; numpy would save half of that, and takes as long to load, which ``wal
push`` would do for each segment. An index is a JSON object of less than 2 KiB as a rule; positions are
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

from struct import Struct
from typing import TYPE_CHECKING, Any

from datamanager.base.lazy import lazy
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

if TYPE_CHECKING:
    import crc32c
else:
    crc32c = lazy("crc32c")  # loads much to know its own version, while ``wal push`` compresses

# Bytes 16 to 19 of a record: info, resource manager, padding. The lowest four bits are flags of any record.
_SWITCH, _RESTORE_POINT = 0x0040, 0x0070
_COMMITS = frozenset(0x0100 | one for one in COMMITS)
_CREATE_TABLESPACE, _COPY_DATABASE, _DROP_DATABASE = 0x0500, 0x0400, (0x0410, 0x0420)
_RARE = frozenset((_RESTORE_POINT, _CREATE_TABLESPACE, _COPY_DATABASE, *_DROP_DATABASE))
_COPY, _OID = Struct("<IIII"), Struct("<I")
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
        self._count = len(content) >> 3
        whole = memoryview(content)[: self._count * 8]
        self._words = whole.cast("Q") if self._count else memoryview(b"")
        # Places are in words. Of whole records: all, commits, and those that are looked into.
        self._places: list[int] = []
        self._commits: list[int] = []
        self._rare: list[tuple[int, int]] = []
        self._after = self._skip = 0
        self._begun = False

    def walk(self, skip: int, before: int | None) -> None:
        """Find every whole record from byte ``skip`` on; ``before`` is where the record before it begins."""
        words, count = self._words, self._count
        lengths = memoryview(self.content)[: count * 8].cast("I") if count else memoryview(b"")
        place = skip >> 3
        note, commit, rare, commits, special = self._places.append, self._commits.append, self._rare, _COMMITS, _RARE
        limit = shift = 0  # up to ``limit`` positions are ``shift`` ahead of the places: until the page ends
        self._after = self._skip = place * 8
        while place < count:
            length = lengths[place + place]
            if length < RECORD_HEADER:
                break
            if place + 3 > count:
                self._begun = True  # a header that is cut off says nothing of the record before it
                break
            if place >= limit:
                shift, limit = self._page(place)
            lsn = place * 8 + shift
            prev, kind = words[place + 1], words[place + 2] & 0xFFFF
            if (prev >= lsn if before is None else prev != before) or LAST_BUILT_IN < kind >> 8 < FIRST_CUSTOM:
                break
            following = place + ((length + 7) >> 3)
            if following > count:
                self._begun = True
                break
            note(place)
            if kind & 0xFF70 in commits:
                commit(place)
            elif kind & 0xFFF0 in special:
                rare.append((place, kind & 0xFFF0))
            elif kind & 0xFFF0 == _SWITCH:
                self.switched = True
                break
            before, place = lsn, following
        self._check_end()

    def _page(self, place: int) -> tuple[int, int]:
        lsn = self._lsn(place)
        return lsn - place * 8, place + (PAGE_BYTES - lsn % PAGE_BYTES >> 3)

    def _lsn(self, place: int) -> int:
        return int(self.geometry.begin(self.base + place * 8))

    def _check_end(self) -> None:
        """Let go of the last records if one of them is damaged."""
        places = self._places
        for number in range(max(0, len(places) - _LAST_CHECKED), len(places)):
            if not self._sound(places[number] * 8):
                first = places[number]
                del places[number:]
                self._commits = [one for one in self._commits if one < first]
                self._rare = [one for one in self._rare if one[0] < first]
                self._begun = self.switched = False
                break
        if places:
            last = places[-1] * 8
            self._after = last + (int.from_bytes(self.content[last : last + 4], "little") + 7 & ~7)

    def note(self, found: dict[str, Any]) -> int | None:
        """Add what stands here to an index; returns where the last whole record begins."""
        if found["first"] is None and (self._places or self._begun):
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
        if not self._places:
            return None
        end = self.geometry.end(self.base + self._after)
        last = self._lsn(self._places[-1])
        found["last"] = [last, int(self.geometry.segment_end(end) if self.switched else end)]
        self._note_commits(found)
        for one, rare in self._rare:
            self._note_rare(found, one, rare)
        return last

    def _note_commits(self, found: dict[str, Any]) -> None:
        if not self._commits:
            return
        times = [self._commit_time(one) for one in self._commits]
        found["commits"] += len(times)
        found.setdefault("first_commit", [self._lsn(self._commits[0]), times[0]])
        found["last_commit"] = [self._lsn(self._commits[-1]), times[-1]]
        found["least"] = min(found.get("least", times[0]), min(times))
        found["greatest"] = max(found.get("greatest", times[0]), max(times))

    def _commit_time(self, place: int) -> int:
        begin = place * 8 + RECORD_HEADER
        if self.content[begin] == _SHORT_DATA:
            # The usual commit has its time behind two bytes: id and length of the main data.
            return int.from_bytes(self.content[begin + 2 : begin + 10], "little", signed=True)
        return int.from_bytes(self._main(place)[:8], "little", signed=True)

    def _note_rare(self, found: dict[str, Any], place: int, kind: int) -> None:
        main, lsn = self._main(place), self._lsn(place)
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
            database, _, *tablespaces = (one[0] for one in _OID.iter_unpack(main))
            found.setdefault("removed", []).append([lsn, database, *tablespaces])

    def _main(self, place: int) -> bytes:
        begin = place * 8
        length = int.from_bytes(self.content[begin : begin + 4], "little")
        return main_data(self.content[begin + RECORD_HEADER : begin + length])

    def _sound(self, place: int) -> bool:
        length, *_, crc = HEADER.unpack_from(self.content, place)
        body = crc32c.crc32c(self.content[place + RECORD_HEADER : place + length])
        return bool(crc32c.crc32c(self.content[place : place + RECORD_HEADER - 4], body) == crc)
