"""What ``wal status`` and ``wal gaps`` say, in words and for programs."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from datamanager.app.past_words import when
from datamanager.app.verdict_facts import LeftSlot
from datamanager.app.wal_status import ArchiveStatus, MissingWal, RestorableWindow
from datamanager.base.units import format_duration, format_size
from datamanager.postgres.wal.slot import SlotState

NOTHING = "No WAL is archived. Begin with `datamanager wal start CLUSTER`."


def status_lines(one: ArchiveStatus, now: datetime) -> list[str]:
    """What people read of one cluster."""
    lines = [f"{one.cluster}: {_receiver(one, now)}"]
    if one.error:
        lines.append(f"  The archive in {one.repository} cannot be read: {one.error}.")
    elif not one.windows:
        why = "there is no backup before it yet" if one.newest is not None else "nothing is archived yet"
        lines.append(f"  No moment can be restored from the archive: {why}.")
    lines += [f"  {_window(window, now)}" for window in _sorted(one)]
    if one.gaps:
        count = len(one.gaps)
        lines.append(
            f"  WAL is missing in {count} place{'' if count == 1 else 's'}; `datamanager wal gaps` shows them."
        )
    if one.newest is not None:
        lines.append(f"  The newest byte is {_age(one.newest, now)} old.")
    if one.lost:
        lines.append(f"  The archive had reached {one.lost}: what was there is gone.")
    if not any(one.watch and one.watch.slot and each.name == one.watch.slot.name for each in one.slots_left):
        lines.append(f"  {_slot(one)}")
    lines += [f"  {_left(one, each)}" for each in one.slots_left]
    if one.watch is not None and one.watch.waiting:
        lines.append(
            f"  {one.watch.waiting} commits wait for a synchronous standby ({one.watch.synchronous_standbys})."
        )
    return lines


def _receiver(one: ArchiveStatus, now: datetime) -> str:
    if one.alive and one.beat is not None:
        progress = one.beat.progress
        if progress.connected:
            synchronous = ", commits wait for it" if progress.synchronous else ""
            return f"its WAL is archived to {one.repository}, up to {progress.sealed}{synchronous}."
        return f"the receiver runs, without a connection: {progress.error or 'it has just begun'}."
    if one.beat is not None and one.beat.error:
        return f"its WAL is not archived now; the receiver ended {when(one.beat.time, now)}: {one.beat.error}."
    if one.wanted:
        return "its WAL is not archived now: no receiver runs; `datamanager serve` keeps one running."
    return f"its WAL is not archived now; `datamanager wal start {one.cluster}` begins."


def _sorted(one: ArchiveStatus) -> list[RestorableWindow]:
    return sorted(one.windows, key=lambda each: (each.abandoned, -each.timeline, -each.end))


def _window(window: RestorableWindow, now: datetime) -> str:
    left = ", which was left" if window.abandoned else ""
    return (
        f"Every moment from {when(window.since, now)} to {when(window.until, now)} can be restored "
        f"(timeline {window.timeline}{left}, from backup {window.backup})."
    )


def _age(moment: datetime, now: datetime) -> str:
    return format_duration(max(0.0, (now - moment).total_seconds()))


def _slot(one: ArchiveStatus) -> str:
    if one.watch is None:
        return f"Its slot cannot be looked at: {one.server_error}."
    slot, limit = one.watch.slot, one.watch.limit
    if slot is None:
        return "There is no slot of it on the server."
    if slot.lost:
        return f"Slot {slot.name} is lost: the server gave up the WAL that nobody fetched."
    of = f" of at most {format_size(limit)}" if limit is not None else ", without a limit"
    use = "in use" if slot.active else "not in use"
    return f"Slot {slot.name} is {use} and keeps {format_size(slot.retained)}{of} on the server."


def _left(one: ArchiveStatus, slot: LeftSlot) -> str:
    keeps = f"Slot {slot.name} keeps {format_size(slot.retained_bytes)} on the server"
    if slot.wanted:
        return f"{keeps} for a former location; it is dropped once a backup lies in this one."
    return f"{keeps}, and nobody reads it: `datamanager wal stop {one.cluster} --drop-slot` drops it."


def gap_lines(one: ArchiveStatus, now: datetime) -> list[str]:
    """What people read of one cluster's gaps."""
    if one.error:
        return [f"{one.cluster}: the archive in {one.repository} cannot be read: {one.error}."]
    if not one.gaps:
        return [f"{one.cluster}: no WAL is missing."]
    return [line for gap in one.gaps for line in _gap(one.cluster, gap, now)]


def _gap(cluster: str, gap: MissingWal, now: datetime) -> list[str]:
    behind = (
        f"backup {gap.next_backup} is the first behind it"
        if gap.next_backup
        else f"there is no backup behind it yet: `datamanager backup run {cluster}` makes one"
    )
    return [
        f"{cluster}, timeline {gap.timeline}: the WAL from {gap.start} to {gap.end} is missing "
        f"({format_size(gap.end - gap.start)}; {when(gap.before, now)} to {when(gap.after, now)}).",
        f"  Backups from before it cannot be restored to a moment behind it; {behind}.",
    ]


# -- for programs ------------------------------------------------------------------------------------------------------
def status_fields(one: ArchiveStatus, now: datetime) -> dict[str, Any]:
    """As docs/cli.md promises."""
    beat, watch = one.beat, one.watch
    progress = beat.progress if beat is not None and one.alive else None
    return {
        "cluster": one.cluster,
        "repository": one.repository,
        "enabled": one.wanted,
        "running": one.alive,
        "connected": bool(progress and progress.connected),
        "caught_up": bool(progress and progress.caught_up),
        "sealed": str(progress.sealed) if progress else None,
        "receiver_error": ((progress.error if progress else beat.error) or None) if beat is not None else None,
        "newest": _time(one.newest),
        "newest_age_seconds": None if one.newest is None else round(max(0.0, (now - one.newest).total_seconds()), 1),
        "windows": [_window_fields(window) for window in _sorted(one)],
        "gaps": len(one.gaps),
        "slot": None if watch is None or watch.slot is None else _slot_fields(watch.slot),
        "slots_left": [{"name": each.name, "retained_bytes": each.retained_bytes} for each in one.slots_left],
        "lost": one.lost or None,
        "slot_limit_bytes": None if watch is None else watch.limit,
        "synchronous": bool(beat is not None and watch is not None and watch.waits_for(beat.application_name)),
        "commits_waiting": None if watch is None else watch.waiting,
        "server_error": one.server_error or None,
        "error": one.error or None,
    }


def _window_fields(window: RestorableWindow) -> dict[str, Any]:
    return {
        "system_identifier": str(window.system),
        "timeline": window.timeline,
        "line": window.line,
        "backup_id": window.backup,
        "from": window.since.isoformat(),
        "to": window.until.isoformat(),
        "from_lsn": str(window.start),
        "to_lsn": str(window.end),
        "abandoned": window.abandoned,
    }


def _slot_fields(slot: SlotState) -> dict[str, Any]:
    return {
        "name": slot.name,
        "active": slot.active,
        "lost": slot.lost,
        "wal_status": slot.wal_status,
        "restart_lsn": None if slot.restart_lsn is None else str(slot.restart_lsn),
        "retained_bytes": slot.retained,
        "safe_bytes": slot.safe_wal_size,
    }


def gap_fields(gap: MissingWal) -> dict[str, Any]:
    """As docs/cli.md promises."""
    return {
        "system_identifier": str(gap.system),
        "timeline": gap.timeline,
        "line": gap.line,
        "from_lsn": str(gap.start),
        "to_lsn": str(gap.end),
        "bytes": gap.end - gap.start,
        "from": gap.before.isoformat(),
        "to": gap.after.isoformat(),
        "next_backup": gap.next_backup or None,
    }


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
