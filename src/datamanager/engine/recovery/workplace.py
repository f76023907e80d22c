"""The folder beside a directory in recovery, and what keeps that directory from being started as if it were finished.

    TARGET.wal/            the spool (spool.py), the server's log, ``paused.json`` while it waits to be looked at
    TARGET.wal/server/     configuration of the recovery's own
    TARGET.wal/socket/     its socket; elsewhere where that path would be too long
    TARGET/unfinished-restore, recovery.signal, postgresql.conf.unfinished-restore

A delta restore says where the folder lies, and keeps its directory from starting by marks of its own.

A directory with recovery.signal starts only with a restore_command, and the recovery's own is on its command line. The
copy's postgresql.conf, which may hold one of production's, is away until the end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from datamanager.base.errors import IntegrityError, TargetUnfit
from datamanager.base.files import sync_directory, sync_tree
from datamanager.base.units import Lsn
from datamanager.engine.restore.plan import CONTROL_FILE, UNFINISHED_CONTROL_FILE, UNFINISHED_MARK
from datamanager.engine.restore.run import name_control_file, remove_marks
from datamanager.postgres.account import Account
from datamanager.postgres.control_file import STOPPED, parse_control_bytes, read_control_bytes
from datamanager.postgres.wal.history import TimelineHistory
from datamanager.postgres.wal.names import history_name

_CONFIGURATION = "postgresql.conf"
_HIDDEN = f"{_CONFIGURATION}.{UNFINISHED_MARK}"
_SIGNAL = "recovery.signal"
# The server's notes of its last start, the command line of the recovery among them.
_NOTES = ("postmaster.opts", "backup_label.old")
_SOCKET_BYTES = 107 if sys.platform == "linux" else 103
_LONGEST_NAME = "/.s.PGSQL.65535.lock"


@dataclass(frozen=True, slots=True)
class Recovered:
    """How a recovery ended: the new timeline, and where it left the one that was replayed."""

    timeline: int
    end: Lsn


@dataclass(frozen=True, slots=True)
class Workplace:
    """The files of one recovery. ``links`` are the directories outside the target that belong to it."""

    target: Path
    links: tuple[Path, ...]
    folder: Path
    socket: Path

    @classmethod
    def of(cls, target: Path, links: Iterable[Path], account: Account, folder: Path | None = None) -> Workplace:
        """Choose the socket's folder, and make it where it lies elsewhere. Raises: OSError.

        Args: folder - takes the WAL; None for TARGET.wal.
        """
        folder = folder or folder_of(target)
        socket = folder / "socket"
        too_long = sys.platform != "win32" and len(os.fsencode(f"{socket}{_LONGEST_NAME}")) > _SOCKET_BYTES
        if too_long or folder.is_relative_to(target):
            socket = Path(tempfile.mkdtemp(prefix="datamanager-"))
            account.take([socket])
        return cls(target, tuple(links), folder, socket)

    @property
    def side(self) -> Path:
        """Takes the configuration files of the recovery, which lie outside the target."""
        return (self.socket if self.folder.is_relative_to(self.target) else self.folder) / "server"

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    @property
    def control_file(self) -> Path:
        """Where the control file lies, under its name or not yet."""
        unfinished = self.target / os.fsdecode(UNFINISHED_CONTROL_FILE)
        return unfinished if unfinished.exists() else self.target / os.fsdecode(CONTROL_FILE)

    def open(self) -> None:
        """From here on the directory starts, but not without the settings of its recovery. Raises: OSError."""
        with contextlib.suppress(FileNotFoundError):
            (self.target / _CONFIGURATION).rename(self.target / _HIDDEN)
            sync_directory(self.target)
        if self.control_file.name != Path(os.fsdecode(CONTROL_FILE)).name:
            name_control_file(self.target)

    def _finish(self) -> None:
        """Durable, and nothing of the recovery left. Raises: OSError."""
        for name in _NOTES:
            (self.target / name).unlink(missing_ok=True)
        for root in (self.target, *self.links):
            sync_tree(root)
        with contextlib.suppress(FileNotFoundError):
            (self.target / _HIDDEN).rename(self.target / _CONFIGURATION)
        if (self.target / UNFINISHED_MARK).exists():
            remove_marks(self.target, self.links)
        for root in (self.target, *self.links):
            sync_directory(root)

    def remove_side(self, *, log: bool) -> None:
        """Remove what served the recovery but the spool's own files. Args: log - the server's log as well."""
        for folder in (self.side, self.socket):
            shutil.rmtree(folder, ignore_errors=True)
        if log:
            self.log.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def complete(self, timeline: int, reached: Lsn) -> Recovered:
        """Check the stopped directory, and make of it one that anybody can start.

        Args: timeline - that was to be replayed; reached - where the last record begins that had to be.
        Raises: IntegrityError, TargetUnfit.
        """
        recovered = self._recovered(timeline, reached)
        try:
            self._finish()
        except OSError as error:
            raise TargetUnfit(
                f"recover: {error.filename or self.target}: {(error.strerror or 'cannot be written').lower()}",
                hint="Delete the unfinished directory and restore again.",
            ) from error
        return recovered

    def _recovered(self, timeline: int, reached: Lsn) -> Recovered:
        """What the directory says of its recovery. Raises: IntegrityError."""
        try:
            control = parse_control_bytes(read_control_bytes(self.target))
            name = history_name(control.timeline)
            history = TimelineHistory.parse(control.timeline, (self.target / "pg_wal" / name).read_bytes())
        except OSError as error:
            raise _incomplete(f"{error.filename}: {(error.strerror or 'unreadable').lower()}") from error
        if control.state != STOPPED or (self.target / _SIGNAL).exists():
            raise _incomplete(f"the server left it {control.state!r}")
        last = history.switches[-1] if history.switches else None
        if last is None or last.timeline != timeline:
            raise _incomplete(f"timeline {control.timeline} does not come from timeline {timeline}")
        if last.at <= reached:
            raise _incomplete(f"replay ended at {last.at}, before the record at {reached}")
        return Recovered(control.timeline, last.at)


def folder_of(target: Path) -> Path:
    """Where the files of a recovery of ``target`` lie."""
    return target.with_name(f"{target.name}.wal")


def check_folder(target: Path, account: Account, folder: Path | None = None) -> None:
    """See beforehand that WAL can be put beside the target, and that the server's account gets there.

    Args: folder - as in ``Workplace.of``. Raises: TargetUnfit.
    """
    folder = folder or folder_of(target.absolute())
    known = (folder / "plan", folder / "server.log", folder / "server")
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not any(one.exists() for one in known))):
        raise TargetUnfit(
            f"recover: {folder} is needed for the WAL, and something else lies there",
            hint="Give another target, or move that away.",
        )
    present = next(one for one in folder.parents if one.exists())
    if not os.access(present, os.W_OK | os.X_OK):
        raise TargetUnfit(
            f"recover: no right to put WAL beside the target, into {present}",
            hint="Give a target in a directory where this account may write.",
        )
    if not account.can_reach(present):
        raise TargetUnfit(
            f"recover: the server would run as {account.name}, who may not enter {present}",
            hint="Give a target in a directory that this account may enter.",
        )


def _incomplete(why: str) -> IntegrityError:
    return IntegrityError(
        f"recover: not finished: {why}",
        hint="Delete the unfinished directory and restore again; the server's log beside it says more.",
    )
