"""``datamanager backup delete``, ``undelete``, ``pin`` and ``unpin``: what is said about a backup later."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from datamanager.cli.command import Command, key_options
from datamanager.cli.lazy import lazy
from datamanager.cli.outcome import Outcome

if TYPE_CHECKING:
    from datamanager.app import backup_marks
    from datamanager.app.opening import Unlocking
    from datamanager.cli import backup_text, retention_text
    from datamanager.cli.session import Session
    from datamanager.repository.manifest import Manifest
else:
    backup_marks = lazy("datamanager.app.backup_marks")
    backup_text = lazy("datamanager.cli.backup_text")
    retention_text = lazy("datamanager.cli.retention_text")

_repository = click.option(
    "--repo", "repository", metavar="REPO", help="Where it is; else the one that holds it, or the only one."
)
_cluster = click.option("--cluster", metavar="NAME", help="For `latest`: of this cluster.")


@click.command(
    "delete",
    cls=Command,
    examples=["datamanager backup delete 1a2b3c4d", "datamanager backup delete 1a2b3c4d 5e6f7a8b --dry-run"],
)
@click.argument("backups", nargs=-1, required=True, metavar="ID...")
@_repository
@click.option("--force", is_flag=True, help="Delete pinned ones, too.")
@click.option(
    "--confirm", multiple=True, metavar="ID", help="This last undamaged backup of its cluster may go; its whole name."
)
@click.option("--dry-run", is_flag=True, help="Only show what would be lost.")
@key_options
def delete(
    session: Session,
    backups: tuple[str, ...],
    repository: str | None,
    force: bool,
    confirm: tuple[str, ...],
    dry_run: bool,
    unlocking: Unlocking,
) -> Outcome:
    """Delete backups, after showing what can no longer be restored.

    ID is a backup's whole name, its beginning or its last eight characters. Its space is given back by `repo prune`;
    until then `backup undelete` brings it back. A pinned backup and the last undamaged one of a cluster are refused.
    """
    wanted = backup_marks.Deletion(backups, repository, force, confirm, dry_run)
    with backup_marks.deleting(session.context, wanted, unlocking) as plan:
        for one in plan.going:
            session.say(retention_text.line(one, keep=False, reasons=[], lost=plan.lost[one.backup]))
        plan.apply()
        where, marked = plan.repository.title, list(plan.marked)
        data: dict[str, Any] = {
            "repository": where,
            "dry_run": dry_run,
            "deleted": marked,
            "losses": [
                {"backup_id": one.backup, **retention_text.lost_fields(plan.lost[one.backup])} for one in plan.going
            ],
        }
    if dry_run:
        return Outcome(f"{retention_text.counted(len(plan.going))} would be deleted from {where}.", data)
    text = (
        f"{retention_text.counted(len(marked))} deleted from {where}.\n`datamanager repo prune {where}` gives the "
        "space back; until then `datamanager backup undelete ID` brings one back."
    )
    warnings = [f"{one.backup} was pinned meanwhile and stays" for one in plan.going if one.backup not in marked]
    return Outcome(text, data, warnings)


@click.command("undelete", cls=Command, examples=["datamanager backup undelete 1a2b3c4d"])
@click.argument("backup", metavar="ID")
@_repository
@key_options
def undelete(
    session: Session,
    backup: str,
    repository: str | None,
    unlocking: Unlocking,
) -> Outcome:
    """Bring a deleted or expired backup back, as long as `repo prune` has taken nothing of it away.

    That everything it needs is there is checked first. `backup list --deleted` shows what can be tried.
    """
    named, manifest = backup_marks.undelete(session.context, backup, repository, unlocking)
    return Outcome(f"{_described(manifest)} in {named.title} is back.", _fields(manifest, named.title))


@click.command(
    "pin",
    cls=Command,
    examples=['datamanager backup pin 1a2b3c4d --note "before the update"', "datamanager backup pin latest"],
)
@click.argument("backup", metavar="ID")
@click.option("--note", default="", metavar="TEXT", help="Why, for whoever looks later.")
@_cluster
@_repository
@key_options
def pin(
    session: Session,
    backup: str,
    note: str,
    cluster: str | None,
    repository: str | None,
    unlocking: Unlocking,
) -> Outcome:
    """Keep a backup whatever the retention says, until it is unpinned."""
    named, manifest = backup_marks.pin(session.context, backup, note, repository, cluster, unlocking)
    return Outcome(f"{_described(manifest)} in {named.title} is pinned.", _fields(manifest, named.title))


@click.command("unpin", cls=Command, examples=["datamanager backup unpin 1a2b3c4d"])
@click.argument("backup", metavar="ID")
@_cluster
@_repository
@key_options
def unpin(
    session: Session,
    backup: str,
    cluster: str | None,
    repository: str | None,
    unlocking: Unlocking,
) -> Outcome:
    """Leave a backup to the retention again."""
    named, manifest = backup_marks.unpin(session.context, backup, repository, cluster, unlocking)
    return Outcome(f"{_described(manifest)} in {named.title} is not pinned.", _fields(manifest, named.title))


def _described(manifest: Manifest) -> str:
    when = backup_text.local_time(manifest.started)
    return f"Backup {manifest.backup} of {manifest.cluster} ({manifest.label}, {when})"


def _fields(manifest: Manifest, repository: str) -> dict[str, Any]:
    return {
        "backup_id": manifest.backup,
        "cluster": manifest.cluster,
        "name": manifest.label,
        "repository": repository,
    }
