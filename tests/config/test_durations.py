"""Lengths of time as people write them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from datamanager.config.durations import check_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "length"),
    [("36h", timedelta(hours=36)), (" 14 D ", timedelta(days=14)), ("3w", timedelta(days=21))],
)
def test_hours_days_and_weeks_are_read(text: str, length: timedelta) -> None:
    assert parse_duration(text) == length
    assert check_duration(text) == text.strip()


@pytest.mark.parametrize("text", ["", "14", "0d", "-1d", "1.5d", "2m", "14 days", "٣d", "999999w"])
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"14d|hundred years"):
        parse_duration(text)
