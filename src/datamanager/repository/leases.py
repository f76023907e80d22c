"""Taking leases, and seeing who else holds one: the rules by which writers, long readers and prunes meet.

Each puts its own lease first and looks at the others' then, so of two that start together at least one sees the other.
Source: ``docs/format.md``, Leases and decision 5.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

from datamanager.base.clock import Clock
from datamanager.base.errors import Busy, ObjectMissing, StoreDenied, StoreFull
from datamanager.base.pipeline import StopToken
from datamanager.repository.format import LATER_FOLDERS, Kind
from datamanager.repository.lease import STALE_SECONDS, Lease, LeaseRecord
from datamanager.repository.objects import UNREADABLE, SealedStore
from datamanager.storage.base import KeepsFolders, StoredObject

FOLDER = "leases/"
# Often enough that a short sweep costs a backup little, seldom enough for a store that charges by the request.
_FIRST_LOOK_SECONDS, _LONGEST_LOOK_SECONDS = 0.2, 5.0


class Leases:
    """The leases of one repository. Thread-safe."""

    def __init__(self, objects: SealedStore, clock: Clock) -> None:
        self._objects = objects
        self._storage = objects.storage
        self._clock = clock

    def take(self, kind: str, subject: str, stop: StopToken | None, *, exclusive: bool) -> Lease:
        """See ``Repository.take_lease``."""
        if isinstance(self._storage, KeepsFolders):
            self._storage.ensure_folders(LATER_FOLDERS)
        record = LeaseRecord.new(kind, subject, self._clock.now().isoformat(timespec="seconds"), exclusive)
        lease = Lease(record, self._put, self._storage.stat, self._storage.delete, self._clock)
        if not exclusive:
            try:
                self.wait(lease, stop)
            except BaseException:
                lease.release()
                raise
        return lease

    def wait(self, own: Lease, stop: StopToken | None) -> None:
        """Return when no other lease is exclusive. Raises: Cancelled, StoreError."""
        seconds, said = _FIRST_LOOK_SECONDS, False
        while holder := next((one for one in self.live(own) if one.exclusive), None):
            if not said:
                self._objects.report(
                    f"waiting until the {holder.kind} on {holder.host} (process {holder.pid}) has ended, "
                    "which has the repository for itself"
                )
                said = True
            if stop is None:
                threading.Event().wait(seconds)
            elif stop.wait(seconds):
                stop.check()
            seconds = min(2 * seconds, _LONGEST_LOOK_SECONDS)

    def take_if_possible(
        self, kind: str, parents: Sequence[str], warn: Callable[[str], None], stop: StopToken | None
    ) -> Lease | None:
        """See ``Repository.take_lease_if_possible``."""
        lease = None
        try:
            lease = self.take(kind, "", stop, exclusive=False)
            if parents:
                lease.renew([*parents])
        except (StoreDenied, StoreFull) as error:
            if lease is not None:
                lease.release()
            warn(f"{error.message}; the {kind} goes on without telling other writers")
            return None
        return lease

    def live(self, own: Lease) -> list[LeaseRecord]:
        """Everyone else at work; ages are taken by the store's clock. Leases of processes that died here go."""
        return self.survey(own)[0]

    def survey(self, own: Lease | None) -> tuple[list[LeaseRecord], list[str]]:
        """The same, and the keys of leases that are fresh but cannot be read, which are reported."""
        live: dict[str, LeaseRecord] = {}
        unknown: list[str] = []
        for one, stale in self.others(own):
            if stale:
                continue
            try:
                record = self.record(one.key)
            except ObjectMissing:
                continue  # renewed under its next name, or released
            except UNREADABLE as error:
                self._objects.report(f"{error.message}; whose lease it is is not known")
                unknown.append(one.key)
                continue
            if record.dead_here():
                self._storage.delete(one.key)
            else:
                live[record.writer] = record
        return list(live.values()), unknown

    def others(self, own: Lease | None) -> Iterator[tuple[StoredObject, bool]]:
        """Every lease but our own, and whether it is too old to count."""
        now = self.now(own)
        mine = "" if own is None else f"{FOLDER}{own.record.writer}-"
        for one in list(self._storage.list(FOLDER)):
            if not mine or not one.key.startswith(mine):
                yield one, now - one.mtime > STALE_SECONDS

    def now(self, own: Lease | None) -> float:
        """The store's time, at least as late as our newest lease; this computer's time without one."""
        if own is None:
            return self._clock.now().timestamp()
        mine = f"{FOLDER}{own.record.writer}-"
        return max((one.mtime for one in self._storage.list(FOLDER) if one.key.startswith(mine)), default=0.0)

    def record(self, key: str) -> LeaseRecord:
        """Raises: IntegrityError, ObjectMissing, FormatUnsupported."""
        plain, _ = self._objects.get_small(Kind.LEASE, key, [key])
        return LeaseRecord.from_json(plain)

    def require_alone(self, own: Lease) -> None:
        """Raises: Busy, when another live lease does the same to the same cluster."""
        for record in self.live(own):
            if (record.kind, record.subject) == (own.record.kind, own.record.subject):
                raise Busy(
                    f"start {record.kind}: another one of this cluster has been running since {record.started} "
                    f"on {record.host} (process {record.pid})"
                )

    def require_no_prune(self, own: Lease) -> None:
        """Raises: Busy, while a prune is at work: it may be deleting what ``own`` was too late to name."""
        for record in self.live(own):
            if record.kind == "prune":
                raise Busy(
                    f"start {own.record.kind}: a prune has been running since {record.started} on {record.host} "
                    f"(process {record.pid})"
                )

    def _put(self, key: str, plain: bytes) -> None:
        self._objects.put_small(Kind.LEASE, key, [key], plain)
