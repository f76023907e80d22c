"""What the verdict is made from: the backups, schedules, runs and test restores of each cluster, as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo

from datamanager.jobs.services_around import ServiceDown


@dataclass(frozen=True, slots=True)
class BackupFact:
    """A backup as the verdict sees it.

    Args: repository - the name of where it is; system_identifier - of its cluster, empty when it is not known.
    """

    backup: str
    started: datetime
    ended: datetime
    repository: str
    damaged: bool = False
    reads_everything: bool = False
    system_identifier: str = ""


@dataclass(frozen=True, slots=True)
class ScheduleFact:
    """An enabled schedule of backups.

    Args:
        planned: past moments, oldest first, at which a backup should have begun and by now have ended.
        rhythm: the longest time between two of its moments; None when there is only one.
        next_run: the first moment to come; None when there is none.
        caught_up: runs in a row that came late because nothing ran at the planned moment.
        run_elsewhere: something other than our planner runs it, as a timer of the system; its moments are dealt with.
    """

    name: str
    planned: Sequence[datetime] = ()
    rhythm: timedelta | None = None
    caught_up: int = 0
    run_elsewhere: bool = False
    next_run: datetime | None = None

    def goes_on(self, now: datetime) -> bool:
        """Whether it backs up again and again from now on, and not once, nor only from some later day on."""
        near = self.next_run is None or self.rhythm is None or self.next_run - now <= self.rhythm + timedelta(days=1)
        return self.rhythm is not None and near


@dataclass(frozen=True, slots=True)
class RunFact:
    """A run that failed. Args: schedule - empty when a person began it; cause - a sentence or a part of one."""

    job: str
    time: datetime
    cause: str
    schedule: str = ""


@dataclass(frozen=True, slots=True)
class ProofFact:
    """A test restore.

    Args: restore_seconds - until the server answered; None when it is not known; system_identifier - of the cluster
        that came back, empty when it is not known.
    """

    backup: str
    time: datetime
    passed: bool
    restore_seconds: float | None = None
    finding: str = ""
    job: str = ""
    system_identifier: str = ""


@dataclass(frozen=True, slots=True)
class WalFacts:
    """The archive of a cluster's WAL.

    Args:
        running: a receiver lives; connected - it receives.
        error: why there is no receiver, or no connection; empty when that is not known.
        ended: when the last receiver was heard of; None when none was.
        newest: when the newest byte came into the archive; behind - the server has written more, None when not known.
        slot_missing, slot_lost: the server has no slot of it, or gave it up.
        retained_bytes, limit_bytes: what the slot keeps on the server, and may; None when not known, or no limit.
        synchronous: commits wait for the receiver; waiting - so many do now, None when not known.
        continuous: it is known to go on from the newest backup without a gap.
        lost: it had come farther than what is there now; empty when not, else in words how far.
        gap_since: when the first WAL behind a gap came that is newer than the newest backup; None without one.
    """

    running: bool = False
    connected: bool = False
    error: str = ""
    ended: datetime | None = None
    newest: datetime | None = None
    behind: bool | None = None
    slot_missing: bool = False
    slot_lost: bool = False
    retained_bytes: int | None = None
    limit_bytes: int | None = None
    synchronous: bool = False
    waiting: int | None = None
    continuous: bool = False
    gap_since: datetime | None = None
    lost: str = ""


@dataclass(frozen=True, slots=True)
class LeftSlot:
    """A replication slot of a WAL archive that no receiver needs any more, or none for now.

    Args: wanted - the archive goes on, with another slot, to another backup location; retained_bytes - what the server
        keeps for it.
    """

    name: str
    retained_bytes: int
    wanted: bool = False


@dataclass(frozen=True, slots=True)
class RestoreFact:
    """A restore in place, or its undo, that was cut off, and that nobody is at.

    Args:
        owes_backup: the restored data are in force, and only their first backup is missing.
        error, command: why the service could not finish it, and what mends that; empty before it tried.
    """

    began: datetime
    owes_backup: bool = False
    error: str = ""
    command: str = ""


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """What is known of one cluster.

    Args:
        newest: the newest backup without damage, wherever it is.
        newest_damaged: the newest of all, when it holds damaged pages.
        unsure: why there may be newer backups than ``newest``; empty when every place was looked at.
        seen: when ``newest`` was looked at last, if not now.
        places: backup locations with a good backup of it.
        schedules: those that are enabled; None when the state cannot be read.
        has_disabled: the name of a schedule that is switched off; empty when there is none.
        running: a backup is being made.
        failed: the newest run of each schedule and of all, where it failed.
        test: the newest test restore, or that of the newest tested backup where it failed; ``passed_test``: the newest
            that passed.
        failed_test_run: a test restore that could not be done, newer than any other.
        declined: recommendations that were declined, with their reasons, by kind.
        wal: the archive of its WAL; None where nobody asked for one, and no commit waits for it.
        slots_left: those of its WAL archive that nobody reads.
        restore: one in place that was cut off.
    """

    name: str
    newest: BackupFact | None = None
    newest_damaged: BackupFact | None = None
    unsure: str = ""
    seen: datetime | None = None
    places: int = 0
    schedules: Sequence[ScheduleFact] | None = ()
    has_disabled: str = ""
    running: bool = False
    failed: Sequence[RunFact] = ()
    test: ProofFact | None = None
    passed_test: ProofFact | None = None
    failed_test_run: RunFact | None = None
    declined: Mapping[str, str] = field(default_factory=dict)
    wal: WalFacts | None = None
    slots_left: Sequence[LeftSlot] = ()
    restore: RestoreFact | None = None


@dataclass(frozen=True, slots=True)
class RepositoryFacts:
    """What is known of one backup location.

    Args:
        error: why it cannot be read now; empty when it can. seen - when it could last; None when never.
        rhythm: how often a schedule writes to it; None when none does.
        damaged: something stored there is known to be damaged.
    """

    name: str
    error: str = ""
    seen: datetime | None = None
    rhythm: timedelta | None = None
    damaged: bool = False


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that keeps us from knowing: the configuration or the state. Args: kind - which of the two."""

    kind: str
    sentence: str
    command: str


@dataclass(frozen=True, slots=True)
class Situation:
    """Everything that the verdict is made from.

    Args:
        clusters: None when the configuration cannot be read.
        forgotten_slots: replication slots that were made for clusters that are not configured any more, by cluster.
        planner_alive: our own planner runs; planner_died - one ran and is gone without a word.
        proof_limit: how old the newest test restore may be.
        zone: of days and hours in sentences; this computer's when None.
    """

    now: datetime
    clusters: Sequence[ClusterFacts] | None = ()
    repositories: Sequence[RepositoryFacts] = ()
    services_down: Sequence[ServiceDown] = ()
    forgotten_slots: Mapping[str, Sequence[str]] = field(default_factory=dict)
    troubles: Sequence[Trouble] = ()
    planner_alive: bool = False
    planner_died: datetime | None = None
    proof_limit: timedelta = timedelta(days=30)
    zone: tzinfo | None = None
