"""``datamanager wal push``: what ``archive_command`` calls. No job, no log: a segment a call, hundreds an hour."""

from __future__ import annotations

from pathlib import Path

import click

from datamanager.cli import wal_push_call
from datamanager.cli.command import Command, CommandEnded


class _Push(Command):
    """Runs its body without a session: nothing is recorded, and what a session needs is not loaded."""

    def invoke(self, ctx: click.Context) -> None:
        """Raises: CommandEnded, always with less than 126."""
        given = ctx.params
        raise CommandEnded(
            wal_push_call.push(given["path"], given["cluster"], given["repository"], bool(given["json_lines"]))
        )


@click.command(
    "push",
    cls=_Push,
    examples=[
        "datamanager wal push pg_wal/000000010000000000000003 --cluster office",
    ],
)
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--cluster", required=True, metavar="NAME", help="Whose WAL it is.")
@click.option("--repo", "repository", metavar="REPO", help="Where to; the cluster's repository unless given.")
def push(path: Path, cluster: str, repository: str | None) -> None:
    """Store one file of WAL; for archive_command, where `wal start` cannot connect.

    On the server: archive_command = 'datamanager wal push "%p" --cluster office'.

    It ends with 0 once the file is stored durably, or when the same bytes were stored before. Anything else is below
    126, so that PostgreSQL counts it as a failure and tries again. Other bytes, and the WAL of another server, are
    refused. It must run as an account that reads the repository's key file; it asks for no passphrase.
    """
