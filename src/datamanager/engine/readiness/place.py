"""Whether the target takes the backup: room on every volume, the right to write, the account, the port."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from datamanager.base.errors import DataManagerError, TargetTooSmall
from datamanager.base.units import format_size
from datamanager.engine.readiness.finding import Finding, blocking, fine, refused, warning
from datamanager.engine.restore.plan import RestoreOptions, VolumeNeed, check_place, place_tablespaces, volume_needs
from datamanager.postgres.account import Account
from datamanager.repository.manifest import Manifest


def check_new_place(manifest: Manifest, options: RestoreOptions, more: Mapping[Path, int]) -> list[Finding]:
    """Codes ``target``, ``tablespace`` and ``space``, for a restore into new directories.

    Args: more - bytes needed beside the backup's own files, such as WAL, by directory.
    """
    target = _absolute(options.target)
    found = [_empty(target, "target", options)]
    try:
        links = place_tablespaces(manifest, options, target)
    except DataManagerError as error:
        return [*found, refused("tablespace", error)]
    found += [_empty(path, "tablespace", options) for path in links.values()]
    return [*found, *check_space(volume_needs(manifest, target, links), more)]


def check_planned(plan: Callable[[], Sequence[VolumeNeed]], more: Mapping[Path, int]) -> list[Finding]:
    """Codes ``target`` and ``space``, for a restore of another kind, whose plan refuses what does not fit it.

    Args: plan - makes it, and gives what each volume needs.
    """
    try:
        volumes = plan()
    except TargetTooSmall as error:
        return [refused("space", error)]
    except DataManagerError as error:
        return [refused("target", error)]
    return [fine("target", "The target is as this restore needs it."), *check_space(volumes, more)]


def check_space(volumes: Sequence[VolumeNeed], more: Mapping[Path, int] | None = None) -> list[Finding]:
    """Code ``space``, once a volume; what is needed counts zeros, as the server writes them sooner or later."""
    return [_space(volume) for volume in _with_more(volumes, more or {})]


def check_account(target: Path, account: Account) -> list[Finding]:
    """Code ``owner``: whether the account that will run the server gets to the target. By permission bits."""
    folder = _present(_absolute(target))
    if not account.can_reach(folder):
        return [
            blocking(
                "owner",
                f"The account {account.name}, which is to run the server, may not enter {folder}.",
                f"Let {account.name} enter that folder and those above it, or give another target.",
            )
        ]
    options = account.process_options()
    if sys.platform != "win32" and os.geteuid() == 0 and options.get("user", 0) == 0:
        return [
            warning(
                "owner",
                "The restored files would belong to root, as whom PostgreSQL refuses to run.",
                "Name the account that is to run the server.",
            )
        ]
    return [fine("owner", f"The account that runs the server, {account.name}, gets to the target.")]


def check_port(port: int | None, address: str = "127.0.0.1") -> list[Finding]:
    """Code ``port``: whether a server can listen there. Nothing is left bound."""
    if port is None:
        return []
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as one:
        if sys.platform != "win32":  # there it would let us bind a port in use
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((address, port))
        except (OSError, OverflowError) as error:
            why = (getattr(error, "strerror", None) or str(error)).lower()
            return [blocking("port", f"Port {port} is not free ({why}).", "Choose another port, or stop what has it.")]
    return [fine("port", f"Port {port} is free.")]


def _empty(path: Path, code: str, options: RestoreOptions) -> Finding:
    try:
        check_place(path, "target" if code == "target" else "directory of a tablespace", options.within)
    except DataManagerError as error:
        return refused(code, error)
    return fine(code, f"{path} is free and can be written.")


def _space(volume: VolumeNeed) -> Finding:
    text = f"{volume.path} needs {format_size(volume.need)}, its volume has {format_size(volume.free)} free"
    if volume.need <= volume.free:
        return fine("space", f"{text}.")
    roomier = _roomier(volume.need)
    offer = f" There is room on {' and '.join(roomier)}." if roomier else ""
    return blocking(
        "space",
        f"{text}: {format_size(volume.need - volume.free)} are missing.",
        f"Make room there, or give a directory on a bigger volume; nothing has been touched.{offer}",
        TargetTooSmall,
    )


def _roomier(need: int) -> list[str]:
    """Up to three mounted volumes of this machine with so much room."""
    found = []
    for one in psutil.disk_partitions(all=False):
        with contextlib.suppress(OSError):
            free = psutil.disk_usage(one.mountpoint).free
            if free >= need and "ro" not in one.opts.split(",") and os.path.isdir(one.mountpoint):  # noqa: PTH112
                found.append((free, f"{one.mountpoint} ({format_size(free)})"))
    return [text for _, text in sorted(found, reverse=True)[:3]]


def _with_more(volumes: Sequence[VolumeNeed], more: Mapping[Path, int]) -> list[VolumeNeed]:
    found = list(volumes)
    for path, size in more.items():
        present = _present(_absolute(path))
        device = present.stat().st_dev
        same = (number for number, one in enumerate(found) if _present(one.path).stat().st_dev == device)
        number = next(same, None)
        if number is None:
            found.append(VolumeNeed(path, size, psutil.disk_usage(str(present)).free))
        else:
            found[number] = replace(found[number], need=found[number].need + size)
    return found


def _present(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    while not path.exists():
        path = path.parent
    return path


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - links stay as the owner wrote them
