"""Leases: how writers and long readers on any host know of each other without locks.

A lease is a sealed object renewed every five minutes under a new name; it ages by the store's own clock. One that was
not renewed for 30 minutes, or whose process is dead on the same boot of the same host, is stale.
Source: ``docs/format.md`` decision 5.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import socket
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from datamanager.base.clock import Clock
from datamanager.base.errors import Busy, DataManagerError, IntegrityError, ObjectMissing, StoreError
from datamanager.base.lazy import lazy
from datamanager.repository.format import canonical_json
from datamanager.storage.base import StoredObject
from datamanager.system.processes import boot_id, has_ended

if TYPE_CHECKING:
    import uuid
else:
    uuid = lazy("uuid")

RENEW_SECONDS = 300.0
ABORT_SECONDS = 900.0  # a writer that could not renew for so long must not commit: two misses and a margin
STALE_SECONDS = 1800.0

_REMOVED = "another program removed the lease on the repository"
_NOT_RENEWED = "the lease on the repository could not be renewed for 15 minutes"
_LATER = frozenset({"since", "exclusive"})  # fields that the first release's leases lack


def machine_id() -> str:
    """Tells machines of one name apart, without naming them: a digest of what the system calls itself."""
    with contextlib.suppress(OSError):
        return hashlib.sha256(Path("/etc/machine-id").read_bytes()).hexdigest()[:16]
    return hashlib.sha256(uuid.getnode().to_bytes(8, "big")).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """Who is at work on a repository, at what."""

    writer: str
    host: str
    machine: str
    boot: str
    pid: int
    kind: str  # backup | restore | verify | prune …
    subject: str  # system identifier of the cluster, or empty
    parents: list[str]  # backups that must stay as long as the lease lives
    started: str
    since: float = 0.0  # the store's time of the lease's first object; 0 until it was renewed
    exclusive: bool = False  # everybody else waits

    @classmethod
    def new(cls, kind: str, subject: str, started: str, exclusive: bool = False) -> LeaseRecord:
        return cls(
            secrets.token_hex(8),
            socket.gethostname(),
            machine_id(),
            boot_id(),
            os.getpid(),
            kind,
            subject,
            [],
            started,
            exclusive=exclusive,
        )

    def to_json(self) -> bytes:
        """Without the fields that the first release did not have, as long as they say nothing."""
        return canonical_json({name: one for name, one in asdict(self).items() if name not in _LATER or one})

    @classmethod
    def from_json(cls, data: bytes) -> LeaseRecord:
        """Raises: IntegrityError. Fields that a newer program added are ignored."""
        try:
            value = json.loads(data)
            names = [one.name for one in fields(cls) if one.name in value or one.name not in _LATER]
            return cls(**{name: value[name] for name in names})
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError("read lease: malformed") from error

    def dead_here(self) -> bool:
        """Its process ran on this boot of this host and is gone."""
        if (self.host, self.machine) != (socket.gethostname(), machine_id()):
            return False
        return self.boot != boot_id() or has_ended(self.pid)


class Lease:
    """A lease held by this process, renewed by a thread of its own until ``release``. Thread-safe.

    Args: put - stores a record under a key; stat - raises ObjectMissing for one that is not there; delete - removes it.
    """

    def __init__(
        self,
        record: LeaseRecord,
        put: Callable[[str, bytes], None],
        stat: Callable[[str], StoredObject],
        delete: Callable[[str], None],
        clock: Clock,
    ) -> None:
        self._record = record
        self._put = put
        self._stat = stat
        self._delete = delete
        self._clock = clock
        self._number = 0
        self._keys: list[str] = []  # all that may be stored, the valid one last
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._renewed = 0.0
        self._held = ""
        self._since = 0.0
        self._lost = ""
        self.renew()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    @property
    def record(self) -> LeaseRecord:
        return self._record

    def renew(self, parents: list[str] | None = None, *, exclusive: bool | None = None) -> None:
        """Put the lease under its next name, now also for ``parents``, and drop the one before.

        Raises: StoreError.
        """
        with self._lock:
            self._look_back()
            self._record = replace(self._record, since=self._since)
            if parents is not None:
                self._record = replace(self._record, parents=parents)
            if exclusive is not None:
                self._record = replace(self._record, exclusive=exclusive)
            before = self._clock.elapsed()
            # A put that fails may have stored its object all the same, so no name is tried twice.
            self._number += 1
            self._keys.append(self._key(self._number))
            self._put(self._keys[-1], self._record.to_json())
            self._renewed, self._held = before, self._keys[-1]
            while self._keys[0] != self._held:
                self._delete(self._keys[0])
                del self._keys[0]

    def _look_back(self) -> None:
        """Learn our age, and whether others may have counted us out: a new object would hide that."""
        if not self._held:
            return
        if self._clock.elapsed() - self._renewed > ABORT_SECONDS:  # the machine slept, or the store was away
            self._lost = _NOT_RENEWED
        try:
            mtime = self._stat(self._held).mtime
        except ObjectMissing:
            self._lost = self._lost or _REMOVED
        except StoreError:
            return
        else:
            # Of the first object or never: a later one would make the lease look younger than it is.
            self._since = mtime if self._number == 1 else self._since

    def check(self) -> None:
        """Raises: Busy, when others may have taken the lease for dead since it was put; StoreError."""
        with self._lock:
            if not self._lost and self._clock.elapsed() - self._renewed > ABORT_SECONDS:
                self._lost = _NOT_RENEWED
            if not self._lost:
                try:
                    self._stat(self._held)
                except ObjectMissing:
                    self._lost = _REMOVED
            if self._lost:
                kind = self._record.kind
                again = "; it reuses what is already stored" if kind == "backup" else ""
                raise Busy(f"commit {kind}: {self._lost}", hint=f"Run the {kind} again{again}.")

    def release(self) -> None:
        """End the lease; one that cannot be deleted grows stale by itself."""
        self._ended.set()
        self._thread.join()
        with self._lock:
            for key in self._keys:
                with contextlib.suppress(DataManagerError):
                    self._delete(key)

    def _key(self, number: int) -> str:
        return f"leases/{self._record.writer}-{number:06d}"

    def _keep(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            with contextlib.suppress(StoreError):  # tried again in five minutes; check() decides
                self.renew()
