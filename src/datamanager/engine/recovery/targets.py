"""What a person asks to be recovered, and reading a time as people write it. Pure."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Self

from datamanager.base.errors import UsageError
from datamanager.base.units import Lsn

_TIME_OF_DAY = re.compile(r"[T ]\s*\d\d")
_LONGEST_NAME = 63  # MAXFNAMELEN less its end; the server cuts no name, it refuses longer ones


class Kind(enum.Enum):
    LATEST = enum.auto()
    TIME = enum.auto()
    LSN = enum.auto()
    NAME = enum.auto()
    BACKUP = enum.auto()


@dataclass(frozen=True, slots=True)
class Target:
    """A moment, made by one of the class methods.

    ``timeline`` is one that was asked for by its number; None leaves the choice to the plan, which never takes an
    abandoned one.
    """

    kind: Kind
    time: datetime | None = None
    lsn: Lsn | None = None
    name: str = ""
    timeline: int | None = None

    @classmethod
    def latest(cls, timeline: int | None = None) -> Self:
        """The last record that the archive holds."""
        return cls(Kind.LATEST, timeline=timeline)

    @classmethod
    def at_time(cls, time: datetime, timeline: int | None = None) -> Self:
        """Every commit up to and at that time, until the first later one in the order of WAL. Raises: UsageError."""
        if time.tzinfo is None:
            raise UsageError("read time: it has no time zone")
        return cls(Kind.TIME, time=time, timeline=timeline)

    @classmethod
    def at_lsn(cls, lsn: Lsn, timeline: int | None = None) -> Self:
        """Every record that begins at that position or before it."""
        return cls(Kind.LSN, lsn=lsn, timeline=timeline)

    @classmethod
    def at_name(cls, name: str, timeline: int | None = None) -> Self:
        """A restore point (pg_create_restore_point); the newest of that name. Raises: UsageError."""
        if not 0 < len(name.encode()) <= _LONGEST_NAME:
            raise UsageError(f"read restore point: a name has 1 to {_LONGEST_NAME} bytes")
        return cls(Kind.NAME, name=name, timeline=timeline)

    @classmethod
    def end_of_backup(cls, backup: str) -> Self:
        """A backup as it is, without further WAL."""
        return cls(Kind.BACKUP, name=backup)

    def words(self, zone: tzinfo = UTC) -> str:
        """As in ``recover to restore point 'before import'``."""
        on = f" on timeline {self.timeline}" if self.timeline is not None else ""
        if self.time is not None:
            return f"{format_time(self.time, zone)}{on}"
        if self.lsn is not None:
            return f"position {self.lsn}{on}"
        if self.kind is Kind.NAME:
            return f"restore point {self.name!r}{on}"
        return f"backup {self.name}" if self.kind is Kind.BACKUP else f"the latest moment{on}"


def parse_time(text: str, zone: tzinfo | None) -> datetime:
    """An ISO 8601 date with a time of day, with an offset or ``Z``, or else on the clocks of ``zone``.

    Returns: an aware datetime, in UTC.
    Raises: UsageError: not a time; no zone given; a time that the clocks of the zone show twice, or never.
    """
    written = text.strip()
    try:
        time = datetime.fromisoformat(written)
    except ValueError:
        time = None
    if time is None or not _TIME_OF_DAY.search(written):
        raise UsageError(
            f"read time: {text!r} is not a date with a time of day",
            hint="Write it like 2026-11-24 14:30, or 2026-11-24T14:30:05.250+01:00.",
        )
    if time.tzinfo is None:
        time = _on_clocks(time, zone)
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise UsageError(f"read time: {text!r} is beyond the calendar") from None


def _on_clocks(time: datetime, zone: tzinfo | None) -> datetime:
    if zone is None:
        raise UsageError(
            f"read time: {time} does not say in which time zone",
            hint="Add an offset, as in +01:00 or Z, or name the zone.",
        )
    first, second = time.replace(tzinfo=zone, fold=0), time.replace(tzinfo=zone, fold=1)
    if first.utcoffset() == second.utcoffset():
        return first
    if first.astimezone(UTC).astimezone(zone).replace(tzinfo=None) == time:
        raise UsageError(
            f"read time: the clocks of {zone} showed {time} twice",
            hint=f"Write {first.isoformat(' ')} for the first time, {second.isoformat(' ')} for the second.",
        )
    raise UsageError(
        f"read time: the clocks of {zone} never showed {time}, they were put forward",
        hint="Give a time before or after that, or one with an offset.",
    )


def format_time(time: datetime, zone: tzinfo) -> str:
    """To the microsecond where there are any, and always with the offset."""
    local = time.astimezone(zone)
    return local.isoformat(" ", timespec="microseconds" if local.microsecond else "seconds")
