"""What ``repo prune`` says of archived WAL, in words and for programs."""

from __future__ import annotations

from typing import Any

from datamanager.base.units import format_size
from datamanager.engine.wal.pruning import WalPruneResult
from datamanager.engine.wal.retention import LinePlan


def plan_lines(result: WalPruneResult) -> list[str]:
    """What a dry run says would go."""
    return [_line(one) for plans in result.plans.values() for one in plans if one.going or one.covered or one.whole]


def _line(one: LinePlan) -> str:
    objects = [*one.going, *one.covered]
    if one.whole:
        return f"goes: all WAL of timeline {one.timeline} (line {one.line}), {format_size(one.bytes)}"
    if not one.going:
        return f"goes: {len(objects)} superseded pieces of WAL of timeline {one.timeline}, {format_size(one.bytes)}"
    return f"goes: WAL of timeline {one.timeline} up to {max(each.end for each in one.going)}, {format_size(one.bytes)}"


def summary_lines(result: WalPruneResult, *, dry_run: bool) -> list[str]:
    """What went, and from when on every moment can be restored."""
    if not result.something_goes:
        return []
    if result.waiting:
        return [f"WAL that nothing needs stays for now: at work is {result.waiting}."]
    lines = [f"{'Would give' if dry_run else 'Gave'} back {format_size(result.bytes)} of archived WAL."]
    for plans in result.plans.values():
        last = plans[-1]
        if last.since is not None:
            lines.append(
                f"Every moment since {last.since.ended:%Y-%m-%d %H:%M} UTC (backup {last.since.backup}) "
                f"{'would stay' if dry_run else 'stays'} restorable, as far as the WAL has no gap."
            )
    return lines


def fields(result: WalPruneResult) -> dict[str, Any]:
    """As docs/cli.md promises."""
    return {
        "wal": [
            {"system_identifier": str(system), "lines": [_line_fields(one) for one in plans]}
            for system, plans in result.plans.items()
        ],
        "wal_bytes_freed": result.bytes,
        "wal_waiting": result.waiting or None,
    }


def _line_fields(one: LinePlan) -> dict[str, Any]:
    return {
        "line": one.line,
        "timeline": one.timeline,
        "objects": len(one.going) + len(one.covered),
        "bytes": one.bytes,
        "whole": one.whole,
        "since": None if one.since is None else one.since.ended.isoformat(),
        "backup_id": None if one.since is None else one.since.backup,
    }
