"""Heal a repository from another one that holds the same packs: a copy of the drive, or a sibling.

1 look       metadata whole, and the data packs that damaged lists name or that are missing (verify, depth ``known``)
2 metadata   each damaged or missing copy is replaced by its twin, here or there
3 packs      the good chunks of ours and theirs become the next generation of the pack, which is read back
4 look again what is still damaged, and which backups that affects; lists that are settled go

What verify has not found yet is not healed: a full ``repo verify`` comes first. Nothing good is ever given up: a pack
is written beside its damaged generation, and metadata is replaced once the good bytes are at hand.
Source: ``docs/format.md`` decision 6.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

from datamanager.base.errors import IntegrityError, NotFound, StoreDenied, StoreFull, UsageError
from datamanager.base.events import Event, Listener, PhaseStarted, Warned
from datamanager.base.pipeline import StopToken
from datamanager.engine.heal.metadata import MetadataHealer
from datamanager.engine.heal.packs import Gathered, PackHealer
from datamanager.engine.verify.findings import Damage, cause
from datamanager.engine.verify.run import VerifyOptions, VerifyResult, verify_repository
from datamanager.repository.lease import Lease
from datamanager.repository.objects import UNREADABLE
from datamanager.repository.repository import Repository

# Manifests, then their layers, then a last look that finds no more.
_LOOKS = 3


@dataclass(frozen=True, slots=True)
class HealOptions:
    """What the caller decides.

    Args:
        dry_run: find out what could be healed, and write nothing but leases.
        threads: how many read at once while looking.
    """

    dry_run: bool = False
    threads: int = 2


@dataclass(frozen=True, slots=True)
class Healed:
    """An object that is whole again, or would be: ``key`` is where it lies now; empty in a dry run for a pack."""

    damaged_key: str
    key: str
    what: str


@dataclass(frozen=True, slots=True)
class NotHealed:
    """An object that stays damaged, and why."""

    key: str
    what: str


@dataclass(frozen=True, slots=True)
class HealResult:
    """What was done. ``affected``: backups that still miss something; in a dry run, that would."""

    healed: list[Healed]
    not_healed: list[NotHealed]
    affected: list[str]
    warnings: list[str]
    dry_run: bool
    seconds: float


@dataclass(slots=True)
class _Known:
    """What the layers say of a pack."""

    digests: set[bytes] = field(default_factory=set)
    page_size: int = 0


class _Run:
    def __init__(
        self, repository: Repository, source: Repository, options: HealOptions, stop: StopToken, listener: Listener
    ) -> None:
        self.repository = repository
        self.options = options
        self.stop = stop
        self.listener = listener
        self.metadata = MetadataHealer(repository, source, stop)
        self.packs = PackHealer(repository, source, stop)
        self.healed: list[Healed] = []
        self.not_healed: list[NotHealed] = []
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)
            self.listener(Warned(message))

    def look(self) -> VerifyResult:
        """What is known to be damaged; its warnings are ours."""

        def quiet(event: Event) -> None:
            if not isinstance(event, Warned):
                self.listener(event)

        # An instance of its own: what it remembers of packs may be out of date.
        fresh = Repository(self.repository.storage, self.repository.ring, self.repository.clock)
        options = VerifyOptions("known", threads=self.options.threads, write_down=not self.options.dry_run)
        found = verify_repository(fresh, options, self.stop, quiet)
        for warning in found.warnings:
            self.warn(warning)
        return found

    # -- metadata ---------------------------------------------------------------------------------------------------
    def heal_metadata(self, found: VerifyResult, lease: Lease) -> bool:
        """Replace damaged copies; whether anything was written."""
        tried = {one.key for one in self.not_healed}
        damages = {one.key: one for one in found.damages if not one.key.startswith("packs/") and one.key not in tried}
        if not damages:
            return False
        self.listener(PhaseStarted("healing metadata"))
        busy = self.repository.live_leases(lease)
        written = False
        for key in sorted(damages, reverse=True):  # second copies first: either of them makes a backup exist
            self.stop.check()
            if busy:
                who = f"a {busy[0].kind} is running on {busy[0].host}"
                self.not_healed.append(NotHealed(key, f"{who}, which may be writing it; heal again when it has ended"))
            else:
                written |= self._heal_copy(damages[key])
        return written

    def _heal_copy(self, damage: Damage) -> bool:
        try:
            good = self.metadata.find(damage)
            if good is None:
                return False  # what is wrong is a pack that the layer points to
            if not self.options.dry_run:
                self.metadata.put(good)
        except IntegrityError as error:
            self.not_healed.append(NotHealed(damage.key, cause(error)))
            return False
        self.healed.append(Healed(good.key, good.key, f"from {good.origin}"))
        return not self.options.dry_run

    # -- packs ------------------------------------------------------------------------------------------------------
    def heal_packs(self, found: VerifyResult) -> None:
        """Write the next generation of every damaged pack for which more is at hand than is there."""
        chunks: dict[bytes, set[int] | None] = {}
        keys: dict[bytes, str] = {}
        for item in found.damaged:
            keys[item.pack] = item.key
            before = chunks.get(item.pack, set())
            chunks[item.pack] = None if before is None or item.chunks is None else before | set(item.chunks)
        known = self._known(set(chunks))
        if chunks:
            self.listener(PhaseStarted("healing packs"))
        for pack in sorted(chunks):
            self.stop.check()
            gathered = self.packs.gather(pack, known[pack].digests, known[pack].page_size, chunks[pack])
            self._heal_pack(keys[pack], gathered)

    def _heal_pack(self, damaged_key: str, gathered: Gathered) -> None:
        wanting = len(gathered.wanting)
        if not gathered.gained:
            self.not_healed.append(NotHealed(damaged_key, "no other copy has what it lacks"))
            return
        what = f"{len(gathered.gained)} of {len(gathered.chunks)} chunks from {gathered.used[-1]}"
        key = ""
        if not self.options.dry_run:
            try:
                key = self.packs.write(gathered)
            except IntegrityError as error:
                self.not_healed.append(NotHealed(damaged_key, cause(error)))
                return
        self.healed.append(Healed(damaged_key, key, what))
        if wanting:
            self.not_healed.append(NotHealed(key or damaged_key, f"{wanting} of its chunks are whole in no copy"))

    def _known(self, packs: set[bytes]) -> dict[bytes, _Known]:
        """What the layers of all readable backups say of these packs."""
        known = {pack: _Known() for pack in packs}
        seen: set[tuple[tuple[str, int, int], ...]] = set()
        for backup in self.repository.backup_ids():
            with contextlib.suppress(*UNREADABLE, NotFound):
                manifest = self.repository.manifest(backup)
                for reference in manifest.layers:
                    if tuple(reference.spans) in seen:
                        continue
                    for pack, digest in self.repository.layer(reference).packs:
                        if pack in known:
                            known[pack].digests.add(digest)
                            known[pack].page_size = manifest.page_size
                    seen.add(tuple(reference.spans))
        return known


def heal_repository(
    repository: Repository, source: Repository, options: HealOptions, stop: StopToken, listener: Listener
) -> HealResult:
    """Make whole what is known to be damaged, as far as ``source`` or a second copy has it; see the module.

    Raises: UsageError, StoreError (also when the repository cannot be written), Cancelled.
    """
    if repository.storage.url == source.storage.url:
        raise UsageError(
            "heal repository: it cannot be healed from itself", hint="Name another copy of it, such as a second drive."
        )
    began = repository.clock.elapsed()
    run = _Run(repository, source, options, stop, listener)
    lease = repository.take_lease("heal")
    theirs: Lease | None = None
    try:
        with contextlib.suppress(StoreDenied, StoreFull):  # a copy that cannot be written needs no lease
            theirs = source.take_lease("heal")
        found = run.look()
        for _ in range(_LOOKS):
            if not run.heal_metadata(found, lease):
                break
            found = run.look()  # a manifest that was lost names layers, and those name packs, that nobody looked for
        run.heal_packs(found)
        if options.dry_run:
            stays = {one.key for one in run.not_healed}
            affected = {name for one in found.damages if one.key in stays for name in one.backups_affected}
        else:
            affected = {one.backup for one in run.look().backups if not one.ok}
    finally:
        lease.release()
        if theirs is not None:
            theirs.release()
    seconds = repository.clock.elapsed() - began
    return HealResult(run.healed, run.not_healed, sorted(affected), run.warnings, options.dry_run, seconds)
