"""The account under which PostgreSQL's programs run: they refuse root, so root hands them to another.

``Account`` is the seam. On Unix a process of root becomes the given account; everywhere else (not root, Windows) there
is only the account that runs us.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypedDict

from datamanager.base.errors import ConfigurationError

if sys.platform != "win32":
    import grp
    import pwd


class ProcessOptions(TypedDict, total=False):
    """The keywords of ``subprocess`` that change the account."""

    user: int
    group: int
    extra_groups: list[int]


class Account(Protocol):
    """Who runs a program and owns what it reads and writes."""

    @property
    def name(self) -> str: ...

    def process_options(self) -> ProcessOptions:
        """Keywords for ``subprocess``."""
        ...

    def environment(self) -> dict[str, str]:
        """Variables that follow the account, such as HOME."""
        ...

    def can_reach(self, path: Path) -> bool:
        """Whether the account may enter every folder above ``path`` and use what is there (run or enter it)."""
        ...

    def take(self, paths: Iterable[Path]) -> None:
        """Make the account owner of ``paths`` (links themselves, nothing below). Raises: OSError."""
        ...


@dataclass(frozen=True)
class CurrentAccount:
    """Whoever runs this process; all there is on Windows."""

    name: str = "this account"

    def process_options(self) -> ProcessOptions:
        return {}

    def environment(self) -> dict[str, str]:
        return {}

    def can_reach(self, path: Path) -> bool:
        return os.access(path, os.X_OK)

    def take(self, paths: Iterable[Path]) -> None:
        """Nothing to do: what this process makes is already its own."""


@dataclass(frozen=True)
class UnixAccount:
    """Another account of this machine, which root may become."""

    name: str
    user_id: int
    group_id: int
    groups: tuple[int, ...] = ()
    home: str = "/"

    def process_options(self) -> ProcessOptions:
        return {"user": self.user_id, "group": self.group_id, "extra_groups": list(self.groups)}

    def environment(self) -> dict[str, str]:
        return {"HOME": self.home, "USER": self.name, "LOGNAME": self.name}

    def can_reach(self, path: Path) -> bool:
        """By permission bits; access lists that allow more are not looked at."""
        try:
            resolved = path.resolve(strict=True)
            return all(self._may_pass(part.stat()) for part in (resolved, *resolved.parents))
        except OSError:
            return False

    def _may_pass(self, status: os.stat_result) -> bool:
        if status.st_uid == self.user_id:
            return bool(status.st_mode & stat.S_IXUSR)
        if status.st_gid == self.group_id or status.st_gid in self.groups:
            return bool(status.st_mode & stat.S_IXGRP)
        return bool(status.st_mode & stat.S_IXOTH)

    def take(self, paths: Iterable[Path]) -> None:
        for path in paths:
            os.chown(path, self.user_id, self.group_id, follow_symlinks=False)


def service_account(data_directory: Path | None = None) -> Account:
    """The account for the programs that work on ``data_directory``: its owner; without one, ``postgres``.

    Raises: ConfigurationError, when root finds no such account.
    """
    if sys.platform == "win32" or os.geteuid() != 0:
        return CurrentAccount()
    entry = None
    if data_directory is not None:
        with contextlib.suppress(OSError, KeyError):
            owner = data_directory.stat().st_uid
            entry = pwd.getpwuid(owner) if owner else None
    if entry is None:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam("postgres")
    if entry is None:
        raise ConfigurationError(
            "choose account: root may not run PostgreSQL, and there is no account postgres",
            hint="Make one with `useradd --system postgres`, or run DataManager as the account that owns the cluster.",
        )
    return named_account(entry.pw_name)


def named_account(name: str) -> Account:
    """The account of this name, which root may become. Raises: ConfigurationError, when there is none."""
    if sys.platform == "win32":
        return CurrentAccount(name)
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise ConfigurationError(
            f"choose account: there is no account {name!r} here", hint="Name one that `getent passwd` lists."
        ) from None
    groups = tuple(one.gr_gid for one in grp.getgrall() if entry.pw_name in one.gr_mem)
    return UnixAccount(entry.pw_name, entry.pw_uid, entry.pw_gid, groups, entry.pw_dir)
