"""Whether a restore will succeed on this machine, as people read it and as programs get it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datamanager.app.readiness import Finding, Level, NotReady, refusal
from datamanager.cli.outcome import Outcome

_WORDS = {Level.BLOCKING: "In the way", Level.WARNING: "Warning", Level.UNKNOWN: "Not known"}


def planned(text: str, data: dict[str, Any], findings: Sequence[Finding], warnings: Sequence[str]) -> Outcome:
    """What a dry run says of a restore that was planned; a failure where something is in its way."""
    shown = "\n".join([text, *lines(findings)])
    return Outcome(shown, {**data, **fields(findings)}, warnings, failure=refusal(findings))


def not_ready(found: NotReady, *, dry_run: bool) -> Outcome:
    """What is said of one that cannot be planned."""
    text = "\n".join([f"{found.subject[:1].upper()}{found.subject[1:]} cannot be restored so.", *lines(found.findings)])
    return Outcome(text, {**fields(found.findings), "dry_run": dry_run}, failure=found.refusal)


def lines(findings: Sequence[Finding]) -> list[str]:
    """The findings, worst first: what, why it matters, the remedy. Of what is well only the names."""
    found: list[str] = []
    for one in findings:
        if one.level is not Level.OK:
            found += [f"{_WORDS[one.level]}: {one.sentence}", f"  Why it matters: {one.why}", f"  Remedy: {one.remedy}"]
    well = dict.fromkeys(one.code for one in findings if one.level is Level.OK)
    return [*found, *([f"Checked and well: {', '.join(well)}."] if well else [])]


def fields(findings: Sequence[Finding]) -> dict[str, Any]:
    return {
        "readiness": [
            {
                "code": one.code,
                "level": one.level.value,
                "sentence": one.sentence,
                "why": one.why,
                "remedy": one.remedy or None,
            }
            for one in findings
        ]
    }
