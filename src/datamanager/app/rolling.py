"""One rolling backup of a name: the new one is verified, then it replaces the older ones (R43)."""

from __future__ import annotations

from datamanager.app.context import Context
from datamanager.app.expiry import check_lease, judge, lease_for, window_of
from datamanager.app.retained import clusters_of, put_deleted
from datamanager.base.errors import Cancelled, IntegrityError
from datamanager.base.events import PhaseStarted, Warned
from datamanager.config.model import ClusterConfig
from datamanager.engine.retention import Policy
from datamanager.engine.verify.run import VerifyOptions, verify_repository
from datamanager.repository.manifest import Manifest
from datamanager.repository.mark import ROLLING
from datamanager.repository.repository import Repository

# An expire takes seconds; one that waits for a prune that has the repository for itself may take minutes.
_PATIENCE_SECONDS = 600.0


def replace_older(
    context: Context, repository: Repository, manifest: Manifest, cluster: ClusterConfig, threads: int
) -> list[str]:
    """Read the new backup back, then mark the older ones of its name and cluster as deleted; returns their ids.

    Args: threads - how many read at once, 1 or more.
    Pinned ones stay, and so many of the newest undamaged ones as ``keep_minimum`` says. No rule of time has a say.
    Raises: IntegrityError (it cannot be restored as it was stored), Cancelled, Busy, StoreError; then every older one
    stays, and the next rolling backup replaces them all.
    """
    context.listener(PhaseStarted("verifying the new backup"))
    try:
        verified = verify_repository(
            repository,
            VerifyOptions(depth="full", backups=[manifest.backup], threads=threads),
            context.stop,
            context.listener,
        )
    except Cancelled as error:
        raise Cancelled(
            f"replace rolling backup: stopped while {manifest.backup} was verified",
            hint="It is stored, and the older ones stay; the next rolling backup replaces them.",
        ) from error
    if not all(one.ok for one in verified.backups):
        lost = next(one for one in verified.damages if not one.redundant)
        raise IntegrityError(
            f"replace rolling backup: {manifest.backup} does not read back: {lost.key}: {lost.what}",
            hint="The older ones of this name stay. Run `datamanager repo verify`, then back up again, or to another "
            "repository.",
        )
    context.listener(PhaseStarted("replacing the older ones"))
    with lease_for(context, repository, patience_seconds=_PATIENCE_SECONDS) as lease:
        check_lease(lease)
        repository.put_mark(manifest.backup, ROLLING)
        return put_deleted(repository, _replaced(context, repository, manifest, cluster), "replaced")


def _replaced(context: Context, repository: Repository, manifest: Manifest, cluster: ClusterConfig) -> list[str]:
    """Those that go now; of what stays against the rule the listener is told why."""
    going: list[str] = []
    for one in clusters_of(context, repository):
        if (one.name, one.system_identifier) != (manifest.cluster, manifest.system_identifier):
            continue
        for decision in judge(context, one, Policy(minimum=cluster.keep_minimum, window=window_of(cluster))):
            other = decision.backup
            if other.name != manifest.label or other.sequence >= manifest.sequence:
                continue
            if not decision.keep:
                going.append(other.backup)
            elif other.pin is None:
                context.listener(Warned(f"the older backup {other.backup} stays: {'; '.join(decision.reasons)}"))
    return going
