"""What is stored already: the parent's files and pages by place, and chunks that an interrupted backup left behind.

A full read is compared with what the parent holds at each place; only where that fails is the table of unreferenced
packs asked. Neither is a global index. Source: ``docs/format.md`` decisions 7, 16 and 20.
"""

from __future__ import annotations

import contextlib
import threading
from array import array
from collections import OrderedDict
from collections.abc import Container, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from datamanager.base.errors import NotFound
from datamanager.base.pipeline import StopToken
from datamanager.repository.damaged import DamagedChunks
from datamanager.repository.format import PAGES_PER_CHUNK, ZERO_PACK, pack_id
from datamanager.repository.layers.contents import Contents
from datamanager.repository.layers.layer import FileEntry, FileFlag, FileKind, Rows
from datamanager.repository.manifest import Manifest
from datamanager.repository.objects import UNREADABLE, OpenPack
from datamanager.repository.packs.pack import ChunkOpener, PackDirectory, fingerprint
from datamanager.repository.repository import Repository

# 16 bytes of fingerprint, 20 of place and Python's own 180: 50 MB, which cover 64 GB of interrupted work.
_MAX_TABLE = 250_000
# Rows in memory: 64 MB. A fresh full of 1 TiB has 11,000; one scattered all over is asked file by file.
_MAX_ROWS = 4_000_000
_CACHED_CHUNKS = 96  # 24 MiB: neighboring places of a scattered file draw on the same few increments

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ChunkPlace:
    """Where a chunk is stored."""

    pack: bytes
    chunk: int


@dataclass(slots=True)  # not frozen, see FileEntry
class ParentFile:
    """A file of the parent. Size in bytes; ``crc32c`` is None where nobody knows it."""

    number: int
    path: bytes
    kind: FileKind
    mode: int
    size: int
    crc32c: int | None

    def whole_pages(self, page_size: int) -> int | None:
        """How many pages it has; None for what no increment is built on, a directory or a file with a short last page.

        Should such a file have grown, the rest of that page is in no backup.
        """
        return None if self.kind is not FileKind.REGULAR or self.size % page_size else self.size // page_size


class ParentFiles:
    """The parent's files and where their pages are. Thread-safe once made; about 300 bytes a file and 16 a row.

    Raises: IntegrityError, ObjectMissing, when the parent's layers cannot be read.
    """

    def __init__(self, repository: Repository, contents: Contents, manifest: Manifest, damaged: DamagedChunks) -> None:
        self.manifest = manifest
        self._repository = repository
        self._contents = contents
        self._damaged = damaged
        self._packs = [pack for pack, _ in contents.packs]
        self._lost: set[int] = set()  # packs that cannot be read: a bad sector is not tried again for every chunk
        self._files: dict[bytes, ParentFile] = {}
        self._seen = bytearray()
        self._seen_count = 0
        self._start = array("Q")
        columns = [array("I") for _ in range(4)]
        self._complete = sum(reference.rows for reference in manifest.layers) <= _MAX_ROWS
        for entry in contents.files():
            self._enter(entry)
            self._start.append(len(columns[0]))
            if self._complete and len(entry.rows.first):
                for column, values in zip(columns, entry.rows, strict=True):
                    column.frombytes(values.astype(np.uint32).tobytes())
        self._start.append(len(columns[0]))
        self._rows = Rows(*(np.frombuffer(column, np.uint32) for column in columns))
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[int, int], bytes] = OrderedDict()

    def _enter(self, entry: FileEntry) -> None:
        crc = None if entry.flags and entry.flags & FileFlag.COMPOSED else entry.crc32c
        one = ParentFile(len(self._files), entry.path, entry.kind, entry.mode, entry.size, crc)
        self._files[entry.path] = one
        self._seen.append(0)

    def __iter__(self) -> Iterator[ParentFile]:
        return iter(self._files.values())

    def __len__(self) -> int:
        return len(self._files)

    @property
    def share_seen(self) -> float:
        """0 to 1: how many of the parent's files the stream has named."""
        return self._seen_count / len(self._files) if self._files else 1.0

    def find(self, path: bytes) -> ParentFile | None:
        """The file, which counts as seen from now on."""
        found = self._files.get(path)
        if found is not None:
            self._seen_count += not self._seen[found.number]
            self._seen[found.number] = 1
        return found

    def unseen(self) -> Iterator[ParentFile]:
        """Files that nobody has asked for: a backup that met them not does not have them."""
        return (one for one in self._files.values() if not self._seen[one.number])

    # -- places -----------------------------------------------------------------------------------------------------
    def rows_of(self, file: ParentFile) -> Rows:
        """Where the file's pages are; pack numbers are the parent's."""
        if not self._complete:
            entry = self._contents.find(file.path)
            return Rows.empty() if entry is None else entry.rows
        start, end = self._start[file.number], self._start[file.number + 1]
        return Rows(*(column[start:end] for column in self._rows))

    def in_many_rows(self, least: int) -> Iterator[tuple[ParentFile, Rows]]:
        """The files of more than ``least`` rows."""
        if not self._complete:
            for entry in self._contents.files():
                if len(entry.rows.first) > least:
                    yield self._files[entry.path], entry.rows
            return
        counts = np.diff(np.frombuffer(self._start, np.uint64).astype(np.int64))
        files = list(self._files.values()) if bool(np.any(counts > least)) else []
        for number in np.flatnonzero(counts > least).tolist():
            yield files[number], self.rows_of(files[number])

    def grid(self, file: ParentFile, pages: int) -> tuple[I64, I64] | None:
        """For each grid place of a file of so many ``pages``: number of a pack, number of a chunk.

        -1 where the parent's pages do not lie in one chunk from its first page on: where one of them was stored again
        since, or the file was cut, that chunk is not what the parent shows.
        Returns: None when the parent's file has no pages but zeros.
        """
        rows = self.rows_of(file)
        if not len(rows.first):
            return None
        first = np.arange(0, pages, PAGES_PER_CHUNK, dtype=np.int64)
        pack, position, left = _at(rows, first)
        whole = (position % PAGES_PER_CHUNK == 0) & (left >= np.minimum(PAGES_PER_CHUNK, pages - first))
        return np.where(whole, pack, -1), position // PAGES_PER_CHUNK

    def holds(self, pack: int, chunk: int, print_: bytes, raw_bytes: int) -> bool:
        """Whether the chunk stored there is whole, undamaged, and the one with this fingerprint and length."""
        opened = self._opened(pack)
        directory = opened.directory if opened is not None else None
        if directory is None or chunk >= len(directory) or int(directory.raw[chunk]) != raw_bytes:
            return False
        if directory.fingerprint(chunk) != print_ or not directory.complete(chunk):
            return False
        return not self._damaged.has(self._packs[pack], chunk)

    def broken_packs(self, stored: Container[bytes | None]) -> set[bytes]:
        """Packs of which the parent needs something that is known to be damaged, or that are not stored at all.

        Older layers may name more of them: pages that were damaged and stored anew since are needed no more.
        """
        suspects = [n for n, pack in enumerate(self._packs) if pack in self._damaged.packs or pack not in stored]
        if not suspects:
            return set()
        every = [self._rows] if self._complete else (entry.rows for entry in self._contents.files())
        broken = set()
        for rows in every:
            for number in np.intersect1d(rows.pack, suspects).tolist():
                pack, chosen = self._packs[number], rows.pack == number
                if pack not in stored or self._damaged.touches(pack, rows.position[chosen], rows.pages[chosen]):
                    broken.add(pack)
        return broken

    def _opened(self, pack: int) -> OpenPack | None:
        if pack in self._lost:
            return None
        try:
            return self._repository.pack(self._packs[pack])
        except UNREADABLE:
            self._lost.add(pack)
            return None  # damaged or lost: stored anew

    # -- pages ------------------------------------------------------------------------------------------------------
    def read_pages(self, file: ParentFile, first: int, into: npt.NDArray[np.uint8]) -> I64:
        """The parent's pages from ``first`` on.

        Args: into - shape (pages, page size); what a page lacks is zeros.
        Returns: for each page how many bytes of it the parent has; 0 where it cannot be read.
        """
        count, size = into.shape
        into[:] = 0
        pack, position, _ = _at(self.rows_of(file), np.arange(first, first + count, dtype=np.int64))
        have = np.full(count, size, np.int64)  # pages that no row gives are zeros
        held = np.flatnonzero(pack >= 0)
        follows = (np.diff(held) == 1) & (np.diff(pack[held]) == 0) & (np.diff(position[held]) == 1)
        breaks = np.flatnonzero(~follows) + 1
        for run in np.split(held, breaks) if len(held) else []:
            start = 0
            while start < len(run):
                chunk, page = divmod(int(position[run[start]]), PAGES_PER_CHUNK)
                pages = run[start : start + PAGES_PER_CHUNK - page]
                raw = self._raw_chunk(int(pack[run[0]]), chunk, page, len(pages))
                self._lay(raw, page, pages, into, have)
                start += len(pages)
        return have

    @staticmethod
    def _lay(raw: bytes | None, page: int, pages: I64, into: npt.NDArray[np.uint8], have: I64) -> None:
        if raw is None:
            have[pages] = 0
            return
        size = into.shape[1]
        data = np.frombuffer(raw, np.uint8)[page * size : (page + len(pages)) * size]
        first = int(pages[0])
        into.reshape(-1)[first * size : first * size + len(data)] = data
        have[pages] = np.clip(len(data) - np.arange(len(pages)) * size, 0, size)

    def _raw_chunk(self, pack: int, chunk: int, page: int, pages: int) -> bytes | None:
        """A chunk decoded; None when it is not there whole, damaged, or without one of these pages."""
        with self._lock:
            known = self._cache.get((pack, chunk))
        if known is not None:
            return known
        opened = self._opened(pack)
        if opened is None or chunk >= len(opened.directory) or self._damaged.has(self._packs[pack], chunk):
            return None
        directory = opened.directory
        if not directory.has_pages(chunk, page, pages):
            return None
        try:
            start, end = (int(offset) for offset in directory.offsets[chunk : chunk + 2])
            raw = opened.opener().open(chunk, self._repository.storage.get(opened.key, start, end - start))
        except UNREADABLE:
            return None
        if directory.complete(chunk):
            with self._lock:
                self._cache[pack, chunk] = raw
                while len(self._cache) > _CACHED_CHUNKS:
                    self._cache.popitem(last=False)
        return raw


def _at(rows: Rows, pages: I64) -> tuple[I64, I64, I64]:
    """Pack and position of each page, and how many pages its row has from there; the pack is -1 where no row has it."""
    if not len(rows.first):
        nothing = np.zeros(len(pages), np.int64)
        return nothing - 1, nothing, nothing
    row = np.maximum(np.searchsorted(rows.first, pages, side="right") - 1, 0)
    first, pack = rows.first[row].astype(np.int64), rows.pack[row].astype(np.int64)
    left = first + rows.pages[row] - pages
    held = (pages >= first) & (left > 0) & (pack != ZERO_PACK)
    return np.where(held, pack, -1), rows.position[row].astype(np.int64) + pages - first, left


class LeftoverChunks:
    """Chunks in packs that no backup refers to, each authenticated in full before it is offered."""

    def __init__(self) -> None:
        self._table: dict[bytes, ChunkPlace] = {}

    def __len__(self) -> int:
        return len(self._table)

    def find(self, print_: bytes) -> ChunkPlace | None:
        return self._table.get(print_)

    @classmethod
    def gather(cls, repository: Repository, avoid: set[bytes], stop: StopToken) -> LeftoverChunks:
        """Read every unreferenced pack, newest first, as far as the table reaches.

        Only bytes that authenticate and match their fingerprint enter: a power cut may have torn such a pack.
        Args: avoid - packs that nobody may take up again.
        """
        found = cls()
        referenced = referenced_packs(repository) | avoid
        packs = sorted(repository.storage.list("packs/"), key=lambda one: -one.mtime)
        key = repository.ring.fingerprint_key.reveal()
        for one in packs:
            identity = pack_id(one.key)
            if identity is None or identity in referenced:
                continue
            stop.check()
            if len(found._table) >= _MAX_TABLE:
                break
            found._add(repository, identity, key)
        return found

    def _add(self, repository: Repository, identity: bytes, key: bytes) -> None:
        try:
            pack = repository.pack(identity)
            data = memoryview(repository.storage.get(pack.key))
            prints = _whole_chunks(pack.opener(), pack.directory, data, key)
        except UNREADABLE:
            return
        for chunk, print_ in enumerate(prints):
            self._table.setdefault(print_, ChunkPlace(identity, chunk))


def _whole_chunks(opener: ChunkOpener, directory: PackDirectory, data: memoryview, key: bytes) -> list[bytes]:
    """The fingerprints of a pack, when every chunk of it is what they say; else nothing."""
    offsets = directory.offsets.tolist()
    prints = []
    for chunk in range(len(directory)):
        if not directory.complete(chunk):
            return []
        prints.append(fingerprint(key, opener.open(chunk, data[offsets[chunk] : offsets[chunk + 1]])))
        if prints[-1] != directory.fingerprint(chunk):
            return []
    return prints


def referenced_packs(repository: Repository) -> set[bytes]:
    """Every data pack that a readable backup of the repository names: good for adopting, never for deleting."""
    seen: set[tuple[tuple[str, int, int], ...]] = set()
    packs: set[bytes] = set()
    for name in repository.backup_ids():
        with contextlib.suppress(*UNREADABLE, NotFound):
            for reference in repository.manifest(name).layers:
                spans = tuple(reference.spans)
                if spans not in seen:
                    seen.add(spans)
                    packs |= {pack for pack, _ in repository.layer(reference).packs}
    return packs
