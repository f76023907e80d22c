"""``datamanager demo``: the whole way, on a sample clinic and a server of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from datamanager.base.errors import DataManagerError, UsageError
from datamanager.base.units import format_duration, format_size, parse_size
from datamanager.cli.command import Command
from datamanager.cli.lazy import lazy
from datamanager.cli.outcome import Outcome

if TYPE_CHECKING:
    from datamanager.app import demo
    from datamanager.cli import backup_text
    from datamanager.cli.session import Session
else:
    demo = lazy("datamanager.app.demo")
    backup_text = lazy("datamanager.cli.backup_text")


@click.command(
    "demo",
    cls=Command,
    examples=["datamanager demo", "datamanager demo --size 1GB --keep", "datamanager demo --size 100MB --json"],
)
@click.option("--size", default="300MB", show_default=True, metavar="SIZE", help="How large the sample clinic is.")
@click.option("--seed", default=1, show_default=True, help="The same seed makes the same rows.")
@click.option("--keep", is_flag=True, help="Leave the folder with everything in it.")
def command(session: Session, size: str, seed: int, keep: bool) -> Outcome:
    """Back up a sample clinic under load, change it, back it up again, restore both and compare every row.

    Everything is real and of its own: a PostgreSQL server that listens on no network, an encrypted repository, the
    engine's backup and restore. Nothing outside a temporary folder is touched.
    """
    try:
        size_bytes = parse_size(size)
    except ValueError as error:
        raise UsageError(f"read --size: {error}", hint="Write it as 300MB or 2GB.") from None
    report = demo.run(session.context, size_bytes, seed, keep=keep)
    lines = [f"{'yes' if check.ok else 'NO '}  {check.what}" for check in report.checks]
    for number, backup in enumerate(report.backups, start=1):
        lines.append(
            f"backup {number}: {format_size(backup.manifest.total_bytes)} in {format_duration(backup.seconds)}, "
            f"{format_size(backup.stored)} newly stored. {backup_text.how_it_was_read(backup.manifest)}"
        )
    for number, restore in enumerate(report.restores, start=1):
        lines.append(f"restore {number}: {format_size(restore.bytes)} in {format_duration(restore.seconds)}")
    if report.workspace is not None:
        lines.append(f"Everything is in {report.workspace}.")
    words = "all came back" if report.ok else "NOT everything came back"
    lines.append(
        f"Demo: a clinic of {format_size(report.size_bytes)}, two backups under load, two restores, {words}, "
        f"in {format_duration(report.seconds)}."
    )
    failure = None if report.ok else DataManagerError("run demo: what was restored is not what was backed up")
    return Outcome("\n".join(lines), _fields(report), log=lines[-1], failure=failure)


def _fields(report: demo.DemoReport) -> dict[str, object]:
    return {
        "ok": report.ok,
        "checks": [{"what": check.what, "ok": check.ok} for check in report.checks],
        "backups": [
            {
                "backup_id": one.manifest.backup,
                "total_bytes": one.manifest.total_bytes,
                "bytes_stored": one.stored,
                "method": one.manifest.method,
                "seconds": round(one.seconds, 3),
            }
            for one in report.backups
        ],
        "restores": [{"bytes": one.bytes, "seconds": round(one.seconds, 3)} for one in report.restores],
        "commits": report.commits,
        "workspace": None if report.workspace is None else str(report.workspace),
        "seconds": round(report.seconds, 3),
        "size_bytes": report.size_bytes,
    }
