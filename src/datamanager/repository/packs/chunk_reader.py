"""Reading pages of data packs: the one way that does.

A pack is read where it lies now: its highest generation that can be read and holds every page that is wanted. Its
digest must be the one that the layer names, and a page that is not there is an error, never zeros. Where a prune moved
the pack since it was looked up, it is looked up again, once.

Source: ``docs/format.md``, Packs and Order of reads, decision 15.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

from datamanager.base.errors import IntegrityError, ObjectMissing
from datamanager.repository.format import ZERO_PACK
from datamanager.repository.layers.contents import Contents
from datamanager.repository.layers.layer import FileEntry
from datamanager.repository.objects import OpenPack
from datamanager.repository.packs.page_masks import I64, U32, chunk_runs, page_masks, split_row
from datamanager.repository.repository import Repository

__all__ = ["ChunkReader", "read_chunk", "read_pages", "split_row"]

T = TypeVar("T")

_GAP_BYTES = 256 << 10  # 2 ms of a hard disk: reading over a gap is cheaper than seeking past it

PackEntry = tuple[bytes, bytes]  # id and digest, as in a layer's table


class ChunkReader:
    """Opens the chunks that rows of one pack need, in rising order; keeps the last one opened. One thread.

    The stored bytes are read when it is made: the whole pack when more than half of it is wanted, else ranges.

    Args:
        pack: id and digest of the pack in the layer's table.
        positions: of the rows, rising; pages - of each row, at least one.
    Raises: IntegrityError, ObjectMissing, StoreError.
    """

    def __init__(self, repository: Repository, pack: PackEntry, positions: I64, pages: I64) -> None:
        self._last = (-1, b"")
        self._spans: list[tuple[int, memoryview]] = []
        self._one_by_one: Callable[[int], bytes] | None = None
        wanted = chunk_runs(positions, pages)

        def fetch() -> OpenPack | None:
            opened = _holding(repository, pack, wanted[-1][1], positions, pages)
            if opened is not None:
                self._spans = _fetch(repository, opened, wanted)
            return opened

        opened = _where_it_lies(repository, pack[0], fetch)
        if opened is None:
            chunks, bits, _ = page_masks(positions, pages)
            self._one_by_one = lambda number: _read_masked(repository, pack, number, bits[chunks == number])
            return
        self._offsets = opened.directory.offsets.tolist()
        self._opener = opened.opener()

    def chunk(self, number: int) -> bytes:
        """Its raw bytes; pages that no row wants may be zeros. Raises: IntegrityError."""
        if self._last[0] != number:
            if self._one_by_one is not None:
                self._last = (number, self._one_by_one(number))
                return self._last[1]
            start, end = self._offsets[number], self._offsets[number + 1]
            while len(self._spans) > 1 and self._spans[1][0] <= start:
                self._spans.pop(0)
            begin, data = self._spans[0]
            self._last = (number, self._opener.open(number, data[start - begin : end - begin]))
        return self._last[1]


def read_chunk(repository: Repository, pack: PackEntry, chunk: int, start: int, count: int) -> bytes:
    """The raw bytes of one chunk, in which the ``count`` pages from ``start`` on are there; others may be zeros.

    Raises: IntegrityError, ObjectMissing, StoreError.
    """
    return _read_masked(repository, pack, chunk, np.array([((1 << count) - 1) << start], np.uint32))


def _read_masked(repository: Repository, pack: PackEntry, chunk: int, bits: U32) -> bytes:
    """One chunk from the highest generation that has all these pages of it."""
    mask = int(np.bitwise_or.reduce(bits))

    def read() -> bytes:
        for opened in _generations(repository, pack, chunk + 1):
            masks = opened.directory.masks
            if masks is None or mask & ~int(masks[chunk]) == 0:
                begin, end = (int(one) for one in opened.directory.offsets[chunk : chunk + 2])
                return opened.opener().open(chunk, repository.storage.get(opened.key, begin, end - begin))
        raise IntegrityError(f"read pack {pack[0].hex()}: chunk {chunk} lacks pages that the backup needs")

    return _where_it_lies(repository, pack[0], read)


def read_pages(repository: Repository, contents: Contents, entry: FileEntry) -> Iterator[tuple[int, bytes]]:
    """The stored pages of one file in order: (first page, bytes), at most a chunk at a time; zero pages are left out.

    Raises: IntegrityError, ObjectMissing, StoreError.
    """
    size = contents.page_size
    for row, pages, number, position in zip(*(column.tolist() for column in entry.rows), strict=True):
        if number == ZERO_PACK:
            continue
        for first, chunk, start, count in split_row(row, pages, position):
            raw = read_chunk(repository, contents.packs[number], chunk, start, count)
            yield first, raw[start * size : (start + count) * size]


def _where_it_lies(repository: Repository, identity: bytes, read: Callable[[], T]) -> T:
    """Read, and once more after a new look when the pack is gone from where it was. Raises: what ``read`` raises."""
    try:
        return read()
    except ObjectMissing:
        repository.forget_pack(identity)
        return read()


def _generations(repository: Repository, pack: PackEntry, chunks: int) -> Iterator[OpenPack]:
    """The generations of the very pack that a layer names, the highest first.

    Args: chunks - how many it has at least. Raises: IntegrityError, when no generation is that pack; ObjectMissing.
    """
    identity, digest = pack
    failure: IntegrityError | None = None
    fits = False
    for opened in repository.generations(identity):
        if opened.directory.digest() != digest:
            failure = failure or IntegrityError(f"read {opened.key}: it is another pack than the backup was made with")
        elif chunks > len(opened.directory):
            failure = failure or IntegrityError(f"read {opened.key}: it has no chunk {chunks - 1}")
        else:
            fits = True
            yield opened
    if failure is not None and not fits:
        raise failure


def _holding(repository: Repository, pack: PackEntry, chunks: int, positions: I64, pages: I64) -> OpenPack | None:
    """The highest generation that has the pages of those rows, which lie in the first ``chunks`` chunks; or None."""
    return next((one for one in _generations(repository, pack, chunks) if _has(one, positions, pages)), None)


def _has(opened: OpenPack, positions: I64, pages: I64) -> bool:
    masks = opened.directory.masks
    if masks is None:
        return True
    touched, bits, _ = page_masks(positions, pages)
    return not bool(np.any(bits & ~masks[touched]))


def _fetch(repository: Repository, opened: OpenPack, wanted: list[tuple[int, int]]) -> list[tuple[int, memoryview]]:
    offsets = opened.directory.offsets
    whole = int(offsets[-1] - offsets[0])
    if 2 * sum(int(offsets[end] - offsets[first]) for first, end in wanted) > whole:
        ranges = [(int(offsets[0]), int(offsets[-1]))]
    else:
        ranges = _merge([(int(offsets[first]), int(offsets[end])) for first, end in wanted])
    spans = []
    for start, end in ranges:
        data = repository.storage.get(opened.key, start, end - start)
        spans.append((start, memoryview(data)))
    return spans


def _merge(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged = ranges[:1]
    for start, end in ranges[1:]:
        if start - merged[-1][1] <= _GAP_BYTES:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    return merged
