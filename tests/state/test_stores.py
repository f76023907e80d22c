"""Schedules, alerts, proofs and what is known, on both databases."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from datamanager.base.errors import NotFound
from datamanager.state.database import State
from datamanager.state.model import Activity, JobRequest, KnownCluster, KnownRepository, Proof, Schedule, Trigger
from tests.state.parts import MORNING, MovedClock

HOUR = timedelta(hours=1)


def schedule(name: str = "nightly", **values: object) -> Schedule:
    request = JobRequest(
        "backup run", ("clinic", "\udcff"), "clinic", Trigger.SCHEDULE, schedule=name, limit_seconds=60.5
    )
    base = Schedule(name, {"kind": "daily", "at": ["01:00"]}, request, True, MORNING, MORNING, next_due=MORNING)
    return replace(base, **values)  # type: ignore[arg-type]


def test_a_schedule_comes_back_as_it_was_put(state: State) -> None:
    one = schedule(last_due=MORNING - HOUR, caught_up=2)
    state.schedules.put(one)
    assert state.schedules.get("nightly") == one
    changed = replace(one, enabled=False, next_due=None, recurrence={"kind": "once"})
    state.schedules.put(changed)
    assert state.schedules.list() == [changed]


def test_schedules_are_listed_by_name_and_removed(state: State) -> None:
    for name in ("b", "Z", "a"):
        state.schedules.put(schedule(name))
    assert [one.name for one in state.schedules.list()] == ["Z", "a", "b"]
    state.schedules.remove("Z")
    assert [one.name for one in state.schedules.list()] == ["a", "b"]
    for missing in (state.schedules.get, state.schedules.remove):
        with pytest.raises(NotFound):
            missing("Z")


def test_due_are_the_enabled_ones_whose_moment_has_come(state: State) -> None:
    state.schedules.put(schedule("now"))
    state.schedules.put(schedule("overdue", next_due=MORNING - HOUR))
    state.schedules.put(schedule("later", next_due=MORNING + timedelta(microseconds=1)))
    state.schedules.put(schedule("disabled", enabled=False, next_due=MORNING - 2 * HOUR))
    state.schedules.put(schedule("never", next_due=None))
    assert [one.name for one in state.schedules.due(MORNING)] == ["overdue", "now"]
    assert state.schedules.next_due() == MORNING - HOUR


def test_without_schedules_nothing_is_due(state: State) -> None:
    assert state.schedules.next_due() is None
    assert state.schedules.due(MORNING) == []


def test_dealing_with_a_moment_changes_nothing_else(state: State) -> None:
    one = schedule()
    state.schedules.put(one)
    state.schedules.dealt_with("nightly", MORNING, MORNING + HOUR, 3)
    assert state.schedules.get("nightly") == replace(one, last_due=MORNING, next_due=MORNING + HOUR, caught_up=3)
    state.schedules.dealt_with("removed", MORNING, None, 0)
    assert state.audit.list() == []


def test_dealing_with_a_moment_never_undoes_a_change_of_the_schedule(state: State) -> None:
    one = schedule()
    state.schedules.put(one)
    changed = replace(one, changed=MORNING + HOUR, next_due=MORNING + 5 * HOUR)
    state.schedules.put(changed)  # by someone at a terminal, after the planner had read it
    state.schedules.dealt_with("nightly", MORNING, MORNING + HOUR, 0, of=one)
    assert state.schedules.get("nightly") == changed
    state.schedules.dealt_with("nightly", MORNING + HOUR, None, 0, of=changed)
    state.schedules.dealt_with("nightly", MORNING, MORNING + HOUR, 0, of=changed)  # another one that was slower
    assert state.schedules.get("nightly").next_due is None


def test_one_alert_is_open_for_a_key(state: State, clock: MovedClock) -> None:
    first = state.alerts.raise_("failed:clinic", "Backup failed", "once", False)
    assert (first.first_seen, first.last_seen, first.sent, first.times_sent) == (MORNING, MORNING, None, 0)
    later = clock.move(hours=1)
    again = state.alerts.raise_("failed:clinic", "Backup failed", "twice", True)
    assert again == replace(first, text="twice", urgent=True, last_seen=later)
    state.alerts.raise_("other", "Other", "", False)
    assert [one.key for one in state.alerts.open()] == ["failed:clinic", "other"]


def test_an_alert_that_ended_begins_anew(state: State, clock: MovedClock) -> None:
    state.alerts.raise_("k", "t", "x", True)
    state.alerts.sent("k", MORNING)
    state.alerts.acknowledge("k", "anna")
    later = clock.move(hours=1)
    ended = state.alerts.clear("k")
    assert ended is not None
    assert (ended.ended, ended.times_sent, ended.acknowledged_by) == (later, 1, "anna")
    assert state.alerts.clear("k") is None
    assert state.alerts.open() == []
    new = state.alerts.raise_("k", "t", "x", True)
    assert (new.first_seen, new.acknowledged, new.times_sent) == (later, None, 0)
    assert state.alerts.list() == [new, ended]
    assert state.alerts.list(limit=1) == [new]


def test_telling_and_acknowledging_concern_the_newest_of_a_key(state: State, clock: MovedClock) -> None:
    state.alerts.raise_("k", "t", "x", True)
    state.alerts.clear("k")
    state.alerts.raise_("k", "t", "x", True)
    state.alerts.sent("k", MORNING)
    state.alerts.sent("k", MORNING + HOUR)
    acknowledged = state.alerts.acknowledge("k", "anna")
    assert (acknowledged.sent, acknowledged.times_sent) == (MORNING + HOUR, 2)
    assert (acknowledged.acknowledged, acknowledged.acknowledged_by) == (MORNING, "anna")
    assert [one.times_sent for one in state.alerts.list()] == [2, 0]
    with pytest.raises(NotFound):
        state.alerts.sent("none", MORNING)
    with pytest.raises(NotFound):
        state.alerts.acknowledge("none", "anna")


def test_a_small_fact_is_the_one_last_set(state: State) -> None:
    assert state.alerts.value("digest") is None
    state.alerts.set_value("digest", "one")
    state.alerts.set_value("digest", "two")
    assert state.alerts.value("digest") == "two"


def proof(**values: object) -> Proof:
    base = Proof("b1", "clinic", "7312", MORNING, MORNING + HOUR, True, 60.25, 12.5, {"rows": 2**40}, source="usb")
    return replace(base, **values)  # type: ignore[arg-type]


def test_proofs_are_listed_newest_first_by_cluster(state: State) -> None:
    good, bad = proof(job="j1"), proof(job="j2", passed=False, finding="index", time=MORNING + 2 * HOUR)
    other = proof(cluster="office", time=MORNING)
    for one in (good, bad, other):
        state.proofs.add(one)
    assert state.proofs.list() == [bad, good, other]
    assert state.proofs.list("clinic", limit=1) == [bad]
    assert state.proofs.last("clinic") == state.proofs.last("clinic", passed=False) == bad
    assert state.proofs.last("clinic", passed=True) == good
    assert state.proofs.last("none") is None


def test_the_proof_of_a_job_is_kept_once(state: State) -> None:
    for _ in range(2):
        state.proofs.add(proof(job="j1"))
    state.proofs.add(proof(job="j1", backup="b2"))
    assert [one.backup for one in state.proofs.list()] == ["b2", "b1"]


def test_what_is_known_of_clusters_is_replaced_and_forgotten(state: State) -> None:
    seen = KnownCluster("clinic", "7312", "17.6", 2**50, ("a", "ä"), "b1", MORNING, "usb", MORNING)
    state.known.put_cluster(KnownCluster("clinic"))
    state.known.put_cluster(seen)
    state.known.put_cluster(KnownCluster("branch"))
    state.known.add_activity("clinic", 0, 5)
    assert state.known.cluster("clinic") == seen
    assert state.known.clusters() == [KnownCluster("branch"), seen]
    state.known.forget_cluster("clinic")
    state.known.forget_cluster("clinic")
    assert state.known.cluster("clinic") is None
    assert state.known.activity("clinic") == []


def test_what_is_known_of_repositories_is_replaced_and_forgotten(state: State) -> None:
    seen = KnownRepository("usb", "/mnt/usb", "r1", 12, 2**50, None, MORNING)
    state.known.put_repository(KnownRepository("usb", "/old"))
    state.known.put_repository(seen)
    assert state.known.repository("usb") == seen
    assert state.known.repositories() == [seen]
    state.known.forget_repository("usb")
    assert state.known.repository("usb") is None


def test_activity_is_an_average_that_forgets_what_is_long_ago(state: State) -> None:
    for transactions in (10, 20, 60):
        state.known.add_activity("clinic", 167, transactions)
    state.known.add_activity("clinic", 3, 7)
    assert state.known.activity("clinic") == [Activity("clinic", 3, 7.0, 1), Activity("clinic", 167, 30.0, 3)]
    for _ in range(150):
        state.known.add_activity("clinic", 3, 1000)
    assert state.known.activity("clinic")[0].transactions == pytest.approx(1000, rel=0.01)
    with pytest.raises(ValueError, match="168"):
        state.known.add_activity("clinic", 168, 1)
