"""Restoring a base backup of pg_basebackup, or an export, into a new directory.

1 plan      all of it is looked through: names, links, room, WAL, tablespaces; nothing is written
2 copy      into directories that were empty, under a lock file that no server gets past
3 links     pg_tblspc, from the plan alone; nothing of it may lead into another cluster (PostgreSQL decision 1)
4 verify    pg_verifybackup, where the backup has its manifest and the programs are at hand
5 sync      everything durable; then the lock file goes, and the directory starts
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from datamanager.base.clock import Clock
from datamanager.base.errors import (
    IntegrityError,
    ProgramMissing,
    RestoreFailed,
    TargetTooSmall,
    TargetUnfit,
)
from datamanager.base.events import Listener, PhaseStarted, Touched, Warned
from datamanager.base.files import sync_directory, sync_tree
from datamanager.base.pipeline import StopToken
from datamanager.base.units import Lsn, format_size
from datamanager.engine.foreign.base_files import (
    BaseFiles,
    archive_files,
    directory_files,
)
from datamanager.engine.foreign.base_look import (
    LOCK_FILE,
    TABLESPACE,
    Looked,
    check_tablespaces,
    former_places,
    look_through,
    refuse_live_tablespaces,
    refuse_living,
    start_of_replay,
    supported_major,
)
from datamanager.engine.foreign.recognise import ForeignFile, Kind
from datamanager.engine.foreign.streams import Readable
from datamanager.engine.foreign.tar import Member
from datamanager.engine.restore.layout import Destination
from datamanager.engine.restore.plan import (
    UNFINISHED_MARK,
    RestoreOptions,
    VolumeNeed,
    check_place,
    place_tablespaces,
    volume_needs,
)
from datamanager.engine.restore.writing import ByteCounter, target_errors
from datamanager.postgres.account import CurrentAccount
from datamanager.postgres.control_file import ControlFile, parse_control_bytes
from datamanager.postgres.isolation import assert_tablespaces_isolated, running_data_directories
from datamanager.postgres.programs import find_programs, run_program
from datamanager.postgres.replay_hazards import replay_hazards

_NEVER_WRITTEN = (LOCK_FILE, "postmaster.opts", "tablespace_map")
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class BasePlan:
    """A restore that can be carried out."""

    foreign: ForeignFile
    options: RestoreOptions
    source: BaseFiles
    looked: Looked
    control: ControlFile
    major: int
    start: Lsn
    links: dict[int, Path]
    volumes: tuple[VolumeNeed, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class BaseResult:
    """A directory that starts. ``verified`` tells whether pg_verifybackup passed it."""

    target: Path
    files: int
    bytes: int
    seconds: float
    verified: bool
    warnings: tuple[str, ...]


def plan_base(foreign: ForeignFile, options: RestoreOptions, stop: StopToken, listener: Listener) -> BasePlan:
    """Look through a base backup and at the target.

    Raises: IntegrityError (cut off, damaged, hostile, without its WAL), ServerMismatch, TargetUnfit, TargetTooSmall,
        UsageError, Cancelled.
    """
    listener(PhaseStarted("looking through the backup"))
    path = foreign.path
    check_place(_absolute(options.target), "target", frozenset())
    source: BaseFiles
    if foreign.kind is Kind.BASE_DIRECTORY:
        refuse_living(path)
        source = directory_files(path)
        refuse_live_tablespaces(source.links)
    else:
        source = archive_files(path, stop)
    looked = look_through(
        source, path, stop, ByteCounter(foreign.size if foreign.kind is Kind.BASE_TAR else None, listener).add
    )
    if foreign.kind is Kind.BASE_DIRECTORY:
        looked.links |= former_places(path, looked)
    major = supported_major(looked, path)
    control = parse_control_bytes(looked.small["global/pg_control"])
    start, warnings = start_of_replay(looked, control, path)
    target = _absolute(options.target)
    links = place_tablespaces(looked, options, target)
    check_tablespaces(looked, path)
    for oid, place in links.items():
        check_place(place, f"directory of tablespace {oid}", frozenset())
    volumes = volume_needs(looked, target, links)
    for one in volumes:
        if one.need > one.free:
            raise TargetTooSmall(
                f"restore backup: {one.path} needs {format_size(one.need)}, its volume has {format_size(one.free)} free"
            )
    if not looked.has_manifest:
        warnings.append("the backup has no backup_manifest: nothing tells whether its files are as they were")
    if looked.standby:
        warnings.append("the backup holds standby.signal or recovery.signal: a server on it would follow its primary")
    return BasePlan(foreign, options, source, looked, control, major, start, links, tuple(volumes), tuple(warnings))


def apply_base(
    plan: BasePlan,
    clock: Clock,
    stop: StopToken,
    listener: Listener,
    on_executed: Callable[[str], None],
    install_path: Path | None = None,
) -> BaseResult:
    """Carry out a plan. Until the last step the directory cannot start; a failed one is left for inspection.

    Raises: IntegrityError, RestoreFailed (pg_verifybackup refuses it), TargetTooSmall, TargetUnfit, Cancelled.
    """
    began = clock.elapsed()
    warnings = list(plan.warnings)
    destination = Destination(_absolute(plan.options.target), plan.links, {}, plan.options.owner)
    with target_errors(destination.root):
        _prepare(destination)
        listener(Touched(f"data directory {destination.root}"))
        listener(PhaseStarted("restoring"))
        count = ByteCounter(plan.looked.bytes, listener)
        for member, file in plan.source.files(stop, lambda size: None):
            _write(destination, member, file, count.add)
        _make_links(destination)
        inside = {oid: destination.root / "pg_tblspc" / str(oid) for oid in plan.looked.seen - plan.links.keys()}
        assert_tablespaces_isolated(destination.root, {**inside, **plan.links}, running_data_directories())
        warnings += _look_into_wal(destination.root, plan.start)
        verified = _verify(plan, destination.root, stop, listener, on_executed, install_path, warnings)
        listener(PhaseStarted("writing to disk"))
        stop.check()
        for root in (destination.root, *plan.links.values()):
            sync_tree(root)
        _finish(destination)
    for text in warnings:
        listener(Warned(text))
    seconds = clock.elapsed() - began
    return BaseResult(destination.root, plan.looked.files, plan.looked.bytes, seconds, verified, tuple(warnings))


def _prepare(destination: Destination) -> None:
    for folder in (destination.root, *destination.links.values()):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        (folder / UNFINISHED_MARK).touch(mode=0o600, exist_ok=False)
        if destination.owner is not None:
            os.chown(folder, *destination.owner)
    (destination.root / LOCK_FILE).touch(mode=0o600, exist_ok=False)


def _write(destination: Destination, member: Member, file: Readable, written: Callable[[int], None]) -> None:
    if member.path in _NEVER_WRITTEN or member.kind == "link" or not member.path:
        return
    place = destination.place(os.fsencode(member.path))
    if member.kind == "directory":
        oid = TABLESPACE.fullmatch(member.path)
        if oid is None or int(oid[1]) not in destination.links:
            os.makedirs(place, mode=0o700, exist_ok=True)  # noqa: PTH103
            _give(destination, place, member.mode | 0o700)
        return
    os.makedirs(os.path.dirname(place), mode=0o700, exist_ok=True)  # noqa: PTH103, PTH120
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    left = member.size
    with os.fdopen(os.open(place, flags, 0o600), "wb") as out:
        while left and (data := file.read(min(left, _PIECE_BYTES))):
            out.write(data)
            left -= len(data)
            written(len(data))
    if left:
        raise IntegrityError(f"read backup: {member.path} became shorter while it was read", hint="Restore it again.")
    _give(destination, place, member.mode | 0o600)


def _give(destination: Destination, place: str, mode: int) -> None:
    if os.name == "nt":
        return
    os.chmod(place, mode & 0o750)  # noqa: PTH101
    if destination.owner is not None:
        os.chown(place, *destination.owner)


def _make_links(destination: Destination) -> None:
    if (destination.root / "PG_VERSION").stat().st_mode & 0o040 and os.name != "nt":
        for root in (destination.root, *destination.links.values()):
            root.chmod(0o750)  # a cluster made with group access
    folder = destination.root / "pg_tblspc"
    folder.mkdir(mode=0o700, exist_ok=True)
    for oid, path in destination.links.items():
        link = folder / str(oid)
        link.symlink_to(path, target_is_directory=True)
        if destination.owner is not None:
            os.chown(link, *destination.owner, follow_symlinks=False)


def _look_into_wal(root: Path, start: Lsn) -> list[str]:
    """Raises: TargetUnfit, when replay would write into the original's tablespaces (PostgreSQL decision 1)."""
    found = replay_hazards(root / "pg_wal", start)
    if found.tablespaces:
        raise TargetUnfit(
            f"restore backup: its WAL creates a tablespace in {found.tablespaces[0].location}, and replay would "
            "write there",
            hint="Restore another backup: one during which no tablespace was created.",
        )
    return list(found.warnings)


def _verify(
    plan: BasePlan,
    root: Path,
    stop: StopToken,
    listener: Listener,
    on_executed: Callable[[str], None],
    install_path: Path | None,
    warnings: list[str],
) -> bool:
    """Raises: RestoreFailed, Cancelled."""
    if not plan.looked.has_manifest:
        return False
    account = CurrentAccount()
    try:
        programs = find_programs(plan.major, install_path, account=account)
        marks = [UNFINISHED_MARK, *(f"pg_tblspc/{oid}/{UNFINISHED_MARK}" for oid in plan.links)]
        words: list[str | Path] = [
            *(f"--ignore={one}" for one in (LOCK_FILE, "tablespace_map", *marks)),
            "--quiet",
            root,
        ]
        listener(PhaseStarted("verifying"))
        done = run_program(programs, "pg_verifybackup", words, account=account, stop=stop, on_executed=on_executed)
    except ProgramMissing as error:
        warnings.append(f"the restored files were not verified against backup_manifest: {error.message}")
        return False
    if done.status != 0:
        said = [line.removeprefix("pg_verifybackup: error: ") for line in done.errors.splitlines()][:3]
        raise RestoreFailed(
            f"restore backup: pg_verifybackup refuses it: {'; '.join(said) or 'without a word'}",
            hint="The backup is damaged or not whole. The directory is left for inspection and does not start.",
        )
    return True


def _finish(destination: Destination) -> None:
    for folder in (*destination.links.values(), destination.root):
        (folder / UNFINISHED_MARK).unlink()
    (destination.root / LOCK_FILE).unlink()
    sync_directory(destination.root)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - keeps links unresolved, as the owner wrote the path
