"""A process of its own that uses a state, for tests of several at once. Orders and answers are lines of JSON."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import Any

from datamanager.base.clock import SystemClock
from datamanager.state.database import State, open_state
from datamanager.state.model import JobRequest
from tests.state.parts import MORNING


def say(answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def claim(state: State, order: dict[str, Any]) -> list[str]:
    """Claim until nothing is left."""
    found = []
    while (job := state.jobs.claim("here", now=datetime.now(UTC))) is not None:
        found.append(job.id)
    return found


def queue(state: State, order: dict[str, Any]) -> list[str]:
    """Queue the same planned moments as everybody else; returns those that were ours."""
    requests = [JobRequest("backup run", schedule="nightly", due=MORNING.replace(day=day)) for day in range(1, 21)]
    return [job.id for job in map(state.jobs.add, requests) if job is not None]


def append(state: State, order: dict[str, Any]) -> list[int]:
    return [
        state.audit.append(who=f"child {order['number']}", origin="test", action="wrote", target=str(turn)).number
        for turn in range(order["times"])
    ]


def append_for_ever(state: State, order: dict[str, Any]) -> None:
    while True:
        entry = state.audit.append(who="child", origin="test", action="wrote", target="x" * 500)
        say(entry.number)


def look(state: State, order: dict[str, Any]) -> int:
    return state.jobs.count()


WORKS = {work.__name__: work for work in (claim, queue, append, append_for_ever, look)}


def main() -> None:
    order = json.loads(sys.stdin.readline())
    if order["opens_at_once"]:
        say("ready")
        sys.stdin.readline()
    with open_state(order["url"], clock=SystemClock()) as state:
        if not order["opens_at_once"]:
            say("ready")
            sys.stdin.readline()
        say(WORKS[order["work"]](state, order))


if __name__ == "__main__":
    main()
