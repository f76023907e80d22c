"""The clusters that are backed up: adding, looking, changing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamanager.app.addresses import address_of, local_directory
from datamanager.app.context import Context
from datamanager.base.errors import ConfigurationError, UsageError
from datamanager.base.events import PhaseStarted, Warned
from datamanager.base.lazy import lazy
from datamanager.config.conninfo import check_conninfo
from datamanager.config.home import Home, inside
from datamanager.config.model import ClusterConfig
from datamanager.config.names import check_name
from datamanager.config.store import option_names
from datamanager.postgres.facts import ServerFacts, collect_facts
from datamanager.postgres.preflight import Severity, check_backup_source

if TYPE_CHECKING:
    from datamanager.app import audit, server_settings, wal
else:  # for changes; every backup looks at a cluster
    audit = lazy("datamanager.app.audit")
    server_settings = lazy("datamanager.app.server_settings")
    wal = lazy("datamanager.app.wal")

_NO_KEY = bytes(32)  # facts that are only shown, never compared


@dataclass(frozen=True)
class ClusterOptions:
    """A cluster to add; ``check`` is off only when the server cannot be reached now."""

    name: str
    conninfo: str
    repository: str | None = None
    password_file: Path | None = None
    check: bool = True


def add(context: Context, options: ClusterOptions) -> ServerFacts | None:
    """Enter a cluster in the configuration after a look at its server.

    Raises: UsageError, ConfigurationError, NotFound (no such repository); as ``collect_facts``.
    """
    check_name("cluster", options.name)
    check_conninfo(options.conninfo)
    if options.name in context.config().clusters:
        raise UsageError(
            f"add cluster: {options.name} exists already",
            hint=f"Change it with `datamanager cluster set {options.name} KEY=VALUE`, or choose another name.",
        )
    if options.repository is not None:
        context.repository(options.repository)
    password_file = options.password_file.absolute() if options.password_file else None
    cluster = ClusterConfig.model_validate(
        {"conninfo": options.conninfo, "repository": options.repository, "password_file": password_file}
    )
    facts = look(context, cluster) if options.check else None
    if facts is not None:
        _warn_of_obstacles(context, cluster)
        check_home_outside(context.home, local_directory(address_of(cluster), facts.data_directory))
    editor = context.edit()
    section = ("clusters", options.name)
    editor.set((*section, "conninfo"), options.conninfo)
    if options.repository is not None:
        editor.set((*section, "repository"), options.repository)
    if password_file is not None:
        editor.set((*section, "password_file"), str(password_file))
    added = editor.save().clusters[options.name]
    audit.audited(context, "cluster added", options.name, after=_told(added))
    return facts


def _told(cluster: ClusterConfig) -> dict[str, Any]:
    """A cluster's options that are not the defaults; none of them is a secret."""
    return cluster.model_dump(mode="json", exclude_defaults=True)


def _warn_of_obstacles(context: Context, cluster: ClusterConfig) -> None:
    """Say now what will stand in the way of the first backup."""
    for finding in check_backup_source(address_of(cluster), context.stop, context.executed):
        if finding.severity is not Severity.ADVICE:
            context.listener(Warned(f"{finding.sentence} {finding.remedy}".rstrip()))


def look(context: Context, cluster: ClusterConfig, fingerprint_key: bytes = _NO_KEY) -> ServerFacts:
    """What the server says about itself. Raises: as ``collect_facts``."""
    context.listener(PhaseStarted("asking the server"))
    return collect_facts(address_of(cluster), context.stop, fingerprint_key, context.executed)


def check_home_outside(home: Home, data_directory: Path | None) -> None:
    """Raises: ConfigurationError, when the keys would be lost with the cluster that they are for."""
    if data_directory is None:
        return
    for folder in (home.config, home.state):
        if inside(folder, data_directory):
            raise ConfigurationError(
                f"check home: {folder} lies inside the data directory {data_directory}",
                hint="Set DATAMANAGER_HOME to a folder outside the cluster, and move the files there.",
            )


def change(context: Context, name: str, assignments: dict[str, str]) -> ClusterConfig:
    """Give options of a cluster new values; an empty one brings back the default.

    Raises: NotFound, UsageError, ConfigurationError.
    """
    before = context.cluster(name)
    editor = context.edit()
    for option, value in assignments.items():
        if option not in option_names("clusters"):
            raise UsageError(
                f"set cluster: {option!r} is not an option",
                hint=f"The options are: {', '.join(option_names('clusters'))}.",
            )
        if option == "conninfo":
            check_conninfo(value)
        if option == "repository" and value:
            context.repository(value)
        editor.set_text("clusters", name, option, value)
    after = editor.save().clusters[name]
    changed = sorted(assignments)
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    audit.audited(
        context,
        "cluster changed",
        name,
        before={option: old[option] for option in changed},
        after={option: new[option] for option in changed},
    )
    return after


@dataclass(frozen=True)
class Removed:
    """What became of what a removed cluster had on its server: our settings, and the slot of its WAL archive."""

    settings: server_settings.Released
    archive: wal.Released


def remove(context: Context, name: str, *, keep_settings: bool = False) -> Removed:
    """Forget a cluster; its backups stay, settings of its server that we changed go back, and its slot is dropped.

    Raises: NotFound, ConfigurationError, Cancelled.
    """
    before = context.cluster(name)
    archive = wal.release(context, name)
    released = server_settings.release(context, name, keep=keep_settings)
    editor = context.edit()
    editor.remove(("clusters", name))
    editor.save()
    audit.audited(context, "cluster removed", name, before=_told(before))
    return Removed(released, archive)


def listed(context: Context) -> dict[str, ClusterConfig]:
    """Every configured cluster by name. Raises: ConfigurationError."""
    return dict(sorted(context.config().clusters.items()))
