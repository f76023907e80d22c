"""What of the current data directory stays in force although its data are replaced: its configuration.

The server must come back as it is configured now: port, certificates, who may connect, where it archives. So the plain
files at the top of the data directory that are not PostgreSQL's own, and what they include, are those of the current
one; those of the backup are kept in a folder of their own. Folders that nothing includes may hold an extension's data
and come from the backup.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from datamanager.base.files import remove_leftovers, sync_directory, write_durably
from datamanager.engine.recovery.segments import TAKEN
from datamanager.postgres.conf_syntax import Include, hba_includes, settings_of
from datamanager.postgres.wal.names import HISTORY_FILE, history_name

_OWN = frozenset(
    ("PG_VERSION", "backup_label", "backup_label.old", "tablespace_map", "tablespace_map.old", "backup_manifest",
     "postmaster.pid", "postmaster.opts", "current_logfiles", "standby.signal", "recovery.signal", "recovery.done",
     "promote", "pg_internal.init", "unfinished-restore")
)  # fmt: skip
_SETTINGS = ("postgresql.conf", "postgresql.auto.conf")
_RULES = ("pg_hba.conf", "pg_ident.conf")
# Configuration is small; what is larger is somebody's data, which stays with the old directory.
MOST_BYTES = 4 << 20
_DEPTH = 10


def configuration_of(data_directory: Path) -> list[str]:
    """The files, relative to the data directory, that are its configuration, in order of names. Raises: OSError."""
    found: set[str] = set()
    for entry in data_directory.iterdir():
        named = entry.name not in _OWN and not entry.name.startswith("pgsql_tmp")
        if named and entry.is_file() and entry.stat().st_size <= MOST_BYTES:
            found.add(entry.name)
    for name in _SETTINGS + _RULES:
        found.update(_included(data_directory, data_directory / name, name in _SETTINGS, _DEPTH))
    return sorted(found)


def _included(root: Path, path: Path, settings: bool, depth: int) -> Iterator[str]:
    """Files below ``root`` that a configuration file includes, and theirs; what is not there is the server's to say."""
    try:
        data = path.read_bytes()
    except OSError:
        return
    entries = settings_of(data) if settings else hba_includes(data)
    for entry in entries:
        if not isinstance(entry, Include) or not depth:
            continue
        named = path.parent / entry.name
        for one in sorted(named.glob("*.conf")) if named.is_dir() else [named]:
            if one.is_file() and one.is_relative_to(root):
                yield str(one.relative_to(root))
                yield from _included(root, one, settings, depth - 1)


def carry_over(current: Path, target: Path, replaced: Path, owner: tuple[int, int] | None) -> list[str]:
    """Give the restored directory the current one's configuration, durably.

    Args:
        replaced: takes the files of the backup that differ; made when there is one.
        owner: (uid, gid) of new folders, or None.

    Returns: the files that now are other ones than the backup had. Raises: OSError.
    """
    changed = []
    for name in configuration_of(current):
        source, place = current / name, target / name
        data = source.read_bytes()
        status = source.stat()
        if source.is_symlink():
            _link(source, place)
            continue
        if place.is_file():
            if place.read_bytes() == data:
                continue
            _keep(place, replaced / name, replaced, owner)
        _folders(target, place.parent, owner)
        write_durably(place, data, mode=status.st_mode & 0o7777, owner=status.st_uid)
        if hasattr(os, "chown"):
            os.chown(place, status.st_uid, status.st_gid)
        changed.append(name)
    return changed


def copy_configuration(source: Path, target: Path, names: Iterable[str], owner: tuple[int, int] | None) -> None:
    """Copy such files as they are, durably: owner and mode, links as links. Raises: OSError.

    What a copy that was killed left beside them goes: a server that cannot read a file cannot be backed up.

    Args: owner - (uid, gid) of new folders, or None.
    """
    for name in names:
        one, place = source / name, target / name
        _folders(target, place.parent, owner)
        remove_leftovers(place)
        if one.is_symlink():
            _link(one, place)
            continue
        status = one.stat()
        write_durably(place, one.read_bytes(), mode=status.st_mode & 0o7777, owner=status.st_uid)
        if hasattr(os, "chown"):
            os.chown(place, status.st_uid, status.st_gid)


def _link(source: Path, place: Path) -> None:
    place.unlink(missing_ok=True)
    place.symlink_to(os.readlink(source))  # noqa: PTH115 - as it stands there
    sync_directory(place.parent)


def _keep(source: Path, place: Path, top: Path, owner: tuple[int, int] | None) -> None:
    _folders(top.parent, place.parent, owner)
    write_durably(place, source.read_bytes(), mode=0o600)
    if owner is not None:
        os.chown(place, *owner)


def _folders(top: Path, folder: Path, owner: tuple[int, int] | None) -> None:
    if folder == top or folder.is_dir():
        return
    _folders(top, folder.parent, owner)
    folder.mkdir(mode=0o700)
    if owner is not None:
        os.chown(folder, *owner)


def histories_of(data_directory: Path) -> dict[str, bytes]:
    """The timeline histories in a data directory's pg_wal, by name. Raises: OSError."""
    folder = data_directory / "pg_wal"
    if not folder.is_dir():
        return {}
    return {one.name: one.read_bytes() for one in folder.iterdir() if HISTORY_FILE.match(one.name)}


def histories_known(directories: Iterable[Path], timelines: Iterable[int] = ()) -> dict[str, bytes]:
    """The histories in several data directories, and ``TAKEN`` for timelines of which only the number is known.

    Raises: OSError.
    """
    found = {history_name(number): TAKEN for number in timelines if number > 1}
    for directory in directories:
        found |= {name: data for name, data in histories_of(directory).items() if data != TAKEN or name not in found}
    return found


def announce_history(data_directory: Path, timeline: int, owner: tuple[int, int] | None) -> None:
    """Let the server archive the history of a timeline that began while it was a clone that archived nothing.

    Source: src/backend/access/transam/xlogarchive.c, XLogArchiveNotify. Raises: OSError.
    """
    name = history_name(timeline)
    folder = data_directory / "pg_wal" / "archive_status"
    if not (data_directory / "pg_wal" / name).is_file() or (folder / f"{name}.done").exists():
        return
    _folders(folder.parent, folder, owner)
    write_durably(folder / f"{name}.ready", b"", mode=0o600)
    if owner is not None:
        os.chown(folder / f"{name}.ready", *owner)


_LABEL = "security.selinux"


def copy_label(model: Path, trees: list[Path]) -> bool:
    """Give trees the SELinux label of a directory, where it has one that theirs differs from. Raises: OSError.

    Returns: whether anything was labelled.
    """
    if not hasattr(os, "getxattr"):
        return False
    label = _label(model)
    if label is None:
        return False
    done = False
    for tree in trees:
        if _label(tree) == label:
            continue
        done = True
        for folder, names, files in os.walk(tree):
            for place in (folder, *(os.path.join(folder, name) for name in (*names, *files))):  # noqa: PTH118
                os.setxattr(place, _LABEL, label, follow_symlinks=False)
    return done


def _label(path: Path) -> bytes | None:
    try:
        return os.getxattr(path, _LABEL)
    except OSError:
        return None


def empty_folder(folder: Path) -> None:
    """Remove what is in a folder, not itself. Raises: OSError."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
