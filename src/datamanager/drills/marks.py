"""The marks ``proven`` and ``disproven``: what the last test restore showed; retention goes by them (N4)."""

from __future__ import annotations

from datamanager.repository.mark import DISPROVEN, PROVEN, backup_of
from datamanager.repository.objects import UNREADABLE
from datamanager.repository.repository import Repository


def put_result(repository: Repository, backup: str, note: str, *, passed: bool) -> None:
    """Say whether a backup came back; of what was said before only this stays. Raises: StoreError."""
    newest = repository.put_mark(backup, PROVEN if passed else DISPROVEN, note).sequence
    for stored in [*repository.storage.list("marks/")]:
        named, sequence = backup_of(stored.key) or ("", 0)
        if named == backup and sequence < newest and _of_a_drill(repository, stored.key):
            repository.storage.delete(stored.key)


def _of_a_drill(repository: Repository, key: str) -> bool:
    try:
        return repository.mark(key).name in (PROVEN, DISPROVEN)
    except UNREADABLE:
        return False
