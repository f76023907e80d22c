"""Making backups and listing them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from datamanager.app import clusters, outside
from datamanager.app.addresses import address_of, local_directory
from datamanager.app.context import Context
from datamanager.app.opening import Named, Unlocking, choose, choose_holding, opened, sweep_leftovers
from datamanager.app.repository_files import refresh_files
from datamanager.base.errors import Cancelled, ConfigurationError, DataManagerError
from datamanager.base.events import PhaseStarted, Warned
from datamanager.base.lazy import lazy
from datamanager.config.home import inside
from datamanager.config.model import Checkpoint, ClusterConfig
from datamanager.config.names import check_backup_name
from datamanager.engine.backup.run import BackupResult, run_backup
from datamanager.engine.backup.session import BackupOptions
from datamanager.postgres.base_backup import BaseBackupOptions, BaseBackupSource
from datamanager.postgres.connection import ServerAddress
from datamanager.postgres.facts import ServerFacts
from datamanager.postgres.monitor import BackupMonitor
from datamanager.postgres.preflight import Severity, require_backup_source
from datamanager.postgres.wal_summaries import read_summaries
from datamanager.repository.manifest import Manifest
from datamanager.repository.mark import PIN, UNPIN, Mark, standing
from datamanager.repository.repository import Repository
from datamanager.storage.registry import local_path

if TYPE_CHECKING:
    from datamanager.app import retained
else:
    retained = lazy("datamanager.app.retained")  # for lists

# Every byte stands in a zstd frame, so "no compression" is the level at which zstd looks for nothing and copies
# (measured: 12 GB/s a core on text, which grows by 0.006 %; level -7 still compresses to a tenth, at 3.5 GB/s).
UNCOMPRESSED_LEVEL = -100_000


@dataclass(frozen=True)
class RunOptions:
    """One backup; None leaves a choice to the cluster's configuration.

    Args:
        name: of the backup, for people; the cluster's name when None.
        append_date: add the local time with its zone to the name.
        compress_level: 1 to 19, or 0 for none.
        max_rate: bytes a second.
        full: read everything, whatever the server could tell of what changed.
    """

    cluster: str
    repository: str | None = None
    name: str | None = None
    append_date: bool = False
    compress_level: int | None = None
    max_rate: int | None = None
    checkpoint: Checkpoint | None = None
    threads: int | None = None
    full: bool = False


# What follows a backup while its repository is open, and the ids of the backups that it replaced (``app/rolling.py``).
AfterBackup = Callable[[Context, Repository, Manifest, ClusterConfig, int], Sequence[str]]


@dataclass(frozen=True)
class Taken:
    """A published backup, where it is, and the ids of those that it replaced."""

    repository: Named
    result: BackupResult
    replaced: tuple[str, ...] = ()


def backup_name(options: RunOptions, now: datetime) -> str:
    """The name as it will stand in the manifest.

    Args: now - aware, in the zone to be written.
    Raises: UsageError.
    """
    name = check_backup_name(options.name if options.name is not None else options.cluster)
    if not options.append_date:
        return name
    offset = f"{now:%z}"
    zone = "UTC" if offset == "+0000" else f"UTC{offset}"
    return check_backup_name(f"{name} {now:%Y-%m-%d %H%M} {zone}")


def run(context: Context, options: RunOptions, unlocking: Unlocking, after: AfterBackup | None = None) -> Taken:
    """Take one backup of a cluster.

    Raises: NotFound, UsageError, ConfigurationError, ServerError, StoreError, RepositoryError, Busy, Cancelled.
    """
    cluster = context.cluster(options.cluster)
    name = backup_name(options, context.clock.now().astimezone())
    named = choose(context, options.repository, options.cluster)
    address = address_of(cluster)
    with opened(context, named, unlocking) as repository:
        for finding in require_backup_source(address, context.stop, context.executed):
            if finding.severity is Severity.WARNING:
                context.listener(Warned(finding.sentence.rstrip(".")))
        facts = clusters.look(context, cluster, repository.ring.fingerprint_key.reveal())
        data_directory = local_directory(address, facts.data_directory)
        clusters.check_home_outside(context.home, data_directory)
        check_repository_outside(named.config.url, data_directory)
        found = outside.collect(context, address, facts, data_directory)
        engine = BackupOptions(
            options.cluster,
            name,
            level_of(options, cluster),
            threads_of(options, cluster),
            local=data_directory is not None,
            full=options.full,
            outside=found.files,
            warnings=found.warnings,
        )
        result = _streamed(context, repository, address, facts, engine, _protocol(options, cluster, name))
        outside.warn_if_unknown(context, repository, facts, result)
        context.listener(PhaseStarted("refreshing README.txt"))
        refresh_files(context, repository, quick=True)
        sweep_leftovers(named)
        replaced = after(context, repository, result.manifest, cluster, engine.threads) if after else ()
    return Taken(named, result, tuple(replaced))


def _protocol(options: RunOptions, cluster: ClusterConfig, name: str) -> BaseBackupOptions:
    rate = options.max_rate or cluster.max_rate
    checkpoint = options.checkpoint or cluster.checkpoint
    return BaseBackupOptions(
        label=name, fast_checkpoint=checkpoint is Checkpoint.FAST, max_rate_kib=rate // 1024 if rate else None
    )


def level_of(options: RunOptions, cluster: ClusterConfig) -> int:
    """zstd's level for this backup."""
    chosen = cluster.compress_level if options.compress_level is None else options.compress_level
    return chosen or UNCOMPRESSED_LEVEL


def threads_of(options: RunOptions, cluster: ClusterConfig) -> int:
    """Threads that compress for this backup."""
    return options.threads or cluster.threads or processors()


def processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def _streamed(
    context: Context,
    repository: Repository,
    address: ServerAddress,
    facts: ServerFacts,
    options: BackupOptions,
    protocol: BaseBackupOptions,
) -> BackupResult:
    """Run the backup under the eyes of the monitor, whose verdict is the error that is raised."""
    danger: list[DataManagerError] = []

    def on_danger(error: DataManagerError) -> None:
        danger.append(error)
        context.stop.stop(error.message)

    local = local_directory(address, facts.data_directory)
    monitor = BackupMonitor(
        address,
        str(local or ""),
        lambda phase: context.listener(PhaseStarted(phase)),
        lambda text: context.listener(Warned(text)),
        on_danger,
        context.executed,
    )
    source = BaseBackupSource(address, facts.major, protocol, context.clock, context.executed, monitor.watch)
    try:
        return run_backup(
            repository,
            source,
            facts,
            options,
            context.stop,
            context.listener,
            lambda reach: read_summaries(address, context.stop, context.executed, reach=reach),
        )
    except Cancelled:
        if danger:
            raise danger[0] from None
        raise
    finally:
        monitor.close()


def check_repository_outside(url: str, data_directory: Path | None) -> None:
    """Raises: ConfigurationError, when the backups would lie in the cluster that they are of."""
    folder = local_path(url)
    if folder is not None and data_directory is not None and inside(folder, data_directory):
        raise ConfigurationError(
            f"back up cluster: the repository {folder} lies inside the data directory {data_directory}",
            hint="Use a repository outside the cluster, on another drive.",
        )


@dataclass(frozen=True)
class Listed:
    """One backup with what was said about it later; ``repository`` is a name or an address."""

    repository: str
    manifest: Manifest
    marks: tuple[Mark, ...]
    deleted: Mark | None = None

    @property
    def pin(self) -> Mark | None:
        """The mark that pins it; None when nothing does."""
        return standing(self.marks, PIN, UNPIN).get(self.manifest.backup)

    @property
    def checked(self) -> str | None:
        """When its stored bytes were last read and found right; None when never."""
        return max((mark.time for mark in self.marks if mark.name == "verified"), default=None)


def listed(
    context: Context, repository: str | None, cluster: str | None, unlocking: Unlocking, *, deleted: bool = False
) -> tuple[list[Listed], list[DataManagerError]]:
    """Backups, oldest first, of one repository or of all; what cannot be opened is told apart.

    Args: deleted - also those that were deleted and not yet pruned.
    Raises: as ``opened``, when one repository was named.
    """
    if repository is not None:
        return _of_one(context, choose(context, repository, cluster), cluster, unlocking, deleted=deleted), []
    found: list[Listed] = []
    errors: list[DataManagerError] = []
    for name, one in sorted(context.config().repositories.items()):
        try:
            found += _of_one(context, Named(name, one), cluster, unlocking, deleted=deleted)
        except DataManagerError as error:
            context.stop.check()
            errors.append(error)
    # Backups of one second are told apart by the order in which their repository took them.
    return sorted(found, key=lambda one: (one.manifest.started, one.repository, one.manifest.sequence)), errors


def _of_one(
    context: Context, named: Named, cluster: str | None, unlocking: Unlocking, *, deleted: bool
) -> list[Listed]:
    with opened(context, named, unlocking) as repository:
        marks: dict[str, list[Mark]] = {}
        for mark in repository.marks():
            marks.setdefault(mark.backup, []).append(mark)
        gone = retained.deleted_in(repository) if deleted else {}
        found = [*repository.manifests(), *retained.manifests(context, repository, gone)]
        return [
            Listed(named.title, one, tuple(marks.get(one.backup, ())), gone.get(one.backup))
            for one in sorted(found, key=lambda one: (one.sequence, one.backup))
            if cluster is None or one.cluster == cluster
        ]


def shown(context: Context, backup: str, repository: str | None, cluster: str | None, unlocking: Unlocking) -> Listed:
    """One backup by its id, the beginning of one, or ``latest``. Raises: NotFound; as ``opened``."""
    named = choose_holding(context, repository, cluster, backup)
    with opened(context, named, unlocking) as opened_one:
        manifest = opened_one.find(backup, cluster)
        marks = tuple(mark for mark in opened_one.marks() if mark.backup == manifest.backup)
    return Listed(named.title, manifest, marks)
