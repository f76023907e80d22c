"""Taking runs into the history: what their files in ``STATE/runs`` say becomes rows, and the files go.

A run that ended says so itself. One whose process is gone without a word is told of truthfully: cancelled by whom, over
its time, or killed. Doing it again, or from two processes at once, changes nothing: a job is saved whole, and one that
has ended stays ended.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from datamanager.base.clock import Clock
from datamanager.base.errors import NotFound
from datamanager.config.home import Home
from datamanager.jobs.log import add_summary, find_log
from datamanager.jobs.record import cancelled, killed, over_limit
from datamanager.jobs.run_file import RunFile, RunFolder
from datamanager.state.model import Job, JobEvent, JobRequest, JobState, Proof
from datamanager.system.processes import ProcessIdentity, boot_id, is_alive

if TYPE_CHECKING:
    from datamanager.state.database import State

# From being claimed to the first word of the process: Python on a machine that has much to do.
_BEGIN_SECONDS = 60.0
# Files that belong to no run: of a cancel that came too late, or of a write that was killed.
_SWEEP_SECONDS = 86_400.0
_UNREADABLE_SECONDS = 60.0
_EFFECT = "What it should have done is not done, or not all of it."


def take_in(home: Home, state: State, clock: Clock, *, own: Collection[str] = ()) -> list[Job]:
    """Move the runs that have ended into the state; returns them.

    Args: own - jobs whose processes the caller began and judges itself where they left no file.
    Costs one look into a folder while nothing has ended. Raises: StateUnavailable (retryable), StateError.
    """
    folder = RunFolder(home.runs)
    taken = [job for id in folder.ids() if (job := _take_one(home, folder, state, clock, id)) is not None]
    taken += _never_began(folder, state, clock, own)
    folder.sweep(_SWEEP_SECONDS)
    return taken


def _take_one(home: Home, folder: RunFolder, state: State, clock: Clock, id: str) -> Job | None:
    try:
        run = ended(folder, id, clock)
    except OSError:
        return None  # another account's file, or one that Windows keeps from us: another time, or someone else
    except ValueError:
        run = _unreadable(folder, state, clock, id)
    if run is None:
        return None
    if run.job.exit_code is None and run.job.log:
        path = find_log(home.logs, run.job.log)
        if path is not None:
            add_summary(path, run.job, [one.text for one in run.events if one.kind == "touched"])
    state.jobs.save(run.job, run.events)
    proof = proof_of(run.job)
    if proof is not None:
        state.proofs.add(proof)
    with contextlib.suppress(OSError):
        folder.drop(id)
    return run.job


def ended(folder: RunFolder, id: str, clock: Clock) -> RunFile | None:
    """A run as it ended, by its own word or by what can be found out; None while it goes on.

    Raises: OSError; ValueError, when its file cannot be understood.
    """
    run = folder.read(id)
    if run is None or run.job.state.final or run.alive(clock.now()):
        return run if run is not None and run.job.state.final else None
    # It may have ended well between the two looks.
    run = folder.read(id)
    if run is None or run.job.state.final:
        return run
    job = replace(run.job, ended=run.job.heartbeat or run.job.started)
    who = folder.who_cancelled(id)
    if who is not None:
        job = cancelled(job, who, run.effect, by_force=True)
    elif folder.limit_path(id).exists():
        job = over_limit(job, run.effect)
    else:
        job = killed(job, run.effect)
    event = JobEvent(job.ended or clock.now(), "error", job.cause)
    return replace(run, job=job, events=(*run.events, event))


def _unreadable(folder: RunFolder, state: State, clock: Clock, id: str) -> RunFile | None:
    """What a power cut may leave of a file that was not synced: the run is known to have been, and no more."""
    try:
        written = datetime.fromtimestamp(folder.path(id).stat().st_mtime, UTC)
    except OSError:
        return None
    if abs((clock.now() - written).total_seconds()) < _UNREADABLE_SECONDS:
        return None
    try:
        job = state.jobs.get(id)
    except NotFound:
        job = Job(id, JobRequest("unknown command"), JobState.RUNNING, queued=written, started=written)
    return RunFile(killed(replace(job, heartbeat=written), _EFFECT), ProcessIdentity(0, 0.0, ""))


def _never_began(folder: RunFolder, state: State, clock: Clock, own: Collection[str]) -> list[Job]:
    """Jobs that someone here claimed and that left no file: whoever claimed them was killed before they began."""
    taken, here = [], socket.gethostname()
    # Only jobs of this computer are in a file of ours, under whatever name it had then.
    for job in state.jobs.running(None if state.is_file else here):
        if job.id in own or folder.path(job.id).exists():
            continue
        if job.host == here and job.pid is not None and job.pid_started is not None:
            gone = not is_alive(ProcessIdentity(job.pid, job.pid_started, boot_id()))
        else:
            # A clock that was set back since must not make it wait until then.
            gone = job.started is None or abs((clock.now() - job.started).total_seconds()) > _BEGIN_SECONDS
        # Its file may have come, or come and been taken in by someone else, since the row was read.
        if not gone or folder.path(job.id).exists() or state.jobs.get(job.id).state.final:
            continue
        failed = killed(job, _EFFECT)
        state.jobs.save(failed)
        for path in (folder.cancel_path(job.id), folder.limit_path(job.id), folder.output_path(job.id)):
            with contextlib.suppress(OSError):
                os.unlink(path)  # noqa: PTH108 - one spelling for three files
        taken.append(failed)
    return taken


def proof_of(job: Job) -> Proof | None:
    """The proof that a test restore's result tells of; None for every other run, and for one that came to none."""
    values = job.result
    if job.request.kind != "drill run" or not values.get("backup") or "passed" not in values:
        return None
    known: dict[str, Any] = {one.name: values[one.name] for one in fields(Proof) if values.get(one.name) is not None}
    try:
        for name in ("backup_time", "time"):
            known[name] = datetime.fromisoformat(str(known[name])).astimezone(UTC)
        checks = known.get("checks", {})
        known["checks"] = dict(checks) if isinstance(checks, Mapping) else {}
        return Proof(**{"job": job.id, "host": job.host} | known)
    except (KeyError, ValueError, TypeError):
        return None
