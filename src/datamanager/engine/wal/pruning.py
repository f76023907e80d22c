"""Giving back the room of WAL that no kept backup and no window needs: look, plan (``retention.py``), delete.

Nothing is deleted while anybody else is at work here, for a restore may be replaying what goes; nor of a line whose
record cannot be read, nor anything at all while a backup cannot be read, for nobody knows what it needs. The oldest
goes first, so that a kill midway leaves WAL without a new hole, and a line's record goes last.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from datamanager.base.events import Listener, PhaseStarted, Warned
from datamanager.base.pipeline import StopToken
from datamanager.base.units import Lsn
from datamanager.engine.wal.retention import BackupNeed, LineFacts, LinePlan, covering, plan_lines
from datamanager.postgres.control_file import STOPPED
from datamanager.repository.lease import Lease
from datamanager.repository.liveness import find_roots
from datamanager.repository.manifest import Manifest
from datamanager.repository.objects import UNREADABLE
from datamanager.repository.repository import Repository
from datamanager.repository.wal.archive import Line, WalArchive, systems
from datamanager.repository.wal.names import StoredWal


@dataclass(frozen=True, slots=True)
class WalPruneOptions:
    """What the caller decides.

    Args:
        windows: of each configured cluster, how far back every moment must be reachable; None is all of it.
        live: lines that are known to be written.
        gone: backups that count as gone already, for a dry run.
        dry_run: only plan.
    """

    windows: Mapping[str, timedelta | None] = field(default_factory=dict)
    live: Collection[str] = ()
    gone: Collection[str] = ()
    dry_run: bool = False


@dataclass(slots=True)
class WalPruneResult:
    """What was done, or would be.

    Args:
        plans: of each system identifier.
        objects, bytes: how many were deleted, or would be.
        waiting: who is at work, so that nothing was deleted; empty otherwise.
    """

    plans: dict[int, list[LinePlan]] = field(default_factory=dict)
    objects: int = 0
    bytes: int = 0
    waiting: str = ""

    @property
    def something_goes(self) -> bool:
        return any(one.going or one.covered or one.whole for plans in self.plans.values() for one in plans)


def prune_wal(repository: Repository, options: WalPruneOptions, stop: StopToken, listener: Listener) -> WalPruneResult:
    """Delete the WAL that nothing needs, or only say what would go.

    Raises: IntegrityError (a backup that cannot be read; nothing was deleted), StoreError, Busy, Cancelled.
    """
    found = systems(repository)
    if not found:
        return WalPruneResult()
    listener(PhaseStarted("looking at archived WAL"))
    if options.dry_run:
        return _Run(repository, options, stop, listener, None).run(found)
    lease = repository.take_lease("prune", stop=stop, exclusive=repository.storage.capabilities.local)
    try:
        return _Run(repository, options, stop, listener, lease).run(found)
    finally:
        lease.release()


class _Run:
    """One pass over all archives of a repository. One thread."""

    def __init__(
        self,
        repository: Repository,
        options: WalPruneOptions,
        stop: StopToken,
        listener: Listener,
        lease: Lease | None,
    ) -> None:
        self._repository = repository
        self._options = options
        self._stop = stop
        self._listener = listener
        self._lease = lease
        self._lines: dict[str, tuple[WalArchive, Line]] = {}

    def run(self, found: list[int]) -> WalPruneResult:
        leases = self._repository.leases
        others, unknown = leases.survey(self._lease)
        now = datetime.fromtimestamp(leases.now(self._lease), UTC)
        manifests = self._manifests()
        result = WalPruneResult({system: self._planned(system, manifests, now) for system in found})
        if not result.something_goes:
            return result
        if self._options.dry_run:
            going = [one for plans in result.plans.values() for plan in plans for one in (*plan.going, *plan.covered)]
            result.objects, result.bytes = len(going), sum(one.size for one in going)
        elif others or unknown:
            words = [f"a {one.kind} on {one.host} (process {one.pid})" for one in others]
            result.waiting = ", ".join(words) or "somebody"
        else:
            for plans in result.plans.values():
                for plan in plans:
                    self._apply(plan, result)
            self._repository.storage.barrier()
        return result

    # -- look ----------------------------------------------------------------------------------------------------------
    def _manifests(self) -> list[Manifest]:
        """Every backup that can still be restored, those included that are marked as deleted but lie there yet."""
        roots = find_roots(self._repository, ())
        found = [one for one in roots.kept if one.backup not in self._options.gone]
        for name in roots.deleted:
            if name not in self._options.gone:
                try:
                    found.append(self._repository.manifest(name))
                except UNREADABLE:
                    continue
        return found

    def _planned(self, system: int, manifests: list[Manifest], now: datetime) -> list[LinePlan]:
        archive = WalArchive(self._repository, system)
        facts = []
        for line in archive.lines():
            self._stop.check()
            self._lines[line.id] = archive, line
            facts.append(_facts(line))
        own = [one for one in manifests if one.system_identifier == str(system)]
        names = {line.record.cluster for each, line in self._lines.values() if each is archive}
        window = window_of(names | {one.cluster for one in own}, self._options.windows)
        return plan_lines(facts, [_need(one) for one in own], window, now, self._options.live)

    # -- delete --------------------------------------------------------------------------------------------------------
    def _apply(self, plan: LinePlan, result: WalPruneResult) -> None:
        archive, line = self._lines[plan.line]
        for one in plan.going:
            self._delete(line, one, result)
        for one in plan.covered:
            if self._is_held_elsewhere(line, one):
                self._delete(line, one, result)
        if plan.whole:
            self._repository.storage.barrier()
            archive.drop_record(line)

    def _delete(self, line: Line, one: StoredWal, result: WalPruneResult) -> None:
        self._stop.check()
        if self._lease is not None:
            self._lease.check()
        line.delete([one])
        result.objects += 1
        result.bytes += one.size

    def _is_held_elsewhere(self, line: Line, one: StoredWal) -> bool:
        """Whether what is longer can be read: a piece may be all that is left of a damaged segment."""
        for other in covering(one, line.stored()):
            try:
                line.check(other)
            except UNREADABLE as error:
                self._listener(Warned(f"{error.message}; what else holds its WAL stays"))
                continue
            return True
        return False


def window_of(names: Collection[str], windows: Mapping[str, timedelta | None]) -> timedelta | None:
    """How far back the WAL of a server must reach that is backed up under these names; None is all of it.

    Where none of them is configured here another computer may promise more than is known here.
    """
    known = [windows[name] for name in names if name in windows]
    given = [one for one in known if one is not None]
    return max(given) if known and len(given) == len(known) else None


def _facts(line: Line) -> LineFacts:
    created = datetime.fromisoformat(line.record.created)
    return LineFacts(line.id, line.timeline, line.segment_size, line.history, created, tuple(line.stored()))


def _need(manifest: Manifest) -> BackupNeed:
    replayable = not manifest.cold or manifest.control.get("state") == STOPPED
    return BackupNeed(
        manifest.backup,
        manifest.timeline,
        Lsn.parse(manifest.start_lsn),
        manifest.stop,
        datetime.fromisoformat(manifest.ended),
        replayable and not manifest.damaged,
    )
