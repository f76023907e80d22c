"""What a receiver tells: its state for whoever asks, and what happens for whoever listens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from datamanager.base.clock import Clock
from datamanager.base.events import Executed, Listener, PhaseStarted, Warned
from datamanager.base.units import Lsn
from datamanager.engine.wal.sealing import Sealing
from datamanager.postgres.wal.stream import WalStream

TICK_SECONDS = 1.0
_UNKNOWN = Lsn(0)


@dataclass(frozen=True, slots=True)
class ReceiverState:
    """How far the receiver is. Positions are 0 while unknown; times RFC 3339 in UTC, empty before the first.

    Args: line, timeline - that are written; received, sealed - up to where bytes came and are in the archive; server -
        up to where the server was when last heard of; caught_up - everything up to there was received; complete_until
        - by the server's clock, all that it had written by then is in the archive; changed - when ``connected`` last
        changed; error - why there is no connection, or why the last one was lost.
    """

    connected: bool = False
    line: str = ""
    timeline: int = 0
    received: Lsn = _UNKNOWN
    sealed: Lsn = _UNKNOWN
    server: Lsn = _UNKNOWN
    sealed_at: str = ""
    caught_up: bool = False
    complete_until: str = ""
    synchronous: bool = False
    changed: str = ""
    error: str = ""


class Telling:
    """Tells state and events. One thread. ``on_state`` hears of each change, and once a second of progress."""

    def __init__(
        self, state: ReceiverState, listener: Listener, clock: Clock, on_state: Callable[[ReceiverState], None]
    ) -> None:
        self.state = state
        self._listener = listener
        self._clock = clock
        self._on_state = on_state
        self._told_at = clock.elapsed() - TICK_SECONDS
        self._warned: set[str] = set()

    def change(self, **values: object) -> None:
        changed = replace(self.state, **values)  # type: ignore[arg-type]
        if changed.connected != self.state.connected or not changed.changed:
            changed = replace(changed, changed=self._clock.now().isoformat())
        self.state = changed
        self._told_at = self._clock.elapsed()
        self._on_state(changed)

    def progress(self, stream: WalStream, sealing: Sealing, *, force: bool = False) -> bool:
        """Tell how far we are; true when the repository takes what comes, not only the server sends it."""
        caught_up = stream.received >= stream.server_end
        works = sealing.sealed_at is not None or (caught_up and sealing.sealed >= stream.received)
        if works:
            self._warned.clear()
        if caught_up and not self.state.caught_up:
            self.phase("caught up")
            force = True
        if force or self._clock.elapsed() >= self._told_at + TICK_SECONDS:
            self.change(
                received=stream.received,
                sealed=sealing.sealed or self.state.sealed,
                server=stream.server_end,
                sealed_at=sealing.sealed_at.isoformat() if sealing.sealed_at else self.state.sealed_at,
                caught_up=caught_up,
                complete_until=self._complete_until(stream, sealing),
            )
        return works

    def _complete_until(self, stream: WalStream, sealing: Sealing) -> str:
        """What was once known of a line stays true."""
        if stream.complete_until is None or sealing.sealed < stream.received:
            return self.state.complete_until
        return stream.complete_until.isoformat()

    def phase(self, name: str) -> None:
        self._listener(PhaseStarted(name))

    def executed(self, text: str) -> None:
        self._listener(Executed(text))

    def warn(self, message: str) -> None:
        self._listener(Warned(message))

    def warn_once(self, message: str) -> None:
        """The same trouble at each attempt is told once, until something could be sealed."""
        if message not in self._warned:
            self._warned.add(message)
            self.warn(message)
