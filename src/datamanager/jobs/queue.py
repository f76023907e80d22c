"""The queue of jobs as the worker and whoever asks for a job see it.

On one machine it is the store of jobs in the state (``state.jobs``). Where there are many, a queue on a PostgreSQL that
all of them reach is one more implementation of the same.
"""

from __future__ import annotations

import builtins
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from datamanager.state.model import Job, JobEvent, JobRequest

if TYPE_CHECKING:
    from datamanager.state.database import State


class JobQueue(Protocol):
    """Thread-safe, and safe from several processes; every method raises StateUnavailable (retryable) and StateError."""

    def add(self, request: JobRequest, *, id: str | None = None) -> Job | None:
        """Queue a job. Returns: None when one was there already for the same moment of the same schedule."""
        ...

    def claim(self, host: str, *, now: datetime, busy_subjects: Collection[str] = ()) -> Job | None:
        """Take the next job and call it running; nobody else gets it. None when none can run now.

        A heavy one waits while a heavy one of its subject runs, or its subject is in ``busy_subjects``.
        """
        ...

    def save(self, job: Job, events: Sequence[JobEvent] | None = None) -> None:
        """Write the job as it is now; one that has ended stays ended."""
        ...

    def get(self, id: str) -> Job:
        """Raises: NotFound; UsageError, when the beginning of an id fits several."""
        ...

    def request_cancel(self, id: str, who: str) -> Job:
        """Note who wants it ended; a queued one is cancelled by that. Raises: NotFound."""
        ...

    def queued(self) -> builtins.list[Job]:
        """Jobs that wait, in the order in which they are claimed."""
        ...

    def running(self, host: str | None = None) -> builtins.list[Job]:
        """Jobs that were claimed and have not ended."""
        ...


def queue_of(state: State) -> JobQueue:
    """The queue of this machine."""
    return state.jobs
