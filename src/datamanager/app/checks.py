"""Whether a repository and a cluster are fit for the next backup, and whether what is stored is what was written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from datamanager.app import clusters
from datamanager.app.addresses import address_of, local_directory
from datamanager.app.backups import check_repository_outside, processors
from datamanager.app.context import Context
from datamanager.app.opening import Unlocking, choose, locate, opened
from datamanager.app.prospects import Prospect, next_backup
from datamanager.app.repository_files import refresh_files
from datamanager.base.errors import DataManagerError, NotFound
from datamanager.base.events import PhaseStarted
from datamanager.base.units import format_duration
from datamanager.engine.backup.space import shares_volume
from datamanager.engine.verify.run import VerifyOptions, VerifyResult, verify_repository
from datamanager.postgres.facts import ServerFacts
from datamanager.postgres.preflight import Finding, Severity, check_backup_source
from datamanager.postgres.programs import Programs, find_programs
from datamanager.repository.lease import LeaseRecord
from datamanager.repository.repository import Repository
from datamanager.storage.base import Space

Depth = Literal["present", "sample", "rolling", "full"]

# Leases age by the store's clock alone, so a skew is harmless to them; people and schedules read the wall clock.
SKEW_SECONDS = 60.0


@dataclass(frozen=True)
class RepositoryCheck:
    """What was found.

    Args:
        verified: keys, lists and second copies.
        skew_seconds: the store's clock minus this computer's; None where nothing can be written.
        at_work: everybody else who holds a lease.
    """

    title: str
    url: str
    encrypted: bool
    backups: int
    space: Space | None
    skew_seconds: float | None
    at_work: list[LeaseRecord]
    verified: VerifyResult
    warnings: list[str]


def check_repository(context: Context, named: str | None, unlocking: Unlocking) -> RepositoryCheck:
    """Check what a backup will need, without reading the data itself.

    Raises: as ``opened``.
    """
    found = choose(context, named, None)
    with opened(context, found, unlocking) as repository:
        warnings: list[str] = []
        skew, at_work = _leases(repository, warnings)
        refresh_files(context, repository)
        options = VerifyOptions(depth="present", threads=processors())
        verified = verify_repository(repository, options, context.stop, context.listener)
        space = repository.storage.space()
        if space is not None and space.free < space.total // 20:
            warnings.append("less than 5 % of the repository's volume is free")
        if not repository.storage.capabilities.power_safe:
            warnings.append("this drive or share may lose data in a power cut; unmount it before unplugging")
        encrypted = not found.config.open
        count = len(repository.backup_ids())
        return RepositoryCheck(
            found.title, repository.storage.url, encrypted, count, space, skew, at_work, verified, warnings
        )


def _leases(repository: Repository, warnings: list[str]) -> tuple[float | None, list[LeaseRecord]]:
    """Write something, compare clocks by it, and see who else is at work. Raises: StoreError."""
    lease = repository.take_lease("check")
    try:
        prefix = f"leases/{lease.record.writer}-"
        times = [one.mtime for one in repository.storage.list("leases/") if one.key.startswith(prefix)]
        at_work = repository.live_leases(lease)
        skew = max(times) - repository.clock.now().timestamp() if times else None
    finally:
        lease.release()
    if skew is not None and abs(skew) > SKEW_SECONDS:
        side = "ahead of" if skew > 0 else "behind"
        warnings.append(f"the clock of the store is {format_duration(abs(skew))} {side} this computer's")
    return skew, at_work


@dataclass(frozen=True)
class Verification:
    """What is to be read.

    Args:
        sample_percent: for ``sample``; rolling_days: for ``rolling``; backups: as people name them, empty for all.
    """

    depth: Depth = "full"
    sample_percent: float = 10.0
    rolling_days: int = 30
    backups: tuple[str, ...] = ()


def verify(context: Context, named: str | None, wanted: Verification, unlocking: Unlocking) -> tuple[str, VerifyResult]:
    """Read what is stored; returns the repository's title too. Raises: as ``opened``; NotFound, UsageError."""
    found = choose(context, named, None)
    with opened(context, found, unlocking) as repository:
        refresh_files(context, repository)
        backups = [repository.find(one).backup for one in wanted.backups] or None
        options = VerifyOptions(wanted.depth, wanted.sample_percent, wanted.rolling_days, backups, processors())
        return found.title, verify_repository(repository, options, context.stop, context.listener)


@dataclass(frozen=True)
class ClusterCheck:
    """What was found; blockers stand first, and with one ``facts`` and ``next_backup`` are None.

    Args: programs - None where this host has none of that major.
    """

    facts: ServerFacts | None
    findings: list[Finding]
    programs: Programs | None
    repository: str | None
    next_backup: Prospect | None = None

    @property
    def blockers(self) -> list[Finding]:
        return [one for one in self.findings if one.severity is Severity.BLOCKER]


def check_cluster(context: Context, name: str) -> ClusterCheck:
    """Look at a cluster as the next backup will.

    Raises: NotFound, ConfigurationError, ServerUnreachable, and what keeps every session out.
    """
    cluster = context.cluster(name)
    address = address_of(cluster)
    context.listener(PhaseStarted("checking the server"))
    findings = check_backup_source(address, context.stop, context.executed)
    if any(one.severity is Severity.BLOCKER for one in findings):
        return ClusterCheck(None, findings, None, cluster.repository)
    facts = clusters.look(context, cluster)
    data_directory = local_directory(address, facts.data_directory)
    clusters.check_home_outside(context.home, data_directory)
    if cluster.repository is not None:
        repository = locate(context, cluster.repository)
        check_repository_outside(repository.config.url, data_directory)
        findings += _same_volume(context, cluster.repository, str(data_directory or ""))
    try:
        programs = find_programs(facts.major, cluster.install_path)
    except DataManagerError:
        programs = None
    return ClusterCheck(facts, findings, programs, cluster.repository, next_backup(context, name, facts))


def _same_volume(context: Context, repository: str, data_directory: str) -> list[Finding]:
    """An advice, when a broken disk would take the backups with it."""
    try:
        with opened(context, locate(context, repository), Unlocking()) as one:
            shared = shares_volume(one.storage.space(), data_directory)
    except (DataManagerError, NotFound):
        context.stop.check()
        return []
    if not shared:
        return []
    sentence = "The repository lies on the same volume as the data: one broken disk would take both."
    return [Finding("same_volume", Severity.WARNING, sentence, "Make a repository on another drive.")]
