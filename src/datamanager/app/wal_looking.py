"""A quick look at the WAL archives that are to run: the receiver's own words, and the server's, within a time-out.

Each server is asked by a thread of its own, which nobody waits for longer than was said.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from datamanager.app.addresses import address_of
from datamanager.app.context import Context
from datamanager.app.verdict_facts import LeftSlot, WalFacts
from datamanager.app.wal_beat import WalBeat, WalFiles, read_wal_beat
from datamanager.base.errors import DataManagerError
from datamanager.base.events import Event
from datamanager.base.pipeline import StopToken
from datamanager.base.units import Lsn
from datamanager.config.model import ClusterConfig
from datamanager.engine.recovery.windows import BackupPoint, LineReach, paths
from datamanager.engine.wal.state import ReceiverState
from datamanager.postgres.wal.slot import receiver_name
from datamanager.postgres.wal.watch import WalWatch, watch_wal
from datamanager.repository.manifest import Manifest
from datamanager.repository.repository import Repository
from datamanager.repository.wal.archive import WalArchive
from datamanager.repository.wal.names import StoredWal

# A listing is read in far less.
_LISTED = timedelta(seconds=10)


@dataclass
class WalLook:
    """What was found of one cluster; filled by a thread, read by others at any time."""

    cluster: str
    wanted: bool
    stop: StopToken
    beat: WalBeat | None = None
    alive: bool = False
    watch: WalWatch | None = None
    error: str = ""
    ended: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class SeenWal:
    """What a backup location shows of a cluster's archive, on the timeline to go on with.

    Args: newest - when its last byte was stored, None for an empty one; end - where that is; gap_since - see
        ``WalFacts``; ends - where each line ends, by id.
    """

    newest: datetime | None = None
    end: int = 0
    gap_since: datetime | None = None
    ends: Mapping[str, int] = field(default_factory=dict)


def look_at_archive(repository: Repository, newest: Manifest) -> SeenWal:
    """The archive behind the newest backup of a cluster. Raises: StoreError."""
    archive = WalArchive(repository, int(newest.system_identifier))
    lines = archive.lines()
    ways = [one for one in paths([LineReach.of(line) for line in lines], archive.abandoned()) if one.parts]
    stored = {line.id: line.stored() for line in lines}
    ends = {line: max((int(one.end) for one in found), default=0) for line, found in stored.items()}
    if not ways:
        return SeenWal(ends=ends)
    way, backup = ways[0], BackupPoint.of(newest)
    last = way.parts[-1]
    moment = _stored_at(stored[last.line], last.end, before=True)
    reach = way.around(backup.stop).end
    behind = [one for one in way.parts if one.start > reach]
    gap = _stored_at(stored[behind[0].line], behind[0].start, before=False) if behind else None
    return SeenWal(moment, int(last.end), gap, ends)


def lost_words(progress: ReceiverState, ends: Mapping[str, int], now: datetime) -> str:
    """How far a line had come that a receiver wrote, and how far what is left of it; empty where nothing is gone.

    While WAL comes, what was listed may be a moment older than what the receiver says.
    """
    if not progress.line or not progress.sealed:
        return ""
    if progress.sealed_time is not None and now - progress.sealed_time < _LISTED:
        return ""
    end = ends.get(progress.line, 0)
    if end >= progress.sealed:
        return ""
    return f"{progress.sealed} and {f'now ends at {Lsn(end)}' if end else 'is now empty'}"


def _stored_at(stored: list[StoredWal], at: int, *, before: bool) -> datetime | None:
    """When the byte at a position, or the one before it, was stored; by the store's clock."""
    holding = [one for one in stored if (one.start < at <= one.end if before else one.start <= at < one.end)]
    return datetime.fromtimestamp(min(one.mtime for one in holding), UTC) if holding else None


def start_wal_looks(context: Context, clusters: Mapping[str, ClusterConfig]) -> list[WalLook]:
    """Begin to look at every archive that is to run, or ran; ``wait_wal`` ends it."""
    looks = []
    for name, config in clusters.items():
        files = WalFiles.of(context.home, name)
        beat, names = read_wal_beat(files.beat), files.slot_names()
        # Where no archive is wanted, and none ever made a slot, nothing of ours can be in the server's way.
        if not config.wal and beat is None and not names:
            continue
        look = WalLook(name, config.wal, StopToken(), beat, beat is not None and beat.alive(context.clock.now()))
        looks.append(look)
        slot = config.wal_slot or (beat.slot if beat is not None else "")
        slot = slot or next(iter(names), receiver_name(name))
        arguments = (replace(context, stop=look.stop, listener=_unheard), config, slot, names, look)
        threading.Thread(target=_run, args=arguments, name=f"look at WAL of {name}", daemon=True).start()
    return looks


def wait_wal(looks: Collection[WalLook], seconds: float) -> None:
    """Wait until all looks have ended, at most so long; the others are left to themselves."""
    until = time.monotonic() + seconds
    for look in looks:
        if not look.ended.wait(max(0.0, until - time.monotonic())):
            look.stop.stop("look at WAL: it takes too long")


def _run(context: Context, config: ClusterConfig, slot: str, names: list[str], look: WalLook) -> None:
    try:
        with look.stop:
            look.watch = watch_wal(address_of(config), slot, look.stop, context.executed, names)
    except DataManagerError as error:
        look.error = error.message
    except Exception as error:  # noqa: BLE001 - a status is given whatever a broken server makes of us
        look.error = f"{type(error).__name__}: {error}"
    finally:
        look.ended.set()


def stands_still(context: Context) -> bool:
    """Whether an archive that is to run does not receive, by the receivers' own words. Raises: ConfigurationError."""
    for name, config in context.config().clusters.items():
        beat = read_wal_beat(WalFiles.of(context.home, name).beat) if config.wal else None
        if config.wal and not (beat is not None and beat.alive(context.clock.now()) and beat.progress.connected):
            return True
    return False


def _unheard(event: Event) -> None:
    """What a look meets is in its result."""


def forgotten_slots(context: Context, configured: Collection[str]) -> dict[str, list[str]]:
    """Slots that were made for clusters which are not configured any more, by cluster; nothing is raised."""
    found: dict[str, list[str]] = {}
    with contextlib.suppress(OSError):
        for path in sorted(context.home.wal.glob("*.slots")):
            names = WalFiles.of(context.home, path.stem).slot_names()
            if path.stem not in configured and names:
                found[path.stem] = names
    return found


def slots_left(watch: WalWatch | None, *, wanted: bool) -> tuple[LeftSlot, ...]:
    """The slots of a cluster's archive that are on the server and that nobody reads, nor will soon.

    Args: wanted - the archive goes on.
    """
    if watch is None:
        return ()
    slots = [*([watch.slot] if watch.slot is not None and not wanted else []), *watch.former]
    return tuple(LeftSlot(one.name, one.retained, wanted) for one in slots if not one.active and not one.lost)


def wal_facts(
    look: WalLook, seen: SeenWal | None, ends: Mapping[str, int] | None = None, now: datetime | None = None
) -> WalFacts | None:
    """What the verdict is made from; None where no archive is wanted and nothing waits for one.

    Args: seen - in the cluster's backup location; ends - of lines where the receiver wrote, None when not known; now -
        None leaves out what is told by the receiver's clock.
    """
    watch, beat = look.watch, look.beat
    names_us = watch is not None and watch.waits_for(receiver_name(look.cluster))
    if not (look.wanted or look.alive or names_us):
        return None
    progress = beat.progress if beat is not None else None
    connected = look.alive and progress is not None and progress.connected
    known = (progress.sealed_time if progress is not None else None, seen.newest if seen is not None else None)
    newest = max((one for one in known if one is not None), default=None)
    end = max(int(progress.sealed) if progress is not None and look.alive else 0, seen.end if seen else 0)
    slot = watch.slot if watch is not None else None
    return WalFacts(
        running=look.alive,
        connected=connected,
        error=_error(look),
        ended=beat.began if beat is not None and look.alive else beat.time if beat is not None else None,
        newest=newest,
        behind=watch.position > end if watch is not None and end else None,
        slot_missing=watch is not None and slot is None,
        slot_lost=slot is not None and slot.lost,
        retained_bytes=slot.retained if slot is not None else None,
        limit_bytes=watch.limit if watch is not None else None,
        synchronous=names_us,
        waiting=watch.waiting if watch is not None else None,
        continuous=seen is not None and seen.newest is not None and seen.gap_since is None,
        gap_since=seen.gap_since if seen is not None else None,
        lost=lost_words(progress, ends, now) if progress is not None and ends is not None and now is not None else "",
    )


def _error(look: WalLook) -> str:
    if look.beat is not None:
        said = look.beat.progress.error if look.alive else look.beat.error
        if said:
            return said
    return look.error if not look.alive else ""
