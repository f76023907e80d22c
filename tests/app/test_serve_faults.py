"""``serve`` whose parts are killed or hang: services run again, jobs are told of truthfully, nothing is doubled."""

from __future__ import annotations

import shlex
import signal
from datetime import timedelta

import psutil
import pytest

from datamanager.state.model import JobState
from tests.app.serving import Serving, wait_until
from tests.servers import Server
from tests.system.daemons import Daemons


@pytest.fixture
def clinic(serving: Serving, daemons: Daemons, server: Server) -> Serving:
    """A cluster, a repository, and the service ``records`` that runs and that the configuration describes."""
    serving.init()
    serving.ok("cluster", "add", "clinic", server.dsn, "--repo", "usb")
    words = {action: shlex.join(daemons.words("records", action)) for action in ("stop", "start", "state")}
    serving.ok(
        "services", "add", "records", "--stop", words["stop"], "--start", words["start"], "--state", words["state"]
    )  # fmt: skip
    daemons.start("records")
    return serving


def long_backup(clinic: Serving, name: str = "nightly") -> None:
    """A missed backup that stops the service, and takes half a minute unless somebody ends it."""
    arguments = ("clinic", "--stop-service", "records", "--max-rate", "1MB", "--full")
    clinic.missed(name, "backup run", *arguments, subject="clinic", ago=timedelta(hours=1), heavy=True)


def wait_until_it_reads(clinic: Serving, daemons: Daemons) -> psutil.Process:
    """Wait until the backup is under way with the service stopped; returns its process."""
    wait_until(lambda: daemons.running() == set(), 30, "the service was stopped")
    wait_until(lambda: len(clinic.jobs_alive()) == 1, 5, "one job runs")
    return clinic.jobs_alive()[0]


def test_a_planner_that_is_killed_comes_back_and_its_job_goes_on_alone(clinic: Serving, daemons: Daemons) -> None:
    long_backup(clinic)
    service = clinic.serve()
    job = wait_until_it_reads(clinic, daemons)
    before = clinic.planner()
    before.kill()
    clinic.next_planner(before)
    assert job.is_running()
    assert [one.pid for one in clinic.jobs_alive()] == [job.pid]
    assert "The planner was killed; it is started again" in clinic.said()
    assert len(clinic.jobs("nightly")) == 1

    with clinic.state() as state:
        (running,) = state.jobs.running()
    clinic.command("job", "cancel", running.id)
    wait_until(lambda: len(clinic.ended("nightly")) == 1, 30, "the job has ended")
    assert clinic.ended("nightly")[0].state is JobState.CANCELLED
    wait_until(lambda: daemons.running() == {"records"}, 20, "the service runs again")
    assert clinic.end(service) == 0
    assert daemons.events() == ["stop records", "start records"]


def test_a_planner_that_hangs_is_noticed_killed_and_replaced(serving: Serving) -> None:
    service = serving.serve(hung_after=5.0)
    before = serving.planner()
    before.suspend()
    wait_until(lambda: not before.is_running(), 30, "the planner that hung is gone")
    serving.next_planner(before)
    assert "said nothing for" in serving.said()
    assert serving.end(service) == 0


@pytest.mark.requirement("R48", missing="a reboot: every process is killed at once here")
@pytest.mark.requirement("N15", missing="the power of a machine: every process is killed at once here")
def test_after_everything_was_killed_at_once_the_service_runs_and_the_job_failed_truthfully(
    clinic: Serving, daemons: Daemons
) -> None:
    long_backup(clinic)
    clinic.serve()
    wait_until_it_reads(clinic, daemons)
    clinic.kill_everything()
    assert clinic.processes() == []
    assert daemons.running() == set()

    service = clinic.serve()
    wait_until(lambda: daemons.running() == {"records"}, 60, "the service runs again")  # requirement R48
    wait_until(lambda: len(clinic.ended("nightly")) == 1, 30, "the job was told of")
    job = clinic.ended("nightly")[0]
    assert job.state is JobState.FAILED
    assert "killed" in job.cause
    assert job.next_step
    assert len(clinic.jobs("nightly")) == 1
    assert clinic.end(service) == 0
    assert daemons.events() == ["stop records", "start records"]  # requirement N15
    clinic.ok("backup", "run", "clinic")
    clinic.ok("repo", "verify", "usb")


@pytest.mark.slow
def test_a_job_whose_service_was_killed_goes_on_and_is_told_of_by_the_next_one(
    clinic: Serving, daemons: Daemons
) -> None:
    long_backup(clinic)
    killed = clinic.serve()
    job = wait_until_it_reads(clinic, daemons)
    planner = clinic.planner()
    killed.kill()
    killed.wait()
    wait_until(lambda: not planner.is_running(), 10, "the planner without a supervisor has ended")
    assert job.is_running()

    service = clinic.serve("--grace", "0")
    assert [one.pid for one in clinic.jobs_alive()] == [job.pid]
    # Ending the service ends what a killed one had begun, as well.
    assert clinic.end(service) == 0
    assert clinic.processes() == []
    (told,) = clinic.jobs("nightly")
    assert told.state is JobState.CANCELLED
    assert "the service, which was stopped" in told.summary
    assert daemons.running() == {"records"}


@pytest.mark.slow
def test_a_job_that_is_killed_alone_fails_and_its_service_runs_again(clinic: Serving, daemons: Daemons) -> None:
    long_backup(clinic)
    service = clinic.serve()
    wait_until_it_reads(clinic, daemons).kill()
    wait_until(lambda: daemons.running() == {"records"}, 30, "the service runs again")
    wait_until(lambda: len(clinic.ended("nightly")) == 1, 20, "the job was told of")
    assert clinic.ended("nightly")[0].state is JobState.FAILED
    assert clinic.end(service) == 0


def test_stopping_the_service_lets_a_short_job_end_and_cancels_a_long_one(clinic: Serving, daemons: Daemons) -> None:
    long_backup(clinic)
    service = clinic.serve("--grace", "1")
    wait_until_it_reads(clinic, daemons)
    took = wait_until(lambda: clinic.end(service) == 0, 60, "it ended")
    assert took < 25
    (told,) = clinic.jobs("nightly")
    assert (told.state, told.cancelled_by) == (JobState.CANCELLED, "the service, which was stopped")
    assert daemons.running() == {"records"}


def test_a_service_that_was_stopped_by_a_killed_job_runs_although_no_planner_can_live(
    clinic: Serving, daemons: Daemons
) -> None:
    """What restores services is a child of its own, which needs neither the planner nor the database."""
    long_backup(clinic)
    clinic.serve()
    wait_until_it_reads(clinic, daemons)
    clinic.kill_everything()
    for path in clinic.home.glob("state.sqlite*"):
        path.unlink()
    clinic.files.state_file.mkdir()
    service = clinic.serve()
    wait_until(lambda: daemons.running() == {"records"}, 60, "the service runs again")
    assert clinic.end(service) == 0


@pytest.mark.slow
def test_a_planner_that_keeps_dying_is_an_alert(serving: Serving) -> None:
    service = serving.serve()
    for _ in range(3):
        before = serving.planner()
        before.kill()
        serving.next_planner(before)
    assert serving.said().count("The planner was killed") == 3
    assert service.poll() is None

    def alerted() -> bool:
        with serving.state() as state:
            return any("the planner ended several times" in one.title for one in state.alerts.open())

    wait_until(alerted, 30, "there is an alert")
    assert serving.end(service) == 0


@pytest.mark.slow
def test_a_signal_to_the_planner_alone_ends_no_service(serving: Serving) -> None:
    service = serving.serve()
    before = serving.planner()
    before.send_signal(signal.SIGTERM)
    serving.next_planner(before)
    assert service.poll() is None
    assert serving.end(service) == 0
