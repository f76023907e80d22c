"""Writing the files of a backup: packs are read once each, in any order, and every page is written once.

    layout   engine/restore/layout.py: every directory and file at its final size, so that zero pages cost nothing
    fetch    packs in parallel; a whole pack when more than half of it is wanted, else ranges
    write    engine/restore/pieces.py: pages that follow each other in a file by one call
    check    the CRC-32C of what was written adds up by file and is the one the server sent; a file put together from
             increments has none, so each of its pages must have a right page checksum instead

Source: ``docs/format.md`` decisions 15 and 17.
"""

from __future__ import annotations

import os
import threading
from array import array
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from datamanager.base.crc import advance_each, checksum, of_zeros_each
from datamanager.base.errors import IntegrityError
from datamanager.base.pipeline import Channel, StopToken, TaskGroup
from datamanager.engine.restore.file_writer import FileWriter
from datamanager.engine.restore.layout import Destination, Layout
from datamanager.engine.restore.page_check import PageChecker, PageRules
from datamanager.engine.restore.pieces import CheckedPages, FileFacts, Pieces, cut_rows
from datamanager.repository.layers.contents import Contents
from datamanager.repository.packs.chunk_reader import ChunkReader
from datamanager.repository.repository import Repository

_BATCH_ROWS = 1_000_000  # 100 MB while they are sorted; a fresh full of 1 TiB has 11,000

I64 = npt.NDArray[np.int64]


class Materializer:
    """Writes one backup to a destination. Used once.

    Args:
        on_bytes: told of bytes written, from several threads.
        rules: which pages must have a right checksum; None checks none.
        layout: makes the files; by default in a directory that has none.
    """

    def __init__(
        self,
        repository: Repository,
        contents: Contents,
        destination: Destination,
        threads: int,
        on_bytes: Callable[[int], None],
        rules: PageRules | None = None,
        layout: Layout | None = None,
    ) -> None:
        self._repository = repository
        self._contents = contents
        self._layout = layout or Layout(destination)
        self._threads = threads
        self._on_bytes = on_bytes
        self._rules = rules
        self._lock = threading.Lock()
        self._sums = np.empty(0, np.uint32)  # of each file: its CRC-32C less that of as many zeros

    def run(self, stop: StopToken) -> int:
        """Write everything; returns the number of files.

        Raises: IntegrityError naming what is damaged, ObjectMissing, StoreError, OSError of the target, Cancelled.
        """
        for entry in self._contents.files():
            self._layout.add(entry)
            if self._layout.rows >= _BATCH_ROWS:
                self._fetch(stop)
            stop.check()
        self._fetch(stop)
        self._check_sums()
        self._layout.close_up()
        return len(self._layout.paths)

    def written(self) -> Iterator[tuple[bytes, int, int]]:
        """Path, size and CRC-32C of every file as it was written; after ``run``."""
        return zip(self._layout.names, self._layout.sizes, self._sums.tolist(), strict=True)

    def _fetch(self, stop: StopToken) -> None:
        packs = self._layout.take_by_pack()
        files = self._facts()
        self._sums = np.append(self._sums, np.zeros(len(files.sizes) - len(self._sums), np.uint32))
        with TaskGroup(stop) as group:
            channel: Channel[I64] = group.channel(2 * self._threads)

            def work() -> None:
                checker = None if self._rules is None else PageChecker(self._rules, self._layout.names)
                with self._open_files() as writer:
                    for rows in channel:
                        self._write_pack(rows, files, writer, checker, group)
                if checker is not None:
                    checker.flush()

            for number in range(self._threads):
                group.start(f"write-{number}", work)
            for rows in packs:
                channel.put(rows)
            channel.close()

    def _open_files(self) -> FileWriter:
        return FileWriter(self._layout.paths)

    def _facts(self) -> FileFacts:
        sizes = np.array(self._layout.sizes, np.int64)
        first_blocks = np.full(len(sizes), -1, np.int64)
        if self._rules is not None:
            for number in np.flatnonzero(self._composed()).tolist():
                block = self._rules.first_block(self._layout.names[number])
                first_blocks[number] = -1 if block is None else block
        return FileFacts(sizes, first_blocks)

    def _composed(self) -> npt.NDArray[np.bool_]:
        return np.frombuffer(bytes(self._layout.composed), np.bool_)

    def _write_pack(
        self, rows: I64, files: FileFacts, writer: FileWriter, checker: PageChecker | None, group: TaskGroup
    ) -> None:
        page_size = self._contents.page_size
        pieces = cut_rows(rows, files.sizes, page_size)
        reader = ChunkReader(self._repository, self._contents.packs[int(rows[0, 0])], rows[:, 1], rows[:, 4])
        pages = CheckedPages(pieces, files, page_size)

        def chunk(number: int) -> bytes:
            group.check()
            raw = reader.chunk(number)
            if checker is not None:
                pages.hand_over(number, raw, checker)
            return raw

        self._add_sums(pieces, files.sizes, _write_pieces(pieces, chunk, writer))
        self._on_bytes(pieces.total_bytes)

    def _add_sums(self, pieces: Pieces, sizes: I64, crcs: npt.NDArray[np.uint32]) -> None:
        """Add the CRC-32C of each run to that of its file.

        Less that of as many zeros, a CRC-32C is linear: a run adds its own, advanced by what follows it in the file,
        whatever that is. So runs come in any order, pages that nobody writes count as zeros, and nothing is kept.
        """
        file, begin, end = pieces.runs()
        parts = advance_each(crcs ^ of_zeros_each(end - begin), sizes[file] - end)
        with self._lock:
            np.bitwise_xor.at(self._sums, file, parts)

    def _check_sums(self) -> None:
        """Raises: IntegrityError, naming the first file that is not what the server sent."""
        self._sums ^= of_zeros_each(np.array(self._layout.sizes, np.int64))
        wrong = np.flatnonzero((self._sums != np.array(self._layout.crcs, np.uint32)) & ~self._composed())
        if len(wrong):
            name = os.fsdecode(self._layout.names[int(wrong[0])])
            raise IntegrityError(f"restore {name}: what was written is not what the server sent")


def _write_pieces(pieces: Pieces, chunk: Callable[[int], bytes], writer: FileWriter) -> npt.NDArray[np.uint32]:
    """Write pieces run by run; returns the CRC-32C of each run.

    Args: chunk - opens a chunk by its number, in rising order.
    Raises: IntegrityError, OSError.
    """
    crcs = array("I")
    view, opened = memoryview(b""), -1
    before: list[memoryview] = []
    crc = begun = 0
    for number, start, end, file, offset, last in pieces:
        if number != opened:
            view, opened = memoryview(chunk(number)), number
        if end > len(view):
            raise IntegrityError(f"read pack: chunk {number} is shorter than the backup says")
        piece = view[start:end]
        crc = checksum(piece, crc)
        if not last:
            begun = begun if before else offset
            before.append(piece)
            continue
        if before:
            writer.write_joined(file, begun, [*before, piece])
            before = []
        else:
            writer.write(file, offset, piece)
        crcs.append(crc)
        crc = 0
    return np.frombuffer(crcs, np.uint32)
