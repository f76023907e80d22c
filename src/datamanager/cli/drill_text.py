"""Test restores as people read them and as programs get them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from datamanager.app import drills
from datamanager.app.drills import Drilled, Listed
from datamanager.base.units import format_duration, format_size
from datamanager.state.model import Proof


def fields(one: Listed) -> dict[str, Any]:
    """A proof as it is stored, and the words that stand on the backup; times that nobody knows any more are null."""
    found = dict(drills.fields(one.proof))
    if one.note:
        found |= {"seconds": None, "restore_seconds": None}
    return {**found, "note": one.note}


def outcome(done: Drilled) -> str:
    """What a drill found."""
    proof = done.proof
    verdict = "passed" if proof.passed else "did NOT pass"
    lines = [f"Backup {proof.backup} of {proof.cluster} {verdict} its test restore. {_took(proof)}"]
    lines += _what_was_read(proof)
    lines += _findings(proof)
    if done.kept is not None:
        lines.append(f"The restored copy is left in {done.kept}, stopped; remove it when you are done.")
    return "\n".join(lines)


def _took(proof: Proof) -> str:
    total = format_duration(proof.seconds)
    if not proof.restore_seconds:
        return f"It took {total}."
    return f"A server answered after {format_duration(proof.restore_seconds)}, everything was read after {total}."


def _what_was_read(proof: Proof) -> list[str]:
    checks = proof.checks
    if not checks.get("databases"):
        return []
    lines = [f"Read: {drills.counted_words(proof)}, {format_size(checks['bytes_read'])}."]
    left_out = [
        (checks["foreign_tables_not_read"], "foreign table", "which lie on other servers"),
        (checks["materialized_views_not_populated"], "materialized view", "which hold nothing yet"),
        (len(checks["databases_half_dropped"]), "database", "which were being dropped"),
    ]
    lines += [f"Left out: {count} {word}{'' if count == 1 else 's'}, {why}." for count, word, why in left_out if count]
    lines.append(f"Indexes and tables (amcheck): {checks['amcheck']}. Visibility maps: {checks['visibility_maps']}.")
    return lines


def _findings(proof: Proof) -> list[str]:
    found = list(proof.checks.get("findings", [])) or ([proof.finding] if proof.finding else [])
    lines = [f"FOUND: {one}." for one in found]
    more = proof.checks.get("more_findings", 0)
    return [*lines, f"And {more:,} more."] if more else lines


_HEAD = ("WHEN", "CLUSTER", "RESULT", "SERVER ANSWERED", "ALL READ", "WHERE", "ID")


def table(found: Sequence[Listed]) -> str:
    """One line a test restore, and a line below it for what was wrong, or for what the repository remembers."""
    if not found:
        return "No backup was tested yet. Test one with `datamanager drill run`."
    rows = [_HEAD, *(_row(one) for one in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = []
    for number, row in enumerate(rows):
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if number:
            said = found[number - 1].proof.finding or found[number - 1].note
            lines += [f"    {said}"] if said else []
    return "\n".join(lines)


def _row(one: Listed) -> tuple[str, ...]:
    proof = one.proof
    return (
        _local(proof.time),
        proof.cluster,
        "passed" if proof.passed else "FAILED",
        format_duration(proof.restore_seconds) if proof.restore_seconds else "-",
        format_duration(proof.seconds) if proof.seconds else "-",
        proof.source,
        proof.backup,
    )


def details(one: Listed) -> str:
    """One test restore, a line a fact."""
    proof = one.proof
    facts = [
        ("Backup", f"{proof.backup} of {_local(proof.backup_time)}"),
        ("Cluster", f"{proof.cluster} (system identifier {proof.system_identifier})"),
        ("From", proof.source),
        ("Tested", f"{_local(proof.time)}{f' on {proof.host}' if proof.host else ''}"),
        ("Result", "passed" if proof.passed else "did NOT pass"),
        *((("Took", _took(proof)),) if proof.seconds else ()),
        *((("Noted", one.note),) if one.note else ()),
    ]
    lines = [f"{name + ':':<10}{value}" for name, value in facts]
    return "\n".join([*lines, *_what_was_read(proof), *_findings(proof)])


def _local(time: datetime) -> str:
    """In this computer's zone: ``2026-11-23 15:04 CET``."""
    return f"{time.astimezone():%Y-%m-%d %H:%M %Z}"
