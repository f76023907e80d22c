"""Sealing in a thread of its own, so that a slow drive does not make the server think that nobody listens.

Bytes are handed over as they come. They are sealed when the interval has passed since the last time, when a segment is
complete, when somebody waits for it, and in synchronous operation always: what comes while one piece is being sealed
makes the next, as in a group commit.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from datetime import datetime

from datamanager.base.clock import Clock
from datamanager.base.pipeline import StopToken
from datamanager.base.units import MIB, Lsn
from datamanager.engine.wal.pieces import LineWriter

# Enough that reading goes on while two usual segments are sealed; beyond it the server has to wait.
_MOST_BYTES = 32 * MIB
_LOOK_SECONDS = 0.2


class Sealing:
    """Seals the WAL of one line from one start on. ``add`` and the rest belong to one thread; the sealing is another.

    Args:
        interval_seconds: between two pieces; 0 seals at once.
        wake: a byte is sent there after each sealing and on a failure.
    """

    def __init__(
        self, writer: LineWriter, segment_size: int, interval_seconds: float, clock: Clock, wake: socket.socket
    ) -> None:
        self._writer = writer
        self._segment_size = segment_size
        self._most = max(_MOST_BYTES, 2 * segment_size)
        self._interval = interval_seconds
        self._clock = clock
        self._wake = wake
        self._changed = threading.Condition()
        self._pending = bytearray()
        self._begins = writer.position
        self._received = clock.now()
        self._sealed_at: datetime | None = None
        self._last = clock.elapsed() - interval_seconds
        self._hurry = self._ending = self._busy = False
        self._sealed = writer.sealed
        self._compared = writer.compared
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="seal WAL", daemon=True)
        self._thread.start()

    def add(self, data: memoryview) -> None:
        """Hand over the bytes that follow those before; they are copied."""
        with self._changed:
            self._pending += data
            self._received = self._clock.now()
            self._changed.notify()

    @property
    def full(self) -> bool:
        """Whether no more should be added for now."""
        return len(self._pending) >= self._most

    @property
    def sealed(self) -> Lsn:
        """Up to where everything is in the archive; 0 until what was there before has been compared."""
        return self._sealed if self._compared else Lsn(0)

    @property
    def sealed_at(self) -> datetime | None:
        """When something was put last; None before the first time."""
        return self._sealed_at

    def check(self) -> None:
        """Raises: what made the sealing end: StoreError, IntegrityError, WalContradicts."""
        if self._failure is not None:
            raise self._failure

    def hurry(self) -> None:
        """Seal at once what is there: somebody waits for it."""
        with self._changed:
            self._hurry = True
            self._changed.notify()

    def finish(self, seconds: float) -> None:
        """Seal what is left and end; after so many seconds the thread is left to itself, to put nothing more."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join(seconds)
        with self._changed:
            self._pending.clear()

    def end_line(self, stop: StopToken) -> None:
        """Seal all there is and tidy it: the timeline goes no further. Raises: as ``check``; Cancelled."""
        self.hurry()
        with self._changed:
            while (self._pending or self._busy) and self._failure is None:
                self._changed.wait(_LOOK_SECONDS)
                stop.check()
        self.check()
        self._writer.end_line(self._received)

    def _run(self) -> None:
        try:
            while (taken := self._take()) is not None:
                before = self._writer.stored
                self._writer.write(*taken)
                with self._changed:
                    self._busy = False
                    if self._writer.stored > before:
                        self._sealed_at = self._clock.now()
                    self._sealed, self._compared = self._writer.sealed, self._writer.compared
                    self._changed.notify_all()
                self._ring()
        except BaseException as error:  # noqa: BLE001 - raised by ``check`` in the thread that receives
            with self._changed:
                self._failure = error
                self._changed.notify_all()
            self._ring()

    def _take(self) -> tuple[bytes, datetime] | None:
        """What is to be sealed next, once it is due; None at the end."""
        with self._changed:
            while not (size := self._due()):
                if self._ending:
                    return None
                self._changed.wait(self._patience())
            taken = bytes(memoryview(self._pending)[:size])
            del self._pending[:size]
            self._begins = Lsn(self._begins + size)
            if not self._pending:
                self._hurry = False
            self._busy = True
            return taken, self._received

    def _due(self) -> int:
        """How many bytes are to be sealed now."""
        size = len(self._pending)
        if not size:
            return 0
        if self._hurry or self._ending or self._clock.elapsed() >= self._last + self._interval:
            self._last = self._clock.elapsed()
            return size
        # Whole segments do not wait.
        return max(0, size - (self._begins + size) % self._segment_size)

    def _patience(self) -> float | None:
        """How long to wait for more; None for as long as it takes."""
        if not self._pending:
            return None
        return max(0.01, self._last + self._interval - self._clock.elapsed())

    def _ring(self) -> None:
        with contextlib.suppress(OSError):
            self._wake.send(b"x")
