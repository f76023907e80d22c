"""Moments that are over, and lengths of time, as people say them: ``today 1:04 AM``, ``9 days ago``. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta, tzinfo

from datamanager.schedule.words import DAYS, MONTHS, clock_time, counted

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def when(moment: datetime, now: datetime, zone: tzinfo | None = None) -> str:
    """``today 1:04 AM``, ``yesterday 11:30 PM``, ``on Friday 1:04 AM``, ``on November 3, 1:04 AM``.

    Args: zone - the days and hours of; this computer's when None.
    """
    local, today = moment.astimezone(zone), now.astimezone(zone).date()
    hour = clock_time(local.time())
    days = (today - local.date()).days
    if days == 0:
        return f"today {hour}"
    if days == 1:
        return f"yesterday {hour}"
    if 1 < days < 7:
        return f"on {DAYS[local.weekday()]} {hour}"
    year = "" if local.year == today.year else f" {local.year},"
    return f"on {MONTHS[local.month - 1]} {local.day},{year} {hour}"


def length(span: timedelta) -> str:
    """``1 minute``, ``40 minutes``, ``3 hours``, ``9 days``: about how long; less than a minute counts as one."""
    seconds = abs(span.total_seconds())
    if seconds < 1.5 * _HOUR:
        return counted(max(1, round(seconds / _MINUTE)), "minute")
    if seconds < 2 * _DAY:
        return counted(round(seconds / _HOUR), "hour")
    return counted(int(seconds // _DAY), "day")


def ago(moment: datetime, now: datetime) -> str:
    """``9 days ago``; ``just now`` within a minute and for what a wrong clock put into the future."""
    past = now - moment
    return "just now" if past < timedelta(minutes=1) else f"{length(past)} ago"
