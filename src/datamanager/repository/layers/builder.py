"""Writing layers: files collected in any order, then encoded in order of their paths, block by block.

``repository/layers/layer.py`` has the layout.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from datamanager.base.errors import IntegrityError
from datamanager.repository.format import META_CHUNK_BYTES, ZERO_PACK
from datamanager.repository.layers.layer import (
    BLOCK,
    CONTINUES,
    FILE_BYTES,
    INDEX_COUNT,
    ROW_BYTES,
    TABLE_ENTRIES_PER_CHUNK,
    TABLE_ENTRY,
    U32,
    FileEntry,
    FileFlag,
    FileKind,
    Rows,
    check_path,
)

_INDEX_BUDGET = META_CHUNK_BYTES - 4096


@dataclass(frozen=True, slots=True)
class LayerSize:
    """How many chunks of each part a layer has, then its files and rows."""

    blocks: int
    table: int
    index: int
    files: int
    rows: int


class LayerBuilder:
    """Collects files and their rows in any order. Holds about 150 bytes a file and 20 a row. Not thread-safe."""

    def __init__(self) -> None:
        self._paths: list[bytes] = []
        self._kind = bytearray()
        self._flags = bytearray()
        self._mode = array("H")
        self._size = array("Q")
        self._kept = array("I")
        self._crc = array("I")
        self._rows = tuple(array("I") for _ in range(5))  # file, first page, pages, pack, position
        self._packs: list[tuple[bytes, bytes]] = []
        self._numbers: dict[bytes, int] = {}

    @property
    def files(self) -> int:
        return len(self._paths)

    @property
    def rows(self) -> int:
        return len(self._rows[0])

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
    def packs(self) -> list[tuple[bytes, bytes]]:
        """The pack table: (id, digest)."""
        return self._packs

    def begin_file(self, path: bytes, kind: FileKind, mode: int) -> int:
        """Enter a file and return its number; ``end_file`` follows. Raises: IntegrityError for an impossible path."""
        check_path(path)
        self._paths.append(path)
        self._kind.append(kind)
        self._mode.append(mode & 0o7777)
        self._size.append(0)
        self._kept.append(0)
        self._crc.append(0)
        self._flags.append(0)
        return len(self._paths) - 1

    def add_row(self, first: int, pages: int, pack: int, position: int, file: int = -1) -> None:
        """Pages of a file (by default the one begun last), in any order; the same page twice is found by ``encode``."""
        file = file if file >= 0 else len(self._paths) - 1
        files, firsts, counts, packs, positions = self._rows
        follows = files and files[-1] == file and packs[-1] == pack and firsts[-1] + counts[-1] == first
        if follows and (pack == ZERO_PACK or positions[-1] + counts[-1] == position):
            counts[-1] += pages
            return
        files.append(file)
        firsts.append(first)
        counts.append(pages)
        packs.append(pack)
        positions.append(position)

    def end_file(
        self, size: int, *, kept: int = 0, crc32c: int = 0, flags: FileFlag = FileFlag.NONE, file: int = -1
    ) -> None:
        """What is known of a file once it was read. Args: kept - in pages."""
        self._size[file] = size
        self._kept[file] = kept
        self._crc[file] = crc32c
        self._flags[file] = flags

    def entries(self) -> Iterator[FileEntry]:
        """Every file, sorted by path, with its rows sorted and joined. Raises: IntegrityError, for a path or page that
        came twice.
        """
        order = sorted(range(len(self._paths)), key=self._paths.__getitem__)
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        file, rows = self._sorted_rows(rank)
        ends = np.searchsorted(file, np.arange(len(order)), side="right").tolist()
        start, before = 0, None
        for place, number in enumerate(order):
            path, end = self._paths[number], ends[place]
            if path == before:
                raise IntegrityError(f"write layer: {path!r} came twice")
            before = path
            yield FileEntry(
                path,
                FileKind(self._kind[number]),
                self._mode[number],
                self._size[number],
                self._kept[number],
                FileFlag(self._flags[number]),
                self._crc[number],
                Rows(*(column[start:end] for column in rows)),
            )
            start = end

    def _sorted_rows(self, rank: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], Rows]:
        numbers, first, pages, pack, position = (
            np.frombuffer(column, np.uint32).astype(np.int64) for column in self._rows
        )
        if not len(numbers):
            return numbers, Rows.empty()
        file = rank[numbers]
        order = np.lexsort((first, file))
        file, first, pages, pack, position = (column[order] for column in (file, first, pages, pack, position))
        same, end = file[1:] == file[:-1], first[:-1] + pages[:-1]
        if bool(np.any(same & (first[1:] < end))):
            raise IntegrityError("write layer: a page came twice")
        follows = (position[1:] == position[:-1] + pages[:-1]) | (pack[1:] == ZERO_PACK)
        starts = np.flatnonzero(np.append(True, ~(same & (first[1:] == end) & (pack[1:] == pack[:-1]) & follows)))
        joined = np.add.reduceat(pages, starts)
        columns = (column.astype(np.uint32) for column in (first[starts], joined, pack[starts], position[starts]))
        return file[starts], Rows(*columns)

    def encode(self) -> EncodedLayer:
        """All chunks of the layer. Raises: IntegrityError when a path came twice or a pack's digest is missing."""
        return encode_layer(self.entries(), self._packs)


@dataclass(frozen=True, slots=True)
class EncodedLayer:
    """The raw chunks of a layer by what they hold, in the order in which they are stored."""

    blocks: list[bytes]
    table: list[bytes]
    index: list[bytes]
    files: int
    rows: int

    def chunks(self) -> list[bytes]:
        return self.blocks + self.table + self.index


def encode_layer(entries: Iterable[FileEntry], packs: list[tuple[bytes, bytes]]) -> EncodedLayer:
    """A layer in memory. Args: packs - the table that the rows of ``entries`` point into. Raises: IntegrityError."""
    chunks: list[bytes] = []
    encoder = LayerEncoder(chunks.append, packs)
    for entry in entries:
        encoder.add(entry, packs)
    size = encoder.finish()
    table = size.blocks + size.table
    return EncodedLayer(chunks[: size.blocks], chunks[size.blocks : table], chunks[table:], size.files, size.rows)


class LayerEncoder:
    """Encodes files that come in order of their paths; memory stays flat whatever the number of rows.

    Args:
        put: takes each chunk of the layer in order, at most 256 KiB.
        table: packs that head the layer's table; others follow as rows name them.
    """

    def __init__(self, put: Callable[[bytes], None], table: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self._put = put
        self._members: list[FileEntry] = []
        self._continues = False
        self._room = META_CHUNK_BYTES - BLOCK.size
        self._first_paths: list[bytes] = []
        self._table: dict[bytes, int] = {}
        self._digests: list[bytes] = []
        self._files = self._rows = 0
        for pack, digest in table:
            self._pack_number(pack, digest)

    def add(self, entry: FileEntry, packs: list[tuple[bytes, bytes]]) -> None:
        """The next file. Args: packs - the table that its rows point into. Raises: IntegrityError."""
        rows = self._renumbered(entry.rows, packs)
        total, start, head = len(rows.first), 0, FILE_BYTES + len(entry.path)
        self._files += 1
        self._rows += total
        while True:
            if self._members and self._room < head + (ROW_BYTES if total > start else 0):
                self._flush(continues=start > 0)
            taken = min(total - start, (self._room - head) // ROW_BYTES)
            part = rows if taken == total else Rows(*(column[start : start + taken] for column in rows))
            self._members.append(replace(entry, rows=part))
            self._room -= head + taken * ROW_BYTES
            start += taken
            if start == total:
                return

    def finish(self) -> LayerSize:
        """Write what is left, the pack table and the index."""
        if self._members:
            self._flush(continues=False)
        if any(len(digest) != 16 for digest in self._digests):
            raise IntegrityError("write layer: a pack was not finished")
        entries = b"".join(pack + digest for pack, digest in zip(self._table, self._digests, strict=True))
        step = TABLE_ENTRIES_PER_CHUNK * TABLE_ENTRY
        table = [entries[start : start + step] for start in range(0, len(entries), step)]
        index = _encode_index(self._first_paths)
        for chunk in (*table, *index):
            self._put(chunk)
        return LayerSize(len(self._first_paths), len(table), len(index), self._files, self._rows)

    def _renumbered(self, rows: Rows, packs: list[tuple[bytes, bytes]]) -> Rows:
        if not len(rows.pack):
            return rows
        numbers = sorted(set(rows.pack.tolist()))  # np.unique would import numpy.ma at its first call: 15 ms
        own = [ZERO_PACK if one == ZERO_PACK else self._pack_number(*packs[one]) for one in numbers]
        return rows._replace(pack=np.array(own, np.uint32)[np.searchsorted(numbers, rows.pack)])

    def _pack_number(self, pack: bytes, digest: bytes) -> int:
        number = self._table.setdefault(pack, len(self._digests))
        if number == len(self._digests):
            self._digests.append(digest)
        elif self._digests[number] != digest:
            raise IntegrityError(f"write layer: pack {pack.hex()} is named with two contents")
        return number

    def _flush(self, *, continues: bool) -> None:
        self._put(_encode_block(self._members, self._continues))
        self._first_paths.append(self._members[0].path)
        self._members, self._continues, self._room = [], continues, META_CHUNK_BYTES - BLOCK.size


def _encode_block(members: list[FileEntry], continues: bool) -> bytes:
    joined = b"".join(one.path for one in members)
    counts = np.array([len(one.rows.first) for one in members], dtype="<u4")
    first, pages, pack, position = (
        np.concatenate([getattr(one.rows, name) for one in members]).astype(np.uint32) for name in Rows._fields
    )
    return b"".join(
        (
            BLOCK.pack(len(members), len(first), len(joined), CONTINUES if continues else 0),
            np.array([len(one.path) for one in members], dtype="<u2").tobytes(),
            joined,
            bytes(one.kind for one in members),
            bytes(one.flags for one in members),
            np.array([one.mode for one in members], dtype="<u2").tobytes(),
            np.array([one.size for one in members], dtype="<u8").tobytes(),
            np.array([one.kept for one in members], dtype="<u4").tobytes(),
            np.array([one.crc32c for one in members], dtype="<u4").tobytes(),
            counts.tobytes(),
            _to_distances(first, pages, counts).astype("<u4").tobytes(),
            pages.astype("<u4").tobytes(),
            pack.astype("<u4").tobytes(),
            _to_distances(position, pages, counts).astype("<u4").tobytes(),
        )
    )


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
