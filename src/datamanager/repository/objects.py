"""Sealed objects in a store: small ones with their twins, and packs with their directories.

The only module that joins a Storage and the keys of a Ring. Thread-safe.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from datamanager.base.errors import (
    DataManagerError,
    FormatUnsupported,
    IntegrityError,
    ObjectMissing,
    StoreUnavailable,
)
from datamanager.repository.format import HEADER, MAX_CONTAINER_BYTES, TRAILER, Kind, named_id
from datamanager.repository.keys import Ring
from datamanager.repository.sealing import Header, Sealer, open_small, seal_small
from datamanager.storage.base import Storage

if TYPE_CHECKING:  # ``wal push`` runs once a segment and reads no pack: numpy would take longer than all it does
    from datamanager.repository.packs.generation import GenerationBuilder
    from datamanager.repository.packs.pack import ChunkOpener, PackBuilder, PackDirectory

T = TypeVar("T")

# Why one copy may be unreadable while its twin is whole. A flipped bit can make a header look like a newer format, and
# a bad sector is an error of reading, not wrong bytes.
UNREADABLE = (IntegrityError, FormatUnsupported, ObjectMissing, StoreUnavailable)

# One read usually brings trailer and directory: 64 KiB hold the directory of some 2,000 chunks.
_TAIL_BYTES = 64 << 10
# A directory of 500 chunks takes 20 KB decoded: 6 MB, and a stream meets its parent's packs nearly in order.
_CACHED_DIRECTORIES = 300


def worst(failures: Sequence[DataManagerError]) -> DataManagerError:
    """Of the failures of all copies the one that says most: damage, a newer format, then absence."""
    return min(failures, key=lambda one: [isinstance(one, kind) for kind in UNREADABLE].index(True))


@dataclass(frozen=True, slots=True)
class OpenPack:
    """A pack whose directory has been authenticated. ``key`` is where it is stored."""

    key: str
    directory: PackDirectory
    sealer: Sealer

    def opener(self) -> ChunkOpener:
        """For one thread."""
        from datamanager.repository.packs.pack import ChunkOpener  # noqa: PLC0415

        return ChunkOpener(self.sealer, self.directory, self.key)


class SealedStore:
    """Reads and writes sealed objects. Thread-safe; keeps a bounded number of pack directories.

    Args: on_damage - told when a first copy is damaged or missing and its twin was used instead.
    """

    def __init__(self, storage: Storage, ring: Ring, on_damage: Callable[[str], None]) -> None:
        self.storage = storage
        self.ring = ring
        self.report = on_damage
        self._lock = threading.Lock()
        self._packs: OrderedDict[str, OpenPack] = OrderedDict()

    # -- small objects ----------------------------------------------------------------------------------------------
    def put_small(self, kind: Kind, name: str, keys: Sequence[str], plain: bytes) -> bytes:
        """Seal ``plain`` once and store it under every key, the last of ``keys`` first.

        Args: name - the logical name that the id is made from.
        Returns: the sealed bytes.
        Raises: StoreError.
        """
        epoch = self.ring.newest
        sealed = seal_small(kind, epoch.key.reveal(), epoch.number, self.ring.repository, named_id(name), plain)
        for key in reversed(keys):
            self.storage.put(key, [sealed])
        return sealed

    def get_small(self, kind: Kind, name: str, keys: Sequence[str]) -> tuple[bytes, bytes]:
        """The first copy that authenticates: (plain, sealed).

        Raises: ObjectMissing, IntegrityError, when no copy does.
        """
        return self.first_readable(keys, lambda key: self._open_small(kind, name, key))

    def _open_small(self, kind: Kind, name: str, key: str) -> tuple[bytes, bytes]:
        sealed = self.storage.get(key, 0, MAX_CONTAINER_BYTES)
        header = Header.parse(sealed, key)
        epoch_key = self.ring.epoch_key(header.epoch, key)
        return open_small(sealed, kind, header, epoch_key, self.ring.repository, named_id(name), key), sealed

    def first_readable(self, keys: Sequence[str], read: Callable[[str], T]) -> T:
        """What ``read`` makes of the first copy that it can read; reports the copies before it.

        Raises: IntegrityError, FormatUnsupported, ObjectMissing, StoreUnavailable, when no copy can be read.
        """
        failures: list[DataManagerError] = []
        for key in keys:
            try:
                value = read(key)
            except UNREADABLE as error:
                failures.append(error)
                continue
            for failure in failures:
                self.report(f"{failure.message}; its second copy was used")
            return value
        raise worst(failures)

    # -- packs ------------------------------------------------------------------------------------------------------
    def new_pack(self, kind: Kind, buffer: bytearray | memoryview) -> PackBuilder:
        from datamanager.repository.packs.pack import PackBuilder  # noqa: PLC0415

        epoch = self.ring.newest
        return PackBuilder(kind, epoch.key.reveal(), epoch.number, self.ring.repository, buffer)

    def new_generation(self, identity: bytes, page_size: int) -> GenerationBuilder:
        from datamanager.repository.packs.generation import GenerationBuilder  # noqa: PLC0415

        epoch = self.ring.newest
        return GenerationBuilder(epoch.key.reveal(), epoch.number, self.ring.repository, identity, page_size)

    def open_pack(self, keys: Sequence[str], identity: bytes, kind: Kind) -> OpenPack:
        """The first copy of a pack whose directory authenticates. Raises: ObjectMissing, IntegrityError."""
        with self._lock:
            known = self._packs.get(keys[0])
            if known is not None:
                self._packs.move_to_end(keys[0])
                return known
        opened = self.first_readable(keys, lambda key: self._open_directory(key, identity, kind))
        with self._lock:
            self._packs[keys[0]] = opened
            while len(self._packs) > _CACHED_DIRECTORIES:
                self._packs.popitem(last=False)
        return opened

    def forget_packs(self, keys: Iterable[str]) -> None:
        """What was read of packs under these keys: they may be gone by now."""
        with self._lock:
            for key in keys:
                self._packs.pop(key, None)

    def _open_directory(self, key: str, identity: bytes, kind: Kind) -> OpenPack:
        from datamanager.repository.packs.pack import open_directory, parse_directory  # noqa: PLC0415

        size = self.storage.stat(key).size
        head = self.storage.get(key, 0, HEADER.size)
        header = Header.parse(head, key)
        if header.kind is not kind or header.id != identity:
            raise IntegrityError(f"read {key}: holds another object")
        sealer = Sealer(self.ring.epoch_key(header.epoch, key), header, self.ring.repository)
        tail_start = max(HEADER.size, size - _TAIL_BYTES)
        tail = self.storage.get(key, tail_start, size - tail_start)
        start, length = parse_directory(tail[-TRAILER.size :], size, key)
        if start >= tail_start:
            sealed = tail[start - tail_start : start - tail_start + length]
        else:
            sealed = self.storage.get(key, start, length)
        return OpenPack(key, open_directory(sealed, header, sealer, key, start), sealer)
