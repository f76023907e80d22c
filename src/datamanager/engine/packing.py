"""From batches of chunks to stored packs and a layer: many threads compress, one packs in stream order.

    cutter -> [workers: fingerprint, known?, compress] -> packer -> PackStream -> store

The order of the stream is kept, so that a file's rows stay unbroken. Buffers circulate between cutter and packer, which
bounds memory and slows the stream when the store is slow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import zstandard
from crc32c import crc32c

from datamanager.base.crc import combine
from datamanager.base.pipeline import Channel, TaskGroup, yield_to_others
from datamanager.engine.chunking import BATCH_BYTES, BATCHES, Batch, Chunk, FileBegun, FileEnded
from datamanager.repository.format import PAGES_PER_CHUNK
from datamanager.repository.known import LeftoverChunks, ParentPlaces
from datamanager.repository.layer import LayerBuilder
from datamanager.repository.pack import fingerprint
from datamanager.repository.pack_stream import PackStream

# 10 us a chunk: giving the interpreter's lock away and taking it back costs more (5 % of a full backup).
_KEEP_LOCK = 0


@dataclass(slots=True)
class PackingCounts:
    """Bytes of the stream by what became of them, and bytes stored for them."""

    read: int = 0
    zeros: int = 0
    reused: int = 0
    compressed: int = 0


class Packer:
    """Joins cutter, workers and PackStream. Made once a backup; its threads belong to ``group``.

    Args:
        level: zstd level, 1 to 19.
        threads: how many compress.
        on_batch: told of the stream bytes of each batch once they are packed.
    """

    def __init__(
        self,
        group: TaskGroup,
        stream: PackStream,
        layer: LayerBuilder,
        fingerprint_key: bytes,
        page_size: int,
        parent: ParentPlaces | None,
        leftovers: LeftoverChunks,
        level: int,
        threads: int,
        on_batch: Callable[[int], None],
    ) -> None:
        self._group = group
        self._stream = stream
        self._layer = layer
        self._key = fingerprint_key
        self._page_size = page_size
        self._parent = parent
        self._leftovers = leftovers
        self._level = level
        self._on_batch = on_batch
        self.counts = PackingCounts()
        self._crc = 0  # of the present file so far
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
            batch.done.set()

    def _work_on(self, chunk: Chunk, compressor: zstandard.ZstdCompressor, zeros: dict[int, bytes]) -> None:
        length = len(chunk.raw)
        chunk.crc32c = crc32c(chunk.raw, 0, _KEEP_LOCK)
        print_ = chunk.fingerprint = fingerprint(self._key, chunk.raw)
        if length not in zeros:
            zeros[length] = fingerprint(self._key, bytes(length))
        if print_ == zeros[length]:
            chunk.zeros = True
            return
        if chunk.parent_pack >= 0 and self._parent is not None:
            chunk.place = self._parent.holds(chunk.parent_pack, chunk.parent_chunk, print_, length)
        if chunk.place is None:
            chunk.place = self._leftovers.find(print_)
        if chunk.place is None:
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
                    self._layer.begin_file(item.path, item.kind, item.mode)
                    self._crc = 0
                elif isinstance(item, FileEnded):
                    self._layer.end_file(item.size, crc32c=self._crc)
            batch.items.clear()
            self._on_batch(batch.stream_bytes)
            self._free.put(batch.buffer)
        self._stream.finish()

    def _place(self, chunk: Chunk) -> None:
        length = len(chunk.raw)
        self.counts.read += length
        self._crc = combine(self._crc, chunk.crc32c, length)
        if chunk.zeros:
            self.counts.zeros += length
            return
        if chunk.place is not None:
            pack, number = chunk.place.pack, chunk.place.chunk
            self.counts.reused += length
        else:
            pack, number = self._stream.add(chunk.compressed, length, chunk.fingerprint)
            self.counts.compressed += len(chunk.compressed)
        pages = -(-length // self._page_size)
        self._layer.add_row(chunk.first_page, pages, self._layer.pack_number(pack), number * PAGES_PER_CHUNK)
