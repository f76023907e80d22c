"""Time as a part that can be replaced: the wall clock for people, the boot clock for deadlines.

A wall clock may go back; nothing that matters is ordered by it. Deadlines and lease ages use a clock that only goes
forward and counts suspended time (CLOCK_BOOTTIME), where the system has one.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Thread-safe source of time."""

    def now(self) -> datetime:
        """The wall clock, aware, in UTC."""
        ...

    def elapsed(self) -> float:
        """Seconds since an arbitrary moment; never goes back, counts suspension where the system can."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def elapsed(self) -> float:
        boottime = getattr(time, "CLOCK_BOOTTIME", None)
        return time.monotonic() if boottime is None else time.clock_gettime(boottime)
