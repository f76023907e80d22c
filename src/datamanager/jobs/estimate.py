"""How long a run still takes: by its speed now, else by how long the good ones before it took (R41)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from datamanager.state.model import Job, JobProgress


def with_estimate(job: Job, durations: Sequence[tuple[float, int]], now: datetime) -> JobProgress:
    """The progress of a running job, with what can be said of its end.

    Args: durations - seconds and bytes of the last good runs of the same kind and subject, newest first.
    """
    progress = job.progress
    if job.state.final or job.started is None or progress.seconds_left is not None or not durations:
        return progress
    usual = statistics.median(seconds for seconds, _ in durations)
    return replace(progress, seconds_left=max(usual - (now - job.started).total_seconds(), 0.0))
