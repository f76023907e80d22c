"""A repository as retention sees it: the backups of each cluster, apart by name and system identifier together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime

from datamanager.app.context import Context
from datamanager.base.errors import IntegrityError, NotFound
from datamanager.base.events import Warned
from datamanager.engine.retention import Candidate
from datamanager.repository.format import BACKUP_ID
from datamanager.repository.manifest import Manifest
from datamanager.repository.mark import DELETED, DISPROVEN, PIN, PROVEN, ROLLING, UNPIN, Mark, backup_of, standing
from datamanager.repository.objects import UNREADABLE
from datamanager.repository.repository import Repository

_UNSURE = "a mark of it cannot be read, which may be a pin"


@dataclass(frozen=True)
class Cluster:
    """The backups of one cluster in one repository.

    Args: proven - ids that their last test restore has proven; None while none of these backups was ever tested.
    """

    name: str
    system_identifier: str
    backups: list[Candidate]
    proven: frozenset[str] | None


def clusters_of(context: Context, repository: Repository) -> list[Cluster]:
    """Every cluster with backups, by name; a backup whose manifest cannot be read is told of and left alone.

    Raises: StoreError.
    """
    # Keys are listed before the marks are read: one that is superseded in between only makes its backup unsure.
    listed = Counter(_backups_of(one.key for one in repository.storage.list("marks/")))
    marks = repository.marks()
    read = Counter(mark.backup for mark in marks)
    unsure = {backup for backup, count in listed.items() if count > read[backup]}
    pins = standing(marks, PIN, UNPIN)
    rolling = {mark.backup for mark in marks if mark.name == ROLLING}
    found: dict[tuple[str, str], list[Candidate]] = {}
    for manifest in manifests(context, repository, repository.backup_ids()):
        pin = pins.get(manifest.backup)
        note = pin.note if pin is not None else _UNSURE if manifest.backup in unsure else None
        one = candidate(manifest, note, rolling=manifest.backup in rolling)
        found.setdefault((manifest.cluster, manifest.system_identifier), []).append(one)
    tested = {mark.backup for mark in marks if mark.name in (PROVEN, DISPROVEN)}
    proven = set(standing(marks, PROVEN, DISPROVEN))
    return [
        Cluster(name, identifier, backups, _proven_of(backups, tested, proven))
        for (name, identifier), backups in sorted(found.items())
    ]


def manifests(context: Context, repository: Repository, backups: Collection[str]) -> list[Manifest]:
    """Those that can be read, oldest to newest by sequence; of the others the listener is told.

    Raises: StoreError.
    """
    found = []
    for backup in backups:
        try:
            manifest = repository.manifest(backup)
            for moment in (manifest.started, manifest.ended):
                _moment(manifest.backup, moment)
            found.append(manifest)
        except NotFound:
            continue  # pruned since it was listed
        except UNREADABLE as error:
            context.listener(Warned(f"{error.message}; that backup was left alone"))
    return sorted(found, key=lambda one: (one.sequence, one.backup))


def candidate(manifest: Manifest, pin: str | None = None, *, rolling: bool = False) -> Candidate:
    """Raises: IntegrityError, when the times of the manifest are none."""
    return Candidate(
        manifest.backup,
        manifest.sequence,
        manifest.label,
        _moment(manifest.backup, manifest.started),
        _moment(manifest.backup, manifest.ended),
        manifest.damaged,
        pin,
        rolling,
    )


def put_deleted(repository: Repository, backups: Iterable[str], note: str) -> list[str]:
    """Mark backups as deleted, but for those that were pinned since the plan was made; returns those marked.

    Raises: StoreError.
    """
    pinned = repository.pinned()
    marked = []
    for backup in backups:
        if backup not in pinned:
            repository.put_mark(backup, DELETED, note)
            marked.append(backup)
    return marked


def deleted_in(repository: Repository) -> dict[str, Mark]:
    """Deleted backups whose manifests are still there, with the mark that says so. Raises: StoreError."""
    folders = ("manifests/", "manifests-b/")
    present = {one.key.removeprefix(folder) for folder in folders for one in repository.storage.list(folder)}
    return {
        backup: mark for backup, mark in repository.deleted().items() if backup in present and BACKUP_ID.match(backup)
    }


def _proven_of(backups: list[Candidate], tested: set[str], proven: set[str]) -> frozenset[str] | None:
    if not any(one.backup in tested for one in backups):
        return None
    return frozenset(one.backup for one in backups if one.backup in proven)


def _backups_of(keys: Iterable[str]) -> list[str]:
    return [named[0] for named in map(backup_of, keys) if named is not None]


def _moment(backup: str, text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise IntegrityError(f"read manifests/{backup}: {text[:40]!r} is not a time") from error
    if moment.tzinfo is None:
        raise IntegrityError(f"read manifests/{backup}: {text[:40]!r} has no time zone")
    return moment
