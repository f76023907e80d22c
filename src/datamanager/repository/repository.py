"""A repository: what is in it, and the objects that make up its backups.

read   manifests first, then layers, then packs; a copy that fails gives way to its twin and is reported
write  repository/session.py
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from datamanager.base.clock import Clock
from datamanager.base.errors import DataManagerError, IntegrityError, NotFound, ObjectMissing
from datamanager.base.lazy import lazy
from datamanager.base.pipeline import StopToken
from datamanager.repository import access
from datamanager.repository.format import (
    BACKUP_ID,
    Kind,
    manifest_keys,
    meta_keys,
    pack_key,
)
from datamanager.repository.keys import Ring, SlotSecret
from datamanager.repository.lease import Lease, LeaseRecord
from datamanager.repository.leases import Leases
from datamanager.repository.mark import DELETED, PIN, UNDELETED, UNPIN, Mark, backup_of, standing
from datamanager.repository.objects import UNREADABLE, OpenPack, SealedStore, worst
from datamanager.repository.packs.places import PackPlaces
from datamanager.storage.base import Storage

if TYPE_CHECKING:  # ``wal push`` does without these, and without numpy; see ``objects.py``
    from datamanager.repository import manifest as manifest_format
    from datamanager.repository.layers.contents import Contents
    from datamanager.repository.layers.reader import LayerReader
    from datamanager.repository.manifest import LayerReference, Manifest
else:
    manifest_format = lazy("datamanager.repository.manifest")

_CACHED_META_CHUNKS = 64  # 16 MiB
_CACHED_MANIFESTS = 1000  # about 50 KB each as objects; a backup goes through all of them three times


class Repository:
    """An opened repository. Thread-safe; the storage stays its owner's to close.

    Args: on_damage - told of every damaged first copy whose twin was used.
    """

    def __init__(
        self, storage: Storage, ring: Ring, clock: Clock, on_damage: Callable[[str], None] = lambda message: None
    ) -> None:
        self.storage = storage
        self.ring = ring
        self.clock = clock
        self.objects = SealedStore(storage, ring, on_damage)
        self._lock = threading.Lock()
        self.leases = Leases(self.objects, clock)
        self._places = PackPlaces(storage)
        self._chunks: OrderedDict[tuple[bytes, int], bytes] = OrderedDict()
        self._manifests: OrderedDict[str, tuple[Manifest, str]] = OrderedDict()

    @classmethod
    def create(
        cls,
        storage: Storage,
        keys: Sequence[tuple[SlotSecret, str]],
        clock: Clock,
        like: Ring | None = None,
    ) -> Repository:
        """Make a repository in an empty store. Raises: see ``access.create``."""
        return cls(storage, access.create(storage, keys, clock, like), clock)

    @classmethod
    def open(
        cls,
        storage: Storage,
        secret: SlotSecret,
        clock: Clock,
        on_damage: Callable[[str], None] = lambda message: None,
    ) -> Repository:
        """Raises: NotARepository, FormatUnsupported, WrongSecret, IntegrityError, StoreUnplugged."""
        return cls(storage, access.unlock(storage, secret, on_damage), clock, on_damage)

    @property
    def id(self) -> bytes:
        return self.ring.repository

    # -- manifests and marks ----------------------------------------------------------------------------------------
    def backup_ids(self) -> list[str]:
        """Every committed backup without a deleted mark, in no order; one copy of its manifest is enough."""
        names = set()
        for folder in ("manifests/", "manifests-b/"):
            names |= {one.key.removeprefix(folder) for one in self.storage.list(folder)}
        dead = self.deleted()
        return [name for name in names if BACKUP_ID.match(name) and name not in dead]

    def manifests(self) -> list[Manifest]:
        """Oldest to newest (by sequence, never by time). Raises: IntegrityError naming one that is lost."""
        return sorted((self.manifest(name) for name in self.backup_ids()), key=lambda one: (one.sequence, one.backup))

    def manifest(self, backup: str) -> Manifest:
        """Raises: NotFound, IntegrityError."""
        return self._read_manifest(backup)[0]

    def manifest_sha256(self, backup: str) -> str:
        """Of the sealed object, for the manifest that follows it."""
        return self._read_manifest(backup)[1]

    def _read_manifest(self, backup: str) -> tuple[Manifest, str]:
        """The manifest and the SHA-256 of the sealed object. A manifest never changes, so it is read once."""
        with self._lock:
            known = self._manifests.get(backup)
        if known is not None:
            return known
        found = self._fetch_manifest(backup)
        with self._lock:
            self._manifests[backup] = found
            while len(self._manifests) > _CACHED_MANIFESTS:
                self._manifests.popitem(last=False)
        return found

    def _fetch_manifest(self, backup: str) -> tuple[Manifest, str]:
        name = f"manifests/{backup}"
        if not BACKUP_ID.match(backup):
            raise NotFound(
                f"find backup: {backup!r} is not the name of a backup", hint="See `datamanager backup list`."
            )
        try:
            plain, sealed = self.objects.get_small(Kind.MANIFEST, name, manifest_keys(backup))
        except ObjectMissing as error:
            raise NotFound(f"find backup: {backup} is not in this repository") from error
        manifest = manifest_format.Manifest.from_json(plain, name)
        if manifest.backup != backup:
            raise IntegrityError(f"read {name}: holds another backup")
        return manifest, hashlib.sha256(sealed).hexdigest()

    def find(self, wanted: str, cluster: str | None = None) -> Manifest:
        """A backup by its id, the beginning of one, or ``latest`` (of ``cluster``, if given).

        Raises: NotFound.
        """
        if BACKUP_ID.match(wanted) and wanted in self.backup_ids():
            return self.manifest(wanted)
        present = [one for one in self.manifests() if cluster is None or one.cluster == cluster]
        if not present:
            raise NotFound("find backup: the repository holds none yet", hint="Run `datamanager backup run`.")
        if wanted == "latest":
            return present[-1]
        matching = [one for one in present if one.backup.startswith(wanted) or one.backup.endswith(f"-{wanted}")]
        if len(matching) != 1:
            raise NotFound(
                f"find backup: {len(matching)} backups match {wanted!r}", hint="See `datamanager backup list`."
            )
        return matching[0]

    def marks(self) -> list[Mark]:
        """Everything said about backups, oldest first for each. One that cannot be read is reported and left out."""
        return self._read_marks()[0]

    def _read_marks(self) -> tuple[list[Mark], dict[str, int]]:
        """All marks, and of each backup with a mark that cannot be read the highest such sequence."""
        found: list[Mark] = []
        lost: dict[str, int] = {}
        for one in self.storage.list("marks/"):
            try:
                found.append(self.mark(one.key))
            except UNREADABLE as error:
                named = backup_of(one.key)
                if isinstance(error, ObjectMissing) or named is None:
                    continue  # superseded since it was listed, or no mark
                self.objects.report(f"{error.message}; what it said is not known")
                lost[named[0]] = max(named[1], lost.get(named[0], 0))
        return sorted(found, key=lambda mark: (mark.backup, mark.sequence)), lost

    def mark(self, key: str) -> Mark:
        """Raises: IntegrityError, ObjectMissing, FormatUnsupported."""
        plain, _ = self.objects.get_small(Kind.MARK, key, [key])
        return Mark.from_json(plain, key)

    def put_mark(self, backup: str, name: str, note: str = "") -> Mark:
        """Say something about a backup: see ``repository/mark.py``. Raises: StoreError."""
        named = (backup_of(one.key) for one in self.storage.list("marks/"))
        sequence = max((one[1] for one in named if one and one[0] == backup), default=0) + 1
        mark = Mark(backup, sequence, name, self.clock.now().isoformat(timespec="seconds"), note)
        key = f"marks/{backup}.{sequence:06d}-{secrets.token_hex(4)}"
        self.objects.put_small(Kind.MARK, key, [key], mark.to_json())
        self.storage.barrier()
        return mark

    def deleted(self) -> dict[str, Mark]:
        """Backups that count as deleted, with the mark that says so. A later mark that is lost gives them back."""
        marks, lost = self._read_marks()
        found = standing(marks, DELETED, UNDELETED)
        return {backup: mark for backup, mark in found.items() if lost.get(backup, 0) <= mark.sequence}

    def pinned(self) -> dict[str, Mark]:
        """Backups that retention must leave alone, with the mark that says so. A later mark that is lost keeps them."""
        return standing(self.marks(), PIN, UNPIN)

    # -- layers and packs -------------------------------------------------------------------------------------------
    def contents(self, manifest: Manifest) -> Contents:
        """The files of a backup. Raises: IntegrityError, ObjectMissing."""
        from datamanager.repository.layers.contents import Contents  # noqa: PLC0415

        layers = [self.layer(reference) for reference in reversed(manifest.layers)]
        packs = [pack for layer in layers for pack in layer.packs]
        return Contents(packs, layers, manifest.page_size)

    def layer(self, reference: LayerReference) -> LayerReader:
        from datamanager.repository.layers.reader import LayerReader  # noqa: PLC0415

        places = [
            (bytes.fromhex(pack), chunk)
            for pack, first, count in reference.spans
            for chunk in range(first, first + count)
        ]
        return LayerReader(
            lambda number: self._meta_chunk(*places[number]), reference.blocks, reference.table, reference.index
        )

    def pack(self, identity: bytes) -> OpenPack:
        """A data pack, its highest generation that can be read. Raises: ObjectMissing, IntegrityError."""
        return next(self.generations(identity))

    def generations(self, identity: bytes) -> Iterator[OpenPack]:
        """Every generation of a data pack that can be read, the highest first; one at least.

        Raises: ObjectMissing, IntegrityError, FormatUnsupported, StoreUnavailable, when none can be read.
        """
        failures: list[DataManagerError] = []
        yielded = False
        for again in (False, True):
            if again:
                if yielded or not any(isinstance(one, ObjectMissing) for one in failures):
                    break
                self.forget_pack(identity)
                failures.clear()
            for generation in self._places.generations(identity):
                try:
                    opened = self.objects.open_pack((pack_key(identity, generation),), identity, Kind.PACK)
                except UNREADABLE as error:
                    failures.append(error)
                    continue
                for failure in failures if not yielded else ():
                    self.objects.report(f"{failure.message}; generation {generation} of the pack was used")
                yielded = True
                yield opened
        if not yielded:
            raise worst(failures)

    def forget_pack(self, identity: bytes) -> None:
        """Look anew where the pack lies: it was not where it should be, or was written again. Raises: StoreError."""
        before = self._places.generations(identity)
        self._places.refresh(identity)
        known = {*before, *self._places.generations(identity)}
        self.objects.forget_packs(pack_key(identity, generation) for generation in known)

    def _meta_chunk(self, identity: bytes, chunk: int) -> bytes:
        with self._lock:
            known = self._chunks.get((identity, chunk))
        if known is not None:
            return known
        data = self._read_meta_chunk(identity, chunk)
        with self._lock:
            self._chunks[identity, chunk] = data
            while len(self._chunks) > _CACHED_META_CHUNKS:
                self._chunks.popitem(last=False)
        return data

    def _read_meta_chunk(self, identity: bytes, chunk: int) -> bytes:
        return self.objects.first_readable(meta_keys(identity), lambda key: self._open_meta_chunk(key, identity, chunk))

    def _open_meta_chunk(self, key: str, identity: bytes, chunk: int) -> bytes:
        pack = self.objects.open_pack((key,), identity, Kind.META)
        if chunk >= len(pack.directory):
            raise IntegrityError(f"read {key}: it has no chunk {chunk}")
        start, end = (int(offset) for offset in pack.directory.offsets[chunk : chunk + 2])
        return pack.opener().open(chunk, self.storage.get(key, start, end - start))

    # -- leases -----------------------------------------------------------------------------------------------------
    def take_lease(
        self, kind: str, subject: str = "", *, stop: StopToken | None = None, exclusive: bool = False
    ) -> Lease:
        """Be known to every other writer and reader until the lease is released.

        Waits, and says so once, while a prune has the repository for itself; an exclusive lease does not wait.
        Folders that the first release did not make are made. Raises: StoreError, Cancelled.
        """
        return self.leases.take(kind, subject, stop, exclusive=exclusive)

    def take_lease_if_possible(
        self, kind: str, parents: Sequence[str], warn: Callable[[str], None], *, stop: StopToken | None = None
    ) -> Lease | None:
        """A lease for long reading of ``parents``; where the medium cannot be written, None and one warning.

        Raises: StoreError, Cancelled.
        """
        return self.leases.take_if_possible(kind, parents, warn, stop)

    def live_leases(self, own: Lease) -> list[LeaseRecord]:
        """Everyone else at work here; their ages are taken by the store's clock, from our own newest lease."""
        return self.leases.live(own)

    def lease_record(self, key: str) -> LeaseRecord:
        """Raises: IntegrityError, ObjectMissing, FormatUnsupported."""
        return self.leases.record(key)

    def require_alone(self, own: Lease) -> None:
        """Raises: Busy, when another live lease does the same to the same cluster."""
        self.leases.require_alone(own)

    def require_no_prune(self, own: Lease) -> None:
        """For whoever brings a deleted backup back, once ``own`` names it as parent. Raises: Busy."""
        self.leases.require_no_prune(own)
