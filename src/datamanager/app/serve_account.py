"""Whom the service works for: the account of the jobs, its folders, and what root does for it.

Where the supervisor is root and jobs run as another account, the state and the keys belong to that account, and root
keeps what it needs for itself (lock, socket, what services' commands say) in a folder below /run that is its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from datamanager.app.around import described_services
from datamanager.app.context import Context
from datamanager.app.in_place_notes import notes_folder
from datamanager.base.errors import ConfigurationError, ServiceError
from datamanager.config.home import VARIABLE, Home, find_home, make_private_folder, system_home
from datamanager.postgres.account import UnixAccount, named_account
from datamanager.system import privileged
from datamanager.system.ownership import hand_over
from datamanager.system.services import ServiceManager

_ROOT_FOLDER = Path("/run/datamanager")
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def job_account(home: Home, name: str | None, environment: Mapping[str, str]) -> UnixAccount | None:
    """The account of the jobs, where that is another than ours. Raises: ConfigurationError."""
    if name is None or sys.platform == "win32":
        return None
    account = named_account(name)
    if not isinstance(account, UnixAccount) or account.user_id == os.geteuid():
        return None
    if os.geteuid() != 0:
        raise ConfigurationError(
            f"serve: only root can run jobs as {name}", hint="Run it as root, or leave --account out."
        )
    shared = environment.get(VARIABLE) or home == system_home(environment)
    if not shared or find_home({**environment, **account.environment()}) != home:
        raise ConfigurationError(
            f"serve: the account {name} would use another home than {home.config}",
            hint=f"Run `datamanager service install`, or set {VARIABLE}.",
        )
    return account


def prepare_home(home: Home, account: UnixAccount | None) -> None:
    """Make the folders that jobs write, and let their account own them. Raises: ConfigurationError."""
    make_private_folder(home.state)
    if account is None:
        return
    owner = (account.user_id, account.group_id)
    try:
        kept = home.logs, home.runs, home.services, home.scratch, home.drills, home.wal, notes_folder(home), home.keys
        for folder in kept:
            if not folder.exists():
                folder.mkdir(mode=0o755 if folder == home.services else 0o700)
                os.chown(folder, *owner, follow_symlinks=False)
        if home.config == home.state and home.state.stat().st_uid == 0:
            # One folder for both: root keeps it, so that the account cannot put another configuration in its place.
            os.chown(home.state, 0, account.group_id)
            home.state.chmod(0o1770)
    except OSError as error:
        raise ConfigurationError(
            f"serve: prepare {home.state}: {(error.strerror or '').lower()}", hint="Run it as root."
        ) from error
    give_to_account(home, account)


def give_to_account(home: Home, account: UnixAccount) -> None:
    """Let the account own the state and the keys, whatever root did there meanwhile. Nothing is raised."""
    owner = (account.user_id, account.group_id)
    hand_over(home.keys, *owner)
    # Journals say by their owner whose services they are; what was restored is its drill's.
    leave = {home.scratch.name, home.services.name}
    if home.config != home.state:
        hand_over(home.state, *owner, leave=leave)
        return
    config = home.config_file.name
    hand_over(home.state, *owner, leave={*leave, config, f".{config}.lock"}, itself=False)


def run_folder(home: Home, account: UnixAccount | None) -> Path:
    """Where lock and socket are; root's own where the state belongs to another account. Raises: ConfigurationError."""
    if account is None:
        make_private_folder(home.run)
        return home.run
    folder = roots_folder(home)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _ROOT_FOLDER.chmod(0o755)
        # Whoever may open the lock may hold it, and keep the service from starting.
        os.chown(folder, 0, account.group_id)
        folder.chmod(0o750)
    except OSError as error:
        raise ConfigurationError(
            f"serve: make folder {folder}: {(error.strerror or '').lower()}", hint="Run it as root."
        ) from error
    return folder


def roots_folder(home: Home) -> Path:
    """Root's own folder for the service of this home."""
    return _ROOT_FOLDER / hashlib.sha256(os.fsencode(home.state)).hexdigest()[:12]


@contextlib.contextmanager
def privileged_requests(
    context: Context, folder: Path, account: UnixAccount | None, say: Callable[[str], None]
) -> Iterator[dict[str, str]]:
    """Stop and start services for the account while the block runs; yields the variables that its jobs need.

    Only where nobody but root can change the configuration; else jobs run its commands as their own account, as they
    do without a service.
    """
    if account is None or not _is_roots(context.home):
        yield {}
        return

    def find(name: str) -> ServiceManager:
        if not _is_roots(context.home):
            raise ServiceError(
                f"ask service {name}: others than root can change {context.home.config_file}",
                hint=f"Run `chown root '{context.home.config_file}'` and `chmod 644 '{context.home.config_file}'`.",
            )
        described = described_services(context, folder)
        if name not in described:
            raise ServiceError(
                f"ask service {name}: the configuration does not describe it",
                hint="Run `datamanager services add` as root; only services described so are stopped for a job.",
            )
        return described

    server = privileged.PrivilegedServer(
        folder / "privileged.sock",
        group_id=account.group_id,
        allowed_users=(0, account.user_id),
        find=find,
        executed=say,
    )
    try:
        yield {privileged.VARIABLE: str(server.path)}
    finally:
        server.close()


def _is_roots(home: Home) -> bool:
    """Whether nobody but root can change or replace the configuration: commands that it names are run as root."""
    try:
        file, folder = os.lstat(home.config_file), os.lstat(home.config)
    except OSError:
        return False
    sticky = folder.st_mode & stat.S_ISVTX
    return (
        stat.S_ISREG(file.st_mode)
        and (file.st_uid, folder.st_uid) == (0, 0)
        and not file.st_mode & _OTHERS_WRITE
        and (bool(sticky) or not folder.st_mode & _OTHERS_WRITE)
    )
