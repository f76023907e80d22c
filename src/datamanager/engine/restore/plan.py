"""What a restore will do, decided before anything is touched.

A restore that cannot succeed is refused here: target not empty or not writable, a volume too small, a tablespace that
would land on a directory in use, another operating system or architecture.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Protocol

import psutil

from datamanager.base.errors import ServerMismatch, TargetTooSmall, TargetUnfit, UsageError
from datamanager.base.units import format_size
from datamanager.repository.manifest import Manifest, Tablespace
from datamanager.repository.repository import Repository

CONTROL_FILE = b"global/pg_control"
# The control file gets its name last: without it PostgreSQL refuses to start the directory.
UNFINISHED_CONTROL_FILE = b"global/pg_control.unfinished-restore"
# Lies in the target and in each tablespace's directory from the first to the last moment of a restore.
UNFINISHED_MARK = "unfinished-restore"
# What every tablespace's directory holds, one a major: PG_17_202406281.
_TABLESPACE = re.compile(r"PG_\d+_\d+$")


@dataclass(frozen=True, slots=True)
class RestoreOptions:
    """What the caller decides.

    Args:
        target: the new data directory; absent or empty.
        tablespaces: where each tablespace goes, by its former location or by its oid.
        owner: account that will own the files; only for a caller with the right to give files away.
        any_platform: restore although operating system or architecture differ (to look at the files only).
        within: directories of a cluster that the new ones may lie in, resolved: of the one that they are to replace.
    """

    target: Path
    tablespaces: Mapping[str, Path] = field(default_factory=dict)
    owner: tuple[int, int] | None = None
    threads: int = 2
    any_platform: bool = False
    within: frozenset[Path] = frozenset()


@dataclass(frozen=True, slots=True)
class VolumeNeed:
    """Room on one volume, in bytes; ``path`` is what will lie there."""

    path: Path
    need: int
    free: int


class Sized(Protocol):
    """Anything that is restored into directories: bytes by tablespace's oid, of everything else as ``base``."""

    @property
    def tablespaces(self) -> Sequence[Tablespace]: ...
    @property
    def volumes(self) -> Mapping[str, int]: ...


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """A restore that can be carried out. ``links`` are the tablespaces outside the data directory, by oid."""

    manifest: Manifest
    options: RestoreOptions
    links: dict[int, Path]
    volumes: list[VolumeNeed]
    warnings: list[str]


def plan_restore(repository: Repository, manifest: Manifest, options: RestoreOptions) -> RestorePlan:
    """Check everything that can be checked without writing.

    Raises: TargetUnfit, TargetTooSmall, ServerMismatch, UsageError; IntegrityError when the backup's layers cannot be
    read.
    """
    repository.contents(manifest)
    warnings = list(manifest.warnings)
    check_platform(manifest, options)
    target = _absolute(options.target)
    check_place(target, "target", options.within)
    links = place_tablespaces(manifest, options, target)
    for oid, path in links.items():
        check_place(path, f"directory of tablespace {oid}", options.within)
    volumes = volume_needs(manifest, target, links)
    for volume in volumes:
        if volume.need > volume.free:
            raise TargetTooSmall(
                f"restore backup: {volume.path} needs {format_size(volume.need)}, "
                f"its volume has {format_size(volume.free)} free"
            )
    if manifest.damaged:
        names = ", ".join(one.path for one in manifest.checksum_failures[:3])
        warnings.append(f"the server itself held damaged pages when this backup was taken: {names}")
    return RestorePlan(manifest, options, links, volumes, warnings)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - keeps links unresolved, as the owner wrote the path


def check_platform(manifest: Manifest, options: RestoreOptions) -> None:
    system, machine = manifest.server.get("operating_system"), manifest.server.get("architecture")
    here = {"system": platform.system().lower(), "machine": _machine(platform.machine())}
    there = {"system": str(system or "").lower(), "machine": _machine(str(machine or ""))}
    different = [name for name in here if there[name] and there[name] != here[name]]
    if different and not options.any_platform:
        raise ServerMismatch(
            f"restore backup: it was made on {system} {machine}, this is {here['system']} {here['machine']}",
            hint="Restore it on a machine with the same operating system and architecture.",
        )


def _machine(name: str) -> str:
    return {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}.get(name.lower(), name.lower())


def check_place(path: Path, what: str, within: frozenset[Path]) -> None:
    """Empty or absent, writable, and in no cluster's own directories. Raises: TargetUnfit."""
    try:
        _check_empty(path, what)
    except PermissionError as error:
        raise _not_writable(path, what) from error
    for folder in path.resolve().parents:
        if folder in within:
            continue
        with contextlib.suppress(OSError):
            if (folder / "PG_VERSION").is_file() or any(_TABLESPACE.match(one.name) for one in folder.iterdir()):
                raise TargetUnfit(
                    f"restore backup: {what} {path} lies in {folder}, which belongs to a cluster",
                    hint="Give a directory outside the data directories and tablespaces of every cluster.",
                )


def _check_empty(path: Path, what: str) -> None:
    if path.is_symlink() and not path.exists():
        raise TargetUnfit(f"restore backup: {what} {path} is a broken link", hint="Give another directory.")
    if path.exists():
        if not path.is_dir():
            raise TargetUnfit(f"restore backup: {what} {path} is not a directory", hint="Give another directory.")
        _check_no_members(path, what)
        if not os.access(path, os.W_OK | os.X_OK):
            raise _not_writable(path, what)
        return
    parent = path.parent
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK | os.X_OK):
        raise _not_writable(parent, what)


def _check_no_members(path: Path, what: str) -> None:
    try:
        members = sorted(member.name for member in path.iterdir() if member.name != "lost+found")
    except PermissionError as error:
        raise _not_writable(path, what) from error
    if not members:
        return
    if any((path / name).exists() for name in (UNFINISHED_MARK, os.fsdecode(UNFINISHED_CONTROL_FILE))):
        raise TargetUnfit(
            f"restore backup: {what} {path} holds an unfinished restore",
            hint="Delete that directory, or give another one; the unfinished one cannot start and holds nothing else.",
        )
    holds = "; it holds a database cluster" if "PG_VERSION" in members else ""
    if any(name.startswith("PG_") and name != "PG_VERSION" for name in members):
        holds = "; it holds a tablespace of a cluster"
    raise TargetUnfit(
        f"restore backup: {what} {path} is not empty{holds}",
        hint="Give an empty directory"
        + (" with --tablespace-map OLD=NEW." if what != "target" else "; nothing is ever overwritten."),
    )


def _not_writable(path: Path, what: str) -> TargetUnfit:
    return TargetUnfit(
        f"restore backup: {what}: no right to write in {path}",
        hint="Run the restore as an account that may write there, or give another directory.",
    )


def place_tablespaces(manifest: Sized, options: RestoreOptions, target: Path) -> dict[int, Path]:
    wanted = {str(key): _absolute(path) for key, path in options.tablespaces.items()}
    links: dict[int, Path] = {}
    for one in manifest.tablespaces:
        mapped = wanted.pop(one.location, None) or wanted.pop(str(one.oid), None)
        if mapped is None and in_place(one):
            continue
        links[one.oid] = mapped or Path(one.location)
    if wanted:
        known = ", ".join(one.location for one in manifest.tablespaces) or "none"
        raise UsageError(
            f"map tablespaces: the backup has no tablespace {next(iter(wanted))}",
            hint=f"Its tablespaces are: {known}.",
        )
    places = [target, *links.values()]
    for number, path in enumerate(places):
        for other in places[number + 1 :]:
            if path == other or path in other.parents or other in path.parents:
                raise TargetUnfit(
                    f"map tablespaces: {path} and {other} lie in each other",
                    hint="Give every tablespace a directory of its own outside the target.",
                )
    return links


def in_place(tablespace: Tablespace) -> bool:
    """Whether a tablespace lies inside the data directory itself (``allow_in_place_tablespaces``)."""
    location = tablespace.location
    return not (PurePosixPath(location).is_absolute() or PureWindowsPath(location).is_absolute())


def volume_needs(manifest: Sized, target: Path, links: dict[int, Path]) -> list[VolumeNeed]:
    """Room by volume. Zeros count: the server writes them sooner or later."""
    by_device: dict[int, VolumeNeed] = {}
    for name, size in manifest.volumes.items():
        path = links.get(int(name), target) if name != "base" else target
        present = path
        while not present.exists():
            present = present.parent
        device = present.stat().st_dev
        known = by_device.get(device)
        need = size + (known.need if known else 0)
        by_device[device] = VolumeNeed(known.path if known else path, need, psutil.disk_usage(str(present)).free)
    return list(by_device.values())
