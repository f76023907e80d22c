"""Writing packs behind a stream: chunks come in order from one thread, full packs are put by others.

Three buffers circulate, so at most three packs are being filled or stored; a slow store makes ``add`` wait, which slows
the stream.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from datamanager.base.pipeline import Channel, TaskGroup
from datamanager.repository.format import Kind, meta_keys, pack_key
from datamanager.repository.objects import SealedStore
from datamanager.repository.packs.pack import PackBuilder, SealedPack
from datamanager.storage.base import Buffer

# 3 x 33 MiB: one filling, one being written, one waiting. A fourth changed nothing in benchmarks/RESULTS.md.
_BUFFERS = 3
_PUT_THREADS = 2


@dataclass(frozen=True, slots=True)
class _Filled:
    pack: SealedPack
    buffer: memoryview


class PackStream:
    """Turns ordered chunks into stored packs. ``add`` and ``finish`` belong to one thread.

    Args:
        group: the threads that put run in it; an error there stops everyone.
        on_stored: told of each pack once it is durable; called from the putting threads.
        before_put: told of the bytes about to be put; may raise to stop (room on the volume).
    """

    def __init__(
        self,
        store: SealedStore,
        kind: Kind,
        group: TaskGroup,
        on_stored: Callable[[SealedPack], None],
        before_put: Callable[[int], None],
    ) -> None:
        self._store = store
        self._kind = kind
        self._on_stored = on_stored
        self._before_put = before_put
        self._free: Channel[memoryview] = group.channel(_BUFFERS)
        self._filled: Channel[_Filled] = group.channel(_BUFFERS)
        self._buffers = iter(self._free)
        self._lent = 0
        self._pack: PackBuilder | None = None
        self._buffer = memoryview(b"")
        self._pending = threading.Semaphore(0)
        self._handed = 0
        for number in range(_PUT_THREADS):
            group.start(f"put-{kind.name.lower()}-{number}", self._put_packs)
        self._group = group

    def add(self, compressed: Buffer, raw_bytes: int, fingerprint: bytes) -> tuple[bytes, int]:
        """Append one chunk; returns its pack and number, which never change. Blocks while all buffers are in use."""
        if self._pack is None:
            self._buffer = self._take_buffer()
            self._pack = self._store.new_pack(self._kind, self._buffer)
        pack = self._pack
        number = pack.add(compressed, raw_bytes, fingerprint)
        if pack.full:
            self._hand_over()
        return pack.id, number

    def finish(self) -> None:
        """Store the last pack and wait until all are stored. Raises: Cancelled when the group failed."""
        self._hand_over()
        self._filled.close()
        for _ in range(self._handed):
            while not self._pending.acquire(timeout=0.1):
                self._group.check()

    def _take_buffer(self) -> memoryview:
        if self._lent < _BUFFERS:
            self._lent += 1
            # Not zeroed as a bytearray is, which takes 17 ms each and memory that a small backup never fills.
            return np.empty(PackBuilder.BUFFER_BYTES, np.uint8).data
        return next(self._buffers)

    def _hand_over(self) -> None:
        if self._pack is not None:
            self._filled.put(_Filled(self._pack.finish(), self._buffer))
            self._handed += 1
            self._pack = None

    def _put_packs(self) -> None:
        for item in self._filled:
            keys = (pack_key(item.pack.id),) if self._kind is Kind.PACK else meta_keys(item.pack.id)
            for key in keys:
                self._before_put(item.pack.size)
                self._store.storage.put(key, item.pack.parts)
            self._on_stored(item.pack)
            self._free.put(item.buffer)
            self._pending.release()
