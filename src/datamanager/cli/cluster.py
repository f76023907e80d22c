"""``datamanager cluster``: the PostgreSQL servers that are backed up."""

from __future__ import annotations

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
    from datamanager.cli.session import Session
    from datamanager.config.model import ClusterConfig
    from datamanager.postgres.facts import ServerFacts
else:
    checks = lazy("datamanager.app.checks")
    clusters = lazy("datamanager.app.clusters")

command = noun("cluster", "Clusters: the PostgreSQL servers that are backed up.")


@command.command(
    "add",
    examples=[
        'datamanager cluster add office "host=localhost user=postgres" --repo usb',
        'datamanager cluster add branch "host=10.0.0.5 user=backup" --password-file /etc/datamanager/branch.pass',
    ],
)
@click.argument("name")
@click.argument("conninfo")
@click.option("--repo", "repository", metavar="REPO", help="The repository its backups go to.")
@click.option("--password-file", type=FILE, metavar="FILE", help="File, readable by you alone, with the password.")
@click.option("--no-check", is_flag=True, help="Add it although its server cannot be reached now.")
def add(
    session: Session, name: str, conninfo: str, repository: str | None, password_file: Path | None, no_check: bool
) -> Outcome:
    """Add the server reached by CONNINFO under NAME.

    CONNINFO is a libpq connection string. It holds no password: use PostgreSQL's password file (pgpass), its service
    file, or --password-file.
    """
    options = clusters.ClusterOptions(name, conninfo, repository, password_file, check=not no_check)
    added = clusters.add(session.context, options)
    data: dict[str, Any] = {"cluster": name, "repository": repository, "checked": added is not None}
    if added is None:
        return Outcome(f"Cluster {name} was added; its server was not asked.", data)
    return Outcome(f"Cluster {name} was added: {_described(added)}.", {**data, **_fields(added)})


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


@command.command("check", examples=["datamanager cluster check office"])
@click.argument("name")
def check(session: Session, name: str) -> Outcome:
    """Find out whether the next backup of a cluster can be made, and what should be better."""
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
    }
    if found.blockers or found.facts is None:
        failure = found.blockers[0].error()
        return Outcome("\n".join(lines), data, failure=failure)
    data |= _fields(found.facts)
    lines.insert(0, f"Cluster {name} can be backed up: {_described(found.facts)}.")
    lines += [f"note: {text}" for text in found.facts.warnings]
    if found.programs is None:
        lines.append(
            f"note: no programs of PostgreSQL {found.facts.major} are here, so restores cannot be started here."
        )
    warnings = [f"{one.sentence} {one.remedy}".rstrip() for one in found.findings if one.severity == "warning"]
    return Outcome("\n".join(lines), data, warnings)


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
def remove(session: Session, name: str) -> Outcome:
    """Forget a cluster. Its backups stay where they are."""
    clusters.remove(session.context, name)
    return Outcome(f"Cluster {name} was removed from the configuration; its backups stay.", {"cluster": name})
