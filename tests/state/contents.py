"""A state with something in every table, and all of a state as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from datamanager.state.database import State
from datamanager.state.model import (
    Job,
    JobEvent,
    JobProgress,
    JobRequest,
    JobState,
    KnownCluster,
    KnownRepository,
    Proof,
    Schedule,
    Trigger,
)
from tests.state.parts import MORNING

_HOUR = timedelta(hours=1)
FULL_JOB = Job(
    id="20261123T060000Z-abc123",
    request=JobRequest(
        kind="backup run",
        arguments=("clinic", "--tag", "Zürich \udcff\0", "%s 'x' \\"),
        subject="clinic",
        trigger=Trigger.CATCH_UP,
        who="anna",
        schedule="nightly",
        due=MORNING,
        heavy=True,
        low_priority=True,
        limit_seconds=3600.5,
    ),
    state=JobState.WARNED,
    queued=MORNING,
    started=MORNING + timedelta(microseconds=1),
    ended=MORNING + 2 * _HOUR,
    host="server1",
    pid=2**40,
    pid_started=1795413600.123456,
    heartbeat=MORNING + _HOUR,
    progress=JobProgress("reading", 2**45, 2**46, 0.5, 123.25, 7.0),
    exit_code=3221225786,
    summary="Done.",
    cause="c",
    effect="e",
    next_step="n",
    result={"backup_id": "b1", "size": 2**60, "nested": {"list": [1, None, True, 0.1]}},
    warnings=("one", "two"),
    log="backup.log",
    log_pinned=True,
    cancelled_by="bob",
)


def fill(state: State) -> None:
    """Put something into every table. The audit and the alerts take their times from the state's clock."""
    state.jobs.save(FULL_JOB, [JobEvent(MORNING, "phase", "reading"), JobEvent(MORNING, "warning", "ä")])
    state.jobs.add(JobRequest("drill run", ("latest",), "clinic", low_priority=True), id="20261123T070000Z-def456")
    request = JobRequest("backup run", ("clinic",), "clinic", Trigger.SCHEDULE, "anna", "nightly", heavy=True)
    daily = {"kind": "daily", "at": ["01:00"], "zone": "Europe/Zurich"}
    state.schedules.put(Schedule("nightly", daily, request, True, MORNING, MORNING, MORNING + _HOUR, MORNING, 2))
    state.schedules.put(Schedule("never", {"kind": "once"}, request, False, MORNING, MORNING))
    state.audit.append(who="anna", origin="cli", action="schedule changed", target="nightly", before=None, after=daily)
    state.audit.append(who="bob", origin="page", action="declined", target="proof", before=[1], reason="no time")
    state.alerts.raise_("ended", "Ended", "It was so.", False)
    state.alerts.clear("ended")
    state.alerts.raise_("failed:clinic", "Backup failed", "The drive is away.", True)
    state.alerts.sent("failed:clinic", MORNING)
    state.alerts.acknowledge("failed:clinic", "anna")
    state.alerts.set_value("digest", "2026-11-23")
    state.proofs.add(
        Proof("b1", "clinic", "7312", MORNING, MORNING, True, 60.25, 12.5, {"rows": 2**40}, "", "usb", "h")
    )
    state.proofs.add(Proof("b0", "clinic", "7312", MORNING, MORNING - _HOUR, False, 1.0, 0.0, {}, "index", job="j1"))
    state.known.put_cluster(KnownCluster("clinic", "7312", "17.6", 2**40, ("a", "ä"), "b1", MORNING, "usb", MORNING))
    state.known.put_repository(KnownRepository("usb", "/mnt/usb", "r1", 12, 2**40, None, MORNING))
    state.known.add_activity("clinic", 9, 100)
    state.known.add_activity("clinic", 9, 300)


def described(state: State) -> Any:
    """All of a state as plain JSON."""
    found = {
        "jobs": [asdict(one) for one in state.jobs.list(limit=None)],
        "events": [asdict(one) for one in state.jobs.events(FULL_JOB.id)],
        "schedules": [asdict(one) for one in state.schedules.list()],
        "audit": [asdict(one) for one in state.audit.list(limit=None)],
        "alerts": [asdict(one) for one in state.alerts.list(limit=None)],
        "digest": state.alerts.value("digest"),
        "proofs": [asdict(one) for one in state.proofs.list(limit=None)],
        "clusters": [asdict(one) for one in state.known.clusters()],
        "repositories": [asdict(one) for one in state.known.repositories()],
        "activity": [asdict(one) for one in state.known.activity("clinic")],
    }
    return json.loads(json.dumps(found, default=lambda value: value.isoformat()))
