"""Bringing received WAL into one line of the archive: in pieces while a segment grows, whole when it is complete.

    segment   |== known: compared ==|-- sealed in pieces --|.. not yet ..|
    levels    [3 of 256] [2 of 16] [7 of 1]: sixteen pieces of a level become one of the next

So a segment never has more than some sixty pieces, whatever the pace, and each byte is stored once a level. The whole
segment takes the place of them all. Source: O'Neil, The Log-Structured Merge-Tree (1996); decision 16.
"""

from __future__ import annotations

from datetime import datetime

from datamanager.base.errors import FormatUnsupported, IntegrityError, ObjectMissing, StoreUnavailable, WalContradicts
from datamanager.base.units import Lsn
from datamanager.postgres.wal.index import index_segment
from datamanager.repository.wal.archive import Line
from datamanager.repository.wal.container import WalInfo
from datamanager.repository.wal.names import Range, StoredWal, merged

_FAN = 16
_FEW = 8


class LineWriter:
    """Takes the WAL of one line in order. One thread.

    Args: start - of the segment with which the WAL begins that is to come.
    Raises: StoreError, IntegrityError.
    """

    def __init__(self, line: Line, start: Lsn) -> None:
        self._line = line
        self.unreadable: list[str] = []  # what was found damaged
        self._damaged: list[StoredWal] = []  # the same; it goes as soon as the server sends its bytes again
        self.stored = 0  # how often something was put
        self._known: list[tuple[Range, bytes]] = []
        self._levels: list[list[Lsn]] = []  # where the pieces begin
        self._begin(start)
        self._take_over()

    @property
    def position(self) -> Lsn:
        """Where the next byte belongs."""
        return Lsn(self._start + len(self._data))

    @property
    def sealed(self) -> Lsn:
        """Up to where everything was written here and is in the archive."""
        return min(self._sealed, self.position)

    @property
    def compared(self) -> bool:
        """Whether all that the archive held before has come again."""
        return self.position >= self._sealed

    def write(self, data: bytes, received: datetime) -> None:
        """Compare what the archive holds already, and seal the rest, durably; whole segments as soon as they end.

        Args: received - when the last byte came.
        Raises: WalContradicts; StoreError, IntegrityError, after which only a new writer may go on.
        """
        self._line.delete(self._damaged)
        self._damaged.clear()
        view = memoryview(data)
        while len(view):
            part = view[: self._end - self.position]
            self._add(part, received.isoformat())
            view = view[len(part) :]

    def end_line(self, received: datetime) -> None:
        """Make one piece of what there is: the timeline goes no further. Raises: StoreError, IntegrityError."""
        if self.position == self._sealed > self._start and sum(map(len, self._levels)) > 1:
            self._put(self._start, received.isoformat(), drop=True, final=True)

    def _begin(self, start: Lsn) -> None:
        self._start = self._sealed = start
        self._end = Lsn(start + self._line.segment_size)
        self._data = bytearray()
        self._known, self._levels = [], [[]]

    def _take_over(self) -> None:
        """Learn what the archive holds of the segment."""
        kept: list[Range] = []
        for one in self._line.stored():
            if one.start < self._start or one.end > self._end:
                continue
            try:
                self._line.check(one)
                kept.append(Range(one.start, one.end))
            except ObjectMissing:
                continue  # another writer put more in its place
            except (IntegrityError, FormatUnsupported, StoreUnavailable) as error:
                # A bad sector fails for ever, and waiting for it would hold up all that comes; a drive that is away
                # fails here, too.
                self._line.stored()
                self.unreadable.append(error.message)
                self._damaged.append(one)
        self._known = [(held, self._line.read(held.start, held.end)) for held in merged(kept)]
        if self._known and self._known[0][0].start == self._start:
            self._sealed = self._known[0][0].end
            # Of many pieces, as restarts leave them, the next one makes one.
            self._levels = [[self._start] * (1 if len(kept) <= _FEW else _FAN - 1)]
        # A writer that was killed may have left pieces behind of a segment that it had sealed whole.
        self._line.drop_covered(Range(Lsn(max(0, self._start - 1)), self._end))

    def _add(self, part: memoryview, received: str) -> None:
        self._compare(part)
        self._data += part
        if self.position == self._end:
            if self._sealed < self._end:
                self._put(self._start, received, drop=True, final=True)
            self._begin(self._end)
        elif self.position > self._sealed:
            self._put_piece(received)

    def _compare(self, part: memoryview) -> None:
        """Raises: WalContradicts."""
        begins = self.position
        for held, known in self._known:
            first, last = max(begins, held.start), min(begins + len(part), held.end)
            if first >= last:
                continue
            came, there = part[first - begins : last - begins], known[first - held.start : last - held.start]
            if came != there:
                at = Lsn(first + next(number for number, byte in enumerate(came) if byte != there[number]))
                raise WalContradicts(
                    f"receive WAL: from {at} of timeline {self._line.timeline} on the server sends other bytes than"
                    " the archive holds"
                )

    def _put_piece(self, received: str) -> None:
        begins, level = self._sealed, 0
        while len(self._levels[level]) >= _FAN - 1:
            begins = self._levels[level][0]
            self._levels[level].clear()
            level += 1
            if level == len(self._levels):
                self._levels.append([])
        self._put(begins, received, drop=level > 0)
        self._levels[level].append(begins)

    def _put(self, begins: Lsn, received: str, *, drop: bool, final: bool = False) -> None:
        """Seal from there up to the present position; ``drop`` what that supersedes, ``final`` if nothing follows."""
        with memoryview(self._data) as view:
            data = bytes(view[begins - self._start :])
        index = index_segment(data, begins, self._line.segment_size) if final else {}
        self._line.put(begins, data, WalInfo(received, index))
        self._sealed = self.position
        self.stored += 1
        if drop:
            self._line.drop_covered(Range(self._start, self._end))
