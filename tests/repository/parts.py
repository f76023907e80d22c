"""Small repositories for tests, in memory, and ways to spoil them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from datamanager.base.events import Event, ignore
from datamanager.base.pipeline import StopToken
from datamanager.engine.backup.run import BackupResult, run_backup
from datamanager.engine.backup.session import BackupOptions
from datamanager.engine.verify.run import VerifyOptions, VerifyResult, verify_repository
from datamanager.postgres.source import BackupSource
from datamanager.repository.keys import SlotSecret
from datamanager.repository.repository import Repository
from datamanager.storage.base import Storage
from datamanager.storage.memory import MemoryStorage
from tests.engine.synthetic_source import SyntheticCluster, SyntheticSource

KEY_FILE = SlotSecret.new_key_file()


class SetClock:
    """A clock that stands until it is moved. Thread-safe."""

    def __init__(self, now: datetime = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)) -> None:
        self._lock = threading.Lock()
        self._now = now
        self._elapsed = 1000.0

    def now(self) -> datetime:
        with self._lock:
            return self._now

    def elapsed(self) -> float:
        with self._lock:
            return self._elapsed

    def advance(self, seconds: float) -> None:
        with self._lock:
            self._now += timedelta(seconds=seconds)
            self._elapsed += seconds

    def set_wall(self, now: datetime) -> None:
        """Move the wall clock alone, backwards too."""
        with self._lock:
            self._now = now


def new_repository(storage: Storage | None = None, clock: SetClock | None = None) -> Repository:
    """A repository that KEY_FILE opens."""
    clock = clock or SetClock()
    return Repository.create(storage or MemoryStorage(clock), [(KEY_FILE, "test")], clock)


def reopen(repository: Repository, storage: Storage | None = None, told: list[str] | None = None) -> Repository:
    """The repository as another process would open it; what it reports goes into ``told``."""
    messages = told if told is not None else []
    return Repository.open(storage or repository.storage, KEY_FILE, repository.clock, messages.append)


def backup(
    repository: Repository,
    cluster: SyntheticCluster,
    *,
    source: BackupSource | None = None,
    listener: Callable[[Event], None] = ignore,
) -> BackupResult:
    """Back the cluster up, from ``source`` if that is not simply its files."""
    with StopToken() as stop:
        source = source or SyntheticSource(cluster)
        return run_backup(repository, source, cluster.facts, BackupOptions("office", "test"), stop, listener)


def verify(repository: Repository, options: VerifyOptions | None = None) -> VerifyResult:
    with StopToken() as stop:
        return verify_repository(repository, options or VerifyOptions(), stop, ignore)


def copy_of(storage: Storage, clock: SetClock | None = None) -> MemoryStorage:
    """Another store with the same objects."""
    copy = MemoryStorage(clock or SetClock())
    for one in storage.list(""):
        copy.put(one.key, [storage.get(one.key)])
    return copy


def overwrite(storage: Storage, key: str, data: bytes) -> None:
    """Give an object other bytes, as damage or an attacker would."""
    storage.delete(key)
    storage.put(key, [data])


def flip(storage: Storage, key: str, position: int, bit: int = 0) -> bytes:
    """Change one bit of an object; returns what was there before."""
    before = storage.get(key)
    spoilt = bytearray(before)
    spoilt[position] ^= 1 << bit
    overwrite(storage, key, bytes(spoilt))
    return before


def keys(storage: Storage, prefix: str) -> list[str]:
    return sorted(one.key for one in storage.list(prefix))
