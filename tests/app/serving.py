"""A home with a running service, its parts seen from outside, and the ways in which they may be ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil

from datamanager.app.planner_file import PlannerBeat, read_beat
from datamanager.base.clock import SystemClock
from datamanager.config.home import Home
from datamanager.config.state_url import sqlite_url
from datamanager.schedule.recurrence import Kind, Recurrence
from datamanager.state.database import State, open_state
from datamanager.state.model import Job, JobRequest, Schedule
from tests.cli.caller import HOME, Done, Installation

COMMAND = ("-P", "-m", "datamanager")


def wait_until(holds: Callable[[], bool], seconds: float, what: str) -> float:
    """Wait until it is so; returns how long it took."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)
    return time.monotonic() - began


class Serving(Installation):
    """An installation whose commands run in processes of their own, and its service.

    Args: python - the interpreter of the service; variables - beside DATAMANAGER_HOME.
    """

    def __init__(self, folder: Path, python: str = sys.executable, variables: Mapping[str, str] | None = None) -> None:
        super().__init__(folder)
        self.python = python
        self.variables = {**os.environ, **(variables or {}), HOME: str(self.home)}
        self.services: list[subprocess.Popen[bytes]] = []
        self.output = folder / "serve.output"

    @property
    def files(self) -> Home:
        return Home(self.home, self.home)

    # -- the service ---------------------------------------------------------------------------------------------------
    def serve(self, *words: str, settle: float = 0.0, hung_after: float = 8.0) -> subprocess.Popen[bytes]:
        """Start the service, and wait until its planner lives."""
        before = self.beat()
        all_words = ["serve", "--settle", str(settle), "--hung-after", str(hung_after), *words]
        with self.output.open("ab") as output:
            service = subprocess.Popen(
                [self.python, *COMMAND, *all_words],
                env=self.variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.services.append(service)

        def lives() -> bool:
            assert service.poll() is None, self.output.read_text()
            beat = self.beat()
            return beat is not None and beat != before and beat.alive(datetime.now(UTC))

        wait_until(lives, 40, "the planner lives")
        return service

    def beat(self) -> PlannerBeat | None:
        return read_beat(self.files.planner_file)

    def planner(self) -> psutil.Process:
        """The process of the planner that lives."""
        beat = self.beat()
        assert beat is not None
        return psutil.Process(beat.process.pid)

    def next_planner(self, before: psutil.Process) -> psutil.Process:
        """The planner that follows one that is gone, as soon as it lives."""

        def lives() -> bool:
            beat = self.beat()
            return beat is not None and beat.process.pid != before.pid and beat.alive(datetime.now(UTC))

        wait_until(lives, 60, "there is a new planner")
        return self.planner()

    def end(self, service: subprocess.Popen[bytes], number: signal.Signals = signal.SIGTERM) -> int:
        """Ask the service to end and wait for it."""
        service.send_signal(number)
        return service.wait(60)

    def said(self) -> str:
        """What the service wrote to its output."""
        return self.output.read_text(errors="replace")

    # -- processes -----------------------------------------------------------------------------------------------------
    def processes(self) -> list[psutil.Process]:
        """Every living process of this home: supervisor, planner, jobs and what they began."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                ours = process.pid != os.getpid() and process.environ().get(HOME) == str(self.home)
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def jobs_alive(self) -> list[psutil.Process]:
        """The processes that carry out jobs."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if "datamanager" in words and "serve" not in words:
                    found.append(process)
        return found

    def kill_everything(self) -> None:
        """As a power cut would, all at once as far as that can be: nobody sees another one die and acts on it."""
        processes = self.processes()
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.suspend()
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(processes, timeout=10)
        for service in self.services:
            with contextlib.suppress(subprocess.TimeoutExpired):
                service.wait(0)

    def close(self) -> None:
        """End whatever is left."""
        deadline = time.monotonic() + 20
        while self.processes() and time.monotonic() < deadline:
            self.kill_everything()
        for service in self.services:
            service.wait(5)

    # -- commands and state --------------------------------------------------------------------------------------------
    def command(self, *words: str | Path, code: int | None = 0) -> Done:
        """A command in a process of its own."""
        done = subprocess.run(
            [self.python, *COMMAND, *map(str, words)],
            env=self.variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert code is None or done.returncode == code, done.stdout + done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    @contextlib.contextmanager
    def state(self) -> Iterator[State]:
        with open_state(sqlite_url(self.files.state_file), clock=SystemClock()) as state:
            yield state

    def missed(self, name: str, kind: str, *arguments: str, subject: str, ago: timedelta, **more: Any) -> datetime:
        """Put in a schedule that runs every 31 days and whose moment went by ``ago``; returns that moment."""
        due = (datetime.now(UTC) - ago).replace(second=0, microsecond=0)
        rule = Recurrence(Kind.HOURLY, "UTC", due.date(), due.time(), every=31 * 24)
        request = JobRequest(kind, arguments, subject, who="the test", **more)
        schedule = Schedule(name, rule.to_json(), request, True, due - timedelta(days=1), due - timedelta(days=1), due)
        with self.state() as state:
            state.schedules.put(schedule)
        return due

    def again(self, name: str) -> datetime:
        """Let the schedule have missed one more moment, a minute later than the last; returns it."""
        with self.state() as state:
            schedule = state.schedules.get(name)
            rule = Recurrence.from_json(schedule.recurrence)
            last = schedule.last_due or datetime.now(UTC)
            due = last + timedelta(minutes=1)
            rule = replace(rule, start=due.date(), at=due.time().replace(tzinfo=None))
            state.schedules.put(replace(schedule, recurrence=rule.to_json(), next_due=due))
        return due

    def jobs(self, schedule: str | None = None) -> list[Job]:
        """The history, newest first."""
        with self.state() as state:
            return state.jobs.list(schedule=schedule, limit=None)

    def ended(self, schedule: str | None = None) -> list[Job]:
        return [job for job in self.jobs(schedule) if job.state.final]
