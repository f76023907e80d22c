"""The seam between the repository and a place that keeps objects.

An object is named by a key: segments of letters, digits, ``-``, ``_`` and ``.`` joined by ``/``; keys differ by more
than case and hold no ``:``. Nothing is ever overwritten. All implementations pass ``tests/storage/contract.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object as the store lists it: key, size in bytes, mtime in seconds since 1970 by the *store's* clock."""

    key: str
    size: int
    mtime: float


@dataclass(frozen=True, slots=True)
class Space:
    """Room on the volume behind a store, in bytes; ``device`` identifies the volume on this host."""

    total: int
    free: int
    device: int


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a store can promise beyond the six methods."""

    power_safe: bool  # barrier() makes everything before it survive a power cut
    local: bool  # only this host writes here, so a process id in a lease can be checked


class Storage(Protocol):
    """A place that keeps objects. Thread-safe; one instance serves many threads until ``close``.

    Every method raises StoreUnavailable (retryable), StoreUnplugged when the medium is gone, or StoreDenied.
    """

    @property
    def url(self) -> str:
        """Where this is, for people and messages; holds no secret."""
        ...

    @property
    def capabilities(self) -> Capabilities: ...

    def put(self, key: str, data: Sequence[Buffer]) -> None:
        """Store the joined parts under ``key``, or leave nothing. Create-only.

        Args: data - parts joined in order, 1 B to 64 MiB together; no reference is kept after return.
        Raises: ObjectExists, StoreFull.
        Atomic; on return the bytes are on the medium, their name too once ``barrier`` has returned.
        Source: rename(2), fsync(2).
        """
        ...

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """Read ``length`` bytes from ``offset`` (a negative offset counts from the end), or to the end.

        Returns: exactly the bytes that exist in that range; a range past the end gives fewer.
        Raises: ObjectMissing.
        """
        ...

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Every object whose key starts with ``prefix`` (ending in ``/``, or empty for all), in no order.

        Unfinished puts never show.
        """
        ...

    def stat(self, key: str) -> StoredObject:
        """Raises: ObjectMissing."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object; one that is absent already is no error."""
        ...

    def barrier(self) -> None:
        """Return when everything put before survives a power cut (as far as ``capabilities.power_safe`` says)."""
        ...

    def space(self) -> Space | None:
        """Room left, or None where the store has no such figure."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class KeepsFolders(Protocol):
    """A store in which a put needs its folder to be there: a file system."""

    def ensure_folders(self, folders: Iterable[str]) -> None:
        """Make those top-level folders that are absent, in a store that is known to be the right one.

        Call it only after something of the store was read: never in what may be an empty mount point.
        Raises: StoreUnplugged, StoreDenied, StoreFull, StoreUnavailable.
        """
        ...
