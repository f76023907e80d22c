"""A receiver telling: its state to whoever asks, and what happens to whoever listens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from datamanager.base.clock import Clock
from datamanager.base.events import Executed, Listener, PhaseStarted, Warned
from datamanager.engine.wal.sealing import Sealing
from datamanager.engine.wal.state import ReceiverState
from datamanager.postgres.wal.stream import WalStream

TICK_SECONDS = 1.0


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
