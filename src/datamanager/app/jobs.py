"""Runs of jobs: those in the history, those that wait, and those that go on right now."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from datamanager.app.around import restore_services
from datamanager.app.audit import audited
from datamanager.app.context import Context
from datamanager.app.opening import choose, clear_up_after
from datamanager.base.errors import ConfigurationError, DataManagerError, NotFound, StateError, UsageError
from datamanager.base.events import Warned
from datamanager.jobs.estimate import with_estimate
from datamanager.jobs.intake import ended
from datamanager.jobs.log import find_log, pin_log, unpin_log
from datamanager.jobs.record import FORCE_SECONDS
from datamanager.jobs.run_file import RunFile, RunFolder
from datamanager.jobs.worker import end_by_force
from datamanager.state.model import Job, JobEvent, JobState
from datamanager.system.processes import is_alive

T = TypeVar("T")

_LOOK_SECONDS = 0.1
# A killed process that hangs in the system goes a little later.
_AFTER_FORCE_SECONDS = 2.0


@dataclass(frozen=True)
class Shown:
    """A job, what happened in it, and its log; None when its text is not kept any more, or it left none."""

    job: Job
    events: tuple[JobEvent, ...]
    log: Path | None


def listed(context: Context, *, kind: str | None = None, subject: str | None = None, limit: int = 50) -> list[Job]:
    """Jobs, newest first; running ones as they stand now. Raises: StateError, ConfigurationError."""
    with context.state() as state:
        found = {one.id: one for one in state.jobs.list(kind=kind, subject=subject, limit=limit)}
        for run in _live(context):
            request = run.job.request
            if kind in (None, request.kind) and subject in (None, request.subject):
                durations = state.jobs.durations(request.kind, request.subject)
                found[run.job.id] = replace(run.job, progress=with_estimate(run.job, durations, context.clock.now()))
    return sorted(found.values(), key=lambda one: (one.queued, one.id), reverse=True)[:limit]


def shown(context: Context, id: str) -> Shown:
    """One job by its id or the beginning of it.

    Raises: NotFound; UsageError, when several begin so; StateError, ConfigurationError.
    """
    run = _find_live(context, id)
    with context.state() as state:
        if run is None or not run.alive(context.clock.now()):
            job = state.jobs.get(id)
            events = tuple(state.jobs.events(job.id))
        else:
            request = run.job.request
            durations = state.jobs.durations(request.kind, request.subject)
            job = replace(run.job, progress=with_estimate(run.job, durations, context.clock.now()))
            events = run.events
    return Shown(job, events, find_log(context.home.logs, job.log))


def log_text(context: Context, id: str) -> tuple[Job, Path, str]:
    """The log of a job. Raises: as ``shown``; NotFound, when its text is not kept any more."""
    found = shown(context, id)
    if found.log is None:
        kept = context.config().logs.keep
        raise NotFound(
            f"find log of job {found.job.id}: {'its text is not kept any more' if found.job.log else 'it left none'}",
            hint=f"`datamanager job show {found.job.id}` has what is known; the newest {kept} texts of each job stay.",
        )
    try:
        return found.job, found.log, found.log.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigurationError(
            f"read {found.log}: {(error.strerror or 'cannot be read').lower()}",
            hint="Run this as the account that owns the logs.",
        ) from error


def pin(context: Context, id: str, *, pinned: bool) -> tuple[Job, Path]:
    """Keep the log of a job for ever, or no longer; returns where it lies now.

    Raises: as ``shown``; UsageError, while it runs; NotFound, when its text is gone; ConfigurationError.
    """
    job = shown(context, id).job
    if not job.state.final:
        raise UsageError(f"pin log of job {job.id}: it has not ended yet", hint="Pin it when it has.")
    try:
        path = (pin_log if pinned else unpin_log)(context.home.logs, job.log)
    except OSError as error:
        raise ConfigurationError(
            f"move log of job {job.id}: {(error.strerror or 'not possible').lower()}",
            hint="Run this as the account that owns the logs.",
        ) from error
    with context.state() as state:
        state.jobs.set_pinned(job.id, pinned)
    return job, path


@dataclass(frozen=True)
class Ended:
    """What came of a wish to end a job.

    Args: by_force - it did not end by itself in time; before - it had ended before it was asked.
    """

    job: Job
    by_force: bool = False
    before: bool = False


def cancel(context: Context, id: str, who: str) -> Ended:
    """End a job: a waiting one at once, a running one within ten seconds (R47).

    Works for every run of this home, whoever began it, also while the database is away.
    Raises: NotFound, UsageError (several begin so), StateError, Cancelled (this command is to stop).
    """
    run = _find_live(context, id)
    if run is None:
        return _cancel_waiting(context, id, who)
    folder, id = RunFolder(context.home.runs), run.job.id
    if run.alive(context.clock.now()):
        _ask(folder, id, who)
        forced = _wait_or_force(context, folder, run)
        result = Ended(_final(context, folder, id, run), by_force=forced)
        audited(context, "job cancelled", f"{run.job.request.kind} {id}", after=str(result.job.state))
        return result
    return Ended(_final(context, folder, id, run), before=True)


def _cancel_waiting(context: Context, id: str, who: str) -> Ended:
    with context.state() as state:
        job = state.jobs.get(id)
        if job.state.final:
            return Ended(job, before=True)
        asked = state.jobs.request_cancel(job.id, who)
    audited(context, "job cancelled", f"{job.request.kind} {job.id}", after=str(asked.state))
    if asked.state is not JobState.RUNNING:
        return Ended(asked)
    # It was claimed this moment: its file is about to come, and it looks for the wish at once.
    folder = RunFolder(context.home.runs)
    _ask(folder, job.id, who)
    run = _until(context, lambda: folder.read(job.id), FORCE_SECONDS)
    forced = _wait_or_force(context, folder, run) if run is not None else False
    with context.state() as state:
        return Ended(state.jobs.get(job.id), by_force=forced)


def _ask(folder: RunFolder, id: str, who: str) -> None:
    try:
        folder.ask_to_cancel(id, who)
    except OSError:
        # A full disk: force is what remains.
        return


def _wait_or_force(context: Context, folder: RunFolder, run: RunFile) -> bool:
    """Wait until a run has ended, and end it by force when its time is over; whether that was needed."""

    def gone() -> bool | None:
        return None if is_alive(run.process) or _look(folder, run).alive(context.clock.now()) else True

    if _until(context, gone, FORCE_SECONDS):
        return False
    end_by_force(run)
    _until(context, gone, _AFTER_FORCE_SECONDS)
    clear_up(context, run)
    restore_services(context)
    return True


def _look(folder: RunFolder, run: RunFile) -> RunFile:
    """The run as its file has it; one whose file was taken in has ended."""
    with contextlib.suppress(OSError, ValueError):
        found = folder.read(run.job.id)
        return found if found is not None else replace(run, job=replace(run.job, state=JobState.DONE))
    return run


def _until(context: Context, look: Callable[[], T | None], seconds: float) -> T | None:
    deadline = time.monotonic() + seconds
    while (found := look()) is None and time.monotonic() < deadline:
        if context.stop.wait(_LOOK_SECONDS):
            context.stop.check()
    return found


def _final(context: Context, folder: RunFolder, id: str, run: RunFile) -> Job:
    """The job as it ended, from the history; from its file while the database is away."""
    try:
        with context.state() as state:
            return state.jobs.get(id)
    except StateError as error:
        context.listener(Warned(f"the history does not know of it yet: {error.message}"))
        with contextlib.suppress(OSError, ValueError):
            run = ended(folder, id, context.clock) or run
        return run.job


def clear_up(context: Context, run: RunFile) -> None:
    """Remove what a run that was ended by force left in its repository.

    What cannot be removed now becomes a warning: the next run removes it.
    """
    try:
        clear_up_after(context, choose(context, run.repository, run.cluster), run.process)
    except DataManagerError as error:
        context.stop.check()
        context.listener(Warned(f"what the run left behind is not removed yet: {error.message}"))


def _live(context: Context) -> list[RunFile]:
    now = context.clock.now()
    return [run for run in RunFolder(context.home.runs).runs() if run.alive(now)]


def _find_live(context: Context, id: str) -> RunFile | None:
    """A run that has a file, by its id or the beginning of it. Raises: UsageError, when several begin so."""
    folder = RunFolder(context.home.runs)
    names = [one for one in folder.ids() if one.startswith(id)]
    if id in names:
        names = [id]
    if len(names) > 1:
        raise UsageError(f"find job: several begin with {id!r}", hint="Give more of its name.")
    with contextlib.suppress(OSError, ValueError):
        return folder.read(names[0]) if names else None
    return None
