"""Reading what people ask for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamanager.base.errors import UsageError
from datamanager.base.units import Lsn
from datamanager.engine.recovery.targets import Target, format_time, parse_time

ZURICH = ZoneInfo("Europe/Zurich")
AFTERNOON = datetime(2026, 11, 24, 13, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-24 14:30",
        "2026-11-24T14:30:00",
        " 2026-11-24 14:30:00.000 ",
        "2026-11-24T13:30Z",
        "2026-11-24 14:30+01:00",
        "2026-11-24 14:30:00+01",
        "20261124T1430",
    ],
)
def test_a_time_is_read_on_the_clocks_of_the_zone_or_by_its_own_offset(text: str) -> None:
    assert parse_time(text, ZURICH) == AFTERNOON


@pytest.mark.parametrize("text", ["", "yesterday 14:30", "2026-11-24", "14:30", "2026-13-01 10:00", "2026-11-24 25:00"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a date with a time of day"):
        parse_time(text, ZURICH)


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(UsageError, match="does not say in which time zone"):
        parse_time("2026-11-24 14:30", None)
    assert parse_time("2026-11-24 14:30+01:00", None) == AFTERNOON
    with pytest.raises(UsageError):
        Target.at_time(datetime(2026, 11, 24, 14, 30))


def test_a_time_that_the_clocks_show_twice_must_say_which() -> None:
    with pytest.raises(UsageError, match="twice") as refused:
        parse_time("2026-10-25 02:30", ZURICH)
    assert "2026-10-25 02:30:00+02:00 for the first" in refused.value.hint
    assert "2026-10-25 02:30:00+01:00 for the second" in refused.value.hint
    assert parse_time("2026-10-25 02:30+02:00", ZURICH) == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    assert parse_time("2026-10-25 01:59:59", ZURICH) == datetime(2026, 10, 24, 23, 59, 59, tzinfo=UTC)
    assert parse_time("2026-10-25 03:00", ZURICH) == datetime(2026, 10, 25, 2, 0, tzinfo=UTC)


def test_a_time_that_the_clocks_leave_out_is_refused() -> None:
    with pytest.raises(UsageError, match="never showed"):
        parse_time("2026-03-29 02:30", ZURICH)
    assert parse_time("2026-03-29 03:00", ZURICH) == datetime(2026, 3, 29, 1, 0, tzinfo=UTC)


@given(
    st.datetimes(min_value=datetime(1990, 1, 1), max_value=datetime(2100, 1, 1)),
    st.integers(-14 * 60, 14 * 60),
)
def test_a_time_as_we_write_it_reads_back(time: datetime, minutes: int) -> None:
    moment = time.replace(tzinfo=UTC)
    assert parse_time(format_time(moment, timezone(timedelta(minutes=minutes))), None) == moment
    assert parse_time(format_time(moment, ZURICH), None) == moment


def test_targets_speak_of_themselves() -> None:
    assert Target.at_time(AFTERNOON).words(ZURICH) == "2026-11-24 14:30:00+01:00"
    assert Target.at_lsn(Lsn(0x1000028), timeline=3).words() == "position 0/1000028 on timeline 3"
    assert Target.at_name("before import").words() == "restore point 'before import'"
    assert Target.latest().words() == "the latest moment"
    assert Target.end_of_backup("x").words() == "backup x"
    for name in ("", "ä" * 32):
        with pytest.raises(UsageError, match="1 to 63 bytes"):
            Target.at_name(name)
