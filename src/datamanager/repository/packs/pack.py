"""Packs: chunks sealed back to back, then a sealed directory that says what they are.

    header 64 | sealed chunk ... | sealed padding | sealed directory | trailer 16
    padding   = nothing, or zeros sealed under number 2^32-2: looks random, and a damaged bit in it shows
    directory = zstd( count u32 | zero u32 | stored u32 x n | raw u32 x n | fingerprint 16 x n )

``stored`` counts ciphertext and tag; a chunk's plain bytes are one zstd frame of ``raw`` bytes. The fingerprint is
keyed BLAKE3 of the raw bytes, cut to 16 (zeros in metadata packs): it recognizes and verifies, it never locates.

A later *generation* of a data pack (header flag MASKED, ``repository/packs/generation.py``) has the same id, chunks,
``raw`` and fingerprints, but holds only the pages that its masks name, packed together in a frame of their own:

    directory = zstd( count u32 | page size u32 | stored u32 x n | raw u32 x n | fingerprint 16 x n | mask u32 x n )

``stored`` is 0 for a chunk without pages. Whoever uses pages of a chunk asks ``has_pages`` first.
Source: ``docs/format.md``, Packs.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from struct import Struct

import numpy as np
import numpy.typing as npt
import zstandard
from blake3 import blake3

from datamanager.base.errors import IntegrityError
from datamanager.repository.format import (
    DIRECTORY_NUMBER,
    END_MAGIC,
    HEADER,
    MASKED,
    MAX_CHUNK_BYTES,
    MAX_CHUNKS_PER_PACK,
    MAX_CONTAINER_BYTES,
    MAX_DIRECTORY_BYTES,
    PACK_BYTES,
    PADDING_BYTES,
    PADDING_NUMBER,
    PAGES_PER_CHUNK,
    TAG_BYTES,
    TRAILER,
    Kind,
)
from datamanager.repository.sealing import Header, Sealer, compress_small, decompress, fresh_salt
from datamanager.storage.base import Buffer

COUNT = Struct("<II")
_ROW_BYTES = 4 + 4 + 16
_MASK_BYTES = 4
_SMALLEST_PAGE = 512
NO_FINGERPRINT = bytes(16)

U32 = npt.NDArray[np.uint32]


def full_mask(raw_bytes: int, page_size: int) -> int:
    """The mask of all pages of a chunk; its last page may be short."""
    return (1 << -(-raw_bytes // page_size)) - 1


def fingerprint(key: bytes, pages: Buffer) -> bytes:
    """Keyed BLAKE3 of a chunk's raw bytes, 16 bytes."""
    return blake3(pages, key=key).digest(length=16)


@dataclass(frozen=True, slots=True)
class PackDirectory:
    """What a pack's directory says; arrays have one entry a chunk."""

    id: bytes
    header: Header
    offsets: npt.NDArray[np.int64]  # of each sealed chunk from the start of the pack, plus one for their end
    raw: npt.NDArray[np.uint32]
    fingerprints: bytes
    page_size: int = 0  # bytes of the pages that ``masks`` counts
    masks: U32 | None = None  # which pages of each chunk are here; None when all are

    def __len__(self) -> int:
        return len(self.raw)

    def fingerprint(self, chunk: int) -> bytes:
        return self.fingerprints[chunk * 16 : chunk * 16 + 16]

    def digest(self) -> bytes:
        """16 bytes that bind a layer to this content wherever it is stored."""
        return hashlib.sha256(self.raw.astype("<u4").tobytes() + self.fingerprints).digest()[:16]

    def complete(self, chunk: int) -> bool:
        """Whether every page of the chunk is here, so that its raw bytes are those of the fingerprint."""
        return self.masks is None or int(self.masks[chunk]) == full_mask(int(self.raw[chunk]), self.page_size)

    def has_pages(self, chunk: int, page: int, pages: int) -> bool:
        """Whether those pages of the chunk are here; for a pack without masks whether the chunk is."""
        if chunk >= len(self.raw):
            return False
        wanted = ((1 << pages) - 1) << page
        return self.masks is None or int(self.masks[chunk]) & wanted == wanted

    def frame_bytes(self, chunk: int) -> int:
        """What the chunk's frame decompresses to: ``raw``, or the bytes of the pages that are here."""
        raw = int(self.raw[chunk])
        if self.masks is None or self.complete(chunk):
            return raw
        return sum(min(self.page_size, raw - start) for start in self.page_starts(chunk))

    def page_starts(self, chunk: int) -> list[int]:
        """Where in the raw bytes of a chunk the pages begin that its mask names."""
        mask = 0 if self.masks is None else int(self.masks[chunk])
        return [page * self.page_size for page in range(PAGES_PER_CHUNK) if mask >> page & 1]


@dataclass(frozen=True, slots=True)
class SealedPack:
    """A finished pack: ``parts`` joined are its bytes."""

    id: bytes
    parts: tuple[Buffer, ...]
    digest: bytes
    chunks: int
    size: int


class PackBuilder:
    """Fills one pack after another in a buffer of its own. Not thread-safe.

    Args: buffer - at least ``PackBuilder.BUFFER_BYTES``; the builder owns it until the sealed pack is stored.
    """

    BUFFER_BYTES = PACK_BYTES + MAX_CHUNK_BYTES + 64 * 1024

    def __init__(self, kind: Kind, key: bytes, epoch: int, repository: bytes, buffer: bytearray | memoryview) -> None:
        self.id = secrets.token_bytes(16)
        self._header = Header(kind, epoch, self.id, fresh_salt())
        self._sealer = Sealer(key, self._header, repository)
        self._view = memoryview(buffer)
        self._view[: HEADER.size] = self._header.pack()
        self._end = HEADER.size
        self._stored: list[int] = []
        self._raw: list[int] = []
        self._fingerprints: list[bytes] = []

    @property
    def chunks(self) -> int:
        return len(self._raw)

    @property
    def full(self) -> bool:
        return self._end >= PACK_BYTES or len(self._raw) >= MAX_CHUNKS_PER_PACK

    def add(self, compressed: Buffer, raw_bytes: int, print_: bytes) -> int:
        """Seal one chunk; returns its number."""
        number = len(self._raw)
        stored = self._sealer.seal_into(number, compressed, self._view[self._end :])
        self._end += stored
        self._stored.append(stored)
        self._raw.append(raw_bytes)
        self._fingerprints.append(print_)
        return number

    def finish(self) -> SealedPack:
        """Close the pack; the builder is of no use afterwards."""
        raw = np.array(self._raw, dtype="<u4").tobytes()
        prints = b"".join(self._fingerprints)
        plain = COUNT.pack(len(self._raw), 0) + np.array(self._stored, dtype="<u4").tobytes() + raw + prints
        directory = self._sealer.seal(DIRECTORY_NUMBER, compress_small(plain))
        tail = len(directory) + TRAILER.size
        padding = b"" if self.full else self._padding(-(self._end + tail) % PADDING_BYTES)
        parts = (self._view[: self._end], padding, directory, TRAILER.pack(len(directory), 0, END_MAGIC))
        digest = hashlib.sha256(raw + prints).digest()[:16]
        return SealedPack(self.id, parts, digest, len(self._raw), sum(len(part) for part in parts))

    def _padding(self, size: int) -> bytes:
        """``size`` bytes, 64 KiB more if a tag would not fit into them."""
        if size == 0:
            return b""
        zeros = size - TAG_BYTES if size >= TAG_BYTES else size - TAG_BYTES + PADDING_BYTES
        return self._sealer.seal(PADDING_NUMBER, bytes(zeros))


def parse_directory(tail: bytes, size: int, name: str) -> tuple[int, int]:
    """Where the sealed directory of a pack of ``size`` bytes lies, from its last 16 bytes: offset and length.

    Raises: IntegrityError.
    """
    if size > MAX_CONTAINER_BYTES or size < HEADER.size + TAG_BYTES + TRAILER.size or len(tail) != TRAILER.size:
        raise IntegrityError(f"read {name}: impossible size {size}")
    length, zero, magic = TRAILER.unpack(tail)
    if magic != END_MAGIC or zero != 0 or not TAG_BYTES < length <= min(MAX_DIRECTORY_BYTES, size - HEADER.size - 16):
        raise IntegrityError(f"read {name}: damaged or cut short at its end")
    return size - TRAILER.size - length, length


def open_directory(sealed: bytes, header: Header, sealer: Sealer, name: str, limit: int) -> PackDirectory:
    """Authenticate and decode a directory.

    Args: limit - offset in the pack at which the directory begins; chunks must end before it.
    Raises: IntegrityError.
    """
    masked = bool(header.flags & MASKED)
    row_bytes = _ROW_BYTES + (_MASK_BYTES if masked else 0)
    plain = decompress(
        sealer.open(DIRECTORY_NUMBER, sealed, name, whole=True),
        COUNT.size + MAX_CHUNKS_PER_PACK * row_bytes,
        name,
    )
    count, page_size = COUNT.unpack_from(plain) if len(plain) >= COUNT.size else (0, 1)
    if bool(page_size) != masked or len(plain) != COUNT.size + count * row_bytes:
        raise IntegrityError(f"read {name}: malformed directory")
    stored = np.frombuffer(plain, "<u4", count, COUNT.size).astype(np.int64)
    raw = np.frombuffer(plain, "<u4", count, COUNT.size + 4 * count).astype(np.uint32)
    offsets = np.concatenate(([HEADER.size], HEADER.size + np.cumsum(stored)))
    prints = plain[COUNT.size + 8 * count : COUNT.size + _ROW_BYTES * count]
    masks = np.frombuffer(plain, "<u4", count, COUNT.size + _ROW_BYTES * count).astype(np.uint32) if masked else None
    held = stored if masks is None else stored[masks != 0]
    if offsets[-1] > limit or (count and raw.max() > MAX_CHUNK_BYTES) or (len(held) and held.min() <= TAG_BYTES):
        raise IntegrityError(f"read {name}: directory exceeds the bounds of the format")
    if masks is not None and not _masks_fit(masks, raw, stored, page_size):
        raise IntegrityError(f"read {name}: its masks name pages that it cannot have")
    return PackDirectory(header.id, header, offsets, raw, prints, page_size, masks)


def _masks_fit(masks: U32, raw: U32, stored: npt.NDArray[np.int64], page_size: int) -> bool:
    pages = -(-raw.astype(np.int64) // page_size)
    if page_size % _SMALLEST_PAGE or bool(np.any(pages > PAGES_PER_CHUNK)) or bool(np.any(stored[masks == 0])):
        return False
    return not bool(np.any(masks.astype(np.int64) >> pages))


def check_padding(padding: Buffer, sealer: Sealer, name: str) -> None:
    """What lies between the last chunk and the directory. Raises: IntegrityError."""
    if len(padding) and any(sealer.open(PADDING_NUMBER, padding, f"{name} padding", whole=True)):
        raise IntegrityError(f"read {name} padding: it holds something")


class ChunkOpener:
    """Opens chunks of one pack: authenticate, bound, decompress. One a thread (it owns a zstd context)."""

    def __init__(self, sealer: Sealer, directory: PackDirectory, name: str) -> None:
        self._sealer = sealer
        self._directory = directory
        self._name = name
        self._context = zstandard.ZstdDecompressor()
        self._masked = directory.masks is not None

    def open(self, chunk: int, sealed: Buffer) -> bytes:
        """The raw bytes of ``chunk``, exactly as long as the directory says; pages not here are zeros.

        Raises: IntegrityError, also for a chunk of which no page is here.
        """
        frame = self.frame(chunk, sealed)
        raw = int(self._directory.raw[chunk])
        expected = self._directory.frame_bytes(chunk) if self._masked else raw
        try:
            if zstandard.frame_content_size(frame) != expected:
                raise IntegrityError(f"read {self._name} chunk {chunk}: impossible size")
            plain = self._context.decompress(frame, max_output_size=max(expected, 1))
        except zstandard.ZstdError as error:
            raise IntegrityError(f"read {self._name} chunk {chunk}: {error}") from error
        return plain if expected == raw else self._spread(chunk, plain)

    def frame(self, chunk: int, sealed: Buffer) -> bytes:
        """The authenticated frame as it is stored, not decompressed. Raises: IntegrityError."""
        return self._sealer.open(chunk, sealed, f"{self._name} chunk {chunk}")

    def _spread(self, chunk: int, packed: bytes) -> bytes:
        """Put the pages of a frame at their places in the chunk."""
        size = self._directory.page_size
        raw = bytearray(int(self._directory.raw[chunk]))
        end = 0
        for start in self._directory.page_starts(chunk):
            piece = packed[end : end + min(size, len(raw) - start)]
            raw[start : start + len(piece)] = piece
            end += len(piece)
        return bytes(raw)
