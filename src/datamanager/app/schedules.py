"""Schedules: making, changing, removing, looking, and the operating system's own scheduler."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamanager.app import audit
from datamanager.app.context import Context
from datamanager.app.service import program
from datamanager.app.settings_journal import account_name
from datamanager.base.errors import Busy, ConfigurationError, NotFound, UsageError
from datamanager.base.files import write_durably
from datamanager.config.home import Home, system_home
from datamanager.config.names import check_name
from datamanager.schedule import native, words
from datamanager.schedule.planner import resumed
from datamanager.schedule.quiet import QuietHour, quiet_hour
from datamanager.schedule.recurrence import Recurrence
from datamanager.schedule.zones import machine_zone
from datamanager.state.model import Job, JobRequest, JobState, Schedule

if TYPE_CHECKING:
    from datamanager.state.database import State

BACKUP = "backup run"
NEXT_RUNS = 5


@dataclass(frozen=True)
class Definition:
    """A schedule as somebody wants it. Args: request - the command with all of its parameters."""

    name: str
    recurrence: Recurrence
    request: JobRequest
    enabled: bool = True


@dataclass(frozen=True)
class Change:
    """A plan; ``save`` carries it out. Args: before - the schedule of that name that is there; None for a new one."""

    before: Schedule | None
    after: Schedule


def plan(context: Context, wanted: Definition) -> Change:
    """What would be there after the change. Nothing is changed.

    Raises: UsageError (the name, or times that are all past), ConfigurationError, StateError.
    """
    check_name("schedule", wanted.name)
    now = context.clock.now()
    if wanted.recurrence.after(now) is None:
        raise UsageError(
            f"add schedule: {wanted.name} would never run: {words.describe(wanted.recurrence)} is past",
            hint="Give a time that is still to come.",
        )
    with context.state() as state:
        before = _found(state, wanted.name)
    request = replace(wanted.request, who=audit.who())
    after = Schedule(wanted.name, wanted.recurrence.to_json(), request, wanted.enabled, now, now)
    if before is not None:
        after = replace(after, created=before.created, last_due=before.last_due)
    return Change(before, resumed(after, now))


def save(context: Context, change: Change) -> str:
    """Carry out a plan, with an entry in the audit log. Backups that exist are not touched.

    Returns: the cluster that no enabled schedule backs up any more, else nothing.
    Raises: Busy, when someone changed the schedule meanwhile; StateError.
    """
    with context.state() as state:
        if _identity(_found(state, change.after.name)) != _identity(change.before):
            raise Busy(
                f"save schedule: {change.after.name} was changed by someone else meanwhile",
                hint=f"Look at it with `datamanager schedule show {change.after.name}`, then run the command again.",
            )
        _put(state, change.before, change.after)
        return _left_unprotected(state, change.before)


def set_enabled(context: Context, name: str, enabled: bool) -> tuple[Schedule, str]:
    """Switch a schedule on or off; what fell in between is not caught up.

    Returns: the schedule, and the cluster that no enabled schedule backs up any more, else nothing.
    Raises: NotFound, UsageError (nothing is left to run), ConfigurationError, StateError.
    """
    now = context.clock.now()
    with context.state() as state:
        before = state.schedules.get(name)
        if before.enabled == enabled:
            return before, ""
        after = resumed(replace(before, enabled=enabled, changed=now), now)
        if enabled and after.next_due is None:
            raise UsageError(
                f"enable schedule: {name} has nothing left to run",
                hint="Give it new times with `datamanager schedule add`.",
            )
        _put(state, before, after)
        return after, _left_unprotected(state, before)


def remove(context: Context, name: str) -> tuple[Schedule, str]:
    """Forget a schedule; its history and all backups stay.

    Returns: what it was, and the cluster that no enabled schedule backs up any more, else nothing.
    Raises: NotFound, StateError.
    """
    with context.state() as state:
        before = state.schedules.get(name)
        audit.append(state, "schedule removed", name, before=described(before))
        state.schedules.remove(name)
        return before, _left_unprotected(state, before)


def _put(state: State, before: Schedule | None, after: Schedule) -> None:
    """The log first: nothing is changed without standing in it."""
    if before is None:
        action = "schedule added"
    elif before.enabled != after.enabled and _shape(before) == _shape(after):
        action = "schedule enabled" if after.enabled else "schedule disabled"
    else:
        action = "schedule changed"
    audit.append(
        state, action, after.name, before=None if before is None else described(before), after=described(after)
    )
    state.schedules.put(after)


def _found(state: State, name: str) -> Schedule | None:
    try:
        return state.schedules.get(name)
    except NotFound:
        return None


def _shape(schedule: Schedule) -> tuple[object, ...]:
    request = schedule.request
    return (dict(schedule.recurrence), request.kind, request.arguments, request.subject, request.limit_seconds)


def _identity(schedule: Schedule | None) -> tuple[object, ...] | None:
    """What people decide; not how far it has come."""
    return None if schedule is None else (*_shape(schedule), schedule.enabled, schedule.changed)


def _left_unprotected(state: State, before: Schedule | None) -> str:
    """The cluster that ``before`` backed up, when nothing that is enabled does any more."""
    if before is None or not before.enabled or before.request.kind != BACKUP:
        return ""
    subject = before.request.subject
    for one in state.schedules.list():
        if one.enabled and one.request.kind == BACKUP and one.request.subject == subject:
            return ""
    return subject


def note_called(state: State, name: str, now: datetime) -> None:
    """That something other than our planner calls for this schedule, as a timer of the system. Raises: StateError."""
    state.alerts.set_value(f"called:{name}", now.isoformat())


def called(state: State, name: str) -> datetime | None:
    """When ``note_called`` was last; None when never. Raises: StateError."""
    text = state.alerts.value(f"called:{name}")
    return datetime.fromisoformat(text) if text else None


def described(schedule: Schedule) -> dict[str, Any]:
    """A schedule as the audit log keeps it and ``--json`` shows it."""
    return {
        "schedule": schedule.name,
        "runs": in_words(schedule),
        "recurrence": dict(schedule.recurrence),
        "command": command_of(schedule.request),
        "limit_seconds": schedule.request.limit_seconds,
        "enabled": schedule.enabled,
    }


def command_of(request: JobRequest) -> str:
    """As it would be typed after ``datamanager``."""
    return f"{request.kind} {shlex.join(request.arguments)}".rstrip()


def in_words(schedule: Schedule) -> str:
    """When it runs, with its zone where that is not this computer's."""
    try:
        return words.describe(Recurrence.from_json(schedule.recurrence), _here())
    except ConfigurationError:
        return "at times that this release does not understand"


def _here() -> str:
    try:
        return machine_zone()
    except UsageError:
        return ""


def command_again(schedule: Schedule) -> str:
    """The command that makes the same schedule. Raises: ConfigurationError."""
    recurrence = Recurrence.from_json(schedule.recurrence)
    limit = schedule.request.limit_seconds
    given = [
        *("datamanager", "schedule", "add", schedule.name),
        *words.options(recurrence),
        *(() if limit is None else ("--limit", words.write_limit(limit))),
        *(() if schedule.enabled else ("--disabled",)),
        *("--", *schedule.request.kind.split(), *schedule.request.arguments),
    ]
    return shlex.join(given)


@dataclass(frozen=True)
class Shown:
    """A schedule as people see it.

    Args:
        next_runs: the next planned moments, the first five; empty when it is disabled or over.
        last: its newest run, None when it never ran; ``recent`` are the newest ones, the newest first.
    """

    schedule: Schedule
    next_runs: tuple[datetime, ...]
    recent: tuple[Job, ...]
    zone: str

    @property
    def last(self) -> Job | None:
        return self.recent[0] if self.recent else None

    @property
    def standing(self) -> str:
        """``on``, ``off``, or ``done`` when nothing is left to run."""
        if not self.schedule.enabled:
            return "off"
        return "on" if self.schedule.next_due is not None else "done"


def listed(context: Context) -> list[Shown]:
    """Every schedule, by name. Raises: StateError."""
    with context.state() as state:
        return [_shown(state, one, 1) for one in state.schedules.list()]


def shown(context: Context, name: str) -> Shown:
    """One schedule. Raises: NotFound, StateError."""
    with context.state() as state:
        return _shown(state, state.schedules.get(name), NEXT_RUNS)


def _shown(state: State, schedule: Schedule, count: int) -> Shown:
    recent = tuple(state.jobs.list(schedule=schedule.name, limit=count))
    try:
        recurrence = Recurrence.from_json(schedule.recurrence)
    except ConfigurationError:
        return Shown(schedule, (), recent, "UTC")
    if not schedule.enabled or schedule.next_due is None:
        return Shown(schedule, (), recent, recurrence.zone)
    later = islice(recurrence.between(schedule.next_due, None), NEXT_RUNS - 1)
    return Shown(schedule, (schedule.next_due, *later), recent, recurrence.zone)


def upcoming(context: Context, limit: int) -> list[tuple[datetime, Shown]]:
    """The next planned runs of all schedules, the soonest first; at most five of each. Raises: StateError."""
    found = [(moment, one) for one in listed(context) for moment in one.next_runs]
    return sorted(found, key=lambda pair: (pair[0], pair[1].schedule.name))[:limit]


@dataclass(frozen=True)
class Suggestion:
    """Args: zone - whose clocks ``hour`` is on; command - what would follow it."""

    hour: QuietHour
    zone: str
    command: str


def suggest(context: Context, cluster: str, zone: str | None = None) -> Suggestion:
    """The quiet hour of a cluster. Raises: NotFound, UsageError (the zone), ConfigurationError, StateError."""
    context.cluster(cluster)
    zone = zone or machine_zone()
    with context.state() as state:
        activity = state.known.activity(cluster)
        seconds = [duration for duration, _ in state.jobs.durations(BACKUP, cluster)]
    hour = quiet_hour(activity, zone, context.clock.now(), max(seconds, default=0.0))
    at = words.clock_time(hour.at).replace(" ", "")
    command = f"datamanager schedule add {cluster}-nightly --daily --at {at} -- backup run {cluster}"
    return Suggestion(hour, zone, command)


def exported(context: Context, name: str, system: native.System, account: str | None) -> native.Exported:
    """A schedule as the operating system's scheduler takes it.

    Args: account - who runs it; None is whoever exports it, unless that is root.
    Raises: NotFound, UsageError (it never runs again), ConfigurationError, StateError.
    """
    with context.state() as state:
        schedule = state.schedules.get(name)
    if account is None:
        account = "" if account_name() == "root" else account_name()
    caller = native.Caller(program(), _home_to_name(context.home), machine_zone(), account)
    found = native.export(name, Recurrence.from_json(schedule.recurrence), system, caller, context.clock.now())
    if schedule.enabled:
        return found
    off = f"{name} is disabled: what is exported does nothing until `datamanager schedule enable {name}`."
    return replace(found, warnings=(*found.warnings, off))


def _home_to_name(home: Home) -> Path | None:
    """The home, where its account would not find it by itself."""
    return home.config if home.config == home.state and home != system_home({}) else None


def write_files(folder: Path, files: Sequence[native.NativeFile]) -> list[Path]:
    """Write exported files into a folder. Raises: ConfigurationError."""
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            write_durably(folder / file.name, file.data)
            written.append(folder / file.name)
    except OSError as error:
        raise ConfigurationError(
            f"export schedule: {folder}: {(error.strerror or 'not possible').lower()}",
            hint="Give another folder with --out.",
        ) from error
    return written


def check_target(context: Context, cluster: str | None, repository: str | None) -> None:
    """That what a command names is there. Raises: NotFound, ConfigurationError."""
    if cluster is not None:
        context.cluster(cluster)
    if repository is not None and not any(letter in repository for letter in "/\\:"):
        context.repository(repository)


def said_of(job: Job) -> str:
    """How a run ended, in a few words."""
    if job.state is JobState.FAILED and job.cause:
        return f"{job.state}: {job.cause}"
    return str(job.state)
