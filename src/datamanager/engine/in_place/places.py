"""Names and places of a restore in place: what is made beside a data directory, and where it can be made.

A directory takes its successor's place by one rename where it may be renamed: it is no mount point, and its parent is
on the same volume and writable. Else the entries in it are exchanged, and everything lies in it under names that
BASE_BACKUP passes over (they begin with ``pgsql_tmp``; src/backend/backup/basebackup.c, sendDir).
"""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from datamanager.system.exchange import is_mount_point

# The server's base backup leaves such names out, and so do pg_rewind, pgBackRest and our own cold source.
HIDDEN = "pgsql_tmp."
_SUFFIX = re.compile(r"\.?datamanager-[0-9a-f]{8}\Z")


def new_identity() -> str:
    """Names one exchange and everything that it leaves behind: eight hexadecimal digits."""
    return secrets.token_hex(4)


@dataclass(frozen=True, slots=True)
class Places:
    """Where the parts of one exchange lie.

    Args:
        data_directory: without links in its path.
        whole: the directory itself is renamed; else its entries.
    """

    data_directory: Path
    whole: bool

    @classmethod
    def of(cls, data_directory: Path) -> Places:
        """Places around a data directory, which may be a link, or missing in the middle of an exchange."""
        real = Path(os.path.realpath(data_directory))
        return cls(real, renameable(real))

    @property
    def folder(self) -> Path:
        """What everything lies in."""
        return self.data_directory.parent if self.whole else self.data_directory

    def incoming(self, identity: str) -> Path:
        return self.folder / f"{self._stem}datamanager-{identity}"

    def outgoing(self, identity: str) -> Path:
        return self.folder / f"{self._stem}datamanager-{identity}-before"

    def configuration(self, identity: str) -> Path:
        """Takes the configuration files of the backup, which are not in force."""
        return self.folder / f"{self._stem}datamanager-{identity}-configuration"

    def wal(self, identity: str) -> Path:
        """Takes the WAL on its way into the recovery of a delta restore."""
        return self.folder / f"{self._stem}datamanager-{identity}-wal"

    @property
    def journal(self) -> Path:
        return self.folder / (self._hidden + "restore.json")

    @property
    def delta(self) -> Path:
        """The record of a delta restore."""
        return self.folder / (self._hidden + "delta.json")

    @property
    def lock(self) -> Path:
        return self.folder / (self._hidden + "restore.lock")

    @property
    def log(self) -> Path:
        """For what a server says that is started here and has no log of its own."""
        return self.folder / (self._hidden + "server.log")

    @property
    def _stem(self) -> str:
        return f"{self.data_directory.name}." if self.whole else HIDDEN

    @property
    def _hidden(self) -> str:
        return f".{self.data_directory.name}.datamanager-" if self.whole else f"{HIDDEN}datamanager-"


def renameable(directory: Path) -> bool:
    """Whether a directory can be renamed where it is; a missing one as if it were there."""
    parent = directory.parent
    if directory.exists() and (is_mount_point(directory) or directory.stat().st_dev != parent.stat().st_dev):
        return False
    return os.access(parent, os.W_OK | os.X_OK)


def place_beside(directory: Path, identity: str) -> Path:
    """A new directory for what now lies in ``directory`` (a tablespace, pg_wal), on the same volume.

    Args: directory - without links in its path. Names do not grow from restore to restore.
    """
    if not renameable(directory):
        return directory / f"datamanager-{identity}"
    stem = _SUFFIX.sub("", directory.name)
    return directory.with_name(f"{stem}.datamanager-{identity}" if stem else f"datamanager-{identity}")


def is_ours(directory: Path) -> bool:
    """Whether this program made a directory beside a tablespace or pg_wal."""
    return _SUFFIX.search(directory.name) is not None


def inode_of(path: Path) -> int | None:
    """What tells a directory from another one of its volume; None when there is none of that name.

    The device's number is left out: it may be another after a restart of the machine.
    """
    try:
        return path.lstat().st_ino
    except FileNotFoundError:
        return None
