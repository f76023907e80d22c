"""Sealing: AES-256-GCM under a subkey drawn afresh for every physical write.

    salt    SHA-256(32 random bytes | time | pid | counter), in the container's header
    subkey  HKDF-SHA256(key, salt, "dmpg1" | kind | repository)
    nonce   8 zero bytes | chunk number u32 big-endian; the directory has number 2^32-1
    AAD     "dmpg1" | kind | repository 16 | id 16 | number u32; the directory and small objects add the header

No counter is stored and no key derived from a name, so a retry, a restored machine or a name that recurs never
meets the same key and nonce with other bytes. Source: ``docs/format.md`` decision 4; NIST SP 800-38D; RFC 5869.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import secrets
import time
from dataclasses import dataclass

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from datamanager.base.errors import FormatUnsupported, IntegrityError
from datamanager.repository.format import HEADER, MAGIC, MASKED, MAX_SMALL_OBJECT_BYTES, SIGNATURE, TAG_BYTES, Kind
from datamanager.storage.base import Buffer

_counter = itertools.count()


def derive(key: bytes, salt: bytes, info: bytes, length: int = 32) -> bytes:
    """HKDF-SHA256. Source: RFC 5869."""
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=salt, info=info).derive(key)


def fresh_salt() -> bytes:
    """32 bytes that never recur, even after a fork or a restored snapshot of this machine."""
    parts = f"{time.time_ns()}|{os.getpid()}|{next(_counter)}".encode()
    return hashlib.sha256(secrets.token_bytes(32) + parts).digest()


@dataclass(frozen=True, slots=True)
class Header:
    """The 64 clear bytes that begin a container."""

    kind: Kind
    epoch: int
    id: bytes
    salt: bytes
    flags: int = 0

    def pack(self) -> bytes:
        return HEADER.pack(MAGIC, self.kind, self.flags, self.epoch, 0, self.id, self.salt)

    @classmethod
    def parse(cls, data: Buffer, name: str) -> Header:
        """Raises: IntegrityError (not a container), FormatUnsupported (a kind or flag of a newer program)."""
        if len(data) < HEADER.size:
            raise IntegrityError(f"read {name}: too short for a container")
        magic, kind, flags, epoch, zero, identity, salt = HEADER.unpack_from(data)
        if magic != MAGIC:
            if magic[:4] == MAGIC[:4] and magic[4:].isdigit() and magic > MAGIC:
                raise FormatUnsupported(f"read {name}: format {int(magic[4:])} is newer than this program")
            raise IntegrityError(f"read {name}: damaged header")
        allowed = MASKED if kind == Kind.PACK else 0
        if zero != 0 or flags & ~allowed or kind not in Kind._value2member_map_:
            raise IntegrityError(f"read {name}: damaged header")
        return cls(Kind(kind), epoch, identity, salt, flags)


class Sealer:
    """Seals and opens the numbered parts of one container. Thread-safe.

    Args: key - the epoch key (or the root, for the ring); repository - 16 bytes.
    """

    def __init__(self, key: bytes, header: Header, repository: bytes) -> None:
        kind = bytes([header.kind])
        self._aead = AESGCM(derive(key, header.salt, SIGNATURE + kind + repository))
        self._prefix = SIGNATURE + kind + repository + header.id
        self._header = header.pack()

    def _associated(self, number: int, whole: bool) -> bytes:
        data = self._prefix + number.to_bytes(4, "little")
        return data + self._header if whole else data

    def seal_into(self, number: int, data: Buffer, out: memoryview) -> int:
        """Write ciphertext and tag of chunk ``number`` to the start of ``out``; returns their bytes."""
        length = len(data) + TAG_BYTES
        nonce = number.to_bytes(12, "big")
        self._aead.encrypt_into(nonce, data, self._associated(number, False), out[:length])
        return length

    def seal_chunk(self, number: int, data: Buffer) -> bytes:
        """Ciphertext and tag of a chunk, as ``seal_into`` writes them."""
        return self._aead.encrypt(number.to_bytes(12, "big"), data, self._associated(number, False))

    def seal(self, number: int, data: Buffer) -> bytes:
        """Ciphertext and tag of a directory or a small object; the header is authenticated with it."""
        return self._aead.encrypt(number.to_bytes(12, "big"), data, self._associated(number, True))

    def open(self, number: int, sealed: Buffer, name: str, *, whole: bool = False) -> bytes:
        """The bytes that were sealed. Raises: IntegrityError naming ``name``."""
        if len(sealed) < TAG_BYTES:
            raise IntegrityError(f"read {name}: cut short")
        try:
            return self._aead.decrypt(number.to_bytes(12, "big"), sealed, self._associated(number, whole))
        except InvalidTag:
            raise IntegrityError(f"read {name}: the stored bytes are damaged or were changed") from None


def compress_small(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=3).compress(data)


def decompress(data: Buffer, bound: int, name: str, *, exact: bool = False) -> bytes:
    """One zstd frame, already authenticated.

    Args: bound - largest size allowed, the very size if ``exact``; checked before anything is allocated.
    Raises: IntegrityError.
    """
    try:
        size = zstandard.frame_content_size(data)
        if size < 0 or size > bound or (exact and size != bound):
            raise IntegrityError(f"read {name}: impossible size")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=max(size, 1))
    except zstandard.ZstdError as error:
        raise IntegrityError(f"read {name}: {error}") from error


def seal_small(kind: Kind, key: bytes, epoch: int, repository: bytes, identity: bytes, plain: bytes) -> bytes:
    """A whole small object: header and one sealed chunk, number 0."""
    if len(plain) > MAX_SMALL_OBJECT_BYTES:
        raise IntegrityError(f"write {kind.name.lower()}: {len(plain)} bytes exceed the bound of the format")
    header = Header(kind, epoch, identity, fresh_salt())
    return header.pack() + Sealer(key, header, repository).seal(0, compress_small(plain))


def open_small(
    data: bytes, kind: Kind, header: Header, key: bytes, repository: bytes, identity: bytes, name: str
) -> bytes:
    """The plain bytes of a small object; kind and id must be the expected ones. Raises: IntegrityError."""
    if header.kind is not kind or header.id != identity:
        raise IntegrityError(f"read {name}: holds another object")
    sealed = memoryview(data)[HEADER.size :]
    plain = Sealer(key, header, repository).open(0, sealed, name, whole=True)
    return decompress(plain, MAX_SMALL_OBJECT_BYTES, name)
