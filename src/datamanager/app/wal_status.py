"""How the WAL archive of a cluster is: its receiver and slot, which moments can be restored, where WAL is missing."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from datamanager.app.addresses import address_of
from datamanager.app.context import Context
from datamanager.app.opening import Unlocking, choose, opened
from datamanager.app.verdict_facts import LeftSlot
from datamanager.app.wal_archive import lines_of
from datamanager.app.wal_beat import WalBeat, WalFiles, read_wal_beat
from datamanager.app.wal_looking import lost_words, slots_left
from datamanager.base.errors import DataManagerError, NotFound
from datamanager.base.units import Lsn
from datamanager.engine.recovery.windows import BackupPoint, Gap, LineReach, Path, gaps, paths, windows
from datamanager.postgres.wal.slot import slot_name
from datamanager.postgres.wal.watch import WalWatch, watch_wal
from datamanager.repository.manifest import Manifest
from datamanager.repository.objects import UNREADABLE
from datamanager.repository.repository import Repository
from datamanager.repository.wal.archive import Line, WalArchive
from datamanager.repository.wal.names import StoredWal


@dataclass(frozen=True, slots=True)
class RestorableWindow:
    """Every moment from ``since`` to ``until`` can be restored.

    Args: since - the end of ``backup``; until - when the newest byte came; abandoned - the server went on elsewhere.
    """

    system: int
    line: str
    timeline: int
    backup: str
    since: datetime
    until: datetime
    start: Lsn
    end: Lsn
    abandoned: bool


@dataclass(frozen=True, slots=True)
class MissingWal:
    """WAL that is not there.

    Args: before, after - when the last byte before it and the first one behind it came; next_backup - the first backup
        behind it, from which on every moment can be restored again; empty without one.
    """

    system: int
    line: str
    timeline: int
    start: Lsn
    end: Lsn
    before: datetime
    after: datetime
    next_backup: str


@dataclass(frozen=True, slots=True)
class ArchiveStatus:
    """What is known of a cluster's archive now.

    Args:
        wanted: the service is to keep it running.
        alive: a receiver runs; ``beat`` is what it said last, None for one that never ran here.
        watch: the server's side; None when it cannot be asked, for which ``server_error`` says why.
        newest: when the newest byte came; None for an archive that is empty, or cannot be read (``error``).
        lost: how far the archive had come, where what is there now ends before; else empty.
        slots_left: other slots on the server that were made for the cluster's archive, or its only one where nothing
            runs.
    """

    cluster: str
    repository: str
    wanted: bool
    alive: bool
    beat: WalBeat | None
    watch: WalWatch | None
    server_error: str
    windows: tuple[RestorableWindow, ...]
    gaps: tuple[MissingWal, ...]
    newest: datetime | None
    error: str
    lost: str = ""
    slots_left: tuple[LeftSlot, ...] = ()


def status(context: Context, cluster: str, repository: str | None, unlocking: Unlocking) -> ArchiveStatus:
    """Look at the archive of a cluster. Raises: NotFound, ConfigurationError, Cancelled."""
    config = context.cluster(cluster)
    named = choose(context, repository, cluster)
    beat = read_wal_beat(WalFiles.of(context.home, cluster).beat)
    now = context.clock.now()
    alive = beat is not None and beat.alive(now)
    names = WalFiles.of(context.home, cluster).slot_names()
    slot = config.wal_slot or (beat.slot if beat is not None else "")
    found, error = _Found(), ""
    try:
        with opened(context, named, unlocking) as one:
            slot = slot or slot_name(cluster, one.id)
            found = _look(one, cluster, beat)
            if beat is not None and beat.repository == named.title:
                found.lost = lost_words(beat.progress, found.ends, now)
    except DataManagerError as failure:
        context.stop.check()
        error = failure.message
    watch, server_error = None, ""
    try:
        watch = watch_wal(address_of(config), slot, context.stop, context.executed, names)
    except DataManagerError as failure:
        context.stop.check()
        server_error = failure.message
    return ArchiveStatus(
        cluster,
        named.title,
        config.wal,
        alive,
        beat,
        watch,
        server_error,
        tuple(found.windows),
        tuple(found.gaps),
        found.newest,
        error,
        found.lost,
        slots_left(watch, wanted=config.wal or alive),
    )


def clusters_with_archive(context: Context) -> list[str]:
    """Those whose WAL is archived, or was, from here. Raises: ConfigurationError."""
    names = []
    for name, one in sorted(context.config().clusters.items()):
        files = WalFiles.of(context.home, name)
        if one.wal or files.beat.exists() or files.slots.exists():
            names.append(name)
    return names


# -- looking -----------------------------------------------------------------------------------------------------------
class _Found:
    def __init__(self) -> None:
        self.windows: list[RestorableWindow] = []
        self.gaps: list[MissingWal] = []
        self.newest: datetime | None = None
        self.ends: dict[str, int] = {}
        self.lost = ""


def _look(repository: Repository, cluster: str, beat: WalBeat | None) -> _Found:
    found = _Found()
    manifests = []
    for name in repository.backup_ids():
        with contextlib.suppress(*UNREADABLE, NotFound):
            manifests.append(repository.manifest(name))
    for system, lines in lines_of(repository, cluster).items():
        times = _Times(lines, beat)
        ways = paths([LineReach.of(one) for one in lines], WalArchive(repository, system).abandoned())
        own = [one for one in manifests if one.system_identifier == str(system)]
        found.windows += _windows(system, ways, own, times)
        found.gaps += _gaps(system, ways, own, times)
        found.ends |= {one.id: max((int(each.end) for each in one.reach()), default=0) for one in lines}
        newest = [moment for one in lines if (moment := times.newest(one.id)) is not None]
        found.newest = max([*newest, *([found.newest] if found.newest else [])], default=None)
    return found


class _Times:
    """When the bytes of lines came."""

    def __init__(self, lines: Sequence[Line], beat: WalBeat | None) -> None:
        self._lines = {one.id: (one, one.stored()) for one in lines}
        self._beat = beat

    def until(self, line: str, end: Lsn) -> datetime | None:
        """When the byte before ``end`` came; later, where a receiver knows that the server wrote nothing after it."""
        known = self._lines.get(line)
        holding = [one for one in known[1] if one.start < end <= one.end] if known else []
        came = self._received(line, holding[-1]) if holding else None
        progress = self._beat.progress if self._beat is not None else None
        if progress is None or progress.line != line or end < progress.sealed or progress.complete_time is None:
            return came
        return progress.complete_time if came is None else max(came, progress.complete_time)

    def from_(self, line: str, start: Lsn) -> datetime | None:
        known = self._lines.get(line)
        holding = [one for one in known[1] if one.start <= start < one.end] if known else []
        return self._received(line, holding[0]) if holding else None

    def newest(self, line: str) -> datetime | None:
        stored = self._lines[line][1]
        return self.until(line, max(one.end for one in stored)) if stored else None

    def _received(self, line: str, stored: StoredWal) -> datetime:
        try:
            return datetime.fromisoformat(self._lines[line][0].info(stored).received)
        except (*UNREADABLE, ValueError):
            return datetime.fromtimestamp(stored.mtime, UTC)


def _windows(system: int, ways: Sequence[Path], manifests: Sequence[Manifest], times: _Times) -> list[RestorableWindow]:
    """Of backups that lead to the same end only the earliest counts: the others lie in its window."""
    found: dict[tuple[str, int], RestorableWindow] = {}
    for one in windows(ways, [BackupPoint.of(each) for each in manifests]):
        way = next(each for each in ways if each.line == one.line)
        last = next((part.line for part in way.parts if part.start < one.end <= part.end), one.line)
        until = times.until(last, one.end)
        if one.end <= one.start or until is None:
            continue
        made = RestorableWindow(
            *(system, one.line, one.timeline, one.backup.backup, one.backup.ended),
            *(max(until, one.backup.ended), one.start, one.end, one.abandoned),
        )
        before = found.setdefault((one.line, int(one.end)), made)
        if made.start < before.start:
            found[one.line, int(one.end)] = made
    return list(found.values())


def _gaps(system: int, ways: Sequence[Path], manifests: Sequence[Manifest], times: _Times) -> list[MissingWal]:
    found: dict[tuple[str, int, int], MissingWal] = {}
    points = [BackupPoint.of(one) for one in manifests]
    for way in ways:
        for gap in gaps(way):
            before = _near(way, gap, times, behind=False)
            after = _near(way, gap, times, behind=True)
            later = [one for one in points if way.holds(one) and one.stop >= gap.end and not one.refused]
            first = min(later, key=lambda one: one.stop, default=None)
            found.setdefault(
                (gap.line, int(gap.start), int(gap.end)),
                MissingWal(
                    *(system, gap.line, gap.timeline, gap.start, gap.end, before, after),
                    first.backup if first is not None else "",
                ),
            )
    return list(found.values())


def _near(way: Path, gap: Gap, times: _Times, *, behind: bool) -> datetime:
    """When the WAL next to a gap came."""
    for part in way.parts:
        if behind and part.start == gap.end:
            moment = times.from_(part.line, part.start)
        elif not behind and part.end == gap.start:
            moment = times.until(part.line, part.end)
        else:
            continue
        if moment is not None:
            return moment
    return datetime.fromtimestamp(0, UTC)
