"""Small objects that a prune takes away: they say nothing that another one does not say."""

from __future__ import annotations

from datamanager.repository.format import BACKUP_ID
from datamanager.repository.lease import Lease
from datamanager.repository.mark import DELETED, UNDELETED, backup_of
from datamanager.repository.objects import UNREADABLE
from datamanager.repository.repository import Repository

VERIFIED = "verified"


def drop_superseded_marks(repository: Repository) -> int:
    """Drop all but the newest ``verified`` of each backup, and marks of backups that are gone.

    ``deleted`` and ``undeleted`` outlive their backups: they say that it did not just vanish. One that cannot be read
    stays. Returns: how many went. Raises: StoreError.
    """
    storage = repository.storage
    names: dict[str, tuple[str, int, str]] = {}  # by key: backup, sequence, word
    for one in storage.list("marks/"):
        named = backup_of(one.key)
        if named is None:
            continue
        try:
            names[one.key] = (*named, repository.mark(one.key).name)
        except UNREADABLE:
            continue
    # Listed after the marks: a backup that was published meanwhile keeps its own.
    present = {one.key.rpartition("/")[2] for folder in ("manifests/", "manifests-b/") for one in storage.list(folder)}
    newest: dict[str, int] = {}
    for backup, sequence, word in names.values():
        if word == VERIFIED:
            newest[backup] = max(sequence, newest.get(backup, 0))
    dropped = 0
    for key, (backup, sequence, word) in names.items():
        gone = backup not in present and BACKUP_ID.match(backup) and word not in (DELETED, UNDELETED)
        if gone or (word == VERIFIED and sequence < newest[backup]):
            storage.delete(key)
            dropped += 1
    return dropped


def drop_stale_leases(repository: Repository, own: Lease) -> int:
    """Delete leases that were not renewed for so long that nobody counts them. Raises: StoreError."""
    stale = [one.key for one, stale in repository.leases.others(own) if stale]
    for key in stale:
        repository.storage.delete(key)
    return len(stale)
