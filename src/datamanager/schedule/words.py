"""Times in plain words: a recurrence, the next run, a moment; and reading what people write. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from datamanager.base.errors import UsageError
from datamanager.schedule.recurrence import LAST, Kind, Recurrence, ShortMonths

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
_NTH = {1: "first", 2: "second", 3: "third", 4: "fourth", LAST: "last"}
_NTH_WRITTEN = {"1st": 1, "2nd": 2, "3rd": 3, "4th": 4, **{word: number for number, word in _NTH.items()}}
_NIGHT_BEGINS, _NIGHT_ENDS = 20, 6  # hours
_TIME = re.compile(r"(\d{1,2})(?:[:.](\d{2}))?\s*([ap])\.?m\.?|(\d{1,2}):(\d{2})", re.IGNORECASE | re.ASCII)
_LIMIT = re.compile(r"([1-9]\d{0,4})\s*(m|min|h|d)", re.IGNORECASE | re.ASCII)


def describe(recurrence: Recurrence, here: str = "") -> str:
    """``Every 2 weeks on Monday and Thursday at 11:30 PM``. Args: here - the reader's zone; another one is named."""
    zone = "" if recurrence.zone == here else f" ({recurrence.zone} time)"
    return f"{_what(recurrence)}{zone}"


def _what(one: Recurrence) -> str:
    at = f"at {clock_time(one.at)}"
    match one.kind:
        case Kind.ONCE:
            return f"Once, on {date_text(one.start)}, {at}"
        case Kind.HOURLY if one.every == 1:
            return f"Every hour, {counted(one.at.minute, 'minute')} past" if one.at.minute else "Every hour"
        case Kind.HOURLY:
            return f"Every {one.every} hours, the first {at} on {date_text(one.start)}"
        case Kind.DAILY:
            return f"Every day {at}" if one.every == 1 else f"Every {one.every} days {at}"
        case Kind.WEEKLY:
            return _weekly(one, at)
        case Kind.MONTHLY:
            return _monthly(one, at)


def _weekly(one: Recurrence, at: str) -> str:
    days = _joined([DAYS[number] for number in one.weekdays])
    if one.weekdays == tuple(range(7)):
        days = "every day"
    elif one.weekdays == tuple(range(5)):
        days = "Monday to Friday"
    if one.every == 1:
        return f"{'Every day' if len(one.weekdays) == 7 else f'Every week on {days}'} {at}"
    return f"Every {one.every} weeks on {days} {at}"


def _monthly(one: Recurrence, at: str) -> str:
    months = _joined([MONTHS[number - 1] for number in one.months]) or "every month"
    if one.nth is not None:
        return f"On the {_NTH[one.nth]} {DAYS[one.weekdays[0]]} of {months} {at}"
    if one.day == LAST:
        return f"On the last day of {months} {at}"
    day = one.day or 1
    short = [month for month in one.months or range(1, 13) if day > _shortest(month)]
    if not short:
        return f"On day {day} of {months} {at}"
    if one.short_months is ShortMonths.SKIP:
        return f"On day {day} of {months} {at}; not in months without one"
    return f"On day {day} of {months} {at}; in shorter months on the last day"


def _shortest(month: int) -> int:
    return 28 if month == 2 else 30 if month in (4, 6, 9, 11) else 31


def clock_time(at: time) -> str:
    """``1:00 AM``."""
    return f"{at.hour % 12 or 12}:{at:%M} {'AM' if at.hour < 12 else 'PM'}"


def moment_text(moment: datetime, zone: str) -> str:
    """``Monday, November 23, 2026, 1:00 AM``, on the clocks of ``zone``."""
    local = moment.astimezone(ZoneInfo(zone))
    return f"{date_text(local.date())}, {clock_time(local.time())}"


def next_in_words(moment: datetime, now: datetime, zone: str) -> str:
    """When it runs next, as the first words a person would use: ``tonight``, ``in 3 days, on Friday``.

    Args: zone - whose days and nights; moment - not before ``now``, else it is ``now``.
    """
    there, here = moment.astimezone(ZoneInfo(zone)), now.astimezone(ZoneInfo(zone))
    minutes = (moment - now) / timedelta(minutes=1)
    if minutes < 1:
        return "now"
    if minutes < 60:
        return f"in {counted(round(minutes), 'minute')}"
    days = (there.date() - here.date()).days
    # After midnight, before morning, it is still the night before; what comes after the day is not tonight then.
    this_night = _night(here) if here.hour < _NIGHT_ENDS else here.date()
    if _night(there) == this_night:
        return "tonight"
    if days <= 1:
        return ("today", "tomorrow")[max(days, 0)]
    if days < 7:
        return f"in {days} days, on {DAYS[there.weekday()]}"
    return f"in {days} days, on {date_text(there.date(), None if there.year == here.year else there.year)}"


def _is_night(local: datetime) -> bool:
    return local.hour >= _NIGHT_BEGINS or local.hour < _NIGHT_ENDS


def _night(local: datetime) -> date | None:
    """The evening that this night belongs to; None by day."""
    if not _is_night(local):
        return None
    return (local - timedelta(days=1)).date() if local.hour < _NIGHT_ENDS else local.date()


def day_text(day: date) -> str:
    """``Monday, November 23, 2026``."""
    return date_text(day)


def date_text(day: date, year: int | None = 0) -> str:
    number = day.year if year == 0 else year
    return f"{DAYS[day.weekday()]}, {MONTHS[day.month - 1]} {day.day}{'' if number is None else f', {number}'}"


def counted(number: int, what: str) -> str:
    """``1 minute``, ``2 minutes``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def _joined(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)


def read_time(text: str) -> time:
    """``1:00AM``, ``1 am``, ``13:30``. Raises: UsageError."""
    match = _TIME.fullmatch(text.strip())
    if match is not None:
        hour, minute = int(match[1] or match[4]), int(match[2] or match[5] or 0)
        if match[3] is not None and 1 <= hour <= 12:
            hour = hour % 12 + (12 if match[3].lower() == "p" else 0)
        elif match[3] is not None:
            hour = 24
        if hour < 24 and minute < 60:
            return time(hour, minute)
    raise UsageError(f"read time: {text!r} is not one", hint="Write it as 1:00AM, 11:30PM or 23:30.")


def read_date(text: str) -> date:
    """``2026-11-30``. Raises: UsageError."""
    try:
        return date.fromisoformat(text.strip())
    except ValueError:
        raise UsageError(f"read date: {text!r} is not one", hint="Write it as 2026-11-30.") from None


def read_weekdays(text: str) -> tuple[int, ...]:
    """``mon,thu`` or ``Monday Thursday``; ``weekdays`` is Monday to Friday. Raises: UsageError."""
    found: set[int] = set()
    for word in re.split(r"[,\s]+", text.strip()):
        found |= set(range(5)) if word.lower() in ("weekdays", "mon-fri") else {_index(word, DAYS, "day of the week")}
    return tuple(sorted(found))


def read_months(text: str) -> tuple[int, ...]:
    """``mar,sep``; ``all`` is every month. Raises: UsageError."""
    if text.strip().lower() == "all":
        return ()
    return tuple(sorted({_index(word, MONTHS, "month") + 1 for word in re.split(r"[,\s]+", text.strip())}))


def read_monthly(text: str) -> tuple[int | None, int | None, tuple[int, ...]]:
    """Day, number and weekday of ``31``, ``last``, ``last friday`` or ``2nd tuesday``. Raises: UsageError."""
    words = [word for word in text.lower().split() if word not in ("the", "day", "of")]
    match words:
        case ["last"]:
            return LAST, None, ()
        case [number] if number.isascii() and number.isdigit():
            return int(number[:3]), None, ()
        case [number, day] if number in _NTH_WRITTEN:
            return None, _NTH_WRITTEN[number], (_index(day, DAYS, "day of the week"),)
    raise UsageError(
        f"read day of the month: {text!r} is not one", hint='Write it as 15, last, "last friday" or "2nd tuesday".'
    )


def read_limit(text: str) -> float:
    """Seconds of ``90min``, ``3h`` or ``1d``. Raises: UsageError."""
    match = _LIMIT.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"read time limit: {text!r} is not one", hint="Write it as 90min, 3h or 1d.")
    return float(int(match[1]) * {"m": 60, "h": 3600, "d": 86400}[match[2][0].lower()])


def write_limit(seconds: float) -> str:
    """What ``read_limit`` reads."""
    minutes = round(seconds / 60)
    return f"{minutes // 60}h" if minutes % 60 == 0 else f"{minutes}min"


def _index(word: str, names: Sequence[str], what: str) -> int:
    """Which name begins with these three letters or more."""
    found = [number for number, name in enumerate(names) if len(word) >= 3 and name.lower().startswith(word.lower())]
    if len(found) != 1:
        raise UsageError(f"read {what}: {word!r} is not one", hint=f"Write it as {names[0][:3].lower()} or {names[0]}.")
    return found[0]


def options(one: Recurrence) -> list[str]:
    """The options of ``schedule add`` that say the same."""
    words = {
        Kind.ONCE: ["--once", one.start.isoformat()],
        Kind.HOURLY: ["--hourly"],
        Kind.DAILY: ["--daily"],
        Kind.WEEKLY: ["--weekly", ",".join(DAYS[number][:3].lower() for number in one.weekdays)],
        Kind.MONTHLY: ["--monthly", _written_day(one)],
    }[one.kind]
    if one.every != 1:
        words += ["--every", str(one.every)]
    if one.months:
        words += ["--months", ",".join(MONTHS[number - 1][:3].lower() for number in one.months)]
    if one.short_months is not ShortMonths.LAST_DAY:
        words += ["--short-months", str(one.short_months)]
    words += ["--at", clock_time(one.at).replace(" ", "")]
    if one.kind is not Kind.ONCE:
        words += ["--start", one.start.isoformat()]
    return [*words, "--zone", one.zone]


def _written_day(one: Recurrence) -> str:
    if one.nth is not None:
        return f"{_NTH[one.nth]} {DAYS[one.weekdays[0]].lower()}"
    return "last" if one.day == LAST else str(one.day)
