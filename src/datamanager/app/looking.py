"""A quick look at every backup location at once: what a slow or dead drive does not tell in time is left out.

Each location is read by a thread of its own, which nobody waits for longer than was said: a read from a dead network
drive cannot be interrupted. What it has found by then counts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from datamanager.app.context import Context
from datamanager.app.opening import Named, Unlocking, opened
from datamanager.app.verdict_facts import BackupFact, ProofFact
from datamanager.app.wal_looking import SeenWal, look_at_archive
from datamanager.base.errors import DataManagerError
from datamanager.base.events import Event
from datamanager.base.pipeline import StopToken
from datamanager.config.model import RepositoryConfig
from datamanager.postgres.wal_summaries import SUMMARIES_OFF
from datamanager.repository import damaged
from datamanager.repository.format import BACKUP_ID
from datamanager.repository.manifest import Manifest
from datamanager.repository.mark import DELETED, DISPROVEN, PROVEN, UNDELETED, Mark, standing
from datamanager.repository.repository import Repository

# Beyond these many manifests a look would take longer than anybody waits for a status.
_MOST_READ = 500
_MOST_TESTS_READ = 100
_MANIFESTS = ("manifests/", "manifests-b/")


@dataclass
class Look:
    """What one backup location showed; filled by a thread, read by others at any time.

    Args:
        newest: of each cluster the newest backup without damage; ``newest_damaged`` where an even newer one has some.
        tests: of each cluster the test restores that the location itself tells of, in no order.
        wal: of each cluster the archive of its WAL behind its newest backup.
        complete: everything was read; else ``error`` says why not, or the time was too short.
    """

    name: str
    url: str
    stop: StopToken
    newest: dict[str, BackupFact] = field(default_factory=dict)
    newest_damaged: dict[str, BackupFact] = field(default_factory=dict)
    manifests: dict[str, Manifest] = field(default_factory=dict)
    tests: dict[str, list[ProofFact]] = field(default_factory=dict)
    wal: dict[str, SeenWal] = field(default_factory=dict)
    repository_id: str = ""
    backups: int = 0
    free_bytes: int | None = None
    has_damage: bool = False
    complete: bool = False
    error: str = ""
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def failure(self) -> str:
        """Why not everything is known; empty when it is."""
        return "" if self.complete else self.error or "it does not answer"


def start_looks(
    context: Context, repositories: Mapping[str, RepositoryConfig], clusters: Collection[str]
) -> list[Look]:
    """Begin to look at every location for backups of ``clusters``; ``wait`` ends it."""
    looks = []
    for name, config in sorted(repositories.items()):
        look = Look(name, config.url, StopToken())
        looks.append(look)
        arguments = (context, Named(name, config), frozenset(clusters), look)
        threading.Thread(target=_run, args=arguments, name=f"look at {name}", daemon=True).start()
    return looks


def wait(looks: Collection[Look], seconds: float) -> None:
    """Wait until all looks have ended, at most so long; the others are left to themselves."""
    until = time.monotonic() + seconds
    for look in looks:
        if not look.ended.wait(max(0.0, until - time.monotonic())):
            look.stop.stop("look at backup location: it takes too long")


def _run(context: Context, named: Named, clusters: frozenset[str], look: Look) -> None:
    try:
        with look.stop:
            _look(replace(context, stop=look.stop, listener=_unheard), named, clusters, look)
            look.complete = True
    except DataManagerError as error:
        look.error = error.message
    except Exception as error:  # noqa: BLE001 - a status is given whatever a broken drive makes of us
        look.error = f"{type(error).__name__}: {error}"
    finally:
        look.ended.set()


def _look(context: Context, named: Named, clusters: frozenset[str], look: Look) -> None:
    with opened(context, named, Unlocking()) as repository:
        look.repository_id = repository.id.hex()
        storage = repository.storage
        names = {one.key.removeprefix(folder) for folder in _MANIFESTS for one in storage.list(folder)}
        marks = repository.marks()
        gone = standing(marks, DELETED, UNDELETED)
        present = sorted((one for one in names if BACKUP_ID.match(one) and one not in gone), reverse=True)
        look.backups = len(present)
        _find_newest(repository, present, clusters, look)
        _find_tests(repository, marks, clusters, look)
        for name, manifest in look.manifests.items():
            look.wal[name] = look_at_archive(repository, manifest)
        look.has_damage = next(iter(storage.list(damaged.FOLDER)), None) is not None
        space = storage.space()
        look.free_bytes = None if space is None else space.free


def _find_newest(repository: Repository, present: list[str], clusters: frozenset[str], look: Look) -> None:
    """Names begin with the time, so the newest come first; older ones are read only where those are damaged."""
    for backup in present[:_MOST_READ]:
        if look.newest.keys() >= clusters:
            return
        try:
            manifest = repository.manifest(backup)
            fact = _fact(manifest, look.name)
        except (DataManagerError, ValueError):
            continue  # gone meanwhile, or unreadable: it counts for nothing
        name = manifest.cluster
        if manifest.damaged and name not in look.newest:
            look.newest_damaged.setdefault(name, fact)
        elif not manifest.damaged and name not in look.newest:
            look.manifests[name] = manifest
            look.newest[name] = fact


def _fact(manifest: Manifest, repository: str) -> BackupFact:
    """Raises: ValueError, when the times of the manifest are none."""
    reads_everything = manifest.method != "native" and manifest.reason == SUMMARIES_OFF
    started, ended = _moment(manifest.started), _moment(manifest.ended)
    return BackupFact(
        *(manifest.backup, started, ended, repository, manifest.damaged, reads_everything),
        system_identifier=str(manifest.system_identifier),
    )


def _find_tests(repository: Repository, marks: list[Mark], clusters: frozenset[str], look: Look) -> None:
    """The newest marks; their backups may be deleted by now and still prove what they proved."""
    tests = sorted((one for one in marks if one.name in (PROVEN, DISPROVEN)), key=lambda one: one.time, reverse=True)
    for mark in tests[:_MOST_TESTS_READ]:
        try:
            manifest = repository.manifest(mark.backup)
            passed = mark.name == PROVEN
            test = ProofFact(
                *(mark.backup, _moment(mark.time), passed),
                finding="" if passed else mark.note,
                system_identifier=str(manifest.system_identifier),
            )
        except (DataManagerError, ValueError):
            continue
        if manifest.cluster in clusters:
            look.tests.setdefault(manifest.cluster, []).append(test)


def _moment(text: str) -> datetime:
    """Raises: ValueError."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time without a zone")
    return moment


def _unheard(event: Event) -> None:
    """What a look meets is in its result."""
