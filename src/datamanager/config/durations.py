"""Lengths of time as people write them: ``36h``, ``14d``, ``3w``."""

from __future__ import annotations

import re
from datetime import timedelta

_DURATION = re.compile(r"\s*([1-9]\d{0,5})\s*([hdw])\s*", re.IGNORECASE | re.ASCII)
_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
LONGEST = timedelta(days=36_525)


def parse_duration(text: str) -> timedelta:
    """Hours, days or weeks, at most a hundred years; a day is 24 hours. Raises: ValueError."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"not a length of time: {text!r} (write 36h, 14d or 3w for hours, days or weeks)")
    length = int(match[1]) * _UNITS[match[2].lower()]
    if length > LONGEST:
        raise ValueError(f"not a length of time: {text!r} is more than a hundred years")
    return length


def check_duration(text: str) -> str:
    """The text without blanks around it. Raises: ValueError."""
    parse_duration(text)
    return text.strip()
