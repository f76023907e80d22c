"""Jobs: asked for once, claimed once, found again."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from datamanager.base.errors import NotFound, UsageError
from datamanager.state.database import State
from datamanager.state.model import JobEvent, JobProgress, JobRequest, JobState
from tests.state.contents import FULL_JOB
from tests.state.parts import MORNING, MovedClock, backup, done

RUNNING, QUEUED = JobState.RUNNING, JobState.QUEUED


def test_a_job_comes_back_as_it_was_saved(state: State) -> None:
    state.jobs.save(FULL_JOB)
    assert state.jobs.get(FULL_JOB.id) == FULL_JOB


def test_text_that_no_database_takes_is_kept_readable(state: State) -> None:
    state.jobs.save(done(MORNING, summary="file a\udcffb\0c"))
    assert state.jobs.list()[0].summary == "file a\\udcffb\\x00c"


def test_a_queued_job_waits_with_the_time_of_its_asking(state: State, clock: MovedClock) -> None:
    first = state.jobs.add(backup("clinic"))
    clock.move(seconds=1)
    second = state.jobs.add(backup("office"), id="20261123T060001Z-given1")
    assert first is not None
    assert second is not None
    assert (second.id, second.state, second.queued) == ("20261123T060001Z-given1", QUEUED, clock.now())
    assert state.jobs.queued() == [first, second]


def test_a_planned_moment_is_queued_once(state: State) -> None:
    request = backup(schedule="nightly", due=MORNING)
    assert state.jobs.add(request) is not None
    assert state.jobs.add(request) is None
    assert state.jobs.add(replace(request, due=MORNING + timedelta(days=1))) is not None
    assert state.jobs.add(replace(request, schedule="hourly")) is not None
    assert state.jobs.count() == 3


def test_a_planned_moment_stays_queued_once_after_it_has_run(state: State) -> None:
    request = backup(schedule="nightly", due=MORNING)
    job = state.jobs.add(request)
    assert job is not None
    state.jobs.save(replace(job, state=JobState.FAILED, ended=MORNING))
    assert state.jobs.add(request) is None


def test_a_run_is_recorded_though_another_has_its_planned_moment(state: State) -> None:
    request = backup(schedule="nightly", due=MORNING)
    queued = state.jobs.add(request)
    state.jobs.save(done(MORNING, request, id="other"))
    assert state.jobs.get("other").request == replace(request, due=None)
    assert queued is not None
    assert state.jobs.get(queued.id) == queued


def test_jobs_of_no_planned_moment_are_all_queued(state: State) -> None:
    for _ in range(3):
        assert state.jobs.add(backup()) is not None
        assert state.jobs.add(backup(schedule="nightly")) is not None
    assert state.jobs.count() == 6


def test_claiming_takes_the_oldest_and_runs_it(state: State, clock: MovedClock) -> None:
    first = state.jobs.add(backup("clinic"))
    clock.move(microseconds=1)
    state.jobs.add(backup("office"))
    now = clock.move(seconds=5)
    claimed = state.jobs.claim("server1", now=now)
    assert first is not None
    assert claimed == replace(first, state=RUNNING, host="server1", started=now, heartbeat=now)
    assert state.jobs.get(first.id) == claimed
    assert state.jobs.running() == state.jobs.running("server1") == [claimed]
    assert state.jobs.running("server2") == []


def test_low_priority_waits_for_the_others(state: State, clock: MovedClock) -> None:
    state.jobs.add(backup("clinic", low_priority=True))
    clock.move(seconds=1)
    state.jobs.add(backup("office"))
    claimed = [state.jobs.claim("here", now=clock.now()) for _ in range(3)]
    assert [job.request.subject if job else None for job in claimed] == ["office", "clinic", None]


def test_heavy_jobs_of_one_subject_do_not_overlap(state: State, clock: MovedClock) -> None:
    for subject, heavy in (("clinic", True), ("clinic", True), ("clinic", False), ("office", True)):
        state.jobs.add(backup(subject, heavy=heavy))
        clock.move(seconds=1)
    claimed = []
    while (job := state.jobs.claim("here", now=clock.now(), busy_subjects={"office"})) is not None:
        claimed.append(job)
    assert [(job.request.subject, job.request.heavy) for job in claimed] == [("clinic", True), ("clinic", False)]
    state.jobs.save(replace(claimed[0], state=JobState.DONE, ended=clock.now()))
    following = state.jobs.claim("here", now=clock.now(), busy_subjects={"office"})
    assert following is not None
    assert following.request == backup("clinic")


def test_a_job_is_claimed_by_name_under_the_same_rules(state: State, clock: MovedClock) -> None:
    first = state.jobs.add(backup("clinic"))
    clock.move(seconds=1)
    second, third = state.jobs.add(backup("office")), state.jobs.add(backup("office"))
    assert first is not None
    assert second is not None
    assert third is not None
    claimed = state.jobs.claim("here", now=clock.now(), id=second.id)
    assert claimed is not None
    assert claimed.id == second.id
    for id in (second.id, third.id, "none"):
        assert state.jobs.claim("here", now=clock.now(), id=id) is None
    assert {job.id for job in state.jobs.queued()} == {first.id, third.id}


def test_a_job_is_found_by_the_beginning_of_its_name(state: State) -> None:
    for id in ("20261123T060000Z-aaaa11", "20261123T060000Z-aabb22", "20261124T060000Z-cccc33"):
        state.jobs.save(done(MORNING, id=id))
    assert state.jobs.get("20261124").id == "20261124T060000Z-cccc33"
    assert state.jobs.get("20261123T060000Z-aab").id == "20261123T060000Z-aabb22"
    with pytest.raises(UsageError, match="several begin with"):
        state.jobs.get("20261123")
    for missing in ("2027", "20261124T060000Z-cccc334", "%", "_"):
        with pytest.raises(NotFound):
            state.jobs.get(missing)


def test_a_whole_name_wins_over_a_longer_one(state: State) -> None:
    state.jobs.save(done(MORNING, id="one"))
    state.jobs.save(done(MORNING, id="one-more"))
    assert state.jobs.get("one").id == "one"


def test_jobs_are_listed_newest_first_and_by_what_they_are(state: State) -> None:
    days = [MORNING + timedelta(days=number) for number in range(4)]
    jobs = [
        done(days[0], backup("clinic", schedule="nightly")),
        done(days[1], backup("office"), state=JobState.FAILED),
        done(days[2], JobRequest("drill run", subject="clinic"), state=JobState.CANCELLED),
        done(days[3], backup("clinic"), state=JobState.WARNED),
    ]
    for job in jobs:
        state.jobs.save(job)
    listed, count = state.jobs.list, state.jobs.count
    assert listed() == jobs[::-1]
    assert listed(limit=2) == [jobs[3], jobs[2]]
    assert listed(before=days[2], limit=None) == [jobs[1], jobs[0]]
    assert listed(kind="backup run", subject="clinic") == [jobs[3], jobs[0]]
    assert listed(schedule="nightly") == [jobs[0]]
    assert listed(states={JobState.FAILED, JobState.CANCELLED}) == [jobs[2], jobs[1]]
    assert (count(), count(subject="clinic"), count(kind="none")) == (4, 3, 0)
    assert count(states=[JobState.FAILED], before=days[1]) == 0
    last = state.jobs.last
    assert last(kind="backup run", subject="clinic") == jobs[3]
    assert last(kind="backup run", subject="clinic", states=[JobState.DONE]) == jobs[0]
    assert last(kind="backup run", subject="elsewhere") is None


def test_a_queued_job_is_cancelled_by_asking(state: State, clock: MovedClock) -> None:
    job = state.jobs.add(backup())
    assert job is not None
    cancelled = state.jobs.request_cancel(job.id, "anna")
    assert (cancelled.state, cancelled.cancelled_by, cancelled.ended) == (JobState.CANCELLED, "anna", clock.now())
    assert state.jobs.claim("here", now=clock.now()) is None


def test_a_running_job_is_told_of_its_cancelling_and_goes_on(state: State, clock: MovedClock) -> None:
    state.jobs.add(backup())
    claimed = state.jobs.claim("here", now=clock.now())
    assert claimed is not None
    assert state.jobs.request_cancel(claimed.id, "anna") == replace(claimed, cancelled_by="anna")
    assert state.jobs.request_cancel(claimed.id, "bob").cancelled_by == "anna"
    # Whoever saves the running job knows nothing of it and does not undo it.
    state.jobs.save(replace(claimed, heartbeat=clock.move(seconds=1)))
    assert state.jobs.get(claimed.id).cancelled_by == "anna"


def test_a_job_that_has_ended_cannot_be_cancelled_or_begin_again(state: State) -> None:
    job = done(MORNING)
    state.jobs.save(job)
    assert state.jobs.request_cancel(job.id, "anna") == job
    state.jobs.save(replace(job, state=RUNNING, ended=None), [JobEvent(MORNING, "phase", "late")])
    assert state.jobs.get(job.id) == job
    assert state.jobs.events(job.id) == []
    with pytest.raises(NotFound):
        state.jobs.request_cancel("none", "anna")


def test_the_true_end_replaces_a_supposed_one(state: State) -> None:
    job = done(MORNING, state=JobState.FAILED, cause="The run ended without a word.")
    state.jobs.save(job)
    state.jobs.save(replace(job, state=JobState.DONE, cause=""))
    assert state.jobs.get(job.id) == replace(job, state=JobState.DONE, cause="")


def test_events_stay_in_order_and_are_not_doubled(state: State) -> None:
    job = done(MORNING)
    events = [JobEvent(MORNING - timedelta(seconds=number), "phase", f"p{number}") for number in range(5)]
    for _ in range(2):
        state.jobs.save(job, events[:3])
    assert state.jobs.events(job.id) == events[:3]
    state.jobs.add_events(job.id, events[3:])
    state.jobs.save(job)
    assert state.jobs.events(job.id) == events
    assert state.jobs.events("none") == []
    with pytest.raises(NotFound):
        state.jobs.add_events("none", events)


def test_durations_are_those_of_good_runs(state: State, clock: MovedClock) -> None:
    for number, outcome in enumerate([JobState.DONE, JobState.FAILED, JobState.WARNED, JobState.CANCELLED]):
        at = clock.move(hours=1)
        ended = at + timedelta(seconds=10 + number)
        state.jobs.save(done(at, state=outcome, ended=ended, progress=JobProgress(done_bytes=1000 * number)))
    assert state.jobs.durations("backup run", "clinic") == [(12.0, 2000), (10.0, 0)]
    assert state.jobs.durations("backup run", "clinic", limit=1) == [(12.0, 2000)]


def test_logs_are_pinned_listed_and_forgotten(state: State) -> None:
    old, new = done(MORNING, log="old.log"), done(MORNING + timedelta(days=1), log="new.log")
    for job in (old, new, done(MORNING + timedelta(days=2))):
        state.jobs.save(job)
    state.jobs.set_pinned(old.id, True)
    state.jobs.save(old)  # a late record of the same run does not unpin it
    assert state.jobs.log_names("backup run", "clinic") == [(new.id, "new.log", False), (old.id, "old.log", True)]
    state.jobs.forget_log(new.id)
    state.jobs.set_pinned(old.id, False)
    assert state.jobs.log_names("backup run", "clinic") == [(old.id, "old.log", False)]
    with pytest.raises(NotFound):
        state.jobs.set_pinned("none", True)
    with pytest.raises(NotFound):
        state.jobs.forget_log("none")


def test_old_jobs_go_with_their_events_and_others_stay(state: State, clock: MovedClock) -> None:
    old, new = done(MORNING), done(MORNING + timedelta(days=1))
    state.jobs.save(old, [JobEvent(MORNING, "phase", "p")])
    state.jobs.save(new)
    waiting = state.jobs.add(backup())
    assert state.jobs.drop_before(MORNING + timedelta(hours=1)) == 1
    assert state.jobs.list() == [new, waiting]
    assert state.jobs.events(old.id) == []
