"""Prune: give back the room of what no backup needs any more, page by page, and lose nothing whatever happens.

1 lease     exclusive where the store is local and nobody else is at work: then everything goes at once; else two steps
2 look      live leases first, then manifests: what they need, page by page (repository/liveness.py)
3 plan      repository/prune_plan.py
4 condemn   what is dead is written down, durably, before anything goes
5 sweep     manifests, metadata, packs of lists that are a day old and older than no live lease, if they are still dead
6 rewrite   a pack with little alive is written again with its live pages, read back, and only then the old one goes
7 tidy      marks that others replace, leases that nobody holds, lists that are settled

Killed anywhere, the next prune goes on from what it finds; two at once do each other no harm. A backup that cannot be
read stops everything: nobody knows what it needs. Source: ``docs/format.md``, Prune, decisions 3 and 5.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from datamanager.base.errors import NotFound, UsageError
from datamanager.base.events import Listener, PhaseStarted, Warned
from datamanager.base.pipeline import StopToken
from datamanager.engine.prune.packs import PackSurveyor, PackWriter
from datamanager.engine.prune.tidy import drop_stale_leases, drop_superseded_marks
from datamanager.repository.condemned import CondemnedList, put_condemned, read_condemned
from datamanager.repository.damaged import drop_settled
from datamanager.repository.format import pack_key
from datamanager.repository.lease import Lease, LeaseRecord
from datamanager.repository.liveness import LivePages, Roots, find_roots, metadata_packs
from datamanager.repository.objects import UNREADABLE
from datamanager.repository.prune_plan import ORPHAN_SECONDS, PrunePlan, plan_dead, plan_manifests, plan_rewrites
from datamanager.repository.repository import Repository
from datamanager.storage.base import StoredObject

# A day: longer than any backup that began before and does not renew its lease could go unnoticed, and time to undelete.
CONDEMNED_SECONDS = 86_400.0
# Times of a store are whole or even seconds on FAT; a lease this close to a list counts as older.
_SAME_TIME_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class PruneOptions:
    """What the caller decides.

    Args:
        max_repack_percent: of the bytes of all data packs, how much may be written again in one run; 0 to 100.
        dry_run: only plan.
    """

    max_repack_percent: float = 100.0
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class PruneResult:
    """What was done, or would be.

    Args:
        exclusive: nobody else was at work, so that nothing had to wait.
        plan: what was found.
        freed_bytes: given back now (objects deleted less what was written again), in a dry run an estimate.
        later_bytes: condemned now or before; a prune a day later gives them back.
        written_bytes: packs written again.
        packs_rewritten, objects_deleted: how many.
    """

    dry_run: bool
    exclusive: bool
    plan: PrunePlan
    freed_bytes: int
    later_bytes: int
    written_bytes: int
    packs_rewritten: int
    objects_deleted: int
    seconds: float
    warnings: list[str]


def prune_repository(repository: Repository, options: PruneOptions, stop: StopToken, listener: Listener) -> PruneResult:
    """Plan and, unless it is a dry run, apply.

    Raises: IntegrityError (a backup that cannot be read; nothing was deleted), Busy (the lease was lost on the way;
    what was done so far stands), StoreError, Cancelled, UsageError.
    """
    if not 0 <= options.max_repack_percent <= 100:
        raise UsageError("prune repository: a share is 0 to 100 percent")
    began = repository.clock.elapsed()
    # An instance of its own: nothing may come from what another one remembers.
    own = Repository(repository.storage, repository.ring, repository.clock, repository.objects.report)
    run = _Prune(own, options, stop, listener)
    lease = run.take_lease()
    try:
        run.look()
        if options.dry_run:
            run.foretell()
        else:
            run.apply()
    finally:
        if lease is not None:
            lease.release()
    for warning in run.warnings:
        listener(Warned(warning))
    return PruneResult(
        dry_run=options.dry_run,
        exclusive=run.exclusive,
        plan=run.plan,
        freed_bytes=run.freed - run.written,
        later_bytes=run.later,
        written_bytes=run.written,
        packs_rewritten=run.rewritten,
        objects_deleted=run.deleted,
        seconds=own.clock.elapsed() - began,
        warnings=run.warnings,
    )


@dataclass(slots=True)
class _Lists:
    """The condemned lists: all of them, those that are due, and what cannot be read."""

    all: list[CondemnedList] = field(default_factory=list)
    due: list[CondemnedList] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    @property
    def keys(self) -> set[str]:
        return {key for one in self.all for key in one.keys}

    @property
    def due_keys(self) -> set[str]:
        return {key for one in self.due for key in one.keys}

    @property
    def waiting_keys(self) -> set[str]:
        return {key for one in self.all if one not in self.due for key in one.keys}


class _Prune:
    """The steps of one prune and what they hand on. Used by one thread."""

    def __init__(self, repository: Repository, options: PruneOptions, stop: StopToken, listener: Listener) -> None:
        self._repository = repository
        self._storage = repository.storage
        self._options = options
        self._stop = stop
        self._listener = listener
        self._lease: Lease | None = None
        self._leases: list[LeaseRecord] = []
        self._unknown: list[str] = []
        self._live = LivePages()
        self._lists = _Lists()
        self._written_lists: list[str] = []
        self.exclusive = False
        self.plan = PrunePlan()
        self.warnings: list[str] = []
        self.freed = self.written = self.later = self.rewritten = self.deleted = 0

    # -- 1 lease ----------------------------------------------------------------------------------------------------
    def take_lease(self) -> Lease | None:
        """Exclusive where that is possible; none for a dry run on a medium that cannot be written."""
        leases = self._repository.leases
        local = self._storage.capabilities.local
        if self._options.dry_run:
            self._lease = self._repository.take_lease_if_possible("prune", [], self.warnings.append, stop=self._stop)
            self._leases, self._unknown = leases.survey(self._lease)
            self.exclusive = local and not self._leases and not self._unknown
            return self._lease
        lease = self._lease = self._repository.take_lease("prune", stop=self._stop, exclusive=local)
        try:
            self._leases, self._unknown = leases.survey(lease)
            self.exclusive = local and not self._leases and not self._unknown
            if local and not self.exclusive:
                # Whoever waits for us goes on, and of two that began together both are careful.
                lease.renew(exclusive=False)
                leases.wait(lease, self._stop)
                self._leases, self._unknown = leases.survey(lease)
        except BaseException:
            lease.release()
            raise
        return lease

    # -- 2 look, 3 plan ---------------------------------------------------------------------------------------------
    def look(self) -> None:
        """Find what is needed and plan. Leases were listed before; packs are listed before manifests."""
        self._listener(PhaseStarted("looking at what backups need"))
        now = self._repository.leases.now(self._lease)
        listed = {folder: list(self._storage.list(folder)) for folder in ("packs/", "meta/", "meta-b/")}
        self._read_lists(now)
        manifests = {
            one.key: one.size for folder in ("manifests/", "manifests-b/") for one in self._storage.list(folder)
        }
        roots = find_roots(self._repository, {name for record in self._leases for name in record.parents})
        for manifest in roots.kept:
            self._live.add(self._repository, manifest, self._stop)
        self._plan_dead(roots, listed, manifests, now)
        self._listener(PhaseStarted("looking at packs"))
        surveyor = PackSurveyor(self._repository, self._live, self._stop)
        states = surveyor.states(listed["packs/"])
        self.warnings += surveyor.warnings
        total = sum(one.size for one in listed["packs/"])
        plan_rewrites(states, total * self._options.max_repack_percent / 100, self.plan)

    def _read_lists(self, now: float) -> None:
        self._lists.all, self._lists.unreadable = read_condemned(self._repository)
        self._lists.due = [one for one in self._lists.all if self.exclusive or self._is_due(one, now)]

    def _is_due(self, one: CondemnedList, now: float) -> bool:
        """A day old, and nobody at work who may have begun before it was put."""
        if now - one.mtime < CONDEMNED_SECONDS or self._unknown:
            return False
        return all(record.since > one.mtime + _SAME_TIME_SECONDS for record in self._leases)

    def _plan_dead(
        self, roots: Roots, listed: dict[str, list[StoredObject]], manifests: dict[str, int], now: float
    ) -> None:
        plan_manifests(self.plan, roots.deleted, manifests)
        metadata, named = self._named_by_deleted(roots.deleted)
        condemned, before = self._lists.keys, now - ORPHAN_SECONDS
        for folder in ("meta/", "meta-b/"):
            plan_dead(self.plan, listed[folder], self._live.metadata, metadata, condemned, before)
        plan_dead(self.plan, listed["packs/"], self._live.masks, named | self._live.named.keys(), condemned, before)

    def _named_by_deleted(self, deleted: list[str]) -> tuple[set[bytes], set[bytes]]:
        """Packs of layers, and of data, that deleted backups name; those of unreadable ones count as orphans."""
        metadata: set[bytes] = set()
        named: set[bytes] = set()
        for name in deleted:
            try:
                manifest = self._repository.manifest(name)
                metadata |= metadata_packs(manifest.layers)
                for reference in manifest.layers:
                    named.update(pack for pack, _ in self._repository.layer(reference).packs)
            except (*UNREADABLE, NotFound):
                continue
        return metadata, named

    def foretell(self) -> None:
        """Say what ``apply`` would give back now and what later, without doing anything."""
        dead = self.plan.dead
        superseded = {
            pack_key(one.pack, number): size for one in self.plan.superseded for number, size in one.generations.items()
        }
        due = dead | superseded if self.exclusive else {}
        due |= {key: size for key, size in (dead | superseded).items() if key in self._lists.due_keys}
        self.freed = sum(due.values())
        self.later = sum(size for key, size in (dead | superseded).items() if key not in due)
        self.deleted = len(due)
        self.written = sum(one.expected for one in self.plan.rewrites)
        self.rewritten = len(self.plan.rewrites)
        replaced = sum(one.size for one in self.plan.rewrites)
        if self.exclusive:
            self.freed += replaced
        else:
            self.later += replaced

    # -- 4 to 7 -----------------------------------------------------------------------------------------------------
    def apply(self) -> None:
        """Do what was planned. Raises: Busy, StoreError, Cancelled."""
        dead = self.plan.dead
        fresh = dead.keys() - self._lists.keys
        self._condemn(fresh)
        if dead:
            self._listener(PhaseStarted("deleting"))
        due = dead.keys() if self.exclusive else self._lists.due_keys
        for part in (self.plan.manifests, self.plan.metadata, self.plan.packs):
            wanted = {key: size for key, size in part.items() if key in due}
            self._delete(wanted)
            self.later += sum(part.values()) - sum(wanted.values())
        self._retire()
        self._rewrite()
        self._tidy()

    def _condemn(self, keys: Iterable[str]) -> None:
        """Write down what is to go. Raises: StoreError."""
        self._written_lists += put_condemned(self._repository, keys)

    def _delete(self, sizes: dict[str, int]) -> None:
        if not sizes:
            return
        for key, size in sizes.items():
            self._check()
            self._storage.delete(key)
            self.freed += size
            self.deleted += 1
        self._storage.barrier()

    def _check(self) -> None:
        """Raises: Cancelled; Busy, when others may think that we are gone."""
        self._stop.check()
        if self._lease is not None:
            self._lease.check()

    def _retire(self) -> None:
        """Generations that a higher one replaces, written by an earlier prune: that one is read first."""
        if not self.plan.superseded:
            return
        self._listener(PhaseStarted("checking packs that were written again"))
        writer = PackWriter(self._repository, self._live)
        listed, due = self._lists.waiting_keys, self._lists.due_keys
        condemned: dict[str, int] = {}
        for one in self.plan.superseded:
            self._check()
            sizes = {pack_key(one.pack, number): size for number, size in one.generations.items()}
            waiting = {key: size for key, size in sizes.items() if key in listed - due}
            self.later += sum(waiting.values())
            rest = {key: size for key, size in sizes.items() if key not in waiting}
            if not rest:
                continue
            try:
                writer.check(one.pack, one.keeper)
            except UNREADABLE as error:
                self.warnings.append(f"{error.message}; the generation before it stays")
                continue
            now = {key: size for key, size in rest.items() if self.exclusive or key in due}
            self._delete(now)
            condemned |= {key: size for key, size in rest.items() if key not in now}
        self._condemn(condemned)
        self.later += sum(condemned.values())

    def _rewrite(self) -> None:
        if not self.plan.rewrites:
            return
        self._listener(PhaseStarted("writing packs again"))
        writer = PackWriter(self._repository, self._live)
        for group in writer.write(self.plan.rewrites, self._check, self.warnings):
            sizes = {key: size for one in group for key, size in one.replaced.items()}
            self.written += sum(one.size for one in group)
            self.rewritten += len(group)
            if self.exclusive:
                self._delete(sizes)
            else:
                self._condemn(sizes.keys() - self._lists.waiting_keys)
                self.later += sum(sizes.values())

    def _tidy(self) -> None:
        self._check()
        settled = [one.key for one in self._lists.due]
        if self.exclusive:
            settled += [*self._lists.unreadable, *self._written_lists]
        for key in settled:
            self._storage.delete(key)
        drop_superseded_marks(self._repository)
        if self._lease is not None:
            drop_stale_leases(self._repository, self._lease)
        drop_settled(self._repository, self._live.masks)
        self._storage.barrier()
