"""Restores as people read them and as programs get them."""

from __future__ import annotations

import shlex
from datetime import datetime, tzinfo
from typing import Any

from datamanager.app.restores import Request, Restored
from datamanager.app.started import Started
from datamanager.base.units import format_duration, format_size
from datamanager.cli import backup_text, outside_text
from datamanager.engine.recovery.pause import Paused
from datamanager.engine.recovery.plan import RecoveryPlan
from datamanager.engine.recovery.workplace import Recovered
from datamanager.engine.restore.plan import RestorePlan


def planned(restored: Restored, request: Request) -> str:
    """What a dry run says."""
    plan, manifest, recovery = restored.plan, restored.plan.manifest, restored.recovery
    lines = [
        f"Would restore backup {manifest.backup} ({manifest.label}) of {manifest.cluster}, "
        f"made {backup_text.local_time(manifest.started)}.",
    ]
    if recovery is not None:
        lines += [f"Moment: {recovery.words(request.moment.shown_in)}. {_clocks(request)}"]
    if recovery is not None and recovery.target is not None:
        lines += [f"WAL to replay: {format_size(recovery.wal_bytes)} of timeline {recovery.timeline}."]
    lines += [
        f"Target: {plan.options.target}, PostgreSQL {manifest.version}; the files will belong to {restored.owner}."
    ]
    lines += [f"Tablespace {oid}: {path}." for oid, path in plan.links.items()]
    lines += [
        f"{one.path}: needs {format_size(one.need)}, its volume has {format_size(one.free)} free."
        for one in plan.volumes
    ]
    return "\n".join(lines)


def done(restored: Restored, request: Request) -> str:
    """What was restored, to which moment, and how to go on."""
    manifest, recovery, result = restored.plan.manifest, restored.recovery, restored.result
    if result is None:
        return planned(restored, request)
    text = (
        f"Backup {manifest.backup} ({manifest.label}) was restored to {result.target}: {result.files} files, "
        f"{format_size(result.bytes)} in {format_duration(result.seconds)}."
    )
    if recovery is not None:
        text += f"\nMoment: {recovery.words(request.moment.shown_in)}. {_clocks(request)}"
    if restored.recovered is not None:
        text += f"\nThe restored cluster goes on as timeline {restored.recovered.timeline}."
    text += outside_text.sentences(restored.outside, result.target)
    if restored.paused is not None:
        text += _paused_sentences(restored.paused)
    return text


def _paused_sentences(paused: Paused) -> str:
    target = shlex.quote(paused.target)
    return (
        f"\nA server waits there at that moment, read-only and cut off from everything."
        f'\nLook with: psql "{paused.conninfo}"'
        f"\nKeep it with: datamanager restore finish {target}"
        f"\nGive it up with: datamanager restore drop {target}"
    )


def server_sentences(running: Started) -> str:
    return (
        f'\nA server runs on it, for the account {running.account} only.\nConnect with: psql "{running.conninfo}"\n'
        f"Stop it with: {running.stop_command}\nIts log and socket are in {running.side}."
    )


def fields(restored: Restored, request: Request) -> dict[str, Any]:
    """What every result about a restore holds."""
    plan, recovery = restored.plan, restored.recovery
    return {
        **_plan_fields(plan),
        "owner": restored.owner,
        "recovery": _recovery_fields(recovery, request.moment.shown_in) if recovery is not None else None,
    }


def result_fields(restored: Restored) -> dict[str, Any]:
    """What a restore that was carried out adds."""
    result = restored.result
    if result is None:
        return {}
    found: dict[str, Any] = {
        "files": result.files,
        "bytes": result.bytes,
        "seconds": round(result.seconds, 3),
        **outside_text.fields(restored.outside),
    }
    if restored.recovered is not None:
        found["recovered"] = recovered_fields(restored.recovered)
    if restored.paused is not None:
        found["paused"] = {"conninfo": restored.paused.conninfo, "reached": restored.paused.reached}
    return found


def recovered_fields(recovered: Recovered) -> dict[str, Any]:
    return {"timeline": recovered.timeline, "end_lsn": str(recovered.end)}


def server_fields(running: Started) -> dict[str, Any]:
    return {
        "conninfo": running.conninfo,
        "account": running.account,
        "folder": str(running.side),
        "stop_command": running.stop_command,
    }


def _recovery_fields(recovery: RecoveryPlan, zone: tzinfo) -> dict[str, Any]:
    return {
        "asked": recovery.asked.words(zone),
        "target_lsn": str(recovery.target) if recovery.target is not None else None,
        "timeline": recovery.timeline,
        "last_commit": _moment(recovery.last_commit),
        "next_commit": _moment(recovery.next_commit),
        "wal_bytes": recovery.wal_bytes,
        "zone": str(zone),
    }


def _moment(time: datetime | None) -> str | None:
    return time.isoformat() if time is not None else None


def _clocks(request: Request) -> str:
    return f"Times are those of {request.moment.shown_in}."


def _plan_fields(plan: RestorePlan) -> dict[str, Any]:
    return {
        **backup_text.fields(plan.manifest),
        "target": str(plan.options.target),
        "tablespace_directories": {str(oid): str(path) for oid, path in plan.links.items()},
        "volumes_needed": [
            {"path": str(one.path), "need_bytes": one.need, "free_bytes": one.free} for one in plan.volumes
        ],
    }
