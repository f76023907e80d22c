"""``datamanager cluster``: the PostgreSQL servers that are backed up."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from datamanager.base.errors import UsageError
from datamanager.base.units import format_size
from datamanager.cli.command import FILE, noun
from datamanager.cli.lazy import lazy
from datamanager.cli.outcome import Outcome

if TYPE_CHECKING:
    from datamanager.app import checks, clusters
    from datamanager.cli import settings_offer
    from datamanager.cli.session import Session
    from datamanager.config.model import ClusterConfig
    from datamanager.postgres.facts import ServerFacts
else:
    checks = lazy("datamanager.app.checks")
    clusters = lazy("datamanager.app.clusters")
    settings_offer = lazy("datamanager.cli.settings_offer")

command = noun("cluster", "Clusters: the PostgreSQL servers that are backed up.")


@command.command(
    "add",
    examples=[
        'datamanager cluster add office "host=localhost user=postgres" --repo usb',
        'datamanager cluster add branch "host=10.0.0.5 user=backup" --password-file /etc/datamanager/branch.pass',
        'datamanager cluster add ward "host=localhost user=postgres" --repo usb --yes',
    ],
)
@click.argument("name")
@click.argument("conninfo")
@click.option("--repo", "repository", metavar="REPO", help="The repository its backups go to.")
@click.option("--password-file", type=FILE, metavar="FILE", help="File, readable by you alone, with the password.")
@click.option("--no-check", is_flag=True, help="Add it although its server cannot be reached now.")
@click.option("--yes", is_flag=True, help="Change settings of the server that make backups short, without asking.")
@click.option("--no-settings", is_flag=True, help="Change no setting of the server, and do not ask.")
def add(
    session: Session,
    name: str,
    conninfo: str,
    repository: str | None,
    password_file: Path | None,
    no_check: bool,
    yes: bool,
    no_settings: bool,
) -> Outcome:
    """Add the server reached by CONNINFO under NAME.

    CONNINFO is a libpq connection string. It holds no password: use PostgreSQL's password file (pgpass), its service
    file, or --password-file.

    Where the server keeps no WAL summaries (17 and newer can), each backup reads everything; then it is offered to
    switch them on, by ALTER SYSTEM and a reload. `datamanager cluster remove` puts that back.
    """
    if yes and (no_settings or no_check):
        other = "--no-settings" if no_settings else "--no-check"
        raise UsageError(f"read options: --yes and {other} contradict each other", hint="Give one of them.")
    options = clusters.ClusterOptions(name, conninfo, repository, password_file, check=not no_check)
    added = clusters.add(session.context, options)
    data: dict[str, Any] = {"cluster": name, "repository": repository, "checked": added is not None}
    if added is None:
        return Outcome(f"Cluster {name} was added; its server was not asked.", data)
    text = f"Cluster {name} was added: {_described(added)}."
    offered = settings_offer.settle(session, name, "take" if yes else "decline" if no_settings else "ask")
    return Outcome(
        "\n".join([text, *offered.lines]), {**data, **_fields(added), **offered.data}, offered.warnings, log=text
    )


def _described(facts: ServerFacts) -> str:
    """``PostgreSQL 18.6, 3 databases, 12.4 GiB``."""
    databases = [one for one in facts.databases if not one.is_template]
    words = [f"PostgreSQL {facts.version}", f"{len(databases)} database{'' if len(databases) == 1 else 's'}"]
    sizes = [one.size_bytes for one in facts.databases if one.size_bytes is not None]
    if sizes:
        words.append(format_size(sum(sizes)))
    return ", ".join(words)


def _fields(facts: ServerFacts) -> dict[str, Any]:
    return {
        "version": facts.version,
        "system_identifier": str(facts.system_identifier),
        "data_directory": facts.data_directory,
        "data_checksums": facts.data_checksums,
        "databases": [one.name for one in facts.databases if not one.is_template],
        "facts_missing": list(facts.warnings),
    }


@command.command("list", examples=["datamanager cluster list", "datamanager cluster list --json"])
def list_(session: Session) -> Outcome:
    """List the clusters."""
    known = clusters.listed(session.context)
    lines = [f"{name}: {one.conninfo or 'defaults of libpq'}{_where(one)}" for name, one in known.items()]
    text = "\n".join(lines) or "No clusters yet. Add one with `datamanager cluster add NAME CONNINFO`."
    values = [{"cluster": name, **one.model_dump(mode="json")} for name, one in known.items()]
    return Outcome(text, {"clusters": values})


def _where(one: ClusterConfig) -> str:
    return f"; backups go to {one.repository}" if one.repository else ""


@command.command(
    "check", examples=["datamanager cluster check office", "datamanager cluster check office --enable-increments"]
)
@click.argument("name")
@click.option(
    "--enable-increments",
    is_flag=True,
    help="First switch WAL summaries on (ALTER SYSTEM and a reload), without which each backup reads everything.",
)
def check(session: Session, name: str, enable_increments: bool) -> Outcome:
    """Find out whether the next backup of a cluster can be made, whether it will be short, what should be better."""
    changed = settings_offer.settle(session, name, "require") if enable_increments else settings_offer.NOTHING
    found = checks.check_cluster(session.context, name)
    lines = [
        f"{one.severity}: {one.sentence} {one.remedy}".rstrip() for one in found.findings if one.severity != "warning"
    ]
    data: dict[str, Any] = {
        "cluster": name,
        "findings": [
            {"code": one.code, "severity": str(one.severity), "sentence": one.sentence, "remedy": one.remedy}
            for one in found.findings
        ],
        "programs": None if found.programs is None else str(found.programs.bin_directory),
        "repository": found.repository,
        "next_backup": None if found.next_backup is None else asdict(found.next_backup),
        **changed.data,
    }
    if found.blockers or found.facts is None:
        failure = found.blockers[0].error()
        return Outcome("\n".join(lines), data, failure=failure)
    data |= _fields(found.facts)
    head = [*changed.lines, f"Cluster {name} can be backed up: {_described(found.facts)}."]
    if found.next_backup is not None:
        head += settings_offer.next_backup_lines(found.next_backup)
    lines[:0] = head
    lines += [f"note: {text}" for text in found.facts.warnings]
    if found.programs is None:
        lines.append(
            f"note: no programs of PostgreSQL {found.facts.major} are here, so restores cannot be started here."
        )
    warnings = [f"{one.sentence} {one.remedy}".rstrip() for one in found.findings if one.severity == "warning"]
    return Outcome("\n".join(lines), data, [*warnings, *changed.warnings])


@command.command(
    "set",
    examples=[
        "datamanager cluster set office compress_level=3 max_rate=50MB",
        "datamanager cluster set office max_rate=",
    ],
)
@click.argument("name")
@click.argument("assignments", nargs=-1, required=True, metavar="KEY=VALUE...")
def set_(session: Session, name: str, assignments: tuple[str, ...]) -> Outcome:
    """Change options of a cluster; an empty VALUE brings back the default."""
    values: dict[str, str] = {}
    for one in assignments:
        key, equals, value = one.partition("=")
        if not equals:
            raise UsageError(
                "set cluster: an assignment has no equal sign", hint="Write KEY=VALUE, for example compress_level=3."
            )
        values[key] = value
    changed = clusters.change(session.context, name, values)
    shown = ", ".join(f"{key}={value}" if value else f"{key} is at its default" for key, value in values.items())
    return Outcome(
        f"Cluster {name}: {shown}.",
        {"cluster": name, **changed.model_dump(mode="json")},
        log=f"Cluster {name}: {', '.join(values)} changed.",
    )


@command.command("remove", examples=["datamanager cluster remove office"])
@click.argument("name")
@click.option("--keep-settings", is_flag=True, help="Leave the server's settings as this program has set them.")
def remove(session: Session, name: str, keep_settings: bool) -> Outcome:
    """Forget a cluster. Its backups stay where they are; settings of its server that were changed here go back.

    The archive of its WAL ends, and its replication slot is dropped.
    """
    removed = clusters.remove(session.context, name, keep_settings=keep_settings)
    text = f"Cluster {name} was removed from the configuration; its backups stay."
    told = settings_offer.released(removed.settings)
    lines = [text, *(f"Replication slot {one} was dropped." for one in removed.archive.dropped), *told.lines]
    data = {"cluster": name, **told.data, "slots_dropped": list(removed.archive.dropped)}
    return Outcome("\n".join(lines), data, [*removed.archive.warnings, *told.warnings], log=text)
