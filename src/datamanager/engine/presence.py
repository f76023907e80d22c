"""Whether everything a backup needs is still stored: for one that was deleted, before prune has finished with it.

Only metadata and the directories of packs are read; that the pages are right is what verify shows.
"""

from __future__ import annotations

from datamanager.base.errors import IntegrityError
from datamanager.base.pipeline import StopToken
from datamanager.engine.verify.rows import LOST, HeldPack, check_composed
from datamanager.repository.commit import require_objects
from datamanager.repository.format import pack_key
from datamanager.repository.manifest import Manifest
from datamanager.repository.objects import UNREADABLE
from datamanager.repository.repository import Repository


def require_pages(repository: Repository, manifest: Manifest, stop: StopToken) -> None:
    """Return when every page of the backup is stored in a pack that can be opened.

    Raises: IntegrityError, ObjectMissing, StoreError, Cancelled.
    """
    require_objects(repository, manifest)
    contents = repository.contents(manifest)
    held = {}
    for number, (identity, digest) in enumerate(contents.packs):
        stop.check()
        held[number] = _held(repository, identity, digest)
    missing = check_composed(contents, held, None, stop)
    if missing:
        number = min(missing)
        raise IntegrityError(
            f"read backup {manifest.backup}: {pack_key(contents.packs[number][0])} lacks pages that it needs "
            f"({len(missing)} packs do)"
        )


def _held(repository: Repository, identity: bytes, digest: bytes) -> HeldPack:
    """What readers find: the newest generation of that content, or an older one that is still whole."""
    newest: HeldPack | None = None
    try:
        for opened in repository.generations(identity):
            directory = opened.directory
            if directory.digest() != digest:
                continue
            if directory.masks is None:
                return HeldPack(directory.raw)
            newest = newest or HeldPack(directory.raw, directory.masks)
    except UNREADABLE:
        return newest or LOST
    return newest or LOST
