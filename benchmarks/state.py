"""What the questions cost that `status`, the planner and the worker ask of the state all the time.

``python -m benchmarks.state`` fills a state with 10,000 jobs, 1,000 schedules and 5,000 entries in the audit and prints
the median of each question: in a SQLite file, and with ``--url postgresql://…`` in that (empty) database. The bar is
0.1 s a question: a page that shows the history must not make anybody wait.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.machine import machine_facts
from datamanager.base.clock import SystemClock
from datamanager.config.state_url import sqlite_url
from datamanager.state.database import State, open_state
from datamanager.state.model import Job, JobEvent, JobProgress, JobRequest, JobState, Schedule, Trigger, new_job_id

_BAR_SECONDS = 0.1
_BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
_HOUR = timedelta(hours=1)
_CLUSTERS = 50
_OUTCOMES = (*(JobState.DONE,) * 17, JobState.WARNED, JobState.FAILED, JobState.CANCELLED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="the state's database; a new SQLite file when absent")
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--schedules", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=21)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = options.url or sqlite_url(Path(folder) / "state.sqlite")
        for line in machine_facts(Path(folder)):
            print(line)
        with open_state(url, clock=SystemClock()) as state:
            begun = time.perf_counter()
            _fill(state, options.jobs, options.schedules)
            print(f"filled in {time.perf_counter() - begun:.1f} s: {state.title}\n")
            _measure(state, url, options.rounds)


def _fill(state: State, jobs: int, schedules: int) -> None:
    for number in range(jobs):
        state.jobs.save(_job(number), [JobEvent(_BEGINNING, "phase", text) for text in ("reading", "committing")])
    daily = {"kind": "daily", "at": ["01:00"], "zone": "Europe/Zurich"}
    for number in range(schedules):
        due = _BEGINNING + timedelta(minutes=number)
        request = JobRequest("backup run", (f"c{number % _CLUSTERS}",), f"c{number % _CLUSTERS}", heavy=True)
        state.schedules.put(Schedule(f"s{number}", daily, request, True, _BEGINNING, _BEGINNING, next_due=due))
    for number in range(jobs // 2):
        state.audit.append(who="anna", origin="cli on server1", action="schedule changed", target=f"s{number}")


def _job(number: int) -> Job:
    at = _BEGINNING + number * _HOUR
    subject = f"c{number % _CLUSTERS}"
    schedule = f"s{number % 1000}"
    request = JobRequest("backup run", (subject,), subject, Trigger.SCHEDULE, schedule=schedule, due=at, heavy=True)
    return Job(
        id=new_job_id(at),
        request=request,
        state=_OUTCOMES[number % len(_OUTCOMES)],
        queued=at,
        started=at,
        ended=at + _HOUR / 2,
        progress=JobProgress("committing", 2**30),
        summary="Backed up c1 into usb: 1.2 GB in 3 minutes, 12 MB new.",
        result={"backup_id": f"b{number}", "stored_bytes": 12345678},
        log=f"backup-run.{subject}-{number}.log",
    )


def _measure(state: State, url: str, rounds: int) -> None:
    now = _BEGINNING + timedelta(minutes=30)
    questions: dict[str, Callable[[], Any]] = {
        "open": lambda: open_state(url, clock=SystemClock()).close(),
        "jobs.list()": state.jobs.list,
        "jobs.list(kind, subject)": lambda: state.jobs.list(kind="backup run", subject="c7"),
        "jobs.list(states=failed)": lambda: state.jobs.list(states=[JobState.FAILED]),
        "jobs.list(schedule)": lambda: state.jobs.list(schedule="s7"),
        "jobs.last(kind, subject)": lambda: state.jobs.last(kind="backup run", subject="c7"),
        "jobs.durations": lambda: state.jobs.durations("backup run", "c7"),
        "jobs.log_names": lambda: state.jobs.log_names("backup run", "c7"),
        "jobs.count()": state.jobs.count,
        "jobs.add, claim and save": lambda: _one_job(state),
        "schedules.list()": state.schedules.list,
        "schedules.due(now), 31 of them": lambda: state.schedules.due(now),
        "schedules.next_due()": state.schedules.next_due,
        "audit.append": lambda: state.audit.append(who="a", origin="o", action="x", target="t"),
        "audit.verify()": state.audit.verify,
    }
    print(f"{'question':34} {'median':>9} {'slowest':>9}   bar {_BAR_SECONDS} s")
    for title, ask in questions.items():
        seconds = [_timed(ask) for _ in range(rounds)]
        median = statistics.median(seconds)
        held = "held" if median <= _BAR_SECONDS else "MISSED"
        print(f"{title:34} {median * 1000:6.1f} ms {max(seconds) * 1000:6.1f} ms   {held}")


def _one_job(state: State) -> None:
    state.jobs.add(JobRequest("backup run", subject="new", heavy=True))
    job = state.jobs.claim("here", now=datetime.now(UTC))
    if job is not None:
        state.jobs.save(replace(job, state=JobState.DONE, ended=datetime.now(UTC)))


def _timed(ask: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    ask()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
