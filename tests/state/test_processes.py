"""Several processes with one state: nothing is made twice, lost or left behind."""

from __future__ import annotations

import itertools
import signal
import sys

import pytest

from datamanager.base.clock import SystemClock
from datamanager.state.database import open_state
from datamanager.state.model import JobRequest, JobState
from tests.state.parts import backup, children, together

COUNT = 3


def test_processes_that_open_at_once_make_the_tables_once(url: str) -> None:
    assert together(COUNT, "look", url, opens_at_once=True) == [0] * COUNT
    with open_state(url, clock=SystemClock()) as state:
        assert state.audit.verify() == (0, "0" * 64)


def test_a_job_is_claimed_by_one_process_only(url: str) -> None:
    with open_state(url, clock=SystemClock()) as state:
        queued = [state.jobs.add(JobRequest("backup run", subject=f"c{number}")) for number in range(60)]
        claimed = together(COUNT, "claim", url)
        assert sorted(itertools.chain(*claimed)) == sorted(job.id for job in queued if job)
        assert state.jobs.count(states=[JobState.RUNNING]) == 60


def test_processes_claim_one_heavy_job_of_a_subject(url: str) -> None:
    with open_state(url, clock=SystemClock()) as state:
        for _ in range(10):
            state.jobs.add(backup("clinic"))
        assert len(list(itertools.chain(*together(COUNT, "claim", url)))) == 1


def test_a_planned_moment_is_queued_by_one_process_only(url: str) -> None:
    with open_state(url, clock=SystemClock()) as state:
        queued = list(itertools.chain(*together(COUNT, "queue", url)))
        assert len(queued) == len(set(queued)) == 20
        assert sorted(queued) == sorted(job.id for job in state.jobs.queued())


def test_entries_of_several_processes_are_numbered_without_a_gap(url: str) -> None:
    with open_state(url, clock=SystemClock()) as state:
        numbers = list(itertools.chain(*together(COUNT, "append", url, times=40)))
        assert sorted(numbers) == list(range(1, 40 * COUNT + 1))
        assert state.audit.verify()[0] == 40 * COUNT


@pytest.mark.skipif(sys.platform == "win32", reason="no kill -9")
def test_killing_a_writer_leaves_a_state_that_goes_on(url: str) -> None:
    written = 0
    for lines in (5, 17, 31):
        with children(1, "append_for_ever", url) as (child,):
            child.go()
            numbers = [int(child.hear()) for _ in range(lines)]
            child.process.send_signal(signal.SIGKILL)
            child.process.wait()
        with open_state(url, clock=SystemClock()) as state:
            count, _ = state.audit.verify()
            # What was answered for is there; one more may have been written before the kill.
            assert numbers[0] == written + 1
            assert count >= numbers[-1]
            written = state.audit.append(who="test", origin="test", action="after", target="kill").number
            assert written == count + 1
