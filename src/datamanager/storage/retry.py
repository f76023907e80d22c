"""A wrapper that tries again what failed for a passing reason: errors whose class says ``retryable``."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from datamanager.base.errors import Cancelled, ObjectExists, StoreError
from datamanager.base.pipeline import StopToken
from datamanager.storage.base import Buffer, Capabilities, KeepsFolders, Space, Storage, StoredObject

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently: the defaults wait some 12 seconds in all, enough for a USB hub or a router."""

    attempts: int = 6  # tries in all, the first one counted
    first_seconds: float = 0.4  # the wait after the first failure; doubles each time
    longest_seconds: float = 10.0  # no single wait is longer

    def wait_seconds(self, failures: int, chance: float) -> float:
        """The wait after that many failures; ``chance`` in [0, 1) takes up to half off, so that threads part ways."""
        full: float = min(self.longest_seconds, self.first_seconds * 2 ** min(failures - 1, 60))
        return full * (1 - chance / 2)


class RetryingStorage:
    """Thread-safe if the wrapped store is; ``close`` closes that one too.

    Asking ``stop`` ends a wait at once with Cancelled. Calls made after that are tried once, so that a stopped job can
    still remove its lease; their own error is what they raise.
    """

    def __init__(
        self,
        inner: Storage,
        stop: StopToken,
        policy: RetryPolicy | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._inner = inner
        self._stop = stop
        self._policy = policy or RetryPolicy()
        self._chance = chance

    @property
    def url(self) -> str:
        return self._inner.url

    @property
    def capabilities(self) -> Capabilities:
        return self._inner.capabilities

    def put(self, key: str, data: Sequence[Buffer]) -> None:
        """As the wrapped store. When a try failed although the object did arrive (an answer that was lost), the name
        is taken at the next one: then the stored bytes are compared, and equal ones are a success.
        """
        failed_before = False

        def attempt() -> None:
            nonlocal failed_before
            try:
                self._inner.put(key, data)
            except ObjectExists:
                if not failed_before or self._inner.get(key) != b"".join(data):
                    raise
            except StoreError:
                failed_before = True
                raise

        self._run(attempt)

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        return self._run(lambda: self._inner.get(key, offset, length))

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """As the wrapped store, but read to its end first: a listing that breaks off midway is begun anew, and must
        not show an object twice. An object costs some 200 bytes meanwhile; 1 TiB of backups has about 8,000.
        """
        return iter(self._run(lambda: [*self._inner.list(prefix)]))

    def stat(self, key: str) -> StoredObject:
        return self._run(lambda: self._inner.stat(key))

    def delete(self, key: str) -> None:
        self._run(lambda: self._inner.delete(key))

    def ensure_folders(self, folders: Iterable[str]) -> None:
        inner = self._inner
        if isinstance(inner, KeepsFolders):
            wanted = [*folders]
            self._run(lambda: inner.ensure_folders(wanted))

    def barrier(self) -> None:
        """As the wrapped store, tried once: the kernel reports a write that failed to one caller only, so a second
        barrier may succeed over bytes that are lost. Source: syncfs(2), errors since Linux 5.8.
        """
        self._inner.barrier()

    def space(self) -> Space | None:
        return self._run(self._inner.space)

    def close(self) -> None:
        self._inner.close()

    def _run(self, attempt: Callable[[], T]) -> T:
        failures = 0
        while True:
            try:
                return attempt()
            except StoreError as error:
                failures += 1
                if not error.retryable or failures >= self._policy.attempts or self._stop.stopping:
                    raise
                if self._stop.wait(self._policy.wait_seconds(failures, self._chance())):
                    raise Cancelled(self._stop.reason) from error
