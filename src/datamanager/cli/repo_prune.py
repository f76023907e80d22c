"""``datamanager repo prune``: give back the room of deleted backups."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from datamanager.base.units import format_duration, format_size
from datamanager.cli.command import Command, key_options
from datamanager.cli.lazy import lazy
from datamanager.cli.outcome import Outcome

if TYPE_CHECKING:
    from datamanager.app import prune as app_prune
    from datamanager.app.opening import Unlocking
    from datamanager.cli import wal_prune_text
    from datamanager.cli.session import Session
    from datamanager.engine.prune import run as engine_prune
    from datamanager.engine.prune.run import PruneResult
    from datamanager.repository import format as repository_format
else:
    app_prune = lazy("datamanager.app.prune")
    engine_prune = lazy("datamanager.engine.prune.run")
    repository_format = lazy("datamanager.repository.format")
    wal_prune_text = lazy("datamanager.cli.wal_prune_text")


@click.command(
    "prune",
    cls=Command,
    examples=["datamanager repo prune usb --dry-run", "datamanager repo prune usb", "datamanager repo prune --json"],
    job=True,
    heavy=True,
    if_failed="Not all room of deleted backups was given back; the other backups are as they were.",
)
@click.argument("repository", metavar="[REPO]", required=False)
@click.option("--dry-run", is_flag=True, help="Only say what would go and what would be written again.")
@click.option(
    "--max-repack",
    type=click.FloatRange(0, 100),
    default=100.0,
    show_default=True,
    metavar="PERCENT",
    help="Write at most so much of the stored data again in this run.",
)
@key_options
def prune(
    session: Session,
    repository: str | None,
    dry_run: bool,
    max_repack: float,
    unlocking: Unlocking,
) -> Outcome:
    """Give back the room of deleted backups, page by page; what other backups need stays.

    On a drive of this computer with nobody else at work everything goes at once. Otherwise it is only marked, and a
    prune a day later takes it. While a backup cannot be read, nothing is deleted.

    WAL goes that no backup needs any more, or that lies before a cluster's `wal_window`, but only with nobody else at
    work; it is said from when on every moment can still be restored.
    """
    options = engine_prune.PruneOptions(max_repack, dry_run)
    pruned = app_prune.prune(session.context, repository, options, unlocking)
    title, result = pruned.title, pruned.backups
    lines = [*_plan_lines(result), *wal_prune_text.plan_lines(pruned.wal)] if dry_run else []
    lines += [_summary(title, result), *wal_prune_text.summary_lines(pruned.wal, dry_run=dry_run)]
    data = {**_fields(title, result), **wal_prune_text.fields(pruned.wal)}
    return Outcome("\n".join(lines), data)


def _plan_lines(result: PruneResult) -> list[str]:
    plan = result.plan
    lines = [f"goes: backup {backup}" for backup in plan.backups]
    lines += [f"goes: {key}, {format_size(size)}" for key, size in plan.dead.items() if not key.startswith("manifests")]
    for superseded in plan.superseded:
        lines += [
            f"goes: {repository_format.pack_key(superseded.pack, number)}, {format_size(size)}; it was written again"
            for number, size in superseded.generations.items()
        ]
    lines += [
        f"is written again: {repository_format.pack_key(one.pack, one.source)}, {one.live_share:.0%} live, "
        f"{format_size(one.size)} become about {format_size(one.expected)}"
        for one in plan.rewrites
    ]
    if plan.postponed:
        lines.append(f"stays for another run: {len(plan.postponed)} packs beyond --max-repack")
    return lines


def _summary(title: str, result: PruneResult) -> str:
    dry = result.dry_run
    if not (result.objects_deleted or result.packs_rewritten or result.later_bytes):
        return f"Nothing to give back in {title}."
    packs = f"{result.packs_rewritten} pack{'' if result.packs_rewritten == 1 else 's'}"
    parts = [f"{'Would give' if dry else 'Gave'} back {format_size(max(result.freed_bytes, 0))} of {title}"]
    if result.packs_rewritten:
        parts.append(f"{packs} {'would be ' if dry else ''}written again ({format_size(result.written_bytes)})")
    if result.later_bytes:
        parts.append(
            f"{format_size(result.later_bytes)} more {'would go' if dry else 'go'} with a prune a day from now"
        )
    took = "" if dry else f" in {format_duration(result.seconds)}"
    return f"{'; '.join(parts)}{took}."


def _fields(title: str, result: PruneResult) -> dict[str, Any]:
    plan = result.plan
    return {
        "repository": title,
        "dry_run": result.dry_run,
        "exclusive": result.exclusive,
        "backups": plan.backups,
        "objects_deleted": result.objects_deleted,
        "bytes_freed": result.freed_bytes,
        "bytes_later": result.later_bytes,
        "packs_rewritten": result.packs_rewritten,
        "bytes_rewritten": result.written_bytes,
        "packs_postponed": len(plan.postponed),
        "bytes_resumable": plan.kept_orphans,
        "seconds": round(result.seconds, 3),
    }
