"""``datamanager wal push``: what ``archive_command`` calls. No job, no log: a segment a call, hundreds an hour."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from datamanager.base.errors import DataManagerError
from datamanager.cli.command import Command, CommandEnded
from datamanager.cli.lazy import lazy

if TYPE_CHECKING:
    from datamanager.app import wal_push
    from datamanager.cli import output
else:
    output = lazy("datamanager.cli.output")
    wal_push = lazy("datamanager.app.wal_push")

# From 126 on PostgreSQL's archiver ends without counting a failure. Source: pgarch.c, field notes 4.8.
_FIRST_FATAL = 126
_FAILED = 1


class _Push(Command):
    """Runs its body without a session: nothing is recorded, and what a session needs is not loaded."""

    def invoke(self, ctx: click.Context) -> None:
        """Raises: CommandEnded, always with less than 126."""
        given = ctx.params
        json_lines = bool(given["json_lines"])
        code = 0
        try:
            pushed = wal_push.push(given["path"], given["cluster"], given["repository"])
            if json_lines:
                values = {
                    "exit_code": 0,
                    "file": pushed.name,
                    "line": pushed.line or None,
                    "bytes": pushed.stored_bytes,
                }
                output.report_result(values)
        except DataManagerError as error:
            code = error.exit_code
            output.report_error(error, json_lines=json_lines)
        except KeyboardInterrupt:
            code = _FAILED
        except Exception as error:  # noqa: BLE001 - whatever it is, the archiver must try again and count it
            code = _FAILED
            failure = DataManagerError(f"push WAL: unexpected {type(error).__name__}: {error}".split("\n", 1)[0])
            output.report_error(failure, json_lines=json_lines)
        raise CommandEnded(code if code < _FIRST_FATAL else _FAILED)


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
