"""``datamanager backup``: make backups, list them, export them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from datamanager.base.errors import UsageError
from datamanager.base.units import format_duration, format_size, parse_size
from datamanager.cli import backup_marks
from datamanager.cli.around import around_options
from datamanager.cli.command import key_options, noun
from datamanager.cli.lazy import lazy
from datamanager.cli.outcome import Outcome

if TYPE_CHECKING:
    from datamanager.app import backups, cold_backups, restores, server_settings
    from datamanager.app import rolling as rolling_backups
    from datamanager.app.opening import Unlocking
    from datamanager.cli import backup_text, outside_text
    from datamanager.cli.session import Session
    from datamanager.config import model
else:
    backups = lazy("datamanager.app.backups")
    cold_backups = lazy("datamanager.app.cold_backups")
    restores = lazy("datamanager.app.restores")
    rolling_backups = lazy("datamanager.app.rolling")
    server_settings = lazy("datamanager.app.server_settings")
    backup_text = lazy("datamanager.cli.backup_text")
    outside_text = lazy("datamanager.cli.outside_text")
    model = lazy("datamanager.config.model")

command = noun("backup", "Make backups, list them, export them.")
for marking in (backup_marks.delete, backup_marks.undelete, backup_marks.pin, backup_marks.unpin):
    command.add_command(marking)


@command.command(
    "run",
    examples=[
        "datamanager backup run office",
        'datamanager backup run office --name "before update" --append-date',
        'datamanager backup run office --name "last night" --rolling',
        "datamanager backup run office --repo usb2 --max-rate 50MB --spread",
        "datamanager backup run office --cold --data-directory /var/lib/postgresql/18/main",
        "datamanager backup run office --stop-service exchange --after '/usr/local/bin/tell-office'",
    ],
    job=True,
    heavy=True,
    if_failed="No new backup was made; the earlier ones are as they were.",
)
@click.argument("cluster")
@click.option("--repo", "repository", metavar="REPO", help="Where to; else the cluster's repository, or the only one.")
@click.option("--name", metavar="TEXT", help="A name for people; else the cluster's.")
@click.option("--append-date", is_flag=True, help="Add the local date and time with their zone to the name.")
@click.option("--rolling", is_flag=True, help="Once it is verified, it replaces the older backups of its name.")
@click.option("--compress", type=click.IntRange(1, 19), metavar="LEVEL", help="How hard to compress: zstd 1 to 19.")
@click.option("--no-compress", is_flag=True, help="Store as it is.")
@click.option("--max-rate", metavar="SIZE", help="Read at most so much a second from the server, as in 50MB.")
@click.option("--spread", is_flag=True, help="Wait for a spread checkpoint, which spares the server.")
@click.option("--fast", is_flag=True, help="Begin at once with a fast checkpoint.")
@click.option("--threads", type=click.IntRange(1, 64), help="Threads that compress; else one a processor.")
@click.option("--full", is_flag=True, help="Read everything, also where the server could send only what changed.")
@click.option("--cold", is_flag=True, help="Read the data directory of a server that is stopped or does not start.")
@click.option(
    "--data-directory",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="With --cold: where it is; else the cluster's, or where the newest backup found it.",
)
@key_options
@around_options
def run(
    session: Session,
    cluster: str,
    repository: str | None,
    name: str | None,
    append_date: bool,
    rolling: bool,
    compress: int | None,
    no_compress: bool,
    max_rate: str | None,
    spread: bool,
    fast: bool,
    threads: int | None,
    full: bool,
    cold: bool,
    data_directory: Path | None,
    unlocking: Unlocking,
) -> Outcome:
    """Back up CLUSTER while it runs. What is already stored is not stored again; every backup is complete.

    With --cold no connection is made: its data directory is read, which no server may have meanwhile.
    """
    if no_compress and compress is not None:
        raise UsageError("read options: --compress and --no-compress contradict each other", hint="Give one of them.")
    if spread and fast:
        raise UsageError("read options: --spread and --fast contradict each other", hint="Give one of them.")
    if rolling and append_date:
        raise UsageError(
            "read options: --rolling and --append-date contradict each other",
            hint="A rolling backup replaces those of the same name; with a date each has its own.",
        )
    if data_directory is not None and not cold:
        raise UsageError("read options: --data-directory is for --cold", hint="Give both, or neither.")
    if cold and (spread or fast):
        raise UsageError("read options: --cold needs no checkpoint", hint="Leave --spread and --fast out.")
    options = backups.RunOptions(
        cluster,
        repository,
        name,
        append_date,
        0 if no_compress else compress,
        _rate(max_rate),
        model.Checkpoint.SPREAD if spread else model.Checkpoint.FAST if fast else None,
        threads,
        full=full,
    )
    after = rolling_backups.replace_older if rolling else None
    if cold:
        taken = cold_backups.run(session.context, options, data_directory, unlocking, after)
    else:
        taken = backups.run(session.context, options, unlocking, after)
    manifest, result = taken.result.manifest, taken.result
    text = (
        f"Backup {manifest.backup} of {cluster} is in {taken.repository.title}: "
        f"{format_size(manifest.total_bytes)} in {format_duration(result.seconds)}, "
        f"{format_size(result.stored)} of it newly stored.\n{backup_text.how_it_was_read(manifest)}"
    )
    if manifest.reason:
        text = f"{text} {server_settings.remedy_for(cluster, manifest.reason)}".rstrip()
    data = {
        **backup_text.fields(manifest),
        "repository": taken.repository.title,
        "seconds": round(result.seconds, 3),
        "replaced": list(taken.replaced),
    }
    if taken.replaced:
        text += f"\nIt was verified and replaces {', '.join(taken.replaced)}."
    return Outcome(text, data, result.warnings)


def _rate(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        rate = parse_size(text)
    except ValueError as error:
        raise UsageError(f"read --max-rate: {error}", hint="Write it as 50MB, for 50 megabytes a second.") from None
    if not model.MIN_RATE_BYTES <= rate <= model.MAX_RATE_BYTES:
        raise UsageError(
            f"read --max-rate: {text} is out of range",
            hint=f"Give {format_size(model.MIN_RATE_BYTES)} to {format_size(model.MAX_RATE_BYTES)} a second.",
        )
    return rate


@command.command("list", examples=["datamanager backup list", "datamanager backup list --cluster office --json"])
@click.option("--cluster", metavar="NAME", help="Only backups of this cluster.")
@click.option("--repo", "repository", metavar="REPO", help="Only in this repository; else in all of them.")
@click.option("--deleted", is_flag=True, help="Also those that were deleted and can still be undeleted.")
@key_options
def list_(
    session: Session,
    cluster: str | None,
    repository: str | None,
    deleted: bool,
    unlocking: Unlocking,
) -> Outcome:
    """List backups, oldest first."""
    found, errors = backups.listed(session.context, repository, cluster, unlocking, deleted=deleted)
    warnings = [f"{error.message}. {error.hint}".strip() for error in errors]
    return Outcome(backup_text.table(found), {"backups": [backup_text.full(one) for one in found]}, warnings)


@command.command(
    "show", examples=["datamanager backup show latest --cluster office", "datamanager backup show 1a2b3c4d"]
)
@click.argument("backup", metavar="ID")
@click.option("--cluster", metavar="NAME", help="For `latest`: of this cluster.")
@click.option(
    "--repo", "repository", metavar="REPO", help="Where it is; else the cluster's repository, or the only one."
)
@key_options
def show(
    session: Session,
    backup: str,
    cluster: str | None,
    repository: str | None,
    unlocking: Unlocking,
) -> Outcome:
    """Show one backup. ID is its whole name, its beginning, its last eight characters, or `latest`."""
    one = backups.shown(session.context, backup, repository, cluster, unlocking)
    return Outcome(backup_text.details(one), backup_text.full(one))


@command.command(
    "export",
    examples=["datamanager backup export latest /srv/export/office"],
    job=True,
    heavy=True,
    if_failed="Nothing complete was exported; the backup is as it was.",
)
@click.argument("backup", metavar="ID")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False), metavar="DIR")
@click.option("--cluster", metavar="NAME", help="For `latest`: of this cluster.")
@click.option(
    "--repo", "repository", metavar="REPO", help="Where it is; else the cluster's repository, or the only one."
)
@click.option("--owner", metavar="NAME", help="The account that gets the files; needs root.")
@key_options
def export(
    session: Session,
    backup: str,
    directory: Path,
    cluster: str | None,
    repository: str | None,
    owner: str | None,
    unlocking: Unlocking,
) -> Outcome:
    """Write a backup to DIR as the plain directory that PostgreSQL's own tools know.

    pg_verifybackup checks it and pg_ctl starts it. Tablespaces go beside it, into DIR.tablespaces.
    """
    request = restores.Request(backup, directory, repository, cluster, owner=owner)
    manifest, result, outside = restores.export(session.context, request, unlocking)
    text = (
        f"Backup {manifest.backup} ({manifest.label}) is in {result.target}: {result.files} files, "
        f"{format_size(result.bytes)} in {format_duration(result.seconds)}."
        f"{outside_text.sentences(outside, result.target)}"
    )
    data = {
        "backup_id": manifest.backup,
        "target": str(result.target),
        "files": result.files,
        "bytes": result.bytes,
        "seconds": round(result.seconds, 3),
        **outside_text.fields(outside),
    }
    return Outcome(text, data, result.warnings)
