"""``serve`` where two are begun, its state moves, and signals come at odd moments."""

from __future__ import annotations

import signal
import subprocess
import sys
from datetime import timedelta

import pytest

from datamanager.state.model import JobState
from tests.app.serving import COMMAND, Serving, wait_until
from tests.servers import Server

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")


# A supervisor that keeps no lock that others know.
_SUPERVISOR = ("-c", "import subprocess, sys; sys.exit(subprocess.run(sys.argv[2:]).returncode)", "serve")


def a_planner(serving: Serving, *supervisor: str) -> subprocess.Popen[bytes]:
    """A planner, which ends when its standard input does."""
    words = [*supervisor, serving.python, *COMMAND, "serve", "--role", "planner", "--grace", "0", "--settle", "0"]
    with serving.output.open("ab") as output:
        planner = subprocess.Popen(
            words, env=serving.variables, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT
        )
    serving.services.append(planner)
    return planner


def test_a_planner_that_gets_a_signal_ends_in_order(serving: Serving) -> None:
    planner = a_planner(serving)
    wait_until(lambda: serving.beat() is not None, 30, "it lives")
    planner.send_signal(signal.SIGTERM)
    assert planner.wait(30) == 0, serving.said()
    assert planner.stdin is not None
    planner.stdin.close()


def test_two_planners_never_plan_for_one_home_whoever_supervises_them(serving: Serving) -> None:
    """Root's service keeps its lock elsewhere than the account's own, so the planners have one of their own."""
    first = a_planner(serving, serving.python, *_SUPERVISOR)
    wait_until(lambda: serving.beat() is not None, 30, "it lives")
    beat = serving.beat()
    assert beat is not None
    done = serving.command("serve", code=12)
    assert "another service runs" in done.errors
    assert first.poll() is None, "the second one ended a planner that is not its own"
    after = serving.beat()
    assert after is not None
    assert after.process == beat.process
    assert first.stdin is not None
    first.stdin.close()
    assert first.wait(30) == 0


def test_schedules_of_a_state_that_was_moved_away_or_named_anew_are_planned(serving: Serving) -> None:
    serving.init()
    service = serving.serve()
    for path in serving.home.glob("state.sqlite*"):
        path.rename(path.with_name(f"old-{path.name}"))
    serving.missed("moved", "repo verify", "usb", subject="usb", ago=timedelta(minutes=2))
    wait_until(lambda: len(serving.ended("moved")) == 1, 30, "what is in the new file ran")
    other = serving.home / "other.sqlite"
    serving.command("config", "set", "state.url", f"sqlite:///{other}")
    wait_until(other.exists, 30, "the planner looks there")
    assert serving.end(service) == 0


def test_jobs_that_the_planner_began_before_it_opened_the_state_anew_end_with_the_service(
    serving: Serving, server: Server
) -> None:
    serving.init()
    serving.ok("cluster", "add", "clinic", server.dsn, "--repo", "usb")
    arguments = ("clinic", "--max-rate", "1MB", "--full")
    serving.missed("nightly", "backup run", *arguments, subject="clinic", ago=timedelta(hours=1), heavy=True)
    service = serving.serve("--grace", "0")
    wait_until(lambda: len(serving.jobs_alive()) == 1, 30, "the backup runs")
    wait_until(lambda: any(serving.files.runs.glob("*.json")), 10, "it is recorded")
    serving.command("config", "set", "state.url", f"sqlite:///{serving.files.state_file}")
    wait_until(lambda: "opened anew" in serving.said(), 20, "the state is opened anew")
    beat = serving.beat()
    wait_until(lambda: serving.beat() != beat, 20, "it plans again")
    assert serving.end(service) == 0
    assert serving.processes() == []
    (job,) = serving.jobs("nightly")
    assert job.state is JobState.CANCELLED
