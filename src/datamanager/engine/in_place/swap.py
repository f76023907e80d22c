"""Exchanging two data directories by renames: the directories themselves, or, of a mount point, what is in them.

Every rename is told before it is made and is durable before the next. ``back`` may be called at any moment, after a
kill at any rename, any number of times; ``forward`` once, and ``finish`` when ``done``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from datamanager.base.errors import IntegrityError
from datamanager.base.files import sync_folder
from datamanager.engine.in_place.journal import Journal
from datamanager.engine.in_place.places import HIDDEN, inode_of
from datamanager.system.exchange import exchange

_CONTROL = Path("global", "pg_control")
# Where a control file waits: without it at its place PostgreSQL refuses to start a directory.
_PARKED = "pg_control.parked"
# What lies in a mount point and belongs to nobody's cluster.
_STAYS = ("lost+found", f"{HIDDEN}datamanager-")


class Swap(Protocol):
    """Puts the incoming data in force and the old ones at ``outgoing``. Raises: OSError, IntegrityError."""

    @property
    def done(self) -> bool:
        """Whether the incoming data are in force, whole."""
        ...

    def forward(self) -> None: ...

    def finish(self) -> None:
        """What is left to do once it is done: the old data at their place, complete. Idempotent."""
        ...

    def back(self) -> None:
        """The old data in force, the others at ``incoming``. Idempotent."""
        ...


@dataclass(frozen=True)
class Renames:
    """Renames that are told and durable. ``swapped`` is system/exchange.py's, or one that never can."""

    told: Callable[[str], None]
    swapped: Callable[[Path, Path], bool] = exchange

    def rename(self, one: Path, other: Path) -> None:
        self.told(f"rename {one} to {other}")
        one.rename(other)
        self._sync(one, other)

    def exchange(self, one: Path, other: Path) -> bool:
        self.told(f"exchange {one} and {other}")
        if not self.swapped(one, other):
            return False
        self._sync(one, other)
        return True

    @staticmethod
    def _sync(one: Path, other: Path) -> None:
        for folder in {one.parent, other.parent}:
            sync_folder(folder)


def swap_of(journal: Journal, renames: Renames) -> Swap:
    """The way that a journal's exchange goes."""
    return WholeSwap(journal, renames) if journal.places.whole else EntriesSwap(journal, renames)


class WholeSwap:
    """Renames the directories; which is which is told by inode."""

    def __init__(self, journal: Journal, renames: Renames) -> None:
        self._place = journal.places.data_directory
        self._incoming, self._outgoing = journal.incoming, journal.outgoing
        self._old, self._new = journal.old, journal.new
        self._renames = renames

    @property
    def done(self) -> bool:
        return inode_of(self._place) == self._new is not None

    def forward(self) -> None:
        if not self._renames.exchange(self._incoming, self._place):
            self._renames.rename(self._place, self._outgoing)
            self._renames.rename(self._incoming, self._place)
        self.finish()

    def finish(self) -> None:
        if inode_of(self._incoming) == self._old is not None:
            self._renames.rename(self._incoming, self._outgoing)

    def back(self) -> None:
        if self.done:
            self.finish()
            if not self._renames.exchange(self._outgoing, self._place):
                self._renames.rename(self._place, self._incoming)
        if inode_of(self._place) is None and inode_of(self._outgoing) == self._old:
            self._renames.rename(self._outgoing, self._place)
        if inode_of(self._outgoing) == self._new is not None:
            self._renames.rename(self._outgoing, self._incoming)
        if inode_of(self._place) != self._old:
            raise IntegrityError(
                f"put back {self._place}: what lies there is neither the old data nor the new",
                hint=f"The old data are {self._outgoing} or {self._incoming}: put them there by hand.",
            )


class EntriesSwap:
    """Moves entries; the control file leaves first and comes last, so that PostgreSQL refuses whatever is between."""

    def __init__(self, journal: Journal, renames: Renames) -> None:
        self._place = journal.places.data_directory
        self._incoming, self._outgoing = journal.incoming, journal.outgoing
        self._old_entries = frozenset(journal.old_entries)
        self._renames = renames

    @property
    def done(self) -> bool:
        return (
            os.path.lexists(self._place / _CONTROL)
            and not os.path.lexists(self._incoming / _PARKED)
            and any(name in self._old_entries for name in entries_of(self._outgoing))
        )

    def forward(self) -> None:
        self._make(self._outgoing)
        self._park(self._place, self._outgoing)
        self._park(self._incoming, self._incoming)
        for name in entries_of(self._place):
            self._renames.rename(self._place / name, self._outgoing / name)
        for name in entries_of(self._incoming):
            self._renames.rename(self._incoming / name, self._place / name)
        self._renames.rename(self._incoming / _PARKED, self._place / _CONTROL)
        self.finish()

    def finish(self) -> None:
        self._unpark(self._outgoing, self._outgoing)
        self._remove(self._incoming)

    def back(self) -> None:
        self._make(self._incoming)
        if self.done:
            self._park(self._place, self._incoming)
        self._park(self._outgoing, self._outgoing)
        for name in entries_of(self._place):
            if name not in self._old_entries or os.path.lexists(self._outgoing / name):
                self._renames.rename(self._place / name, self._incoming / name)
        for name in entries_of(self._outgoing):
            self._renames.rename(self._outgoing / name, self._place / name)
        self._unpark(self._outgoing, self._place)
        self._unpark(self._incoming, self._incoming)
        self._remove(self._outgoing)

    def _park(self, directory: Path, where: Path) -> None:
        if os.path.lexists(directory / _CONTROL):
            self._renames.rename(directory / _CONTROL, where / _PARKED)

    def _unpark(self, where: Path, directory: Path) -> None:
        if os.path.lexists(where / _PARKED):
            self._renames.rename(where / _PARKED, directory / _CONTROL)

    def _make(self, folder: Path) -> None:
        if not folder.exists():
            folder.mkdir(mode=0o700)
            _like(folder, self._place)
            sync_folder(folder.parent)

    @staticmethod
    def _remove(folder: Path) -> None:
        with contextlib.suppress(OSError):  # a backup of a mounted data directory holds this one, empty
            (folder / "lost+found").rmdir()
        if folder.exists() and not any(folder.iterdir()):
            folder.rmdir()
            sync_folder(folder.parent)


def _like(folder: Path, model: Path) -> None:
    status = model.stat()
    folder.chmod(status.st_mode & 0o7777)
    if hasattr(os, "chown"):
        os.chown(folder, status.st_uid, status.st_gid)


def entries_of(folder: Path) -> list[str]:
    """What in a data directory is part of the cluster or its owner's, in order of names; nothing of ours."""
    try:
        names = sorted(one.name for one in folder.iterdir())
    except FileNotFoundError:
        return []
    return [name for name in names if name != _PARKED and not name.startswith(_STAYS)]
