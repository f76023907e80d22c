"""Writing only what differs: the pages at hand are read and compared with what the backup holds, pack by pack.

    whole chunk    every page of it is in this backup: keyed BLAKE3 of the pages at hand against the pack's directory;
                   equal ones are not fetched
    part of one    the rest of its pages is in no file of this backup, so its fingerprint cannot be made from what is at
                   hand: it is fetched, and compared page by page

Either way the CRC-32C and the page checksums of what the files then hold are witnessed as in any restore.
Source: ``docs/format.md``, Packs; ``engine/restore/materialize.py``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from datamanager.base.crc import checksum
from datamanager.base.errors import IntegrityError, TargetUnfit
from datamanager.base.events import Listener, Progress
from datamanager.base.pipeline import TaskGroup
from datamanager.engine.restore.delta_layout import PresentLayout, differing_runs
from datamanager.engine.restore.file_writer import FileWriter
from datamanager.engine.restore.layout import Destination
from datamanager.engine.restore.materialize import Materializer
from datamanager.engine.restore.page_check import PageChecker, PageRules
from datamanager.engine.restore.pieces import CheckedPages, FileFacts, Pieces, cut_rows
from datamanager.repository.format import MAX_CHUNK_BYTES, PAGES_PER_CHUNK
from datamanager.repository.layers.contents import Contents
from datamanager.repository.packs.chunk_reader import ChunkReader
from datamanager.repository.packs.pack import PackDirectory, fingerprint
from datamanager.repository.repository import Repository

I64 = npt.NDArray[np.int64]


class Tally:
    """Adds up what threads did, in bytes: compared at the target, fetched as stored, written. Thread-safe.

    Args: total - bytes that will be compared; listener - told how far that is.
    """

    def __init__(self, total: int, listener: Listener) -> None:
        self._lock = threading.Lock()
        self._total = total
        self._listener = listener
        self.compared = 0
        self.fetched = 0
        self.written = 0

    def compare(self, size: int) -> None:
        self.add(compared=size)

    def add(self, *, compared: int = 0, fetched: int = 0, written: int = 0) -> None:
        with self._lock:
            self.compared += compared
            self.fetched += fetched
            self.written += written
            if compared:
                self._listener(Progress(self.compared, self._total))


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Pieces ``first`` up to ``end`` lie in chunk ``number`` and, where ``whole``, are all of its ``size`` bytes."""

    number: int
    first: int
    end: int
    size: int
    whole: bool


class Patcher(Materializer):
    """Makes an existing directory hold one backup. Used once.

    Args: as of Materializer; destination - whose files are there already, or not.
    """

    def __init__(
        self,
        repository: Repository,
        contents: Contents,
        destination: Destination,
        threads: int,
        rules: PageRules,
        tally: Tally,
    ) -> None:
        self._present = PresentLayout(destination, contents.page_size)
        super().__init__(repository, contents, destination, threads, tally.compare, rules, self._present)
        self._key = repository.ring.fingerprint_key.reveal()
        self._tally = tally

    def zeros(self) -> None:
        """Count the pages that the backup stores as zeros; after ``run``."""
        self._tally.add(compared=self._present.compared, written=self._present.written)

    def _open_files(self) -> FileWriter:
        return FileWriter(self._layout.paths, reading=True)

    def _write_pack(
        self, rows: I64, files: FileFacts, writer: FileWriter, checker: PageChecker | None, group: TaskGroup
    ) -> None:
        number = int(rows[0, 0])
        pieces = _in_order(cut_rows(rows, files.sizes, self._contents.page_size))
        directory = self._directory(number)
        pages = CheckedPages(pieces, files, self._contents.page_size)
        work = _PackWork(pieces, pages, checker, writer, self._layout.paths, self._contents.page_size)
        differing = []
        for chunk in _chunks(pieces, directory):
            group.check()
            if not (chunk.whole and directory is not None and work.is_equal(chunk, directory, self._key)):
                differing.append(chunk)
        if differing:
            mine = np.concatenate([np.arange(chunk.first, chunk.end) for chunk in differing])
            positions = pieces.chunk[mine] * PAGES_PER_CHUNK + pieces.start[mine] // self._contents.page_size
            counts = -(-(pieces.end[mine] - pieces.start[mine]) // self._contents.page_size)
            reader = ChunkReader(self._repository, self._contents.packs[number], positions, counts)
            for chunk in differing:
                group.check()
                self._tally.add(written=work.patch(chunk, reader.chunk(chunk.number)))
                if directory is not None:
                    stored = directory.offsets[chunk.number + 1] - directory.offsets[chunk.number]
                    self._tally.add(fetched=int(stored))
        self._add_sums(pieces, files.sizes, work.crcs)
        self._on_bytes(pieces.total_bytes)

    def _directory(self, number: int) -> PackDirectory | None:
        """Of the very pack that the layer names; None when only reading it can say what is wrong."""
        identity, digest = self._contents.packs[number]
        found = (opened.directory for opened in self._repository.generations(identity))
        return next((directory for directory in found if directory.digest() == digest), None)


class _PackWork:
    """The pieces of one pack, compared and put right chunk by chunk. One thread.

    ``crcs`` are those of the pieces as they are then.
    """

    def __init__(
        self,
        pieces: Pieces,
        pages: CheckedPages,
        checker: PageChecker | None,
        writer: FileWriter,
        paths: list[str],
        page_size: int,
    ) -> None:
        columns = (pieces.start, pieces.end, pieces.file, pieces.offset)
        self._pieces = list(zip(*(column.tolist() for column in columns), strict=True))
        self._pages = pages
        self._checker = checker
        self._writer = writer
        self._paths = paths
        self._page_size = page_size
        self._buffer = memoryview(bytearray(MAX_CHUNK_BYTES))
        self.crcs = np.zeros(len(pieces.chunk), np.uint32)

    def is_equal(self, chunk: _Chunk, directory: PackDirectory, key: bytes) -> bool:
        """Whether the files hold the chunk's bytes. Raises: IntegrityError (of its pages), TargetUnfit, OSError."""
        raw = self._buffer[: chunk.size]
        for start, end, file, offset in self._pieces[chunk.first : chunk.end]:
            self._read(file, offset, raw[start:end])
        if fingerprint(key, raw) != directory.fingerprint(chunk.number):
            return False
        self._witness(chunk, raw)
        return True

    def patch(self, chunk: _Chunk, data: bytes) -> int:
        """Write the pages of a fetched chunk that differ; returns their bytes.

        Raises: IntegrityError, TargetUnfit, OSError.
        """
        raw = memoryview(data)
        written = 0
        for start, end, file, offset in self._pieces[chunk.first : chunk.end]:
            if end > len(raw):
                raise IntegrityError(f"read pack: chunk {chunk.number} is shorter than the backup says")
            present = self._buffer[: end - start]
            self._read(file, offset, present)
            wanted = raw[start:end]
            for first, last in differing_runs(present, wanted, self._page_size):
                self._writer.write(file, offset + first, wanted[first:last])
                written += last - first
        self._witness(chunk, raw)
        return written

    def _read(self, file: int, offset: int, view: memoryview) -> None:
        if not self._writer.read_into(file, offset, view):
            raise TargetUnfit(
                f"restore backup: {self._paths[file]} became shorter while it was compared",
                hint="Stop whatever else works in the data directory, then run the command again.",
            )

    def _witness(self, chunk: _Chunk, raw: memoryview) -> None:
        if self._checker is not None:
            self._pages.hand_over(chunk.number, raw, self._checker)
        for number in range(chunk.first, chunk.end):
            start, end, _, _ = self._pieces[number]
            self.crcs[number] = checksum(raw[start:end])


def _in_order(pieces: Pieces) -> Pieces:
    """By chunk and place in it, each piece a run of its own."""
    order = np.lexsort((pieces.start, pieces.chunk))
    columns = {one.name: getattr(pieces, one.name)[order] for one in fields(pieces)}
    return Pieces(**columns | {"last": np.ones(len(order), np.bool_)})


def _chunks(pieces: Pieces, directory: PackDirectory | None) -> Iterator[_Chunk]:
    chunk, start, end = pieces.chunk, pieces.start, pieces.end
    firsts = np.append(0, np.flatnonzero(np.diff(chunk)) + 1)
    ends = np.append(firsts[1:], len(chunk))
    numbers = chunk[firsts]
    sizes = np.zeros(len(firsts), np.int64)
    if directory is not None:
        known = numbers < len(directory.raw)
        sizes[known] = directory.raw[numbers[known]]
    apart = np.zeros(len(chunk), np.bool_)  # pieces that do not begin where the one before ends
    apart[1:] = start[1:] != end[:-1]
    apart[firsts] = start[firsts] != 0
    whole = ~np.logical_or.reduceat(apart, firsts) & (end[ends - 1] == sizes)
    columns = (numbers, firsts, ends, sizes, whole)
    return (_Chunk(*one) for one in zip(*(column.tolist() for column in columns), strict=True))
