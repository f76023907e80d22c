"""What tests of schedules share: zones, recurrences of every kind, and a slow oracle that walks days and minutes."""

from __future__ import annotations

import calendar
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import strategies as st

from datamanager.schedule.recurrence import LAST, Kind, Recurrence, ShortMonths
from datamanager.state.model import JobRequest, Schedule

ZONES = ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Santiago", "Asia/Kolkata")
FIRST_DAY, LAST_DAY = date(2026, 1, 1), date(2031, 12, 31)
DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc, arg-type]


def recurrence(kind: Kind = Kind.DAILY, at: str = "01:00", zone: str = "Europe/Berlin", **values: Any) -> Recurrence:
    start = values.pop("start", FIRST_DAY)
    return Recurrence(kind, zone, start, time.fromisoformat(at), **values)


def schedule(one: Recurrence | None = None, **values: Any) -> Schedule:
    """An enabled schedule of a backup, made on the first day."""
    found = one or recurrence()
    made = utc(2026, 1, 1)
    given = {"enabled": True, "created": made, "changed": made, "next_due": found.after(made), **values}
    request = JobRequest("backup run", ("office",), "office", heavy=True)
    return Schedule("nightly", found.to_json(), request, **given)


# -- recurrences of every kind --

_TIMES = st.one_of(
    # Half of them where clocks change somewhere: midnight, 1:30 to 3:30.
    st.builds(time, st.sampled_from([0, 1, 2, 3, 23]), st.sampled_from([0, 15, 30, 45, 59])),
    st.builds(time, st.integers(0, 23), st.integers(0, 59)),
)
_STARTS = st.dates(FIRST_DAY, date(2027, 12, 31))
_MONTHS = st.lists(st.integers(1, 12), max_size=4, unique=True).map(lambda found: tuple(sorted(found)))
_WEEKDAYS = st.lists(st.integers(0, 6), min_size=1, unique=True).map(lambda found: tuple(sorted(found)))


@st.composite
def recurrences(draw: st.DrawFn, kinds: tuple[Kind, ...] = tuple(Kind)) -> Recurrence:
    kind = draw(st.sampled_from(kinds))
    values: dict[str, Any] = {}
    match kind:
        case Kind.HOURLY:
            values["every"] = draw(st.sampled_from([1, 2, 3, 5, 6, 24, 100]))
        case Kind.DAILY:
            values["every"] = draw(st.integers(1, 10))
        case Kind.WEEKLY:
            values |= {"every": draw(st.integers(1, 5)), "weekdays": draw(_WEEKDAYS)}
        case Kind.MONTHLY:
            values["months"] = draw(_MONTHS)
            if draw(st.booleans()):
                values |= {"nth": draw(st.sampled_from([1, 2, 3, 4, LAST])), "weekdays": (draw(st.integers(0, 6)),)}
            else:
                values["day"] = draw(st.sampled_from([1, 15, 28, 29, 30, 31, LAST]))
                longest = max(calendar.monthrange(2028, month)[1] for month in values["months"] or range(1, 13))
                if values["day"] <= longest and draw(st.booleans()):
                    values["short_months"] = ShortMonths.SKIP
    return Recurrence(kind, draw(st.sampled_from(ZONES)), draw(_STARTS), draw(_TIMES), **values)


# -- the oracle --


def planned_days(one: Recurrence) -> Iterator[date]:
    """Every day, one after the other, with nothing but the calendar: is it one?"""
    day = one.start
    while day <= LAST_DAY:
        if _is_planned(one, day):
            yield day
        day += DAY


def _is_planned(one: Recurrence, day: date) -> bool:
    length = calendar.monthrange(day.year, day.month)[1]
    match one.kind:
        case Kind.ONCE:
            return day == one.start
        case Kind.DAILY:
            return (day - one.start).days % one.every == 0
        case Kind.WEEKLY:
            monday = one.start - one.start.weekday() * DAY
            return day.weekday() in one.weekdays and (day - monday).days // 7 % one.every == 0
    if one.months and day.month not in one.months:
        return False
    if one.nth == LAST:
        return day.weekday() == one.weekdays[0] and day.day > length - 7
    if one.nth is not None:
        return day.weekday() == one.weekdays[0] and (day.day - 1) // 7 + 1 == one.nth
    wanted = length if one.day == LAST else one.day or 0
    if one.short_months is ShortMonths.LAST_DAY:
        wanted = min(wanted, length)
    return day.day == wanted


@cache
def first_showing(naive: datetime, zone: str) -> datetime:
    """The first minute at which clocks there show that time or a later one, found by walking through the minutes."""
    place = ZoneInfo(zone)
    guess = naive.replace(tzinfo=UTC)
    offsets = {(guess + hours * timedelta(hours=1)).astimezone(place).utcoffset() for hours in range(-36, 37)}
    if len(offsets) == 1:
        return guess - (offsets.pop() or timedelta(0))
    moment = guess - timedelta(hours=16)
    while moment.astimezone(place).replace(tzinfo=None) < naive:
        moment += MINUTE
    return moment


def planned_moments(one: Recurrence) -> list[datetime]:
    """What should run from the first day to the last one, by the oracle."""
    if one.kind is Kind.HOURLY:
        moment, found = first_showing(datetime.combine(one.start, one.at), one.zone), []
        while moment < utc(2032, 1, 1):
            found.append(moment)
            moment += one.every * timedelta(hours=1)
        return found
    moments = (first_showing(datetime.combine(day, one.at), one.zone) for day in planned_days(one))
    return sorted(set(moments))
