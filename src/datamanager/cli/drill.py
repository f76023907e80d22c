"""``datamanager drill``: test restores, which prove that a backup comes back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from datamanager.cli.command import Command, key_options, noun
from datamanager.cli.lazy import lazy
from datamanager.cli.outcome import Outcome

if TYPE_CHECKING:
    from datamanager.app import drills
    from datamanager.app.opening import Unlocking
    from datamanager.cli import drill_text
    from datamanager.cli.session import Session
else:
    drills = lazy("datamanager.app.drills")
    drill_text = lazy("datamanager.cli.drill_text")

command = noun("drill", "Test restores: prove that a backup comes back.")

_repository = click.option(
    "--repo", "--from", "repository", metavar="REPO", help="Name or address; else the cluster's, or the only one."
)


@command.command(
    "run",
    job=True,
    heavy=True,
    if_failed="The backup is not proven by this test restore.",
    cls=Command,
    examples=[
        "datamanager drill run",
        "datamanager drill run latest --cluster office",
        "datamanager drill run 1a2b3c4d --from /media/backup/datamanager --recovery-code-file code.txt",
        "datamanager drill run latest --scratch /srv/scratch --keep",
    ],
)
@click.argument("backup", metavar="[ID|latest]", default="latest")
@click.option("--cluster", metavar="NAME", help="For `latest`: of this cluster.")
@_repository
@click.option(
    "--scratch",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Folder for the restored copy; it needs the size of the database and a tenth more.",
)
@click.option("--no-amcheck", is_flag=True, help="Read everything, but hold no index against its table.")
@click.option("--keep", is_flag=True, help="Leave the restored copy, stopped, and say where it is.")
@key_options
def run(
    session: Session,
    backup: str,
    cluster: str | None,
    repository: str | None,
    scratch: Path | None,
    no_amcheck: bool,
    keep: bool,
    unlocking: Unlocking,
) -> Outcome:
    """Restore a backup beside everything else, start a server on the copy, read all of it, and remove the copy.

    The server is cut off from network, archive and other servers; the original is not touched. Every row of every
    table and every large object is read, and pg_amcheck holds the indexes against their tables. A backup that passes is
    marked as proven; one that does not ends the command with exit code 61. ID is the whole name of a backup, its
    beginning, or its last eight characters.
    """
    request = drills.Request(backup, repository, cluster, scratch, not no_amcheck, keep)
    done = drills.run(session.context, request, unlocking)
    data = {**drills.fields(done.proof), "kept": str(done.kept) if done.kept else None}
    return Outcome(drill_text.outcome(done), data, failure=done.failure)


@command.command("list", cls=Command, examples=["datamanager drill list", "datamanager drill list --cluster office"])
@click.option("--cluster", metavar="NAME", help="Only of this cluster.")
@_repository
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many, newest first.")
@key_options
def list_drills(
    session: Session,
    cluster: str | None,
    repository: str | None,
    limit: int,
    unlocking: Unlocking,
) -> Outcome:
    """List test restores, newest first: from the history, and from what the repositories themselves remember."""
    found = drills.listed(session.context, repository, cluster, unlocking, limit)
    return Outcome(drill_text.table(found), {"drills": [drill_text.fields(one) for one in found]})


@command.command("show", cls=Command, examples=["datamanager drill show", "datamanager drill show 1a2b3c4d"])
@click.argument("backup", metavar="[ID|latest]", default="latest")
@click.option("--cluster", metavar="NAME", help="Only of this cluster.")
@_repository
@key_options
def show(
    session: Session,
    backup: str,
    cluster: str | None,
    repository: str | None,
    unlocking: Unlocking,
) -> Outcome:
    """Show all that the newest test restore of a backup found; without ID the newest of all."""
    found = drills.shown(session.context, backup, repository, cluster, unlocking)
    return Outcome(drill_text.details(found), drill_text.fields(found))
