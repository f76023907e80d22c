"""The data directory that a delta restore works on: what it is, and the journal that keeps it from starting meanwhile.

    begin               unfinished-delta (whose directory this is) -> global/pg_control goes away
    name_control_file   global/pg_control comes back
    drop_journal        unfinished-delta goes

Without pg_control no server starts; with the journal the same command goes on, whatever moment it was killed at. Where
a recovery follows, the journal stays until that has ended.
Source: PostgreSQL decision 11.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from datamanager.base.errors import Busy, DataManagerError, NotFound, ServerMismatch, TargetUnfit
from datamanager.base.files import sync_directory, write_durably
from datamanager.engine.restore.plan import CONTROL_FILE, UNFINISHED_MARK, in_place
from datamanager.postgres.control_file import parse_control_bytes, read_control_bytes, read_major
from datamanager.postgres.isolation import assert_tablespaces_isolated, running_data_directories
from datamanager.postgres.stopped_server import require_stopped
from datamanager.repository.format import canonical_json
from datamanager.repository.manifest import Manifest

JOURNAL = "unfinished-delta"
# Where the control file lies, and is put right like any other file, until the directory may start.
MOVED_CONTROL_FILE = b"global/pg_control.unfinished-delta"
_ELSEWHERE = "Restore into a new directory instead, or move this one away first."


@dataclass(frozen=True, slots=True)
class DeltaTarget:
    """A stopped data directory that a delta restore may write to.

    Args:
        root: the data directory.
        version_folder: of its tablespaces, such as ``PG_18_202506291``; what else lies in them is another cluster's.
        links: where its tablespaces lie, by oid.
        owner: (uid, gid) for new files; None to leave them to the caller's account.
        continued: an unfinished delta restore lies here already.
    """

    root: Path
    system_identifier: int
    catalog_version: int
    version_folder: bytes
    links: Mapping[int, Path]
    owner: tuple[int, int] | None
    continued: bool

    @property
    def roots(self) -> list[Path]:
        """The directories of which each may lie on a volume of its own."""
        wal = self.root / "pg_wal"
        return [self.root, *([wal.resolve()] if wal.is_symlink() else []), *self.links.values()]


@dataclass(frozen=True, slots=True)
class DeltaJournal:
    """What ``unfinished-delta`` says: whose directory it lies in, and which backup was being written."""

    system_identifier: int
    catalog_version: int
    backup: str


def read_journal(root: Path) -> DeltaJournal | None:
    """The journal of an unfinished delta restore, None where there is none. Raises: TargetUnfit, when it is damaged."""
    try:
        value = json.loads((root / JOURNAL).read_bytes())
        return DeltaJournal(int(value["system_identifier"]), int(value["catalog_version"]), str(value["backup"]))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TargetUnfit(f"restore backup: {root / JOURNAL} cannot be read ({error})", hint=_ELSEWHERE) from error


def examine(root: Path, manifest: Manifest, *, at_rest: bool = True) -> DeltaTarget:
    """Make sure that this is the backup's own cluster, at rest, with its tablespaces where they were. Writes nothing.

    Args: at_rest - False only to look: its server may run.
    Raises: TargetUnfit, ServerMismatch, Busy.
    """
    _require_directory(root)
    if at_rest:
        _require_at_rest(root)
    journal = read_journal(root)
    identifier, catalog = _identity(root, journal)
    _require_same_cluster(root, manifest, identifier)
    version_folder = f"PG_{manifest.major}_{catalog}"
    links = _tablespaces(root, manifest, version_folder)
    _require_wal_folder(root)
    inside = {one.oid: root / "pg_tblspc" / str(one.oid) for one in manifest.tablespaces if in_place(one)}
    present = {oid: path for oid, path in inside.items() if path.exists()}
    running = [one for one in running_data_directories() if at_rest or not one.samefile(root)]
    assert_tablespaces_isolated(root, {**present, **links}, running)
    return DeltaTarget(root, identifier, catalog, version_folder.encode(), links, _owner(root), journal is not None)


def begin(target: DeltaTarget, manifest: Manifest) -> None:
    """From here on the directory does not start. Raises: OSError; Busy, when a server was quicker, all as it was."""
    record = {
        "system_identifier": str(target.system_identifier),
        "catalog_version": target.catalog_version,
        "backup": manifest.backup,
        "cluster": manifest.cluster,
    }
    journal = target.root / JOURNAL
    # Whoever runs the server must be able to read it, or the server's next base backup fails at a leftover.
    write_durably(journal, canonical_json(record), mode=0o600, owner=target.owner[0] if target.owner else None)
    control, moved = _control_files(target)
    if not control.exists():
        return
    control.replace(moved)
    try:
        _require_at_rest(target.root)
    except DataManagerError:
        moved.replace(control)
        journal.unlink()
        raise
    sync_directory(control.parent)


def name_control_file(target: DeltaTarget) -> None:
    """Let the directory start: everything in it is complete and durable. Raises: OSError."""
    control, moved = _control_files(target)
    moved.replace(control)
    sync_directory(control.parent)


def drop_journal(root: Path) -> None:
    """Nothing is left to be done; none there is no error. Raises: OSError."""
    (root / JOURNAL).unlink(missing_ok=True)
    sync_directory(root)


def _control_files(target: DeltaTarget) -> tuple[Path, Path]:
    return target.root / os.fsdecode(CONTROL_FILE), target.root / os.fsdecode(MOVED_CONTROL_FILE)


def _require_directory(root: Path) -> None:
    if not root.is_dir():
        raise TargetUnfit(
            f"restore backup: {root} is no directory", hint="Give the cluster's data directory, or leave --delta out."
        )
    if (root / UNFINISHED_MARK).exists():
        raise TargetUnfit(
            f"restore backup: {root} holds an unfinished restore into a new directory",
            hint="Delete that directory and restore again without --delta; it cannot start and holds nothing else.",
        )


def _require_at_rest(root: Path) -> None:
    try:
        require_stopped(root)
    except Busy as error:
        cause = error.message.partition(": ")[2]
        raise Busy(f"restore backup: {cause}", hint="Stop that server first (`pg_ctl stop`, or its service).") from None


def _identity(root: Path, journal: DeltaJournal | None) -> tuple[int, int]:
    """System identifier and catalog version. Raises: TargetUnfit, ServerMismatch."""
    try:
        control = parse_control_bytes(read_control_bytes(root))
    except NotFound:
        if journal is None:
            raise TargetUnfit(
                f"restore backup: whose data {root} holds is not known: it has no global/pg_control", hint=_ELSEWHERE
            ) from None
    except OSError as error:
        why = (error.strerror or "cannot be read").lower()
        raise TargetUnfit(f"restore backup: global/pg_control in {root}: {why}", hint=_ELSEWHERE) from error
    except DataManagerError as error:
        if journal is None:  # else a power cut in the middle of a recovery may have torn it
            raise TargetUnfit(
                f"restore backup: whose data {root} holds is not known: {error.message}", hint=_ELSEWHERE
            ) from error
    else:
        return control.system_identifier, control.catalog_version
    return journal.system_identifier, journal.catalog_version


def _require_same_cluster(root: Path, manifest: Manifest, identifier: int) -> None:
    if str(identifier) != manifest.system_identifier:
        raise ServerMismatch(
            f"restore backup: {root} is the cluster {identifier}, the backup is of {manifest.system_identifier}",
            hint="Give the data directory of the cluster that was backed up, or restore into a new one.",
        )
    try:
        major = read_major(root)
    except (NotFound, ServerMismatch):
        return  # PG_VERSION is lost or damaged; no two majors have one system identifier
    if major != manifest.major:
        raise ServerMismatch(
            f"restore backup: {root} is of PostgreSQL {major}, the backup of {manifest.major}", hint=_ELSEWHERE
        )


def _tablespaces(root: Path, manifest: Manifest, version_folder: str) -> dict[int, Path]:
    folder = root / "pg_tblspc"
    wanted = {one.oid: one.location for one in manifest.tablespaces if not in_place(one)}
    inside = {one.oid for one in manifest.tablespaces if in_place(one)}
    found = {int(name): folder / name for name in _names(folder) if re.fullmatch(r"\d+", name)}
    links = {oid: _followed(place) for oid, place in found.items() if oid not in inside}
    for oid in sorted(links.keys() - wanted.keys()):
        raise TargetUnfit(
            f"restore backup: the backup does not know tablespace {oid} in {links[oid]}",
            hint=f"Move {found[oid]} out of the data directory (its files stay where they are), or restore a backup"
            " that was taken after the tablespace was created.",
        )
    for oid, location in wanted.items():
        if oid not in links:
            raise TargetUnfit(
                f"restore backup: {folder} has no tablespace {oid}, which lay in {location}",
                hint=f"Make the link {folder / str(oid)} to a directory that holds an empty folder {version_folder},"
                " or restore into a new directory.",
            )
        if not (links[oid] / version_folder).is_dir():
            raise TargetUnfit(
                f"restore backup: tablespace {oid} in {links[oid]} holds no {version_folder}",
                hint="Mount the volume that it lies on; where that is lost, make an empty folder of this name.",
            )
    _require_apart([root.resolve(), *links.values()])
    return links


def _names(folder: Path) -> list[str]:
    try:
        return sorted(one.name for one in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _followed(place: Path) -> Path:
    """Where a link leads, a junction of Windows too."""
    return Path(os.path.realpath(place))


def _require_apart(places: list[Path]) -> None:
    for number, path in enumerate(places):
        for other in places[number + 1 :]:
            if path == other or path in other.parents or other in path.parents:
                raise TargetUnfit(f"restore backup: {path} and {other} lie in each other", hint=_ELSEWHERE)


def _require_wal_folder(root: Path) -> None:
    wal = root / "pg_wal"
    if wal.is_symlink() and not wal.is_dir():
        raise TargetUnfit(
            f"restore backup: {wal} leads to {_followed(wal)}, which is not there",
            hint="Mount the volume that pg_wal lies on, or remove the link.",
        )


def _owner(root: Path) -> tuple[int, int] | None:
    """To whom files go: the directory's own account. Raises: TargetUnfit."""
    if sys.platform == "win32":
        return None
    status = root.stat()
    if os.geteuid() == 0:
        if status.st_uid == 0:
            raise TargetUnfit(
                f"restore backup: {root} belongs to root, as whom no server runs",
                hint="Give it to the server's account first (chown), then run the command again.",
            )
        return status.st_uid, status.st_gid
    if status.st_uid != os.geteuid():
        raise TargetUnfit(
            f"restore backup: {root} belongs to another account",
            hint="Run the command as the account that owns the directory, or as root.",
        )
    return None
