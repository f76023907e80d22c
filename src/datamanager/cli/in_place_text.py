"""Restores in place as people read them and as programs get them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from datamanager.app import in_place_delta
from datamanager.app.in_place import Done, Planned
from datamanager.app.moments import Moment
from datamanager.base.units import format_duration, format_size
from datamanager.engine.in_place.kept import Kept
from datamanager.engine.in_place.undo import UndoPlan, UndoResult


def planned(plan: Planned, moment: Moment) -> str:
    """What would happen, roles first: their passwords surprise people most (R74)."""
    lines = [*_roles(plan), f"Moment: {_moment(plan, moment)}."]
    return "\n".join([*lines, *_sentences(plan.plan.lines())])


def _roles(plan: Planned | in_place_delta.Planned) -> list[str]:
    if plan.roles:
        return ["These roles will be as they were then:", *(f"  {one}" for one in plan.roles)]
    known = "Which roles will have another password is not known: the server could not be asked."
    return [] if plan.roles_known else [known]


def _sentences(lines: Sequence[str]) -> list[str]:
    return [one[:1].upper() + one[1:] + "." for one in lines]


def _moment(plan: Planned, moment: Moment) -> str:
    recovery = plan.chosen.recovery
    return recovery.words(moment.shown_in) if recovery is not None else plan.chosen.sentence


def planned_fields(plan: Planned, moment: Moment) -> dict[str, Any]:
    return {
        "cluster": plan.cluster,
        "backup_id": plan.manifest.backup,
        "moment": _moment(plan, moment),
        "data_directory": str(plan.plan.places.data_directory),
        **_role_fields(plan),
        "steps": plan.plan.lines(),
        "rooms": [{"path": str(one.path), "need_bytes": one.need, "free_bytes": one.free} for one in plan.plan.rooms],
    }


def _role_fields(plan: Planned | in_place_delta.Planned) -> dict[str, Any]:
    roles = [
        {
            "name": one.name,
            "password": one.password,
            "attributes": list(one.attributes),
            "gone": one.gone,
            "returns": one.returns,
        }
        for one in plan.roles
    ]
    return {"roles": roles, "roles_known": plan.roles_known}


def delta_planned(plan: in_place_delta.Planned) -> str:
    """What a delta restore would do, roles first."""
    return "\n".join([*_roles(plan), *_sentences(plan.lines())])


def delta_fields(plan: in_place_delta.Planned) -> dict[str, Any]:
    delta = plan.delta
    return {
        "cluster": plan.cluster,
        "backup_id": delta.manifest.backup,
        "moment": plan.record.moment,
        "data_directory": str(plan.record.places.data_directory),
        **_role_fields(plan),
        "steps": plan.lines(),
        "rooms": [{"path": str(one.path), "need_bytes": one.need, "free_bytes": one.free} for one in delta.volumes],
        "removed_files": delta.removed_files,
        "removed_bytes": delta.removed_bytes,
    }


def delta_done(result: in_place_delta.Done) -> str:
    """What is in force now; there is no way back."""
    plan, delta = result.planned, result.result.result
    lines = [
        f"{plan.cluster} was restored: {plan.record.moment}. It goes on as timeline "
        f"{result.result.timeline}. Nobody could connect for {format_duration(result.result.down_seconds)}."
    ]
    if delta is not None:
        lines.append(
            f"{format_size(delta.bytes_compared)} were compared, {format_size(delta.bytes_fetched)} fetched and "
            f"{format_size(delta.bytes_written)} written."
        )
    if result.safety is not None:
        lines.append(f"A backup of the former data was made before: {result.safety.result.manifest.backup}.")
    if result.following is not None:
        lines.append(f"The restored cluster was backed up: {result.following.result.manifest.backup}.")
    return "\n".join(lines)


def delta_done_fields(result: in_place_delta.Done) -> dict[str, Any]:
    delta = result.result.result
    return {
        "safety_backup_id": result.safety.result.manifest.backup if result.safety else None,
        "following_backup_id": result.following.result.manifest.backup if result.following else None,
        "down_seconds": round(result.result.down_seconds, 3),
        "sessions_ended": result.ended,
        "fetched_bytes": delta.bytes_fetched if delta else None,
        "written_bytes": delta.bytes_written if delta else None,
        "timeline": result.result.timeline,
    }


def done(result: Done, moment: Moment) -> str:
    """What is in force now, and the way back."""
    plan, kept = result.planned, result.result.kept
    lines = [
        f"{plan.cluster} was restored: {_moment(plan, moment)}. "
        f"Nobody could connect for {format_duration(result.result.down_seconds)}.",
        f"The former data are kept in {kept.place}. To go back: datamanager restore undo {plan.cluster}",
    ]
    if result.safety is not None:
        lines.append(f"A backup of them was made before: {result.safety.result.manifest.backup}.")
    if result.following is not None:
        lines.append(f"The restored cluster was backed up: {result.following.result.manifest.backup}.")
    if result.result.configuration:
        lines.append(
            f"The configuration stayed as it was; the backup had others: {', '.join(result.result.configuration)}."
        )
    surprised = [one.name for one in plan.roles if one.password or one.attributes]
    if surprised:
        lines.append(f"Tell them that their passwords or rights are those of then: {', '.join(surprised)}.")
    return "\n".join(lines)


def done_fields(result: Done) -> dict[str, Any]:
    return {
        "kept": kept_fields(result.result.kept),
        "safety_backup_id": result.safety.result.manifest.backup if result.safety else None,
        "following_backup_id": result.following.result.manifest.backup if result.following else None,
        "down_seconds": round(result.result.down_seconds, 3),
        "sessions_ended": result.result.ended,
        "configuration_kept": list(result.result.configuration),
        "timeline": result.result.position.timeline,
    }


def kept_fields(kept: Kept) -> dict[str, Any]:
    return {
        "id": kept.identity,
        "at": kept.at.isoformat(),
        "set_aside_by": kept.kind,
        "place": str(kept.place),
        "elsewhere": [str(one.path) for one in kept.outside],
    }


def moment_of(kept: Kept) -> str:
    """When it was set aside, on this computer's clocks."""
    return f"{kept.at.astimezone():%Y-%m-%d %H:%M:%S %Z}"


def kept_list(cluster: str, found: Sequence[Kept], now: datetime) -> str:
    if not found:
        return f"Nothing is kept of {cluster}."
    by = {"restore": "a restore", "undo": "an undo"}
    lines = [
        f"{one.identity}  set aside {moment_of(one)} by {by.get(one.kind, one.kind)}: {one.place}" for one in found
    ]
    old = [one for one in found if one.may_be_offered(now)]
    lines += [
        f"No longer needed? Delete it for good: datamanager restore forget {cluster} {one.identity}" for one in old
    ]
    return "\n".join(lines)


def undo_fields(plan: UndoPlan) -> dict[str, Any]:
    aside = plan.set_aside
    return {
        "back": kept_fields(plan.kept),
        "set_aside": {
            "since": aside.since.isoformat(),
            "wal_bytes": aside.wal_bytes,
            "last_commit": aside.last_commit.isoformat() if aside.last_commit else None,
        },
        "steps": plan.lines(),
    }


def undone(cluster: str, result: UndoResult) -> str:
    aside = result.set_aside
    since = f"{aside.since.astimezone():%Y-%m-%d %H:%M:%S %Z}"
    amount = f" ({format_size(aside.wal_bytes)} of WAL)" if aside.wal_bytes else ""
    return (
        f"The former data of {cluster} are in force again; nobody could connect for "
        f"{format_duration(result.down_seconds)}.\nWhat was written since {since}{amount} is set aside in "
        f"{result.kept.place}; `datamanager restore undo {cluster}` brings it back."
    )


def undone_fields(result: UndoResult) -> dict[str, Any]:
    return {
        "kept": kept_fields(result.kept),
        "down_seconds": round(result.down_seconds, 3),
        "sessions_ended": result.ended,
    }
