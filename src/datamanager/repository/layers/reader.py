"""Reading layers: blocks decoded, bounded and checked, and one file composed from all layers of its backup.

``repository/layers/layer.py`` has the layout. A block is authentic by the time it is decoded; what is checked here
keeps a faulty writer from reaching beyond a file or a pack table.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from datamanager.base.errors import IntegrityError
from datamanager.repository.format import MAX_PAGES_PER_FILE, META_CHUNK_BYTES, ZERO_PACK
from datamanager.repository.layers.layer import (
    BLOCK,
    CONTINUES,
    FILE_BYTES,
    INDEX_COUNT,
    ROW_BYTES,
    TABLE_ENTRY,
    U32,
    FileEntry,
    FileFlag,
    FileKind,
    Rows,
    check_path,
)

_KINDS = tuple(FileKind)
_ALL_FLAGS = int(FileFlag.GONE | FileFlag.BADSUM | FileFlag.COMPOSED)
_FLAGS = tuple(FileFlag(number) for number in range(_ALL_FLAGS + 1))
_NO_ROWS = Rows.empty()


def _from_distances(distances: U32, pages: U32, counts: U32) -> npt.NDArray[np.int64]:
    """Absolute values, not reduced modulo 2^32: rising and disjoint within a file by construction."""
    steps = distances.astype(np.int64)
    if not len(distances):
        return steps
    steps[1:] += pages[:-1]
    starts = np.cumsum(counts, dtype=np.int64) - counts
    starts = starts[counts > 0]
    steps[starts] = distances[starts]
    total = np.cumsum(steps)
    base = np.zeros(len(starts), np.int64)
    base[1:] = total[starts[1:] - 1]
    lengths = np.diff(np.append(starts, len(distances)))
    result: npt.NDArray[np.int64] = total - np.repeat(base, lengths)
    return result


def _split_paths(data: bytes, lengths: npt.NDArray[np.int64], offset: int) -> list[bytes]:
    ends = offset + np.cumsum(lengths)
    starts = ends - lengths
    return [data[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


def decode_block(data: bytes, packs: int) -> tuple[list[FileEntry], bool]:
    """The files of a block and whether the first continues the block before.

    Args: packs - entries of the layer's pack table, which every row must respect.
    Raises: IntegrityError.
    """
    malformed = IntegrityError("read layer: malformed block")
    if len(data) < BLOCK.size or len(data) > META_CHUNK_BYTES:
        raise malformed
    files, rows, path_bytes, flags = BLOCK.unpack_from(data)
    if len(data) != BLOCK.size + files * FILE_BYTES + path_bytes + rows * ROW_BYTES or flags & ~CONTINUES:
        raise malformed
    position = BLOCK.size

    def column(kind: str, count: int) -> npt.NDArray[np.int64]:
        nonlocal position
        values = np.frombuffer(data, kind, count, position)
        position += values.nbytes
        return values.astype(np.int64)

    lengths = column("<u2", files)
    if int(lengths.sum()) != path_bytes:
        raise malformed
    paths = _split_paths(data, lengths, position)
    position += path_bytes
    kinds, marks = column("u1", files), column("u1", files)
    modes = column("<u2", files)
    sizes = np.frombuffer(data, "<u8", files, position)
    position += sizes.nbytes
    kept, crcs, counts = column("<u4", files), column("<u4", files), column("<u4", files)
    if int(counts.sum()) != rows:
        raise malformed
    first, pages, pack, place = (column("<u4", rows).astype(np.uint32) for _ in range(4))
    counts32 = counts.astype(np.uint32)
    firsts = _from_distances(first, pages, counts32)
    if rows and bool(np.any((pack >= packs) & (pack != ZERO_PACK)) or pages.min() == 0):
        raise malformed
    if rows and int((firsts + pages).max()) > MAX_PAGES_PER_FILE:
        raise malformed
    first = firsts.astype(np.uint32)
    place = (_from_distances(place, pages, counts32) & 0xFFFF_FFFF).astype(np.uint32)
    if bool(np.any(kinds > FileKind.DIRECTORY) or np.any(marks > _ALL_FLAGS)):
        raise malformed
    entries = []
    end = 0
    columns = (paths, kinds.tolist(), modes.tolist(), sizes.tolist(), kept.tolist(), marks.tolist(), crcs.tolist())
    for path, kind, mode, size, keep, mark, crc, count in zip(*columns, counts.tolist(), strict=True):
        start, end = end, end + count
        check_path(path)
        own = Rows(first[start:end], pages[start:end], pack[start:end], place[start:end]) if count else _NO_ROWS
        entries.append(FileEntry(path, _KINDS[kind], mode, size, keep, _FLAGS[mark], crc, own))
    return entries, bool(flags & CONTINUES)


class LayerReader:
    """Reads one stored layer block by block. Thread-safe if ``load`` is.

    Args: load - gives raw chunk ``n`` of the layer; blocks, table, index - how many chunks of each.
    """

    def __init__(self, load: Callable[[int], bytes], blocks: int, table: int, index: int) -> None:
        self._load = load
        self._blocks = blocks
        self._table = table
        self._index = index
        self._packs: list[tuple[bytes, bytes]] | None = None
        self._first_paths: list[bytes] | None = None

    @property
    def packs(self) -> list[tuple[bytes, bytes]]:
        """The pack table: (id, digest). Raises: IntegrityError."""
        if self._packs is None:
            data = b"".join(self._load(self._blocks + number) for number in range(self._table))
            if len(data) % TABLE_ENTRY:
                raise IntegrityError("read layer: malformed pack table")
            self._packs = [
                (data[start : start + 16], data[start + 16 : start + 32]) for start in range(0, len(data), 32)
            ]
        return self._packs

    def entries(self, start: int = 0) -> Iterator[FileEntry]:
        """Every file in path order, from block ``start`` on. Raises: IntegrityError."""
        pending: list[FileEntry] = []
        previous = b""
        packs = len(self.packs)
        for number in range(start, self._blocks):
            entries, continues = decode_block(self._load(number), packs)
            expected = bool(pending and entries and entries[0].path == pending[0].path)
            if continues != expected and (number > start or number == 0):
                raise IntegrityError("read layer: malformed sequence of blocks")
            if continues and not pending:
                if number == 0:
                    raise IntegrityError("read layer: malformed sequence of blocks")
                entries = entries[1:]  # began in a block that was not asked for
            for entry in entries:
                if pending and entry.path == pending[0].path:
                    pending.append(entry)
                    continue
                if pending:
                    previous = pending[0].path
                    yield _joined(pending)
                if entry.path <= previous:
                    raise IntegrityError("read layer: files out of order")
                pending = [entry]
        if pending:
            yield _joined(pending)

    def find(self, path: bytes) -> FileEntry | None:
        """One file, by the index of first paths."""
        if self._first_paths is None:
            self._first_paths = self._read_index()
        if not self._first_paths or path < self._first_paths[0]:
            return None
        # A block whose first path is this one may only continue the file, which then began in the block before.
        block = max(0, bisect.bisect_left(self._first_paths, path) - 1)
        for entry in self.entries(block):
            if entry.path >= path:
                return entry if entry.path == path else None
        return None

    def _read_index(self) -> list[bytes]:
        paths: list[bytes] = []
        for number in range(self._index):
            data = self._load(self._blocks + self._table + number)
            (count,) = INDEX_COUNT.unpack_from(data) if len(data) >= INDEX_COUNT.size else (0,)
            if count == 0 or len(data) < INDEX_COUNT.size + 2 * count:
                raise IntegrityError("read layer: malformed index")
            lengths = np.frombuffer(data, "<u2", count, INDEX_COUNT.size).astype(np.int64)
            if len(data) != INDEX_COUNT.size + 2 * count + int(lengths.sum()):
                raise IntegrityError("read layer: malformed index")
            paths += _split_paths(data, lengths, INDEX_COUNT.size + 2 * count)
        if len(paths) != self._blocks:
            raise IntegrityError("read layer: the index does not match")
        return paths


def _joined(parts: list[FileEntry]) -> FileEntry:
    if len(parts) == 1:
        return parts[0]
    head = parts[0]
    # Each block counts distances from its own start of the file, so the values are absolute in every part.
    rows = Rows(*(np.concatenate([getattr(part.rows, name) for part in parts]) for name in Rows._fields))
    if bool(np.any(rows.first[1:] < rows.first[:-1].astype(np.int64) + rows.pages[:-1])):
        raise IntegrityError("read layer: rows out of order")
    return FileEntry(head.path, head.kind, head.mode, head.size, head.kept, head.flags, head.crc32c, rows)


def compose(entries: Sequence[FileEntry], page_size: int) -> FileEntry | None:
    """One file as its backup sees it, from its entries oldest to newest; pack numbers must share one table.

    Returns: None if the newest layer that knows the file says it is gone. Pages that no layer gives are zeros.
    """
    newest = entries[-1]
    if newest.size > MAX_PAGES_PER_FILE * page_size:
        raise IntegrityError(f"read layer: impossible size of {newest.path[:80]!r}")
    if newest.flags and newest.flags & FileFlag.GONE:
        return None
    if len(entries) == 1 or newest.kept == 0:
        return newest
    pack, position = _paint(entries, -(-newest.size // page_size))
    return replace(newest, kept=0, rows=_runs(np.flatnonzero(pack != ZERO_PACK), pack, position))


def overlay(entries: Sequence[FileEntry]) -> FileEntry:
    """Several layers' entries of one file, oldest to newest, as the one entry of a layer that stands for all of them.

    The result may stand on still older layers: ``kept`` is the smallest, and zeros stay told where those would show.
    """
    newest = entries[-1]
    alive = next((n for n in range(len(entries) - 1, -1, -1) if entries[n].kept == 0), 0)
    if newest.flags & FileFlag.GONE or alive == len(entries) - 1:
        return newest
    if entries[alive].flags & FileFlag.GONE:
        raise IntegrityError(f"read layer: {newest.path[:80]!r} is built on a file that is gone")
    entries = entries[alive:]
    kept = min(one.kept for one in entries)
    pages = max(
        (int(one.rows.first[-1]) + int(one.rows.pages[-1]) for one in entries if len(one.rows.first)), default=0
    )
    pack, position = _paint(entries, pages, unknown=_UNKNOWN)
    told = (pack != _UNKNOWN) & ((pack != ZERO_PACK) | (np.arange(pages) < kept))
    return replace(newest, kept=kept, rows=_runs(np.flatnonzero(told), pack.astype(np.uint32), position))


_UNKNOWN = 1 << 40  # no layer says anything of this page


def _paint(entries: Sequence[FileEntry], pages: int, unknown: int = ZERO_PACK) -> tuple[npt.NDArray[np.int64], U32]:
    """Pack and position of each page. Args: unknown - stands for pages that no entry gives."""
    pack = np.full(pages, unknown, np.int64)
    position = np.zeros(pages, np.uint32)
    for entry in entries:
        pack[entry.kept :] = unknown
        rows = entry.rows
        if not len(rows.first):
            continue
        counts = rows.pages.astype(np.int64)
        within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        page = np.repeat(rows.first.astype(np.int64), counts) + within
        inside = page < pages
        page = page[inside]
        pack[page] = np.repeat(rows.pack, counts)[inside]
        position[page] = (np.repeat(rows.position.astype(np.int64), counts) + within)[inside]
    return pack, position


def _runs(held: npt.NDArray[np.int64], pack: npt.NDArray[np.int64], position: U32) -> Rows:
    """The rows of the pages ``held``, joined where they follow each other in file and pack."""
    if not len(held):
        return Rows.empty()
    owners, places = pack[held], position[held].astype(np.int64)
    follows = (np.diff(places) == 1) | (owners[1:] == ZERO_PACK)
    breaks = (np.diff(held) != 1) | (np.diff(owners) != 0) | ~follows
    starts = np.concatenate(([0], np.flatnonzero(breaks) + 1))
    lengths = np.diff(np.append(starts, len(held)))
    columns = (held[starts], lengths, owners[starts], places[starts])
    return Rows(*(column.astype(np.uint32) for column in columns))
