"""The working half of the backup pipeline: batches in, stored chunks and layer rows out.

    cutter ──► batches ──► N workers: CRC-32C, fingerprint, compare with the parent, compress
                      └──► packer, in stream order: rows for what changed, the rest of the layer, packs

A slow store fills the buffers of PackStream, which stops the packer, then the workers, then the reading thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import zstandard

from datamanager.base.crc import checksum, combine
from datamanager.base.pipeline import Channel, TaskGroup, yield_to_others
from datamanager.engine.backup.chunking import (
    BATCH_BYTES,
    BATCHES,
    Batch,
    Chunk,
    FileBegun,
    FileEnded,
    Gathered,
    Gatherer,
)
from datamanager.engine.backup.comparing import PageComparer
from datamanager.engine.backup.received import ReceivedFiles
from datamanager.postgres.page import relation_segment
from datamanager.repository.format import PAGES_PER_CHUNK, ZERO_PACK
from datamanager.repository.known import LeftoverChunks
from datamanager.repository.layers.builder import LayerBuilder
from datamanager.repository.layers.layer import FileFlag, FileKind
from datamanager.repository.packs.pack import fingerprint
from datamanager.repository.packs.stream import PackStream

# A chunk of which so much changed is stored whole: the next full read recognizes it without reading it back.
_WHOLE_FROM = 0.75


@dataclass(slots=True)
class PackingCounts:
    """Bytes of the stream by what became of them, and bytes stored for them.

    ``reused`` was stored before: ``resumed`` of it by an interrupted backup, the rest stands in the parent.
    """

    read: int = 0
    zeros: int = 0
    reused: int = 0
    resumed: int = 0
    compressed: int = 0
    pages: int = 0  # of relations, that differ from the parent's or are new


class Packer:
    """Joins cutter, workers and PackStream. Made once a backup; its threads belong to ``group``.

    Args:
        comparer: what the parent holds; None for a first backup.
        level: zstd level, 1 to 19.
        threads: how many compress.
        on_batch: told of the stream bytes of each batch once they are packed.
    """

    def __init__(
        self,
        group: TaskGroup,
        stream: PackStream,
        layer: LayerBuilder,
        received: ReceivedFiles,
        fingerprint_key: bytes,
        page_size: int,
        comparer: PageComparer | None,
        leftovers: LeftoverChunks,
        level: int,
        threads: int,
        on_batch: Callable[[int], None],
    ) -> None:
        self._group = group
        self._stream = stream
        self._layer = layer
        self._received = received
        self._key = fingerprint_key
        self._page_size = page_size
        self._comparer = comparer
        self._leftovers = leftovers
        self._level = level
        self._on_batch = on_batch
        self.counts = PackingCounts()
        self._file = FileBegun(b"", FileKind.REGULAR, 0, None)
        self._crc = 0  # of the present file so far
        self._gatherer = Gatherer(page_size, self._compress_gathered)
        self._compressor = zstandard.ZstdCompressor(level=level)  # the packer's own
        self._free: Channel[bytearray] = group.channel(BATCHES)
        self._buffers = iter(self._free)
        self._made = 0
        self._work: Channel[Batch] = group.channel(BATCHES)
        self._ordered: Channel[Batch] = group.channel(BATCHES)
        for number in range(threads):
            group.start(f"compress-{number}", self._compress)
        group.start("pack", self._pack)

    # -- the cutter's side ------------------------------------------------------------------------------------------
    def take_buffer(self) -> bytearray:
        if self._made < BATCHES:
            self._made += 1
            return bytearray(BATCH_BYTES)
        return next(self._buffers)

    def hand_over(self, batch: Batch) -> None:
        self._ordered.put(batch)
        self._work.put(batch)

    def close(self) -> None:
        """No more batches; the group's end waits for what is under way."""
        self._work.close()
        self._ordered.close()

    # -- workers ----------------------------------------------------------------------------------------------------
    def _compress(self) -> None:
        yield_to_others()
        compressor = zstandard.ZstdCompressor(level=self._level)
        zeros: dict[int, bytes] = {}
        for batch in self._work:
            for item in batch.items:
                if isinstance(item, Chunk):
                    self._work_on(item, compressor, zeros)
                elif isinstance(item, Gathered):
                    self._seal(item, compressor)
            batch.done.set()

    def _work_on(self, chunk: Chunk, compressor: zstandard.ZstdCompressor, zeros: dict[int, bytes]) -> None:
        length = len(chunk.raw)
        chunk.crc32c = checksum(chunk.raw)
        print_ = chunk.fingerprint = fingerprint(self._key, chunk.raw)
        if length not in zeros:
            zeros[length] = fingerprint(self._key, bytes(length))
        chunk.zeros = print_ == zeros[length]
        if chunk.file.parent is not None and self._comparer is not None and self._known(chunk, self._comparer):
            return
        if chunk.zeros:
            return
        chunk.place = self._leftovers.find(print_)
        if chunk.place is None:
            chunk.compressed = compressor.compress(chunk.raw)

    @staticmethod
    def _known(chunk: Chunk, comparer: PageComparer) -> bool:
        """Whether the parent holds this chunk, or enough of it that only the other pages are stored."""
        length = len(chunk.raw)
        if chunk.parent_pack >= 0 and comparer.parent.holds(
            chunk.parent_pack, chunk.parent_chunk, chunk.fingerprint, length
        ):
            chunk.unchanged = True
            comparer.count(chunk)
            return True
        changed = comparer.changed_pages(chunk)
        if changed is None:
            return False
        chunk.unchanged = not len(changed)
        if chunk.zeros or len(changed) >= _WHOLE_FROM * -(-length // comparer.page_size):
            return chunk.unchanged
        chunk.changed = changed
        return True

    def _seal(self, chunk: Gathered, compressor: zstandard.ZstdCompressor) -> None:
        chunk.fingerprint = fingerprint(self._key, chunk.raw)
        chunk.compressed = compressor.compress(chunk.raw)

    # -- the packer -------------------------------------------------------------------------------------------------
    def _pack(self) -> None:
        for batch in self._ordered:
            while not batch.done.wait(0.1):
                self._group.check()
            for item in batch.items:
                if isinstance(item, Chunk):
                    self._place(item)
                elif isinstance(item, FileBegun):
                    self._file, self._crc = item, 0
                elif isinstance(item, FileEnded):
                    self._end_file(item)
                else:
                    self.counts.read += len(item.raw)
                    self._place_gathered(item)
            batch.items.clear()
            self._on_batch(batch.stream_bytes)
            self._free.put(batch.buffer)
        self._gatherer.flush()
        self._stream.finish()

    def _place(self, chunk: Chunk) -> None:
        length = len(chunk.raw)
        self.counts.read += length
        self._crc = combine(self._crc, chunk.crc32c, length)
        if chunk.unchanged and chunk.zeros:
            self.counts.zeros += length
        elif chunk.unchanged:
            self.counts.reused += length
        elif chunk.changed is not None:
            size = self._page_size
            for page in chunk.changed.tolist():
                data = chunk.raw[page * size : (page + 1) * size]
                self._gatherer.add(chunk.file, chunk.first_page + page, data)
                length -= len(data)
            self.counts.reused += length
        else:
            self._place_whole(chunk, length)

    def _place_whole(self, chunk: Chunk, length: int) -> None:
        pages = -(-length // self._page_size)
        if relation_segment(chunk.file.path) is not None:
            self.counts.pages += pages
        if chunk.zeros:
            self.counts.zeros += length
            if chunk.file.parent is not None:
                self._layer.add_row(chunk.first_page, pages, ZERO_PACK, 0, self._number(chunk.file))
            return
        if chunk.place is not None:
            pack, number = chunk.place.pack, chunk.place.chunk
            self.counts.resumed += length
            self.counts.reused += length
        else:
            pack, number = self._stream.add(chunk.compressed, length, chunk.fingerprint)
            self.counts.compressed += len(chunk.compressed)
        position = number * PAGES_PER_CHUNK
        self._layer.add_row(chunk.first_page, pages, self._layer.pack_number(pack), position, self._number(chunk.file))

    def _compress_gathered(self, chunk: Gathered) -> None:
        """Pages that the packer itself gathered."""
        self._seal(chunk, self._compressor)
        self._place_gathered(chunk)

    def _place_gathered(self, chunk: Gathered) -> None:
        pack, number = self._stream.add(chunk.compressed, len(chunk.raw), chunk.fingerprint)
        self.counts.compressed += len(chunk.compressed)
        self.counts.pages += len(chunk.pages)
        pack_number, position = self._layer.pack_number(pack), number * PAGES_PER_CHUNK
        for place, (file, page) in enumerate(chunk.pages):
            self._layer.add_row(page, 1, pack_number, position + place, self._number(file))

    def _number(self, file: FileBegun) -> int:
        """The file's number in the new layer, which it enters now at the latest."""
        if file.number < 0:
            file.number = self._layer.begin_file(file.path, file.kind, file.mode)
        return file.number

    def _end_file(self, end: FileEnded) -> None:
        """Enter the file, unless everything about it is as in the parent."""
        file, parent = self._file, self._file.parent
        if end.kept is not None:  # of an increment: nobody knows its CRC
            self._layer.end_file(end.size, kept=end.kept, flags=FileFlag.COMPOSED, file=self._number(file))
            return
        if file.kind is FileKind.DIRECTORY:
            self._received.directories += 1
        else:
            self._received.whole(file.path, end.size, self._crc)
        alike = parent is not None and (parent.kind, parent.mode, parent.size, parent.crc32c) == (
            file.kind,
            file.mode & 0o7777,
            end.size,
            self._crc,
        )
        if parent is not None and alike and file.number < 0:
            return
        pages = min(-(-parent.size // self._page_size), -(-end.size // self._page_size)) if parent is not None else 0
        self._layer.end_file(end.size, kept=pages, crc32c=self._crc, file=self._number(file))
