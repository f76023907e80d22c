"""What becomes of backups and what is lost with them, for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datamanager.engine.retention import Candidate, Decision, Loss


def line(one: Candidate, *, keep: bool, reasons: Sequence[str], lost: Loss | None) -> str:
    """A backup and what becomes of it, on one line."""
    said = "; ".join(reasons) if lost is None else "; ".join([*reasons, lost.sentence(None)])
    when = f"{one.started.astimezone():%Y-%m-%d %H:%M %Z}"
    return f"{'stays' if keep else 'GOES '}  {when}  {one.backup}  {one.name}{f': {said}' if said else ''}"


def lines(decisions: Sequence[Decision]) -> list[str]:
    return [line(one.backup, keep=one.keep, reasons=one.reasons, lost=one.lost) for one in decisions]


def fields(decision: Decision) -> dict[str, Any]:
    """One backup of ``expire``; times RFC 3339."""
    return {
        "backup_id": decision.backup.backup,
        "name": decision.backup.name,
        "started": decision.backup.started.isoformat(),
        "keep": decision.keep,
        "reasons": decision.reasons,
        "lost": None if decision.lost is None else lost_fields(decision.lost),
    }


def lost_fields(lost: Loss) -> dict[str, Any]:
    """The state that is lost, and the nearest ones that stay."""
    return {
        "state": lost.moment.isoformat(),
        "earlier": None if lost.earlier is None else lost.earlier.isoformat(),
        "later": None if lost.later is None else lost.later.isoformat(),
    }


def counted(count: int) -> str:
    return f"{count} backup{'' if count == 1 else 's'}"
