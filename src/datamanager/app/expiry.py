"""Expiring backups by policy: a plan to be shown, then marks. What the marks give back is prune's to take away."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta

from datamanager.app.audit import audited
from datamanager.app.context import Context
from datamanager.app.opening import Named, Unlocking, choose, opened
from datamanager.app.retained import Cluster, clusters_of, put_deleted
from datamanager.base.errors import Busy, NotFound
from datamanager.base.events import PhaseStarted
from datamanager.config.durations import check_duration, parse_duration
from datamanager.config.model import ClusterConfig
from datamanager.engine.retention import Decision, Policy, plan_expiry
from datamanager.repository.lease import Lease
from datamanager.repository.repository import Repository

LEASE = "expire"


@dataclass(frozen=True)
class Rules:
    """Retention as the command line gives it; None leaves a rule to the cluster's configuration, 0 switches it off."""

    last: int | None = None
    within: str | None = None
    hourly: int | None = None
    daily: int | None = None
    weekly: int | None = None
    monthly: int | None = None
    yearly: int | None = None
    minimum: int | None = None


def checked(rules: Rules) -> Rules:
    """The same rules. Raises: ValueError, when ``within`` is neither a length of time nor 0."""
    if rules.within is not None and rules.within.strip() != "0":
        check_duration(rules.within)
    return rules


def policy_of(cluster: ClusterConfig | None, rules: Rules) -> Policy:
    """The policy in force: the rules given, which were checked, else those of the configuration."""

    def either(given: int | None, name: str) -> int | None:
        configured: int | None = None if cluster is None else getattr(cluster, name)
        return configured if given is None else given

    within = rules.within if rules.within is not None or cluster is None else cluster.keep_within
    return Policy(
        either(rules.last, "keep_last"),
        parse_duration(within) if within and within.strip() != "0" else None,
        either(rules.hourly, "keep_hourly"),
        either(rules.daily, "keep_daily"),
        either(rules.weekly, "keep_weekly"),
        either(rules.monthly, "keep_monthly"),
        either(rules.yearly, "keep_yearly"),
        either(rules.minimum, "keep_minimum") or 1,
        window_of(cluster),
    )


def window_of(cluster: ClusterConfig | None) -> timedelta | None:
    """How far back the configuration promises every moment."""
    return parse_duration(cluster.wal_window) if cluster is not None and cluster.wal_window else None


@dataclass
class ExpiryPlan:
    """What would become of the backups of one cluster in one repository. Valid until its context ends.

    Args: decisions - oldest to newest; where a name had several clusters, one after the other.
    """

    repository: Named
    policy: Policy
    decisions: list[Decision]
    _opened: Repository
    _lease: Lease | None
    marked: list[str] = field(default_factory=list)

    @property
    def going(self) -> list[str]:
        return [one.backup.backup for one in self.decisions if not one.keep]

    def apply(self) -> None:
        """Mark what goes as deleted, oldest first; a backup that was pinned meanwhile stays.

        Raises: Busy (the lease was lost), StoreError; what is marked by then stays marked.
        """
        if self._lease is not None and self.going:
            check_lease(self._lease)
            self.marked = put_deleted(self._opened, self.going, "expired")


@contextlib.contextmanager
def planning(
    context: Context,
    cluster: str,
    repository: str | None,
    rules: Rules,
    unlocking: Unlocking,
    *,
    dry_run: bool = False,
) -> Iterator[ExpiryPlan]:
    """Judge the backups of ``cluster``; nothing changes before ``apply``, which a dry run leaves without effect.

    Raises: NotFound (neither configured nor in the repository), Busy (another one runs), UsageError; as ``opened``.
    """
    configured = context.config().clusters.get(cluster)
    policy = policy_of(configured, rules)
    named = choose(context, repository, cluster)
    with opened(context, named, unlocking) as one, _leased(context, one, dry_run=dry_run) as lease:
        context.listener(PhaseStarted("reading what is stored"))
        found = [each for each in clusters_of(context, one) if each.name == cluster]
        if not found and configured is None:
            raise NotFound(
                f"find cluster: {named.title} holds no backup of {cluster!r}, and no cluster of that name is known",
                hint="See `datamanager backup list` for the clusters that have backups.",
            )
        decisions = [decision for each in found for decision in judge(context, each, policy)]
        plan = ExpiryPlan(named, policy, decisions, one, lease)
        try:
            yield plan
        finally:
            if plan.marked:
                audited(context, "backups expired", f"{cluster} in {named.title}", after={"deleted": plan.marked})


def judge(context: Context, cluster: Cluster, policy: Policy) -> list[Decision]:
    """The decisions for one cluster now, with days as they begin on this computer."""
    return plan_expiry(cluster.backups, policy, context.clock.now(), None, cluster.proven)


@contextlib.contextmanager
def _leased(context: Context, repository: Repository, *, dry_run: bool) -> Iterator[Lease | None]:
    """Nobody else expires here meanwhile; a dry run only looks. Raises: Busy, StoreError, Cancelled."""
    if dry_run:
        yield None
        return
    with lease_for(context, repository) as lease:
        yield lease


@contextlib.contextmanager
def lease_for(context: Context, repository: Repository, *, patience_seconds: float = 0.0) -> Iterator[Lease]:
    """One writer of deleted marks at a time; waits for another one so long. Raises: Busy, StoreError, Cancelled."""
    until = context.clock.elapsed() + patience_seconds
    lease = repository.take_lease(LEASE, stop=context.stop)
    try:
        while True:
            try:
                repository.require_alone(lease)
                break
            except Busy:
                if context.clock.elapsed() >= until:
                    raise
                # Two that wait for each other must not hold what they wait for.
                lease.release()
                context.stop.wait(random.uniform(0.5, 1.5))
                context.stop.check()
                lease = repository.take_lease(LEASE, stop=context.stop)
        yield lease
    finally:
        lease.release()


def check_lease(lease: Lease) -> None:
    """Raises: Busy, when others may no longer know of us; StoreError."""
    try:
        lease.check()
    except Busy as error:
        raise Busy("delete backups: the lease on the repository was lost", hint="Run the command again.") from error
