"""Registering ``datamanager serve`` with the operating system, so that schedules run without anybody signed in.

For the whole computer the supervisor runs as root and the jobs as PostgreSQL's account; the home is then the one that
every account finds, and what the installing account had configured before is copied there.
"""

from __future__ import annotations

import os
import stat
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import datamanager
from datamanager.app.audit import audited
from datamanager.app.context import Context
from datamanager.app.planner_file import read_beat
from datamanager.base.errors import ConfigurationError, DataManagerError
from datamanager.config.home import Home
from datamanager.postgres.account import Account, UnixAccount, named_account, service_account
from datamanager.storage.registry import local_path
from datamanager.system.installation import (
    CopyTree,
    InstallationPlan,
    MakeFolder,
    ServiceInstaller,
    ServiceStatus,
    Step,
    WriteFile,
    below,
)
from datamanager.system.processes import is_alive
from datamanager.system.units import ServiceDefinition


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """How the service is wanted.

    Args:
        account: whom the jobs run as; None chooses PostgreSQL's own (on Windows: LocalSystem).
        named_home: what DATAMANAGER_HOME says here; the service gets the same.
        system_home: the home of the whole computer.
        root: the system to install into, where it is not the running one.
        of_user: a service of this account alone.
    """

    account: str | None
    named_home: Path | None
    system_home: Home
    metrics_port: int | None = None
    root: Path | None = None
    of_user: bool = False
    start: bool = True


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """What an installation would do.

    Args: account - whom the jobs will run as; warnings - what the account will lack, a remedy in each.
    """

    steps: InstallationPlan
    account: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ServiceReport:
    """The service as the system sees it, and its planner as it says of itself."""

    service: ServiceStatus
    planner_alive: bool
    planner_silent: bool
    account: str = ""


def program() -> tuple[str, ...]:
    """What begins a command of this installation of the program, wherever it is called from."""
    return (sys.executable, "-P", "-m", "datamanager")


def plan_installation(context: Context, installer: ServiceInstaller, options: ServiceOptions) -> ServicePlan:
    """Decide every step; nothing is changed.

    Raises: ConfigurationError: no such account, an account that cannot run this program, a system without services.
    """
    account = _account(context, options)
    name = options.account
    warnings: tuple[str, ...] = ()
    if options.root is not None:
        name = name or "postgres"  # whatever accounts that system has, they are not those of this one
    elif isinstance(account, UnixAccount):
        _must_reach_program(account)
        warnings = tuple(_lacking(context, account))
        name = account.name
    definition = ServiceDefinition(
        program(), None if name == "root" else name, options.named_home, options.metrics_port, options.of_user
    )
    steps = (*plan_home(context, options), *installer.install(definition, start=options.start))
    return ServicePlan(steps, name or "the service's own account", warnings)


def note_installed(context: Context, options: ServiceOptions, account: str) -> None:
    """Write into the audit log of the service's own home that it was installed; nothing for another system."""
    if options.root is None:
        own = options.named_home is not None or options.of_user
        home = context.home if own else options.system_home
        audited(replace(context, home=home), "service installed", account)


def report(context: Context, installer: ServiceInstaller) -> ServiceReport:
    """Raises: ConfigurationError, when the system does not say."""
    beat = read_beat(context.home.planner_file)
    alive = beat is not None and is_alive(beat.process)
    return ServiceReport(
        installer.status(),
        alive,
        alive and beat is not None and not beat.alive(context.clock.now()),
    )


def _account(context: Context, options: ServiceOptions) -> Account | None:
    """Whom root will become for a job; None where that is not ours to look up. Raises: ConfigurationError."""
    if sys.platform == "win32" or options.of_user or options.root is not None:
        return None
    if options.account is not None:
        return named_account(options.account)
    folders = [one.data_directory for one in context.config().clusters.values() if one.data_directory is not None]
    return service_account(folders[0] if folders else None)


def _must_reach_program(account: Account) -> None:
    """Raises: ConfigurationError."""
    package = Path(datamanager.__file__).parent
    for path in (Path(sys.executable), package):
        if not account.can_reach(path):
            raise ConfigurationError(
                f"install service: the account {account.name} may not use {path.resolve()}",
                hint="Install DataManager where every account may enter, such as /opt/datamanager, or name another "
                "account with --account.",
            )


def plan_home(context: Context, options: ServiceOptions) -> list[Step]:
    """The folders of the home, and a copy of what this account had in its own; one that is there stays as it is.

    Raises: ConfigurationError.
    """
    if options.named_home is not None:
        return [MakeFolder(below(options.root, options.named_home), 0o755)]
    if options.of_user:
        return []
    mine, system = context.home, options.system_home
    steps: list[Step] = [
        MakeFolder(below(options.root, system.config), 0o755),
        MakeFolder(below(options.root, system.state), 0o755),
    ]
    moves = mine != system and options.root is None and mine.config_file.exists()
    if moves and not system.config_file.exists():
        steps += _copied(mine, system)
    return steps


def _copied(mine: Home, system: Home) -> list[Step]:
    """Raises: ConfigurationError, when the configuration cannot be read."""
    try:
        text = mine.config_file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"read {mine.config_file}: {(error.strerror or 'cannot be read').lower()}",
            hint="Run this as the account that owns the configuration.",
        ) from error
    # Key files are named by their whole path.
    moved = text.replace(_toml(mine.keys), _toml(system.keys))
    steps: list[Step] = [WriteFile(system.config_file, moved.encode())]
    steps += [CopyTree(mine.keys, system.keys)] if mine.keys.is_dir() else []
    return steps + ([CopyTree(mine.state, system.state)] if mine.state.is_dir() else [])


def _toml(path: Path) -> str:
    """A path as it stands inside a basic string of TOML, with the separator that follows it."""
    return str(path / "_").replace("\\", "\\\\")[:-1]


def _lacking(context: Context, account: UnixAccount) -> list[str]:
    """What the account of the jobs will not be able to use, a sentence each (R32)."""
    found = []
    config = context.config()
    for name, repository in sorted(config.repositories.items()):
        folder = _local(repository.url)
        if folder is not None and folder.exists() and not _may_write(folder, account):
            found.append(
                f"the account {account.name} may not write to the repository {name}: run "
                f"`chown -R {account.name} '{folder}'`"
            )
    files = {one.key_file for one in config.repositories.values()} | {
        one.password_file for one in config.clusters.values()
    }
    for file in sorted(one for one in files if one is not None):
        # The service itself takes care of the files in its own folder.
        if file.parent != context.home.keys and file.exists() and not _owns(file, account):
            found.append(f"the account {account.name} may not read {file}: run `chown {account.name} '{file}'`")
    return found


def _local(url: str) -> Path | None:
    try:
        return local_path(url)
    except DataManagerError:
        return None


def _may_write(folder: Path, account: UnixAccount) -> bool:
    """By permission bits, of the folder and of what lies directly in it."""
    try:
        return account.can_reach(folder) and all(
            _writes(os.lstat(path), account) for path in (folder, *folder.iterdir()) if not path.is_symlink()
        )
    except OSError:
        return False


def _writes(status: os.stat_result, account: UnixAccount) -> bool:
    if status.st_uid == account.user_id:
        return bool(status.st_mode & stat.S_IWUSR)
    if status.st_gid == account.group_id or status.st_gid in account.groups:
        return bool(status.st_mode & stat.S_IWGRP)
    return bool(status.st_mode & stat.S_IWOTH)


def _owns(file: Path, account: UnixAccount) -> bool:
    """Whether the account can read a secret file, which must be its owner's alone."""
    return account.can_reach(file.parent) and file.stat().st_uid == account.user_id
