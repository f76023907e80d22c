"""No question that is asked often reads a table from end to end."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event

from datamanager.config.state_url import sqlite_path
from datamanager.state.database import open_state
from datamanager.state.model import JobState
from tests.state.contents import FULL_JOB
from tests.state.parts import MORNING, MovedClock

QUESTIONS = {
    "list": lambda state: state.jobs.list(),
    "list of a kind": lambda state: state.jobs.list(kind="backup run"),
    "list of a subject": lambda state: state.jobs.list(subject="clinic"),
    "list of a kind and subject": lambda state: state.jobs.list(kind="backup run", subject="clinic"),
    "list of a schedule": lambda state: state.jobs.list(schedule="nightly"),
    "list of states": lambda state: state.jobs.list(states=[JobState.FAILED, JobState.CANCELLED]),
    "list before": lambda state: state.jobs.list(before=MORNING),
    "count of states": lambda state: state.jobs.count(states=[JobState.QUEUED]),
    "get": lambda state: state.jobs.request_cancel("20261123T060000Z-abc123", "anna"),
    "claim": lambda state: state.jobs.claim("here", now=MORNING, busy_subjects={"a"}),
    "queued": lambda state: state.jobs.queued(),
    "running": lambda state: state.jobs.running("here"),
    "last": lambda state: state.jobs.last(kind="backup run", subject="clinic", states=[JobState.DONE]),
    "durations": lambda state: state.jobs.durations("backup run", "clinic"),
    "log names": lambda state: state.jobs.log_names("backup run", "clinic"),
    "events": lambda state: state.jobs.events("20261123T060000Z-abc123"),
    "drop": lambda state: state.jobs.drop_before(MORNING - timedelta(days=2000)),
    "due": lambda state: state.schedules.due(MORNING),
    "next due": lambda state: state.schedules.next_due(),
    "last proof": lambda state: state.proofs.last("clinic", passed=True),
    "alerts": lambda state: state.alerts.clear("k"),
}
_ANSWERED = ("USING INDEX", "USING COVERING INDEX", "USING INTEGER PRIMARY KEY")


@contextmanager
def statements() -> Iterator[list[tuple[str, Any]]]:
    """What goes to any database meanwhile, with its parameters."""
    seen: list[tuple[str, Any]] = []

    def note(connection: object, cursor: object, statement: str, parameters: Any, *rest: object) -> None:
        seen.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", note)


@pytest.mark.parametrize("question", QUESTIONS)
def test_an_index_answers(file_url: str, clock: MovedClock, question: str) -> None:
    path = sqlite_path(file_url)
    assert path is not None
    with open_state(file_url, clock=clock) as state:
        state.jobs.save(FULL_JOB)
        with statements() as seen:
            QUESTIONS[question](state)
    asked = [one for one in seen if one[0].lstrip().startswith(("SELECT", "UPDATE", "DELETE"))]
    assert asked
    with closing(sqlite3.connect(path)) as connection:
        for statement, parameters in asked:
            plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]
            scans = [step for step in plan if step.startswith("SCAN") and not any(one in step for one in _ANSWERED)]
            assert scans == [], (statement, plan)
            if question.startswith("list"):
                assert "USE TEMP B-TREE FOR ORDER BY" not in plan or question == "list of states", (statement, plan)
