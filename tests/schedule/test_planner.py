"""What is to be done about a schedule: in time, late, after sleep, with clocks that are set."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamanager.schedule.planner import (
    PAUSE_SECONDS,
    SETTLE_SECONDS,
    Missed,
    Replan,
    Run,
    Situation,
    Wait,
    Watch,
    decide,
    decide_one,
    due_now,
    resumed,
)
from datamanager.schedule.recurrence import Kind, Recurrence, ShortMonths
from datamanager.state.model import Schedule, Trigger
from tests.schedule.parts import DAY, recurrence, recurrences, schedule, utc

HOUR, MINUTE, SECOND = timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1)


def looking(elapsed: float, since_seconds: int = 100_000) -> Watch:
    """A watch that has looked without a pause for that long."""
    watch = Watch(elapsed - since_seconds)
    for ago in range(since_seconds, -1, -50):
        watch.look(elapsed - ago)
    return watch


@dataclass
class Planner:
    """A machine with a planner: carries its decisions out as the service does, into a queue that takes each due once.

    Its wall clock is moved by itself; the clock that is never set goes on with time alone.
    """

    schedule: Schedule
    now: datetime
    elapsed: float = 1_000_000.0
    booted: float = 0.0
    began: float = 0.0
    queue: dict[datetime, Run] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    replans: list[Replan] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.watch = looking(self.elapsed)

    def situation(self) -> Situation:
        looking = self.watch.look(self.elapsed)
        return Situation(self.now, self.elapsed - self.booted, self.elapsed - self.began, looking)

    def look(self) -> Run | Replan | Wait | None:
        decision = decide_one(self.schedule, self.situation())
        if isinstance(decision, Run):
            if decision.due not in self.queue:
                self.queue[decision.due] = decision
                self.runs.append(decision)
            self._note(decision)
        elif isinstance(decision, Replan):
            self.replans.append(decision)
            self._note(decision)
        return decision

    def _note(self, decision: Run | Replan) -> None:
        self.schedule = replace(
            self.schedule,
            last_due=decision.last_due,
            next_due=decision.next_due,
            caught_up=decision.caught_up,
        )

    def wait(self, span: timedelta, step: timedelta = 30 * SECOND) -> None:
        """Let time pass while the planner looks."""
        end = self.now + span
        while self.now < end:
            by = min(step, end - self.now)
            for second in range(50, int(by.total_seconds()), 50):
                self.watch.look(self.elapsed + second)
            self.pass_by(by)
            self.look()

    def pass_by(self, span: timedelta) -> None:
        """Let time pass while nobody looks."""
        self.now += span
        self.elapsed += span.total_seconds()

    def sleep(self, span: timedelta) -> None:
        self.pass_by(span)
        self.look()

    def restart_service(self, after: timedelta) -> None:
        self.pass_by(after)
        self.began = self.elapsed
        self.watch = Watch(self.elapsed)
        self.look()

    def reboot(self, after: timedelta) -> None:
        self.pass_by(after)
        self.elapsed = 10.0
        self.booted, self.began = 0.0, 10.0
        self.watch = Watch(self.elapsed)
        self.look()

    def set_clock(self, by: timedelta) -> None:
        self.now += by
        self.look()


def planner(one: Recurrence | None = None, now: datetime | None = None) -> Planner:
    """By default at 10:00 UTC, a job every day at 1:00 UTC."""
    begin = now or utc(2026, 11, 23, 10)
    made = schedule(one or recurrence(zone="Etc/UTC"))
    return Planner(resumed(made, begin), begin)


def dues(found: Planner) -> list[datetime]:
    return [run.due for run in found.runs]


def test_a_run_comes_in_time_and_once() -> None:
    found = planner()
    found.wait(3 * DAY)
    assert dues(found) == [utc(2026, 11, day, 1) for day in (24, 25, 26)]
    assert {run.reason for run in found.runs} == {None}
    request = found.runs[0].request
    assert (request.schedule, request.due, request.trigger) == ("nightly", utc(2026, 11, 24, 1), Trigger.SCHEDULE)
    assert not request.low_priority
    assert found.schedule.caught_up == 0


def test_until_then_it_waits_for_the_next_moment() -> None:
    found = planner()
    assert found.look() == Wait("nightly", utc(2026, 11, 24, 1))


def test_a_missed_run_is_caught_up_once_after_things_have_settled() -> None:
    found = planner()
    found.reboot(20 * HOUR)
    assert found.look() == Wait("nightly", found.now + SETTLE_SECONDS * SECOND, settling=True)
    found.wait(119 * SECOND, SECOND)
    assert found.runs == []
    found.wait(2 * HOUR)
    assert dues(found) == [utc(2026, 11, 24, 1)]
    run = found.runs[0]
    assert run.reason is Missed.MACHINE_OFF
    assert run.request.trigger is Trigger.CATCH_UP
    assert run.request.low_priority
    assert run.message == "nightly runs late because the computer was off at the planned time."
    assert found.schedule.caught_up == 1


def test_of_several_missed_runs_the_newest_is_caught_up_and_the_others_are_given_up() -> None:
    found = planner()
    found.reboot(5 * DAY)
    found.wait(HOUR)
    assert dues(found) == [utc(2026, 11, 28, 1)]
    assert found.runs[0].missed == 4
    assert found.runs[0].message.endswith("; 4 earlier runs are given up.")
    found.wait(DAY)
    assert dues(found)[1:] == [utc(2026, 11, 29, 1)]


def test_a_machine_that_was_off_is_told_from_a_service_that_was_off_and_from_sleep() -> None:
    off, stopped, asleep = planner(), planner(), planner()
    off.reboot(20 * HOUR)
    stopped.restart_service(20 * HOUR)
    asleep.sleep(20 * HOUR)
    for found in (off, stopped, asleep):
        found.wait(5 * MINUTE)
    assert [found.runs[0].reason for found in (off, stopped, asleep)] == [
        Missed.MACHINE_OFF,
        Missed.SERVICE_OFF,
        Missed.ASLEEP,
    ]
    assert {len(found.runs) for found in (off, stopped, asleep)} == {1}


def test_a_run_that_falls_into_the_settling_is_in_time() -> None:
    found = planner()
    found.reboot(15 * HOUR - 30 * SECOND)
    found.wait(40 * SECOND, SECOND)
    assert [(run.due, run.reason) for run in found.runs] == [(utc(2026, 11, 24, 1), None)]


def test_the_third_night_in_a_row_with_the_machine_off_suggests_another_hour() -> None:
    found = planner()
    for night in range(4):
        found.reboot(20 * HOUR if night == 0 else 23 * HOUR)
        found.wait(HOUR)
    assert [run.suggest for run in found.runs] == [False, False, True, True]
    found.wait(DAY)
    assert not found.runs[-1].suggest
    assert found.schedule.caught_up == 0


def test_a_service_that_was_off_suggests_nothing() -> None:
    found = planner()
    for _ in range(4):
        found.restart_service(23 * HOUR)
        found.wait(HOUR)
    assert [run.suggest for run in found.runs] == [False] * len(found.runs)


@pytest.mark.parametrize("back", [HOUR, 5 * HOUR, 23 * HOUR])
def test_a_clock_set_back_by_hours_runs_nothing_again(back: timedelta) -> None:
    found = planner()
    found.wait(15 * HOUR + 10 * MINUTE)
    assert dues(found) == [utc(2026, 11, 24, 1)]
    found.set_clock(-back)
    found.wait(back + 2 * MINUTE)
    assert dues(found) == [utc(2026, 11, 24, 1)]
    found.wait(DAY)
    assert dues(found) == [utc(2026, 11, 24, 1), utc(2026, 11, 25, 1)]


def test_a_weekly_job_does_not_run_again_when_the_clock_goes_back_over_it() -> None:
    found = planner(recurrence(Kind.WEEKLY, weekdays=(1,), zone="Etc/UTC"))
    found.wait(15 * HOUR + 10 * MINUTE)
    found.set_clock(-2 * HOUR)
    found.wait(3 * DAY, 4 * MINUTE)
    assert dues(found) == [utc(2026, 11, 24, 1)]


def test_a_clock_set_back_by_weeks_leaves_nobody_without_backups_until_it_has_come_round() -> None:
    found = planner()
    found.wait(20 * DAY, 4 * MINUTE)
    assert len(found.runs) == 20
    found.set_clock(-15 * DAY)
    assert len(found.replans) == 1
    assert "the clock was set back" in found.replans[0].message
    found.wait(3 * DAY, 4 * MINUTE)
    assert len(found.runs) == 23, "one run a day, though the queue has seen these days before"
    found.wait(20 * DAY, 4 * MINUTE)
    assert len(found.runs) == 43, "and while it comes round"


@pytest.mark.parametrize("forward", [3 * HOUR, 16 * HOUR, 40 * DAY, 4000 * DAY])
def test_a_clock_set_forward_makes_one_run_and_no_burst(forward: timedelta) -> None:
    found = planner()
    found.wait(HOUR)
    found.set_clock(forward)
    found.wait(3 * MINUTE)
    assert len(found.runs) == (0 if forward == 3 * HOUR else 1)
    for run in found.runs:
        assert run.reason is Missed.CLOCK
    found.wait(DAY)
    assert len(found.runs) == (1 if forward == 3 * HOUR else 2)


@pytest.mark.parametrize("wrong", [3 * DAY, 400 * DAY, 9000 * DAY])
def test_a_clock_that_was_years_ahead_and_is_mended_goes_on_with_one_run_a_day(wrong: timedelta) -> None:
    found = planner()
    found.set_clock(wrong)
    found.wait(10 * MINUTE)
    assert len(found.runs) == 1
    found.set_clock(-wrong)
    found.wait(5 * DAY, 5 * MINUTE)
    assert len(found.runs) == 6
    assert found.schedule.next_due == utc(2026, 11, 29, 1)


def test_a_machine_that_wakes_in_the_year_2000_and_is_mended_by_the_network_does_not_rerun_last_night() -> None:
    found = planner()
    found.wait(16 * HOUR)
    assert len(found.runs) == 1
    right = found.now
    found.reboot(HOUR)
    found.set_clock(utc(2000, 1, 1) - found.now)
    found.wait(10 * MINUTE)
    found.set_clock(right + 2 * HOUR - found.now)
    found.wait(4 * MINUTE)
    assert len(found.runs) == 1
    assert found.look() == Wait("nightly", utc(2026, 11, 25, 1))


def test_a_schedule_that_was_disabled_does_not_catch_up_what_fell_in_between() -> None:
    found = planner()
    found.wait(16 * HOUR)
    found.schedule = resumed(replace(found.schedule, enabled=False), found.now)
    found.wait(5 * DAY, HOUR)
    assert found.look() is None
    found.schedule = resumed(replace(found.schedule, enabled=True), found.now)
    found.wait(2 * HOUR)
    assert dues(found) == [utc(2026, 11, 24, 1)]
    found.wait(DAY)
    assert dues(found) == [utc(2026, 11, 24, 1), utc(2026, 11, 30, 1)]


@pytest.mark.requirement("R81", missing="that the table survives a reboot is shown with the service")
def test_a_planner_killed_between_queueing_and_noting_queues_nothing_twice() -> None:
    found = planner()
    found.pass_by(15 * HOUR + SECOND)
    before = found.schedule
    found.watch = Watch(found.elapsed - 10)
    assert isinstance(found.look(), Run)
    found.schedule = before
    assert isinstance(found.look(), Run)
    assert len(found.runs) == 1


@pytest.mark.requirement("R87", missing="the history is shown on the command line")
def test_a_job_that_runs_once_is_done_after_it() -> None:
    found = planner(recurrence(Kind.ONCE, start=utc(2026, 11, 24).date(), zone="Etc/UTC"))
    found.wait(3 * DAY, MINUTE)
    assert dues(found) == [utc(2026, 11, 24, 1)]
    assert found.schedule.next_due is None
    assert found.look() is None


def test_a_changed_schedule_does_not_run_for_what_is_past() -> None:
    found = planner()
    found.wait(16 * HOUR)
    changed = recurrence(at="09:00", zone="Etc/UTC")
    found.wait(10 * HOUR, 4 * MINUTE)
    found.schedule = resumed(replace(found.schedule, recurrence=changed.to_json()), found.now)
    found.wait(HOUR)
    assert len(found.runs) == 1
    found.wait(DAY)
    assert dues(found)[1:] == [utc(2026, 11, 25, 9)]


def test_every_schedule_gets_its_own_decision_and_disabled_ones_get_none() -> None:
    now = utc(2026, 11, 23, 10)
    waiting, off = resumed(schedule(), now), resumed(schedule(enabled=False), now)
    found = decide([waiting, off], Situation(now, 1e6, 1e6, 1e6))
    assert [type(one) for one in found] == [Wait]


def test_a_pause_longer_than_a_minute_is_sleep() -> None:
    watch = Watch(0.0)
    assert watch.look(50.0) == 50.0
    assert watch.look(50.0 + PAUSE_SECONDS) == 50.0 + PAUSE_SECONDS
    assert watch.look(500.0) == 0.0
    assert watch.look(501.0) == 1.0


def test_another_scheduler_is_told_once_that_a_run_is_due() -> None:
    one = resumed(schedule(recurrence(zone="Etc/UTC")), utc(2026, 11, 23, 10))
    assert due_now(one, utc(2026, 11, 24, 0, 59, 59)) is None
    run = due_now(one, utc(2026, 11, 24, 1))
    assert isinstance(run, Run)
    assert (run.due, run.reason) == (utc(2026, 11, 24, 1), None)
    noted = replace(one, last_due=run.last_due, next_due=run.next_due)
    assert due_now(noted, utc(2026, 11, 24, 1, 15)) is None
    late = due_now(one, utc(2026, 11, 26, 8))
    assert isinstance(late, Run)
    assert (late.due, late.reason, late.missed) == (utc(2026, 11, 26, 1), Missed.NOT_CALLED, 2)
    assert due_now(replace(one, enabled=False), utc(2026, 11, 24, 1)) is None


_EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["wait", "sleep", "reboot", "service", "clock"]),
        st.integers(1, 40),
        st.sampled_from([-1, 1]),
    ),
    min_size=1,
    max_size=8,
)


@given(recurrences((Kind.HOURLY, Kind.DAILY, Kind.WEEKLY, Kind.MONTHLY)), _EVENTS)
@settings(max_examples=40, deadline=None)
def test_whatever_happens_to_the_machine_and_its_clock_there_is_never_a_burst(
    one: Recurrence, events: list[tuple[str, int, int]]
) -> None:
    one = replace(one, start=utc(2026, 1, 1).date())
    found = planner(one)
    for what, hours, sign in events:
        before = len(found.runs)
        span = hours * HOUR
        match what:
            case "wait":
                found.wait(span, 4 * MINUTE)
                planned = len(list(one.between(found.now - span, found.now)))
                # Those of the time itself, the one caught up, and one at the seam of a clock that was set.
                assert len(found.runs) - before <= planned + 2
            case "sleep":
                found.sleep(span)
            case "reboot":
                found.reboot(span)
            case "service":
                found.restart_service(span)
            case "clock":
                found.set_clock(sign * span)
        if what != "wait":
            assert len(found.runs) - before <= 1
    assert len(set(dues(found))) == len(found.runs)


@given(recurrences((Kind.DAILY, Kind.WEEKLY, Kind.MONTHLY)), st.integers(0, 700))
@settings(max_examples=40, deadline=None)
def test_with_a_machine_that_stays_on_every_planned_moment_runs_in_time(one: Recurrence, begin_day: int) -> None:
    begin = utc(2026, 1, 1) + begin_day * DAY
    end, found = begin + 100 * DAY, planner(one, begin)
    while (until := found.look()) is not None and found.now <= end:
        # Goes over the idle time: a planner that looked all the while.
        found.pass_by(until.until - found.now if isinstance(until, Wait) else SECOND)
        found.watch = looking(found.elapsed, 1000)
    assert [due for due in dues(found) if due <= end] == list(one.between(begin, end))
    assert {run.reason for run in found.runs} <= {None}


def test_day_31_is_caught_up_like_any_other() -> None:
    found = planner(recurrence(Kind.MONTHLY, day=31, short_months=ShortMonths.SKIP, zone="Etc/UTC"))
    found.reboot(390 * DAY)
    found.wait(HOUR)
    assert dues(found) == [utc(2027, 10, 31, 1)]
