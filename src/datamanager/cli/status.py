"""``datamanager status``: is the data safe?"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from datamanager.cli.command import Command, CommandEnded
from datamanager.cli.lazy import lazy
from datamanager.cli.outcome import Outcome

if TYPE_CHECKING:
    from datetime import datetime

    from datamanager.app import status as app_status
    from datamanager.cli.session import Session
    from datamanager.state import finding
    from datamanager.state.finding import Finding
else:
    app_status = lazy("datamanager.app.status")
    finding = lazy("datamanager.state.finding")

_CODES = (0, 1, 3, 130)


class _Status(Command):
    """Whatever is broken: for a monitoring system there is only safe, at risk and not protected."""

    def invoke(self, ctx: click.Context) -> None:
        """Raises: CommandEnded."""
        try:
            super().invoke(ctx)
        except CommandEnded as ended:
            raise CommandEnded(ended.exit_code if ended.exit_code in _CODES else 1) from None


@click.command(
    "status",
    cls=_Status,
    examples=["datamanager status", "datamanager status --cluster office", "datamanager status --json"],
)
@click.option("--cluster", metavar="NAME", help="Only this one.")
def command(session: Session, cluster: str | None) -> Outcome:
    """Is the data safe? The verdict in one sentence, what is wrong, and the command that mends each.

    It takes about a second. A backup location that does not answer in time is left out: then what was last seen of it
    counts, and its age is said. The exit code is 0 when the data is safe, 3 when it is at risk and 1 when it is not
    protected, also when the configuration or the history cannot be read.
    """
    found = app_status.gather(session.context, cluster)
    judged = found.verdict
    findings = list(judged.findings)
    lines = [judged.sentence]
    if findings and _says(judged.sentence, findings[0]):
        lines += _commands(findings.pop(0))
    if judged.risk_sentence:
        lines.append(judged.risk_sentence)
    lines += [line for one in findings for line in _lines(one)]
    return Outcome("\n".join(lines), _fields(found), log=judged.sentence, exit_code=judged.exit_code)


_WORDS = ("Note", "Recommendation", "At risk", "Not protected", "Needs you now")


def _says(verdict_sentence: str, one: Finding) -> bool:
    """Whether the verdict says the same already."""
    return verdict_sentence.endswith(one.sentence[1:]) or one.kind == "not-proven"


def _lines(one: Finding) -> list[str]:
    if one.declined:
        return [f"Declined recommendation: {one.sentence}", f"    because: {one.declined}"]
    return [f"{_WORDS[one.severity]}: {one.sentence}", *_commands(one)]


def _commands(one: Finding) -> list[str]:
    lines = [f"    {one.command}"] if one.command else []
    if one.severity == finding.Severity.ADVICE:
        lines.append(f'    or decline it: datamanager audit decline {one.key} --reason "…"')
    return lines


def _fields(found: app_status.Status) -> dict[str, Any]:
    """What programs get; see docs/cli.md."""
    judged = found.verdict
    return {
        "verdict": judged.word,
        "sentence": judged.sentence,
        "risk": judged.risk_sentence,
        "findings": [
            {
                "key": one.key,
                "severity": one.severity.name.lower(),
                "cluster": one.cluster or None,
                "sentence": one.sentence,
                "command": one.command or None,
                "declined": one.declined or None,
            }
            for one in judged.findings
        ],
        "clusters": [
            {
                "cluster": one.name,
                "newest_backup": one.newest.backup if one.newest else None,
                "newest": _time(one.newest.ended if one.newest else None),
                "repository": one.newest.repository if one.newest else None,
                "seen": _time(one.seen),
                "proven": _time(one.passed_test.time if one.passed_test else None),
                "lost_seconds": _seconds(risk.lost),
                "back_seconds": _seconds(risk.back),
            }
            for one, risk in zip(found.situation.clusters or (), judged.risks, strict=True)
        ],
        "repositories": [
            {
                "repository": look.name,
                "backups": look.backups if look.complete else None,
                "free_bytes": look.free_bytes,
                "error": look.failure or None,
            }
            for look in found.looks
        ],
        "planner_alive": found.situation.planner_alive,
    }


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _seconds(span: timedelta | None) -> float | None:
    return None if span is None else round(span.total_seconds(), 1)
