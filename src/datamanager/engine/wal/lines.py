"""Which line of the archive a server's WAL belongs to, and where the archive ends along the server's history.

A line belongs to a history when its own is the part of it that came before: a timeline that began elsewhere, or of
which a second one was made after a restore, is another line though it bears the same number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from datamanager.base.units import Lsn
from datamanager.postgres.wal.history import Span, Switch, TimelineHistory
from datamanager.postgres.wal.names import segment_start

if TYPE_CHECKING:  # ``push`` loads this module once a segment
    from datamanager.repository.wal.archive import Line, WalArchive
    from datamanager.repository.wal.names import Range


@dataclass(frozen=True, slots=True)
class Reached:
    """Where the archive ends along a history: the last byte is before ``at``, on ``timeline``."""

    timeline: int
    at: Lsn

    def next_segment(self, history: TimelineHistory, segment_size: int) -> tuple[int, Lsn]:
        """Timeline and start of the segment from which to go on, so that its last bytes come again where there are any.

        Behind the end of a timeline that is the first segment of the next one in which anything was written.
        """
        spans = [one for one in history.spans() if one.end is None or one.end > one.begin]
        following = next(one for one in spans if one.end is None or self.at < one.end)
        if following.timeline != self.timeline:
            return following.timeline, segment_start(following.begin, segment_size)
        return self.timeline, segment_start(self.at - 1, segment_size)


def line_of(lines: list[Line], history: TimelineHistory, segment_size: int) -> Line | None:
    """The newest line of a timeline with this history."""
    fitting = [
        one
        for one in lines
        if one.timeline == history.timeline
        and one.segment_size == segment_size
        and one.history.switches == history.switches
    ]
    return fitting[-1] if fitting else None


def reached(lines: list[Line], history: TimelineHistory, segment_size: int) -> Reached | None:
    """How far the archive goes along a server's history; None when it holds nothing of it. Raises: StoreError."""
    for span in reversed(history.spans()):
        line = line_of(lines, ancestor(history, span.timeline), segment_size)
        ends = _end_within(line.reach(), span) if line is not None else None
        if ends is not None:
            return Reached(span.timeline, ends)
    return None


def ancestor(history: TimelineHistory, timeline: int) -> TimelineHistory:
    """The history of one of the timelines in it, as far as the younger one tells."""
    if timeline == history.timeline:
        return history
    before = tuple(one for one in history.switches if one.timeline < timeline)
    return TimelineHistory(timeline, before, history_text(before))


def history_text(switches: tuple[Switch, ...]) -> bytes:
    """A history file that says the same as the server's. Source: timeline.c, writeTimeLineHistory."""
    return "".join(f"{one.timeline}\t{one.at}\t{one.reason}\n" for one in switches).encode()


def _end_within(stretches: list[Range], span: Span) -> Lsn | None:
    """Where the archive ends within a span; a line may go on behind it, where the server left it for another one."""
    if not stretches:
        return None
    last = [one for one in stretches if span.end is None or one.start < span.end]
    if not last:
        return None
    end = last[-1].end if span.end is None else min(last[-1].end, span.end)
    return end if end > span.begin else None


def record_histories(
    archive: WalArchive,
    history: TimelineHistory,
    texts: dict[int, bytes],
    segment_size: int,
    cluster: str,
    version: str,
) -> Line:
    """Store the history of every timeline of a server that has none here yet.

    Args: texts - the history files that the server has, by timeline.
    Returns: the line of the server's own timeline.
    Raises: StoreError, IntegrityError.
    """
    lines = archive.lines()
    found: Line | None = None
    for span in history.spans():
        wanted = ancestor(history, span.timeline)
        found = line_of(lines, wanted, segment_size)
        if found is None:
            text = texts.get(span.timeline, wanted.text)
            if TimelineHistory.parse(span.timeline, text).switches != wanted.switches:
                text = wanted.text
            found = archive.begin_line(span.timeline, segment_size, text, cluster, version)
    if found is None:
        raise ValueError("a history has at least its own timeline")
    return found
