"""Fifty kills of the service, of its planner, of a job and of everything at once, each at a random moment.

Every round has one missed backup that stops a service. Whatever is killed: the service runs again within a minute, the
missed run was made exactly once, its end is told, and what is called done is in the repository.
"""

from __future__ import annotations

import contextlib
import os
import random
import shlex
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from datamanager.state.model import JobState
from tests.app.serving import Serving, wait_until
from tests.conftest import NewServer
from tests.system.daemons import Daemons

ROUNDS = int(os.environ.get("DATAMANAGER_CHAOS_ROUNDS", "50"))
SEED = 11
RUNS_AGAIN_SECONDS = 60.0
# From the start of the service to the end of the job on an idle machine of two cores, and a little more.
LONGEST_SECONDS = 9.0


@pytest.fixture
def office(tmp_path: Path, new_server: NewServer) -> Iterator[tuple[Serving, Daemons]]:
    """A server of its own, a repository, and the service ``records`` that the configuration describes."""
    server = new_server()
    serving = Serving(tmp_path)
    (tmp_path / "control").mkdir()
    daemons = Daemons(tmp_path / "control")
    try:
        server.sql("create table ledger as select i as id, 'entry ' || i as entry from generate_series(1, 20000) i")
        serving.init()
        serving.ok("cluster", "add", "clinic", server.dsn, "--repo", "usb")
        words = {action: shlex.join(daemons.words("records", action)) for action in ("stop", "start", "state")}
        serving.ok(
            "services", "add", "records", "--stop", words["stop"], "--start", words["start"], "--state", words["state"]
        )  # fmt: skip
        serving.ok("backup", "run", "clinic")
        daemons.start("records")
        yield serving, daemons
    finally:
        serving.close()
        daemons.power_off()


def strike(serving: Serving, service: subprocess.Popen[bytes], what: str) -> None:
    """Kill it, if it is there at this moment."""
    match what:
        case "everything":
            serving.kill_everything()
        case "service":
            service.kill()
        case "planner":
            with contextlib.suppress(psutil.Error, AssertionError):
                serving.planner().kill()
        case "job":
            for process in serving.jobs_alive():
                with contextlib.suppress(psutil.Error):
                    process.kill()


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_after_fifty_kills_services_run_jobs_are_told_of_and_each_missed_run_was_made_once(
    office: tuple[Serving, Daemons],
) -> None:
    serving, daemons = office
    chance = random.Random(SEED)
    arguments = ("clinic", "--stop-service", "records", "--max-rate", "12MB", "--full")
    serving.missed("nightly", "backup run", *arguments, subject="clinic", ago=timedelta(days=3), heavy=True)
    with serving.state() as state:
        due = state.schedules.get("nightly").next_due
    ends: Counter[str] = Counter()
    longest = 0.0
    service: subprocess.Popen[bytes] | None = None
    for number in range(ROUNDS):
        if number:
            due = serving.again("nightly")
        if service is None:
            service = serving.serve("--grace", "1")
        time.sleep(chance.uniform(0, LONGEST_SECONDS))
        what = chance.choice(["everything", "service", "planner", "job"])
        strike(serving, service, what)
        began = time.monotonic()
        if what in ("everything", "service"):
            service.wait(10)
            service = serving.serve("--grace", "1")

        def settled() -> bool:
            return daemons.running() == {"records"} and not serving.jobs_alive()

        wait_until(settled, RUNS_AGAIN_SECONDS - (time.monotonic() - began), f"round {number}, {what}: it runs again")
        longest = max(longest, time.monotonic() - began)
        wait_until(
            lambda: any(job.request.due == due and job.state.final for job in serving.jobs("nightly")),  # noqa: B023
            60,
            f"round {number}, {what}: the missed run of {due} was told of",
        )
        wait_until(settled, RUNS_AGAIN_SECONDS, f"round {number}, {what}: it runs at the end")
        runs = [job for job in serving.jobs("nightly") if job.request.due == due]
        assert len(runs) == 1, runs
        (job,) = runs
        ends[f"{what}: {job.state}"] += 1
        if job.state.good:
            assert job.result["backup_id"] in backups(serving)
        else:
            assert job.state in (JobState.FAILED, JobState.CANCELLED), job
            assert job.cause or job.cancelled_by
        assert [event for event in daemons.events() if "two" in event or "twice" in event] == []
        if chance.random() < 0.2:
            assert serving.end(service) == 0
            assert serving.processes() == []
            service = None
    assert len(serving.jobs("nightly")) == ROUNDS
    assert all(job.state.final for job in serving.jobs())
    assert longest < RUNS_AGAIN_SECONDS
    service = service or serving.serve()
    wait_until(lambda: not [*serving.files.services.glob("*.json")], 30, "nothing is owed to any service")
    wait_until(lambda: not [*serving.files.runs.glob("*.json")], 30, "every run was taken in")
    assert serving.end(service) == 0
    serving.ok("repo", "verify", "usb")
    serving.ok("backup", "run", "clinic")
    print(f"{datetime.now(UTC):%H:%M} {dict(ends)}; a service was down for {longest:.1f} s at most after a kill")  # noqa: T201


def backups(serving: Serving) -> list[str]:
    found = serving.ok("backup", "list", "--repo", "usb", "--json").last
    return [one["backup_id"] for one in found["backups"]]
