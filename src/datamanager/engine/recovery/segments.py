"""The files of a recovery: which segments the server asks for, and their bytes from the lines of the archive.

A segment in which a timeline was left exists twice; the server asks for the newer one's first. What lies before the
switch is the parent's there too, and the archive may hold it on the parent's line alone. Source: decision 16;
xlogrecovery.c, XLogFileReadAnyTLI; xlog.c, XLogInitNewTimeline.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from datamanager.base.errors import WalMissing
from datamanager.base.units import Lsn
from datamanager.engine.recovery.spool import Segment
from datamanager.postgres.wal.history import Switch, TimelineHistory
from datamanager.postgres.wal.names import HISTORY_FILE, history_name, segment_name, segment_start
from datamanager.repository.wal.archive import Line

# Stands for the history of a timeline whose own is not known: a promoted server takes the first number without one.
TAKEN = b"# taken\n"


class Need(Protocol):
    """WAL that one line holds, from ``start`` up to ``end``; ``timeline`` names the files that the server asks for."""

    @property
    def line(self) -> Line: ...
    @property
    def start(self) -> Lsn: ...
    @property
    def end(self) -> Lsn: ...
    @property
    def timeline(self) -> int: ...


def segments_of(needs: Sequence[Need], segment_size: int) -> list[Segment]:
    """The files that hold what is needed, in order. ``needs`` follow each other from the oldest timeline on."""
    found: dict[Lsn, Segment] = {}
    for one in needs:
        at = segment_start(one.start, segment_size)
        while at < one.end:
            end = min(one.end, Lsn(at + segment_size))
            found[at] = Segment(segment_name(one.timeline, at, segment_size), one.timeline, at, end)
            at = Lsn(at + segment_size)
    return list(found.values())


class SegmentReader:
    """Reads segments whole. One thread at a time.

    Args: pg_wal - of the restored directory: the archive may begin within a segment whose beginning the backup holds.
    """

    def __init__(self, needs: Sequence[Need], segment_size: int, pg_wal: Path) -> None:
        self._needs = list(needs)
        self._segment_size = segment_size
        self._head = self._head_of_first(pg_wal) if needs else b""

    def read(self, segment: Segment) -> bytes:
        """``segment_size`` bytes, zeros behind ``segment.end``. Raises: WalMissing, IntegrityError, StoreError."""
        parts: list[bytes] = []
        at = segment.start
        first = self._needs[0]
        if at < first.start:
            parts.append(self._head)
            at = first.start
        for one in self._needs:
            if one.start <= at < min(one.end, segment.end):
                end = min(one.end, segment.end)
                parts.append(one.line.read(at, end))
                at = end
        if at < segment.end:
            raise WalMissing(f"read WAL: {segment.name} is not complete in what was planned", at)
        parts.append(bytes(segment.start + self._segment_size - at))
        return b"".join(parts)

    def _head_of_first(self, pg_wal: Path) -> bytes:
        """What the first segment holds before the first byte that is needed."""
        first = self._needs[0]
        begin = segment_start(first.start, self._segment_size)
        if begin == first.start:
            return b""
        with contextlib.suppress(WalMissing):
            return first.line.read(begin, first.start)
        name = segment_name(first.timeline, begin, self._segment_size)
        length = first.start - begin
        with contextlib.suppress(FileNotFoundError):
            data = (pg_wal / name).read_bytes()[:length]
            if len(data) == length:
                return data
        raise WalMissing(f"read WAL: the beginning of {name} is neither in the archive nor in the backup", begin)


def histories_of(
    lines: Sequence[Line], wanted: TimelineHistory | None, others: Mapping[str, bytes] | None = None
) -> dict[str, bytes]:
    """Every history file that the repository can give, by name; those that lead to ``wanted`` are its own.

    Args: others - files known from elsewhere.

    A promoted server takes the first number without a history. So one of which only descendants tell is made from
    theirs, and a number below one that exists is not free, though nobody tells of it. Source: decision 12; timeline.c,
    findNewestTimeLine.
    """
    texts = {int(name[:8], 16): text for name, text in (others or {}).items() if HISTORY_FILE.match(name)}
    for line in lines:
        for number, switch in enumerate(line.history.switches):
            texts[switch.timeline] = _text(line.history.switches[:number])
    texts |= {line.timeline: line.history.text for line in lines}
    if wanted is not None:
        texts[wanted.timeline] = wanted.text or _text(wanted.switches)
        for number, switch in enumerate(wanted.switches):
            texts[switch.timeline] = _text(wanted.switches[:number])
    newest = max(texts, default=1)
    return {history_name(number): texts.get(number, TAKEN) for number in range(2, newest + 1)}


def _text(switches: Sequence[Switch]) -> bytes:
    return "".join(f"{one.timeline}\t{one.at}\t{one.reason}\n" for one in switches).encode("utf-8", "replace")
