"""What the service costs while it has nothing to do: processor time and memory of supervisor and planner.

``python -m benchmarks.serve`` starts ``datamanager serve`` in a home of its own with 1,000 schedules, none of them due,
lets it settle, and counts what both processes use. The bar is 1 % of one processor for the planner.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from datetime import time as time_of_day
from pathlib import Path

import psutil

from benchmarks.machine import machine_facts
from datamanager.app.planner_file import read_beat
from datamanager.base.clock import SystemClock
from datamanager.config.home import VARIABLE, Home
from datamanager.config.state_url import sqlite_url
from datamanager.schedule.recurrence import Kind, Recurrence
from datamanager.state.database import open_state
from datamanager.state.model import JobRequest, Schedule

_BAR_PERCENT = 1.0
_PATIENCE_SECONDS = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", type=int, default=1_000)
    parser.add_argument("--settle", type=float, default=20.0, help="seconds before counting")
    parser.add_argument("--seconds", type=float, default=120.0, help="seconds that are counted")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for line in machine_facts(Path(folder)):
            print(line)
        home = Home(Path(folder), Path(folder))
        _fill(home, options.schedules)
        service = subprocess.Popen(
            [sys.executable, "-P", "-m", "datamanager", "serve"],
            env={**os.environ, VARIABLE: folder},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        try:
            planner = _planner(home)
            time.sleep(options.settle)
            _count({"supervisor": psutil.Process(service.pid), "planner": planner}, options.seconds)
        finally:
            service.send_signal(signal.SIGTERM)
            service.wait(60)


def _fill(home: Home, schedules: int) -> None:
    now = datetime.now(UTC)
    with open_state(sqlite_url(home.state_file), clock=SystemClock()) as state:
        for number in range(schedules):
            at = now + timedelta(hours=12, minutes=number % 600)
            rule = Recurrence(Kind.DAILY, "Europe/Zurich", now.date(), time_of_day(at.hour, at.minute))
            request = JobRequest("backup run", (f"c{number % 50}",), f"c{number % 50}", heavy=True)
            schedule = Schedule(f"s{number}", rule.to_json(), request, True, now, now, next_due=rule.after(at))
            state.schedules.put(schedule)


def _planner(home: Home) -> psutil.Process:
    until = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < until:
        beat = read_beat(home.planner_file)
        if beat is not None:
            return psutil.Process(beat.process.pid)
        time.sleep(0.1)
    raise SystemExit("the planner did not begin")


def _count(parts: dict[str, psutil.Process], seconds: float) -> None:
    before = {name: _used(part) for name, part in parts.items()}
    began = time.perf_counter()
    time.sleep(seconds)
    passed = time.perf_counter() - began
    for name, part in parts.items():
        percent = (_used(part) - before[name]) / passed * 100
        memory = part.memory_info().rss / (1 << 20)
        print(f"{name}: {percent:.2f} % of one processor, {memory:.0f} MiB, {part.num_threads()} threads")
        if name == "planner":
            print(
                f"bar: {percent:.2f} % of at most {_BAR_PERCENT:g} %: {'held' if percent <= _BAR_PERCENT else 'MISSED'}"
            )


def _used(part: psutil.Process) -> float:
    times = part.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    main()
