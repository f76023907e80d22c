"""``datamanager repo``: where backups are kept, and their keys."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from datamanager.cli.command import noun
from datamanager.cli.lazy import lazy
from datamanager.cli.outcome import Outcome

if TYPE_CHECKING:
    from datamanager.app import opening, repositories
    from datamanager.cli.session import Session
else:
    opening = lazy("datamanager.app.opening")
    repositories = lazy("datamanager.app.repositories")

command = noun("repo", "Repositories: where backups are kept, and their keys.")
_FILE = click.Path(path_type=Path, dir_okay=False)


@command.command(
    "init",
    examples=[
        "datamanager repo init usb /media/backup/datamanager",
        "datamanager repo init usb /media/backup/datamanager --passphrase-file pass.txt --kit-file kit.txt",
        "datamanager repo init usb2 /media/backup2/datamanager --like usb",
    ],
)
@click.argument("name")
@click.argument("url")
@click.option("--like", metavar="REPO", help="Make it a sibling of this one, so that each can heal the other.")
@click.option("--passphrase-file", type=_FILE, metavar="FILE", help="Take the passphrase from this file's first line.")
@click.option("--no-encryption", is_flag=True, help="Let everybody who has the drive read the backups.")
@click.option("--reason", default="", metavar="TEXT", help="Why it is not encrypted; is recorded.")
def init(
    session: Session, name: str, url: str, like: str | None, passphrase_file: Path | None, no_encryption: bool, reason: str
) -> Outcome:
    """Make a repository at URL, a folder on a drive, and call it NAME.

    It is opened by a passphrase, by a recovery code printed once, and by a key file kept here for unattended runs.
    """
    repositories.check_new(session.context, name, url)
    options = repositories.InitOptions(name, url, open_reason=reason, like=like)
    made = repositories.init(session.context, options, session.unlocking())
    return Outcome(f"Repository {made.name} is ready at {made.url}.")
