"""The table of contents of a pg_dump archive, read as it lies: what is in it, of whom, and by which version.

    header   "PGDMP" | version, 3 B | size of an int | size of an offset | format | compression | time, 7 ints |
             database, server's version, pg_dump's version: strings
    entries  count: int, then of each: number, has data: ints | tableoid, oid, tag, kind: strings | section: int |
             statements: definition, drop, COPY | schema, tablespace, access method | (1.16: relkind, int) | owner |
             "false" | numbers it depends on, up to an absent string | custom: state 1 B, offset; else: a file's name

An int is its sign, one byte, and its value in little-endian order. A string is its length and its bytes; -1 is absent.
Source: PostgreSQL src/bin/pg_dump/pg_backup_archiver.c (ReadHead, ReadToc), of 9.5 (1.12) to 18 (1.16).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from datamanager.base.errors import FormatUnsupported, IntegrityError
from datamanager.engine.foreign.streams import COPY_AGAIN, Readable

MAGIC = b"PGDMP"
_OLDEST, _NEWEST = (1, 12), (1, 16)
_FORMATS = {1: "custom", 3: "tar", 5: "directory"}
_COMPRESSIONS = {0: "none", 1: "gzip", 2: "lz4", 3: "zstd"}
# No name or statement of a dump is longer; a damaged length must not fill the memory.
_MOST_BYTES = 1 << 30
_MOST_ENTRIES = 100_000_000


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of a dump. ``file`` names its data in a directory or tar; empty without any."""

    number: int
    has_data: bool
    tag: str
    kind: str
    definition: str
    copy: str
    schema: str
    tablespace: str
    owner: str
    file: str


@dataclass(frozen=True)
class Contents:
    """What an archive says about itself. ``compression`` is ``none``, ``gzip``, ``lz4`` or ``zstd``."""

    form: str
    compression: str
    database: str
    server_version: str
    dump_version: str
    entries: tuple[Entry, ...]


def read_contents(file: Readable, path: Path) -> Contents:
    """Read the table from the beginning of a custom archive or a ``toc.dat``.

    Raises: IntegrityError (cut off, damaged), FormatUnsupported (newer than 18, older than 9.5).
    """
    return _Reader(file, path).contents()


def major_of(version: str) -> int:
    """The major of a version such as ``15.19`` or ``9.6.24``, as PostgreSQL counts them since 10; 0 for none."""
    found = re.match(r"\s*(\d+)", version)
    return int(found[1]) if found else 0


class _Reader:
    def __init__(self, file: Readable, path: Path) -> None:
        self._file = file
        self._path = path
        self._int_bytes = 4
        self._offset_bytes = 8
        self._version = _NEWEST

    def contents(self) -> Contents:
        if self._bytes(5) != MAGIC:
            raise self._damaged("it does not begin like one")
        self._version = (self._byte(), self._byte())
        self._byte()  # revision
        if not _OLDEST <= self._version <= _NEWEST:
            raise FormatUnsupported(
                f"read {self._path}: a pg_dump archive of format {self._version[0]}.{self._version[1]}",
                hint="Archives of pg_dump 9.5 to 18 are read; make the dump with one of them.",
            )
        self._int_bytes, self._offset_bytes = self._byte(), self._byte()
        if not (1 <= self._int_bytes <= 8 and 1 <= self._offset_bytes <= 8):
            raise self._damaged("impossible sizes in its header")
        form = _FORMATS.get(self._byte(), "")
        if not form:
            raise self._damaged("an unknown kind in its header")
        compression = self._compression()
        for _ in range(7):
            self._int()
        database, server, program = self._text(), self._text(), self._text()
        count = self._int()
        if not 0 <= count <= _MOST_ENTRIES:
            raise self._damaged("an impossible number of entries")
        entries = tuple(self._entry(form) for _ in range(count))
        return Contents(form, compression, database, server, program, entries)

    def _compression(self) -> str:
        if self._version >= (1, 15):
            return _COMPRESSIONS.get(self._byte(), "gzip")
        return "none" if self._int() == 0 else "gzip"

    def _entry(self, form: str) -> Entry:
        number, data = self._int(), self._int()
        self._text()  # oid of its catalog
        self._text()  # its own oid
        tag, kind = self._text(), self._text()
        self._int()  # section
        definition, _, copy = self._text(), self._text(), self._text()
        schema, tablespace = self._text(), self._text()
        if self._version >= (1, 14):
            self._text()
        if self._version >= (1, 16):
            self._int()
        owner = self._text()
        self._text()
        while self._string() is not None:
            pass
        file = ""
        if form == "custom":
            self._bytes(1 + self._offset_bytes)
        else:
            file = self._text()
        return Entry(number, data == 1, tag, kind, definition, copy, schema, tablespace, owner, file)

    def _text(self) -> str:
        return (self._string() or b"").decode("utf-8", "surrogateescape")

    def _string(self) -> bytes | None:
        length = self._int()
        if length < -1 or length > _MOST_BYTES:
            raise self._damaged("an impossible length")
        return None if length < 0 else self._bytes(length)

    def _int(self) -> int:
        data = self._bytes(1 + self._int_bytes)
        value = int.from_bytes(data[1:], "little")
        return -value if data[0] else value

    def _byte(self) -> int:
        return self._bytes(1)[0]

    def _bytes(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) != size:
            raise IntegrityError(f"read {self._path}: it was cut off within its table of contents", hint=COPY_AGAIN)
        return data

    def _damaged(self, why: str) -> IntegrityError:
        return IntegrityError(f"read {self._path}: a damaged pg_dump archive: {why}", hint=COPY_AGAIN)
