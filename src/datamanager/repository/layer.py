"""Layers: what one backup learned, as a sorted table of files and of the rows that say where their pages are.

    layer  = data blocks | pack table chunks | index chunks, each one chunk of a metadata pack, at most 256 KiB raw
    block  = files u32 | rows u32 | path bytes u32 | flags u32 (bit 0: the first file began in the block before)
             path length u16 x files | paths | kind u8 x files | flags u8 x files | mode u16 x files |
             size u64 x files | kept u32 x files | crc32c u32 x files | rows of the file u32 x files |
             first page u32 x rows | pages u32 x rows | pack u32 x rows | position u32 x rows
    table  = (pack id 16 | digest 16) x n
    index  = count u32 | path length u16 x count | the first path of each block

Files are sorted by path (bytes), rows by first page. ``first page`` and ``position`` are stored as the distance
(mod 2^32) from where the file's row before ended; its first row in a block counts from 0. A row runs on over the chunks
that follow, all but the last of which hold 32 pages; ``pack`` 2^32-1 means zeros. ``docs/format.md``, Layer, has the
reasons.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from struct import Struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from datamanager.base.errors import IntegrityError
from datamanager.repository.format import MAX_PATH_BYTES, META_CHUNK_BYTES, ZERO_PACK

BLOCK = Struct("<IIII")
CONTINUES = 1
FILE_BYTES = 2 + 1 + 1 + 2 + 8 + 4 + 4 + 4
ROW_BYTES = 16
INDEX_COUNT = Struct("<I")
TABLE_ENTRY = 32
TABLE_ENTRIES_PER_CHUNK = META_CHUNK_BYTES // TABLE_ENTRY
_INDEX_BUDGET = META_CHUNK_BYTES - 4096

U32 = npt.NDArray[np.uint32]


class FileKind(IntEnum):
    """What a path is. Links are never stored: restoring makes them from its plan alone."""

    REGULAR = 0
    DIRECTORY = 1


class FileFlag(IntFlag):
    """GONE: no longer there. BADSUM: the server reported pages with wrong checksums."""

    NONE = 0
    GONE = 1
    BADSUM = 2


class Rows(NamedTuple):
    """Rows of one file, sorted and disjoint; four arrays of one length. ``pack`` indexes a pack table."""

    first: U32
    pages: U32
    pack: U32
    position: U32

    @classmethod
    def empty(cls) -> Rows:
        nothing = np.empty(0, np.uint32)
        return cls(nothing, nothing, nothing, nothing)


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file as one layer knows it.

    Sizes in bytes, ``kept`` in pages, ``path`` as the server's manifest spells it.
    """

    path: bytes
    kind: FileKind
    mode: int
    size: int
    kept: int
    flags: FileFlag
    crc32c: int
    rows: Rows


class LayerBuilder:
    """Collects files in any order, then encodes them as blocks. Holds about 150 bytes a file and 16 a row.

    Not thread-safe.
    """

    def __init__(self) -> None:
        self._paths: list[bytes] = []
        self._kind = bytearray()
        self._flags = bytearray()
        self._mode = array("H")
        self._size = array("Q")
        self._kept = array("I")
        self._crc = array("I")
        self._row_start = array("Q")
        self._first = array("I")
        self._pages = array("I")
        self._pack = array("I")
        self._position = array("I")
        self._packs: list[tuple[bytes, bytes]] = []
        self._numbers: dict[bytes, int] = {}

    @property
    def files(self) -> int:
        return len(self._paths)

    @property
    def rows(self) -> int:
        return len(self._first)

    def pack_number(self, pack: bytes) -> int:
        """The row number of a pack in this layer's table, entering it at first use; its digest may follow later."""
        number = self._numbers.get(pack)
        if number is None:
            number = self._numbers[pack] = len(self._packs)
            self._packs.append((pack, b""))
        return number

    def set_digest(self, pack: bytes, digest: bytes) -> None:
        self._packs[self._numbers[pack]] = (pack, digest)

    @property
    def packs(self) -> list[bytes]:
        return [pack for pack, _ in self._packs]

    def regular_files(self) -> Iterator[tuple[bytes, int, int]]:
        """(path, size, CRC-32C) of every regular file so far."""
        for path, kind, size, crc in zip(self._paths, self._kind, self._size, self._crc, strict=True):
            if kind == FileKind.REGULAR:
                yield path, size, crc

    def begin_file(self, path: bytes, kind: FileKind, mode: int) -> None:
        """Start a file; ``add_row`` and ``end_file`` belong to it. Raises: IntegrityError for an impossible path."""
        check_path(path)
        self._paths.append(path)
        self._kind.append(kind)
        self._mode.append(mode & 0o7777)
        self._row_start.append(len(self._first))

    def add_row(self, first: int, pages: int, pack: int, position: int) -> None:
        """Pages of the file, appended to the row before where they continue it in file and pack."""
        if len(self._first) > self._row_start[-1]:
            last = len(self._first) - 1
            if (
                self._pack[last] == pack
                and self._first[last] + self._pages[last] == first
                and (pack == ZERO_PACK or self._position[last] + self._pages[last] == position)
            ):
                self._pages[last] += pages
                return
        self._first.append(first)
        self._pages.append(pages)
        self._pack.append(pack)
        self._position.append(position)

    def end_file(self, size: int, *, kept: int = 0, crc32c: int = 0, flags: FileFlag = FileFlag.NONE) -> None:
        self._size.append(size)
        self._kept.append(kept)
        self._crc.append(crc32c)
        self._flags.append(flags)

    def encode(self) -> EncodedLayer:
        """All blocks, in order. Raises: IntegrityError when a path came twice or a pack's digest is missing."""
        order = sorted(range(len(self._paths)), key=self._paths.__getitem__)
        for one, other in itertools.pairwise(order):
            if self._paths[one] == self._paths[other]:
                raise IntegrityError(f"write layer: {self._paths[one]!r} came twice")
        if any(len(digest) != 16 for _, digest in self._packs):
            raise IntegrityError("write layer: a pack was not finished")
        blocks, index = self._blocks(order)
        entries = b"".join(pack + digest for pack, digest in self._packs)
        step = TABLE_ENTRIES_PER_CHUNK * TABLE_ENTRY
        table = [entries[start : start + step] for start in range(0, len(entries), step)]
        return EncodedLayer(blocks, table, _encode_index(index), self.files, self.rows)

    def _blocks(self, order: list[int]) -> tuple[list[bytes], list[bytes]]:
        blocks: list[bytes] = []
        index: list[bytes] = []
        members: list[tuple[int, int, int]] = []  # file, first row, end of rows
        continues = False
        room = META_CHUNK_BYTES - BLOCK.size
        ends = [*self._row_start[1:], len(self._first)]
        columns = [np.frombuffer(c, np.uint32) for c in (self._first, self._pages, self._pack, self._position)]
        for number in order:
            start, end = self._row_start[number], ends[number]
            while True:
                head = FILE_BYTES + len(self._paths[number])
                if members and room < head + (ROW_BYTES if end > start else 0):
                    blocks.append(self._encode_block(members, columns, continues))
                    index.append(self._paths[members[0][0]])
                    members, continues, room = [], start != self._row_start[number], META_CHUNK_BYTES - BLOCK.size
                    continue
                taken = min(end - start, (room - head) // ROW_BYTES)
                members.append((number, start, start + taken))
                room -= head + taken * ROW_BYTES
                start += taken
                if start == end:
                    break
        if members:
            blocks.append(self._encode_block(members, columns, continues))
            index.append(self._paths[members[0][0]])
        return blocks, index

    def _encode_block(self, members: list[tuple[int, int, int]], columns: list[U32], continues: bool) -> bytes:
        numbers = [number for number, _, _ in members]
        paths = [self._paths[number] for number in numbers]
        counts = np.array([end - start for _, start, end in members], dtype="<u4")
        rows = np.concatenate([np.arange(start, end) for _, start, end in members] or [np.empty(0, np.int64)])
        first, pages, pack, position = (column[rows.astype(np.int64)] for column in columns)
        joined = b"".join(paths)
        return b"".join(
            (
                BLOCK.pack(len(members), len(rows), len(joined), CONTINUES if continues else 0),
                np.array([len(path) for path in paths], dtype="<u2").tobytes(),
                joined,
                bytes(self._kind[number] for number in numbers),
                bytes(self._flags[number] for number in numbers),
                np.array([self._mode[number] for number in numbers], dtype="<u2").tobytes(),
                np.array([self._size[number] for number in numbers], dtype="<u8").tobytes(),
                np.array([self._kept[number] for number in numbers], dtype="<u4").tobytes(),
                np.array([self._crc[number] for number in numbers], dtype="<u4").tobytes(),
                counts.tobytes(),
                _to_distances(first, pages, counts).astype("<u4").tobytes(),
                pages.astype("<u4").tobytes(),
                pack.astype("<u4").tobytes(),
                _to_distances(position, pages, counts).astype("<u4").tobytes(),
            )
        )


@dataclass(frozen=True, slots=True)
class EncodedLayer:
    """The raw chunks of a layer, in the order in which they are stored."""

    blocks: list[bytes]
    table: list[bytes]
    index: list[bytes]
    files: int
    rows: int

    def chunks(self) -> list[bytes]:
        return self.blocks + self.table + self.index


def check_path(path: bytes) -> None:
    """Refuse what could leave the target directory on any system. Raises: IntegrityError."""
    bad = (
        not path
        or len(path) > MAX_PATH_BYTES
        or path.startswith(b"/")
        or b"\0" in path
        or any(part in (b"", b".", b"..") for part in path.split(b"/"))
    )
    if bad:
        raise IntegrityError(f"read layer: impossible path {path[:80]!r}")


def _to_distances(values: U32, pages: U32, counts: U32) -> U32:
    if not len(values):
        return values
    ends = values + pages
    distances = values.copy()
    distances[1:] = values[1:] - ends[:-1]
    starts = np.cumsum(counts) - counts
    starts = starts[counts > 0]
    distances[starts] = values[starts]
    return distances


def _encode_index(paths: list[bytes]) -> list[bytes]:
    chunks: list[bytes] = []
    start = 0
    while start < len(paths):
        size, end = INDEX_COUNT.size, start
        while end < len(paths) and size + 2 + len(paths[end]) <= _INDEX_BUDGET:
            size += 2 + len(paths[end])
            end += 1
        lengths = np.array([len(path) for path in paths[start:end]], dtype="<u2").tobytes()
        chunks.append(INDEX_COUNT.pack(end - start) + lengths + b"".join(paths[start:end]))
        start = end
    return chunks
