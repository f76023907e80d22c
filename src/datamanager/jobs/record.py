"""A run while it goes on: it says how it goes in its file, looks for whoever wants it ended, and writes down its end.

A backup must never fail or slow down because the database of history is away, so the run itself knows none. What it
costs: a file of some kilobytes a second, not synced, and one synced at the end. If that cannot be written the run goes
on, with a warning.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from datamanager.base.clock import Clock
from datamanager.base.errors import Cancelled, DataManagerError
from datamanager.base.events import Event, PhaseStarted, Progress, Touched, Warned
from datamanager.base.meter import Meter
from datamanager.base.pipeline import StopToken
from datamanager.base.redacting import redacted
from datamanager.base.units import format_duration
from datamanager.jobs.run_file import RunFile, RunFolder, request_of
from datamanager.state.model import Job, JobEvent, JobProgress, JobRequest, JobState

BEAT_SECONDS = 1.0
# Whoever cancels ends the run by force after this time, so that it is gone within ten seconds (R47).
FORCE_SECONDS = 8.0
# How a run of the service learns which job it is; the first is there for everything below it as well.
JOB_VARIABLE = "DATAMANAGER_JOB"
REQUEST_VARIABLE = "DATAMANAGER_JOB_REQUEST"
WITH_WARNINGS = 3

_MOST_EVENTS = 300
_MOST_RESULT_BYTES = 65_536
_MOST_TEXT = 2_000


@dataclass(frozen=True, slots=True)
class Assignment:
    """The queued job that a process was begun for."""

    id: str
    request: JobRequest
    queued: datetime


def assignment_environment(assignment: Assignment) -> dict[str, str]:
    """What tells a process which job it is. It holds no secret: arguments of commands never do."""
    values = {"id": assignment.id, "queued": assignment.queued.isoformat(), "request": asdict(assignment.request)}
    text = json.dumps(values, default=lambda value: value.isoformat() if isinstance(value, datetime) else str(value))
    return {JOB_VARIABLE: assignment.id, REQUEST_VARIABLE: text}


def take_assignment(environment: MutableMapping[str, str], kind: str) -> Assignment | None:
    """The job that this process was begun for; None for a command that someone typed.

    It is taken out of the environment: a command that this one begins, such as a hook, is a run of its own.
    """
    text = environment.pop(REQUEST_VARIABLE, "")
    if not text:
        return None
    try:
        values = json.loads(text)
        queued = datetime.fromisoformat(values["queued"]).astimezone(UTC)
        found = Assignment(str(values["id"]), request_of(values["request"]), queued)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return found if found.request.kind == kind else None


@dataclass(frozen=True, slots=True)
class Ending:
    """How a command ended.

    Args: summary - one line of what it did; error - why it failed; result - the fields of its last JSON line.
    """

    exit_code: int
    summary: str = ""
    error: DataManagerError | None = None
    result: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class RunRecord:
    """One run, from its beginning to its end. Thread-safe; its thread ends with ``finish``.

    Args:
        run: the job with state RUNNING, and who runs it.
        folder: where its file goes; None for a command that is no job and has none.
        stop: is stopped when someone cancels the run, or its time is over.
        mask: takes known secrets out of a text.
    """

    def __init__(
        self, run: RunFile, folder: RunFolder | None, clock: Clock, stop: StopToken, mask: Callable[[str], str]
    ) -> None:
        self._run = replace(run, job=_masked(run.job, mask))
        self._folder = folder
        self._clock = clock
        self._stop = stop
        self._mask = mask
        self._meter = Meter(clock.elapsed)
        self._began = clock.elapsed()
        self._phase = ""
        self._latest: Progress | None = None
        self._most_bytes = 0
        self._events: list[JobEvent] = []
        self._cancelled_by = ""
        self._over_limit = False
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def id(self) -> str:
        return self._run.job.id

    def begin(self, log: str) -> None:
        """Write the file, and keep it true from now on. Args: log - the name of the run's log. Raises: OSError."""
        self._run = replace(self._run, job=replace(self._run.job, log=log))
        if self._folder is None:
            return
        folder = self._folder
        try:
            folder.make()
            folder.write(self._now(), durable=False)
        except OSError:
            self._folder = None
            raise
        self._look(folder)
        self._thread = threading.Thread(target=self._beat, args=(folder,), name="run record", daemon=True)
        self._thread.start()

    def event(self, event: Event) -> None:
        """Take note of how it goes."""
        with self._lock:
            match event:
                case PhaseStarted(phase):
                    if phase != self._phase:
                        self._phase, self._latest = phase, None
                        self._meter.restart()
                        self._note("phase", phase)
                case Progress():
                    self._latest = event
                    self._most_bytes = max(self._most_bytes, event.done_bytes)
                case Warned(message):
                    self._note("warning", message)
                case Touched(text):
                    self._note("touched", text)

    def finish(self, ending: Ending) -> tuple[Job, bool]:
        """Write down the end, durably.

        Returns: the job as it ended, and False when a run that has a file could not write it.
        """
        self._done.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            if ending.error is not None:
                self._note("error", ending.error.message)
            job = self._ended(ending)
            events = tuple(self._events)
        if self._folder is None:
            return job, True
        run = replace(self._run, job=job, events=events)
        # A full volume takes what fits into the room that the file has already: how it ended, if nothing more.
        brief = replace(run, job=replace(job, warnings=(), result={}), events=())
        for told in (run, replace(run, events=()), brief):
            with contextlib.suppress(OSError):
                self._folder.write(told, durable=True)
                return job, True
        return job, False

    def _beat(self, folder: RunFolder) -> None:
        while not self._done.wait(BEAT_SECONDS):
            self._look(folder)
            # A full disk, or a reader that holds the file on Windows: the next beat may get through.
            try:
                folder.write(self._now(), durable=False)
            except OSError:
                continue

    def _look(self, folder: RunFolder) -> None:
        """Whether someone wants it ended, or its time is over."""
        who = folder.who_cancelled(self.id)
        limit = self._run.job.request.limit_seconds
        if who is not None and not self._stop.stopping:
            self._cancelled_by = who
            self._stop.stop(f"run command: cancelled by {who}")
        elif limit is not None and self._clock.elapsed() - self._began > limit and not self._stop.stopping:
            self._over_limit = True
            self._stop.stop(f"run command: it was not done within its time limit of {format_duration(limit)}")

    def _now(self) -> RunFile:
        with self._lock:
            job = replace(self._run.job, heartbeat=self._clock.now(), progress=self._progress())
            return replace(self._run, job=job, events=tuple(self._events))

    def _progress(self) -> JobProgress:
        if self._latest is None:
            return JobProgress(self._phase)
        reading = self._meter.read(self._latest)
        return JobProgress(
            self._phase,
            reading.done_bytes,
            reading.total_bytes,
            None if reading.percent is None else min(reading.percent / 100, 1.0),
            reading.bytes_per_second,
            reading.seconds_left,
        )

    def _note(self, kind: str, text: str) -> None:
        if len(self._events) < _MOST_EVENTS:
            self._events.append(JobEvent(self._clock.now(), kind, self._mask(text)[:_MOST_TEXT]))

    def _ended(self, ending: Ending) -> Job:
        """The job as it ended."""
        now = self._clock.now()
        job = replace(
            self._run.job,
            ended=now,
            heartbeat=now,
            progress=JobProgress("", self._most_bytes),
            exit_code=ending.exit_code,
            warnings=tuple(self._mask(one) for one in ending.warnings),
            result=_result(ending.result, self._mask),
        )
        error = ending.error
        if error is None:
            good = JobState.WARNED if ending.exit_code == WITH_WARNINGS else JobState.DONE
            return replace(job, state=good, summary=self._mask(sentence(ending.summary)))
        if isinstance(error, Cancelled) and self._over_limit:
            return over_limit(job, self._run.effect)
        if isinstance(error, Cancelled):
            return cancelled(job, self._cancelled_by or self._who_stopped(), self._run.effect)
        return replace(
            job,
            state=JobState.FAILED,
            summary=f"It failed: {self._mask(sentence(error.message))}",
            cause=self._mask(sentence(error.message)),
            effect=self._run.effect,
            next_step=self._mask(sentence(error.hint or _NEXT_STEP)),
        )

    def _who_stopped(self) -> str:
        """Ctrl-C was pressed by whoever runs it; other signals are named."""
        reason = self._stop.reason
        for name in ("SIGTERM", "SIGHUP"):
            if reason.endswith(name):
                return f"a request to the process to end ({name})"
        return self._run.job.request.who or "someone"


_NEXT_STEP = "Read the details in this log, and run it again when that is mended"


def cancelled(job: Job, who: str, effect: str, *, by_force: bool = False) -> Job:
    """The job as someone's wish ended it (R47)."""
    forced = " It did not end by itself in time and was ended by force." if by_force else ""
    return replace(
        job,
        state=JobState.CANCELLED,
        cancelled_by=who,
        summary=f"Cancelled by {who}.{forced}",
        cause=f"{who[:1].upper()}{who[1:]} cancelled it.",
        effect=effect,
        next_step="Run it again when ready.",
    )


def over_limit(job: Job, effect: str) -> Job:
    """The job as its time limit ended it."""
    limit = format_duration(job.request.limit_seconds or 0.0)
    return replace(
        job,
        state=JobState.FAILED,
        summary=f"It failed: it was not done within its time limit of {limit}.",
        cause=f"It was not done within its time limit of {limit}, and was ended.",
        effect=effect,
        next_step="Look at the details for what took so long; give its schedule a longer limit if that is normal.",
    )


def killed(job: Job, effect: str) -> Job:
    """The job of a process that went without a word; its last sign of life is the end."""
    return replace(
        job,
        state=JobState.FAILED,
        ended=job.heartbeat or job.started or job.queued,
        summary="It failed: the run ended without a word.",
        cause="The run ended without a word: it was killed, or the computer stopped.",
        effect=effect,
        next_step="Run it again; if the computer was not stopped, look in the system's log for who killed it.",
    )


def sentence(text: str) -> str:
    """The first line as a sentence: ``copy file: no room`` becomes ``Copy file: no room.``"""
    line = text.strip().split("\n", 1)[0].strip()
    if line and line[-1] not in ".!?":
        line += "."
    return line[:1].upper() + line[1:]


def _masked(job: Job, mask: Callable[[str], str]) -> Job:
    arguments = tuple(mask(redacted(one)) for one in job.request.arguments)
    return replace(job, request=replace(job.request, arguments=arguments, subject=mask(redacted(job.request.subject))))


def _result(values: Mapping[str, Any], mask: Callable[[str], str]) -> dict[str, Any]:
    """The fields of a result without secrets; lists that would make the file large are left out."""
    found = {name: _clean(value, mask) for name, value in values.items()}
    if len(json.dumps(found, default=str)) > _MOST_RESULT_BYTES:
        found = {name: value for name, value in found.items() if not isinstance(value, list | dict)}
    return found


def _clean(value: Any, mask: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, Mapping):
        return {str(name): _clean(one, mask) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(one, mask) for one in value]
    return value
