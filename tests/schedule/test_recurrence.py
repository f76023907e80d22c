"""When something runs again, against dateutil's calendar and against an oracle that walks days and minutes."""

from __future__ import annotations

from bisect import bisect_right
from datetime import UTC, date, datetime, time, timedelta
from itertools import islice, pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from dateutil.rrule import rrulestr
from hypothesis import given, settings
from hypothesis import strategies as st

from datamanager.base.errors import ConfigurationError, UsageError
from datamanager.schedule.recurrence import LAST, Kind, Recurrence, ShortMonths, gap_ends, moment_of
from tests.schedule.parts import DAY, ZONES, planned_moments, recurrence, recurrences, utc

_MOMENTS = st.datetimes(datetime(2025, 12, 1), datetime(2031, 11, 30), timezones=st.just(UTC))
# The oracle ends with 2031.
_KNOWN_UNTIL = utc(2031, 12, 30)


def check(one: Recurrence, moment: datetime) -> None:
    expected = [found for found in planned_moments(one) if found < _KNOWN_UNTIL]
    place = bisect_right(expected, moment)
    following = one.after(moment)
    if place < len(expected):
        assert following == expected[place]
    else:
        assert following is None or following >= _KNOWN_UNTIL
    assert one.at_or_before(moment) == (expected[place - 1] if place else None)
    assert list(one.between(moment, _KNOWN_UNTIL - timedelta(seconds=1))) == expected[place:]


@given(recurrences(), _MOMENTS)
@settings(max_examples=60, deadline=None)
def test_every_recurrence_comes_when_somebody_who_walks_the_calendar_says(one: Recurrence, moment: datetime) -> None:
    check(one, moment)


@pytest.mark.slow
@given(recurrences(), _MOMENTS)
@settings(max_examples=4000, deadline=None)
@pytest.mark.timeout(1200)
def test_many_recurrences_come_when_somebody_who_walks_the_calendar_says(one: Recurrence, moment: datetime) -> None:
    check(one, moment)


def rule_of(one: Recurrence) -> str:
    """The same as a rule of RFC 5545, written from its text."""
    names = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")
    parts = [f"FREQ={str(one.kind).upper()}", f"INTERVAL={one.every}", "WKST=MO"]
    if one.nth is not None:
        parts.append(f"BYDAY={one.nth}{names[one.weekdays[0]]}")
    elif one.weekdays:
        parts.append(f"BYDAY={','.join(names[day] for day in one.weekdays)}")
    if one.months:
        parts.append(f"BYMONTH={','.join(map(str, one.months))}")
    if one.day is not None:
        # A shorter month's last day is the greatest day of the month that is not above the wanted one.
        wanted = [one.day] if one.short_months is ShortMonths.SKIP or one.day == LAST else range(1, one.day + 1)
        parts.append(f"BYMONTHDAY={','.join(map(str, wanted))}")
        if len(wanted) > 1:
            parts.append("BYSETPOS=-1")
    return f"DTSTART:{one.start:%Y%m%d}T{one.at:%H%M%S}\nRRULE:{';'.join(parts)}"


@given(recurrences((Kind.DAILY, Kind.WEEKLY, Kind.MONTHLY)))
@settings(max_examples=60, deadline=None)
def test_days_are_those_of_the_rule_in_rfc_5545(one: Recurrence) -> None:
    naive = rrulestr(rule_of(one)).between(datetime(2026, 1, 1), datetime(2031, 12, 30), inc=True)
    moments = sorted({moment_of(local, one.zone) for local in naive})
    assert list(one.between(utc(2025, 12, 30), moments[-1] if moments else utc(2031, 12, 30))) == moments


@given(recurrences())
@settings(max_examples=60, deadline=None)
def test_json_gives_back_the_same_recurrence(one: Recurrence) -> None:
    assert Recurrence.from_json(one.to_json()) == one


@given(recurrences((Kind.DAILY, Kind.WEEKLY, Kind.MONTHLY)), _MOMENTS)
@settings(max_examples=40, deadline=None)
def test_once_a_day_stays_once_a_day(one: Recurrence, moment: datetime) -> None:
    found = list(islice(one.between(moment, None), 40))
    days = [each.astimezone(ZoneInfo(one.zone)).date() for each in found]
    assert len(set(days)) == len(days)


# Both changes of five years in four zones: in the gap, in the hour that comes twice.
@pytest.mark.requirement("R85")
@pytest.mark.parametrize(
    ("zone", "forward", "back"),
    [
        ("Europe/Berlin", date(2026, 3, 29), date(2026, 10, 25)),
        ("America/New_York", date(2026, 3, 8), date(2026, 11, 1)),
        ("Europe/Berlin", date(2030, 3, 31), date(2030, 10, 27)),
    ],
)
def test_a_job_at_half_past_two_runs_exactly_once_on_both_changes(zone: str, forward: date, back: date) -> None:
    at = "01:30" if zone == "America/New_York" else "02:30"
    found = {}
    for day in (forward, back):
        for hour in (at, "02:30"):
            begin = datetime.combine(day, time(0), ZoneInfo(zone)).astimezone(UTC)
            runs = list(recurrence(at=hour, zone=zone).between(begin, begin + DAY))
            found[day, hour] = [run.astimezone(ZoneInfo(zone)).date() for run in runs]
    assert found == {key: [key[0]] for key in found}  # requirement R85


@pytest.mark.parametrize(
    ("zone", "day", "at", "expected"),
    [
        ("Europe/Berlin", date(2026, 3, 29), "02:30", utc(2026, 3, 29, 1, 0)),
        ("Europe/Berlin", date(2026, 10, 25), "02:30", utc(2026, 10, 25, 0, 30)),
        ("America/New_York", date(2026, 3, 8), "02:30", utc(2026, 3, 8, 7, 0)),
        ("America/New_York", date(2026, 11, 1), "01:30", utc(2026, 11, 1, 5, 30)),
        # Half an hour, in the southern summer.
        ("Australia/Lord_Howe", date(2026, 10, 4), "02:15", utc(2026, 10, 3, 15, 30)),
        ("Australia/Lord_Howe", date(2026, 4, 5), "01:45", utc(2026, 4, 4, 14, 45)),
        # At midnight: the day begins at one o'clock.
        ("America/Santiago", date(2026, 9, 6), "00:30", utc(2026, 9, 6, 4, 0)),
        ("America/Santiago", date(2026, 4, 4), "23:30", utc(2026, 4, 5, 2, 30)),
        ("Asia/Kolkata", date(2026, 3, 29), "02:30", utc(2026, 3, 28, 21, 0)),
    ],
)
def test_hours_that_do_not_exist_and_hours_that_exist_twice(zone: str, day: date, at: str, expected: datetime) -> None:
    assert moment_of(datetime.combine(day, time.fromisoformat(at)), zone) == expected


def test_a_day_that_a_zone_left_out_makes_one_run_not_two() -> None:
    """Samoa went over the date line: there was no December 30, 2011."""
    one = recurrence(at="00:00", zone="Pacific/Apia", start=date(2011, 12, 28))
    runs = list(one.between(utc(2011, 12, 28, 12), utc(2012, 1, 1)))
    assert [run.astimezone(ZoneInfo(one.zone)).day for run in runs] == [29, 31, 1]


def test_hourly_means_every_real_hour() -> None:
    one = recurrence(Kind.HOURLY, "00:15")
    for day, hours in ((utc(2026, 3, 28, 23), 23), (utc(2026, 10, 24, 22), 25)):
        runs = list(one.between(day, day + hours * timedelta(hours=1)))
        assert len(runs) == hours
        assert {later - run for run, later in pairwise(runs)} == {timedelta(hours=1)}


def local_days(one: Recurrence, count: int, after: datetime | None = None) -> list[str]:
    moments = islice(one.between(after or utc(2025, 12, 1), None), count)
    return [f"{moment.astimezone(ZoneInfo(one.zone)):%Y-%m-%d}" for moment in moments]


@pytest.mark.requirement("R89")
def test_every_two_weeks_on_monday_and_thursday_goes_right_over_the_end_of_a_year() -> None:
    """2026 has 53 weeks, so that the parity of week numbers would go wrong."""
    one = recurrence(Kind.WEEKLY, every=2, weekdays=(0, 3), start=date(2026, 12, 10))
    assert local_days(one, 8) == [
        *("2026-12-10", "2026-12-21", "2026-12-24", "2027-01-04"),
        *("2027-01-07", "2027-01-18", "2027-01-21", "2027-02-01"),
    ]


@pytest.mark.requirement("R90", missing="the choice itself is made on the command line")
def test_day_31_in_a_shorter_month_is_its_last_day_unless_it_is_to_be_skipped() -> None:
    last = recurrence(Kind.MONTHLY, day=31)
    skipped = recurrence(Kind.MONTHLY, day=31, short_months=ShortMonths.SKIP)
    assert local_days(last, 4) == ["2026-01-31", "2026-02-28", "2026-03-31", "2026-04-30"]
    assert local_days(skipped, 4) == ["2026-01-31", "2026-03-31", "2026-05-31", "2026-07-31"]


def test_february_29_comes_every_four_years_or_is_february_28() -> None:
    leap = recurrence(Kind.MONTHLY, day=29, months=(2,), short_months=ShortMonths.SKIP)
    assert local_days(leap, 3) == ["2028-02-29", "2032-02-29", "2036-02-29"]
    assert leap.at_or_before(utc(2031, 12, 1)) == leap.after(utc(2026, 1, 1))
    assert local_days(recurrence(Kind.MONTHLY, day=29, months=(2,)), 3) == ["2026-02-28", "2027-02-28", "2028-02-29"]


def test_the_last_friday_and_the_last_day_of_chosen_months() -> None:
    friday = recurrence(Kind.MONTHLY, nth=LAST, weekdays=(4,), months=(3, 9))
    assert local_days(friday, 3) == ["2026-03-27", "2026-09-25", "2027-03-26"]
    assert local_days(recurrence(Kind.MONTHLY, day=LAST, months=(2,)), 3) == ["2026-02-28", "2027-02-28", "2028-02-29"]


def test_nothing_runs_before_the_start_nor_after_the_end_of_the_calendar() -> None:
    one = recurrence(start=date(2027, 5, 1))
    assert local_days(one, 1) == ["2027-05-01"]
    assert one.at_or_before(utc(2027, 4, 1)) is None
    assert one.after(datetime.max.replace(tzinfo=UTC)) is None
    once = recurrence(Kind.ONCE, start=date(2027, 5, 1))
    assert once.after(utc(2027, 5, 1)) is None
    assert once.at_or_before(utc(2050, 1, 1)) == once.after(utc(2027, 4, 1))


def test_gaps_in_which_a_time_falls_are_known_by_their_end() -> None:
    years = range(2026, 2032)
    assert gap_ends("Europe/Berlin", time(2, 30), years) == [time(3, 0)]
    assert gap_ends("Europe/Berlin", time(1, 0), years) == []
    assert gap_ends("Australia/Lord_Howe", time(2, 15), years) == [time(2, 30)]
    assert gap_ends("America/Santiago", time(0, 0), years) == [time(1, 0)]
    assert [gap_ends(zone, time(2, 30), years) for zone in ZONES[-1:]] == [[]]


@pytest.mark.parametrize(
    "values",
    [
        {"every": 0},
        {"every": 366},
        {"zone": "Europe/Atlantis"},
        {"zone": "../etc/passwd"},
        {"at": "01:00:30"},
        {"day": 3},
        {"weekdays": (1,)},
        {"kind": Kind.WEEKLY},
        {"kind": Kind.WEEKLY, "weekdays": (3, 0)},
        {"kind": Kind.WEEKLY, "weekdays": (7,)},
        {"kind": Kind.MONTHLY},
        {"kind": Kind.MONTHLY, "day": 32},
        {"kind": Kind.MONTHLY, "day": 0},
        {"kind": Kind.MONTHLY, "nth": 5, "weekdays": (0,)},
        {"kind": Kind.MONTHLY, "day": 1, "months": (13,)},
        {"kind": Kind.MONTHLY, "day": 31, "months": (2, 4), "short_months": ShortMonths.SKIP},
        {"kind": Kind.ONCE, "every": 2},
    ],
)
def test_what_makes_no_sense_is_refused_with_a_remedy(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as refused:
        recurrence(**values)
    assert refused.value.hint


def test_times_of_a_newer_release_are_refused_not_misread() -> None:
    for change in ({"kind": "lunar"}, {"phase": "full"}, {"start": "soon"}, {"every": "two"}, {"zone": None}):
        with pytest.raises(ConfigurationError):
            Recurrence.from_json({**recurrence().to_json(), **change})


@pytest.mark.parametrize("kind", [Kind.ONCE, Kind.HOURLY, Kind.DAILY])
@pytest.mark.parametrize(("zone", "first", "last"), [("America/New_York", 2, 9998), ("Asia/Tokyo", 2, 9998)])
def test_at_the_ends_of_the_calendar_there_are_no_surprises(kind: Kind, zone: str, first: int, last: int) -> None:
    now = datetime(2026, 11, 23, tzinfo=UTC)
    for start, at in ((date(first, 1, 1), time(0, 0)), (date(last, 12, 31), time(23, 59))):
        one = Recurrence(kind, zone, start, at)
        following, before = one.after(now), one.at_or_before(now)
        assert following is None or following > now
        assert before is None or before <= now
        assert len(list(islice(one.between(now, None), 3))) <= 3
    for start in (date.min, date.max):
        with pytest.raises(UsageError, match="first day"):
            Recurrence(kind, zone, start, time(23, 0))
