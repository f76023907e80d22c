"""Looking through a base backup before anything is written: is it whole, of what version, what does it need.

Every name in it is read, so a hostile or cut archive is refused here.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from datamanager.base.errors import IntegrityError, ServerMismatch, TargetUnfit
from datamanager.base.pipeline import StopToken
from datamanager.base.units import Lsn
from datamanager.engine.foreign.base_files import MANIFEST, BaseFiles, tablespaces_of_map
from datamanager.engine.foreign.streams import Readable
from datamanager.engine.foreign.tar import Member
from datamanager.postgres.control_file import CLEAN_STATES, ControlFile
from datamanager.postgres.isolation import running_data_directories
from datamanager.repository.manifest import Tablespace

# An empty one keeps every server away: "lock file is empty". A backup never brings one along.
LOCK_FILE = "postmaster.pid"
TABLESPACE = re.compile(r"pg_tblspc/(\d+)(?:/|\Z)")
_SMALL = ("PG_VERSION", "backup_label", "tablespace_map", "global/pg_control")
_SMALL_BYTES = 1 << 20
_START = re.compile(r"START WAL LOCATION: ([0-9A-F]+/[0-9A-F]+) \(file ([0-9A-F]{24})\)")
_FIRST_MAJOR, _LAST_MAJOR = 14, 18


@dataclass
class Looked:
    """What a base backup holds: bytes by tablespace (``base`` for the rest), and what says what it is."""

    volumes: dict[str, int] = field(default_factory=lambda: {"base": 0})
    small: dict[str, bytes] = field(default_factory=dict)
    links: dict[int, str] = field(default_factory=dict)
    segments: set[str] = field(default_factory=set)
    seen: set[int] = field(default_factory=set)  # tablespaces of which it holds files or folders
    files: int = 0
    has_manifest: bool = False
    standby: bool = False

    @property
    def tablespaces(self) -> list[Tablespace]:
        """Those with a place of their own, by oid."""
        told = tablespaces_of_map(self.small.get("tablespace_map", b"")) | self.links
        return [Tablespace(oid, told[oid], self.volumes.get(str(oid), 0)) for oid in sorted(told)]

    @property
    def bytes(self) -> int:
        return sum(self.volumes.values())


def look_through(source: BaseFiles, path: Path, stop: StopToken, read: Callable[[int], None]) -> Looked:
    looked = Looked()
    for member, file in source.files(stop, read):
        found = TABLESPACE.match(member.path)
        if member.kind == "link":
            if found is None or member.path != f"pg_tblspc/{found[1]}":
                if member.path == "pg_wal":
                    continue
                raise IntegrityError(
                    f"read {path}: {member.path} is a link to {member.target}",
                    hint="A base backup holds links of tablespaces only; do not trust where this one comes from.",
                )
            looked.links[int(found[1])] = member.target
            continue
        if found is not None:
            looked.seen.add(int(found[1]))
        if member.kind == "directory":
            continue
        volume = found[1] if found is not None else "base"
        looked.volumes[volume] = looked.volumes.get(volume, 0) + member.size
        looked.files += 1
        looked.has_manifest |= member.path == MANIFEST
        looked.standby |= member.path in ("standby.signal", "recovery.signal")
        if member.path.startswith("pg_wal/"):
            looked.segments.add(member.path.removeprefix("pg_wal/"))
        if member.path in _SMALL:
            looked.small[member.path] = _all_of(file, member, path)
    return looked


def _all_of(file: Readable, member: Member, path: Path) -> bytes:
    if member.size > _SMALL_BYTES:
        raise IntegrityError(f"read {path}: {member.path} is too large to be one")
    data = b""
    while len(data) < member.size and (piece := file.read(member.size - len(data))):
        data += piece
    return data


def former_places(path: Path, looked: Looked) -> dict[int, str]:
    """Where the links of a directory lead, by oid."""
    places = {oid: path / "pg_tblspc" / str(oid) for oid in looked.seen}
    found: dict[int, str] = {}
    for oid, place in places.items():
        with contextlib.suppress(OSError):
            found[oid] = os.readlink(place)  # noqa: PTH115 - Path.readlink refuses Windows junctions
    return found


def refuse_living(path: Path) -> None:
    if (path / LOCK_FILE).exists():
        raise TargetUnfit(
            f"read {path}: the data directory of a server, running or crashed, and no backup",
            hint="Back it up with `datamanager backup run --cold`, or take a pg_basebackup.",
        )


def refuse_live_tablespaces(links: dict[int, Path]) -> None:
    """A link of a backup that was copied to another place may lead to a tablespace in use. Raises: TargetUnfit."""
    for folder in running_data_directories():
        for one in (folder / "pg_tblspc").glob("[0-9]*"):
            for oid, place in links.items():
                with contextlib.suppress(OSError):
                    if one.samefile(place):
                        raise TargetUnfit(
                            f"read backup: its tablespace {oid} leads to {place}, which the server in {folder} uses",
                            hint="Put the backup's own tablespace beside it, in DIRECTORY.tablespaces/OID.",
                        )


def supported_major(looked: Looked, path: Path) -> int:
    missing = next((name for name in ("PG_VERSION", "global/pg_control") if name not in looked.small), None)
    if missing is not None:
        raise IntegrityError(
            f"read {path}: {missing} is missing, so the backup is not whole", hint="Copy all of it again."
        )
    text = looked.small["PG_VERSION"].decode("ascii", "replace").strip()
    if not text.isdigit() or not _FIRST_MAJOR <= int(text) <= _LAST_MAJOR:
        raise ServerMismatch(
            f"restore backup: it is of PostgreSQL {text[:20]}",
            hint=f"PostgreSQL {_FIRST_MAJOR} to {_LAST_MAJOR} are supported.",
        )
    return int(text)


def start_of_replay(looked: Looked, control: ControlFile, path: Path) -> tuple[Lsn, list[str]]:
    """Where replay begins, and what to warn of. Raises: IntegrityError."""
    label = looked.small.get("backup_label", b"").decode("utf-8", "replace")
    if "INCREMENTAL FROM" in label:
        raise IntegrityError(
            f"read {path}: an increment, which needs the backups before it",
            hint="Put them together with pg_combinebackup, and give its result.",
        )
    found = _START.search(label)
    if found is not None:
        if found[2] not in looked.segments:
            raise IntegrityError(
                f"read {path}: the backup holds no WAL from its start on ({found[2]} is missing)",
                hint="It was taken without its WAL (-X none), or pg_wal.tar is missing; put that beside base.tar.",
            )
        return Lsn.parse(found[1]), []
    if control.state not in CLEAN_STATES:
        raise IntegrityError(
            f"read {path}: a data directory without backup_label, of a server that was {control.state}",
            hint="It is a copy of a running server and cannot be trusted; take a backup with pg_basebackup.",
        )
    return control.redo, ["a copy of a stopped server without backup_label: it is taken as its server left it"]


def check_tablespaces(looked: Looked, path: Path) -> None:
    """Raises: IntegrityError, for one of which the backup holds nothing."""
    for one in looked.tablespaces:
        if one.oid not in looked.seen:
            raise IntegrityError(
                f"read {path}: the files of tablespace {one.oid} ({one.location}) are missing",
                hint=f"Put {one.oid}.tar beside base.tar, or make the archive with the tablespaces.",
            )
