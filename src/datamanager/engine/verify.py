"""Verify a repository: read what is stored and prove that it is what was written.

    present   keys, manifests, marks and metadata packs with their twins are read and authenticated; every layer
              decodes; every data pack is there with a size that a pack can have
    sample    also a random share of the data packs, as below
    full      also every stored byte of every pack: chunks decrypted, decompressed, measured and recognized by their
              fingerprint, and every row of every backup points to pages that exist

All damages are found, each with the backups that it affects. Nothing is changed, except that a backup that passed
``full`` gets the mark ``verified``. Source: ``docs/format.md`` decision 6.
"""

from __future__ import annotations

import math
import random
from dataclasses import astuple, dataclass, field
from typing import Literal

from datamanager.base.errors import DataManagerError, NotFound, StoreDenied, StoreFull, UsageError
from datamanager.base.events import Listener, PhaseStarted, Warned
from datamanager.base.pipeline import StopToken
from datamanager.engine.verify_findings import Damage, Findings, cause
from datamanager.engine.verify_metadata import MetadataVerifier, StoredManifest, check_line
from datamanager.engine.verify_packs import NO_CHUNKS, U32, PackReport, PackVerifier, is_plausible, read_all
from datamanager.engine.verify_rows import LayerFaults, check_rows
from datamanager.repository.format import Kind, manifest_keys, meta_keys, pack_id, pack_key
from datamanager.repository.lease import Lease
from datamanager.repository.manifest import LayerReference
from datamanager.repository.objects import UNREADABLE
from datamanager.repository.repository import Repository

VERIFIED = "verified"

__all__ = ["VERIFIED", "BackupVerdict", "Damage", "VerifyOptions", "VerifyResult", "verify_repository"]


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """What the caller decides.

    Args:
        depth: see the module.
        sample_percent: share of the data packs that ``sample`` reads, above 0 to 100.
        backups: ids of the only backups to look at, or None for all and everything else in the repository.
        threads: how many read at once; each holds one pack (33 MiB).
    """

    depth: Literal["present", "sample", "full"] = "full"
    sample_percent: float = 10.0
    backups: list[str] | None = None
    threads: int = 2


@dataclass(frozen=True, slots=True)
class BackupVerdict:
    """One backup. ``ok``: everything that was looked at can be restored, if need be from second copies."""

    backup: str
    ok: bool
    damages: list[Damage]


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """What was found. ``objects`` and ``bytes`` count what was read and authenticated.

    Args:
        packs, packs_read: data packs that were looked for, and how many of them were read.
        unreferenced_packs: keys of packs that no backup uses: left by cut runs, or being written right now.
    """

    backups: list[BackupVerdict]
    objects: int
    bytes: int
    packs: int
    packs_read: int
    damages: list[Damage]
    unreferenced_packs: list[str]
    warnings: list[str]
    seconds: float

    @property
    def ok(self) -> bool:
        """No damage at all, not even to a second copy."""
        return not self.damages


def verify_repository(
    repository: Repository, options: VerifyOptions, stop: StopToken, listener: Listener
) -> VerifyResult:
    """Read the repository and report every damage; see the module.

    Raises: NotFound (a backup that was asked for), UsageError, StoreError when the store as a whole does not answer,
    Cancelled. Damage is a result, never an exception.
    """
    if options.threads < 1 or not 0 < options.sample_percent <= 100:
        raise UsageError("verify repository: threads are 1 or more, a sample is above 0 to 100 percent")
    began = repository.clock.elapsed()
    findings = Findings(listener)
    lease = _take_lease(repository, findings)
    try:
        run = _Run(repository, options, findings, stop, listener)
        run.metadata()
        if lease is not None:
            lease.renew(sorted(run.selected))
        run.meta_packs()
        run.layers()
        run.packs()
        run.rows()
        verdicts = run.verdicts()
    finally:
        if lease is not None:
            lease.release()
    if options.depth == "full":
        _mark(repository, verdicts, findings)
    for warning in findings.warnings:
        listener(Warned(warning))
    return VerifyResult(
        backups=verdicts,
        objects=findings.objects,
        bytes=findings.bytes,
        packs=len(run.users) + len(run.unreferenced),
        packs_read=run.packs_read,
        damages=findings.damages(),
        unreferenced_packs=run.unreferenced,
        warnings=findings.warnings,
        seconds=repository.clock.elapsed() - began,
    )


def _take_lease(repository: Repository, findings: Findings) -> Lease | None:
    """A lease, where the medium can be written; a read-only one is verified without."""
    try:
        return repository.take_lease("verify")
    except (StoreDenied, StoreFull) as error:
        findings.warn(f"{error.message}; the verification went on without telling other writers")
        return None


def _mark(repository: Repository, verdicts: list[BackupVerdict], findings: Findings) -> None:
    try:
        for verdict in verdicts:
            if verdict.ok:
                repository.put_mark(verdict.backup, VERIFIED)
    except (StoreDenied, StoreFull) as error:
        findings.warn(f"{error.message}; that the backups are verified could not be written down there")


@dataclass(slots=True)
class _Layer:
    """A layer, the backups that share it, and what its pack table says."""

    reference: LayerReference
    page_size: int
    backups: set[str]
    table: list[tuple[bytes, bytes]] = field(default_factory=list)
    readable: bool = True

    @property
    def key(self) -> str:
        """An object that stands for the layer in messages."""
        if not self.reference.spans:  # a layer of nothing
            return manifest_keys(min(self.backups))[0]
        return meta_keys(bytes.fromhex(self.reference.spans[0][0]))[0]


class _Run:
    """The steps of one verification and what they hand on. Used by one thread."""

    def __init__(
        self, repository: Repository, options: VerifyOptions, findings: Findings, stop: StopToken, listener: Listener
    ) -> None:
        # An instance of its own: nothing may come from what another one remembers.
        self._repository = Repository(repository.storage, repository.ring, repository.clock)
        self._storage = repository.storage
        self._options = options
        self._findings = findings
        self._stop = stop
        self._listener = listener
        self._verifier = PackVerifier(repository.storage, repository.ring, stop)
        self._layers: list[_Layer] = []
        self._raw: dict[bytes, U32] = {}  # raw bytes of each chunk, of packs that were read or are not there
        self._faults: dict[bytes, tuple[str, ...]] = {}  # of packs with damaged chunks only
        self.selected: set[str] = set()
        self.users: dict[bytes, dict[bytes, set[str]]] = {}  # pack -> digest -> backups
        self.unreferenced: list[str] = []
        self.packs_read = 0

    # -- small objects and layers -----------------------------------------------------------------------------------
    def metadata(self) -> None:
        """Keys, manifests, marks, leases; which backups are to be looked at."""
        self._listener(PhaseStarted("checking keys and manifests"))
        verifier = MetadataVerifier(self._repository, self._findings)
        verifier.access()
        stored, lost = verifier.manifests()
        deleted = verifier.marks()
        verifier.leases()
        check_line(stored, lost, deleted, self._findings)
        self.selected = (set(stored) | lost) - deleted
        if self._options.backups is not None:
            unknown = sorted(set(self._options.backups) - self.selected)
            if unknown:
                raise NotFound(f"verify backup: {unknown[0]} is not in this repository", hint="See `backup list`.")
            self.selected &= set(self._options.backups)
        self._collect_layers({name: one for name, one in stored.items() if name in self.selected})

    def _collect_layers(self, stored: dict[str, StoredManifest]) -> None:
        found: dict[tuple[object, ...], _Layer] = {}
        for name, one in stored.items():
            for reference in one.manifest.layers:
                key = (tuple(reference.spans), *astuple(reference)[1:], one.manifest.page_size)
                layer = found.setdefault(key, _Layer(reference, one.manifest.page_size, set()))
                layer.backups.add(name)
        self._layers = list(found.values())

    def meta_packs(self) -> None:
        """Both copies of every metadata pack, every byte."""
        self._listener(PhaseStarted("checking metadata"))
        needed = {bytes.fromhex(pack) for layer in self._layers for pack, _, _ in layer.reference.spans}
        listed = self._list("meta/") | self._list("meta-b/")
        wanted = needed if self._options.backups is not None else needed | {_identity(key) for key in listed}
        jobs = [(key, pack, Kind.META) for pack in sorted(wanted) for key in meta_keys(pack)]
        self._findings.expect(sum(listed.get(key, 0) for key, _, _ in jobs))
        waiting: dict[bytes, PackReport] = {}
        for report in read_all(self._verifier, jobs, self._options.threads, self._findings, self._stop):
            other = waiting.pop(report.identity, None)
            if other is None:
                waiting[report.identity] = report
            elif report.identity in needed:
                self._judge_twins(*sorted((report, other), key=lambda one: one.key))
            elif not report.missing and not other.missing and (report.faults or other.faults):
                self._findings.warn(f"{report.key} is damaged; no backup uses it")

    def _judge_twins(self, first: PackReport, second: PackReport) -> None:
        users = self._users_of_meta(first.identity)
        for one, other in ((first, second), (second, first)):
            for fault in one.faults:
                lost = self._users_of_meta(one.identity, one, other)
                self._findings.damage(one.key, fault, lost or users, redundant=not lost)
        if not first.faults and not second.faults and first.sha256 != second.sha256:
            self._findings.damage(first.key, f"it differs from its second copy {second.key}", users, redundant=True)

    def _users_of_meta(self, pack: bytes, *copies: PackReport) -> set[str]:
        """Backups with a layer in that pack, or in a chunk of it that none of the copies holds."""
        users: set[str] = set()
        for layer in self._layers:
            for name, first, count in layer.reference.spans:
                if bytes.fromhex(name) != pack:
                    continue
                if not copies or any(all(not _holds(copy, n) for copy in copies) for n in range(first, first + count)):
                    users |= layer.backups
        return users

    def layers(self) -> None:
        """The pack tables: which backup needs which packs, and with which digest."""
        for layer in self._layers:
            self._stop.check()
            try:
                layer.table = self._repository.layer(layer.reference).packs
            except UNREADABLE as error:
                self._lost_layer(layer, error)
                continue
            for pack, digest in layer.table:
                self.users.setdefault(pack, {}).setdefault(digest, set()).update(layer.backups)

    def _lost_layer(self, layer: _Layer, error: DataManagerError) -> None:
        layer.readable = False
        self._findings.damage(layer.key, f"a layer in it cannot be read: {cause(error)}", layer.backups)

    # -- data packs -------------------------------------------------------------------------------------------------
    def packs(self) -> None:
        """Every pack is there; those that the depth asks for are read."""
        listed = self._list("packs/")
        for pack in self.users:
            size = listed.get(pack_key(pack))
            if size is None or not is_plausible(size):
                what = "it is missing" if size is None else f"it has {size} bytes, which no pack can have"
                self._lose(pack, what)
        whole = self._options.backups is None
        self.unreferenced = sorted(key for key in listed if _identity(key) not in self.users) if whole else []
        wanted = [key for key in listed if _identity(key) in self.users and _identity(key) not in self._raw]
        if self._options.depth == "present":
            return
        if self._options.depth == "sample":
            share = math.ceil(len(wanted) * self._options.sample_percent / 100)
            wanted = random.SystemRandom().sample(wanted, share)
        else:
            wanted += self.unreferenced
        self._listener(PhaseStarted("reading packs"))
        self._findings.expect(sum(listed[key] for key in wanted))
        jobs = ((key, _identity(key), Kind.PACK) for key in wanted)
        for report in read_all(self._verifier, jobs, self._options.threads, self._findings, self._stop):
            self._judge(report)

    def _judge(self, report: PackReport) -> None:
        if report.identity not in self.users:
            if report.faults and not report.missing:
                self._findings.warn(f"{report.key}: {'; '.join(report.faults)}; no backup uses it")
            return
        self.packs_read += 1
        if not report.readable:
            self._lose(report.identity, report.faults[0])
            return
        self._raw[report.identity] = report.raw
        for digest, backups in self.users[report.identity].items():
            if digest != report.digest:
                self._findings.damage(report.key, "it is another pack than the backup was made with", backups)
        for fault in report.faults if not report.bad else report.faults[:-1]:
            self._findings.damage(report.key, fault, [], redundant=True)
        if report.bad:
            self._faults[report.identity] = report.faults[-1:]

    def _lose(self, pack: bytes, what: str) -> None:
        self._raw[pack] = NO_CHUNKS
        self._findings.damage(pack_key(pack), what, set().union(*self.users[pack].values()))

    # -- rows -------------------------------------------------------------------------------------------------------
    def rows(self) -> None:
        """Every layer decodes, and its rows point to pages that exist."""
        self._listener(PhaseStarted("checking the files of each backup"))
        affected: dict[bytes, set[str]] = {pack: set() for pack in self._faults}
        for layer in self._layers:
            if not layer.readable:
                continue
            raw = {number: self._raw[pack] for number, (pack, _) in enumerate(layer.table) if pack in self._raw}
            try:
                faults = check_rows(self._repository.layer(layer.reference), layer.page_size, raw, self._stop)
            except UNREADABLE as error:
                self._lost_layer(layer, error)
                continue
            self._judge_rows(layer, faults, affected)
        for pack, backups in affected.items():
            for fault in self._faults[pack]:
                self._findings.damage(pack_key(pack), fault, backups, redundant=not backups)

    def _judge_rows(self, layer: _Layer, faults: LayerFaults, affected: dict[bytes, set[str]]) -> None:
        for number in sorted(faults.packs):
            pack = layer.table[number][0]
            if pack in affected:
                affected[pack] |= layer.backups
            elif len(self._raw[pack]):
                what = f"a layer in it points to pages that {pack_key(pack)} does not hold"
                self._findings.damage(layer.key, what, layer.backups)
        if faults.impossible:
            names = ", ".join(path.decode(errors="replace") for path in faults.files)
            what = f"a layer in it has impossible rows for {faults.impossible} files: {names}"
            self._findings.damage(layer.key, what, layer.backups)
        if (faults.file_count, faults.row_count) != (layer.reference.files, layer.reference.rows):
            what = (
                f"a layer in it has {faults.file_count} files and {faults.row_count} rows, other than its manifest says"
            )
            self._findings.damage(layer.key, what, layer.backups)

    def verdicts(self) -> list[BackupVerdict]:
        found = self._findings.damages()
        verdicts = []
        for name in sorted(self.selected):
            own = [damage for damage in found if name in damage.backups_affected]
            verdicts.append(BackupVerdict(name, all(damage.redundant for damage in own), own))
        return verdicts

    def _list(self, folder: str) -> dict[str, int]:
        """Packs by key, with their sizes; anything else that lies there is worth a warning."""
        found: dict[str, int] = {}
        for one in self._storage.list(folder):
            if pack_id(one.key) is None:
                self._findings.warn(f"{one.key} does not belong to the repository")
            else:
                found[one.key] = one.size
        return found


def _identity(key: str) -> bytes:
    return pack_id(key) or b""


def _holds(report: PackReport, chunk: int) -> bool:
    return chunk < len(report.raw) and chunk not in report.bad
