"""The steps of one verification, and what each hands on to the next."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field

from datamanager.base.errors import DataManagerError, NotFound
from datamanager.base.events import Listener, PhaseStarted
from datamanager.base.pipeline import StopToken
from datamanager.engine.verify.data import DataVerifier
from datamanager.engine.verify.findings import BackupVerdict, Findings, VerifyOptions, cause
from datamanager.engine.verify.metadata import MetadataVerifier, StoredManifest, check_line
from datamanager.engine.verify.packs import PackReport, PackVerifier, read_all
from datamanager.engine.verify.rolling import FolderState, due_folders, folder_of, folder_states
from datamanager.engine.verify.rows import HeldPack, LayerFaults, check_composed, check_rows
from datamanager.repository.checked import load_checked
from datamanager.repository.damaged import DamagedItem, read_lists
from datamanager.repository.format import Kind, manifest_keys, meta_keys, pack_id, pack_key
from datamanager.repository.manifest import LayerReference, Manifest
from datamanager.repository.objects import UNREADABLE
from datamanager.repository.repository import Repository
from datamanager.storage.base import StoredObject


@dataclass(slots=True)
class _Layer:
    """A layer, the backups that share it, and what its pack table says."""

    reference: LayerReference
    page_size: int
    backups: set[str]
    table: list[tuple[bytes, bytes]] = field(default_factory=list)
    readable: bool = True
    faults: LayerFaults = field(default_factory=LayerFaults)

    @property
    def key(self) -> str:
        """An object that stands for the layer in messages."""
        if not self.reference.spans:  # a layer of nothing
            return manifest_keys(min(self.backups))[0]
        return meta_keys(bytes.fromhex(self.reference.spans[0][0]))[0]


@dataclass(slots=True)
class _Stack:
    """The same layers under several backups, newest first, and one of those backups."""

    manifest: Manifest
    layers: list[_Layer]
    backups: set[str]


class VerifyRun:
    """One verification. Used by one thread. The methods are called in the order in which they stand here."""

    def __init__(
        self, repository: Repository, options: VerifyOptions, findings: Findings, stop: StopToken, listener: Listener
    ) -> None:
        # An instance of its own: nothing may come from what another one remembers.
        self.repository = Repository(repository.storage, repository.ring, repository.clock)
        self._options = options
        self._findings = findings
        self._stop = stop
        self._listener = listener
        self._layers: list[_Layer] = []
        self._stacks: list[_Stack] = []
        self.selected: set[str] = set()
        self.users: dict[bytes, dict[bytes, set[str]]] = {}  # pack -> digest -> backups
        self.needed: dict[bytes, set[int]] = {}  # pack -> chunks of which a page that a backup needs is not there
        self.folders: list[FolderState] = []
        self.read_folders: list[str] = []

    # -- small objects and layers -----------------------------------------------------------------------------------
    def metadata(self) -> None:
        """Keys, manifests, marks, leases, lists; which backups are to be looked at."""
        self._listener(PhaseStarted("checking keys and manifests"))
        verifier = MetadataVerifier(self.repository, self._findings)
        verifier.access()
        stored, lost = verifier.manifests()
        deleted = verifier.marks()
        verifier.leases()
        verifier.lists()
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
        stacks: dict[tuple[int, ...], _Stack] = {}
        for name, one in stored.items():
            layers = []
            for reference in one.manifest.layers:
                key = (tuple(reference.spans), *astuple(reference)[1:], one.manifest.page_size)
                layer = found.setdefault(key, _Layer(reference, one.manifest.page_size, set()))
                layer.backups.add(name)
                layers.append(layer)
            stack = stacks.setdefault(tuple(map(id, layers)), _Stack(one.manifest, layers, set()))
            stack.backups.add(name)
        self._layers = list(found.values())
        self._stacks = list(stacks.values())

    def meta_packs(self) -> None:
        """Both copies of every metadata pack, every byte."""
        self._listener(PhaseStarted("checking metadata"))
        needed = {bytes.fromhex(pack) for layer in self._layers for pack, _, _ in layer.reference.spans}
        listed = self._list("meta/") | self._list("meta-b/")
        wanted = needed if self._options.backups is not None else needed | {pack_id(key) or b"" for key in listed}
        jobs = [(key, pack, Kind.META) for pack in sorted(wanted) for key in meta_keys(pack)]
        self._findings.expect(sum(listed[key].size for key, _, _ in jobs if key in listed))
        waiting: dict[bytes, PackReport] = {}
        verifier = PackVerifier(self.repository.storage, self.repository.ring, self._stop)
        for report in read_all(verifier, jobs, self._options.threads, self._findings, self._stop):
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
                layer.table = self.repository.layer(layer.reference).packs
            except UNREADABLE as error:
                self._lost_layer(layer, error)
                continue
            for pack, digest in layer.table:
                self.users.setdefault(pack, {}).setdefault(digest, set()).update(layer.backups)

    def _lost_layer(self, layer: _Layer, error: DataManagerError) -> None:
        layer.readable = False
        self._findings.damage(layer.key, f"a layer in it cannot be read: {cause(error)}", layer.backups)

    # -- data packs -------------------------------------------------------------------------------------------------
    def packs(self, now: float) -> DataVerifier:
        """Every pack is there; those that the depth asks for are read. Args: now - by the store's clock."""
        listed = self._list("packs/")
        self.data = DataVerifier(self.repository, self._findings, self.users, listed, self._stop)
        self.data.look()
        if self._options.backups is None:
            self.folders = folder_states(listed.values(), load_checked(self.repository), now)
        wanted = self._wanted(now)
        if wanted:
            self._listener(PhaseStarted("reading packs"))
            self.data.read(wanted, self._options.threads)
        return self.data

    def _wanted(self, now: float) -> list[bytes]:
        """The packs to be read."""
        keys, options = self.data.keys, self._options
        used = sorted(pack for pack in keys if pack in self.users)
        if options.depth == "full":
            self.read_folders = [one.name for one in self.folders]
            return used if options.backups is not None else sorted(keys)
        if options.depth == "sample":
            share = math.ceil(len(used) * options.sample_percent / 100)
            return random.SystemRandom().sample(used, share)
        if options.depth == "rolling":
            self.read_folders = due_folders(self.folders, now, options.rolling_days)
            return sorted(pack for pack in keys if folder_of(keys[pack][0]) in self.read_folders)
        if options.depth == "known":
            named = {item.pack for items in read_lists(self.repository).values() for item in items}
            return [pack for pack in used if pack in named]
        return []

    # -- rows -------------------------------------------------------------------------------------------------------
    def rows(self) -> None:
        """Every layer decodes, and the rows of every backup point to pages that exist."""
        self._listener(PhaseStarted("checking the files of each backup"))
        for layer in self._layers:
            if layer.readable:
                self._check_layer(layer)
        affected: dict[bytes, set[str]] = {pack: set() for pack in self.data.suspects}
        for stack in self._stacks:
            if all(layer.readable for layer in stack.layers):
                self._check_stack(stack, affected)
        for pack, suspect in self.data.suspects.items():
            if affected[pack] or not (suspect.missing or self._options.backups):
                self._findings.damage(suspect.key, suspect.what, affected[pack], redundant=not affected[pack])

    def _check_layer(self, layer: _Layer) -> None:
        try:
            held = self._held(layer.table)
            layer.faults = check_rows(self.repository.layer(layer.reference), layer.page_size, held, self._stop)
        except UNREADABLE as error:
            self._lost_layer(layer, error)
            return
        faults = layer.faults
        if faults.impossible:
            names = ", ".join(path.decode(errors="replace") for path in faults.files)
            what = f"a layer in it has impossible rows for {faults.impossible} files: {names}"
            self._findings.damage(layer.key, what, layer.backups)
        if (faults.file_count, faults.row_count) != (layer.reference.files, layer.reference.rows):
            what = (
                f"a layer in it has {faults.file_count} files and {faults.row_count} rows, other than its manifest says"
            )
            self._findings.damage(layer.key, what, layer.backups)

    def _check_stack(self, stack: _Stack, affected: dict[bytes, set[str]]) -> None:
        if len(stack.layers) == 1:
            layer = stack.layers[0]
            missing, table = layer.faults.missing, layer.table
        else:
            suspects = {path for layer in stack.layers for path in layer.faults.suspects}
            if not suspects and self._options.depth != "full":
                return
            contents = self.repository.contents(stack.manifest)
            table = contents.packs
            try:
                only = None if self._options.depth == "full" else suspects
                missing = check_composed(contents, self._held(table), only, self._stop)
            except UNREADABLE as error:
                self._lost_layer(stack.layers[0], error)
                return
        for number in sorted(missing):
            pack = table[number][0]
            self.needed.setdefault(pack, set()).update(missing[number])
            if pack in affected:
                affected[pack] |= stack.backups
            elif pack not in self.data.mistaken:
                what = f"a layer in it points to pages that {self.data.current.get(pack, pack_key(pack))} does not hold"
                self._findings.damage(stack.layers[0].key, what, stack.backups)

    def _held(self, table: list[tuple[bytes, bytes]]) -> Mapping[int, HeldPack]:
        held = self.data.held
        return {number: held[pack] for number, (pack, _) in enumerate(table) if pack in held}

    # -- what came out ----------------------------------------------------------------------------------------------
    def damaged(self) -> list[DamagedItem]:
        """What writers must not rely on."""
        return self.data.damaged(self.needed)

    def settled(self, item: DamagedItem) -> bool:
        """Whether this run has shown that an older list's item is over, unless the run found it again."""
        if item.key in self.data.read_keys:
            return True
        current = self.data.current.get(item.pack)
        whole = self._options.backups is None and self._options.depth == "full"
        return (current is not None and current != item.key) or (whole and item.pack not in self.users)

    def verdicts(self) -> list[BackupVerdict]:
        found = self._findings.damages()
        verdicts = []
        for name in sorted(self.selected):
            own = [damage for damage in found if name in damage.backups_affected]
            verdicts.append(BackupVerdict(name, all(damage.redundant for damage in own), own))
        return verdicts

    def _list(self, folder: str) -> dict[str, StoredObject]:
        """Packs by key; anything else that lies there is worth a warning."""
        found: dict[str, StoredObject] = {}
        for one in self.repository.storage.list(folder):
            if pack_id(one.key) is None:
                self._findings.warn(f"{one.key} does not belong to the repository")
            else:
                found[one.key] = one
        return found


def _holds(report: PackReport, chunk: int) -> bool:
    return chunk < len(report.raw) and chunk not in report.bad
