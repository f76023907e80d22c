"""The history of a timeline: which ones came before it, and where each was left.

A line of ``N.history`` is ``timeline <tab> position <tab> reason``, oldest first; timeline 1 has no file.
Source: PostgreSQL src/backend/access/transam/timeline.c, readTimeLineHistory.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from datamanager.base.errors import IntegrityError
from datamanager.base.units import Lsn

_LINE = re.compile(r"\s*(\d+)\s+([0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8})(?:\s+(.*))?$")


@dataclass(frozen=True, slots=True)
class Switch:
    """A timeline was left at a position for the next one."""

    timeline: int
    at: Lsn
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Span:
    """What of a timeline belongs to a history; ``end`` is None for the timeline itself."""

    timeline: int
    begin: Lsn
    end: Lsn | None


@dataclass(frozen=True, slots=True)
class TimelineHistory:
    """Where a timeline comes from. ``text`` is the file as the server wrote it, empty for one without a parent."""

    timeline: int
    switches: tuple[Switch, ...] = ()
    text: bytes = b""

    @classmethod
    def parse(cls, timeline: int, text: bytes) -> TimelineHistory:
        """Raises: IntegrityError."""
        switches: list[Switch] = []
        for line in text.decode("utf-8", "replace").splitlines():
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            match = _LINE.match(line)
            if match is None:
                raise IntegrityError(f"read history of timeline {timeline}: it is damaged")
            switches.append(Switch(int(match[1]), Lsn.parse(match[2]), (match[3] or "").strip()))
        numbers = [one.timeline for one in switches] + [timeline]
        places = [one.at for one in switches]
        if numbers != sorted(set(numbers)) or places != sorted(places):
            raise IntegrityError(f"read history of timeline {timeline}: it is not in order")
        return cls(timeline, tuple(switches), text)

    @property
    def begins(self) -> Lsn:
        """Where the timeline left its parent; 0 for one without parent."""
        return self.switches[-1].at if self.switches else Lsn(0)

    def spans(self) -> list[Span]:
        """The stretch of each timeline that belongs to this history, oldest first."""
        found: list[Span] = []
        begin = Lsn(0)
        for one in self.switches:
            found.append(Span(one.timeline, begin, one.at))
            begin = one.at
        return [*found, Span(self.timeline, begin, None)]

    def timeline_at(self, at: int) -> int:
        """On which timeline of this history the byte at ``at`` was written."""
        return next(one.timeline for one in self.spans() if one.end is None or at < one.end)
