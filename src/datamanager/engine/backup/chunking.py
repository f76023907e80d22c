"""Cutting a stream of files into chunks, in batches that travel through the pipeline together.

whole files     grid chunks: at most 32 pages of one file from a page number divisible by 32, so that a later full
                read meets the same chunks again; the stream's bytes are copied once, into the buffer of a batch
changed pages   of a server's increment: gathered, 32 at a time, whatever files they belong to
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from datamanager.base.errors import IncrementRefused, IntegrityError
from datamanager.base.units import MIB, Lsn
from datamanager.engine.backup.received import ReceivedFiles
from datamanager.postgres.incremental import StubParser, is_visibility_map, without_parent
from datamanager.postgres.page import relation_segment
from datamanager.postgres.source import FileReceiver, SourceStart
from datamanager.repository.format import PAGES_PER_CHUNK
from datamanager.repository.known import ChunkPlace, ParentFile, ParentFiles
from datamanager.repository.layers.layer import FileKind

# 1 MiB a batch makes one handover between threads cost little beside 4 chunks of work; 6 batches stay in the
# processor's cache between the threads (12 of 2 MiB: 5 % slower).
BATCH_BYTES = MIB
BATCHES = 6
BATCH_ITEMS = 4096  # directories and empty files fill no buffer; a million of them would otherwise be one batch
BACKUP_LABEL = b"backup_label"


@dataclass(slots=True, eq=False)
class FileBegun:
    """A file or directory. ``number`` is its place in the new layer, -1 while nothing of it is worth a place there."""

    path: bytes
    kind: FileKind
    mode: int
    parent: ParentFile | None
    judged: bool = False  # pages of a relation's main fork, whose LSNs tell when they were last changed
    number: int = -1


@dataclass(slots=True)
class Chunk:
    """``raw`` bytes of a file from ``first_page``; what the workers find out is filled in by them."""

    file: FileBegun
    raw: memoryview
    first_page: int
    parent_pack: int  # number in the parent's pack table, -1 if the parent has no whole chunk at this place
    parent_chunk: int
    fingerprint: bytes = b""
    crc32c: int = 0
    unchanged: bool = False  # the parent holds the same
    changed: npt.NDArray[np.int64] | None = None  # numbers of the only pages that differ from the parent's
    place: ChunkPlace | None = None  # stored already
    zeros: bool = False
    compressed: bytes = b""


@dataclass(slots=True)
class Gathered:
    """Whole pages of any files; ``pages`` says whose each is."""

    raw: memoryview
    pages: list[tuple[FileBegun, int]]
    fingerprint: bytes = b""
    compressed: bytes = b""


@dataclass(slots=True)
class FileEnded:
    """``kept`` in pages: None for a file that was sent whole."""

    size: int
    kept: int | None = None


Item = FileBegun | Chunk | Gathered | FileEnded


@dataclass(slots=True)
class Batch:
    """Items in stream order; ``done`` is set when every chunk among them has been worked on."""

    buffer: bytearray
    items: list[Item] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)
    stream_bytes: int = 0


class Gatherer:
    """Collects pages into chunks of 32. Args: emit - takes each chunk once it is full."""

    def __init__(self, page_size: int, emit: Callable[[Gathered], None]) -> None:
        self._size = page_size
        self._emit = emit
        self._new()

    def add(self, file: FileBegun, page: int, data: memoryview) -> None:
        """One page; a short one at a file's end is filled up with zeros."""
        start = len(self._pages) * self._size
        self._raw[start : start + len(data)] = data
        self._pages.append((file, page))
        if len(self._pages) == PAGES_PER_CHUNK:
            self.flush()

    def flush(self) -> None:
        if self._pages:
            self._emit(Gathered(self._raw[: len(self._pages) * self._size], self._pages))
            self._new()

    def _new(self) -> None:
        self._raw = memoryview(bytearray(self._size * PAGES_PER_CHUNK))
        self._pages: list[tuple[FileBegun, int]] = []


class ChunkCutter(FileReceiver):
    """Receives files and hands over batches. Used by one thread.

    Args:
        page_size: bytes of a page; every file is cut by it, also those that hold no pages.
        parent: what the parent holds, or None.
        increment: the server sends changed pages, against that very parent.
        received: told of what the server sent in another form than it is stored.
        take_buffer: gives a free buffer of BATCH_BYTES, waiting for one if need be.
        hand_over: takes a filled batch, waiting while too many are under way.
        on_start: told what the source knows before its first file.
    """

    def __init__(
        self,
        page_size: int,
        parent: ParentFiles | None,
        increment: bool,
        received: ReceivedFiles,
        take_buffer: Callable[[], bytearray],
        hand_over: Callable[[Batch], None],
        on_start: Callable[[SourceStart], None],
    ) -> None:
        self._page_size = page_size
        self._chunk_bytes = page_size * PAGES_PER_CHUNK
        self._parent = parent
        self._increment = increment
        self._received = received
        self._take_buffer = take_buffer
        self._hand_over = hand_over
        self._on_start = on_start
        self._begun = self._end = 0
        self._new_batch()
        self._gatherer = Gatherer(page_size, self._emit)
        self._grid: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None
        self._file = FileBegun(b"", FileKind.REGULAR, 0, None)
        self._stub: StubParser | None = None
        self._label: bytearray | None = None
        self._label_mode = 0
        self._number = 0
        self._size = self._expected = 0

    def start(self, start: SourceStart) -> None:
        self._on_start(start)

    def directory(self, path: bytes, mode: int) -> None:
        self._begin(path, FileKind.DIRECTORY, mode)
        self._batch.items.append(FileEnded(0))
        self._bound_items()

    def begin_file(self, path: bytes, mode: int, size: int) -> None:
        if self._increment:
            target = StubParser.target(path)
            if target is not None:
                self._begin_stub(path, target, mode)
                return
            if path == BACKUP_LABEL:
                self._label, self._label_mode = bytearray(), mode
                return
        self._begin_whole(path, mode, size)

    def _begin_whole(self, path: bytes, mode: int, size: int) -> None:
        file = self._begin(path, FileKind.REGULAR, mode)
        self._number = self._size = 0
        self._expected = size
        known = file.parent if size else None
        pages = -(-size // self._page_size)
        self._grid = self._parent.grid(known, pages) if known is not None and self._parent is not None else None

    def _begin(self, path: bytes, kind: FileKind, mode: int) -> FileBegun:
        parent = self._parent.find(path) if self._parent is not None else None
        self._file = FileBegun(path, kind, mode, parent)
        if parent is not None and kind is FileKind.REGULAR:
            self._file.judged = b"_" not in path.rpartition(b"/")[2] and relation_segment(path) is not None
        self._batch.items.append(self._file)
        return self._file

    def write(self, data: memoryview) -> None:
        if self._stub is not None:
            self._stub.feed(data)
            return
        if self._label is not None:
            self._label += data
            return
        position, end = 0, len(data)
        after = self._end + end
        if after < self._begun + self._chunk_bytes:  # nearly every piece: the middle of a chunk
            self._view[self._end : after] = data
            self._end = after
            return
        while position < end:
            room = self._begun + self._chunk_bytes - self._end
            size = min(room, end - position)
            self._view[self._end : self._end + size] = data[position : position + size]
            self._end += size
            position += size
            if size == room:
                self._close_chunk()

    def end_file(self) -> None:
        if self._stub is not None:
            self._end_stub(self._stub)
            return
        if self._label is not None:
            self._end_label(bytes(self._label))
            return
        if self._end > self._begun:
            self._close_chunk()
        if self._size != self._expected:
            raise IntegrityError(f"read from source: a file has {self._size} of {self._expected} bytes")
        self._batch.items.append(FileEnded(self._size))
        self._bound_items()

    def finish(self) -> None:
        """Hand over what is left."""
        self._gatherer.flush()
        self._hand_over(self._batch)

    def add_file(self, path: bytes, mode: int, content: bytes) -> None:
        """A whole file that did not come from the stream as it is stored (the server's manifest, the label)."""
        self._begin_whole(path, mode, len(content))
        self.write(memoryview(content))
        self.end_file()

    # -- a server's increment ---------------------------------------------------------------------------------------
    def _begin_stub(self, path: bytes, target: bytes, mode: int) -> None:
        parent = self._parent.find(target) if self._parent is not None else None
        if is_visibility_map(target):
            raise IncrementRefused(f"read increment: {path.decode(errors='replace')}: it was to come whole")
        pages = None if parent is None else parent.whole_pages(self._page_size)
        self._file = FileBegun(target, FileKind.REGULAR, mode, parent)
        self._stub = StubParser(path, pages, self._page_size, self._add_page)

    def _add_page(self, page: int, data: memoryview) -> None:
        self._gatherer.add(self._file, page, data)

    def _end_stub(self, stub: StubParser) -> None:
        self._stub = None
        size, kept = stub.finish()
        self._received.sent(stub.path, stub.bytes, stub.crc32c)
        self._received.stored(self._file.path, size)
        parent = self._file.parent
        if stub.blocks == 0 and parent is not None and (parent.size, parent.mode) == (size, self._file.mode):
            return  # nothing of it changed: the parent's entry goes on
        self._batch.items += [self._file, FileEnded(size, kept)]
        self._bound_items()

    def _end_label(self, sent: bytes) -> None:
        self._label = None
        self._received.sent(BACKUP_LABEL, len(sent), crc32c(sent))
        if self._parent is None:
            raise IntegrityError("read increment: it has no parent")
        parent = self._parent.manifest
        label = without_parent(sent, Lsn.parse(parent.start_lsn), parent.timeline)
        self._received.stored(BACKUP_LABEL, len(label))
        self.add_file(BACKUP_LABEL, self._label_mode, label)

    def _emit(self, chunk: Gathered) -> None:
        self._batch.items.append(chunk)
        self._batch.stream_bytes += len(chunk.raw)
        self._bound_items()

    # -- batches ----------------------------------------------------------------------------------------------------
    def _close_chunk(self) -> None:
        raw = self._view[self._begun : self._end]
        pack = chunk = -1
        if self._grid is not None:
            pack, chunk = int(self._grid[0][self._number]), int(self._grid[1][self._number])
        self._batch.items.append(Chunk(self._file, raw, self._number * PAGES_PER_CHUNK, pack, chunk))
        self._number += 1
        self._size += len(raw)
        self._batch.stream_bytes += len(raw)
        self._begun = self._end
        if len(self._view) - self._end < self._chunk_bytes:
            self._turn()

    def _bound_items(self) -> None:
        # Gathered chunks have memory of their own, which a batch bounds like the bytes in its buffer.
        if len(self._batch.items) >= BATCH_ITEMS or self._batch.stream_bytes >= BATCH_BYTES:
            self._turn()

    def _turn(self) -> None:
        self._hand_over(self._batch)
        self._new_batch()

    def _new_batch(self) -> None:
        self._batch = Batch(self._take_buffer())
        self._view = memoryview(self._batch.buffer)
        self._begun = self._end = 0
