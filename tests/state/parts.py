"""What tests of the state share: a clock that only they move, values to store, and processes that use one state."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from datamanager.state.model import Job, JobRequest, JobState, new_job_id

MORNING = datetime(2026, 11, 23, 6, 0, 0, 123456, tzinfo=UTC)


class MovedClock:
    """Stands still until it is moved."""

    def __init__(self, now: datetime = MORNING) -> None:
        self._now = now

    def now(self) -> datetime:
        return self._now

    def elapsed(self) -> float:
        return (self._now - MORNING).total_seconds()

    def move(self, **parts: float) -> datetime:
        self._now += timedelta(**parts)
        return self._now


def backup(subject: str = "clinic", **values: Any) -> JobRequest:
    return JobRequest("backup run", (subject,), subject, **{"heavy": True, **values})


def done(at: datetime, request: JobRequest | None = None, **values: Any) -> Job:
    """A run that began at ``at`` and took a minute."""
    end = at + timedelta(minutes=1)
    given = {"id": new_job_id(at), "state": JobState.DONE, "queued": at, "started": at, "ended": end, **values}
    return Job(request=request or backup(), **given)


class Child:
    """One process of ``tests.state.child``, opened and waiting for the word."""

    def __init__(self, work: str, url: str, *, opens_at_once: bool = False, **order: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.state.child"],
            cwd=Path(__file__).resolve().parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._say({"work": work, "url": url, "opens_at_once": opens_at_once, **order})
        self.hear()

    def _say(self, order: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go(self) -> None:
        self._say({})

    def result(self) -> Any:
        """What it came to; fails with its own words."""
        output, errors = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, errors
        return json.loads(output.splitlines()[-1])


@contextmanager
def children(count: int, work: str, url: str, **order: Any) -> Iterator[list[Child]]:
    """Several processes that wait side by side; those still there at the end are killed."""
    started = [Child(work, url, number=number, **order) for number in range(count)]
    try:
        yield started
    finally:
        for one in started:
            if one.process.poll() is None:
                one.process.kill()
            one.process.communicate()


def together(count: int, work: str, url: str, **order: Any) -> list[Any]:
    """Let several processes do the same at the same time; returns what each came to."""
    with children(count, work, url, **order) as started:
        for one in started:
            one.go()
        return [one.result() for one in started]
