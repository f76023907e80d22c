"""Times in plain words, as a golden table, and reading what people write."""

from __future__ import annotations

from datetime import date, datetime, time
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings

from datamanager.base.errors import UsageError
from datamanager.cli.root import cli
from datamanager.schedule import words
from datamanager.schedule.recurrence import LAST, Kind, Recurrence, ShortMonths
from tests.schedule.parts import recurrence, recurrences

BERLIN = "Europe/Berlin"

DESCRIPTIONS: list[tuple[dict[str, Any], str]] = [
    ({}, "Every day at 1:00 AM"),
    ({"at": "00:00"}, "Every day at 12:00 AM"),
    ({"at": "12:05", "every": 3}, "Every 3 days at 12:05 PM"),
    (
        {"kind": Kind.ONCE, "start": date(2026, 12, 24), "at": "20:00"},
        "Once, on Thursday, December 24, 2026, at 8:00 PM",
    ),
    ({"kind": Kind.HOURLY, "at": "00:00"}, "Every hour"),
    ({"kind": Kind.HOURLY, "at": "00:15"}, "Every hour, 15 minutes past"),
    (
        {"kind": Kind.HOURLY, "at": "01:15", "every": 6},
        "Every 6 hours, the first at 1:15 AM on Thursday, January 1, 2026",
    ),
    (
        {"kind": Kind.WEEKLY, "at": "23:30", "every": 2, "weekdays": (0, 3)},
        "Every 2 weeks on Monday and Thursday at 11:30 PM",
    ),
    ({"kind": Kind.WEEKLY, "weekdays": (6,)}, "Every week on Sunday at 1:00 AM"),
    ({"kind": Kind.WEEKLY, "weekdays": (0, 1, 2, 3, 4)}, "Every week on Monday to Friday at 1:00 AM"),
    ({"kind": Kind.WEEKLY, "weekdays": (0, 2, 4)}, "Every week on Monday, Wednesday and Friday at 1:00 AM"),
    ({"kind": Kind.WEEKLY, "weekdays": tuple(range(7))}, "Every day at 1:00 AM"),
    ({"kind": Kind.WEEKLY, "weekdays": tuple(range(7)), "every": 3}, "Every 3 weeks on every day at 1:00 AM"),
    ({"kind": Kind.MONTHLY, "day": 15}, "On day 15 of every month at 1:00 AM"),
    ({"kind": Kind.MONTHLY, "day": LAST}, "On the last day of every month at 1:00 AM"),
    (
        {"kind": Kind.MONTHLY, "day": 31},
        "On day 31 of every month at 1:00 AM; in shorter months on the last day",
    ),
    ({"kind": Kind.MONTHLY, "day": 31, "months": (1, 7)}, "On day 31 of January and July at 1:00 AM"),
    (
        {"kind": Kind.MONTHLY, "day": 30, "months": (1, 2), "short_months": ShortMonths.SKIP},
        "On day 30 of January and February at 1:00 AM; not in months without one",
    ),
    (
        {"kind": Kind.MONTHLY, "nth": LAST, "weekdays": (4,), "months": (3, 9), "at": "22:00"},
        "On the last Friday of March and September at 10:00 PM",
    ),
    ({"kind": Kind.MONTHLY, "nth": 2, "weekdays": (1,)}, "On the second Tuesday of every month at 1:00 AM"),
]


@pytest.mark.parametrize(("values", "expected"), DESCRIPTIONS, ids=[text for _, text in DESCRIPTIONS])
def test_a_recurrence_is_said_in_plain_words(values: dict[str, Any], expected: str) -> None:
    one = recurrence(**values)
    assert words.describe(one, BERLIN) == expected
    assert words.describe(one, "America/New_York") == f"{expected} (Europe/Berlin time)"


# Local times in Berlin: now, next, what is said.
NEXT = [
    ("2026-11-23 12:00:00", "2026-11-23 12:00:30", "now"),
    ("2026-11-23 12:00:00", "2026-11-23 11:00:00", "now"),
    ("2026-11-23 12:00:00", "2026-11-23 12:01:00", "in 1 minute"),
    ("2026-11-23 12:00:00", "2026-11-23 12:45:00", "in 45 minutes"),
    ("2026-11-23 12:00:00", "2026-11-23 15:00:00", "today"),
    ("2026-11-23 12:00:00", "2026-11-24 01:00:00", "tonight"),
    ("2026-11-23 08:00:00", "2026-11-23 22:00:00", "tonight"),
    ("2026-11-23 23:30:00", "2026-11-24 01:00:00", "tonight"),
    ("2026-11-24 00:00:00", "2026-11-24 01:00:00", "tonight"),
    ("2026-11-24 03:00:00", "2026-11-25 01:00:00", "tomorrow"),
    ("2026-11-24 03:00:00", "2026-11-24 22:00:00", "today"),
    ("2026-11-23 12:00:00", "2026-11-24 09:00:00", "tomorrow"),
    ("2026-11-23 12:00:00", "2026-11-25 01:00:00", "in 2 days, on Wednesday"),
    ("2026-11-23 12:00:00", "2026-11-27 01:00:00", "in 4 days, on Friday"),
    ("2026-11-23 12:00:00", "2026-12-05 01:00:00", "in 12 days, on Saturday, December 5"),
    ("2026-11-23 12:00:00", "2027-02-28 01:00:00", "in 97 days, on Sunday, February 28, 2027"),
]


@pytest.mark.parametrize(("now", "following", "expected"), NEXT)
def test_the_next_run_is_said_as_people_say_it(now: str, following: str, expected: str) -> None:
    place = ZoneInfo(BERLIN)
    moments = [datetime.fromisoformat(text).replace(tzinfo=place) for text in (following, now)]
    assert words.next_in_words(moments[0], moments[1], BERLIN) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(("1:00AM", time(1)), ("1 am", time(1)), ("12AM", time(0)), ("12:30 p.m.", time(12, 30))),
        *(("11:30PM", time(23, 30)), ("23:30", time(23, 30)), ("0:05", time(0, 5)), ("1.15pm", time(13, 15))),
    ],
)
def test_times_are_read_as_people_write_them(text: str, expected: time) -> None:
    assert words.read_time(text) == expected


@pytest.mark.parametrize("text", ["", "25:00", "1:60AM", "13PM", "0AM", "noon", "1", "24:00", "1:00:00"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        words.read_time(text)


def test_days_months_and_limits_are_read_as_people_write_them() -> None:
    assert words.read_weekdays("thu,mon") == (0, 3)
    assert words.read_weekdays("Monday Sunday") == (0, 6)
    assert words.read_weekdays("weekdays") == (0, 1, 2, 3, 4)
    assert words.read_months("sep, mar") == (3, 9)
    assert words.read_months("all") == ()
    assert words.read_monthly("31") == (31, None, ())
    assert words.read_monthly("last") == (LAST, None, ())
    assert words.read_monthly("the last day") == (LAST, None, ())
    assert words.read_monthly("last Friday") == (None, LAST, (4,))
    assert words.read_monthly("2nd tue") == (None, 2, (1,))
    assert [words.read_limit(text) for text in ("90min", "3h", "1d", "5m")] == [5400, 10800, 86400, 300]
    assert [words.write_limit(seconds) for seconds in (5400, 10800, 86400)] == ["90min", "3h", "24h"]


@pytest.mark.parametrize("text", ["m", "mo", "monat", "mon,x", ""])
def test_what_is_no_day_of_the_week_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        words.read_weekdays(text)


@given(recurrences())
@settings(max_examples=60, deadline=None)
def test_the_options_of_a_recurrence_say_the_same_when_they_are_read(one: Recurrence) -> None:
    """So that the command that brings a removed schedule back brings back the very same."""
    from_cli = cli.get_command(None, "schedule")  # type: ignore[arg-type]
    add = from_cli.get_command(None, "add")  # type: ignore[union-attr]
    given = add.make_context("add", ["x", *words.options(one), "--", "backup", "run", "office"]).params
    day, nth, weekdays = words.read_monthly(given["monthly"]) if given["monthly"] else (None, None, ())
    again = Recurrence(
        one.kind,
        given["zone"],
        words.read_date(given["once"] or given["start"]),
        words.read_time(given["at"]),
        given["every"],
        words.read_weekdays(given["weekly"]) if given["weekly"] else weekdays,
        day,
        nth,
        words.read_months(given["months"]) if given["months"] else (),
        ShortMonths(given["short_months"] or "last"),
    )
    assert again == one
