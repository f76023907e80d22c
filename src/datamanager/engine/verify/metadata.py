"""The small objects of a repository and their twins: config, key slots, keyrings, manifests, marks, leases.

Nothing here uses what an opened repository remembers: every copy is read from the store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from datamanager.base.errors import DataManagerError, IntegrityError, NotARepository, ObjectMissing, StoreUnavailable
from datamanager.engine.verify.findings import Findings, cause, require_store
from datamanager.repository import access
from datamanager.repository.format import (
    BACKUP_ID,
    CONFIG,
    MAX_SLOTS,
    Kind,
    canonical_json,
    manifest_keys,
    named_id,
    ring_keys,
    slot_keys,
)
from datamanager.repository.keys import SLOT_BYTES, Ring, Slot
from datamanager.repository.manifest import Manifest
from datamanager.repository.mark import DELETED, UNDELETED, Mark, backup_of, standing
from datamanager.repository.objects import UNREADABLE
from datamanager.repository.repository import Repository
from datamanager.repository.sealing import Header, open_small

T = TypeVar("T")

_MAX_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """A manifest of which a copy authenticates, and the SHA-256 by which its successor names it."""

    manifest: Manifest
    sha256: str


class MetadataVerifier:
    """Reads every small object of one repository. Used by one thread."""

    def __init__(self, repository: Repository, findings: Findings) -> None:
        self._repository = repository
        self._storage = repository.storage
        self._findings = findings

    def access(self) -> None:
        """Config, slots and rings."""
        self._config()
        self._slots()
        self._rings()

    def _config(self) -> None:
        # Compared as bytes: a config that means the same but was written by someone else is a change as well.
        try:
            access.read_config(self._storage)
            content = self._storage.get(CONFIG, 0, _MAX_BYTES)
        except (*UNREADABLE, NotARepository) as error:
            self._unreadable(error)
            self._findings.damage(CONFIG, cause(error), [], redundant=True)
            return
        self._findings.read(len(content))
        if content != canonical_json(self._repository.ring.config):
            self._findings.damage(CONFIG, "it differs from its copy in the keyring", [], redundant=True)

    def _slots(self) -> None:
        names = {one.key for one in self._storage.list("keys/")}
        slots = {bytes.fromhex(key[5:37]) for key in names if access.SLOT_KEY.match(key)}
        self._strangers(names, [key for slot in slots for key in slot_keys(slot)])
        if len(slots) > MAX_SLOTS:
            self._findings.warn(f"the repository has {len(slots)} key slots; the format allows {MAX_SLOTS}")
        for slot in sorted(slots):
            self._twins(slot_keys(slot), [], partial(self._parse_slot, slot))

    def _parse_slot(self, slot: bytes, key: str, data: bytes) -> None:
        parsed = Slot.parse(data[: SLOT_BYTES + 1], key)
        if parsed.id != slot or parsed.repository != self._repository.id:
            raise IntegrityError(f"read {key}: damaged key slot")

    def _rings(self) -> None:
        ring = self._repository.ring
        numbers = access.ring_numbers(self._storage)
        names = {one.key for one in self._storage.list("ring/")}
        self._strangers(names, [key for number in numbers for key in ring_keys(number)])
        if ring.number not in numbers:
            self._findings.damage(ring_keys(ring.number)[0], "both copies are missing", [])
        for number in numbers:
            self._twins(ring_keys(number), [], partial(self._open_ring, number))

    def _open_ring(self, number: int, key: str, data: bytes) -> None:
        ring = self._repository.ring
        if Ring.open(data, number, ring.root.reveal(), ring.repository, key).repository != ring.repository:
            raise IntegrityError(f"read {key}: it belongs to another repository")

    def manifests(self) -> tuple[dict[str, StoredManifest], set[str]]:
        """Every manifest of which a copy authenticates, deleted backups too, and the names of those without.

        Copies that do not authenticate are reported.
        """
        names: set[str] = set()
        for folder in ("manifests/", "manifests-b/"):
            found = {one.key.removeprefix(folder) for one in self._storage.list(folder)}
            names |= {name for name in found if BACKUP_ID.match(name)}
            self._strangers(found, names, folder)
        stored: dict[str, StoredManifest] = {}
        for name in sorted(names):
            whole = self._twins(manifest_keys(name), [name], partial(self._open_manifest, name))
            if whole is not None:
                stored[name] = StoredManifest(whole[0], hashlib.sha256(whole[1]).hexdigest())
        return stored, names - set(stored)

    def _open_manifest(self, backup: str, key: str, data: bytes) -> Manifest:
        manifest = Manifest.from_json(self._open(Kind.MANIFEST, f"manifests/{backup}", key, data), key)
        if manifest.backup != backup:
            raise IntegrityError(f"read {key}: it holds another backup")
        return manifest

    def _open(self, kind: Kind, name: str, key: str, data: bytes) -> bytes:
        ring = self._repository.ring
        header = Header.parse(data, key)
        epoch_key = ring.epoch_key(header.epoch, key)
        return open_small(data, kind, header, epoch_key, ring.repository, named_id(name), key)

    def marks(self) -> set[str]:
        """Every mark; returns the backups that count as deleted: a later mark that is lost gives them back."""
        found: list[Mark] = []
        lost: dict[str, int] = {}
        for one in sorted(self._storage.list("marks/"), key=lambda one: one.key):
            backup, sequence = backup_of(one.key) or (one.key.removeprefix("marks/").partition(".")[0], 0)
            try:
                mark = self._repository.mark(one.key)
            except ObjectMissing:
                continue
            except UNREADABLE as error:
                self._unreadable(error)
                self._findings.damage(one.key, cause(error), [backup], redundant=True)
                lost[backup] = max(sequence, lost.get(backup, 0))
                continue
            self._findings.read(one.size)
            found.append(mark)
        deleted = standing(found, DELETED, UNDELETED)
        return {backup for backup, mark in deleted.items() if lost.get(backup, 0) <= mark.sequence}

    def leases(self) -> None:
        """Leases come and go; one that cannot be read is only worth a warning."""
        for one in self._storage.list("leases/"):
            try:
                self._repository.lease_record(one.key)
            except ObjectMissing:
                continue
            except UNREADABLE as error:
                self._unreadable(error)
                self._findings.warn(f"{one.key}: {cause(error)}; a lease holds no data and grows stale by itself")
                continue
            self._findings.read(one.size)

    def lists(self) -> None:
        """Damaged and condemned lists and the state of the rolling verify: what they say can be found out again."""
        for kind, folder in ((Kind.DAMAGED, "damaged/"), (Kind.CONDEMNED, "condemned/"), (Kind.CHECKED, "checked/")):
            for one in self._storage.list(folder):
                try:
                    self._repository.objects.get_small(kind, one.key, [one.key])
                except ObjectMissing:
                    continue
                except UNREADABLE as error:
                    self._unreadable(error)
                    self._findings.warn(f"{one.key}: {cause(error)}; what it said will be found out again")
                    continue
                self._findings.read(one.size)

    def _twins(
        self, keys: Sequence[str], backups: list[str], parse: Callable[[str, bytes], T]
    ) -> tuple[T, bytes] | None:
        """Read both copies; reports what is wrong. Returns: the first whole one, parsed and as stored, or None."""
        whole: list[tuple[T, bytes]] = []
        failures: list[tuple[str, str]] = []
        for key in keys:
            try:
                data = self._storage.get(key, 0, _MAX_BYTES)
                parsed = parse(key, data)
            except UNREADABLE as error:
                self._unreadable(error)
                failures.append((key, cause(error)))
                continue
            self._findings.read(len(data))
            whole.append((parsed, data))
        for key, what in failures:
            self._findings.damage(key, what, backups, redundant=bool(whole))
        if len(whole) == len(keys) and len({data for _, data in whole}) > 1:
            self._findings.damage(keys[0], f"it differs from its second copy {keys[1]}", backups, redundant=True)
        return whole[0] if whole else None

    def _unreadable(self, error: DataManagerError) -> None:
        if isinstance(error, StoreUnavailable):
            require_store(self._storage)

    def _strangers(self, found: set[str], known: Sequence[str] | set[str], folder: str = "") -> None:
        for name in sorted(found.difference(known)):
            self._findings.warn(f"{folder}{name} does not belong to the repository")


def check_line(stored: dict[str, StoredManifest], lost: set[str], deleted: set[str], findings: Findings) -> None:
    """Every manifest names its predecessor, which must be there and be the one it names.

    Two backups of different clusters that ran at the same time may name the same predecessor. One that was deleted
    before it was pruned may be gone; its mark says so.
    """
    for name, one in sorted(stored.items(), key=lambda item: (item[1].manifest.sequence, item[0])):
        previous, sequence = one.manifest.previous, one.manifest.sequence
        if previous is None:
            if sequence != 1:
                findings.warn(f"backup {name} has number {sequence} but names no backup before it")
            continue
        before = stored.get(previous.get("backup", ""))
        if before is None:
            if previous.get("backup") not in deleted | lost:
                findings.warn(
                    f"backup {previous.get('backup')} is gone, although nobody deleted it: backup {name} follows it"
                )
        elif before.sha256 != previous.get("sha256"):
            findings.warn(f"backup {name} follows another {before.manifest.backup} than the one stored here")
        elif before.manifest.sequence != sequence - 1:
            findings.warn(f"backup {name} has number {sequence}, but the one before it {before.manifest.sequence}")
