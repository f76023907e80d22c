"""A sealed stretch of WAL: chunks back to back, then a sealed directory that says what they are.

    header 64, kind 10 | sealed chunk ... | sealed directory | trailer 16
    directory = zstd of canonical JSON {"index", "raw", "received", "start", "stored"}

A chunk is one zstd frame of up to 1 MiB; ``raw`` and ``stored`` have an entry a chunk. The header's id is made from
the key, so no stretch passes for another. Source: ``docs/format.md``, WAL.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import zstandard

from datamanager.base.errors import IntegrityError
from datamanager.base.units import Lsn
from datamanager.repository.format import (
    DIRECTORY_NUMBER,
    END_MAGIC,
    HEADER,
    MAX_CHUNK_BYTES,
    MAX_CONTAINER_BYTES,
    MAX_DIRECTORY_BYTES,
    TAG_BYTES,
    TRAILER,
    Kind,
    canonical_json,
    named_id,
)
from datamanager.repository.keys import Ring
from datamanager.repository.sealing import Header, Sealer, compress_small, decompress, fresh_salt
from datamanager.repository.wal.names import Range
from datamanager.storage.base import Buffer, Storage

_TAIL_BYTES = 16 << 10
_LEVEL = 1


@dataclass(frozen=True, slots=True)
class WalInfo:
    """What is known of a stretch.

    Args: received - when its last byte came, RFC 3339 in UTC; index - what stands in it (postgres/wal/index.py), empty
        when nobody looked.
    """

    received: str
    index: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Directory:
    """What a container's end says. ``offsets`` has one entry more than there are chunks."""

    start: Lsn
    info: WalInfo
    raw: tuple[int, ...]
    offsets: tuple[int, ...]
    sealer: Sealer


def seal_stretch(
    ring: Ring, key: str, start: int, data: Buffer, found: WalInfo | Callable[[], WalInfo]
) -> list[Buffer]:
    """The parts of a container that holds ``data``.

    Args: found - what is known of it, or what finds that out, meanwhile: compressing needs no interpreter.
    """
    epoch = ring.newest
    header = Header(Kind.WAL, epoch.number, named_id(key), fresh_salt())
    sealer = Sealer(epoch.key.reveal(), header, ring.repository)
    view = memoryview(data)
    raw: list[Buffer] = [view[at : at + MAX_CHUNK_BYTES] for at in range(0, len(view), MAX_CHUNK_BYTES)]
    if isinstance(found, WalInfo):
        info, frames = found, _compressed(raw)
    else:
        info, frames = _compressed_meanwhile(raw, found)
    chunks = [sealer.seal_chunk(number, one) for number, one in enumerate(frames)]
    plain = canonical_json(
        {
            "index": info.index,
            "raw": [len(one) for one in raw],
            "received": info.received,
            "start": str(Lsn(start)),
            "stored": [len(one) for one in chunks],
        }
    )
    directory = sealer.seal(DIRECTORY_NUMBER, compress_small(plain))
    return [header.pack(), *chunks, directory, TRAILER.pack(len(directory), 0, END_MAGIC)]


def _compressed(raw: list[Buffer]) -> list[Buffer]:
    """A frame for each, made in one call: a thread that wants the interpreter between chunks waits 5 ms each time."""
    frames = zstandard.ZstdCompressor(level=_LEVEL).multi_compress_to_buffer(raw, threads=1)
    return [memoryview(cast("Buffer", frames[number])) for number in range(len(frames))]


def _compressed_meanwhile(raw: list[Buffer], find: Callable[[], WalInfo]) -> tuple[WalInfo, list[Buffer]]:
    """The same in a thread, while this one looks for what is known. Raises: as ``find``."""
    frames: list[list[Buffer]] = []
    thread = threading.Thread(target=lambda: frames.append(_compressed(raw)), name="wal-compress")
    thread.start()
    try:
        info = find()
    finally:
        thread.join()
    return info, frames[0] if frames else _compressed(raw)


def read_directory(storage: Storage, ring: Ring, key: str, size: int, held: Range) -> Directory:
    """Authenticate the end of a container that is to hold these bytes. Raises: IntegrityError, StoreError."""
    if not HEADER.size + TAG_BYTES + TRAILER.size < size <= MAX_CONTAINER_BYTES:
        raise IntegrityError(f"read {key}: impossible size {size}")
    header = Header.parse(storage.get(key, 0, HEADER.size), key)
    if header.kind is not Kind.WAL or header.id != named_id(key):
        raise IntegrityError(f"read {key}: holds another object")
    sealer = Sealer(ring.epoch_key(header.epoch, key), header, ring.repository)
    tail = storage.get(key, max(0, size - _TAIL_BYTES), _TAIL_BYTES)
    length, zero, magic = TRAILER.unpack(tail[-TRAILER.size :]) if len(tail) >= TRAILER.size else (0, 1, b"")
    begins = size - TRAILER.size - length
    if magic != END_MAGIC or zero or not TAG_BYTES < length <= MAX_DIRECTORY_BYTES or begins < HEADER.size:
        raise IntegrityError(f"read {key}: damaged or cut short at its end")
    within = length + TRAILER.size <= len(tail)
    sealed = tail[-length - TRAILER.size : -TRAILER.size] if within else storage.get(key, begins, length)
    plain = decompress(sealer.open(DIRECTORY_NUMBER, sealed, key, whole=True), MAX_DIRECTORY_BYTES, key)
    return _parsed(plain, key, held, begins, sealer)


def _parsed(plain: bytes, key: str, held: Range, limit: int, sealer: Sealer) -> Directory:
    try:
        value = json.loads(plain)
        raw = tuple(int(one) for one in value["raw"])
        stored = [int(one) for one in value["stored"]]
        start = Lsn.parse(value["start"])
        info = WalInfo(str(value["received"]), dict(value["index"]))
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise IntegrityError(f"read {key}: malformed directory") from error
    offsets = [HEADER.size]
    for one in stored:
        offsets.append(offsets[-1] + one)
    sizes_fit = len(raw) == len(stored) and all(0 < one <= MAX_CHUNK_BYTES for one in raw)
    if not sizes_fit or min(stored, default=0) <= TAG_BYTES or offsets[-1] != limit:
        raise IntegrityError(f"read {key}: its directory exceeds the bounds of the format")
    if start != held.start or sum(raw) != len(held):
        raise IntegrityError(f"read {key}: it holds other bytes than its name says")
    return Directory(start, info, raw, tuple(offsets), sealer)


def read_bytes(storage: Storage, directory: Directory, key: str, wanted: Range) -> Iterator[bytes]:
    """The bytes in ``wanted``, which the container holds, chunk by chunk. Raises: IntegrityError, StoreError."""
    begins = int(directory.start)
    for number, raw in enumerate(directory.raw):
        ends = begins + raw
        if begins < wanted.end and ends > wanted.start:
            offset, after = directory.offsets[number : number + 2]
            frame = directory.sealer.open(number, storage.get(key, offset, after - offset), f"{key} chunk {number}")
            plain = decompress(frame, raw, f"{key} chunk {number}", exact=True)
            yield plain[max(0, wanted.start - begins) : wanted.end - begins]
        begins = ends
