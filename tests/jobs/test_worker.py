"""The worker: real processes of real commands, against a real server; also when it or they are killed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psutil
import pytest

from datamanager.base.clock import SystemClock
from datamanager.config.home import Home
from datamanager.config.state_url import sqlite_url
from datamanager.jobs.run_file import RunFolder
from datamanager.jobs.worker import COMMAND, Worker
from datamanager.state.database import open_state
from datamanager.state.model import Job, JobRequest, JobState, Trigger
from tests.cli.caller import Installation
from tests.servers import Server

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")

SLOW = ("--max-rate", "100KB", "--full")


class Desk:
    """A home with a state, a worker that is stepped by hand, and everything it begins ended at last."""

    def __init__(self, installation: Installation) -> None:
        self.installation = installation
        self.home = Home(installation.home, installation.home)
        installation.home.mkdir(exist_ok=True)
        self.state = open_state(sqlite_url(self.home.state_file), clock=SystemClock())
        self.folder = RunFolder(self.home.runs)
        self.worker = self.new_worker()
        self.forced: list[str] = []

    def new_worker(self, command: Sequence[str] = COMMAND, parallel: int = 2) -> Worker:
        return Worker(
            self.home,
            self.state,
            SystemClock(),
            parallel=parallel,
            command=command,
            after_force=lambda run: self.forced.append(run.job.id),
        )

    def add(self, kind: str, *arguments: str, subject: str = "clinic", **options: Any) -> Job:
        request = JobRequest(kind, arguments, subject, who="anna", **{"heavy": True} | options)
        job = self.state.jobs.add(request)
        assert job is not None
        return job

    def until(self, holds: Callable[[], Any], worker: Worker | None = None, seconds: float = 40) -> Any:
        """Let the worker step until something is so."""
        deadline = time.monotonic() + seconds
        while True:
            (worker or self.worker).step()
            found = holds()
            if found:
                return found
            assert time.monotonic() < deadline, self.state.jobs.list()
            time.sleep(0.1)

    def until_ended(self, job: Job, worker: Worker | None = None, seconds: float = 40) -> Job:
        def ended() -> Job | None:
            now = self.state.jobs.get(job.id)
            return now if now.state.final else None

        found: Job = self.until(ended, worker, seconds)
        return found

    def copying(self, job: Job) -> int | None:
        """The process of a job that has come so far."""
        run = self.folder.read(job.id)
        return run.process.pid if run is not None and run.job.progress.phase == "copying" else None

    def close(self) -> None:
        for run in self.folder.runs():
            if psutil.pid_exists(run.process.pid) and run.process.pid != os.getpid():
                psutil.Process(run.process.pid).kill()
        self.worker.stop("the test", 0)
        self.state.close()


@pytest.fixture
def desk(installation: Installation) -> Iterator[Desk]:
    one = Desk(installation)
    yield one
    one.close()


@pytest.fixture
def office(desk: Desk, server: Server) -> Desk:
    """The same with a cluster and a repository."""
    desk.installation.init()
    desk.installation.ok("cluster", "add", "clinic", server.dsn, "--repo", "usb", "--no-check")
    return desk


def test_a_queued_backup_is_made_by_a_process_of_its_own_and_recorded_under_its_id(office: Desk) -> None:
    job = office.add("backup run", "clinic", "--name", "night")
    done = office.until_ended(job)
    assert (done.state, done.exit_code, done.request.who) == (JobState.DONE, 0, "anna")
    assert done.pid != os.getpid()
    assert done.result["name"] == "night"
    assert "phase" in [event.kind for event in office.state.jobs.events(job.id)]
    assert done.progress.done_bytes > 0
    text = (office.home.logs / done.log).read_text()
    assert text.startswith("backup run of clinic: done\n")
    assert "Begun by anna." in text
    assert not list(office.home.runs.iterdir())
    assert len(office.state.jobs.list()) == 1


def test_a_run_of_a_schedule_says_so_and_carries_its_parameters(office: Desk) -> None:
    now = SystemClock().now()
    job = office.add("expire", "clinic", trigger=Trigger.SCHEDULE, schedule="nightly", due=now, heavy=False)
    done = office.until_ended(job)
    assert (done.request.schedule, done.request.due, done.state) == ("nightly", now, JobState.DONE)
    assert "Begun by the schedule nightly, planned for" in (office.home.logs / done.log).read_text()


def test_a_failing_job_is_failed_with_cause_effect_and_next_step(desk: Desk) -> None:
    done = desk.until_ended(desk.add("backup run", "nobody", subject="nobody"))
    assert (done.state, done.exit_code) == (JobState.FAILED, 11)
    assert done.cause == "Find cluster: no cluster is named 'nobody'."
    assert done.effect == "No new backup was made; the earlier ones are as they were."
    assert done.next_step


def test_two_heavy_jobs_of_one_subject_never_overlap_and_others_do(office: Desk) -> None:
    first = office.add("backup run", "clinic", *SLOW)
    second = office.add("repo verify", "usb")
    other = office.add("backup run", "nobody", subject="nobody")
    office.until(lambda: office.copying(first))
    assert office.until_ended(other).state is JobState.FAILED
    assert office.state.jobs.get(second.id).state is JobState.QUEUED
    office.folder.ask_to_cancel(first.id, "bert")
    assert office.until_ended(first).cancelled_by == "bert"
    assert office.until_ended(second).state is JobState.DONE


def test_a_heavy_job_waits_for_one_that_someone_began_at_a_terminal(office: Desk) -> None:
    process = office.installation.start("backup", "run", "clinic", *SLOW, "--json")
    try:
        office.until(lambda: [run for run in office.folder.runs() if run.job.progress.phase == "copying"])
        job = office.add("backup run", "clinic")
        for _ in range(5):
            office.worker.step()
        assert office.state.jobs.get(job.id).state is JobState.QUEUED
    finally:
        process.terminate()
        process.communicate(timeout=30)
    assert office.until_ended(job).state is JobState.DONE
    assert len(office.state.jobs.list()) == 2


def test_no_more_jobs_run_at_once_than_allowed(desk: Desk) -> None:
    jobs = [desk.add("backup run", "nobody", subject=f"c{number}") for number in range(5)]
    most = 0
    while any(not desk.state.jobs.get(job.id).state.final for job in jobs):
        desk.worker.step()
        most = max(most, desk.worker.running)
        time.sleep(0.05)
    assert most == 2


def test_a_job_over_its_time_limit_ends_itself_and_is_failed(office: Desk, server: Server) -> None:
    job = office.add("backup run", "clinic", *SLOW, limit_seconds=2.0)
    done = office.until_ended(job)
    assert done.state is JobState.FAILED
    assert "not done within its time limit of 2.0 s" in done.cause
    assert done.next_step
    assert (done.ended or done.queued).timestamp() - (done.started or done.queued).timestamp() < 8
    assert server.slots_left() == []
    assert office.forced == []


def test_a_stopped_process_over_its_time_limit_is_ended_by_force(office: Desk) -> None:
    job = office.add("backup run", "clinic", *SLOW, limit_seconds=2.0)
    pid = office.until(lambda: office.copying(job))
    psutil.Process(pid).suspend()
    done = office.until_ended(job)
    assert done.state is JobState.FAILED
    assert "not done within its time limit" in done.cause
    assert office.forced == [job.id]
    assert not psutil.pid_exists(pid)


def test_a_wish_noted_in_the_database_ends_the_run(office: Desk) -> None:
    job = office.add("backup run", "clinic", *SLOW)
    office.until(lambda: office.copying(job))
    office.state.jobs.request_cancel(job.id, "the page")
    done = office.until_ended(job)
    assert (done.state, done.cancelled_by, done.exit_code) == (JobState.CANCELLED, "the page", 130)


def test_a_child_killed_by_kill_9_is_failed(office: Desk) -> None:
    job = office.add("backup run", "clinic", *SLOW)
    psutil.Process(office.until(lambda: office.copying(job))).kill()
    done = office.until_ended(job)
    assert done.state is JobState.FAILED
    assert "it was killed" in done.cause
    assert office.until_ended(office.add("backup run", "clinic")).state is JobState.DONE


def test_a_job_of_low_priority_gives_way_to_others(office: Desk) -> None:
    job = office.add("backup run", "clinic", *SLOW, low_priority=True)
    pid = office.until(lambda: office.copying(job))
    assert psutil.Process(pid).nice() >= 10
    office.folder.ask_to_cancel(job.id, "x")
    office.until_ended(job)


_KILLED_WORKER = """
import sys, time
from pathlib import Path
from datamanager.base.clock import SystemClock
from datamanager.config.home import Home
from datamanager.config.state_url import sqlite_url
from datamanager.jobs.worker import Worker
from datamanager.state.database import open_state
home = Home(Path(sys.argv[1]), Path(sys.argv[1]))
worker = Worker(home, open_state(sqlite_url(home.state_file), clock=SystemClock()), SystemClock())
while True:
    worker.step()
    time.sleep(0.1)
"""


def test_a_killed_workers_child_goes_on_and_is_looked_after_by_the_next(office: Desk) -> None:
    job = office.add("backup run", "clinic", *SLOW)
    waiting = office.add("backup run", "clinic")
    former = subprocess.Popen([sys.executable, "-c", _KILLED_WORKER, str(office.home.state)])
    try:
        deadline = time.monotonic() + 30
        while (pid := office.copying(job)) is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        former.kill()
        former.wait()
    for _ in range(10):
        office.worker.step()
    assert psutil.pid_exists(pid)
    assert office.worker.running == 1
    assert office.state.jobs.get(waiting.id).state is JobState.QUEUED
    psutil.Process(pid).kill()
    done = office.until_ended(job)
    assert done.state is JobState.FAILED
    assert "it was killed" in done.cause
    assert office.until_ended(waiting).state is JobState.DONE
    assert len(office.state.jobs.list()) == 2


def test_what_a_killed_worker_claimed_and_never_began_is_failed_not_run_twice(desk: Desk) -> None:
    job = desk.add("backup run", "nobody")
    past = SystemClock().now().replace(year=2020)
    claimed = desk.state.jobs.claim(socket.gethostname(), now=past)
    assert claimed is not None
    (done,) = desk.worker.step()
    assert (done.id, done.state) == (job.id, JobState.FAILED)
    assert desk.worker.step() == []


def test_a_program_that_does_not_even_begin_is_failed_with_its_words(desk: Desk) -> None:
    broken = (sys.executable, "-c", "raise SystemExit('it is broken: password=hunter2')")
    done = desk.until_ended(desk.add("backup run", "clinic"), desk.new_worker(broken))
    assert (done.state, done.exit_code) == (JobState.FAILED, 1)
    assert "It is broken: password=***" in done.summary
    missing = desk.until_ended(desk.add("backup run", "clinic"), desk.new_worker((str(desk.home.state / "no"),)))
    assert "could not be begun" in missing.cause


def test_jobs_run_and_are_told_of_although_the_folder_of_runs_cannot_be_written(office: Desk) -> None:
    if office.home.runs.exists():
        office.home.runs.rmdir()
    office.home.runs.write_text("a file where the folder should be")
    good = office.until_ended(office.add("expire", "clinic", heavy=False))
    assert good.state is JobState.WARNED
    bad = office.until_ended(office.add("backup run", "nobody"))
    assert (bad.state, bad.exit_code) == (JobState.FAILED, 11)
    office.home.runs.unlink()


def test_arguments_are_given_as_they_are(desk: Desk) -> None:
    arguments = ("--name", 'Dr. Müller\'s "night" $HOME ; rm -rf', "--", "-odd")
    done = desk.until_ended(desk.add("backup run", *arguments, subject="-odd"))
    assert done.cause == "Find cluster: no cluster is named '-odd'."
    assert done.request.arguments == arguments


def test_stopping_the_worker_ends_what_it_began(office: Desk, server: Server) -> None:
    job = office.add("backup run", "clinic", *SLOW)
    office.until(lambda: office.copying(job))
    (done,) = office.worker.stop("the service, which was stopped", 8)
    assert (done.id, done.state) == (job.id, JobState.CANCELLED)
    assert done.cancelled_by == "the service, which was stopped"
    assert server.slots_left() == []
