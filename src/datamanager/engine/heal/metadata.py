"""Healing small objects and packs of layers: a copy that is whole takes the damaged one's place, under the same key.

The good bytes are at hand and authenticated before the damaged object is deleted, and are read back afterwards. A stop
in between leaves the twin from which they came, or, where both copies here were lost, the other repository; the next
heal goes on from there. Nothing is taken from another repository than a copy of this very one: small objects are
sealed for theirs. Source: ``docs/format.md``, Twins, decision 6.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from datamanager.base.errors import IntegrityError, ObjectExists, StoreUnavailable
from datamanager.base.pipeline import StopToken
from datamanager.engine.verify.findings import Damage, require_store
from datamanager.engine.verify.packs import PackVerifier
from datamanager.repository import access
from datamanager.repository.format import (
    MAX_CONTAINER_BYTES,
    Kind,
    manifest_keys,
    meta_keys,
    pack_id,
    ring_keys,
    slot_keys,
)
from datamanager.repository.keys import SLOT_BYTES, Ring, Slot
from datamanager.repository.manifest import Manifest
from datamanager.repository.mark import backup_of
from datamanager.repository.objects import UNREADABLE
from datamanager.repository.repository import Repository


@dataclass(frozen=True, slots=True)
class Replacement:
    """Bytes to be put under ``key``, and where they come from, for people."""

    key: str
    data: bytes
    origin: str


class MetadataHealer:
    """Finds whole copies of metadata and puts them. Used by one thread.

    Args: source - used only where it is a copy of the same repository.
    """

    def __init__(self, repository: Repository, source: Repository, stop: StopToken) -> None:
        self._ours = repository
        self._source = source if source.id == repository.id else None
        self._stop = stop

    def find(self, damage: Damage) -> Replacement | None:
        """A whole copy of a damaged object; None when nothing is wrong with the object itself.

        Raises: IntegrityError, saying why there is none; StoreError.
        """
        keys = twins_of(damage.key)
        if not keys:
            raise IntegrityError(f"heal {damage.key}: it has no second copy")
        candidates = [(self._ours, key) for key in keys if key != damage.key]
        if self._source is not None:
            candidates += [(self._source, key) for key in keys]
        present = self._whole(self._ours, damage.key)
        if present is not None:
            return self._of_two(damage.key, keys, present)
        for store, key in candidates:
            data = self._whole(store, key)
            if data is not None:
                origin = f"its second copy {key}" if store is self._ours else store.storage.url
                return Replacement(damage.key, data, origin)
        other = "" if self._source is None else " here or there"
        raise IntegrityError(f"heal {damage.key}: no copy of it{other} is whole")

    def _of_two(self, damaged: str, keys: tuple[str, ...], present: bytes) -> Replacement | None:
        """Both copies are whole: where they differ, the other repository may tell which of them is right."""
        others = {key: data for key in keys if (data := self._whole(self._ours, key)) not in (None, present)}
        if not others:
            return None
        ours = {damaged: present, **others}
        theirs = [] if self._source is None else [self._whole(self._source, key) for key in keys]
        right = [data for data in ours.values() if data in theirs]
        wrong = [key for key, data in ours.items() if data not in theirs]
        if len(right) == len(wrong) == 1:
            return Replacement(wrong[0], right[0], "its second copy, which is that of the other repository too")
        raise IntegrityError(f"heal {damaged}: both copies are whole but differ, and nothing tells them apart")

    def put(self, replacement: Replacement) -> None:
        """Put a whole copy in the damaged one's place. Raises: StoreError; IntegrityError, when it reads back wrong."""
        storage = self._ours.storage
        storage.delete(replacement.key)
        with contextlib.suppress(ObjectExists):  # somebody else healed it at the same time
            storage.put(replacement.key, [replacement.data])
        storage.barrier()
        if self._whole(self._ours, replacement.key) is None:
            raise IntegrityError(f"heal {replacement.key}: it does not read back as written")

    def _whole(self, store: Repository, key: str) -> bytes | None:
        try:
            return self._authentic(store, key)
        except UNREADABLE as error:
            if isinstance(error, StoreUnavailable):
                require_store(store.storage)
            return None

    def _authentic(self, store: Repository, key: str) -> bytes:
        """The object's bytes, once it is sure that they are what was written. Raises: IntegrityError, StoreError."""
        folder = key.partition("/")[0]
        if folder in ("meta", "meta-b"):
            report = PackVerifier(store.storage, store.ring, self._stop).read(key, pack_id(key) or b"", Kind.META)
            if report.faults:
                raise IntegrityError(f"read {key}: {report.faults[0]}")
            return store.storage.get(key, 0, MAX_CONTAINER_BYTES)
        if folder in ("manifests", "manifests-b"):
            backup = key.partition("/")[2]
            plain, sealed = store.objects.get_small(Kind.MANIFEST, f"manifests/{backup}", [key])
            if Manifest.from_json(plain, key).backup != backup:
                raise IntegrityError(f"read {key}: it holds another backup")
            return sealed
        if folder == "marks":
            return store.objects.get_small(Kind.MARK, key, [key])[1]
        data = store.storage.get(key, 0, MAX_CONTAINER_BYTES)
        if folder == "ring":
            Ring.open(data, int(key[5:13]), store.ring.root.reveal(), store.ring.repository, key)
        else:
            slot = Slot.parse(data[: SLOT_BYTES + 1], key)
            if slot.id.hex() != key[5:37] or slot.repository != store.id:
                raise IntegrityError(f"read {key}: damaged key slot")
        return data


def twins_of(key: str) -> tuple[str, ...]:
    """The names under which the same bytes may lie, this one included; none for an object that nothing can replace."""
    folder, _, name = key.partition("/")
    if folder in ("manifests", "manifests-b"):
        return manifest_keys(name)
    if folder in ("meta", "meta-b"):
        identity = pack_id(key)
        return () if identity is None else meta_keys(identity)
    if folder == "ring" and name[:8].isdigit():
        return ring_keys(int(name[:8]))
    if access.SLOT_KEY.match(key):
        return slot_keys(bytes.fromhex(key[5:37]))
    return (key,) if backup_of(key) is not None else ()
