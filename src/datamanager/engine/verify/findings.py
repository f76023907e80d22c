"""What a verification is asked and finds; findings are collected from many threads."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from datamanager.base.errors import DataManagerError
from datamanager.base.events import Listener, Progress
from datamanager.storage.base import Storage


@dataclass(frozen=True, slots=True)
class Damage:
    """One object that is not what was written.

    Args:
        key: the object in the store.
        what: what is wrong with it, for people.
        backups_affected: backups that use the object, or that part of it.
        redundant: nothing is lost yet: a second copy is whole, or no backup's content lies in it.
    """

    key: str
    what: str
    backups_affected: list[str]
    redundant: bool = False


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """What the caller decides.

    Args:
        depth: see ``engine/verify/run.py``.
        sample_percent: share of the data packs that ``sample`` reads, above 0 to 100.
        rolling_days: within how many days a daily ``rolling`` reads everything, 1 or more.
        backups: ids of the only backups to look at, or None for all and everything else in the repository.
        threads: how many read at once; each holds one pack (33 MiB).
        write_down: leave marks, damaged lists and what was read when in the repository.
    """

    depth: Literal["present", "known", "sample", "rolling", "full"] = "full"
    sample_percent: float = 10.0
    rolling_days: int = 30
    backups: list[str] | None = None
    threads: int = 2
    write_down: bool = True


@dataclass(frozen=True, slots=True)
class BackupVerdict:
    """One backup. ``ok``: everything that was looked at can be restored, if need be from second copies."""

    backup: str
    ok: bool
    damages: list[Damage]


class Findings:
    """Damages, warnings and progress. Thread-safe."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._lock = threading.Lock()
        self._damages: dict[tuple[str, str], Damage] = {}
        self._done = self._total = 0
        self.warnings: list[str] = []
        self.objects = 0

    @property
    def bytes(self) -> int:
        """Bytes read and authenticated so far."""
        return self._done

    def damage(self, key: str, what: str, backups: Iterable[str], *, redundant: bool = False) -> None:
        """Note a damage; the same one found twice is one that affects the backups of both."""
        with self._lock:
            known = self._damages.get((key, what))
            affected = sorted({*backups, *(known.backups_affected if known else [])})
            self._damages[key, what] = Damage(key, what, affected, redundant and (known is None or known.redundant))

    def damages(self) -> list[Damage]:
        with self._lock:
            return sorted(self._damages.values(), key=lambda one: (one.redundant, one.key, one.what))

    def warn(self, message: str) -> None:
        with self._lock:
            self.warnings.append(message)

    def expect(self, size: int) -> None:
        """So many more bytes are to be read."""
        with self._lock:
            self._total += size

    def read(self, size: int, *, objects: int = 1) -> None:
        """Bytes that were read, and of how many objects they are the last."""
        with self._lock:
            self._done += size
            self._total = max(self._total, self._done)
            self.objects += objects
            self._listener(Progress(self._done, self._total))


def cause(error: DataManagerError) -> str:
    """The part of a message that follows ``verb noun:``."""
    return error.message.partition(": ")[2] or error.message


def require_store(storage: Storage) -> None:
    """Tell a bad sector from a store that is gone: names and sizes must still be answered.

    Raises: StoreError, when the store as a whole does not answer.
    """
    next(iter(storage.list("keys/")), None)
