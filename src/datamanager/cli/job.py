"""``datamanager job``: what ran, what runs and what waits; its logs; ending a run."""

from __future__ import annotations

import shlex
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from datamanager.base.events import PhaseStarted, Progress, Warned
from datamanager.base.units import format_duration, format_size
from datamanager.cli.command import noun
from datamanager.cli.lazy import lazy
from datamanager.cli.outcome import Outcome

if TYPE_CHECKING:
    from datamanager.app import jobs
    from datamanager.cli.session import Session
    from datamanager.jobs import log as job_logs
    from datamanager.state.model import Job, JobProgress
    from datamanager.system import accounts
else:
    jobs = lazy("datamanager.app.jobs")
    job_logs = lazy("datamanager.jobs.log")
    accounts = lazy("datamanager.system.accounts")

_FOLLOW_SECONDS = 1.0

command = noun("job", "Jobs: what ran, what runs and what waits, their logs, and ending one.")


@command.command("list", examples=["datamanager job list", "datamanager job list --kind 'backup run' --subject office"])
@click.option("--kind", metavar="WORDS", help="Only runs of this command, as `backup run`.")
@click.option("--subject", metavar="NAME", help="Only those about this cluster or repository.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="The newest so many.")
def list_(session: Session, kind: str | None, subject: str | None, limit: int) -> Outcome:
    """List jobs, newest first: those that run, those that wait, and those that have ended."""
    found = jobs.listed(session.context, kind=kind, subject=subject, limit=limit)
    text = "\n".join(_row(one) for one in found) or "No job ran yet. The first may be `datamanager backup run CLUSTER`."
    return Outcome(text, {"jobs": [fields(one) for one in found]}, log=f"Listed {len(found)} jobs.")


@command.command("show", examples=["datamanager job show 20261123T2045", "datamanager job show 20261123T2045 --follow"])
@click.argument("job", metavar="ID")
@click.option("--follow", is_flag=True, help="Stay until it has ended, and show how it goes.")
def show(session: Session, job: str, follow: bool) -> Outcome:
    """Show one job: what happened, how far it is, what to do. ID is its name or the beginning of it."""
    found = jobs.shown(session.context, job)
    if follow:
        found = _followed(session, found)
    events = [{"time": one.time.isoformat(), "kind": one.kind, "text": one.text} for one in found.events]
    data = {**fields(found.job), "events": events, "log": None if found.log is None else str(found.log)}
    return Outcome(_details(found), data, log=f"Showed job {found.job.id}.")


@command.command("log", examples=["datamanager job log 20261123T2045"])
@click.argument("job", metavar="ID")
def log(session: Session, job: str) -> Outcome:
    """Print the log of a job: first what happened, then every moment of it."""
    found, path, text = jobs.log_text(session.context, job)
    return Outcome(text.rstrip("\n"), {"id": found.id, "path": str(path), "text": text}, log=f"Printed {path.name}.")


@command.command("cancel", examples=["datamanager job cancel 20261123T2045"])
@click.argument("job", metavar="ID")
def cancel(session: Session, job: str) -> Outcome:
    """End a job: one that waits at once, one that runs within ten seconds.

    Nothing half done stays: the backups made before are as they were. Works for every run of this installation, also
    for one begun at another terminal.
    """
    result = jobs.cancel(session.context, job, accounts.who())
    ended = result.job
    if result.before:
        text = f"Job {ended.id} had ended already: {ended.state}."
    else:
        text = f"Job {ended.id} ({_title(ended)}): {ended.summary or ended.state}"
    return Outcome(text, {**fields(ended), "by_force": result.by_force, "ended_before": result.before})


@command.command("pin", examples=["datamanager job pin 20261123T2045"])
@click.argument("job", metavar="ID")
def pin(session: Session, job: str) -> Outcome:
    """Keep the log of a job for ever; others go when newer ones of the same job come."""
    found, path = jobs.pin(session.context, job, pinned=True)
    return Outcome(f"The log of job {found.id} stays: {path}", {"id": found.id, "path": str(path), "pinned": True})


@command.command("unpin", examples=["datamanager job unpin 20261123T2045"])
@click.argument("job", metavar="ID")
def unpin(session: Session, job: str) -> Outcome:
    """Let a pinned log go with time like any other."""
    found, path = jobs.pin(session.context, job, pinned=False)
    return Outcome(
        f"The log of job {found.id} is kept like others: {path}", {"id": found.id, "path": str(path), "pinned": False}
    )


def _followed(session: Session, found: jobs.Shown) -> jobs.Shown:
    """Tell of every new moment until the job has ended."""
    told, phase = 0, ""
    while True:
        for event in found.events[told:]:
            if event.kind == "phase":
                session.console.event(PhaseStarted(event.text))
                phase = event.text
            elif event.kind == "warning":
                session.console.event(Warned(event.text))
        told = len(found.events)
        if found.job.state.final:
            return found
        progress = found.job.progress
        if phase and progress.done_bytes:
            session.console.event(Progress(progress.done_bytes, progress.total_bytes, progress.fraction))
        if session.stop.wait(_FOLLOW_SECONDS):
            session.stop.check()
        found = jobs.shown(session.context, found.job.id)


def fields(job: Job) -> dict[str, Any]:
    """A job as the JSON line has it."""
    request, progress = job.request, job.progress
    return {
        "id": job.id,
        "kind": request.kind,
        "arguments": list(request.arguments),
        "subject": request.subject,
        "state": str(job.state),
        "trigger": str(request.trigger),
        "who": request.who,
        "schedule": request.schedule,
        "due": _time(request.due),
        "queued": _time(job.queued),
        "started": _time(job.started),
        "ended": _time(job.ended),
        "host": job.host,
        "pid": job.pid,
        "phase": progress.phase,
        "done_bytes": progress.done_bytes,
        "total_bytes": progress.total_bytes,
        "percent": None if progress.fraction is None else round(100 * progress.fraction, 1),
        "bytes_per_second": None if progress.bytes_per_second is None else round(progress.bytes_per_second),
        "seconds_left": None if progress.seconds_left is None else round(progress.seconds_left, 1),
        "job_exit_code": job.exit_code,
        "summary": job.summary,
        "cause": job.cause,
        "effect": job.effect,
        "next_step": job.next_step,
        "job_warnings": list(job.warnings),
        "result": dict(job.result),
        "pinned": job.log_pinned,
        "cancelled_by": job.cancelled_by,
    }


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _title(job: Job) -> str:
    return " ".join(part for part in (job.request.kind, job.request.subject) if part)


def _row(job: Job) -> str:
    """``20261123T204512Z-3f9a1c  2026-11-23 20:45:12 UTC  backup run clinic: done, 12 s. Backup … is in usb``."""
    parts = [job.id, job_logs.local_time(job.started or job.queued), f"{_title(job)}: {job.state}"]
    if job.state.final:
        took = _took(job)
        return f"{'  '.join(parts)}{took and f', {took}'}. {job.summary}".rstrip()
    return f"{'  '.join(parts)}{_how_far(job.progress)}"


def _took(job: Job) -> str:
    if job.started is None or job.ended is None:
        return ""
    return format_duration(max((job.ended - job.started).total_seconds(), 0.0))


def _how_far(progress: JobProgress) -> str:
    """``, copying: 40 % (1.2 GiB), 250 MiB/s, 7 s left``; nothing for one that waits."""
    parts = []
    if progress.fraction is not None:
        parts.append(f"{100 * progress.fraction:.0f} % ({format_size(progress.done_bytes)})")
    elif progress.done_bytes:
        parts.append(format_size(progress.done_bytes))
    if progress.bytes_per_second is not None:
        parts.append(f"{format_size(progress.bytes_per_second)}/s")
    if progress.seconds_left is not None:
        parts.append(f"about {format_duration(progress.seconds_left)} left")
    if not progress.phase and not parts:
        return ""
    return f", {progress.phase}{': ' if progress.phase and parts else ''}{', '.join(parts)}"


def _details(found: jobs.Shown) -> str:
    job = found.job
    touched = [one.text for one in found.events if one.kind == "touched"]
    lines = (
        [f"Job {job.id}", *job_logs.summary(job, touched)]
        if job.state.final
        else [
            f"Job {job.id}",
            f"{_title(job)}: {job.state}{_how_far(job.progress)}",
            shlex.join(["datamanager", *job.request.kind.split(), *job.request.arguments]),
            f"{'Asked for' if job.started is None else 'Began'} {job_logs.local_time(job.started or job.queued)}. "
            f"{job_logs.begun_by(job)}",
        ]
    )
    if found.log is not None:
        lines += ["", f"Log: {found.log}"]
    elif job.log and job.state.final:
        lines += ["", "Its log is not kept any more."]
    return "\n".join(lines)
