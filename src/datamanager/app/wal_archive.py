"""Which archive is a cluster's: the system identifiers that are known of it in a repository."""

from __future__ import annotations

from datamanager.base.errors import DataManagerError, WalForeign
from datamanager.repository.repository import Repository
from datamanager.repository.wal.archive import Line, WalArchive, systems


def lines_of(repository: Repository, cluster: str) -> dict[int, list[Line]]:
    """Every line that began under the name of a cluster, by system identifier. Raises: StoreError."""
    found: dict[int, list[Line]] = {}
    for system in systems(repository):
        lines = [one for one in WalArchive(repository, system).lines() if one.record.cluster == cluster]
        if lines:
            found[system] = lines
    return found


def backed_up_systems(repository: Repository, cluster: str) -> list[int]:
    """The system identifiers of a cluster's backups, the newest backup's first. Raises: StoreError."""
    found: list[int] = []
    for backup in sorted(repository.backup_ids(), reverse=True):
        try:
            manifest = repository.manifest(backup)
        except DataManagerError:
            continue
        if manifest.cluster == cluster:
            found.append(int(manifest.system_identifier))
    return list(dict.fromkeys(found))


def check_system(repository: Repository, cluster: str, system: int) -> None:
    """That a server is the one that a cluster's name stood for so far.

    A new one (pg_upgrade, a new initdb) makes itself known by its first backup. Raises: WalForeign, StoreError.
    """
    archived = WalArchive(repository, system).lines()
    if any(one.record.cluster == cluster for one in archived):
        return
    known = backed_up_systems(repository, cluster)
    if system in known:
        return
    known = known or list(lines_of(repository, cluster))
    if known:
        raise WalForeign(
            f"archive WAL of {cluster}: the server is {system}, and {cluster} was {known[0]} so far",
            hint=f"If it took the place of the old one (pg_upgrade), run `datamanager backup run {cluster}` first; if "
            "it is another server, give it a name of its own with `datamanager cluster add`.",
        )
