"""Chunks that are stored already: at their place in the parent, or in packs that an interrupted backup left behind.

A chunk of a full read is compared with what the parent holds at that place; only where that fails is the table of
unreferenced packs asked. Neither is a global index. Source: ``docs/format.md`` decisions 7, 16 and 20.
"""

from __future__ import annotations

import contextlib
from array import array
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from datamanager.base.errors import NotFound
from datamanager.base.pipeline import StopToken
from datamanager.repository.format import PAGES_PER_CHUNK, ZERO_PACK, pack_id
from datamanager.repository.objects import UNREADABLE
from datamanager.repository.pack import fingerprint
from datamanager.repository.repository import Contents, Repository

# 16 bytes of fingerprint, 20 of place and Python's own 180: 50 MB, which cover 64 GB of interrupted work.
_MAX_TABLE = 250_000


@dataclass(frozen=True, slots=True)
class ChunkPlace:
    """Where a chunk is stored."""

    pack: bytes
    chunk: int


class ParentPlaces:
    """What the parent holds at each grid place. Thread-safe once made; about 250 bytes a file and 16 a row.

    Raises: IntegrityError, ObjectMissing, when the parent's layers cannot be read.
    """

    def __init__(self, repository: Repository, contents: Contents) -> None:
        self._repository = repository
        self._packs = [pack for pack, _ in contents.packs]
        self._files: dict[bytes, tuple[int, int]] = {}
        self._lost: set[int] = set()  # packs that cannot be read: a bad sector is not tried again for every chunk
        columns = [array("I") for _ in range(4)]
        for entry in contents.files():
            if len(entry.rows.first):
                self._files[entry.path] = (len(columns[0]), len(entry.rows.first))
                for column, values in zip(columns, entry.rows, strict=True):
                    column.frombytes(values.astype(np.uint32).tobytes())
        self._first, self._pages, self._pack, self._position = (np.frombuffer(c, np.uint32) for c in columns)

    def of_file(self, path: bytes, chunks: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
        """For each of the file's first ``chunks`` grid places: number of a pack, number of a chunk; -1 where none.

        Returns: None when the parent does not have the file.
        """
        known = self._files.get(path)
        if known is None:
            return None
        rows = slice(known[0], known[0] + known[1])
        first, pages = self._first[rows].astype(np.int64), self._pages[rows].astype(np.int64)
        grid = np.arange(chunks, dtype=np.int64) * PAGES_PER_CHUNK
        row = np.searchsorted(first, grid, side="right") - 1
        row = np.maximum(row, 0)
        place = self._position[rows].astype(np.int64)[row] + grid - first[row]
        pack = self._pack[rows].astype(np.int64)[row]
        usable = (grid >= first[row]) & (grid < first[row] + pages[row])
        usable &= (pack != ZERO_PACK) & (place % PAGES_PER_CHUNK == 0)
        return np.where(usable, pack, -1), place // PAGES_PER_CHUNK

    def holds(self, pack: int, chunk: int, print_: bytes, raw_bytes: int) -> ChunkPlace | None:
        """The place, if the chunk stored there is the one with this fingerprint and length; else None."""
        identity = self._packs[pack]
        if pack in self._lost:
            return None
        try:
            directory = self._repository.pack(identity).directory
        except UNREADABLE:
            self._lost.add(pack)
            return None  # damaged or lost: stored anew
        if chunk >= len(directory) or int(directory.raw[chunk]) != raw_bytes:
            return None
        return ChunkPlace(identity, chunk) if directory.fingerprint(chunk) == print_ else None


class LeftoverChunks:
    """Chunks in packs that no backup refers to, each authenticated in full before it is offered."""

    def __init__(self) -> None:
        self._table: dict[bytes, ChunkPlace] = {}

    def __len__(self) -> int:
        return len(self._table)

    def find(self, print_: bytes) -> ChunkPlace | None:
        return self._table.get(print_)

    @classmethod
    def gather(cls, repository: Repository, stop: StopToken) -> LeftoverChunks:
        """Read every unreferenced pack, newest first, as far as the table reaches.

        Only bytes that authenticate and match their fingerprint enter: a power cut may have torn such a pack.
        """
        found = cls()
        referenced = referenced_packs(repository)
        packs = sorted(repository.storage.list("packs/"), key=lambda one: -one.mtime)
        key = repository.ring.fingerprint_key.reveal()
        for one in packs:
            identity = pack_id(one.key)
            if identity is None or identity in referenced:
                continue
            stop.check()
            if len(found._table) >= _MAX_TABLE:
                break
            found._add(repository, identity, one.key, key)
        return found

    def _add(self, repository: Repository, identity: bytes, name: str, key: bytes) -> None:
        try:
            pack = repository.pack(identity)
            data = memoryview(repository.storage.get(name))
            opener = pack.opener()
            offsets = pack.directory.offsets.tolist()
            prints = []
            for chunk in range(len(pack.directory)):
                raw = opener.open(chunk, data[offsets[chunk] : offsets[chunk + 1]])
                prints.append(fingerprint(key, raw))
                if prints[-1] != pack.directory.fingerprint(chunk):
                    return
        except UNREADABLE:
            return
        for chunk, print_ in enumerate(prints):
            self._table.setdefault(print_, ChunkPlace(identity, chunk))


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
