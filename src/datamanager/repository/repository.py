"""A repository: what is in it, and the objects that make up its backups.

read   manifests first, then layers, then packs; a copy that fails gives way to its twin and is reported
write  repository/session.py
"""

from __future__ import annotations

import hashlib
import heapq
import json
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from datamanager.base.clock import Clock
from datamanager.base.errors import Busy, IntegrityError, NotFound, ObjectMissing
from datamanager.repository import access
from datamanager.repository.format import (
    BACKUP_ID,
    ZERO_PACK,
    Kind,
    canonical_json,
    manifest_keys,
    meta_keys,
    pack_key,
)
from datamanager.repository.keys import Ring, SlotSecret
from datamanager.repository.layer import FileEntry
from datamanager.repository.layer_reader import LayerReader, compose
from datamanager.repository.lease import STALE_SECONDS, Lease, LeaseRecord
from datamanager.repository.manifest import LayerReference, Manifest
from datamanager.repository.objects import UNREADABLE, OpenPack, SealedStore
from datamanager.storage.base import Storage

_CACHED_META_CHUNKS = 64  # 16 MiB


@dataclass(frozen=True, slots=True)
class Mark:
    """Something said about a backup after it was made: deleted, pin, verified."""

    backup: str
    sequence: int
    name: str
    time: str


@dataclass(frozen=True, slots=True)
class Contents:
    """The files of one backup, composed from its layers.

    ``packs`` is the joined pack table (id, digest) that the rows' pack numbers index.
    """

    packs: list[tuple[bytes, bytes]]
    layers: list[LayerReader]
    page_size: int

    def files(self) -> Iterator[FileEntry]:
        """Every file in path order; holds a block per layer in memory. Raises: IntegrityError."""
        streams = [
            ((entry.path, number, entry) for entry in _shifted(layer, base))
            for number, (layer, base) in enumerate(self._with_bases())
        ]
        merged = heapq.merge(*streams, key=lambda item: item[:2])
        group: list[FileEntry] = []
        for path, _, entry in merged:
            if group and group[0].path != path:
                yield from self._composed(group)
                group = []
            group.append(entry)
        if group:
            yield from self._composed(group)

    def find(self, path: bytes) -> FileEntry | None:
        """One file, without reading the others."""
        group = []
        for layer, base in self._with_bases():
            entry = layer.find(path)
            if entry is not None:
                group.append(_shift(entry, base))
        return next(self._composed(group), None) if group else None

    def _composed(self, group: list[FileEntry]) -> Iterator[FileEntry]:
        entry = compose(group, self.page_size)
        if entry is not None:
            yield entry

    def _with_bases(self) -> list[tuple[LayerReader, int]]:
        base, pairs = 0, []
        for layer in self.layers:
            pairs.append((layer, base))
            base += len(layer.packs)
        return pairs


def _shifted(layer: LayerReader, base: int) -> Iterator[FileEntry]:
    for entry in layer.entries():
        yield _shift(entry, base)


def _shift(entry: FileEntry, base: int) -> FileEntry:
    if base == 0:
        return entry
    pack = entry.rows.pack.copy()
    pack[pack != ZERO_PACK] += base
    return replace(entry, rows=entry.rows._replace(pack=pack))


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
        self._chunks: OrderedDict[tuple[bytes, int], bytes] = OrderedDict()

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
        dead = self._deleted()
        return [name for name in names if BACKUP_ID.match(name) and name not in dead]

    def manifests(self) -> list[Manifest]:
        """Oldest to newest (by sequence, never by time). Raises: IntegrityError naming one that is lost."""
        return sorted((self.manifest(name) for name in self.backup_ids()), key=lambda one: (one.sequence, one.backup))

    def manifest(self, backup: str) -> Manifest:
        """Raises: NotFound, IntegrityError."""
        return self._read_manifest(backup)[0]

    def manifest_sha256(self, backup: str) -> str:
        """Of the sealed object, for the manifest that follows it."""
        return hashlib.sha256(self._read_manifest(backup)[1]).hexdigest()

    def _read_manifest(self, backup: str) -> tuple[Manifest, bytes]:
        name = f"manifests/{backup}"
        if not BACKUP_ID.match(backup):
            raise NotFound(
                f"find backup: {backup!r} is not the name of a backup", hint="See `datamanager backup list`."
            )
        try:
            plain, sealed = self.objects.get_small(Kind.MANIFEST, name, manifest_keys(backup))
        except ObjectMissing as error:
            raise NotFound(f"find backup: {backup} is not in this repository") from error
        manifest = Manifest.from_json(plain, name)
        if manifest.backup != backup:
            raise IntegrityError(f"read {name}: holds another backup")
        return manifest, sealed

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
        found = []
        for one in self.storage.list("marks/"):
            try:
                found.append(self.mark(one.key))
            except UNREADABLE as error:
                self.objects.report(f"{error.message}; what it said is not known")
        return sorted(found, key=lambda mark: (mark.backup, mark.sequence))

    def mark(self, key: str) -> Mark:
        """Raises: IntegrityError, ObjectMissing, FormatUnsupported."""
        plain, _ = self.objects.get_small(Kind.MARK, key, [key])
        value = json.loads(plain)
        return Mark(value["backup"], value["sequence"], value["name"], value["time"])

    def put_mark(self, backup: str, name: str) -> Mark:
        """Say something about a backup. Raises: StoreError."""
        sequence = max((mark.sequence for mark in self.marks() if mark.backup == backup), default=0) + 1
        mark = Mark(backup, sequence, name, self.clock.now().isoformat(timespec="seconds"))
        key = f"marks/{backup}.{sequence:06d}-{secrets.token_hex(4)}"
        plain = canonical_json({"backup": backup, "sequence": sequence, "name": name, "time": mark.time})
        self.objects.put_small(Kind.MARK, key, [key], plain)
        self.storage.barrier()
        return mark

    def _deleted(self) -> set[str]:
        last: dict[str, str] = {}
        for mark in self.marks():
            if mark.name in ("deleted", "undeleted"):
                last[mark.backup] = mark.name
        return {backup for backup, name in last.items() if name == "deleted"}

    # -- layers and packs -------------------------------------------------------------------------------------------
    def contents(self, manifest: Manifest) -> Contents:
        """The files of a backup. Raises: IntegrityError, ObjectMissing."""
        layers = [self.layer(reference) for reference in reversed(manifest.layers)]
        packs = [pack for layer in layers for pack in layer.packs]
        return Contents(packs, layers, manifest.page_size)

    def layer(self, reference: LayerReference) -> LayerReader:
        places = [
            (bytes.fromhex(pack), chunk)
            for pack, first, count in reference.spans
            for chunk in range(first, first + count)
        ]
        return LayerReader(
            lambda number: self._meta_chunk(*places[number]), reference.blocks, reference.table, reference.index
        )

    def pack(self, identity: bytes) -> OpenPack:
        """A data pack. Raises: ObjectMissing, IntegrityError."""
        return self.objects.open_pack((pack_key(identity),), identity, Kind.PACK)

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
    def take_lease(self, kind: str, subject: str = "") -> Lease:
        """Be known to every other writer and reader until the lease is released. Raises: StoreError."""
        record = LeaseRecord.new(kind, subject, self.clock.now().isoformat(timespec="seconds"))
        return Lease(record, self._put_lease, self.storage.stat, self.storage.delete, self.clock)

    def live_leases(self, own: Lease) -> list[LeaseRecord]:
        """Everyone else at work here; their ages are taken by the store's clock, from our own newest lease."""
        mine = f"leases/{own.record.writer}-"
        found = list(self.storage.list("leases/"))
        now = max((one.mtime for one in found if one.key.startswith(mine)), default=0.0)
        live: dict[str, LeaseRecord] = {}
        for one in found:
            if one.key.startswith(mine) or now - one.mtime > STALE_SECONDS:
                continue
            try:
                record = self.lease_record(one.key)
            except ObjectMissing:
                continue  # renewed under its next name, or released
            except UNREADABLE as error:
                self.objects.report(f"{error.message}; whose lease it is is not known")
                continue
            if record.dead_here():
                self.storage.delete(one.key)
            else:
                live[record.writer] = record
        return list(live.values())

    def lease_record(self, key: str) -> LeaseRecord:
        """Raises: IntegrityError, ObjectMissing, FormatUnsupported."""
        plain, _ = self.objects.get_small(Kind.LEASE, key, [key])
        return LeaseRecord.from_json(plain)

    def require_alone(self, own: Lease) -> None:
        """Raises: Busy, when another live lease does the same to the same cluster."""
        for record in self.live_leases(own):
            if (record.kind, record.subject) == (own.record.kind, own.record.subject):
                raise Busy(
                    f"start {record.kind}: another one of this cluster has been running since {record.started} "
                    f"on {record.host} (process {record.pid})"
                )

    def _put_lease(self, key: str, plain: bytes) -> None:
        self.objects.put_small(Kind.LEASE, key, [key], plain)
