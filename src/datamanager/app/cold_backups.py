"""Backing up a cluster whose server is stopped, or does not start any more, from its data directory.

No connection is made. What a server would tell of itself comes from pg_control, its last command line and its
configuration files.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from datamanager.app import clusters
from datamanager.app.backups import (
    AfterBackup,
    RunOptions,
    Taken,
    backup_name,
    check_repository_outside,
    level_of,
    threads_of,
)
from datamanager.app.context import Context
from datamanager.app.opening import Unlocking, choose, opened, sweep_leftovers
from datamanager.app.repository_files import refresh_files
from datamanager.base.errors import ConfigurationError, NotFound, UsageError
from datamanager.base.events import PhaseStarted, Touched, Warned
from datamanager.config.model import ClusterConfig
from datamanager.engine.backup.run import BackupResult, run_backup
from datamanager.engine.backup.session import BackupOptions
from datamanager.postgres.account import Account, CurrentAccount, service_account
from datamanager.postgres.cold_facts import LastStart, cold_facts, find_config_file, read_last_start
from datamanager.postgres.cold_source import ColdSource
from datamanager.postgres.conf_syntax import settings_of
from datamanager.postgres.file_access import DiskAccess
from datamanager.postgres.outside_files import Collected, Wanted, collect_outside
from datamanager.repository.manifest import Manifest
from datamanager.repository.repository import Repository


@dataclass(frozen=True)
class FoundDirectory:
    """Which data directory, whether somebody named it, and the newest backup of the cluster."""

    path: Path
    newest: Manifest | None
    named: bool


def run(
    context: Context,
    options: RunOptions,
    data_directory: Path | None,
    unlocking: Unlocking,
    after: AfterBackup | None = None,
) -> Taken:
    """Take one backup of a cluster that does not run.

    Args: data_directory - None for the configured one, else that of the cluster's newest backup.
    Raises: NotFound, UsageError, ConfigurationError, Busy (its server runs), ServerError, IntegrityError, StoreError,
        RepositoryError, Cancelled.
    """
    cluster = context.cluster(options.cluster)
    name = backup_name(options, context.clock.now().astimezone())
    named = choose(context, options.repository, options.cluster)
    with opened(context, named, unlocking) as repository:
        found = find_directory(repository, options.cluster, cluster, data_directory)
        clusters.check_home_outside(context.home, found.path)
        check_repository_outside(named.config.url, found.path)
        result = _read(context, repository, options, name, cluster, found)
        context.listener(PhaseStarted("refreshing README.txt"))
        refresh_files(context, repository, quick=True)
        sweep_leftovers(named)
        threads = threads_of(options, cluster)
        replaced = after(context, repository, result.manifest, cluster, threads) if after else ()
    return Taken(named, result, tuple(replaced))


def _read(
    context: Context,
    repository: Repository,
    options: RunOptions,
    name: str,
    cluster: ClusterConfig,
    found: FoundDirectory,
) -> BackupResult:
    context.listener(Touched(f"data directory {found.path}"))
    source = ColdSource(found.path, context.clock, max_rate=options.max_rate or cluster.max_rate)
    warnings = _check_identity(source, found, options.cluster)
    for warning in source.warnings:
        context.listener(Warned(warning))  # before anything is read; the source tells it to the backup
    last = read_last_start(found.path)
    recorded = found.newest.server.get("config_file") if found.newest is not None else None
    config_file = find_config_file(found.path, last, recorded)
    outside = _configuration(found.path, config_file, last)
    facts = cold_facts(
        found.path,
        source.major,
        source.control,
        last=last,
        install_path=cluster.install_path,
        account=account_of(found.path),
        config_file=config_file,
        settings=outside.settings,
    )
    engine = BackupOptions(
        options.cluster,
        name,
        level_of(options, cluster),
        threads_of(options, cluster),
        outside=outside.files,
        control=source.control.record(),
        warnings=(*warnings, *outside.warnings),
    )
    return run_backup(repository, source, facts, engine, context.stop, context.listener)


def find_directory(repository: Repository, name: str, cluster: ClusterConfig, given: Path | None) -> FoundDirectory:
    """The directory given or configured, else where the newest backup found it. Raises: UsageError, NotFound."""
    own = [one for one in repository.manifests() if one.cluster == name]
    newest = max(own, key=lambda one: one.sequence, default=None)
    path = given or cluster.data_directory
    if path is not None:
        return FoundDirectory(path.absolute(), newest, named=True)
    recorded = newest.server.get("data_directory") if newest is not None else None
    hint = f"Give --data-directory DIR, or set it with `datamanager cluster set {name} data_directory=DIR`."
    if not recorded:
        raise UsageError("find data directory: no backup of this cluster tells where it is", hint=hint)
    if not _is_there(Path(recorded)):
        raise NotFound(f"find data directory: {recorded}, where the newest backup found it, is not there", hint=hint)
    return FoundDirectory(Path(recorded), newest, named=False)


def account_of(data_directory: Path) -> Account:
    """Who runs PostgreSQL's programs on the directory; ourselves where root finds nobody."""
    try:
        return service_account(data_directory)
    except ConfigurationError:
        return CurrentAccount()


def _is_there(folder: Path) -> bool:
    """A folder that this account may not see counts as there: reading it says what is missing."""
    try:
        return folder.is_dir()
    except PermissionError:
        return True


def _check_identity(source: ColdSource, found: FoundDirectory, cluster: str) -> list[str]:
    """A warning for a directory of another cluster than that of the backups under this name.

    Raises: ConfigurationError, when nobody named the directory.
    """
    newest, identifier = found.newest, source.control.system_identifier
    if newest is None or newest.system_identifier == str(identifier):
        return []
    sentence = (
        f"the data directory {found.path} is of another cluster (system identifier {identifier}) than the"
        f" newest backup of {cluster} ({newest.system_identifier})"
    )
    if not found.named:
        raise ConfigurationError(
            f"back up cluster: {sentence}", hint="Give --data-directory DIR if this is what you want to back up."
        )
    return [sentence]


def _configuration(data_directory: Path, config_file: str | None, last: LastStart) -> Collected:
    """The files outside, and the settings in force as far as files and command line tell."""
    disk = DiskAccess()
    named = {name: last.settings[name] for name in ("hba_file", "ident_file") if name in last.settings}
    remedy = f"Run the command as {account_of(data_directory).name} or as root"
    windows = sys.platform == "win32"
    found = collect_outside(Wanted(str(data_directory), config_file, named, windows=windows, remedy=remedy), [disk])
    settings = dict(found.settings)
    try:
        data = disk.read(str(data_directory / "postgresql.auto.conf")).data
    except OSError:
        data = b""
    settings |= dict(item for item in settings_of(data) if isinstance(item, tuple))
    warnings = found.warnings
    if config_file is None:
        warnings += ("the configuration files of this cluster were not found and are not in this backup",)
    return Collected(found.files, warnings, settings)
