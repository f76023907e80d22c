"""``datamanager restore``: get a backup, or a moment after it, back into a new directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from datamanager.base.errors import UsageError
from datamanager.cli.command import key_options
from datamanager.cli.lazy import lazy
from datamanager.cli.outcome import Outcome
from datamanager.cli.restore_file import FileOptions, FilePlace, file_options, is_file, restore_file
from datamanager.cli.restore_in_place import (
    PlaceOptions,
    complete,
    forget,
    kept,
    place_options,
    restore_in_place,
    undo,
)
from datamanager.cli.restore_paused import drop, finish
from datamanager.cli.verbs import CommandWithVerbs

if TYPE_CHECKING:
    from datamanager.app import moments, readiness, restores, started
    from datamanager.app.opening import Unlocking
    from datamanager.cli import readiness_text, restore_text
    from datamanager.cli.session import Session
else:
    moments = lazy("datamanager.app.moments")
    readiness = lazy("datamanager.app.readiness")
    readiness_text = lazy("datamanager.cli.readiness_text")
    restores = lazy("datamanager.app.restores")
    started = lazy("datamanager.app.started")
    restore_text = lazy("datamanager.cli.restore_text")


@click.command(
    "restore",
    cls=CommandWithVerbs,
    verbs={"undo": undo, "kept": kept, "forget": forget, "complete": complete, "finish": finish, "drop": drop},
    examples=[
        "datamanager restore latest --cluster office --target /srv/restored",
        'datamanager restore latest --to-time "2026-11-23 14:30" --zone Europe/Berlin --target /srv/restored',
        "datamanager restore latest --to-name before-import --target /srv/restored --pause",
        "datamanager restore latest --cluster office --in-place --dry-run",
        'datamanager restore latest --cluster office --in-place --to-time "2026-11-23 14:30" --confirm office',
        "datamanager restore 1a2b3c4d --target /srv/restored --dry-run",
        "datamanager restore latest --repo /media/backup/datamanager --recovery-code-file code.txt --target /srv/new",
        "datamanager restore latest --target /srv/new --tablespace-map /old/space=/srv/space",
        "datamanager restore /media/usb/clinic.dump --into clinic_again --cluster office",
        "datamanager restore /media/usb/basebackup --target /srv/restored",
    ],
    job=True,
    heavy=True,
    if_failed="Nothing complete was restored, and an unfinished directory does not start; the backup is as it was.",
)
@click.argument("backup", metavar="ID|latest|FILE")
@click.option(
    "--target",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="New data directory; absent or empty. Needed but for the dump of a database.",
)
@click.option("--cluster", metavar="NAME", help="For `latest`: of this cluster.")
@click.option(
    "--repo", "repository", metavar="REPO", help="Name or address; else the cluster's repository, or the only one."
)
@click.option(
    "--tablespace-map",
    "mappings",
    multiple=True,
    metavar="OLD=NEW",
    help="Put the tablespace at OLD (or with that oid) into the directory NEW; may be given again.",
)
@click.option(
    "--owner", metavar="NAME", help="The account that gets the files; needs root, which else takes `postgres`."
)
@click.option("--to-time", metavar="TIME", help="As it was then: with every commit up to that time.")
@click.option("--to-lsn", metavar="LSN", help="Up to that position of the WAL, as 0/5A3F1C8.")
@click.option("--to-name", metavar="NAME", help="Up to a restore point, made with pg_create_restore_point.")
@click.option("--timeline", type=click.IntRange(1), metavar="N", help="Along that timeline; else the newest.")
@click.option("--zone", metavar="ZONE", help="Whose clocks --to-time is on, as Europe/Berlin; else this computer's.")
@click.option("--pause", is_flag=True, help="Do not promote: leave a server at that moment, read-only, to look first.")
@click.option("--any-platform", is_flag=True, help="Restore the files although another system wrote them.")
@click.option("--start", is_flag=True, help="Start a server on it, cut off from archive, network and other servers.")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=5433, show_default=True, help="With --start or --pause: its port."
)
@click.option("--dry-run", is_flag=True, help="Say what would be done and stop.")
@place_options
@file_options
@key_options
def command(
    session: Session,
    backup: str,
    target: Path | None,
    cluster: str | None,
    repository: str | None,
    mappings: tuple[str, ...],
    owner: str | None,
    to_time: str | None,
    to_lsn: str | None,
    to_name: str | None,
    timeline: int | None,
    zone: str | None,
    pause: bool,
    any_platform: bool,
    start: bool,
    port: int,
    dry_run: bool,
    unlocking: Unlocking,
    for_file: FileOptions,
    for_place: PlaceOptions,
) -> Outcome:
    """Restore a backup into a new directory, as it is or with the archived WAL replayed up to a moment.

    Nothing that exists is ever overwritten: --in-place keeps what it replaces, for `restore undo`. `latest` means the
    newest moment that the archive of WAL reaches; without an archive, the end of the newest backup. ID is the whole
    name of a backup, its beginning or its last eight characters, and means that backup's own end, or with --to-time,
    --to-lsn or --to-name where to begin.

    FILE is what other programs made, told by its content: a dump of pg_dump goes into a new database of a running
    server, one of pg_dumpall, a pg_basebackup (directory or tar) and an export into a new directory.
    """
    if is_file(backup):
        others: dict[str, object] = {
            "--repo": repository,
            "--any-platform": any_platform,
            "--pause": pause,
            "--to-time": to_time,
            "--in-place": for_place != PlaceOptions(),
        }
        others |= {"--to-lsn": to_lsn, "--to-name": to_name, "--timeline": timeline, "--zone": zone}
        place = FilePlace(target, cluster, _mapped(mappings), owner)
        return restore_file(
            session, backup, for_file, place, unlocking, others, start_at=port if start else None, dry_run=dry_run
        )
    moment = moments.Moment(to_time, to_lsn, to_name, timeline, zone)
    if for_place.in_place:
        others = {
            "--target": target,
            "--tablespace-map": mappings,
            "--owner": owner,
            "--pause": pause,
            "--start": start,
        }
        others |= {"--any-platform": any_platform, "--into": for_file != FileOptions()}
        return restore_in_place(
            session, backup, cluster, repository, moment, for_place, unlocking, others, dry_run=dry_run
        )
    for_place.require_unused()
    target = for_file.refused(target)
    _refuse_contradictions(start=start, pause=pause, dry_run=dry_run)
    request = restores.Request(
        backup, target, repository, cluster, _mapped(mappings), owner, any_platform, moment, pause, port, start
    )
    if dry_run:
        return _planned(session, request, unlocking)
    restored = restores.run(session.context, request, unlocking)
    text = restore_text.done(restored, request)
    data = {**restore_text.fields(restored, request), "dry_run": False, **restore_text.result_fields(restored)}
    if start:
        running = started.start(session.context, restored, port)
        text += restore_text.server_sentences(running)
        data["server"] = restore_text.server_fields(running)
    return Outcome(text, data, restored.warnings)


def _planned(session: Session, request: restores.Request, unlocking: Unlocking) -> Outcome:
    found = restores.plan(session.context, request, unlocking)
    if isinstance(found, readiness.NotReady):
        return readiness_text.not_ready(found, dry_run=True)
    data = {**restore_text.fields(found, request), "dry_run": True}
    return readiness_text.planned(restore_text.planned(found, request), data, found.findings, found.warnings)


def _refuse_contradictions(*, start: bool, pause: bool, dry_run: bool) -> None:
    for given, name in ((dry_run, "--dry-run"), (pause, "--pause")):
        if start and given:
            raise UsageError(f"read options: --start and {name} contradict each other", hint="Give one of them.")


def _mapped(mappings: tuple[str, ...]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for one in mappings:
        old, equals, new = one.partition("=")
        if not (old and equals and new):
            raise UsageError(
                "read --tablespace-map: it is not OLD=NEW", hint="Write --tablespace-map /old/directory=/new/directory."
            )
        found[old] = Path(new)
    return found
