"""Writing a later generation of a data pack: the same id, chunks and fingerprints, and only the pages still needed.

A frame that keeps all its pages is sealed again as it is; one that loses pages is decompressed, cut and compressed
anew. Nothing is taken over that did not authenticate. Source: ``docs/format.md``, Packs and decision 3.
"""

from __future__ import annotations

import hashlib

import numpy as np
import zstandard

from datamanager.base.errors import IntegrityError
from datamanager.repository.format import (
    DIRECTORY_NUMBER,
    END_MAGIC,
    MASKED,
    MAX_CONTAINER_BYTES,
    PADDING_BYTES,
    PADDING_NUMBER,
    TAG_BYTES,
    TRAILER,
    Kind,
)
from datamanager.repository.packs.pack import COUNT, U32, ChunkOpener, PackDirectory, SealedPack, fingerprint, full_mask
from datamanager.repository.sealing import Header, Sealer, compress_small, fresh_salt
from datamanager.storage.base import Buffer

# Pages of many runs, kept for long: what level 3 saves over the level 1 of a fast backup is worth the second of work.
_LEVEL = 3


class GenerationBuilder:
    """Collects the chunks of one generation in memory, in order. Not thread-safe.

    Args:
        identity: the pack's id.
        page_size: bytes of the pages that the masks count.
    """

    def __init__(self, key: bytes, epoch: int, repository: bytes, identity: bytes, page_size: int) -> None:
        self._header = Header(Kind.PACK, epoch, identity, fresh_salt(), MASKED)
        self._sealer = Sealer(key, self._header, repository)
        self.page_size = page_size
        self._parts: list[bytes] = [self._header.pack()]
        self._stored: list[int] = []
        self._raw: list[int] = []
        self._prints: list[bytes] = []
        self._masks: list[int] = []
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL)

    def add(self, frame: Buffer | None, raw_bytes: int, print_: bytes, mask: int) -> None:
        """Append the next chunk.

        Args:
            frame: one zstd frame of the pages of ``mask``, packed together; None for a chunk without pages.
            raw_bytes, print_: length and fingerprint of the chunk as it was first stored, with all its pages.
        """
        number = len(self._raw)
        sealed = b"" if frame is None else self._sealer.seal_chunk(number, frame)
        self._parts.append(sealed)
        self._stored.append(len(sealed))
        self._raw.append(raw_bytes)
        self._prints.append(print_)
        self._masks.append(0 if frame is None else mask)

    def add_pages(self, raw: bytes, print_: bytes, mask: int) -> None:
        """Append the next chunk from its raw bytes, of which the pages of ``mask`` are kept."""
        size = self.page_size
        mask &= full_mask(len(raw), size)
        packed = b"".join(raw[page * size : (page + 1) * size] for page in range(mask.bit_length()) if mask >> page & 1)
        self.add(self._compressor.compress(packed) if mask else None, len(raw), print_, mask)

    def finish(self) -> SealedPack:
        """Close the generation. Raises: IntegrityError, when it exceeds the bound of a container."""
        raw, prints = np.array(self._raw, "<u4").tobytes(), b"".join(self._prints)
        columns = np.array(self._stored, "<u4").tobytes() + raw + prints + np.array(self._masks, "<u4").tobytes()
        plain = COUNT.pack(len(self._raw), self.page_size) + columns
        directory = self._sealer.seal(DIRECTORY_NUMBER, compress_small(plain))
        tail = len(directory) + TRAILER.size
        gap = -(sum(map(len, self._parts)) + tail) % PADDING_BYTES
        if gap:
            zeros = gap - TAG_BYTES if gap >= TAG_BYTES else gap - TAG_BYTES + PADDING_BYTES
            self._parts.append(self._sealer.seal(PADDING_NUMBER, bytes(zeros)))
        parts = (*self._parts, directory, TRAILER.pack(len(directory), 0, END_MAGIC))
        size = sum(len(part) for part in parts)
        if size > MAX_CONTAINER_BYTES:
            raise IntegrityError(f"write pack {self._header.id.hex()}: {size} bytes exceed the bound of the format")
        digest = hashlib.sha256(raw + prints).digest()[:16]
        return SealedPack(self._header.id, parts, digest, len(self._raw), size)


def keep_pages(
    builder: GenerationBuilder,
    directory: PackDirectory,
    opener: ChunkOpener,
    data: memoryview,
    masks: list[int],
    key: bytes,
) -> None:
    """Fill a generation with the pages that ``masks`` name, one mask a chunk, from another generation of the pack.

    Args:
        data: all bytes of that other generation.
        key: for fingerprints; chunks that are whole there are compared with their fingerprints.
    Raises: IntegrityError, when a page that is to be kept is not there or does not authenticate.
    """
    offsets = directory.offsets.tolist()
    for chunk, mask in enumerate(masks):
        print_, raw_bytes = directory.fingerprint(chunk), int(directory.raw[chunk])
        if mask == 0:
            builder.add(None, raw_bytes, print_, 0)
            continue
        have = -1 if directory.masks is None else int(directory.masks[chunk])
        if mask & ~have:
            raise IntegrityError(f"write pack {directory.id.hex()}: chunk {chunk} lacks pages that a backup needs")
        sealed = data[offsets[chunk] : offsets[chunk + 1]]
        raw = opener.open(chunk, sealed)
        if directory.complete(chunk) and fingerprint(key, raw) != print_:
            raise IntegrityError(f"read pack {directory.id.hex()} chunk {chunk}: it is not what was stored")
        if mask == full_mask(raw_bytes, builder.page_size):
            builder.add(opener.frame(chunk, sealed), raw_bytes, print_, mask)
        else:
            builder.add_pages(raw, print_, mask)


def check_pages(directory: PackDirectory, opener: ChunkOpener, data: memoryview, live: U32, key: bytes) -> None:
    """Read a generation whole, as it came back from the store.

    Args: data - all its bytes; live - pages of each chunk that must be there; key - for fingerprints.
    Raises: IntegrityError.
    """
    offsets = directory.offsets.tolist()
    for chunk in range(len(directory)):
        wanted = int(live[chunk]) if chunk < len(live) else 0
        if directory.masks is not None:
            if wanted & ~int(directory.masks[chunk]):
                raise IntegrityError(f"read pack {directory.id.hex()}: chunk {chunk} lacks pages that a backup needs")
            if directory.masks[chunk] == 0:
                continue
        raw = opener.open(chunk, data[offsets[chunk] : offsets[chunk + 1]])
        if directory.complete(chunk) and fingerprint(key, raw) != directory.fingerprint(chunk):
            raise IntegrityError(f"read pack {directory.id.hex()} chunk {chunk}: it is not what was stored")
