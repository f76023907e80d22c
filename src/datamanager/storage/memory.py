"""Objects in this process's memory: for tests and demonstrations. Passes the same contract as the real stores."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from datamanager.base.clock import Clock
from datamanager.base.errors import ObjectExists, ObjectMissing, StoreFull
from datamanager.storage.base import Buffer, Capabilities, Space, StoredObject
from datamanager.storage.keys import byte_range, check_key, check_prefix, plain_parts


class MemoryStorage:
    """Keeps objects until the instance goes. Thread-safe; ``close`` does nothing, so it can be opened "again".

    Args:
        clock: gives each object its time.
        capacity_bytes: StoreFull is raised rather than keep more than this; None for no limit.
        name: tells one instance from another in messages.
    """

    def __init__(self, clock: Clock, capacity_bytes: int | None = None, name: str = "memory") -> None:
        self._clock = clock
        self._capacity = capacity_bytes
        self._name = name
        self._lock = threading.Lock()
        self._objects: dict[str, tuple[bytes, float]] = {}
        self._used = 0

    @property
    def url(self) -> str:
        return f"memory://{self._name}"

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(power_safe=False, local=True)

    def put(self, key: str, data: Sequence[Buffer]) -> None:
        check_key(key)
        content = b"".join(plain_parts(data))
        with self._lock:
            if key in self._objects:
                raise ObjectExists(f"put {key}: the name is taken")
            if self._capacity is not None and self._used + len(content) > self._capacity:
                raise StoreFull(f"put {key}: the store is full", hint="Delete something or give it more capacity.")
            self._objects[key] = (content, self._clock.now().timestamp())
            self._used += len(content)

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        content, _ = self._find("get", key)
        start, stop = byte_range(len(content), offset, length)
        return content[start:stop]

    def list(self, prefix: str) -> Iterator[StoredObject]:
        check_prefix(prefix)
        with self._lock:
            found = [(key, value) for key, value in self._objects.items() if key.startswith(prefix)]
        return (StoredObject(key, len(content), mtime) for key, (content, mtime) in found)

    def stat(self, key: str) -> StoredObject:
        content, mtime = self._find("stat", key)
        return StoredObject(key, len(content), mtime)

    def delete(self, key: str) -> None:
        check_key(key)
        with self._lock:
            content, _ = self._objects.pop(key, (b"", 0.0))
            self._used -= len(content)

    def barrier(self) -> None:
        """Nothing here survives a power cut, and ``capabilities`` says so."""

    def space(self) -> Space | None:
        if self._capacity is None:
            return None
        with self._lock:
            return Space(total=self._capacity, free=self._capacity - self._used, device=0)

    def close(self) -> None:
        """Nothing to give back."""

    def _find(self, verb: str, key: str) -> tuple[bytes, float]:
        check_key(key)
        with self._lock:
            found = self._objects.get(key)
        if found is None:
            raise ObjectMissing(f"{verb} {key}: no such object")
        return found
