"""When something runs again: a local calendar, and the moments it comes to in a zone whose clocks change.

The calendar is naive and dateutil's (RFC 5545); what it gives is mapped to moments here. A time that a change of clocks
leaves out runs at the first moment after the gap, one that happens twice runs the first time, so once a day stays once
a day. Hourly is counted in real hours from the first one, so runs are always that far apart.
Source: RFC 5545, 3.3.10; PEP 495 (``fold``).
"""

from __future__ import annotations

import calendar
import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from dateutil.rrule import DAILY, MONTHLY, WEEKLY, rrule, weekday

from datamanager.base.errors import ConfigurationError, UsageError

LAST = -1  # as a day of the month or as the number of a weekday in it
_DAY = timedelta(days=1)
# How far back ``before`` looks, step by step. February 29 is at most 8 years away.
_LOOK_BACK = (timedelta(days=3), timedelta(days=40), timedelta(days=800), timedelta(days=3700))


class Kind(enum.StrEnum):
    ONCE = "once"
    HOURLY = "hourly"
    DAILY = "daily"
    WEEKLY = "weekly"
    MONTHLY = "monthly"


class ShortMonths(enum.StrEnum):
    """What becomes of day 29, 30 or 31 in a month that has none."""

    LAST_DAY = "last"
    SKIP = "skip"


# Hours, days and weeks: at most a year, which is also what the Windows Task Scheduler takes.
_LONGEST = {Kind.ONCE: 1, Kind.HOURLY: 31 * 24, Kind.DAILY: 365, Kind.WEEKLY: 52, Kind.MONTHLY: 1}


@dataclass(frozen=True, slots=True)
class Recurrence:
    """When something runs. Checked when it is made.

    Args:
        zone: of the calendar, an IANA name.
        start: the day from which ``every`` counts; nothing runs before it. For ``ONCE`` the day itself.
        at: hour and minute on the clock there; for ``HOURLY`` of the first run, on ``start``.
        every: hours, days or weeks between runs; 1 for the other kinds.
        weekdays: 0 is Monday; the days of ``WEEKLY``, one or more, or the one of ``MONTHLY`` with ``nth``.
        day: of ``MONTHLY``: 1 to 31, or LAST.
        nth: of ``MONTHLY``: which of the month's weekdays, 1 to 4, or LAST.
        months: of ``MONTHLY``, 1 to 12; empty means all.
        short_months: of ``MONTHLY`` with ``day`` 29 to 31.
    Raises: UsageError, when it makes no sense or never runs.
    """

    kind: Kind
    zone: str
    start: date
    at: time
    every: int = 1
    weekdays: tuple[int, ...] = ()
    day: int | None = None
    nth: int | None = None
    months: tuple[int, ...] = ()
    short_months: ShortMonths = ShortMonths.LAST_DAY

    def __post_init__(self) -> None:
        check_zone(self.zone)
        _check(self)

    def after(self, moment: datetime) -> datetime | None:
        """The first planned moment later than ``moment``, in UTC; None when there is none any more."""
        return next(self.between(moment, None), None)

    def at_or_before(self, moment: datetime) -> datetime | None:
        """The newest planned moment that is not later than ``moment``; None when there is none."""
        if self.kind is Kind.HOURLY:
            steps = (moment - self._first()) // timedelta(hours=self.every)
            return self._first() + steps * timedelta(hours=self.every) if steps >= 0 else None
        if self.kind is Kind.ONCE:
            return self._first() if self._first() <= moment else None
        for back in _LOOK_BACK:
            newest = None
            for newest in self.between(_shifted(moment, -back), moment):  # noqa: B007 - the last one is wanted
                pass
            if newest is not None:
                return newest
        return None

    def between(self, after: datetime, until: datetime | None) -> Iterator[datetime]:
        """Planned moments later than ``after`` and not later than ``until``, oldest first; without end for None."""
        found = self._hours(after) if self.kind is Kind.HOURLY else self._days(after)
        for moment in found:
            if until is not None and moment > until:
                return
            yield moment

    def _first(self) -> datetime:
        return moment_of(datetime.combine(self.start, self.at), self.zone)

    def _hours(self, after: datetime) -> Iterator[datetime]:
        first, step = self._first(), timedelta(hours=self.every)
        number = max(0, (after - first) // step + 1)
        try:
            while True:
                yield first + number * step
                number += 1
        except OverflowError:
            return

    def _days(self, after: datetime) -> Iterator[datetime]:
        last = after
        # A gap or a zone's distance from UTC moves a moment by no more than two days.
        for naive in self._calendar((_shifted(after, -2 * _DAY)).date()):
            try:
                moment = moment_of(naive, self.zone)
            except OverflowError:
                return
            if moment > last:
                yield moment
                last = moment

    def _calendar(self, begin: date) -> Iterator[datetime]:
        """Local times from ``begin`` on, oldest first; may begin earlier."""
        if self.kind is Kind.ONCE:
            return iter((datetime.combine(self.start, self.at),))
        begin = max(begin, self.start)
        passed = (begin - self.start).days
        if self.kind is Kind.DAILY:
            first = self.start + passed // self.every * self.every * _DAY
            return iter(rrule(DAILY, datetime.combine(first, self.at), self.every))
        if self.kind is Kind.WEEKLY:
            # Weeks begin on Monday; of the first one only what is not before the start counts.
            first = self.start + passed // (7 * self.every) * self.every * 7 * _DAY
            if first > self.start:
                first -= first.weekday() * _DAY
            return iter(rrule(WEEKLY, datetime.combine(first, self.at), self.every, byweekday=self.weekdays))
        first = max(begin.replace(day=1), self.start)
        return iter(self._monthly(datetime.combine(first, self.at)))

    def _monthly(self, first: datetime) -> rrule:
        months = self.months or None
        if self.nth is not None:
            return rrule(MONTHLY, first, bymonth=months, byweekday=weekday(self.weekdays[0], self.nth))
        day = self.day or 1
        if day > 28 and self.short_months is ShortMonths.LAST_DAY:
            return rrule(MONTHLY, first, bymonth=months, bymonthday=range(28, day + 1), bysetpos=-1)
        return rrule(MONTHLY, first, bymonth=months, bymonthday=day)

    def to_json(self) -> dict[str, Any]:
        """What ``from_json`` reads; what is at its default is left out."""
        values: dict[str, Any] = {
            "kind": str(self.kind),
            "zone": self.zone,
            "start": self.start.isoformat(),
            "at": f"{self.at:%H:%M}",
        }
        if self.every != 1:
            values["every"] = self.every
        if self.weekdays:
            values["weekdays"] = list(self.weekdays)
        if self.day is not None:
            values["day"] = self.day
        if self.nth is not None:
            values["nth"] = self.nth
        if self.months:
            values["months"] = list(self.months)
        if self.short_months is not ShortMonths.LAST_DAY:
            values["short_months"] = str(self.short_months)
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Recurrence:
        """Raises: ConfigurationError, for what this release does not know."""
        known = dict(values)
        try:
            known |= {
                "kind": Kind(known["kind"]),
                "start": date.fromisoformat(known["start"]),
                "at": time.fromisoformat(known["at"]),
                "weekdays": tuple(known.get("weekdays", ())),
                "months": tuple(known.get("months", ())),
                "short_months": ShortMonths(known.get("short_months", ShortMonths.LAST_DAY)),
            }
            return cls(**known)
        except (KeyError, TypeError, ValueError) as error:
            raise _unreadable(str(error)) from error
        except UsageError as error:
            raise _unreadable(error.message) from error


def _unreadable(cause: str) -> ConfigurationError:
    return ConfigurationError(
        f"read schedule: its times are not understood: {cause}",
        hint="Give it new ones with `datamanager schedule add NAME … --replace`, or install a newer release.",
    )


def _check(one: Recurrence) -> None:
    """Raises: UsageError."""
    if one.at.second or one.at.microsecond or one.at.tzinfo is not None:
        raise UsageError("plan schedule: its time is not a plain hour and minute", hint="Write it as 1:00AM or 13:30.")
    if not date.min.year < one.start.year < date.max.year:
        raise UsageError("plan schedule: its first day is out of range", hint="Give a year from 2 to 9998.")
    if not 1 <= one.every <= _LONGEST[one.kind]:
        limit = _LONGEST[one.kind]
        raise UsageError(
            f"plan schedule: every {one.every} is out of range for {one.kind}",
            hint=f"Give 1 to {limit}." if limit > 1 else "Leave --every out.",
        )
    monthly = one.kind is Kind.MONTHLY
    if tuple(sorted({*one.weekdays} & {*range(7)})) != one.weekdays or (
        len(one.weekdays) != (1 if one.nth is not None else 0) if one.kind is not Kind.WEEKLY else not one.weekdays
    ):
        raise UsageError("plan schedule: its days of the week do not fit", hint="Give them as mon,thu.")
    if (not monthly and (one.day is not None or one.nth is not None or one.months)) or (
        monthly and (one.day is None) == (one.nth is None)
    ):
        raise UsageError(
            "plan schedule: what is said of months does not fit",
            hint='Give --monthly with one of: a day (1 to 31), last, "last friday", "2nd tuesday".',
        )
    if tuple(sorted({*one.months} & {*range(1, 13)})) != one.months:
        raise UsageError("plan schedule: its months do not fit", hint="Give them as mar,sep.")
    if one.nth is not None and one.nth not in (LAST, 1, 2, 3, 4):
        raise UsageError("plan schedule: a month has no such weekday", hint="Give 1st to 4th, or last.")
    if one.day is not None and one.day != LAST and not 1 <= one.day <= 31:
        raise UsageError("plan schedule: a month has no such day", hint="Give 1 to 31, or last.")
    _check_it_comes(one)


def _check_it_comes(one: Recurrence) -> None:
    """Refuse day 31 of months that never have one. Raises: UsageError."""
    if one.short_months is ShortMonths.LAST_DAY or one.day is None:
        return
    # 2028 is a leap year.
    if one.day > max(calendar.monthrange(2028, month)[1] for month in one.months or range(1, 13)):
        raise UsageError(
            f"plan schedule: none of its months ever has a day {one.day}",
            hint="Choose other months, or let it run on the last day of shorter ones.",
        )


def check_zone(name: str) -> str:
    """The name as given. Raises: UsageError, when this computer knows no such zone."""
    try:
        _zone(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise UsageError(
            f"plan schedule: no time zone is named {name!r}", hint="Give one as Europe/Berlin or America/New_York."
        ) from error
    return name


@cache
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)


def moment_of(naive: datetime, zone: str) -> datetime:
    """The moment, in UTC, at which clocks in ``zone`` show ``naive`` for the first time.

    Where they never do, the first moment at which they show a later time.
    """
    place = _zone(zone)
    local = naive.replace(tzinfo=place, fold=0)
    moment = local.astimezone(UTC)
    if moment.astimezone(place).replace(tzinfo=None) == naive:
        return moment
    # In a gap ``fold`` tells the offset before (0) from the one after (1); the change lies between the two readings.
    early, late = local.replace(fold=1).astimezone(UTC), moment
    while late - early > timedelta(seconds=1):
        middle = early + (late - early) // 2
        if middle.astimezone(place).replace(tzinfo=None) > naive:
            late = middle
        else:
            early = middle
    return late.replace(microsecond=0)


def gap_ends(zone: str, at: time, years: range) -> list[time]:
    """What clocks in ``zone`` show first after each gap that leaves ``at`` out in these years, earliest first."""
    found = set()
    place = _zone(zone)
    day = date(years.start, 1, 1)
    while day.year < years.stop:
        naive = datetime.combine(day, at)
        local = moment_of(naive, zone).astimezone(place).replace(tzinfo=None)
        if local != naive:
            found.add(local.time())
        day += _DAY
    return sorted(found)


def _shifted(moment: datetime, by: timedelta) -> datetime:
    """Within the calendar of Python."""
    try:
        return moment + by
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC) if by < timedelta(0) else datetime.max.replace(tzinfo=UTC)
