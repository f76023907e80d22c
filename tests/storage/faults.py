"""A store that goes wrong on purpose, the same way for the same seed, and a hook before every call.

Wrap the real store with this one, and this one with the retry: fault, then retry.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from datamanager.base.errors import StoreError, StoreFull
from datamanager.storage.base import Buffer, Capabilities, Space, Storage, StoredObject


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a method: the how-manieth of this store (from 1), its name, and its key or prefix."""

    number: int
    method: str
    key: str


Hook = Callable[[Call], None]


class FaultyStorage:
    """Thread-safe. Without any fault asked for, it is the store that it wraps.

    Args:
        inner: the store whose answers are spoilt.
        seed: decides which bit flips and where a short read ends.
        hook: called before every method; may raise, wait, or kill the process, to stop at step n.
    """

    def __init__(self, inner: Storage, seed: int = 0, hook: Hook | None = None) -> None:
        self._inner = inner
        self._seed = seed
        self._hook = hook
        self._lock = threading.Lock()
        self._flipped: set[str] = set()
        self._short: set[str] = set()
        self._errors: list[tuple[str, str | None, StoreError]] = []
        self._room: int | None = None
        self.calls: list[Call] = []

    def flip_bit(self, key: str) -> None:
        """From now on one bit of that object is read wrong, always the same one, as from a bad sector."""
        self._flipped.add(key)

    def short_read(self, key: str) -> None:
        """The next get of that key that gives bytes at all gives fewer."""
        self._short.add(key)

    def fail_once(self, method: str, error: StoreError, key: str | None = None) -> None:
        """The next call of ``method`` (for ``key``, or any) raises ``error`` instead; further ones queue up."""
        self._errors.append((method, key, error))

    def fill_after(self, size_bytes: int) -> None:
        """StoreFull for the put that would bring what is put from now on above that many bytes."""
        self._room = size_bytes

    def make_room(self) -> None:
        """No more StoreFull."""
        self._room = None

    @property
    def url(self) -> str:
        return self._inner.url

    @property
    def capabilities(self) -> Capabilities:
        return self._inner.capabilities

    def put(self, key: str, data: Sequence[Buffer]) -> None:
        self._enter("put", key)
        size = sum(memoryview(part).nbytes for part in data)
        with self._lock:
            if self._room is not None:
                if size > self._room:
                    raise StoreFull(f"put {key}: no space left on device")
                self._room -= size
        self._inner.put(key, data)

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        self._enter("get", key)
        content = self._inner.get(key, offset, length)
        if key in self._flipped:
            content = self._with_flipped_bit(key, content, offset)
        with self._lock:
            short = content and key in self._short
            if short:
                self._short.discard(key)
        return content[: self._chance(key).randrange(len(content))] if short else content

    def list(self, prefix: str) -> Iterator[StoredObject]:
        self._enter("list", prefix)
        return self._inner.list(prefix)

    def stat(self, key: str) -> StoredObject:
        self._enter("stat", key)
        return self._inner.stat(key)

    def delete(self, key: str) -> None:
        self._enter("delete", key)
        self._inner.delete(key)

    def barrier(self) -> None:
        self._enter("barrier", "")
        self._inner.barrier()

    def space(self) -> Space | None:
        self._enter("space", "")
        return self._inner.space()

    def close(self) -> None:
        self._inner.close()

    def _enter(self, method: str, key: str) -> None:
        with self._lock:
            call = Call(len(self.calls) + 1, method, key)
            self.calls.append(call)
            planned = next((each for each in self._errors if each[0] == method and each[1] in (None, key)), None)
            if planned is not None:
                self._errors.remove(planned)
        if self._hook is not None:
            self._hook(call)
        if planned is not None:
            raise planned[2]

    def _chance(self, key: str) -> random.Random:
        return random.Random(f"{self._seed}/{key}")

    def _with_flipped_bit(self, key: str, content: bytes, offset: int) -> bytes:
        size = self._inner.stat(key).size
        chance = self._chance(key)
        position, bit = chance.randrange(size), chance.randrange(8)
        start = offset if offset >= 0 else max(0, size + offset)
        if not start <= position < start + len(content):
            return content
        spoilt = bytearray(content)
        spoilt[position - start] ^= 1 << bit
        return bytes(spoilt)
