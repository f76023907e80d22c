"""Cutting a stream of files into grid chunks, in batches that travel through the pipeline together.

A chunk is at most 32 pages of one file, on a fixed grid (page number mod 32 = 0), so that a later full read meets the
same chunks again. The stream's bytes are copied once, into the buffer of a batch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from datamanager.base.errors import IntegrityError
from datamanager.base.units import MIB
from datamanager.postgres.source import FileReceiver, SourceStart
from datamanager.repository.format import PAGES_PER_CHUNK
from datamanager.repository.known import ChunkPlace, ParentPlaces
from datamanager.repository.layer import FileKind

# 1 MiB a batch makes one handover between threads cost little beside 4 chunks of work; 6 batches stay in the
# processor's cache between the threads (12 of 2 MiB: 5 % slower).
BATCH_BYTES = MIB
BATCHES = 6
BATCH_ITEMS = 4096  # directories and empty files fill no buffer; a million of them would otherwise be one batch


@dataclass(slots=True)
class FileBegun:
    path: bytes
    kind: FileKind
    mode: int


@dataclass(slots=True)
class Chunk:
    """``raw`` bytes of a file from ``first_page``; what the workers find out is filled in by them."""

    raw: memoryview
    first_page: int
    parent_pack: int  # number in the parent's pack table, -1 if the parent has no whole chunk at this place
    parent_chunk: int
    fingerprint: bytes = b""
    crc32c: int = 0
    place: ChunkPlace | None = None  # stored already
    zeros: bool = False
    compressed: bytes = b""


@dataclass(slots=True)
class FileEnded:
    size: int


Item = FileBegun | Chunk | FileEnded


@dataclass(slots=True)
class Batch:
    """Items in stream order; ``done`` is set when every chunk among them has been worked on."""

    buffer: bytearray
    items: list[Item] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)
    stream_bytes: int = 0


class ChunkCutter(FileReceiver):
    """Receives files and hands over batches. Used by one thread.

    Args:
        page_size: bytes of a page; every file is cut by it, also those that hold no pages.
        parent: what the parent holds, or None.
        take_buffer: gives a free buffer of BATCH_BYTES, waiting for one if need be.
        hand_over: takes a filled batch, waiting while too many are under way.
        on_start: told what the source knows before its first file.
    """

    def __init__(
        self,
        page_size: int,
        parent: ParentPlaces | None,
        take_buffer: Callable[[], bytearray],
        hand_over: Callable[[Batch], None],
        on_start: Callable[[SourceStart], None],
    ) -> None:
        self._chunk_bytes = page_size * PAGES_PER_CHUNK
        self._parent = parent
        self._take_buffer = take_buffer
        self._hand_over = hand_over
        self._on_start = on_start
        self._begun = self._end = 0
        self._new_batch()
        self._places: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None
        self._number = 0
        self._size = self._expected = 0

    def start(self, start: SourceStart) -> None:
        self._on_start(start)

    def directory(self, path: bytes, mode: int) -> None:
        self._batch.items += [FileBegun(path, FileKind.DIRECTORY, mode), FileEnded(0)]
        self._bound_items()

    def begin_file(self, path: bytes, mode: int, size: int) -> None:
        self._batch.items.append(FileBegun(path, FileKind.REGULAR, mode))
        self._number = self._size = 0
        self._expected = size
        chunks = -(-size // self._chunk_bytes)
        self._places = self._parent.of_file(path, chunks) if self._parent and chunks else None

    def write(self, data: memoryview) -> None:
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
        if self._end > self._begun:
            self._close_chunk()
        if self._size != self._expected:
            raise IntegrityError(f"read from source: a file has {self._size} of {self._expected} bytes")
        self._batch.items.append(FileEnded(self._size))
        self._bound_items()

    def finish(self) -> None:
        """Hand over what is left."""
        self._hand_over(self._batch)

    def add_file(self, path: bytes, mode: int, content: bytes) -> None:
        """A whole file that did not come from the stream (the server's manifest)."""
        self.begin_file(path, mode, len(content))
        self.write(memoryview(content))
        self.end_file()

    def _close_chunk(self) -> None:
        raw = self._view[self._begun : self._end]
        pack = chunk = -1
        if self._places is not None:
            pack, chunk = int(self._places[0][self._number]), int(self._places[1][self._number])
        self._batch.items.append(Chunk(raw, self._number * PAGES_PER_CHUNK, pack, chunk))
        self._number += 1
        self._size += len(raw)
        self._batch.stream_bytes += len(raw)
        self._begun = self._end
        if len(self._view) - self._end < self._chunk_bytes:
            self._hand_over(self._batch)
            self._new_batch()

    def _bound_items(self) -> None:
        if len(self._batch.items) >= BATCH_ITEMS:
            self._hand_over(self._batch)
            self._new_batch()

    def _new_batch(self) -> None:
        self._batch = Batch(self._take_buffer())
        self._view = memoryview(self._batch.buffer)
        self._begun = self._end = 0
