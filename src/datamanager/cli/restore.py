"""``datamanager restore``: get a backup back into a new directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from datamanager.base.errors import UsageError
from datamanager.base.units import format_duration, format_size
from datamanager.cli.command import Command, key_options
from datamanager.cli.lazy import lazy
from datamanager.cli.outcome import Outcome

if TYPE_CHECKING:
    from datamanager.app import restores, started
    from datamanager.app.opening import Unlocking
    from datamanager.app.restores import Restored
    from datamanager.cli import backup_text, outside_text
    from datamanager.cli.session import Session
    from datamanager.engine.restore.plan import RestorePlan
else:
    restores = lazy("datamanager.app.restores")
    started = lazy("datamanager.app.started")
    backup_text = lazy("datamanager.cli.backup_text")
    outside_text = lazy("datamanager.cli.outside_text")


@click.command(
    "restore",
    cls=Command,
    examples=[
        "datamanager restore latest --cluster office --target /srv/restored",
        "datamanager restore 1a2b3c4d --target /srv/restored --dry-run",
        "datamanager restore latest --repo /media/backup/datamanager --recovery-code-file code.txt --target /srv/new",
        "datamanager restore latest --target /srv/new --tablespace-map /old/space=/srv/space",
    ],
    job=True,
    heavy=True,
    if_failed="Nothing complete was restored, and an unfinished directory does not start; the backup is as it was.",
)
@click.argument("backup", metavar="ID|latest")
@click.option(
    "--target",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="New data directory; absent or empty.",
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
@click.option("--any-platform", is_flag=True, help="Restore the files although another system wrote them.")
@click.option("--start", is_flag=True, help="Start a server on it, cut off from archive, network and other servers.")
@click.option("--port", type=click.IntRange(1, 65535), default=5433, show_default=True, help="With --start: its port.")
@click.option("--dry-run", is_flag=True, help="Say what would be done and stop.")
@key_options
def command(
    session: Session,
    backup: str,
    target: Path,
    cluster: str | None,
    repository: str | None,
    mappings: tuple[str, ...],
    owner: str | None,
    any_platform: bool,
    start: bool,
    port: int,
    dry_run: bool,
    unlocking: Unlocking,
) -> Outcome:
    """Restore a backup into a new directory. Nothing that exists is ever overwritten.

    ID is the whole name of a backup, its beginning, its last eight characters, or `latest`.
    """
    if start and dry_run:
        raise UsageError("read options: --start and --dry-run contradict each other", hint="Give one of them.")
    request = restores.Request(backup, target, repository, cluster, _mapped(mappings), owner, any_platform)
    restored = restores.run(session.context, request, unlocking, dry_run=dry_run)
    plan, result = restored.plan, restored.result
    data = {**_fields(plan), "owner": restored.owner, "dry_run": dry_run}
    if result is None:
        return Outcome(_planned(restored), data, plan.warnings)
    text = (
        f"Backup {plan.manifest.backup} ({plan.manifest.label}) was restored to {result.target}: {result.files} files, "
        f"{format_size(result.bytes)} in {format_duration(result.seconds)}."
        f"{outside_text.sentences(restored.outside, result.target)}"
    )
    data |= {"files": result.files, "bytes": result.bytes, "seconds": round(result.seconds, 3)}
    data |= outside_text.fields(restored.outside)
    if not start:
        return Outcome(text, data, result.warnings)
    running = started.start(session.context, restored, port)
    text += (
        f'\nA server runs on it, for the account {running.account} only.\nConnect with: psql "{running.conninfo}"\n'
        f"Stop it with: {running.stop_command}\nIts log and socket are in {running.side}."
    )
    data["server"] = {
        "conninfo": running.conninfo,
        "account": running.account,
        "folder": str(running.side),
        "stop_command": running.stop_command,
    }
    return Outcome(text, data, result.warnings)


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


def _planned(restored: Restored) -> str:
    plan, manifest = restored.plan, restored.plan.manifest
    lines = [
        f"Would restore backup {manifest.backup} ({manifest.label}) of {manifest.cluster}, "
        f"made {backup_text.local_time(manifest.started)}.",
        f"Target: {plan.options.target}, PostgreSQL {manifest.version}; the files will belong to {restored.owner}.",
    ]
    lines += [f"Tablespace {oid}: {path}." for oid, path in plan.links.items()]
    lines += [
        f"{one.path}: needs {format_size(one.need)}, its volume has {format_size(one.free)} free."
        for one in plan.volumes
    ]
    return "\n".join(lines)


def _fields(plan: RestorePlan) -> dict[str, Any]:
    return {
        **backup_text.fields(plan.manifest),
        "target": str(plan.options.target),
        "tablespace_directories": {str(oid): str(path) for oid, path in plan.links.items()},
        "volumes_needed": [
            {"path": str(one.path), "need_bytes": one.need, "free_bytes": one.free} for one in plan.volumes
        ],
    }
