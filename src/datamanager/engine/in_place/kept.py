"""What an exchange set aside: a durable record beside each kept data directory, and its deletion, an act of its own.

The record is ``<kept directory>.json``. The data directory lies there complete; its tablespaces and pg_wal, where they
lie outside of it, stayed where they were, and stand in the record.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from datamanager.base.errors import Busy, DataManagerError, IntegrityError, RightMissing, TargetUnfit
from datamanager.base.files import sync_directory
from datamanager.base.units import Lsn
from datamanager.engine.in_place.places import Places, is_ours
from datamanager.postgres.control_file import ControlFile, parse_control_bytes, read_control_bytes
from datamanager.postgres.stopped_server import server_process

FORMAT = 1
_AS_IT_IS = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
# Requirement R80: so long nothing even suggests deleting it.
OFFERED_AFTER = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Outside:
    """A directory outside the data directory that holds part of it: ``tablespace`` (with its oid) or ``wal``."""

    path: Path
    kind: str
    oid: int | None = None


@dataclass(frozen=True, slots=True)
class Position:
    """Where a cluster's history stood: its last checkpoint's place."""

    timeline: int
    lsn: Lsn


@dataclass(frozen=True, slots=True)
class Kept:
    """A state that was set aside.

    Args:
        identity: of the exchange that did it.
        kind: ``restore`` or ``undo``, which set it aside.
        at: when, in UTC.
        data_directory: where it was, and comes back to.
        place: where it lies.
        outside: what belongs to it elsewhere.
        others: what else was made with it and goes with it.
        position: its last checkpoint; None when its control file could not be read.
        successor: in words, what took its place; ``began`` - where that began.
    """

    identity: str
    kind: str
    at: datetime
    data_directory: Path
    place: Path
    outside: tuple[Outside, ...]
    others: tuple[Path, ...]
    position: Position | None
    successor: str
    began: Position

    @property
    def record(self) -> Path:
        return self.place.with_name(f"{self.place.name}.json")

    def may_be_offered(self, now: datetime) -> bool:
        """Whether it is time to ask if it may go."""
        return now - self.at >= OFFERED_AFTER

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "identity": self.identity,
            "kind": self.kind,
            "at": self.at.isoformat(),
            "data_directory": str(self.data_directory),
            "place": str(self.place),
            "outside": [{"path": str(one.path), "kind": one.kind, "oid": one.oid} for one in self.outside],
            "others": [str(one) for one in self.others],
            "position": _position_json(self.position),
            "successor": self.successor,
            "began": _position_json(self.began),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Kept:
        """Raises: ValueError, KeyError, TypeError."""
        if value["format"] != FORMAT:
            raise ValueError("a newer program wrote it")
        began = _position(value["began"])
        if began is None:
            raise ValueError("it does not say where the successor began")
        return cls(
            str(value["identity"]),
            str(value["kind"]),
            datetime.fromisoformat(value["at"]).astimezone(UTC),
            Path(value["data_directory"]),
            Path(value["place"]),
            tuple(Outside(Path(one["path"]), str(one["kind"]), one["oid"]) for one in value["outside"]),
            tuple(Path(one) for one in value["others"]),
            _position(value["position"]),
            str(value["successor"]),
            began,
        )


def _position_json(position: Position | None) -> dict[str, Any] | None:
    return None if position is None else {"timeline": position.timeline, "lsn": str(position.lsn)}


def _position(value: Mapping[str, Any] | None) -> Position | None:
    return None if value is None else Position(int(value["timeline"]), Lsn.parse(value["lsn"]))


def list_kept(data_directory: Path) -> list[Kept]:
    """What is kept of a data directory, newest first. Raises: IntegrityError, RightMissing."""
    places = Places.of(data_directory)
    pattern = places.outgoing("????????").name + ".json"
    found = []
    for path in places.folder.glob(pattern):
        kept = _read(path)
        if kept.data_directory == places.data_directory and kept.place.is_dir():
            found.append(kept)
    return sorted(found, key=lambda one: one.at, reverse=True)


def _read(path: Path) -> Kept:
    try:
        kept = Kept.from_json(json.loads(read_own(path)))
        if kept.record != path:
            raise ValueError("it speaks of another directory")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"read record {path}: {error}", hint="Look at the directory beside it, and put it back by hand if need be."
        ) from error
    return kept


def read_own(path: Path) -> bytes:
    """A file of this account, and no other that takes its name meanwhile: root renames and deletes what it says.

    Raises: RightMissing, for a file of another account; OSError, for a link too.
    """
    descriptor = os.open(path, os.O_RDONLY | _AS_IT_IS)
    with open(descriptor, "rb") as file:
        owner = os.fstat(descriptor).st_uid
        if sys.platform != "win32" and owner != os.geteuid():
            raise RightMissing(
                f"read {path}: it belongs to another account (number {owner})",
                hint="Run the command as the account that ran the restore.",
            )
        return file.read()


def forget_kept(kept: Kept) -> None:
    """Delete a kept state for good, with what belongs to it alone. Idempotent; the record goes last.

    Raises: Busy (a server runs on it), TargetUnfit (the cluster in force uses part of it), OSError.
    """
    if kept.place.exists() and server_process(kept.place) is not None:
        raise Busy(f"delete {kept.place}: a server runs on it", hint="Stop that server first.")
    in_force = {one.path for one in outside_of(kept.data_directory)}
    for one in kept.outside:
        if one.path in in_force:
            raise TargetUnfit(
                f"delete kept data: the cluster in force uses {one.path}",
                hint="Somebody changed its links by hand; delete what is not used any more by hand, too.",
            )
    for one in kept.outside:
        remove_outside(one)
    for path in (*kept.others, kept.place):
        remove_tree(path)
    kept.record.unlink(missing_ok=True)
    sync_directory(kept.record.parent)


def remove_outside(one: Outside) -> None:
    """Delete a tablespace's or pg_wal's files, and the directory itself where this program made it. Raises: OSError."""
    if not one.path.is_dir() or one.path.is_symlink():
        return
    for entry in one.path.iterdir():
        nested = is_ours(entry) or entry.name == "lost+found"
        belongs = entry.name.startswith("PG_") if one.kind == "tablespace" else not nested
        if belongs and entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif belongs:
            entry.unlink()
    if is_ours(one.path):
        # A newer state may lie in there: a mounted tablespace's successors do.
        with contextlib.suppress(OSError):
            one.path.rmdir()
    sync_directory(one.path.parent)


def remove_tree(path: Path) -> None:
    """Delete a directory that this program made. Raises: OSError; IntegrityError, for any other name."""
    if "datamanager-" not in path.name:
        raise IntegrityError(f"delete {path}: no restore made it")
    if path.is_symlink() or not path.exists():
        return
    shutil.rmtree(path)
    sync_directory(path.parent)


def outside_of(data_directory: Path) -> list[Outside]:
    """The tablespaces and pg_wal that lie outside a data directory, links resolved."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for link in sorted((data_directory / "pg_tblspc").iterdir()):
            if link.name.isdigit() and leads_away(link):
                found.append(Outside(Path(os.path.realpath(link)), "tablespace", int(link.name)))
    if leads_away(data_directory / "pg_wal"):
        found.append(Outside(Path(os.path.realpath(data_directory / "pg_wal")), "wal"))
    return found


def leads_away(path: Path) -> bool:
    """Whether it is a link, or a junction of Windows."""
    try:
        os.readlink(path)  # noqa: PTH115 - Path.readlink refuses Windows junctions
    except OSError:
        return False
    return True


def control_of_directory(data_directory: Path) -> ControlFile | None:
    """What its control file says; None where it cannot be read."""
    try:
        return parse_control_bytes(read_control_bytes(data_directory))
    except (DataManagerError, OSError):
        return None


def position_of(control: ControlFile) -> Position:
    return Position(control.timeline, control.checkpoint)
