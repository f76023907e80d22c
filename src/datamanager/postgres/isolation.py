"""The last check before a restored directory is started: nothing of it lies in another cluster's files.

A ``tablespace_map`` or a link from the stream leads PostgreSQL to the LIVE tablespaces, into which it then replays.
So every link must lead where the plan says, and no directory, by device and inode, may be, lie within or hold a
directory of a running cluster; that sees through bind mounts and other names of one directory. Source: decision 1.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import psutil

from datamanager.base.errors import TargetUnfit

_HINT = "Nothing was started; restore again into new, empty directories."
Identity = tuple[int, int]


def assert_tablespaces_isolated(
    data_directory: Path,
    planned: Mapping[int, Path],
    running_directories: Iterable[Path],
    *,
    within: Collection[Path] = (),
) -> None:
    """Refuse to start a directory that could touch anything outside its plan.

    Args:
        planned: where each tablespace was restored to, by its OID; an in-place one to its folder in pg_tblspc.
        running_directories: data directories of the clusters that run on this machine.
        within: resolved directories of them that the restored ones may lie in, but not be.

    Raises: TargetUnfit.
    """
    if os.path.lexists(data_directory / "tablespace_map"):
        raise TargetUnfit(f"check restored directory: {data_directory} holds a tablespace_map", hint=_HINT)
    found = dict(_tablespaces(data_directory))
    for name, place in found.items():
        wanted = planned.get(int(name)) if name.isdigit() else None
        if wanted is None:
            raise TargetUnfit(f"check restored directory: tablespace {name} is not in the plan", hint=_HINT)
        if place.resolve() != wanted.resolve():
            raise TargetUnfit(
                f"check restored directory: tablespace {name} leads to {place}, the plan says {wanted}", hint=_HINT
            )
    missing = sorted(oid for oid in planned if str(oid) not in found)
    if missing:
        raise TargetUnfit(f"check restored directory: tablespace {missing[0]} of the plan has no link", hint=_HINT)
    ours = _by_identity([data_directory])
    live = _by_identity(running_directories)
    _refuse_overlap(ours, live, within)
    _refuse_overlap(live, ours)


def running_data_directories() -> list[Path]:
    """The data directories of all PostgreSQL servers on this machine that this account can see.

    A server's working directory is its data directory, for every one of its processes.
    """
    found: dict[Path, None] = {}
    for process in psutil.process_iter(["name"]):
        if not str(process.info["name"] or "").startswith("postgres"):
            continue
        with contextlib.suppress(psutil.Error, OSError):
            folder = Path(process.cwd())
            if (folder / "PG_VERSION").is_file():
                found[folder] = None
    return list(found)


def _tablespaces(data_directory: Path) -> Iterator[tuple[str, Path]]:
    """Name and place of everything in pg_tblspc: links (junctions on Windows) and folders of in-place tablespaces."""
    try:
        entries = sorted((data_directory / "pg_tblspc").iterdir())
    except FileNotFoundError:
        return
    for entry in entries:
        try:
            target = Path(os.readlink(entry))  # noqa: PTH115 - Path.readlink refuses Windows junctions
        except OSError:
            target = entry
        yield entry.name, target if target.is_absolute() else entry.parent / target


def _places(data_directory: Path) -> list[Path]:
    """The directories that a server writes to: its own, pg_wal, every tablespace and what is right below it."""
    places = [data_directory, data_directory / "pg_wal"]
    for _, place in _tablespaces(data_directory):
        places.append(place)
        with contextlib.suppress(OSError):
            places += [child for child in place.iterdir() if child.name.startswith("PG_")]
    return places


def _identity(place: Path) -> Identity | None:
    try:
        status = place.stat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino)


def _by_identity(directories: Iterable[Path]) -> dict[Identity, Path]:
    found = {_identity(place): place for directory in directories for place in _places(directory)}
    return {identity: place for identity, place in found.items() if identity is not None}


def _refuse_overlap(
    inner: Mapping[Identity, Path], outer: Mapping[Identity, Path], within: Collection[Path] = ()
) -> None:
    """Raise when a directory of ``inner`` is one of ``outer`` or lies within it."""
    for place in inner.values():
        resolved = place.resolve()
        for part in (resolved, *resolved.parents):
            identity = _identity(part)
            if identity is not None and identity in outer and (part == resolved or part not in within):
                message = f"check restored directory: {place} and {outer[identity]} overlap, and a cluster runs on one"
                raise TargetUnfit(message, hint=_HINT)
