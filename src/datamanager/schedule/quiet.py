"""The quiet hour of a cluster: when a run every day disturbs the fewest. Pure (R85)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from math import ceil
from zoneinfo import ZoneInfo

from datamanager.schedule.words import clock_time
from datamanager.state.model import Activity

DEFAULT = time(1, 0)
# Clocks change then in most zones.
_AVOIDED_HOUR = 2
_WEEK_HOURS = 168


@dataclass(frozen=True, slots=True)
class QuietHour:
    """Args: at - the local time; reason - one sentence; measured - False when it is only the default."""

    at: time
    reason: str
    measured: bool


def quiet_hour(activity: Iterable[Activity], zone: str, now: datetime, duration_seconds: float = 0.0) -> QuietHour:
    """The start of the hour, on the clocks of ``zone`` as they are now, with the fewest transactions over the week.

    Only hours count in which the computer is on most often, since only then somebody measured. Of equal ones the
    nearest to 1:00 AM is taken; never one between 2:00 and 3:00, when clocks change.
    Args: activity - of one cluster; duration_seconds - how long the run takes, all of which should be quiet.
    """
    known = {one.hour: one for one in activity if one.samples > 0}
    length = max(1, ceil(duration_seconds / 3600))
    candidates = []
    for hour in range(24):
        days = []
        for day in range(7):
            covered = [(day * 24 + hour + step) % _WEEK_HOURS for step in range(length)]
            if all(at in known for at in covered):
                days.append(sum(known[at].transactions for at in covered))
        at = _local(hour, zone, now)
        if days and at.hour != _AVOIDED_HOUR:
            candidates.append((-len(days), sum(days) / len(days), _from_default(at), at))
    if not candidates:
        return QuietHour(DEFAULT, "Nothing was measured yet; at night is a good guess.", measured=False)
    _, transactions, _, at = min(candidates)
    reason = f"At {clock_time(at)} the server ends about {transactions / length:,.0f} transactions an hour"
    busiest = max(one.transactions for one in known.values())
    return QuietHour(at, f"{reason}, in its busiest hour {busiest:,.0f}.", measured=True)


def _local(utc_hour: int, zone: str, now: datetime) -> time:
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    return (midnight + timedelta(hours=utc_hour)).astimezone(ZoneInfo(zone)).time()


def _from_default(at: time) -> int:
    """Minutes between ``at`` and 1:00 AM, the short way round the clock."""
    apart = abs((at.hour - DEFAULT.hour) * 60 + at.minute)
    return min(apart, 1440 - apart)
