"""``datamanager repo``: where backups are kept, and their keys."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from datamanager.base.errors import UsageError
from datamanager.base.units import format_size
from datamanager.cli import repo_check, repo_heal, repo_key, repo_prune
from datamanager.cli.command import FILE, noun
from datamanager.cli.lazy import lazy
from datamanager.cli.outcome import Outcome

if TYPE_CHECKING:
    from datamanager.app import repositories
    from datamanager.cli import backup_text, kit_output
    from datamanager.cli.session import Session
else:
    repositories = lazy("datamanager.app.repositories")
    backup_text = lazy("datamanager.cli.backup_text")
    kit_output = lazy("datamanager.cli.kit_output")

command = noun("repo", "Repositories: where backups are kept, and their keys.")
command.add_command(repo_check.check)
command.add_command(repo_check.verify)
command.add_command(repo_heal.heal)
command.add_command(repo_prune.prune)
command.add_command(repo_key.command)
command.add_command(repo_key.kit)


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
@click.option("--passphrase-file", type=FILE, metavar="FILE", help="Take the passphrase from this file's first line.")
@click.option(
    "--kit-file", type=FILE, metavar="FILE", help="Write the recovery kit to this file instead of showing it."
)
@click.option("--kept-where", default="", metavar="TEXT", help="Where the printed kit is kept; stands in README.txt.")
@click.option("--no-wheels", is_flag=True, help="Leave out the libraries that make rescue.py faster.")
@click.option("--no-encryption", is_flag=True, help="Let everybody who has the drive read the backups.")
@click.option("--reason", default="", metavar="TEXT", help="Why it is not encrypted; is recorded.")
def init(
    session: Session,
    name: str,
    url: str,
    like: str | None,
    passphrase_file: Path | None,
    kit_file: Path | None,
    kept_where: str,
    no_wheels: bool,
    no_encryption: bool,
    reason: str,
) -> Outcome:
    """Make a repository at URL, a folder on a drive, and call it NAME.

    It is opened by a passphrase, by a recovery code that is printed once, and by a key file kept on this computer for
    backups that run unattended.
    """
    if no_encryption != bool(reason.strip()):
        raise UsageError(
            "make repository: --no-encryption and --reason go together",
            hint="Give both, or neither for an encrypted repository.",
        )
    repositories.check_new(session.context, name, url)
    if kit_file is not None:
        kit_output.check_free(kit_file)
    options = repositories.InitOptions(
        name,
        url,
        passphrase=None if no_encryption else session.new_passphrase(passphrase_file),
        open_reason=reason.strip(),
        like=like,
        kept_where=kept_where,
        wheels=not no_wheels,
    )
    made = repositories.init(session.context, options, session.unlocking())
    data = {
        "repository": made.name,
        "url": made.url,
        "id": made.repository_id,
        "encrypted": made.kit is not None,
        "key_file": None if made.key_file is None else str(made.key_file),
    }
    done = f"Repository {made.name} is ready at {made.url}."
    if made.kit is None:
        return Outcome(f"{done}\nIt is not encrypted: whoever has the drive can read the backups.", data)
    return kit_output.outcome(done, data, made.kit, kit_file)


@command.command("list", examples=["datamanager repo list", "datamanager repo list --json"])
def list_(session: Session) -> Outcome:
    """List the repositories of this computer, and what is in them."""
    found = repositories.listed(session.context)
    lines, values, warnings = [], [], []
    for one in found:
        kind = "encrypted" if one.encrypted else "NOT encrypted"
        if one.error is not None:
            lines.append(f"{one.name}: {one.url} ({kind}); not readable now: {one.error.message}")
            warnings.append(f"{one.name}: {one.error.message}. {one.error.hint}".strip())
        else:
            newest = f", newest {backup_text.local_time(one.newest)}" if one.newest else ""
            room = f", {format_size(one.space.free)} free" if one.space else ""
            lines.append(f"{one.name}: {one.url} ({kind}); backups: {one.backups}{newest}{room}")
        values.append(
            {
                "repository": one.name,
                "url": one.url,
                "encrypted": one.encrypted,
                "backups": one.backups,
                "newest": one.newest,
                "free_bytes": one.space.free if one.space else None,
                "error": one.error.message if one.error else None,
            }
        )
    text = "\n".join(lines) or "No repositories yet. Make one with `datamanager repo init NAME URL`."
    return Outcome(text, {"repositories": values}, warnings)
