"""What is told, and when: each kind, its pace, and every second of days."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamanager.config.model import NotifyEvent
from datamanager.notify import rules
from datamanager.notify.message import Message, body_of
from datamanager.state.finding import Finding, Severity
from datamanager.state.model import Alert, Job, JobRequest, JobState, Trigger
from tests.notify.parts import NOW, OFFICE

OVERDUE = Finding(
    "overdue:clinic", Severity.AT_RISK, "clinic", "A planned backup is missing.", "datamanager backup run clinic"
)
NO_SCHEDULE = Finding(
    "no-schedule:lab",
    Severity.NOT_PROTECTED,
    "lab",
    "No schedule backs up database server lab by itself.",
    "datamanager schedule add lab-nightly --daily --at 1:00AM -- backup run lab",
)
SERVICE = Finding(
    "service:HL7",
    Severity.URGENT,
    "",
    "Service HL7 did not start again: it failed.",
    "datamanager job show 20261123T060000Z-3f9a1c",
)


@dataclass
class Office:
    """Plays the part of the state around the rules: alerts, what was told, and all messages."""

    now: datetime = NOW
    alerts: dict[str, Alert] = field(default_factory=dict)
    told: dict[str, datetime] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)
    heard: bool = True
    number: int = 0

    def look(self, *jobs: Job, found: Sequence[Finding] | None = ()) -> list[Message]:
        troubles = None if found is None else [one for one in map(rules.trouble_of, found) if one]
        known = rules.Known([*self.alerts.values()], self.told, {"clinic", "lab", "usb"}, self.heard)
        decision = rules.decide(jobs, troubles, known, OFFICE, self.now)
        self.told = decision.told
        for one in decision.raised:
            new = Alert(one.key, "", "", one.urgent, self.now, self.now)
            before = self.alerts.get(one.key, new)
            self.alerts[one.key] = replace(
                before, title=one.said.title, text=body_of(OFFICE, one.said), last_seen=self.now
            )
        for message in decision.messages:
            if message.key in self.alerts:
                self.alerts[message.key] = replace(self.alerts[message.key], sent=self.now)
        for key in decision.ended:
            del self.alerts[key]
        self.messages += decision.messages
        return decision.messages

    def later(self, **parts: float) -> None:
        self.now += timedelta(**parts)

    def job(
        self, state: JobState = JobState.FAILED, kind: str = "backup run", subject: str = "clinic", **values: object
    ) -> Job:
        self.number += 1
        made = Job(
            f"job-{self.number:06}", JobRequest(kind, (), subject, Trigger.SCHEDULE), state, self.now, ended=self.now
        )
        return replace(made, **values)  # type: ignore[arg-type]


def kinds(messages: Sequence[Message]) -> list[NotifyEvent]:
    return [message.event for message in messages]


def test_a_failure_is_told_at_once_then_daily_and_its_end_once() -> None:
    office = Office()
    assert kinds(office.look(office.job(cause="the drive is not there"))) == [NotifyEvent.FAILURE]
    for _ in range(23):
        office.later(hours=1)
        assert office.look(office.job()) == []
    office.later(hours=1)
    (again,) = office.look()
    assert again.title.startswith("[Dr. Miller, Family Practice] Reminder: the backup of clinic failed")
    assert "This has lasted since Monday, November 23, 2026 at 1:04 AM (EST)." in again.body
    office.later(minutes=5)
    (over,) = office.look(office.job(JobState.WARNED))
    assert (over.event, "good again" in over.title) == (NotifyEvent.RECOVERED, True)
    office.later(days=3)
    assert office.look(office.job(JobState.DONE)) == []


def test_a_cancelled_run_and_what_a_person_mistyped_are_no_news() -> None:
    office = Office()
    person = JobRequest("backup run", (), "clinc", Trigger.PERSON)
    assert office.look(office.job(JobState.CANCELLED), office.job(request=person, exit_code=11)) == []
    assert kinds(office.look(office.job(request=person, exit_code=20))) == [NotifyEvent.FAILURE]


def test_only_the_newest_run_of_a_subject_counts_when_many_ended_unseen() -> None:
    office = Office()
    runs = []
    for hour in range(30):
        runs.append(office.job(JobState.DONE if hour == 29 else JobState.FAILED))
        office.later(hours=1)
    assert office.look(*reversed(runs)) == []
    assert len(office.look(office.job(), office.job(), office.job(subject="lab"))) == 2


def test_a_good_backup_to_one_place_does_not_end_what_fails_to_another() -> None:
    office = Office()
    to_drive = JobRequest("backup run", ("clinic", "--repo", "drive"), "clinic", Trigger.SCHEDULE)
    to_office = JobRequest("backup run", ("clinic", "--repo=office"), "clinic", Trigger.SCHEDULE)
    # Both ended before anybody looked.
    failed = office.job(request=to_drive)
    office.later(minutes=1)
    good = office.job(JobState.DONE, request=to_office, result={"repository": "office"})
    assert kinds(office.look(failed, good)) == [NotifyEvent.FAILURE]
    for _ in range(5):
        office.later(hours=4)
        assert office.look(replace(good, id=f"{good.id}+", ended=office.now)) == []
    (over,) = office.look(office.job(JobState.DONE, request=to_drive, result={"repository": "drive"}))
    assert over.event is NotifyEvent.RECOVERED
    assert office.alerts == {}


def test_any_good_backup_of_a_cluster_ends_a_failure_that_named_no_place() -> None:
    office = Office()
    assert len(office.look(office.job())) == 1
    office.later(hours=2)
    to_usb = JobRequest("backup run", ("clinic", "--repo", "usb"), "clinic", Trigger.PERSON)
    (over,) = office.look(office.job(JobState.DONE, request=to_usb, result={"repository": "usb"}))
    assert over.event is NotifyEvent.RECOVERED


def test_a_restore_that_failed_once_in_front_of_a_person_is_not_repeated_for_ever() -> None:
    office = Office()
    asked = JobRequest("restore", (), "clinic", Trigger.PERSON)
    assert len(office.look(office.job(request=asked, exit_code=51))) == 1
    for _ in range(72):
        office.later(hours=1)
        assert office.look() == []
    assert office.alerts == {}


def test_a_failure_of_something_that_is_configured_no_longer_ends_in_silence() -> None:
    office = Office()
    office.look(office.job(subject="gone"))
    assert len(office.messages) == 1
    for _ in range(48):
        office.later(hours=1)
        office.look()
    assert (len(office.messages), office.alerts) == (1, {})


def test_overdue_is_told_when_it_has_lasted_and_not_beside_the_failures_that_explain_it() -> None:
    office = Office()
    assert office.look(found=[OVERDUE]) == []
    office.later(minutes=11)
    assert kinds(office.look(found=[OVERDUE])) == [NotifyEvent.OVERDUE]
    office.later(hours=2)
    (over,) = office.look(found=[])
    assert (over.event, "This is over: A backup is overdue" in over.body) == (NotifyEvent.RECOVERED, True)
    failing = Office()
    failing.look(failing.job())
    for _ in range(100):
        failing.later(minutes=5)
        failing.look(found=[OVERDUE])
    assert kinds(failing.messages) == [NotifyEvent.FAILURE]


def test_what_computers_find_while_they_start_up_is_not_told() -> None:
    office = Office()
    for _ in range(9):
        office.look(found=[OVERDUE, NO_SCHEDULE])
        office.later(minutes=1)
    office.look(found=[])
    assert office.messages == []


def test_nobody_looking_changes_nothing() -> None:
    office = Office()
    office.look(found=[NO_SCHEDULE])
    office.later(minutes=11)
    assert len(office.look(found=[NO_SCHEDULE])) == 1
    office.later(days=1)
    assert office.look(found=None) == []
    assert list(office.alerts) == ["found:no-schedule:lab"]


def test_advice_and_what_is_only_at_risk_wait_for_the_summary() -> None:
    office = Office()
    found = [
        Finding("not-proven:clinic", Severity.AT_RISK, "clinic", "Not proven.", ""),
        Finding("one-place:clinic", Severity.ADVICE, "clinic", "One place only.", ""),
        Finding("failed:clinic", Severity.AT_RISK, "clinic", "The last backup failed.", ""),
        Finding("test-failed:clinic", Severity.NOT_PROTECTED, "clinic", "The last test restore failed.", ""),
    ]
    for _ in range(5):
        office.look(found=found)
        office.later(hours=1)
    assert office.messages == []


def test_something_urgent_goes_everywhere_each_hour_until_acknowledged_and_its_end_too() -> None:
    office = Office()
    for minute in range(181):
        sent = office.look(found=[SERVICE])
        assert bool(sent) == (minute % 60 == 0)
        assert all(message.urgent and message.everywhere for message in sent)
        office.later(minutes=1)
    assert 'datamanager notify acknowledge "found:service:HL7"' in office.messages[0].body
    key = "found:service:HL7"
    office.alerts[key] = replace(office.alerts[key], acknowledged=office.now, acknowledged_by="anna")
    for _ in range(240):
        office.later(minutes=1)
        assert office.look(found=[SERVICE]) == []
    (over,) = office.look(found=[])
    assert (over.event, over.everywhere, over.urgent) == (NotifyEvent.RECOVERED, True, False)


def test_with_nobody_to_tell_everything_open_is_told_once_there_is_somebody() -> None:
    office = Office(heard=False)
    office.look(office.job())
    for _ in range(60):
        office.later(minutes=1)
        assert office.look() == []
    office.heard = True
    (late,) = office.look()
    assert not late.title.startswith("[Dr. Miller, Family Practice] Reminder")


def test_a_clock_that_was_wrong_by_years_silences_nothing() -> None:
    office = Office(now=NOW + timedelta(days=4000))
    office.look(office.job())
    office.now = NOW
    assert len(office.look(office.job())) == 1


def test_looked_at_every_second_for_two_days_nothing_comes_twice_within_its_pace() -> None:
    office = Office()
    for second in range(2 * 86400 + 1):
        jobs = [office.job()] if second % 3600 == 0 else []
        office.look(*jobs, found=[OVERDUE, NO_SCHEDULE, SERVICE] if second % 30 == 0 else None)
        office.later(seconds=1)
    times: dict[str, list[datetime]] = {}
    for message in office.messages:
        times.setdefault(message.key, []).append(message.created)
    assert {key: len(one) for key, one in times.items()} == {
        "failed:backup run:clinic": 3,
        "found:service:HL7": 49,
        "found:no-schedule:lab": 2,
    }


_STEP = st.tuples(
    st.sampled_from(["good", "bad", "nothing"]), st.booleans(), st.integers(min_value=1, max_value=40 * 3600)
)


@settings(max_examples=200, deadline=None)
@given(st.lists(_STEP, max_size=60))
def test_whatever_comes_and_goes_each_message_keeps_its_pace(steps: list[tuple[str, bool, int]]) -> None:
    office = Office()
    last: dict[str, Message] = {}
    for run, wrong, seconds in steps:
        jobs = {"good": [office.job(JobState.DONE)], "bad": [office.job()], "nothing": []}[run]
        for message in office.look(*jobs, found=[NO_SCHEDULE] if wrong else []):
            before = last.get(message.key)
            pace = timedelta(hours=24) if "Reminder" in message.title else timedelta(hours=1)
            assert before is None or message.created - before.created >= pace
            last[message.key] = message
        office.later(seconds=seconds)


def test_each_beginning_that_was_told_has_one_end() -> None:
    office = Office()
    for _ in range(20):
        office.look(office.job())
        office.later(hours=2)
        office.look(office.job(JobState.DONE))
        office.later(hours=2)
    assert kinds(office.messages) == [NotifyEvent.FAILURE, NotifyEvent.RECOVERED] * 20


@pytest.mark.parametrize("kind", ["backup run", "drill run", "repo verify", "something new"])
def test_every_failure_says_what_happened_what_it_means_and_one_next_step(kind: str) -> None:
    office = Office()
    (told,) = office.look(office.job(kind=kind, cause="", summary=""))
    assert told.body.count("WHAT HAPPENED") == told.body.count("WHAT IT MEANS") == 1
    assert f"datamanager job log {'job-000001'}" in told.body.partition("WHAT TO DO NEXT")[2]
