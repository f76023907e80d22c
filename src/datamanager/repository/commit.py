"""Publishing a backup: metadata, barrier, checks, manifest, barrier, read back.

The manifest's first copy is the commit. Before it everything it refers to is durable and present and the lease is
fresh; after it both copies are read back and the lease is checked again. Source: ``docs/format.md``, Order.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from datamanager.base.errors import DataManagerError, IntegrityError, ObjectExists
from datamanager.repository.format import Kind, manifest_keys, meta_keys, pack_id, pack_key
from datamanager.repository.layers.contents import Contents
from datamanager.repository.lease import Lease
from datamanager.repository.manifest import Manifest
from datamanager.repository.objects import UNREADABLE
from datamanager.repository.repository import Repository


def next_in_line(manifests: list[Manifest], repository: Repository) -> dict[str, Any]:
    """The sequence and the predecessor of a manifest about to be written."""
    if not manifests:
        return {"sequence": 1, "previous": None}
    last = manifests[-1]
    previous = {"backup": last.backup, "sha256": repository.manifest_sha256(last.backup)}
    return {"sequence": last.sequence + 1, "previous": previous}


def publish(repository: Repository, lease: Lease, manifest: Manifest) -> None:
    """Make the backup exist, or raise and leave none.

    Raises: IntegrityError (something it needs is not there), Busy (the lease grew old), StoreError.
    """
    storage = repository.storage
    storage.barrier()
    lease.check()
    require_objects(repository, manifest)
    name = f"manifests/{manifest.backup}"
    keys = manifest_keys(manifest.backup)
    plain = manifest.to_json()
    try:
        sealed = repository.objects.put_small(Kind.MANIFEST, name, keys, plain)
        storage.barrier()
        for key in keys:
            if storage.get(key) != sealed:
                raise IntegrityError(f"commit backup: {key} does not read back")
        if repository.manifest(manifest.backup) != manifest:
            raise IntegrityError(f"commit backup: {name} does not read back as written")
        lease.check()
    except BaseException:
        for key in keys:  # the first copy first: without it the second shows a commit that was cut short
            with contextlib.suppress(DataManagerError):
                storage.delete(key)
        raise


def complete_manifests(repository: Repository, own: Lease) -> list[str]:
    """Write the copies of manifests that are missing: a commit was cut between its two copies, or one was lost.

    Does nothing while anybody else is at work, for a running commit puts its copies one after the other.
    Returns: the keys written. Raises: StoreError.
    """
    storage = repository.storage
    present = {one.key for folder in ("manifests/", "manifests-b/") for one in storage.list(folder)}
    pairs = [(name, *manifest_keys(name)) for name in repository.backup_ids()]
    alone = [(name, *((a, b) if b in present else (b, a))) for name, a, b in pairs if (a in present) != (b in present)]
    if not alone or repository.live_leases(own):
        return []
    written = []
    for name, missing, twin in alone:
        with contextlib.suppress(*UNREADABLE, ObjectExists):
            _, sealed = repository.objects.get_small(Kind.MANIFEST, f"manifests/{name}", [twin])
            storage.put(missing, [sealed])
            written.append(missing)
    storage.barrier()
    return written


def require_objects(repository: Repository, manifest: Manifest) -> None:
    """Raises: IntegrityError, naming the first object that the backup needs and the store does not list."""
    present = {one.key for folder in ("meta/", "meta-b/") for one in repository.storage.list(folder)}
    metadata: set[str] = set()
    packs: set[bytes] = set()
    for number, reference in enumerate(manifest.layers):
        for pack, _, _ in reference.spans:
            keys = set(meta_keys(bytes.fromhex(pack)))
            # Of a layer that was there before, one copy is enough: it may take long until somebody heals the other.
            metadata.update(keys if number == 0 or keys.isdisjoint(present) else ())
        packs.update(pack for pack, _ in repository.layer(reference).packs)
    lost = packs - {pack_id(one.key) for one in repository.storage.list("packs/")}
    if lost and metadata <= present:
        lost = _needed(repository.contents(manifest), lost)
    missing = sorted(metadata - present) + sorted(pack_key(pack) for pack in lost)
    if missing:
        raise IntegrityError(f"commit backup: {missing[0]} is not there ({len(missing)} objects missing)")


def _needed(contents: Contents, lost: set[bytes]) -> set[bytes]:
    """Those of the lost packs in which a page of the backup lies: newer layers may have painted over all the others."""
    numbers = [number for number, (pack, _) in enumerate(contents.packs) if pack in lost]
    found: set[int] = set()
    for entry in contents.files():
        found.update(np.intersect1d(entry.rows.pack, numbers).tolist())
    return {contents.packs[number][0] for number in found}
