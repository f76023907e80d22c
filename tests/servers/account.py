"""Under which account the programs of PostgreSQL run: they refuse root, so root hands them to an unprivileged one."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

if sys.platform != "win32":
    import pwd


class ProcessOptions(TypedDict, total=False):
    """The keywords of ``subprocess`` that change the account."""

    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True)
class Account:
    """An account of this machine that may run a server."""

    name: str
    uid: int
    gid: int


def server_account() -> Account | None:
    """Return the account for servers, or None where the tests' own account will do (not root, or Windows).

    Raises: LookupError when root has neither ``postgres`` nor ``nobody`` to turn to.
    """
    if sys.platform == "win32" or os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise LookupError("run servers: this machine has neither an account postgres nor nobody")


def process_options() -> ProcessOptions:
    """Return the keywords that make ``subprocess`` start a program under the servers' account."""
    account = server_account()
    if account is None:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": []}


def hand_over(path: Path) -> None:
    """Give ``path`` and everything below it to the servers' account; does nothing where that is our own.

    Symbolic links are given, not followed: a link in ``pg_tblspc`` may lead to another server's tablespace.
    """
    account = server_account()
    if account is None or sys.platform == "win32":
        return
    os.chown(path, account.uid, account.gid, follow_symlinks=False)
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            os.chown(Path(folder) / name, account.uid, account.gid, follow_symlinks=False)


def can_enter(folder: Path) -> bool:
    """Say whether the servers' account may enter ``folder`` and every folder above it."""
    account = server_account()
    if account is None:
        return True
    for part in (folder.resolve(), *folder.resolve().parents):
        state = part.stat()
        if state.st_uid == account.uid:
            needed = stat.S_IXUSR
        elif state.st_gid == account.gid:
            needed = stat.S_IXGRP
        else:
            needed = stat.S_IXOTH
        if not state.st_mode & needed:
            return False
    return True


def folder_roots() -> list[Path]:
    """Return where temporary folders may be made, the best place first."""
    roots = [Path(tempfile.gettempdir()), Path("/tmp")]
    return [root for root in roots if root.is_dir() and can_enter(root) and len(str(root)) <= 40] or roots[:1]


def make_folder(purpose: str) -> Path:
    """Make a temporary folder with a short path that the servers' account owns; the caller removes it.

    Short, because a socket's path may have 107 bytes on Linux and 103 on macOS, where the usual folder is long already.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"dm-{purpose}-", dir=folder_roots()[0]))
    folder.chmod(0o755)
    hand_over(folder)
    return folder


def remove_folder(folder: Path) -> None:
    """Remove ``folder`` with everything in it; a folder that is gone already is no error."""
    shutil.rmtree(folder, ignore_errors=True)
