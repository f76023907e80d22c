"""When the summary is due: once for each planned moment, whatever the clocks and the machine do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from datamanager.config.model import DigestPace, NotifyConfig, Weekday
from datamanager.notify.digest import planned
from tests.notify.parts import NEW_YORK


def moments(config: NotifyConfig, zone: ZoneInfo, begin: datetime, end: datetime) -> list[datetime]:
    """The planned moments, found by looking every ten minutes."""
    found: list[datetime] = []
    now = begin
    while now <= end:
        one = planned(config, now, zone)
        if one is not None and one >= begin and one not in found:
            assert timedelta(0) <= now - one < timedelta(minutes=10)
            found.append(one)
        now += timedelta(minutes=10)
    return found


@pytest.mark.parametrize("hour", range(24))
@pytest.mark.parametrize(
    "begin",
    [datetime(2026, 3, 6, 5, tzinfo=UTC), datetime(2026, 10, 30, 4, tzinfo=UTC)],
    ids=["clocks go forward", "clocks go back"],
)
def test_daily_is_once_a_local_day_also_when_the_clocks_change(hour: int, begin: datetime) -> None:
    config = NotifyConfig(digest=DigestPace.DAILY, digest_hour=hour)
    found = moments(config, NEW_YORK, begin, begin + timedelta(days=5))
    days = [one.astimezone(NEW_YORK).date() for one in found]
    assert len(days) == len(set(days)) >= 5
    hours = {one.astimezone(NEW_YORK).hour for one in found}
    assert hours <= {hour, hour + 1 if hour == 2 else hour}


@pytest.mark.parametrize("zone", ["Australia/Lord_Howe", "America/Santiago", "Africa/Cairo", "Asia/Kathmandu", "UTC"])
def test_weekly_is_once_a_week_in_every_zone_for_a_year(zone: str) -> None:
    config = NotifyConfig(digest=DigestPace.WEEKLY, digest_hour=0, digest_day=Weekday.SUNDAY)
    place = ZoneInfo(zone)
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    found = moments(config, place, begin, begin + timedelta(weeks=52))
    assert len(found) == 52
    assert {(one + timedelta(hours=1)).astimezone(place).weekday() for one in found} == {6}


def test_none_is_none() -> None:
    assert planned(NotifyConfig(digest=DigestPace.NONE), datetime(2026, 1, 1, tzinfo=UTC), NEW_YORK) is None
