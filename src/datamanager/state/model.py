"""What the state holds, as values; nothing here knows how it is stored.

Times are aware and in UTC; sizes are bytes. No field ever holds a secret.
"""

from __future__ import annotations

import enum
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any


class JobState(enum.StrEnum):
    """Where a job is; those from DONE on are final."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    WARNED = "done with warnings"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return self not in (JobState.QUEUED, JobState.RUNNING)

    @property
    def good(self) -> bool:
        return self in (JobState.DONE, JobState.WARNED)


class Trigger(enum.StrEnum):
    """What began a job."""

    PERSON = "person"  # someone typed the command
    SCHEDULE = "schedule"
    CATCH_UP = "catch-up"  # a missed run of a schedule
    PAGE = "page"
    API = "api"


def new_job_id(now: datetime) -> str:
    """An identifier that no other run has, as ``20261123T204512Z-3f9a1c``; they sort by time."""
    return f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


@dataclass(frozen=True, slots=True)
class JobProgress:
    """How far a running job is; None where it is unknown."""

    phase: str = ""
    done_bytes: int = 0
    total_bytes: int | None = None
    fraction: float | None = None  # 0 to 1
    bytes_per_second: float | None = None
    seconds_left: float | None = None


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A job that someone wants run: a command of this program, as it would be typed.

    Args:
        kind: the command's words, as ``backup run``.
        arguments: what follows the words.
        subject: what it is about, for people and for the rule that heavy jobs of one subject do not overlap: the name
            of the cluster, else of the repository, else empty.
        who: the account that asked for it.
        schedule, due: the schedule and the planned moment that it is for; a pair of them is queued once only.
        heavy: never beside another heavy job of the same subject.
        low_priority: gives way to everything else on the machine (caught-up runs, drills).
        limit_seconds: it is ended after this time.
    """

    kind: str
    arguments: tuple[str, ...] = ()
    subject: str = ""
    trigger: Trigger = Trigger.PERSON
    who: str = ""
    schedule: str | None = None
    due: datetime | None = None
    heavy: bool = False
    low_priority: bool = False
    limit_seconds: float | None = None

    def option(self, name: str) -> str | None:
        """What follows an option, as ``--repo``, among the arguments; None when it is not there."""
        for place, word in enumerate(self.arguments):
            if word == name and place + 1 < len(self.arguments):
                return self.arguments[place + 1]
            if word.startswith(f"{name}="):
                return word.partition("=")[2]
        return None


@dataclass(frozen=True, slots=True)
class Job:
    """One run, from its being asked for to its end.

    Args:
        id: sorts by time, as ``20261123T204512Z-3f9a1c``; given by ``new_job_id``.
        host, pid, pid_started: the process that runs it, told apart from a later one with the same number by when it
            began (seconds since the epoch).
        heartbeat: when that process last said that it lives.
        summary: one plain sentence, what happened.
        cause, effect, next_step: of a failure, one sentence each; else empty.
        result: the fields of the command's result line, as ``backup_id``.
        log: name of its log file in the folder of logs; empty when it left none.
        cancelled_by: who asked for its end.
    """

    id: str
    request: JobRequest
    state: JobState
    queued: datetime
    started: datetime | None = None
    ended: datetime | None = None
    host: str = ""
    pid: int | None = None
    pid_started: float | None = None
    heartbeat: datetime | None = None
    progress: JobProgress = JobProgress()
    exit_code: int | None = None
    summary: str = ""
    cause: str = ""
    effect: str = ""
    next_step: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    log: str = ""
    log_pinned: bool = False
    cancelled_by: str = ""


@dataclass(frozen=True, slots=True)
class JobEvent:
    """A moment of a job: ``kind`` is phase, warning, executed, touched (a table or file) or error."""

    time: datetime
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Schedule:
    """A command that runs by itself, with all of its parameters.

    Args:
        recurrence: as ``schedule.recurrence.Recurrence.to_json`` writes it, its zone included.
        request: what is queued each time; ``schedule``, ``due`` and ``trigger`` are set then.
        next_due: the next planned moment; None when there is none any more or it is disabled.
        last_due: the newest planned moment that was dealt with: queued, caught up or given up.
        caught_up: runs in a row that came late because nothing ran at the planned moment.
    """

    name: str
    recurrence: Mapping[str, Any]
    request: JobRequest
    enabled: bool
    created: datetime
    changed: datetime
    next_due: datetime | None = None
    last_due: datetime | None = None
    caught_up: int = 0


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Who did what; each entry's hash covers the one before.

    Args:
        number: 1, 2, 3… without a gap.
        who, origin: the account, and where it came from (``cli on HOST``, an address).
        action: as ``schedule changed``; ``target`` is what it was done to.
        before, after: of a changed setting; None where there is none.
        reason: why a recommendation was declined (R11).
        digest: SHA-256, 64 hexadecimal digits, of the canonical JSON of all other fields and the digest before.
    """

    number: int
    time: datetime
    who: str
    origin: str
    action: str
    target: str
    before: Any = None
    after: Any = None
    reason: str = ""
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Alert:
    """Something that people were told of, so that they are not told of it every minute.

    Args:
        key: what it is about, as ``failed:backup run:clinic``; one open alert a key.
        urgent: repeated hourly until acknowledged, on every channel.
        sent: when it was last told; None when not yet.
        ended: when it stopped being true.
    """

    key: str
    title: str
    text: str
    urgent: bool
    first_seen: datetime
    last_seen: datetime
    sent: datetime | None = None
    times_sent: int = 0
    acknowledged: datetime | None = None
    acknowledged_by: str = ""
    ended: datetime | None = None


@dataclass(frozen=True, slots=True)
class Proof:
    """A test restore of one backup.

    Args:
        passed: the backup came back, started, and everything in it could be read.
        seconds: from the first byte to the last check.
        restore_seconds: until the server answered.
        checks: what was looked at, as ``{"databases": 3, "tables": 214, "rows": 1203311, "amcheck": "passed"}``.
        finding: what was wrong; empty when it passed.
        source: name or address of the repository it was read from.
    """

    backup: str
    cluster: str
    system_identifier: str
    backup_time: datetime
    time: datetime
    passed: bool
    seconds: float
    restore_seconds: float
    checks: Mapping[str, Any] = field(default_factory=dict)
    finding: str = ""
    source: str = ""
    host: str = ""
    job: str = ""


@dataclass(frozen=True, slots=True)
class KnownCluster:
    """What was last seen of a cluster, for when its server or its repository cannot be asked.

    Args: newest_backup - the newest good one: id and its end; size_bytes - of the data.
    """

    name: str
    system_identifier: str = ""
    server_version: str = ""
    size_bytes: int | None = None
    databases: tuple[str, ...] = ()
    newest_backup: str = ""
    newest_backup_time: datetime | None = None
    repository: str = ""
    seen: datetime | None = None


@dataclass(frozen=True, slots=True)
class KnownRepository:
    """What was last seen of a repository."""

    name: str
    url: str
    repository_id: str = ""
    backups: int = 0
    stored_bytes: int | None = None
    free_bytes: int | None = None
    seen: datetime | None = None


@dataclass(frozen=True, slots=True)
class Activity:
    """Transactions that a cluster ended in one hour of the week (0 is Monday, 00:00 to 00:59 UTC), averaged."""

    cluster: str
    hour: int
    transactions: float
    samples: int
