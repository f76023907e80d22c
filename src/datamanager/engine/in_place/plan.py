"""What a restore in place will do, decided before anything is touched; ``lines`` is what --dry-run prints.

Refused here, with the alternative: a directory that a cluster manager holds, of another system, of a standby, one with
mount points inside, tablespaces inside it, too little room.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from datamanager.base.errors import Busy, NotFound, RightMissing, ServerMismatch, TargetTooSmall, TargetUnfit
from datamanager.base.units import GIB, format_size
from datamanager.engine.in_place.journal import find_journal
from datamanager.engine.in_place.kept import (
    Kept,
    Outside,
    Position,
    control_of_directory,
    leads_away,
    list_kept,
    outside_of,
    position_of,
)
from datamanager.engine.in_place.places import Places, new_identity, place_beside, renameable
from datamanager.postgres.control_file import read_major
from datamanager.postgres.managers import manager_of
from datamanager.postgres.programs import Programs
from datamanager.postgres.server_control import ServerControl
from datamanager.postgres.service_of import find_control
from datamanager.postgres.wal.slot import SLOT_PREFIX
from datamanager.system.exchange import mount_points
from datamanager.system.services import ServiceManager

# Left for the server that still runs while its successor is prepared: it would end with PANIC on a full volume.
_MOST_RESERVE = GIB
_ELSEWHERE = "Restore into another directory with `--target`."


@dataclass(frozen=True, slots=True)
class InPlaceOptions:
    """What the caller decides.

    Args:
        data_directory: of the server to be replaced, running or not.
        system_identifier: of the backup.
        major: of the backup.
        source: the restored state in words, such as ``backup 2026… of clinic``.
        needs: bytes to restore: ``base``, then one per tablespace oid.
        tablespaces: the former location of each tablespace outside the data directory, by oid.
        timelines: numbers that the repository knows to be taken.
        service: how the server's service is called, where it is not to be found out.
        programs: of the server, where they are not to be found out.
        manager: of the system's services; None for the system's own.
        managed: the owner has taken the cluster out of its manager's hands.
        unreadable: the owner has said that the directory is this cluster's, although its control file cannot be read.
        drain_seconds: how long connected sessions are waited for before they are ended.
        start_seconds, stop_seconds: how long the server may take.
    """

    data_directory: Path
    system_identifier: int
    major: int
    source: str
    needs: Mapping[str, int]
    tablespaces: Mapping[int, str] = field(default_factory=dict)
    timelines: Collection[int] = ()
    service: str | None = None
    programs: Programs | None = None
    manager: ServiceManager | None = None
    managed: bool = False
    unreadable: bool = False
    drain_seconds: float = 0.0
    start_seconds: float = 600.0
    stop_seconds: float = 120.0


@dataclass(frozen=True, slots=True)
class Room:
    """One volume in bytes; ``path`` is what will lie there."""

    path: Path
    need: int
    free: int


@dataclass(frozen=True, slots=True)
class InPlacePlan:
    """A restore in place that can be carried out.

    Args:
        incoming: where the new data directory is made; ``tablespaces`` and ``pg_wal`` what is made outside of it.
        present: what of the present cluster lies outside its data directory.
        position: where the present cluster stood at its last checkpoint; None when its control file is unreadable.
        owner, mode: of the present data directory; owner is None where it is this account's or on Windows.
        kept: what earlier exchanges set aside.
    """

    options: InPlaceOptions
    identity: str
    places: Places
    incoming: Path
    tablespaces: Mapping[int, Path]
    pg_wal: Path | None
    present: tuple[Outside, ...]
    position: Position | None
    owner: tuple[int, int] | None
    mode: int
    control: ServerControl
    running: bool
    rooms: tuple[Room, ...]
    kept: tuple[Kept, ...]
    warnings: tuple[str, ...]

    @property
    def outgoing(self) -> Path:
        return self.places.outgoing(self.identity)

    @property
    def within(self) -> frozenset[Path]:
        """Directories of the present cluster that what is made lies in: mounted ones (RestoreOptions.within)."""
        above = {parent for path in (self.incoming, *(one.path for one in self.made)) for parent in path.parents}
        return frozenset({self.places.data_directory, *(one.path for one in self.present)} & above)

    @property
    def made(self) -> tuple[Outside, ...]:
        """What is made outside the new data directory."""
        found = [Outside(path, "tablespace", oid) for oid, path in self.tablespaces.items()]
        return (*found, *([Outside(self.pg_wal, "wal")] if self.pg_wal is not None else ()))

    def lines(self) -> list[str]:
        """The plan for people."""
        place = self.places.data_directory
        how = "it changes places with the new one" if self.places.whole else "the entries in it are exchanged"
        said = [
            f"restore {self.options.source} in place of {place} ({how})",
            f"prepare it as {self.incoming}",
            *(f"prepare tablespace {oid} as {path} (its location changes)" for oid, path in self.tablespaces.items()),
            *([f"prepare pg_wal as {self.pg_wal}"] if self.pg_wal else []),
            f"stop the server by {self.control.words}" if self.running else "the server does not run",
            f"keep the present data as {self.outgoing}",
            *(f"keep {one.path}, which belongs to them" for one in self.present),
            "keep the present configuration in force; the backup's files lie beside for comparison",
            f"start the server by {self.control.words}",
        ]
        room = [f"{one.path} needs {format_size(one.need)} of {format_size(one.free)} free" for one in self.rooms]
        return [*said, *room, *(f"note: {text}" for text in self.warnings)]


def plan_in_place(options: InPlaceOptions) -> InPlacePlan:
    """Look at everything that can be looked at without changing anything.

    Raises: NotFound, Busy (an exchange is unfinished), TargetUnfit, TargetTooSmall, ServerMismatch, RightMissing,
        ServiceError, ProgramMissing.
    """
    places = Places.of(options.data_directory)
    place = places.data_directory
    if (journal := find_journal(place)) is not None:
        raise Busy(f"restore in place: an exchange of {place} did not come to its end ({journal})", hint=FINISH)
    major = read_major(place)
    if major != options.major:
        raise ServerMismatch(
            f"restore in place: {place} is of PostgreSQL {major}, the backup of {options.major}", hint=_ELSEWHERE
        )
    present = tuple(outside_of(place))
    check_account(place)
    check_layout(place, present)
    position = _check_system(place, options.system_identifier, anyone=options.unreadable)
    found = find_control(place, places.log, manager=options.manager, service=options.service, programs=options.programs)
    if not options.managed and (one := manager_of(place, found.above)) is not None:
        raise TargetUnfit(f"restore in place: {one.name} manages {place} ({one.noticed})", hint=one.remedy)
    identity = new_identity()
    incoming = places.incoming(identity)
    tablespaces = _tablespaces(options, places, present, identity)
    wal = next((place_beside(one.path, identity) for one in present if one.kind == "wal"), None)
    status = place.stat()
    ours = sys.platform == "win32" or os.geteuid() != 0
    plan = InPlacePlan(
        options=options,
        identity=identity,
        places=places,
        incoming=incoming,
        tablespaces=tablespaces,
        pg_wal=wal,
        present=present,
        position=position,
        owner=None if ours else (status.st_uid, status.st_gid),
        mode=status.st_mode & 0o7777,
        control=found.control,
        running=found.running,
        rooms=_rooms(options.needs, incoming, tablespaces),
        kept=tuple(list_kept(place)),
        warnings=(*found.doubts, *_losses(place, present, options)),
    )
    for room in plan.rooms:
        if room.need > room.free:
            raise TargetTooSmall(
                f"restore in place: {room.path} needs {format_size(room.need)} beside the present data, its volume has"
                f" {format_size(room.free)} free",
                hint="Make room, delete what earlier restores kept, or restore with `--delta`, which needs no second"
                " copy and has no way back.",
            )
    return plan


FINISH = "Run `datamanager restore complete CLUSTER`: it completes it or puts the data back."


def check_account(place: Path) -> None:
    if sys.platform == "win32" or os.geteuid() in (0, place.stat().st_uid):
        return
    raise RightMissing(
        f"restore in place: {place} belongs to {place.owner()}", hint=f"Run the command as {place.owner()} or as root."
    )


def check_layout(place: Path, present: tuple[Outside, ...]) -> None:
    if (place / "standby.signal").exists():
        raise TargetUnfit(
            f"restore in place: {place} is a standby, which would follow its primary again",
            hint="Restore the primary and make the standby anew; or restore into another directory with `--target`.",
        )
    inner = sorted(one for one in mount_points() if place in one.parents)
    if inner:
        raise TargetUnfit(
            f"restore in place: {inner[0]} is a mount point inside the data directory",
            hint="Mount it elsewhere and let a link lead there, or restore into another directory with `--target`.",
        )
    for one in present:
        if place in (one.path, *one.path.parents):
            raise TargetUnfit(
                f"restore in place: {one.path}, a {one.kind} of it, lies in the data directory {place}", hint=_ELSEWHERE
            )
        if not one.path.is_dir():
            raise TargetUnfit(
                f"restore in place: {one.path}, a {one.kind} of it, is not there",
                hint="Mount its volume, or restore into another directory with `--target`.",
            )


def _check_system(place: Path, system_identifier: int, *, anyone: bool) -> Position | None:
    control = control_of_directory(place)
    if control is None:
        if anyone:
            return None
        raise NotFound(
            f"restore in place: the control file of {place} cannot be read, so it is not known whose data these are",
            hint=_ELSEWHERE,
        )
    if control.system_identifier != system_identifier:
        raise ServerMismatch(
            f"restore in place: {place} is of system {control.system_identifier}, the backup of {system_identifier}",
            hint="It is another cluster: choose its own backup, or another directory with `--target`.",
        )
    return position_of(control)


def _tablespaces(
    options: InPlaceOptions, places: Places, present: tuple[Outside, ...], identity: str
) -> dict[int, Path]:
    """Beside where each lies now; one that was dropped since, beside where it lay, or beside the data directory."""
    known = {one.oid: one.path for one in present if one.kind == "tablespace"}
    found: dict[int, Path] = {}
    for oid, location in options.tablespaces.items():
        path = known.get(oid)
        if path is None:
            former = Path(os.path.realpath(location))
            if former.parent.is_dir() and renameable(former):
                path = former
            elif places.whole:
                path = places.data_directory.with_name(f"{places.data_directory.name}-{oid}")
            else:
                raise TargetUnfit(
                    f"restore in place: tablespace {oid} lay in {location}, which is not there any more",
                    hint=f"Make the directory {former.parent} on a volume with room, then run the command again.",
                )
        found[oid] = place_beside(path, identity)
    return found


def _rooms(needs: Mapping[str, int], incoming: Path, tablespaces: Mapping[int, Path]) -> tuple[Room, ...]:
    """Room by volume, less what the server that runs there needs meanwhile. Zeros count: they get written one day."""
    by_device: dict[int, Room] = {}
    for name, size in needs.items():
        path = tablespaces.get(int(name), incoming) if name != "base" else incoming
        present = path
        while not present.exists():
            present = present.parent
        device = present.stat().st_dev
        known = by_device.get(device)
        usage = psutil.disk_usage(str(present))
        reserve = min(_MOST_RESERVE, usage.total // 20)
        need = size + (known.need if known else 0)
        by_device[device] = Room(known.path if known else path, need, max(usage.free - reserve, 0))
    return tuple(by_device.values())


def _losses(place: Path, present: tuple[Outside, ...], options: InPlaceOptions) -> list[str]:
    """What a base backup does not hold, or what it holds otherwise."""
    said = []
    folder = place / "pg_replslot"
    # The archive's own slot is made again by its receiver.
    slots = (
        sorted(one.name for one in folder.iterdir() if not one.name.startswith(SLOT_PREFIX)) if folder.is_dir() else []
    )
    if slots:
        said.append(
            f"replication slots will not exist any more: {', '.join(slots)}; standbys and subscribers that use them"
            " must be made anew"
        )
    newer = [one for one in present if one.kind == "tablespace" and one.oid not in options.tablespaces]
    said += [f"tablespace {one.oid} at {one.path} is not in the backup; it stays with the kept data" for one in newer]
    if leads_away(place / "postgresql.conf"):
        said.append("postgresql.conf is a link, which stays a link")
    return said
