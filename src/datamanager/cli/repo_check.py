"""``datamanager repo check`` and ``repo verify``: fit for the next backup, and what was written is still there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from datamanager.base.errors import IntegrityError, UsageError
from datamanager.base.units import format_duration, format_size
from datamanager.cli.command import Command, key_options
from datamanager.cli.lazy import lazy
from datamanager.cli.outcome import Outcome

if TYPE_CHECKING:
    from datamanager.app import checks
    from datamanager.app.opening import Unlocking
    from datamanager.cli.session import Session
    from datamanager.engine.verify.run import VerifyResult
else:
    checks = lazy("datamanager.app.checks")


@click.command("check", cls=Command, examples=["datamanager repo check usb", "datamanager repo check --json"])
@click.argument("repository", metavar="[REPO]", required=False)
@key_options
def check(
    session: Session,
    repository: str | None,
    unlocking: Unlocking,
) -> Outcome:
    """Check keys, lists, second copies, room, clock, rescue.py and who else is at work; data itself is not read.

    REPO is a name or an address; it may be left out while there is only one.
    """
    found = checks.check_repository(session.context, repository, unlocking)
    lines = [
        f"Repository {found.title} at {found.url}: {'encrypted' if found.encrypted else 'NOT encrypted'}, "
        f"{found.backups} backup{'' if found.backups == 1 else 's'}.",
        *_damage_lines(found.verified),
        *_age_lines(found.verified),
    ]
    if found.space is not None:
        lines.append(f"Room: {format_size(found.space.free)} of {format_size(found.space.total)} free.")
    lines += [f"At work: a {one.kind} on {one.host} since {one.started} (process {one.pid})." for one in found.at_work]
    data: dict[str, Any] = {
        "repository": found.title,
        "url": found.url,
        "encrypted": found.encrypted,
        "backups": found.backups,
        "free_bytes": None if found.space is None else found.space.free,
        "total_bytes": None if found.space is None else found.space.total,
        "clock_skew_seconds": None if found.skew_seconds is None else round(found.skew_seconds, 1),
        "at_work": [
            {"kind": one.kind, "host": one.host, "pid": one.pid, "since": one.started} for one in found.at_work
        ],
        **_verify_fields(found.verified),
    }
    return _judged("check", found.title, found.verified, lines, data, found.warnings)


@click.command(
    "verify",
    cls=Command,
    examples=[
        "datamanager repo verify usb",
        "datamanager repo verify usb --sample 10",
        "datamanager repo verify usb --rolling 30",
        "datamanager repo verify --backup latest",
    ],
    job=True,
    heavy=True,
    if_failed="Not all that is stored was found to be right: what is named here may not come back.",
)
@click.argument("repository", metavar="[REPO]", required=False)
@click.option(
    "--sample", type=click.FloatRange(0, 100, min_open=True), metavar="PERCENT", help="Read only so much of the data."
)
@click.option(
    "--rolling",
    type=click.IntRange(1, 3650),
    metavar="[DAYS]",
    is_flag=False,
    flag_value=30,
    help="Read the share that is due, so that a run a day reads everything within DAYS; 30 unless given.",
)
@click.option("--present", is_flag=True, help="Read no data: only see that everything is there.")
@click.option("--backup", "backups", multiple=True, metavar="ID", help="Only this backup; may be given again.")
@key_options
def verify(
    session: Session,
    repository: str | None,
    sample: float | None,
    rolling: int | None,
    present: bool,
    backups: tuple[str, ...],
    unlocking: Unlocking,
) -> Outcome:
    """Read every stored byte and prove that it is what was written.

    A backup that passes is marked as checked. Damage ends with exit status 40 and names the backups it affects.
    """
    wanted = _wanted(sample, rolling, backups, present=present)
    title, result = checks.verify(session.context, repository, wanted, unlocking)
    lines = [
        f"Verified {title}: {len(result.backups)} backups, {format_size(result.bytes)} read from {result.objects} "
        f"objects ({result.packs_read} of {result.packs} data packs{_wal_words(result)}) in "
        f"{format_duration(result.seconds)}.",
        *_damage_lines(result),
        *_age_lines(result),
    ]
    data = {"repository": title, "depth": wanted.depth, **_verify_fields(result)}
    return _judged("verify", title, result, lines, data, [])


def _wal_words(result: VerifyResult) -> str:
    wal = result.wal
    return f", {wal.stretches_read} of {wal.stretches} stretches of WAL" if wal.stretches else ""


def _wanted(
    sample: float | None, rolling: int | None, backups: tuple[str, ...], *, present: bool
) -> checks.Verification:
    given = [
        name
        for name, there in (
            ("--present", present),
            ("--sample", sample is not None),
            ("--rolling", rolling is not None),
        )
        if there
    ]
    if len(given) > 1:
        raise UsageError(f"read options: {' and '.join(given)} contradict each other", hint="Give one of them.")
    if rolling is not None and backups:
        raise UsageError("read options: --rolling and --backup contradict each other", hint="Give one of them.")
    if present:
        return checks.Verification("present", backups=backups)
    if sample is not None:
        return checks.Verification("sample", sample_percent=sample, backups=backups)
    if rolling is not None:
        return checks.Verification("rolling", rolling_days=rolling)
    return checks.Verification("full", backups=backups)


def _age_lines(result: VerifyResult) -> list[str]:
    """For how long the byte that has waited longest was not read."""
    if result.oldest_unread_seconds is None:
        return []
    days = result.oldest_unread_seconds / 86_400
    age = format_duration(result.oldest_unread_seconds) if days < 2 else f"{days:.0f} days"
    return [f"Every stored byte was written or read whole within the last {age}."]


def _damage_lines(result: VerifyResult) -> list[str]:
    if result.ok:
        return ["Everything that was looked at is as it was written."]
    lines = []
    for one in result.damages:
        kind = "second copy damaged" if one.redundant else "DAMAGED"
        affected = f"; affects {', '.join(one.backups_affected)}" if one.backups_affected and not one.redundant else ""
        lines.append(f"{kind}: {one.key}: {one.what}{affected}")
    return lines


def _verify_fields(result: VerifyResult) -> dict[str, Any]:
    return {
        "ok": result.ok,
        "verdicts": [{"backup_id": one.backup, "ok": one.ok} for one in result.backups],
        "damages": [
            {"key": one.key, "what": one.what, "redundant": one.redundant, "backups_affected": one.backups_affected}
            for one in result.damages
        ],
        "unreferenced_packs": len(result.unreferenced_packs),
        "objects": result.objects,
        "bytes": result.bytes,
        "packs": result.packs,
        "packs_read": result.packs_read,
        "wal_stretches": result.wal.stretches,
        "wal_stretches_read": result.wal.stretches_read,
        "oldest_unread_seconds": (
            None if result.oldest_unread_seconds is None else round(result.oldest_unread_seconds)
        ),
        "seconds": round(result.seconds, 3),
    }


def _judged(
    verb: str, title: str, result: VerifyResult, lines: list[str], data: dict[str, Any], warnings: list[str]
) -> Outcome:
    """Lost content fails the command; a damaged second copy is a warning."""
    lost = [one for one in result.damages if not one.redundant]
    spare = len(result.damages) - len(lost)
    said = list(warnings)
    if spare:
        said.append(f"{spare} damaged object{'' if spare == 1 else 's'}, of which nothing is lost yet")
    failure = None
    if lost:
        hit = sorted({name for one in lost for name in one.backups_affected})
        words = f"{len(hit)} backup{'' if len(hit) == 1 else 's'} affected" if hit else "no backup is affected"
        failure = IntegrityError(
            f"{verb} repository {title}: {len(lost)} damaged object{'' if len(lost) == 1 else 's'}, {words}",
            hint="Run the next backup: it reads everything and stores anew what it can. "
            "Older backups are healed from another copy with `datamanager repo heal REPO FROM`.",
        )
    return Outcome("\n".join(lines), data, said, failure=failure)
