"""The service at work for a while: its processes need no more memory, files and threads at the end than before.

``DATAMANAGER_SOAK_MINUTES`` names another length than two minutes; 30 is what a release is measured with.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from datamanager.state.model import JobRequest
from tests.app.serving import Serving, wait_until

SECONDS = float(os.environ.get("DATAMANAGER_SOAK_MINUTES", "2")) * 60
EVERY_SECONDS = 3.0
# The allocator's own to and fro; a leak of one run's objects would show in far less than the runs of two minutes.
TOLERANCE_BYTES = 12 << 20


@dataclass(frozen=True)
class Use:
    """What the supervisor or the planner holds."""

    memory_bytes: int
    files: int
    threads: int


def use(process: psutil.Process) -> Use:
    return Use(process.memory_info().rss, process.num_fds(), process.num_threads())


def quiet(serving: Serving) -> bool:
    with serving.state() as state:
        return not state.jobs.queued() and not state.jobs.running() and not serving.jobs_alive()


def queue(serving: Serving, seconds: float) -> int:
    """Ask for a job every few seconds, for so long; returns how many."""
    until, asked = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        with serving.state() as state:
            state.jobs.add(JobRequest("repo verify", ("usb",), "usb", who="the test", heavy=True))
        asked += 1
        time.sleep(EVERY_SECONDS)
    return asked


@pytest.mark.slow
@pytest.mark.timeout(SECONDS * 2 + 600)
def test_a_service_at_work_takes_no_more_and_more_memory_files_threads_or_processes(tmp_path: Path) -> None:
    serving = Serving(tmp_path)
    try:
        serving.init()
        service = serving.serve(hung_after=60.0)
        warm = queue(serving, 30)  # what is loaded and cached once
        wait_until(lambda: quiet(serving), 120, "the first jobs have ended")
        parts = [psutil.Process(service.pid), serving.planner()]
        before = [use(part) for part in parts]
        asked = queue(serving, SECONDS)
        wait_until(lambda: quiet(serving), 120, "all jobs have ended")
        time.sleep(3)
        after = [use(part) for part in parts]
        assert serving.planner() == parts[1], "one planner did it all"
        assert len(serving.processes()) == 2
        for was, now in zip(before, after, strict=True):
            assert now.memory_bytes - was.memory_bytes < TOLERANCE_BYTES, (before, after)
            assert now.files <= was.files + 3, (before, after)
            assert now.threads <= was.threads + 2, (before, after)
        done = [job for job in serving.jobs() if job.request.kind == "repo verify"]
        assert len(done) == warm + asked
        assert all(job.state.good for job in done)
        assert len([path for path in serving.logs() if path.name.startswith("repo-verify")]) == 10
        print(f"{asked} jobs; before {before}, after {after}")  # noqa: T201
        assert serving.end(service) == 0
    finally:
        serving.close()
