"""Between the values of ``model`` and rows of ``tables``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, TypeVar

from datamanager.state.model import Job, JobProgress, JobRequest, JobState, Schedule, Trigger

_REQUEST = tuple(one.name for one in fields(JobRequest))
_PROGRESS = tuple(one.name for one in fields(JobProgress))

T = TypeVar("T")


def row_of(value: Any) -> dict[str, Any]:
    """The columns of a value whose fields are columns."""
    return {one.name: getattr(value, one.name) for one in fields(value)}


def value_of(kind: type[T], row: Mapping[Any, Any]) -> T:
    """The value in a row that has its fields as columns, and perhaps others."""
    return kind(**{one.name: row[one.name] for one in fields(kind)})  # type: ignore[arg-type]


def row_of_job(job: Job) -> dict[str, Any]:
    row = row_of(job)
    row |= row_of(row.pop("request"))
    return row | {
        "arguments": list(job.request.arguments),
        "trigger": str(job.request.trigger),
        "state": str(job.state),
        "progress": asdict(job.progress),
        "result": dict(job.result),
        "warnings": list(job.warnings),
    }


def job_of(row: Mapping[Any, Any]) -> Job:
    values = dict(row)
    request = {name: values.pop(name) for name in _REQUEST}
    return Job(
        **values
        | {
            "request": JobRequest(
                **request | {"arguments": tuple(request["arguments"]), "trigger": Trigger(request["trigger"])}
            ),
            "state": JobState(values["state"]),
            "progress": JobProgress(
                **{name: values["progress"][name] for name in _PROGRESS if name in values["progress"]}
            ),
            "warnings": tuple(values["warnings"]),
        }
    )


def row_of_schedule(schedule: Schedule) -> dict[str, Any]:
    """What is queued keeps no moment of its own: ``schedule``, ``due`` and ``trigger`` are set when it is queued."""
    request = row_of(schedule.request)
    for name in ("schedule", "due", "trigger"):
        del request[name]
    return row_of(schedule) | {
        "recurrence": dict(schedule.recurrence),
        "request": request | {"arguments": list(schedule.request.arguments)},
    }


def schedule_of(row: Mapping[Any, Any]) -> Schedule:
    stored = {name: value for name, value in row["request"].items() if name in _REQUEST}
    request = JobRequest(
        **stored | {"arguments": tuple(stored["arguments"]), "trigger": Trigger.SCHEDULE, "schedule": row["name"]}
    )
    return value_of(Schedule, {**row, "request": request})
