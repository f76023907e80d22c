"""The files of a data directory at rest that belong into a backup, each with its path as in the server's manifest.

Left out is what BASE_BACKUP leaves out (the lists of basebackup.c), but for what is whole after a stop: all of pg_wal
and unlogged relations stay. A ``backup_label`` stays too: it lies in a restored directory that was never started, and
such a directory starts by it. Summaries of WAL are left out: a copy that goes its own way must not find those of the
original. Links are followed where PostgreSQL itself makes them: pg_wal, and what is in pg_tblspc.
Source: src/backend/backup/basebackup.c (excludeDirContents, excludeFiles).
"""

# ruff: noqa: PTH112, PTH115, PTH116, PTH118, PTH208 - paths are bytes here, as the manifest has them

from __future__ import annotations

import contextlib
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from datamanager.base.errors import RightMissing, ServerUnfit
from datamanager.postgres.source import SourceTablespace

if sys.platform != "win32":
    import pwd

CONTROL_PATH = b"global/pg_control"
_EMPTIED = frozenset(
    (b"pg_dynshmem", b"pg_notify", b"pg_replslot", b"pg_serial", b"pg_snapshots", b"pg_stat_tmp", b"pg_subtrans",
     b"pg_wal/summaries")
)  # fmt: skip
_LEFT_OUT = frozenset(
    (b"postmaster.pid", b"postmaster.opts", b"backup_manifest", b"postgresql.auto.conf.tmp", b"current_logfiles.tmp",
     b"lost+found", b".DS_Store")
)  # fmt: skip
_PREFIXES = (b"pgsql_tmp", b"pg_internal.init")
# Relations of sessions, which the next start removes: t3_16385 in a database's directory.
_TEMPORARY = re.compile(rb"(?:base/\d+|pg_tblspc/\d+/PG_\d+_\d+/\d+)/t\d+_\d+(?:_\w+)?(?:\.\d+)?\Z")


@dataclass(frozen=True, slots=True)
class Member:
    """A directory (``size`` None) or a regular file of ``size`` bytes; ``place`` is where it lies."""

    path: bytes
    place: bytes
    mode: int
    size: int | None


class DataDirectory:
    """What lies below one data directory. Thread-safe; holds nothing open.

    Args: version_folder - of tablespaces, such as ``PG_18_202506291``; what else lies in them is another server's.
    """

    def __init__(self, root: bytes, version_folder: bytes) -> None:
        self._root = root
        self._version_folder = version_folder

    def tablespaces(self, note: Callable[[str], None]) -> list[tuple[SourceTablespace, bytes]]:
        """Every tablespace with the place of its files, by oid; sizes are left open.

        Args: note - told what in pg_tblspc is no tablespace.
        Raises: ServerUnfit, for one whose files are not there; RightMissing.
        """
        found = []
        folder = os.path.join(self._root, b"pg_tblspc")
        with _readable(folder):
            names = sorted(os.listdir(folder))
        for name in names:
            place = os.path.join(folder, name)
            if not name.isdigit():
                note(f"{os.fsdecode(place)} is no tablespace and was left out")
                continue
            target = _link_target(place)
            location = f"pg_tblspc/{int(name)}" if target is None else os.fsdecode(target)
            with _readable(place):
                whole = os.path.isdir(os.path.join(place, self._version_folder))
            if not whole:
                raise ServerUnfit(
                    f"read data directory: tablespace {int(name)} at {location} holds no"
                    f" {os.fsdecode(self._version_folder)}",
                    hint="Mount the volume that the tablespace lies on, and check the link in pg_tblspc.",
                )
            found.append((SourceTablespace(int(name), location, None), place))
        return found

    def of_tablespace(self, oid: int, place: bytes, note: Callable[[str], None]) -> Iterator[Member]:
        """The files of one tablespace, directories before what is in them. Raises: RightMissing, ServerUnfit."""
        path = b"pg_tblspc/%d/%s" % (oid, self._version_folder)
        place = os.path.join(place, self._version_folder)
        with _readable(place):
            status = os.stat(place)
        yield Member(path, place, _mode(status), None)
        yield from _walk(path, place, note)

    def of_base(self, note: Callable[[str], None]) -> Iterator[Member]:
        """Everything outside tablespaces but the control file. Raises: RightMissing, ServerUnfit."""
        for member in _walk(b"", self._root, note):
            if member.path != CONTROL_PATH:
                yield member


def _walk(path: bytes, place: bytes, note: Callable[[str], None]) -> Iterator[Member]:
    """What is below ``place``, in order of names. Holds the names of one directory of each level."""
    if path in _EMPTIED or path == b"pg_tblspc":
        return  # tablespaces have a walk of their own
    with _readable(place), os.scandir(place) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    for entry in entries:
        inner = path + b"/" + entry.name if path else entry.name
        if entry.name in _LEFT_OUT or entry.name.startswith(_PREFIXES) or _TEMPORARY.match(inner):
            continue
        is_wal = inner == b"pg_wal"
        with _readable(entry.path):
            status = os.stat(entry.path) if is_wal else entry.stat(follow_symlinks=False)
        if not is_wal and _is_link(entry.path, status):
            note(f"{os.fsdecode(entry.path)} is a link, which was not followed")
        elif stat.S_ISDIR(status.st_mode):
            yield Member(inner, entry.path, _mode(status), None)
            yield from _walk(inner, entry.path, note)
        elif stat.S_ISREG(status.st_mode):
            # On Windows a listing may show an old size; one that is open there would be refused anyway.
            yield Member(inner, entry.path, _mode(status), status.st_size)
        else:
            note(f"{os.fsdecode(entry.path)} is no regular file and was left out")


def _is_link(place: bytes, status: os.stat_result) -> bool:
    # To Windows a junction is a directory.
    return stat.S_ISLNK(status.st_mode) or (os.name == "nt" and _link_target(place) is not None)


def _mode(status: os.stat_result) -> int:
    return stat.S_IMODE(status.st_mode) & 0o777


def _link_target(place: bytes) -> bytes | None:
    """Where a link leads, a junction of Windows too; None for what is no link."""
    try:
        return os.readlink(place)
    except OSError:
        return None


@contextlib.contextmanager
def _readable(place: bytes) -> Iterator[None]:
    """Inside, the system's refusals become errors that name the account and the remedy."""
    try:
        yield
    except OSError as error:
        raise reading_error(place, error) from error


def reading_error(place: bytes, error: OSError) -> RightMissing | ServerUnfit:
    """What to raise for a file or directory that cannot be read."""
    name = os.fsdecode(place)
    if isinstance(error, PermissionError):
        owner = _owner(place)
        return RightMissing(
            f"read data directory: this account ({_account()}) may not read {name}",
            hint=f"Run the command as {owner}, who owns the data directory, or as root.",
        )
    return ServerUnfit(
        f"read data directory: {name}: {(error.strerror or type(error).__name__).lower()}",
        hint="Check the disk and what is mounted; if it is failing, copy it first (ddrescue) and back up the copy.",
    )


def _account() -> str:
    """Whose rights this process has now."""
    if sys.platform == "win32":
        return psutil.Process().username()
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"number {os.geteuid()}"


def _owner(place: bytes) -> str:
    """Who owns ``place``, or what can be seen above it."""
    path = Path(os.fsdecode(place))
    for part in (path, *path.parents):
        try:
            return part.owner()
        except (OSError, KeyError, NotImplementedError):
            continue
    return "the account of the server"
