"""From bytes done to percent, speed and time left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from datamanager.base.events import Progress
from datamanager.base.units import format_duration, format_size


@dataclass(frozen=True, slots=True)
class Reading:
    """Where a phase stands; ``percent`` and ``seconds_left`` are None while nobody knows how much there is."""

    done_bytes: int
    total_bytes: int | None
    bytes_per_second: float
    percent: float | None
    seconds_left: float | None

    def describe(self) -> str:
        """``40 % (1.2 GiB of 3.0 GiB), 250 MiB/s, 7 s left``."""
        speed = f"{format_size(self.bytes_per_second)}/s"
        left = "" if self.seconds_left is None else f", {format_duration(self.seconds_left)} left"
        if self.percent is None:
            return f"{format_size(self.done_bytes)}, {speed}"
        of_total = f" of {format_size(self.total_bytes)}" if self.total_bytes is not None else ""
        return f"{self.percent:.0f} % ({format_size(self.done_bytes)}{of_total}), {speed}{left}"


class Meter:
    """Measures one phase. Not thread-safe.

    Args: elapsed - a clock that never goes back, in seconds.
    """

    def __init__(self, elapsed: Callable[[], float]) -> None:
        self._elapsed = elapsed
        self._began = elapsed()

    def restart(self) -> None:
        """A new phase begins."""
        self._began = self._elapsed()

    def read(self, progress: Progress) -> Reading:
        seconds = max(self._elapsed() - self._began, 1e-3)
        speed = progress.done_bytes / seconds
        total = progress.total_bytes
        if progress.fraction is not None:
            left = seconds / progress.fraction - seconds if progress.fraction > 0 else None
            return Reading(progress.done_bytes, total, speed, 100 * progress.fraction, left)
        if not total:
            return Reading(progress.done_bytes, total, speed, None, None)
        done = min(progress.done_bytes, total)
        left = (total - done) / speed if speed > 0 else None
        return Reading(progress.done_bytes, total, speed, 100 * done / total, left)
