"""Runs: asked for, running and ended."""

from __future__ import annotations

import builtins
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Insert, Select, and_, delete, func, insert, not_, or_, select, update

from datamanager.base.clock import Clock
from datamanager.base.errors import NotFound, UsageError
from datamanager.state.columns import storable
from datamanager.state.connections import Database
from datamanager.state.model import Job, JobEvent, JobRequest, JobState, new_job_id
from datamanager.state.rows import job_of, row_of, row_of_job, value_of
from datamanager.state.tables import job_events, jobs

# The lock of whoever claims a job, so that two heavy jobs of one subject are never claimed at once.
_CLAIMING = 1
_FINAL = tuple(str(one) for one in JobState if one.final)
_GOOD = tuple(str(one) for one in JobState if one.good)
_BY_AGE = (jobs.c.queued.desc(), jobs.c.id.desc())


class JobStore:
    """Thread-safe; every method raises StateUnavailable (retryable) and StateError."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def add(self, request: JobRequest, *, id: str | None = None) -> Job | None:
        """Queue a job. Returns: None when a job was there already for the same moment of the same schedule."""
        now = self._clock.now()
        job = Job(id or new_job_id(now), request, JobState.QUEUED, queued=now)
        with self._database.writing("queue job") as connection:
            statement = self._database.insert(jobs).values(**row_of_job(job))
            if request.schedule is not None and request.due is not None:
                statement = statement.on_conflict_do_nothing(index_elements=["schedule", "due"])
            return job if _counted(connection, statement) else None

    def save(self, job: Job, events: Sequence[JobEvent] | None = None) -> None:
        """Write the job as it is now, and, if given, all that happened in it; doing it again changes nothing.

        What others decided meanwhile stays: a pinned log, who asked for its end, and that it has ended. A planned
        moment stays with the job that has it already.
        """
        row = row_of_job(job)
        with self._database.writing("save job") as connection:
            if _is_taken(connection, job):
                row["due"] = None
            statement = self._database.insert(jobs).values(**row)
            new = statement.excluded
            values: dict[str, Any] = {name: new[name] for name in row if name not in ("id", "log_pinned")}
            values["log_pinned"] = or_(jobs.c.log_pinned, new.log_pinned)
            values["cancelled_by"] = func.coalesce(func.nullif(new.cancelled_by, ""), jobs.c.cancelled_by)
            stays = or_(jobs.c.state.not_in(_FINAL), new.state.in_(_FINAL))
            statement = statement.on_conflict_do_update(index_elements=["id"], set_=values, where=stays)
            if _counted(connection, statement) and events is not None:
                connection.execute(delete(job_events).where(job_events.c.job == job.id))
                _insert_events(connection, job.id, events)

    def get(self, id: str) -> Job:
        """The job of that id, or the only one whose id begins so. Raises: NotFound; UsageError, when several do."""
        beginning = storable(id)
        after = beginning + "\U0010ffff"
        query = select(jobs).where(jobs.c.id >= beginning, jobs.c.id < after).order_by(jobs.c.id).limit(2)
        found = self._found("find job", query)
        if not found:
            raise NotFound(f"find job: none is named {id!r}", hint="Run `datamanager job list` to see them.")
        if found[0].id != id and len(found) > 1:
            raise UsageError(f"find job: several begin with {id!r}", hint="Give more of its name.")
        return found[0]

    def list(
        self,
        *,
        kind: str | None = None,
        subject: str | None = None,
        schedule: str | None = None,
        states: Collection[JobState] = (),
        before: datetime | None = None,
        limit: int | None = 50,
    ) -> builtins.list[Job]:
        """Jobs that fit, newest first. Args: before - only those asked for before it; limit - None for all."""
        query = select(jobs).where(*_fitting(kind, subject, schedule, states, before))
        return self._found("list jobs", query.order_by(*_BY_AGE).limit(limit))

    def count(
        self,
        *,
        kind: str | None = None,
        subject: str | None = None,
        schedule: str | None = None,
        states: Collection[JobState] = (),
        before: datetime | None = None,
    ) -> int:
        """How many ``list`` would give without a limit."""
        query = select(func.count()).select_from(jobs).where(*_fitting(kind, subject, schedule, states, before))
        with self._database.reading("count jobs") as connection:
            return connection.execute(query).scalar_one()

    def claim(
        self, host: str, *, now: datetime, busy_subjects: Collection[str] = (), id: str | None = None
    ) -> Job | None:
        """Take the next queued job, or the one of that ``id``, and call it running; nobody else gets it.

        That is the oldest one, those of low priority last; a heavy one is passed over while a heavy one of the same
        subject runs, or its subject is in ``busy_subjects``.
        """
        running = jobs.alias()
        busy = or_(
            jobs.c.subject.in_([storable(one) for one in busy_subjects]),
            select(running.c.id)
            .where(running.c.state == JobState.RUNNING, running.c.heavy, running.c.subject == jobs.c.subject)
            .exists(),
        )
        wanted = [] if id is None else [jobs.c.id == id]
        query = (
            select(jobs)
            .where(jobs.c.state == JobState.QUEUED, not_(and_(jobs.c.heavy, busy)), *wanted)
            .order_by(jobs.c.low_priority, jobs.c.queued, jobs.c.id)
            .limit(1)
        )
        with self._database.writing("claim job") as connection:
            self._database.lock(connection, _CLAIMING)
            row = connection.execute(query).mappings().first()
            if row is None:
                return None
            job = replace(job_of(row), state=JobState.RUNNING, host=host, started=now, heartbeat=now)
            claimed = (
                update(jobs)
                .where(jobs.c.id == job.id, jobs.c.state == JobState.QUEUED)
                .values(state=str(job.state), host=job.host, started=now, heartbeat=now)
            )
            return job if connection.execute(claimed).rowcount else None

    def request_cancel(self, id: str, who: str) -> Job:
        """Note who wants the job ended; a queued one is cancelled by that. One that has ended stays as it is.

        Raises: NotFound.
        """
        with self._database.writing("cancel job") as connection:
            # The first to ask is the one who is named.
            connection.execute(
                update(jobs)
                .where(jobs.c.id == id, jobs.c.state.not_in(_FINAL), jobs.c.cancelled_by == "")
                .values(cancelled_by=who)
            )
            connection.execute(
                update(jobs)
                .where(jobs.c.id == id, jobs.c.state == JobState.QUEUED)
                .values(
                    state=str(JobState.CANCELLED),
                    ended=self._clock.now(),
                    summary=f"Cancelled by {who} before it began.",
                )
            )
            row = connection.execute(select(jobs).where(jobs.c.id == id)).mappings().first()
        if row is None:
            raise NotFound(f"cancel job: none is named {id!r}", hint="Run `datamanager job list` to see them.")
        return job_of(row)

    def queued(self) -> builtins.list[Job]:
        """Jobs that wait, in the order in which they are claimed."""
        query = select(jobs).where(jobs.c.state == JobState.QUEUED)
        return self._found("list jobs", query.order_by(jobs.c.low_priority, jobs.c.queued, jobs.c.id))

    def running(self, host: str | None = None) -> builtins.list[Job]:
        """Jobs that were claimed or begun and have not ended, oldest first."""
        query = select(jobs).where(jobs.c.state == JobState.RUNNING).order_by(jobs.c.queued, jobs.c.id)
        return self._found("list jobs", query if host is None else query.where(jobs.c.host == host))

    def add_events(self, id: str, events: Iterable[JobEvent]) -> None:
        """Append to what happened in a job. Raises: NotFound."""
        with self._database.writing("save job") as connection:
            if connection.execute(select(jobs.c.id).where(jobs.c.id == id)).first() is None:
                raise NotFound(f"save job: none is named {id!r}")
            _insert_events(connection, id, list(events))

    def events(self, id: str) -> builtins.list[JobEvent]:
        """What happened in a job, in order; empty for a job that is not there."""
        query = select(job_events).where(job_events.c.job == id).order_by(job_events.c.number)
        with self._database.reading("read job") as connection:
            return [value_of(JobEvent, row) for row in connection.execute(query).mappings()]

    def last(self, *, kind: str, subject: str, states: Collection[JobState] = ()) -> Job | None:
        """The newest job of that kind and subject, in one of ``states`` where given."""
        found = self.list(kind=kind, subject=subject, states=states, limit=1)
        return found[0] if found else None

    def durations(self, kind: str, subject: str, limit: int = 10) -> builtins.list[tuple[float, int]]:
        """Seconds and bytes that the last good runs took, newest first; 0 bytes where the run told of none."""
        found = self.list(kind=kind, subject=subject, states=[one for one in JobState if one.good], limit=limit)
        return [
            ((job.ended - job.started).total_seconds(), job.progress.done_bytes)
            for job in found
            if job.started is not None and job.ended is not None
        ]

    def set_pinned(self, id: str, pinned: bool) -> None:
        """Keep the log of a job for ever, or no longer. Raises: NotFound."""
        self._change("pin log", id, log_pinned=pinned)

    def log_names(self, kind: str, subject: str) -> builtins.list[tuple[str, str, bool]]:
        """Of every job with a log: id, name of the log, whether it is pinned; newest first."""
        query = select(jobs.c.id, jobs.c.log, jobs.c.log_pinned).where(
            jobs.c.kind == kind, jobs.c.subject == subject, jobs.c.log != ""
        )
        with self._database.reading("list logs") as connection:
            return [(row.id, row.log, row.log_pinned) for row in connection.execute(query.order_by(*_BY_AGE))]

    def forget_log(self, id: str) -> None:
        """Note that a job's log is gone. Raises: NotFound."""
        self._change("forget log", id, log="")

    def drop_before(self, time: datetime) -> int:
        """Remove what ended and was asked for before ``time``, with its events; returns how many jobs."""
        old = delete(jobs).where(jobs.c.queued < time, jobs.c.state.in_(_FINAL))
        with self._database.writing("drop old jobs") as connection:
            return connection.execute(old).rowcount

    def _change(self, doing: str, id: str, **values: Any) -> None:
        with self._database.writing(doing) as connection:
            changed = connection.execute(update(jobs).where(jobs.c.id == id).values(**values)).rowcount
        if not changed:
            raise NotFound(f"{doing}: no job is named {id!r}", hint="Run `datamanager job list` to see them.")

    def _found(self, doing: str, query: Select[Any]) -> builtins.list[Job]:
        with self._database.reading(doing) as connection:
            return [job_of(row) for row in connection.execute(query).mappings()]


def _fitting(
    kind: str | None,
    subject: str | None,
    schedule: str | None,
    states: Collection[JobState],
    before: datetime | None,
) -> builtins.list[ColumnElement[bool]]:
    wanted: builtins.list[ColumnElement[bool]] = []
    for column, value in ((jobs.c.kind, kind), (jobs.c.subject, subject), (jobs.c.schedule, schedule)):
        if value is not None:
            wanted.append(column == value)
    if states:
        wanted.append(jobs.c.state.in_([str(one) for one in states]))
    if before is not None:
        wanted.append(jobs.c.queued < before)
    return wanted


def _is_taken(connection: Connection, job: Job) -> bool:
    """Whether another job has the same moment of the same schedule; a run that took place is recorded all the same."""
    request = job.request
    if request.schedule is None or request.due is None:
        return False
    same = select(jobs.c.id).where(jobs.c.schedule == request.schedule, jobs.c.due == request.due, jobs.c.id != job.id)
    return connection.execute(same).first() is not None


def _counted(connection: Connection, statement: Insert) -> int:
    """How many rows an INSERT with ON CONFLICT wrote. SQLite knows RETURNING from 3.35 on only."""
    return connection.execute(statement, execution_options={"preserve_rowcount": True}).rowcount


def _insert_events(connection: Connection, id: str, events: Sequence[JobEvent]) -> None:
    if events:
        connection.execute(insert(job_events), [{"job": id, **row_of(one)} for one in events])
