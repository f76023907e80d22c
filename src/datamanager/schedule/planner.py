"""What is to be done about each schedule at a moment. Pure: it reads no clock and changes nothing.

A planned moment is dealt with exactly once: run when it comes; of those that were missed only the newest is caught up,
after things have settled; what fell in while a schedule was disabled is not. Whoever carries a decision out queues its
request first (the state takes a pair of schedule and due moment once) and then notes ``last_due`` and ``next_due``; cut
in between, the same decision comes again and is refused as queued already.

Clocks are wrong now and then. One set forward makes one run, not a burst. One set back by up to a day makes none: what
ran does not run again. One set back by more was wrong before, or is now, and nobody may be left without backups until
it has come round again: the next moment is planned anew from the clock as it is.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import islice

from datamanager.schedule.recurrence import Recurrence
from datamanager.schedule.words import counted
from datamanager.state.model import JobRequest, Schedule, Trigger

# PostgreSQL, drives and the network need a moment after the machine's start; so do people who are told of failures.
SETTLE_SECONDS = 120.0
# A pause of the planner longer than this was sleep of the machine (or a hang): its rounds come every second.
PAUSE_SECONDS = 60.0
# Later than this is not on time any more, although somebody was looking: the clock was moved.
_ON_TIME = timedelta(minutes=5)
_SET_BACK = timedelta(days=1)
# So many runs in a row that came late because the machine was off make a better hour worth suggesting.
SUGGEST_AFTER = 3
_COUNTED = 1000
# A scheduler of the operating system that calls every quarter of an hour is in time.
_CALLED_IN_TIME = timedelta(minutes=20)


class Missed(enum.StrEnum):
    """Why nothing ran at the planned moment."""

    MACHINE_OFF = "the computer was off"
    ASLEEP = "the computer was asleep"
    SERVICE_OFF = "the service was not running"
    CLOCK = "the clock was set forward"
    NOT_CALLED = "nothing began it"


@dataclass(frozen=True, slots=True)
class Situation:
    """What is known of a moment; lengths in seconds, from a clock that is never set.

    Args:
        now: the wall clock, in UTC.
        machine_seconds: for how long the machine has been up; sleep counts.
        planner_seconds: for how long this planner has been running; sleep counts.
        looking_seconds: for how long it has looked without a pause; see ``Watch``.
    """

    now: datetime
    machine_seconds: float
    planner_seconds: float
    looking_seconds: float


class Watch:
    """Since when a planner looks without a pause. Not thread-safe."""

    def __init__(self, elapsed: float) -> None:
        self._since = self._last = elapsed

    def look(self, elapsed: float) -> float:
        """Called in each round with the boot clock; returns ``looking_seconds``."""
        if elapsed - self._last > PAUSE_SECONDS:
            self._since = elapsed
        self._last = elapsed
        return elapsed - self._since


@dataclass(frozen=True, slots=True)
class Run:
    """Queue ``request``, then note the rest with ``dealt_with``.

    Args:
        due: the planned moment that it is for.
        missed: planned moments before ``due`` that are given up with it.
        reason: why it comes late; None when it comes in time.
        message: why it comes late, one sentence for people; empty when it comes in time.
        suggest: it was late so often in a row because the machine is off then that another hour should be suggested.
    """

    schedule: str
    request: JobRequest
    due: datetime
    last_due: datetime
    next_due: datetime | None
    caught_up: int
    missed: int = 0
    reason: Missed | None = None
    message: str = ""
    suggest: bool = False


@dataclass(frozen=True, slots=True)
class Replan:
    """Nothing runs, but the next moment is another one than was noted: note it with ``dealt_with``."""

    schedule: str
    last_due: datetime | None
    next_due: datetime | None
    caught_up: int
    message: str = ""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before ``until``. Args: settling - a run was missed and is caught up then."""

    schedule: str
    until: datetime
    settling: bool = False


Decision = Run | Replan | Wait


def decide(
    schedules: Iterable[Schedule], situation: Situation, settle_seconds: float = SETTLE_SECONDS
) -> list[Decision]:
    """One decision for each schedule that is enabled and still has something planned.

    Raises: ConfigurationError, for a schedule whose times this release does not understand; see ``decide_one``.
    """
    found = (decide_one(one, situation, settle_seconds) for one in schedules)
    return [decision for decision in found if decision is not None]


def decide_one(schedule: Schedule, situation: Situation, settle_seconds: float = SETTLE_SECONDS) -> Decision | None:
    """What is to be done about one schedule; None when it is disabled or over. Raises: ConfigurationError."""
    if not schedule.enabled or schedule.next_due is None:
        return None
    recurrence, now = Recurrence.from_json(schedule.recurrence), situation.now
    due, set_back = _planned(schedule, recurrence, now)
    if due is None or due > now:
        if due == schedule.next_due:
            return Wait(schedule.name, schedule.next_due)
        message = f"{schedule.name}: the clock was set back, so its runs are planned anew." if set_back else ""
        return Replan(schedule.name, schedule.last_due, due, schedule.caught_up, message)
    newest = recurrence.at_or_before(now) or due
    reason = _why_late(newest, situation)
    if reason is None:
        return _run(schedule, recurrence, due, newest, None)
    if situation.looking_seconds < settle_seconds and reason is not Missed.CLOCK:
        return Wait(schedule.name, now + timedelta(seconds=settle_seconds - situation.looking_seconds), settling=True)
    return _run(schedule, recurrence, due, newest, reason)


def due_now(schedule: Schedule, now: datetime) -> Run | Replan | None:
    """The same for a scheduler of the operating system, which calls now and then and settles by itself.

    Returns: None when there is nothing to do. Raises: ConfigurationError.
    """
    if not schedule.enabled or schedule.next_due is None:
        return None
    recurrence = Recurrence.from_json(schedule.recurrence)
    due, _ = _planned(schedule, recurrence, now)
    if due is None or due > now:
        return None if due == schedule.next_due else Replan(schedule.name, schedule.last_due, due, schedule.caught_up)
    newest = recurrence.at_or_before(now) or due
    return _run(schedule, recurrence, due, newest, None if now - newest <= _CALLED_IN_TIME else Missed.NOT_CALLED)


def _planned(schedule: Schedule, recurrence: Recurrence, now: datetime) -> tuple[datetime | None, bool]:
    """The oldest planned moment that is not dealt with, and whether the clock turned out to have been set back."""
    due, last = schedule.next_due, schedule.last_due
    if due is not None and last is not None and due <= last <= now:
        newest = recurrence.at_or_before(now)
        if newest is not None and due < newest <= last:
            # It was planned while the clock was behind; the clock is right again, and this was dealt with before.
            due = recurrence.after(last)
    if due is None:
        return None, False
    before = recurrence.at_or_before(due - timedelta(seconds=1))
    if before is not None and before > now + _SET_BACK:
        return recurrence.after(now), True
    return due, False


def _why_late(newest: datetime, situation: Situation) -> Missed | None:
    """Looks at the newest moment alone: that is the one that would run."""
    late = (situation.now - newest).total_seconds()
    if late <= situation.looking_seconds:
        return None if late <= _ON_TIME.total_seconds() else Missed.CLOCK
    if late > situation.machine_seconds:
        return Missed.MACHINE_OFF
    return Missed.SERVICE_OFF if late > situation.planner_seconds else Missed.ASLEEP


def _run(schedule: Schedule, recurrence: Recurrence, oldest: datetime, newest: datetime, reason: Missed | None) -> Run:
    missed = sum(1 for _ in islice(recurrence.between(oldest - timedelta(seconds=1), newest), _COUNTED)) - 1
    late = 0 if reason is None else schedule.caught_up + 1
    due = _distinct(newest, schedule.last_due)
    request = replace(schedule.request, schedule=schedule.name, due=due, trigger=Trigger.SCHEDULE)
    message = ""
    if reason is not None:
        request = replace(request, trigger=Trigger.CATCH_UP, low_priority=True)
        message = f"{schedule.name} runs late because {reason} at the planned time"
        message += f"; {counted(missed, 'earlier run')} {'is' if missed == 1 else 'are'} given up." if missed else "."
    return Run(
        schedule.name,
        request,
        due,
        max(newest, schedule.last_due or newest),
        recurrence.after(newest),
        late,
        max(missed, 0),
        reason,
        message,
        suggest=reason in (Missed.MACHINE_OFF, Missed.ASLEEP) and late >= SUGGEST_AFTER,
    )


def _distinct(due: datetime, last_due: datetime | None) -> datetime:
    """The moment under which a run is queued; some seconds later when the clock showed later times before.

    A pair of schedule and moment is queued once for ever, so without this a clock that is corrected by weeks would keep
    everything from running until the day it showed before.
    """
    if last_due is None or due > last_due:
        return due
    return due + timedelta(seconds=1 + int(last_due.timestamp()) // 60 % 59)


def resumed(schedule: Schedule, now: datetime) -> Schedule:
    """The schedule as it is when it is made, changed or enabled now: what fell in before is not caught up.

    Raises: ConfigurationError.
    """
    following = Recurrence.from_json(schedule.recurrence).after(now)
    return replace(schedule, next_due=following if schedule.enabled else None, caught_up=0)
