"""The quiet hour, from what was measured."""

from __future__ import annotations

from datetime import time
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamanager.schedule.quiet import DEFAULT, quiet_hour
from datamanager.state.model import Activity
from tests.schedule.parts import ZONES, utc

NOW = utc(2026, 11, 23, 12)


def week(busy: dict[int, float], *, other: float = 1000.0, hours: range = range(24)) -> list[Activity]:
    """Every day alike: transactions by hour of the day in UTC; only ``hours`` were measured."""
    return [Activity("office", day * 24 + hour, busy.get(hour, other), 8) for day in range(7) for hour in hours]


def test_without_measurements_it_is_one_at_night_and_says_so() -> None:
    found = quiet_hour([], "Europe/Berlin", NOW)
    assert (found.at, found.measured) == (DEFAULT, False)
    assert "Nothing was measured" in found.reason


def test_the_quietest_hour_is_found_on_local_clocks() -> None:
    found = quiet_hour(week({22: 10.0}), "Europe/Berlin", NOW)
    assert found.at == time(23, 0)
    assert found.measured
    assert found.reason == ("At 11:00 PM the server ends about 10 transactions an hour, in its busiest hour 1,000.")
    assert quiet_hour(week({22: 10.0}), "Asia/Kolkata", NOW).at == time(3, 30)


def test_of_equal_hours_the_nearest_to_one_at_night_is_taken() -> None:
    assert quiet_hour(week({}), "Europe/Berlin", NOW).at == time(1, 0)


def test_the_hour_in_which_clocks_change_is_never_suggested() -> None:
    assert quiet_hour(week({1: 0.0, 4: 5.0}), "Europe/Berlin", NOW).at == time(5, 0)


def test_a_long_run_needs_all_of_its_hours_quiet() -> None:
    activity = week({20: 0.0, 3: 50.0, 4: 50.0, 5: 50.0})
    assert quiet_hour(activity, "Etc/UTC", NOW, 3600).at == time(20, 0)
    assert quiet_hour(activity, "Etc/UTC", NOW, 3 * 3600).at == time(3, 0)


def test_hours_in_which_the_computer_is_off_are_not_suggested() -> None:
    found = quiet_hour(week({17: 1.0}, hours=range(8, 18)), "Etc/UTC", NOW)
    assert found.at == time(17, 0)
    weekdays_only = [one for one in week({}) if one.hour < 120 or one.hour % 24 != 1]
    assert quiet_hour(weekdays_only, "Etc/UTC", NOW).at == time(0, 0)


@pytest.mark.requirement("R85", missing="the run on days when clocks change is shown with the recurrence")
@given(st.lists(st.floats(0, 1e6), min_size=168, max_size=168), st.sampled_from(ZONES), st.floats(0, 20_000))
@settings(max_examples=50, deadline=None)
def test_it_is_never_between_two_and_three(transactions: list[float], zone: str, seconds: float) -> None:
    activity = [Activity("office", hour, value, 3) for hour, value in enumerate(transactions)]
    found = quiet_hour(activity, zone, NOW, seconds)
    assert found.at.hour != 2
    assert ZoneInfo(zone).utcoffset(NOW.replace(tzinfo=None)) is not None
