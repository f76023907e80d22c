"""``serve``: what is due runs once, what was missed is caught up once, and it ends cleanly."""

from __future__ import annotations

import signal
import socket
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from datamanager.app.planner_file import read_beat
from datamanager.state.model import JobState, Trigger
from tests.app.serving import Serving, wait_until


@pytest.fixture
def verifying(serving: Serving) -> Serving:
    """A home with an empty repository, which ``repo verify`` reads in no time."""
    serving.init()
    return serving


@pytest.mark.requirement("R81", missing="a reboot: the service is stopped and started here")
def test_a_missed_run_is_caught_up_once_with_its_history_and_never_again(verifying: Serving) -> None:
    due = verifying.missed("check", "repo verify", "usb", subject="usb", ago=timedelta(hours=3))
    service = verifying.serve()
    wait_until(lambda: len(verifying.ended("check")) == 1, 30, "the missed run was made")
    job = verifying.ended("check")[0]
    assert (job.state, job.exit_code) == (JobState.DONE, 0)
    assert (job.request.trigger, job.request.due, job.request.low_priority) == (Trigger.CATCH_UP, due, True)
    assert job.summary
    assert (verifying.files.logs / job.log).is_file()
    with verifying.state() as state:
        schedule = state.schedules.get("check")
        assert schedule.last_due == due
        assert schedule.next_due == due + timedelta(days=31)
        assert schedule.caught_up == 1
    assert verifying.end(service) == 0
    assert "check runs late because the service was not running at the planned time" in verifying.said()

    service = verifying.serve()
    beat = verifying.beat()
    wait_until(lambda: verifying.beat() != beat, 20, "the planner has looked again")
    assert verifying.end(service) == 0
    assert len(verifying.jobs("check")) == 1


@pytest.mark.slow
def test_missed_runs_wait_until_things_have_settled(verifying: Serving) -> None:
    verifying.missed("check", "repo verify", "usb", subject="usb", ago=timedelta(hours=3))
    service = verifying.serve(settle=6.0)
    began = datetime.now(UTC)
    assert verifying.jobs("check") == []
    wait_until(lambda: len(verifying.jobs("check")) == 1, 30, "the missed run was queued")
    assert datetime.now(UTC) - began > timedelta(seconds=3)
    assert verifying.end(service) == 0


@pytest.mark.slow
def test_a_run_that_is_due_while_the_planner_looks_runs_in_time_and_once(verifying: Serving) -> None:
    service = verifying.serve()
    at = datetime.now(UTC).replace(second=0, microsecond=0) + timedelta(minutes=2)
    verifying.command(
        "schedule", "add", "check", "--once", f"{at:%Y-%m-%d}", "--at", f"{at:%H:%M}", "--zone", "UTC", "--",
        "repo", "verify", "usb",
    )  # fmt: skip
    wait_until(lambda: len(verifying.ended("check")) == 1, 150, "it ran")
    job = verifying.ended("check")[0]
    assert (job.state, job.request.trigger, job.request.due) == (JobState.DONE, Trigger.SCHEDULE, at)
    assert job.started is not None
    assert timedelta(0) <= job.started - at < timedelta(seconds=5)
    wait_until(lambda: datetime.now(UTC) > at + timedelta(seconds=15), 30, "a while has passed")
    assert len(verifying.jobs("check")) == 1
    assert verifying.end(service) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_service_ends_cleanly_and_leaves_nothing_running(serving: Serving, number: signal.Signals) -> None:
    service = serving.serve()
    assert serving.planner().is_running()
    assert serving.end(service, number) == 0
    assert serving.processes() == []
    assert serving.beat() is None
    assert "The service has ended." in serving.said()


def test_a_second_service_of_the_same_home_is_refused(serving: Serving) -> None:
    service = serving.serve()
    done = serving.command("serve", code=12)
    assert "another service runs" in done.errors
    assert serving.end(service) == 0


@pytest.mark.slow
def test_a_queued_job_is_run_and_told_of(verifying: Serving) -> None:
    service = verifying.serve()
    verifying.missed("one", "repo verify", "usb", subject="usb", ago=timedelta(minutes=2))
    verifying.missed("two", "repo verify", "nowhere", subject="nowhere", ago=timedelta(minutes=2))
    wait_until(lambda: len(verifying.ended()) == 2, 30, "both ran")
    failed = verifying.ended("two")[0]
    assert (failed.state, failed.exit_code) == (JobState.FAILED, 11)
    assert failed.cause
    assert failed.next_step
    assert verifying.end(service) == 0


@pytest.mark.slow
def test_a_configuration_that_cannot_be_read_is_waited_for(verifying: Serving) -> None:
    text = verifying.files.config_file.read_text()
    verifying.files.config_file.write_text("this is no TOML")
    service = verifying.serve()
    wait_until(lambda: "Nothing can be planned now" in verifying.said(), 20, "it is said")
    verifying.files.config_file.write_text(text)
    verifying.missed("check", "repo verify", "usb", subject="usb", ago=timedelta(minutes=2))
    wait_until(lambda: len(verifying.ended("check")) == 1, 40, "it plans again")
    assert verifying.end(service) == 0


def test_the_service_tells_systemd_that_it_is_ready_lives_and_ends(serving: Serving, tmp_path: Path) -> None:
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name)
        listener.settimeout(20)
        serving.variables |= {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "120000000"}
        service = serving.serve()
        heard = {listener.recv(4096).split(b"\n")[0] for _ in range(3)}
        assert heard == {b"READY=1", b"WATCHDOG=1"}
        assert "NOTIFY_SOCKET" not in serving.planner().environ()
        service.send_signal(signal.SIGTERM)
        while listener.recv(4096) != b"STOPPING=1":
            pass
        assert service.wait(60) == 0


def test_metrics_are_served_and_a_port_that_is_taken_stops_nothing(serving: Serving) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        service = serving.serve("--metrics-port", str(port))
        wait_until(lambda: f"port {port}" in serving.said(), 20, "it is said")
        assert serving.end(service) == 0
    service = serving.serve("--metrics-port", str(port))
    wait_until(lambda: "/metrics" in serving.said(), 20, "metrics are served")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        assert b"datamanager_" in answer.read()
    assert serving.end(service) == 0


def test_a_service_that_cannot_write_its_home_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    made = Serving(tmp_path)
    made.home = tmp_path / "file"
    made.variables["DATAMANAGER_HOME"] = str(made.home)
    done = made.command("serve", code=10)
    assert "make folder" in done.errors


def test_what_is_no_sign_of_life_is_none(tmp_path: Path) -> None:
    for text in ("", "[]", "{}", '{"time": 3}'):
        (tmp_path / "planner.json").write_text(text)
        assert read_beat(tmp_path / "planner.json") is None
