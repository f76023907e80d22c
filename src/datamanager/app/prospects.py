"""What the next backup of a cluster will be: an increment, or everything read, and what would make it short."""

from __future__ import annotations

from dataclasses import dataclass

from datamanager.app.addresses import address_of
from datamanager.app.context import Context
from datamanager.app.opening import Unlocking, locate, opened
from datamanager.app.retained import manifests
from datamanager.app.server_settings import KEEP, KEEP_AT_LEAST_SECONDS, offer
from datamanager.base.errors import DataManagerError, NotFound
from datamanager.base.units import Lsn, format_duration
from datamanager.engine.backup.increment_plan import choose_parent, plan_backup
from datamanager.postgres.facts import ServerFacts
from datamanager.postgres.settings import alter, to_run
from datamanager.postgres.wal_summaries import FIRST_MAJOR, Summaries, read_summaries, unavailable_reason
from datamanager.repository.damaged import DamagedChunks
from datamanager.repository.manifest import Manifest
from datamanager.repository.repository import Repository


@dataclass(frozen=True)
class Prospect:
    """The next backup.

    Args:
        increment: whether it can be one; None when that depends on a repository that cannot be opened now.
        parent: the backup that it will be compared with.
        reason: why everything will be read, a lower-case clause; empty when not.
        remedy: a sentence with the one command, or what comes first; empty where nothing can be done.
    """

    increment: bool | None
    parent: str | None = None
    reason: str = ""
    remedy: str = ""


def next_backup(context: Context, name: str, facts: ServerFacts) -> Prospect:
    """Raises: NotFound, ConfigurationError, ServerUnreachable, Cancelled."""
    cluster = context.cluster(name)
    if facts.major < FIRST_MAJOR:
        return Prospect(False, reason=f"PostgreSQL {facts.major} cannot tell what changed (17 and newer can)")
    address = address_of(cluster)
    summaries = read_summaries(address, context.stop, context.executed)
    reason = unavailable_reason(summaries)
    if reason is not None:
        made = offer(context, name)
        return Prospect(False, reason=reason, remedy=made.remedy if made else summaries.remedy)
    short = _short_lived(summaries)
    if cluster.repository is None:
        return Prospect(None, reason="no repository is named for this cluster", remedy=short)
    try:
        with opened(context, locate(context, cluster.repository), Unlocking()) as repository:
            return _in_repository(context, repository, name, facts, short)
    except (DataManagerError, NotFound) as error:
        context.stop.check()
        return Prospect(None, reason=f"the repository cannot be opened now ({error.message})", remedy=short)


def _in_repository(context: Context, repository: Repository, name: str, facts: ServerFacts, short: str) -> Prospect:
    """The plan that the next backup would make, had it to begin now. Raises: StoreError, RepositoryError."""
    found = sorted(manifests(context, repository, repository.backup_ids()), key=lambda one: (one.sequence, one.backup))
    parent = choose_parent(found, facts)
    reach = None if parent is None else (parent.timeline, Lsn.parse(parent.start_lsn))
    summaries = read_summaries(address_of(context.cluster(name)), context.stop, context.executed, reach=reach)
    damaged = parent is not None and _damaged(repository, parent)
    plan = plan_backup(found, facts, summaries, damaged=damaged, full=False, now=context.clock.now())
    title = None if plan.parent is None else plan.parent.backup
    if plan.native:
        return Prospect(True, title, remedy=short)
    return Prospect(False, title, plan.reason, f"Run `datamanager backup run {name}`; the one after it can be short.")


def _damaged(repository: Repository, parent: Manifest) -> bool:
    packs = DamagedChunks.load(repository).packs
    return any(pack in packs for pack, _ in repository.contents(parent).packs)


def _short_lived(summaries: Summaries) -> str:
    """A word on summaries that go before a drive comes round again; empty when they stay long enough."""
    keep = summaries.keep_seconds
    if not keep or keep >= KEEP_AT_LEAST_SECONDS:
        return ""
    days, rest = divmod(keep, 86400)
    kept = f"{days} days" if days and not rest else format_duration(keep)
    longer = to_run([alter("wal_summary_keep_time", KEEP)])
    return (
        f"WAL summaries are kept for {kept} only; after a longer pause a backup reads everything. For longer: {longer}"
    )
