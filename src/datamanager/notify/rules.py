"""What people are told, and when: pure, from what has ended, what is wrong, what is known, and the time.

a run fails             told at once; so is what is urgent
something is found      told when it has lasted ten minutes: a computer that starts up finds much that soon mends
it lasts                told once a day; urgent ones each hour on every channel, until someone acknowledges them
it comes back           told, but not within an hour of the last time
it is over              told once, if its beginning was told
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from datamanager.config.model import NotifyEvent
from datamanager.notify.message import Message, Said, Sender, body_of, moment, one_line, title_of
from datamanager.state.finding import Finding, Severity
from datamanager.state.model import Alert, Job, JobState, Trigger

REPEATED_AFTER = timedelta(hours=24)
URGENT_REPEATED_AFTER = timedelta(hours=1)
AGAIN_AFTER = timedelta(hours=1)  # a trouble that went and came back; also between two "it is over" of one subject
SETTLES_AFTER = timedelta(minutes=10)
REFRESHED_AFTER = timedelta(minutes=10)  # how often a lasting trouble is written down anew
# A failure that no later run has mended is no news for ever: nobody repeats a restore that went wrong once.
LAPSES_AFTER = timedelta(days=7)
ONCE_LAPSES_AFTER = timedelta(hours=23)

_BACKUP = "backup run"
FAILED, FAILED_ONCE, FOUND = "failed:", "failed once:", "found:"
_OVERDUE = frozenset({"overdue", "no-backup"})
_FROM_RUNS = frozenset({"failed", "test-failed", "test-not-done"})
# What a person at a terminal did wrong and saw at once: usage, no such name, busy, stopped.
_SEEN_BY_THE_PERSON = (2, 11, 12, 130)


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that is wrong until it is mended; ``key`` is the same as long as it is the same trouble."""

    key: str
    event: NotifyEvent
    said: Said
    urgent: bool = False


@dataclass(frozen=True, slots=True)
class Known:
    """What the last looks left.

    Args:
        alerts: those that are open.
        told: when each key was last told, also of alerts that ended since.
        subjects: the clusters and repositories that are configured.
        heard: whether there is anybody to tell; if not, everything is told once there is.
    """

    alerts: Sequence[Alert]
    told: Mapping[str, datetime]
    subjects: Collection[str]
    heard: bool = True


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows: alerts to write down, alerts to end, messages to send, and the new ``told``."""

    raised: list[Trouble] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    told: dict[str, datetime] = field(default_factory=dict)


def decide(
    jobs: Sequence[Job], troubles: Sequence[Trouble] | None, known: Known, sender: Sender, now: datetime
) -> Decision:
    """Judge one moment.

    Args:
        jobs: those that ended since the last look, in any order, each once.
        troubles: everything that is found wrong now (keys begin with FOUND); None when nobody looked, which changes
            nothing.
    """
    decision = Decision(told={key: time for key, time in known.told.items() if abs(now - time) < 2 * REPEATED_AFTER})
    opened = {alert.key: alert for alert in known.alerts}
    found = {one.key: one for one in troubles or () if not _is_told_as_failure(one, opened)}
    over = _mended_by_runs(jobs, opened)
    lapsed = _lapsed(opened, known.subjects, now) - over.keys()
    if troubles is not None:
        over |= {key: "" for key in opened if key.startswith(FOUND) and key not in found}
    for job in _failures(jobs):
        trouble = failure(job, sender)
        found[trouble.key] = trouble
        over.pop(trouble.key, None)
        lapsed.discard(trouble.key)
    decision.ended.extend([*over, *lapsed])
    _tell_recovered([(opened[key], over[key]) for key in over], known, sender, now, decision)
    for key in [*found, *(key for key in opened if key not in found)]:
        if key not in over and key not in lapsed:
            _consider(key, found.get(key), opened.get(key), known, sender, now, decision)
    return decision


def failure(job: Job, sender: Sender) -> Trouble:
    """What a failed run is told as."""
    name = _named(job)
    lasting = job.request.kind == _BACKUP or job.request.trigger is not Trigger.PERSON
    when = f" on {moment(job.ended, sender.zone)}" if job.ended else ""
    cause = one_line(job.cause or job.summary).rstrip(".")
    said = Said(
        title=f"{name} failed",
        happened=f"{name} failed{when}{': ' + cause if cause else ''}.",
        means=job.effect or _MEANING.get(job.request.kind, "What this run was to do has not been done."),
        next_step=job.next_step or f"Read its log: datamanager job log {job.id}",
        subject=job.request.subject,
    )
    return Trouble(f"{FAILED if lasting else FAILED_ONCE}{_place(job)}", NotifyEvent.FAILURE, said)


def trouble_of(finding: Finding) -> Trouble | None:
    """What a finding is told as; None for what can wait for the summary, and for failed runs, which are told anyway."""
    overdue = finding.kind in _OVERDUE
    worst = Severity.AT_RISK if overdue else Severity.NOT_PROTECTED
    if finding.severity < worst or finding.kind in _FROM_RUNS:
        return None
    urgent = finding.severity is Severity.URGENT
    sentence = one_line(finding.sentence).rstrip(".")
    if urgent:
        title, means = f"Needs someone now: {sentence}", "Something that the office works with stands still."
    elif overdue:
        title = f"A backup is overdue: {finding.cluster}" if finding.cluster else "A backup is overdue"
        means = "If the server were lost now, what was entered since the newest backup would be lost with it."
    else:
        title = f"Not protected: {sentence}"
        means = "The data is not protected as it should be until this is mended."
    said = Said(
        title=title,
        happened=finding.sentence,
        means=means,
        next_step=f"Run: {finding.command}" if finding.command else "Run: datamanager status",
        subject=finding.cluster,
    )
    event = NotifyEvent.OVERDUE if overdue else NotifyEvent.FAILURE
    return Trouble(f"{FOUND}{finding.key}", event, said, urgent=urgent)


_NAMES = {
    "backup run": "The backup",
    "backup export": "The export of a backup",
    "drill run": "The test restore",
    "restore": "The restore",
    "expire": "Letting old backups go",
    "repo verify": "The check of the backups",
    "repo prune": "Freeing space",
    "repo heal": "The repair of the backup location",
}
_MEANING = {
    "backup run": "There is no new backup. What was entered since the last good one exists only on the server itself.",
    "drill run": "It is not proven that the backups can be brought back.",
    "restore": "The data was not brought back. The backups are as they were.",
    "expire": "Old backups stay and take up space. Nothing is lost.",
    "repo verify": "It is not known whether the stored backups are whole.",
    "repo prune": "Space that is no longer needed was not freed. Nothing is lost.",
}


def _named(job: Job) -> str:
    name = _NAMES.get(job.request.kind, f"The run of {one_line(job.request.kind)!r}")
    return f"{name} of {one_line(job.request.subject)}" if job.request.subject else name


def _place(job: Job) -> str:
    """What a failure is told of: ``backup run:clinic``, or ``backup run to usb:clinic`` where the run named a place.

    A backup to one place says nothing about one that fails to another.
    """
    target = job.request.option("--repo") if job.request.kind == _BACKUP else None
    return f"{job.request.kind}{f' to {target}' if target else ''}:{job.request.subject}"


def _mended_places(job: Job) -> set[str]:
    """The places of failures that a good run ends: its own, that of its location, and one that named none."""
    request = job.request
    places = {_place(job), f"{request.kind}:{request.subject}"}
    if request.kind == _BACKUP and (target := job.result.get("repository")):
        places.add(f"{request.kind} to {target}:{request.subject}")
    return places


def _newest(jobs: Sequence[Job]) -> dict[str, Job]:
    """The last run of each place that ended by itself."""
    told = [job for job in jobs if job.state in (JobState.DONE, JobState.WARNED, JobState.FAILED)]
    return {_place(job): job for job in sorted(told, key=lambda job: (job.ended or job.queued, job.id))}


def _failures(jobs: Sequence[Job]) -> list[Job]:
    def seen(job: Job) -> bool:
        return job.request.trigger is Trigger.PERSON and job.exit_code in _SEEN_BY_THE_PERSON

    newest = _newest(jobs)
    mended = {place: job for job in newest.values() if job.state.good for place in _mended_places(job)}
    return [
        job
        for place, job in newest.items()
        if job.state is JobState.FAILED and not seen(job) and not _is_later(mended.get(place), job)
    ]


def _is_later(one: Job | None, other: Job) -> bool:
    return one is not None and (one.ended or one.queued, one.id) > (other.ended or other.queued, other.id)


def _mended_by_runs(jobs: Sequence[Job], opened: Mapping[str, Alert]) -> dict[str, str]:
    """The keys of alerts that a good run ends, with what that run was."""
    return {
        f"{kind}{place}": _named(job)
        for job in _newest(jobs).values()
        if job.state.good
        for place in _mended_places(job)
        for kind in (FAILED, FAILED_ONCE)
        if f"{kind}{place}" in opened
    }


def _is_told_as_failure(trouble: Trouble, opened: Mapping[str, Alert]) -> bool:
    """Whether a backup is overdue because its runs fail, which is told already."""
    return trouble.event is NotifyEvent.OVERDUE and any(
        key.startswith(f"{FAILED}{_BACKUP}") and key.rpartition(":")[2] == trouble.said.subject for key in opened
    )


def _lapsed(opened: Mapping[str, Alert], subjects: Collection[str], now: datetime) -> set[str]:
    """Failures that no later run will mend."""
    gone = set()
    for key, alert in opened.items():
        if not key.startswith((FAILED, FAILED_ONCE)):
            continue
        subject = key.rpartition(":")[2]
        limit = ONCE_LAPSES_AFTER if key.startswith(FAILED_ONCE) else LAPSES_AFTER
        if (subject and subject not in subjects) or now - alert.last_seen >= limit:
            gone.add(key)
    return gone


def _consider(
    key: str,
    trouble: Trouble | None,
    alert: Alert | None,
    known: Known,
    sender: Sender,
    now: datetime,
    decision: Decision,
) -> None:
    """One trouble that lasts: write it down, tell it."""
    if trouble is None and key.startswith(FOUND):
        return  # nobody looked
    urgent = trouble is not None and trouble.urgent
    due = known.heard and _is_due(alert, key, known.told, now, urgent=urgent)
    fresh = trouble is not None and (
        alert is None or due or not key.startswith(FOUND) or now - alert.last_seen >= REFRESHED_AFTER
    )
    if trouble is not None and fresh:
        decision.raised.append(trouble)
    if not due:
        return
    decision.told[key] = now
    decision.messages.append(_message(key, trouble, alert, sender, now))


def _is_due(alert: Alert | None, key: str, told: Mapping[str, datetime], now: datetime, *, urgent: bool) -> bool:
    if alert is not None and alert.acknowledged is not None:
        return False
    settling = alert is None or abs(now - alert.first_seen) < SETTLES_AFTER
    if key.startswith(FOUND) and settling and not urgent:
        return False
    last = told.get(key)
    if last is None:
        return True
    if urgent:
        pace = URGENT_REPEATED_AFTER
    else:
        pace = REPEATED_AFTER if alert is not None and alert.sent is not None else AGAIN_AFTER
    # A clock that was wrong and is set right must not silence anything for long.
    return abs(now - last) >= pace


def _message(key: str, trouble: Trouble | None, alert: Alert | None, sender: Sender, now: datetime) -> Message:
    title, body = (trouble.said.title, body_of(sender, trouble.said)) if trouble else ("", "")
    if trouble is None and alert is not None:
        title, body = alert.title, alert.text
    if alert is not None and alert.sent is not None:
        title = f"Reminder: {title[:1].lower()}{title[1:]}"
        body += f"\nThis has lasted since {moment(alert.first_seen, sender.zone)}.\n"
    urgent = trouble.urgent if trouble else False
    if urgent:
        command = f'datamanager notify acknowledge "{key}"'
        body += f"\nThis message comes again every hour until it is mended or someone runs:\n{command}\n"
    event = trouble.event if trouble else NotifyEvent.FAILURE
    return Message(_id(key, now), key, event, title_of(sender, title), body, now, urgent=urgent, everywhere=urgent)


def _tell_recovered(
    over: Sequence[tuple[Alert, str]], known: Known, sender: Sender, now: datetime, decision: Decision
) -> None:
    """One message a subject for all that is over with it, if its beginning was told."""
    by_subject: dict[str, list[tuple[Alert, str]]] = {}
    for alert, run in over:
        if alert.sent is not None and known.heard:
            by_subject.setdefault(alert.key.rpartition(":")[2], []).append((alert, run))
    for subject, ended in by_subject.items():
        key = f"recovered:{subject}"
        if (last := decision.told.get(key)) is not None and abs(now - last) < AGAIN_AFTER:
            continue
        runs = [run for _, run in ended if run]
        said = Said(
            title=f"{runs[0]} is good again" if runs else "A trouble is over",
            happened=" ".join(
                f"{run} is good again, after a failure that was told on {moment(alert.sent or now, sender.zone)}."
                if run
                else f"This is over: {one_line(alert.title)}, told on {moment(alert.sent or now, sender.zone)}."
                for alert, run in ended
            ),
            means="What was wrong has been mended.",
            next_step="Nothing. This message only says that it is over.",
            subject=subject if subject in known.subjects else "",
        )
        decision.told[key] = now
        message = Message(
            _id(key, now), key, NotifyEvent.RECOVERED, title_of(sender, said.title), body_of(sender, said), now
        )
        decision.messages.append(replace(message, everywhere=any(alert.urgent for alert, _ in ended)))


def _id(key: str, now: datetime) -> str:
    return f"{key}@{now:%Y%m%dT%H%M%S.%fZ}"
