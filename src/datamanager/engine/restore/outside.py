"""Putting configuration from outside the data directory beside a restored one, and saying how it is used from there.

Nothing is written where the files belong: another cluster may live with them. A clone never uses them.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath

from datamanager.base.errors import IntegrityError, TargetUnfit
from datamanager.base.files import sync_directory, write_durably
from datamanager.postgres.outside_model import OutsideFile, OutsideRole
from datamanager.repository.manifest import Manifest

_MAIN = (OutsideRole.CONFIG.value, OutsideRole.HBA.value, OutsideRole.IDENT.value)
_DRIVE = re.compile(r"[A-Za-z]:")


@dataclass(frozen=True, slots=True)
class PutBack:
    """One file of the original cluster.

    Args:
        path: where it belongs.
        place: where it lies now; None for one that the backup does not hold.
        left_out: why not.
        role: a value of OutsideRole.
    """

    path: str
    place: Path | None
    left_out: str
    role: str


def outside_folder(target: Path) -> Path:
    """Where the files of a backup restored to ``target`` go."""
    whole = Path(os.path.abspath(target))  # noqa: PTH100 - links stay as the owner wrote them
    return whole.with_name(f"{whole.name}.outside")


def check_outside_folder(manifest: Manifest, folder: Path) -> None:
    """Raises: TargetUnfit, when the files would land among others."""
    if manifest.outside and (folder.is_symlink() or (folder.exists() and any(folder.iterdir()))):
        raise TargetUnfit(
            f"restore backup: {folder}, which takes the configuration files, exists",
            hint="Move it away, or give another target; nothing is ever overwritten.",
        )


def write_outside_files(manifest: Manifest, folder: Path, owner: tuple[int, int] | None) -> list[PutBack]:
    """Write the files below ``folder``, which only its owner can enter, under the paths they had.

    Args: owner - (uid, gid) that gets them, or None.
    Raises: TargetUnfit, IntegrityError (a path that leads elsewhere), OSError. Durable on return.
    """
    if not manifest.outside:
        return []
    check_outside_folder(manifest, folder)
    _make_folder(folder, owner)
    done = []
    for file in manifest.outside:
        data = _data_of(file)
        place = None if data is None else folder.joinpath(*_parts(file.path))
        if place is not None and data is not None:
            _make_folders(folder, place.parent, owner)
            write_durably(place, data, mode=file.mode & 0o777 | 0o600)
            _give(place, owner)
        done.append(PutBack(file.path, place, file.left_out, file.role))
    sync_directory(folder.parent)
    return done


def start_options(done: list[PutBack], target: Path) -> dict[str, str]:
    """Settings that start the restored server with its own files; empty when postgresql.conf is not among them.

    ``data_directory`` and paths to the other files are named because the file itself names those of the original.
    """
    found = {one.role: str(one.place) for one in done if one.role in _MAIN and one.place is not None}
    if OutsideRole.CONFIG.value not in found:
        return {}
    return {OutsideRole.CONFIG.value: found[OutsideRole.CONFIG.value], "data_directory": str(target), **found}


def _data_of(file: OutsideFile) -> bytes | None:
    try:
        return file.data
    except ValueError as error:
        raise IntegrityError(f"restore configuration: {file.path} is not what was stored") from error


def _parts(path: str) -> list[str]:
    """The path below the folder: ``/etc/x`` as etc, x; ``C:\\x`` as C, x. Raises: IntegrityError."""
    windows = bool(_DRIVE.match(path)) or path.startswith("\\")
    pure: PurePath = PureWindowsPath(path) if windows else PurePosixPath(path)
    parts = [part.rstrip("\\/:") for part in pure.parts if part.strip("\\/")]
    strange = any(part in ("", ".", "..") or "\0" in part or (os.name == "nt" and ":" in part) for part in parts)
    if not parts or strange or not pure.is_absolute():
        raise IntegrityError(f"restore configuration: {path!r} is no absolute path")
    return parts


def _make_folders(top: Path, folder: Path, owner: tuple[int, int] | None) -> None:
    if folder != top and not folder.exists():
        _make_folders(top, folder.parent, owner)
        _make_folder(folder, owner)


def _make_folder(folder: Path, owner: tuple[int, int] | None) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _give(folder, owner)


def _give(path: Path, owner: tuple[int, int] | None) -> None:
    if owner is not None and hasattr(os, "chown"):
        os.chown(path, *owner, follow_symlinks=False)
