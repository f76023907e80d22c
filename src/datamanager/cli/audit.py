"""``datamanager audit``: who changed what, when and why."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from datamanager.base.errors import UsageError
from datamanager.cli.command import noun
from datamanager.cli.lazy import lazy
from datamanager.cli.outcome import Outcome

if TYPE_CHECKING:
    from datamanager.app import audit
    from datamanager.cli import backup_text
    from datamanager.cli.session import Session
    from datamanager.state.model import AuditEntry
else:
    audit = lazy("datamanager.app.audit")
    backup_text = lazy("datamanager.cli.backup_text")

command = noun("audit", "The audit log: who changed what, when and why.")


@command.command("list", examples=["datamanager audit list", "datamanager audit list --limit 500 --json"])
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, metavar="N", help="So many, the newest."
)
@click.option("--before", type=click.IntRange(1), metavar="NUMBER", help="Only entries with a smaller number.")
def list_(session: Session, limit: int, before: int | None) -> Outcome:
    """List the newest entries of the audit log, the newest first."""
    found = audit.listed(session.context, limit, before)
    text = "\n".join(line for one in found for line in _lines(one)) or "The audit log is empty."
    return Outcome(text, {"entries": [_fields(one) for one in found]}, log=f"Listed {len(found)} entries.")


@command.command("verify", examples=["datamanager audit verify", "datamanager audit verify --noted 41:5f0c9e0b…"])
@click.option(
    "--noted",
    metavar="NUMBER:HEAD",
    help="What an earlier check gave and someone kept: that entry must be there still.",
)
def verify(session: Session, noted: str | None) -> Outcome:
    """Check that no entry of the audit log was changed, removed or put in.

    Each entry covers the one before it by its hash. Keep the number and the head that this prints somewhere else, and
    give them with --noted next time: then a log that was written anew as a whole is noticed, too.
    """
    number, head = _noted(noted)
    found = audit.verify(session.context, number, head)
    text = f"The audit log is whole: {found.entries} entries.\nTo note down: {found.entries}:{found.head}"
    return Outcome(text, {"entries": found.entries, "head": found.head})


def _noted(text: str | None) -> tuple[int | None, str]:
    if text is None:
        return None, ""
    number, _, head = text.partition(":")
    if not number.isdecimal() or len(head.strip()) != 64:
        raise UsageError("read --noted: it is not NUMBER:HEAD", hint="Give what `datamanager audit verify` printed.")
    return int(number), head


@command.command(
    "decline",
    examples=[
        'datamanager audit decline one-place:office --reason "the hoster copies the drive every night"',
        "datamanager audit decline one-place:office --take-back",
    ],
)
@click.argument("key")
@click.option("--reason", default="", metavar="TEXT", help="Why; stands in the audit log.")
@click.option("--take-back", is_flag=True, help="Let the recommendation hold again.")
def decline(session: Session, key: str, reason: str, take_back: bool) -> Outcome:
    """Decline a recommendation that `status` shows; KEY is what it shows there.

    Recommendations are suggestions. Whoever declines one says why, and the audit log keeps it. What is at risk or not
    protected is no recommendation and cannot be declined.
    """
    if take_back and reason:
        raise UsageError("decline recommendation: --take-back takes no reason", hint="Give one of the two.")
    entry = audit.take_back(session.context, key) if take_back else audit.decline(session.context, key, reason)
    done = "holds again" if take_back else "is declined"
    data = {"key": key, "declined": not take_back, "entry": _fields(entry)}
    return Outcome(f"Recommendation {key} {done}; entry {entry.number} of the audit log says so.", data)


def _lines(one: AuditEntry) -> list[str]:
    when = backup_text.local_time(one.time.isoformat())
    lines = [f"{one.number}  {when}  {one.who} ({one.origin}): {one.action}: {one.target}"]
    if one.before is not None:
        lines.append(f"    before: {_value(one.before)}")
    if one.after is not None:
        lines.append(f"    after: {_value(one.after)}")
    if one.reason:
        lines.append(f"    reason: {one.reason}")
    return lines


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _fields(one: AuditEntry) -> dict[str, Any]:
    return {
        "number": one.number,
        "time": one.time.isoformat(),
        "who": one.who,
        "origin": one.origin,
        "action": one.action,
        "target": one.target,
        "before": one.before,
        "after": one.after,
        "reason": one.reason,
        "digest": one.digest,
    }
