"""The cluster of a restore in place: where its data lie, its roles, and the backups before and after."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from datamanager.app import backups, clusters, cold_backups
from datamanager.app.addresses import address_of, is_local, local_directory
from datamanager.app.backups import Taken
from datamanager.app.context import Context
from datamanager.app.in_place_notes import drop_note
from datamanager.app.opening import Named, Unlocking
from datamanager.base.errors import (
    AuthenticationFailed,
    Cancelled,
    DataManagerError,
    RightMissing,
    ServerUnreachable,
    UsageError,
)
from datamanager.base.events import PhaseStarted, Touched, Warned
from datamanager.config.model import ClusterConfig
from datamanager.engine.in_place.roles import RoleChange, Roles, read_all_roles, role_changes
from datamanager.postgres.connection import ServerAddress
from datamanager.postgres.facts_model import ServerFacts
from datamanager.postgres.stopped_server import server_process
from datamanager.repository.format import canonical_json
from datamanager.repository.manifest import Manifest
from datamanager.repository.repository import Repository

SAFETY_NAME = "before restore"


@dataclass(frozen=True)
class Around:
    """How the cluster's server is handled; for a restore as for the way back.

    Args:
        data_directory: None for that of the running server, the configured one, or that of the newest backup.
        service: what the system calls the server's service, where that is not to be found out.
        managed: the owner has taken the cluster out of its manager's hands.
        drain_seconds: how long connected sessions are waited for before they are ended.
    """

    data_directory: Path | None = None
    service: str | None = None
    managed: bool = False
    drain_seconds: float = 0.0


@dataclass(frozen=True)
class LocalCluster:
    """A configured cluster on this computer. ``address`` is None where its server does not answer."""

    name: str
    config: ClusterConfig
    data_directory: Path
    address: ServerAddress | None
    facts: ServerFacts | None = field(repr=False)


def look(context: Context, repository: Repository | None, name: str, around: Around) -> LocalCluster:
    """Where the cluster's data lie, and whether its server answers.

    Raises: NotFound, UsageError, ConfigurationError.
    """
    config = context.cluster(name)
    address = address_of(config)
    if not is_local(address):
        raise UsageError(
            f"restore in place: the server of {name} runs on another computer",
            hint="Run the command there; DataManager must be installed on it.",
        )
    facts: ServerFacts | None = None
    try:
        key = bytes(32) if repository is None else repository.ring.fingerprint_key.reveal()
        facts = clusters.look(context, config, key)
    except (ServerUnreachable, AuthenticationFailed, RightMissing) as error:
        context.listener(Touched(f"cluster {name}, whose server was not asked: {error.message}"))
    told = local_directory(address, facts.data_directory) if facts is not None else None
    directory = around.data_directory or told or config.data_directory
    if directory is None and repository is not None:
        directory = cold_backups.find_directory(repository, name, config, None).path
    if directory is None:
        raise UsageError(
            f"restore in place: where the data of {name} lie is not known, and its server does not tell",
            hint=f"Give --data-directory DIR, or set it with `datamanager cluster set {name} data_directory=DIR`.",
        )
    if told is not None and around.data_directory is not None and told.resolve() != directory.resolve():
        raise UsageError(
            f"restore in place: the server of {name} runs on {told}, not on {directory}", hint="Leave the option out."
        )
    return LocalCluster(name, config, directory, address if facts is not None else None, facts)


def roles_changed(
    context: Context, repository: Repository, cluster: LocalCluster, manifest: Manifest
) -> list[RoleChange] | None:
    """Roles that will be as they were (R74); None where that cannot be known."""
    if cluster.address is None:
        return None
    then = ServerFacts.from_json(canonical_json(manifest.server))
    if not then.roles:
        return None
    try:
        now = read_all_roles(cluster.address, repository.ring.fingerprint_key.reveal(), context.stop)
    except Cancelled:
        raise
    except DataManagerError as error:
        context.listener(Warned(f"which roles change back is not known: {error.message}"))
        return None
    return role_changes(now, Roles(then.roles, then.rights.get("superuser", False)))


def safety_backup(context: Context, cluster: LocalCluster, named: Named, unlocking: Unlocking, without: str) -> Taken:
    """Back up what is there, by whichever way it can be read.

    Args: without - a sentence that says what becomes of the present data without one.
    Raises: what the backup raises.
    """
    context.listener(PhaseStarted("safety backup"))
    options = backups.RunOptions(
        cluster.name, named.name or named.config.url, f"{cluster.name} {SAFETY_NAME}", append_date=True
    )
    try:
        if server_process(cluster.data_directory) is None:
            return cold_backups.run(context, options, cluster.data_directory, unlocking)
        return backups.run(context, options, unlocking)
    except Cancelled:
        raise
    except DataManagerError as error:
        error.hint = (
            f"{error.hint} Nothing was changed. With --no-safety-backup the restore goes on without one; {without}"
        ).strip()
        raise


def following_backup(context: Context, name: str, named: Named, unlocking: Unlocking) -> Taken | None:
    """The first backup of the restored cluster; that it fails is a warning, for the restore is done.

    One that is cut off stays owed: the service makes it.
    """
    context.listener(PhaseStarted("backing up the restored cluster"))
    taken: Taken | None = None
    try:
        taken = backups.run(context, backups.RunOptions(name, named.name or named.config.url), unlocking)
    except DataManagerError as error:
        context.listener(
            Warned(f"the restored cluster is not backed up yet: {error.message}; run `datamanager backup run {name}`")
        )
        if isinstance(error, Cancelled):
            return None
    drop_note(context.home, name)
    return taken
