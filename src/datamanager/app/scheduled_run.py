"""Running a schedule's job now, in the foreground: the same job, the same history (R82).

queue, claim ─► child ``datamanager WORDS…`` that is told which job it is ─► its own record ─► taken into the state.
A service that takes the job first runs it; then it is waited for.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from datamanager.app import audit
from datamanager.app.context import Context
from datamanager.app.schedules import command_of, note_called
from datamanager.app.service import program
from datamanager.base.errors import Cancelled, ConfigurationError
from datamanager.base.events import Event, Executed, Listener, PhaseStarted, Progress, Warned
from datamanager.config.home import VARIABLE
from datamanager.jobs.intake import take_in
from datamanager.jobs.record import FORCE_SECONDS, WITH_WARNINGS, Assignment, assignment_environment, sentence
from datamanager.jobs.run_file import RunFolder
from datamanager.schedule.planner import Run, due_now
from datamanager.state.model import Job, JobRequest, JobState, Schedule, Trigger
from datamanager.system.processes import end_tree, group_options, identify

if TYPE_CHECKING:
    from datamanager.state.database import State

_LOOK_SECONDS = 0.2
_QUEUE_SECONDS = 1.0


@dataclass(frozen=True)
class Ran:
    """A run that ended.

    Args:
        job: as it ended.
        here: False when a service ran it.
        result: its last line, a result or an error; empty when a service ran it.
    """

    job: Job
    here: bool
    result: dict[str, Any]


def run(context: Context, name: str, *, if_due: bool, say: Callable[[str], None]) -> Ran | None:
    """Run the job of a schedule and wait for its end; what it tells meanwhile is told to our own listener.

    Args: if_due - only when a planned moment has come that nobody dealt with.
    Returns: None when nothing is due.
    Raises: NotFound, Cancelled, ConfigurationError (the child cannot be begun, or the schedule not be understood),
        StateError.
    """
    with context.state() as state:
        schedule = state.schedules.get(name)
        note_called(state, name, context.clock.now())
        queued = _queue_if_due(state, schedule, context.clock.now()) if if_due else state.jobs.add(_request(schedule))
    if queued is None:
        return None
    if not _claim(context, queued, say):
        return Ran(_wait_for(context, queued.id), False, {})
    return _run_here(context, queued)


def _request(schedule: Schedule) -> JobRequest:
    return replace(schedule.request, schedule=schedule.name, due=None, trigger=Trigger.PERSON, who=audit.who())


def _queue_if_due(state: State, schedule: Schedule, now: datetime) -> Job | None:
    """Queued before it is noted as dealt with: cut in between, the next call is refused as queued already."""
    decision = due_now(schedule, now)
    if decision is None:
        return None
    queued = state.jobs.add(decision.request) if isinstance(decision, Run) else None
    state.schedules.dealt_with(schedule.name, decision.last_due, decision.next_due, decision.caught_up, of=schedule)
    return queued


def _claim(context: Context, queued: Job, say: Callable[[str], None]) -> bool:
    """Whether it is ours to run; a service may have it. Waits while another heavy job of its subject runs.

    Raises: Cancelled, StateError.
    """
    told = False
    while True:
        with context.state() as state:
            take_in(context.home, state, context.clock)
            if state.jobs.claim(socket.gethostname(), now=context.clock.now(), id=queued.id) is not None:
                return True
            if state.jobs.get(queued.id).state is not JobState.QUEUED:
                return False
        if not told:
            say(f"Waiting until another job of {queued.request.subject} has ended …")
            told = True
        if context.stop.wait(_QUEUE_SECONDS):
            with context.state() as state:
                state.jobs.request_cancel(queued.id, audit.who())
            context.stop.check()


def _wait_for(context: Context, id: str) -> Job:
    """Raises: Cancelled, StateError."""
    while True:
        with context.state() as state:
            take_in(context.home, state, context.clock)
            job = state.jobs.get(id)
        if job.state.final:
            return job
        if context.stop.wait(_QUEUE_SECONDS):
            raise Cancelled(
                f"wait for job {id}: stopped",
                hint=f"It goes on in the service; `datamanager job cancel {id}` ends it.",
            )


def _run_here(context: Context, queued: Job) -> Ran:
    request = queued.request
    words = (*program(), *request.kind.split(), *request.arguments, "--json")
    context.executed(f"datamanager {command_of(request)}")
    environment = {**os.environ, **assignment_environment(Assignment(queued.id, request, queued.queued))}
    if context.home.config == context.home.state:
        environment[VARIABLE] = str(context.home.config)
    try:
        child = subprocess.Popen(
            words,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            **group_options(),
        )
    except OSError as error:
        cause = f"it could not be begun: {(error.strerror or 'not possible').lower()}"
        _ended(context, queued, 1, cause)
        raise ConfigurationError(f"run schedule: {words[0]}: {cause}", hint="Install the program again.") from error
    reader = _Reader(child, context.listener)
    try:
        _note_child(context, queued.id, child.pid)
        _watch(context, queued, child)
    finally:
        if child.poll() is None:
            end_tree(child.pid, FORCE_SECONDS)
        code = child.wait()
        reader.end()
    return Ran(_ended(context, queued, code, f"the command ended with exit code {code}"), True, reader.result)


def _note_child(context: Context, id: str, pid: int) -> None:
    """So that everybody can tell whether it lives."""
    identity = identify(pid)
    with context.state() as state:
        job = state.jobs.get(id)
        state.jobs.save(replace(job, pid=pid, pid_started=None if identity is None else identity.started))


class _Reader:
    """Hands on what a child tells in JSON lines; the last one, which tells how it ended, stays in ``result``."""

    def __init__(self, child: subprocess.Popen[bytes], listener: Listener) -> None:
        self.result: dict[str, Any] = {}
        self._listener = listener
        self._thread = threading.Thread(target=self._read, args=(child,), name="read the job's lines")
        self._thread.start()

    def _read(self, child: subprocess.Popen[bytes]) -> None:
        if child.stdout is None:
            return
        with child.stdout as stream:
            for line in stream:
                try:
                    values = json.loads(line)
                except ValueError:
                    continue
                if isinstance(values, dict) and values.get("message_type") in ("result", "error"):
                    self.result = values
                elif isinstance(values, dict) and (event := _event(values)) is not None:
                    self._listener(event)

    def end(self) -> None:
        self._thread.join()


def _event(values: Mapping[str, Any]) -> Event | None:
    match values:
        case {"message_type": "phase", "phase": str(phase)}:
            return PhaseStarted(phase)
        case {"message_type": "progress", "done_bytes": int(done)}:
            percent = values.get("percent")
            return Progress(done, values.get("total_bytes"), None if percent is None else percent / 100)
        case {"message_type": "warning", "message": str(message)}:
            return Warned(message)
        case {"message_type": "executed", "text": str(text)}:
            return Executed(text)
    return None


def _watch(context: Context, job: Job, child: subprocess.Popen[bytes]) -> None:
    """Wait for the end. The run itself keeps its time limit and looks for who cancels it; here it is made to."""
    folder, limit = RunFolder(context.home.runs), job.request.limit_seconds
    began = context.clock.elapsed()
    asked: float | None = None
    while child.poll() is None:
        now = context.clock.elapsed()
        if limit is not None and now - began > limit + FORCE_SECONDS:
            folder.make()
            folder.note_limit(job.id)
            return
        if asked is not None and now - asked > FORCE_SECONDS:
            return
        # Once our own token has stopped it waits no more, so the child is waited for instead.
        if asked is not None:
            _pause(child)
        elif context.stop.wait(_LOOK_SECONDS):
            asked = now
            folder.make()
            folder.ask_to_cancel(job.id, audit.who())


def _pause(child: subprocess.Popen[bytes]) -> None:
    try:
        child.wait(_LOOK_SECONDS)
    except subprocess.TimeoutExpired:
        return


def _ended(context: Context, queued: Job, code: int, cause: str) -> Job:
    """The job as its own record tells it; a child that left none is recorded by its exit code."""
    with context.state() as state:
        if not RunFolder(context.home.runs).path(queued.id).exists():
            kept = state.jobs.get(queued.id)
            if not kept.state.final:
                state.jobs.save(_by_exit_code(kept, code, cause, context.clock.now()))
        take_in(context.home, state, context.clock)
        return state.jobs.get(queued.id)


def _by_exit_code(job: Job, code: int, cause: str, now: datetime) -> Job:
    good = {0: JobState.DONE, WITH_WARNINGS: JobState.WARNED}.get(code)
    if good is not None:
        return replace(job, state=good, ended=now, exit_code=code, summary="It is done.")
    return replace(
        job,
        state=JobState.FAILED,
        ended=now,
        exit_code=code,
        summary=f"It failed: {sentence(cause)}",
        cause=sentence(cause),
        next_step=f"Run `datamanager {command_of(job.request)}` to see why.",
    )
