"""What in a stretch of WAL does harm when a copy of the cluster replays it.

1 A tablespace is created. Replay links to the path in the record, whatever links a restore has made: beside the
  original that is the LIVE tablespace, into which the rest of the WAL is then replayed. (Seen on 14 and 18: a table
  created in it was truncated in production by a clone.) Such WAL must not be replayed.
2 A database is copied by its files and the source is removed afterwards: ALTER DATABASE SET TABLESPACE, or CREATE
  DATABASE by files (the only way on 14) whose template is dropped. Replay begins by removing the copy, and of the
  source the backup holds what was left when it came to it: the server starts, but that database cannot be used.

Records are not followed one by one; their fixed bytes are searched for, and their CRC decides.
Source: decision 1; PostgreSQL src/include/access/xlogrecord.h, xlog_internal.h (page headers), commands/tablespace.h,
commands/dbcommands_xlog.h; src/backend/commands/dbcommands.c, dbase_redo, movedb.
"""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct

import numpy as np
from crc32c import crc32c

from datamanager.base.units import MIB, Lsn

_SEGMENT = re.compile(r"[0-9A-F]{24}$")
_PAGE_HEADER = Struct("<HHIQI")  # magic, info, timeline, address, rest of a record begun before
_SIZES = Struct("<II")  # of a segment and of a page; at byte 32 of a segment's first page
_SHORT_HEADER, _LONG_HEADER, _IS_LONG = 24, 40, 0x0002
_RECORD_HEADER, _CRC_OFFSET = 24, 20
# Bytes 16 to 19 of a record: info, resource manager, two bytes of padding.
_CREATE_TABLESPACE = 0x0500
_COPY_DATABASE = 0x0401  # the 1 says that the record changes files in its own way
_DROP_DATABASE = 0x0411, 0x0421  # on 14; since 15, where 0x0411 is a copy whose pages are all in the WAL
_DATABASE_KINDS = 0x0030  # the bits in which they differ
_COPY = Struct("<IIII")  # database, tablespace; source's database, tablespace
_DROP = Struct("<II")  # database, number of tablespaces; their oids follow
_DATA_SHORT, _DATA_LONG = 0xFF, 0xFE  # with one byte of length, and with four
_LONGEST_RECORD = 24 + 5 + 8 + 4096  # a database dropped in a thousand tablespaces; paths are shorter (MAXPGPATH, 1024)
_LOOK_BYTES = MIB


@dataclass(frozen=True, slots=True)
class CreatedTablespace:
    """A CREATE TABLESPACE in the WAL; ``location`` as the record names it."""

    lsn: Lsn
    oid: int
    location: str


@dataclass(frozen=True, slots=True)
class CopiedDatabase:
    """A database copied by its files, by oids; ``lsn`` is the copy's record."""

    lsn: Lsn
    database: int
    tablespace: int
    source_database: int
    source_tablespace: int

    @property
    def is_move(self) -> bool:
        return self.database == self.source_database

    def __str__(self) -> str:
        if self.is_move:
            return f"database {self.database} moved to tablespace {self.tablespace}"
        return f"database {self.database} from database {self.source_database}"


@dataclass(frozen=True, slots=True)
class ReplayHazards:
    """In the order in which it shows. ``databases`` are those whose source was removed after the copy."""

    tablespaces: list[CreatedTablespace] = field(default_factory=list)
    databases: list[CopiedDatabase] = field(default_factory=list)

    @property
    def warnings(self) -> list[str]:
        """What whoever has nothing but this WAL should know of ``databases``."""
        return [
            f"the WAL to be replayed copies a database and removes its source ({one}): once a server has started on it,"
            " that database may be without files; take it from another backup"
            for one in self.databases
        ]


class HazardScanner:
    """Takes segments in order, each in pieces of any size. Not thread-safe; holds 1 MiB.

    Args: start - records before it are not replayed and not told. Tablespaces inside the data directory have no
    location and are not told either.
    """

    def __init__(self, start: Lsn) -> None:
        self._start = start
        self._found = ReplayHazards()
        self._copies: list[CopiedDatabase] = []  # whose source has not been removed so far
        self._name = ""
        self._raw = bytearray()  # of the present segment, from ``_address``
        self._address = 0  # -1: nothing more of this segment is of interest
        self._page_size = 0
        self._next = -1  # address that would continue ``_records``
        self._records = bytearray()  # records without page headers
        self._pages: list[tuple[int, int]] = []  # where each page begins in ``_records``, and its address there

    def begin(self, name: str) -> None:
        """A new file of pg_wal; what is no segment is passed over."""
        self._raw.clear()
        self._name = name
        self._page_size = 0
        self._address = 0 if _SEGMENT.match(name) else -1

    def feed(self, data: memoryview | bytes) -> None:
        if self._address < 0:
            return
        self._raw += data
        if len(self._raw) >= _LOOK_BYTES:
            self._take_pages()

    def end(self) -> None:
        """The file is over."""
        if self._address >= 0:
            self._take_pages()

    def finish(self) -> ReplayHazards:
        """All that was found; the WAL is over."""
        self._search(whole=True)
        return self._found

    def _take_pages(self) -> None:
        if not self._page_size and not self._read_long_header():
            self._address = -1
            return
        size = self._page_size
        whole = len(self._raw) // size * size
        for position in range(0, whole, size):
            _, info, _, address, _ = _PAGE_HEADER.unpack_from(self._raw, position)
            if address != self._address:  # left from the segment's former use, or never written
                self._address = -1
                return
            if address != self._next:
                self._search(whole=True)
            header = _LONG_HEADER if info & _IS_LONG else _SHORT_HEADER
            self._pages.append((len(self._records), address + header))
            self._records += memoryview(self._raw)[position + header : position + size]
            self._address = self._next = address + size
        del self._raw[:whole]
        self._search(whole=False)

    def _read_long_header(self) -> bool:
        if len(self._raw) < _LONG_HEADER:
            return False
        _, info, _, _, _ = _PAGE_HEADER.unpack_from(self._raw)
        segment_size, page_size = _SIZES.unpack_from(self._raw, 32)
        sizes_make_sense = all(size.bit_count() == 1 for size in (segment_size, page_size)) and page_size >= 1024
        if not info & _IS_LONG or not sizes_make_sense or segment_size < page_size:
            return False
        # The name says where the segment lies: a recycled one still holds the pages of its former place.
        self._address = (int(self._name[8:16], 16) << 32) + int(self._name[16:], 16) * segment_size
        self._page_size = page_size
        return True

    def _search(self, *, whole: bool) -> None:
        """Look through the records; without ``whole`` keep the last ones, which may be incomplete."""
        kinds = np.frombuffer(bytes(self._records[: len(self._records) & ~7]), "<u4")[4::2]
        candidates = (kinds == _CREATE_TABLESPACE) | (kinds & ~np.uint32(_DATABASE_KINDS) == _COPY_DATABASE)
        kept = 0 if whole else min(len(self._records), _LONGEST_RECORD + 7 & ~7)
        limit = len(self._records) - kept
        for place in (np.flatnonzero(candidates) * 8).tolist():
            if place < limit:
                self._judge(place)
        self._forget(len(self._records) if whole else limit & ~7)

    def _judge(self, place: int) -> None:
        record = self._records[place : place + _LONGEST_RECORD]
        length = int.from_bytes(record[:4], "little")
        if not _RECORD_HEADER + 2 < length <= len(record):
            return
        if record[_RECORD_HEADER] == _DATA_SHORT:
            data = _RECORD_HEADER + 2
        elif record[_RECORD_HEADER] == _DATA_LONG:
            data = _RECORD_HEADER + 5
        else:
            return
        crc = crc32c(bytes(record[:_CRC_OFFSET]), crc32c(bytes(record[_RECORD_HEADER:length])))
        lsn = self._lsn(place)
        if crc != int.from_bytes(record[_CRC_OFFSET:_RECORD_HEADER], "little") or lsn < self._start:
            return
        kind = int.from_bytes(record[16:20], "little")
        content = bytes(record[data:length])
        if kind == _CREATE_TABLESPACE:
            self._note_tablespace(lsn, content)
        elif kind == _COPY_DATABASE and len(content) == _COPY.size:
            self._note_copy(CopiedDatabase(lsn, *_COPY.unpack(content)))
        elif kind in _DROP_DATABASE and len(content) > _DROP.size:  # the copy in the WAL is just as long
            self._note_drop(content)

    def _note_tablespace(self, lsn: Lsn, content: bytes) -> None:
        location = content[4:].split(b"\0", 1)[0].decode(errors="replace")
        if location:
            self._found.tablespaces.append(CreatedTablespace(lsn, int.from_bytes(content[:4], "little"), location))

    def _note_copy(self, copy: CopiedDatabase) -> None:
        # Files are removed before the record of it is written, which may come after the end of the backup. A move
        # says by itself that they go.
        if copy.is_move:
            self._found.databases.append(copy)
        else:
            self._copies.append(copy)

    def _note_drop(self, content: bytes) -> None:
        database, count = _DROP.unpack_from(content)
        if len(content) != _DROP.size + 4 * count:
            return
        removed = {(database, int(oid)) for oid in np.frombuffer(content, "<u4", offset=_DROP.size)}
        kept: list[CopiedDatabase] = []
        for copy in self._copies:
            gone = (copy.source_database, copy.source_tablespace) in removed
            (self._found.databases if gone else kept).append(copy)
        self._copies = kept

    def _lsn(self, place: int) -> Lsn:
        begun, address = self._pages[bisect.bisect_right(self._pages, (place, 1 << 64)) - 1]
        return Lsn(address + place - begun)

    def _forget(self, size: int) -> None:
        del self._records[:size]
        later = max(0, bisect.bisect_right(self._pages, (size, 1 << 64)) - 1)
        self._pages = [(begun - size, address) for begun, address in self._pages[later:]] if self._records else []


def replay_hazards(pg_wal: Path, start: Lsn) -> ReplayHazards:
    """What replay of the segments in ``pg_wal`` from ``start`` on would meet. Raises: OSError."""
    scanner = HazardScanner(start)
    for path in sorted(pg_wal.iterdir() if pg_wal.is_dir() else ()):
        if not _SEGMENT.match(path.name):
            continue
        scanner.begin(path.name)
        with path.open("rb") as file:
            while piece := file.read(_LOOK_BYTES):
                scanner.feed(piece)
        scanner.end()
    return scanner.finish()
