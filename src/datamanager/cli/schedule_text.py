"""How schedules are shown."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from typing import Any
from zoneinfo import ZoneInfo

from datamanager.app import schedules
from datamanager.base.errors import ConfigurationError
from datamanager.cli.backup_text import local_time
from datamanager.schedule import words
from datamanager.schedule.recurrence import Kind, Recurrence
from datamanager.state.model import Job, Schedule

_SIDE = 12


def today(now: datetime, zone: str) -> date:
    """The date there."""
    return now.astimezone(ZoneInfo(zone)).date()


def next_run(schedule: Schedule, now: datetime) -> str:
    """``Next tonight: Tuesday, November 24, 2026, 1:00 AM.``"""
    if not schedule.enabled:
        return "It is switched off."
    if schedule.next_due is None:
        return "It is done."
    zone = Recurrence.from_json(schedule.recurrence).zone
    return f"Next {words.next_in_words(schedule.next_due, now, zone)}: {words.moment_text(schedule.next_due, zone)}."


def fields(schedule: Schedule) -> dict[str, Any]:
    """For programs."""
    return {
        **schedules.described(schedule),
        "next_due": None if schedule.next_due is None else schedule.next_due.isoformat(),
    }


def shown_fields(one: schedules.Shown) -> dict[str, Any]:
    return {
        **fields(one.schedule),
        "standing": one.standing,
        "next_runs": [moment.isoformat() for moment in one.next_runs],
        "last_due": None if one.schedule.last_due is None else one.schedule.last_due.isoformat(),
        "caught_up": one.schedule.caught_up,
        "recent": [_job_fields(job) for job in one.recent],
    }


def _job_fields(job: Job) -> dict[str, Any]:
    return {
        "job": job.id,
        "state": str(job.state),
        "started": None if job.started is None else job.started.isoformat(),
        "ended": None if job.ended is None else job.ended.isoformat(),
        "summary": job.summary,
    }


def table(found: Sequence[schedules.Shown], now: datetime) -> str:
    """Name, switched on or off, command, when next, how it went last; empty when there are none."""
    if not found:
        return ""
    head = ("NAME", "IS", "RUNS", "NEXT", "LAST", "COMMAND")
    rows = [head, *(_row(one, now) for one in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    )


def _row(one: schedules.Shown, now: datetime) -> tuple[str, ...]:
    schedule = one.schedule
    following = words.next_in_words(one.next_runs[0], now, one.zone) if one.next_runs else "-"
    last = "never ran" if one.last is None else schedules.said_of(one.last)
    command = schedules.command_of(schedule.request)
    return (schedule.name, one.standing, schedules.in_words(schedule), following, last, command)


def details(one: schedules.Shown, now: datetime) -> str:
    schedule = one.schedule
    lines = [*_lines(schedule), *_anchor(schedule)]
    if one.next_runs:
        lines += ["next runs:", *(f"  {words.moment_text(moment, one.zone)}" for moment in one.next_runs)]
        lines[-len(one.next_runs)] += f" ({words.next_in_words(one.next_runs[0], now, one.zone)})"
    else:
        lines.append("next runs: none")
    if schedule.caught_up:
        lines.append(f"came late: {words.counted(schedule.caught_up, 'run')} in a row")
    if one.recent:
        lines += ["newest results:", *(f"  {_when(job)}  {job.id}  {schedules.said_of(job)}" for job in one.recent)]
    else:
        lines.append("newest results: none yet")
    return "\n".join(lines)


def _when(job: Job) -> str:
    return local_time((job.started or job.queued).isoformat())


def _lines(schedule: Schedule) -> list[str]:
    return [f"{name + ':':{_SIDE + 2}}{value}" for name, value in _properties(schedule)]


def _properties(schedule: Schedule) -> list[tuple[str, str]]:
    limit = schedule.request.limit_seconds
    return [
        ("schedule", schedule.name),
        ("runs", schedules.in_words(schedule)),
        ("command", f"datamanager {schedules.command_of(schedule.request)}"),
        ("time limit", "none" if limit is None else words.write_limit(limit)),
        ("is", "on" if schedule.enabled else "off"),
    ]


def _anchor(schedule: Schedule) -> list[str]:
    """From which day ``every`` counts (R88)."""
    try:
        one = Recurrence.from_json(schedule.recurrence)
    except ConfigurationError:
        return []
    if one.kind is Kind.ONCE:
        return []
    return [f"{'counted from:':{_SIDE + 2}}{words.day_text(one.start)}"]


def side_by_side(before: Schedule, after: Schedule) -> list[str]:
    """What is there and what would take its place (R86)."""
    rows = [("", "OLD", "NEW")]
    old = [*_properties(before)[1:], ("counted from", _start(before))]
    new = [*_properties(after)[1:], ("counted from", _start(after))]
    rows += [(name, was, "the same" if was == will else will) for (name, was), (_, will) in zip(old, new, strict=True)]
    wide = max(len(row[1]) for row in rows)
    return [f"{name:{_SIDE}}  {was:{wide}}  {will}" for name, was, will in rows]


def _start(schedule: Schedule) -> str:
    try:
        return words.day_text(Recurrence.from_json(schedule.recurrence).start)
    except ConfigurationError:
        return "unknown"


def upcoming(moment: datetime, one: schedules.Shown, now: datetime) -> str:
    """One line of ``schedule next``."""
    when = f"{words.moment_text(moment, one.zone)} ({words.next_in_words(moment, now, one.zone)})"
    return f"{when}  {one.schedule.name}: {schedules.command_of(one.schedule.request)}"
