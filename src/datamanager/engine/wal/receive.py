"""Keeping one server's archive current: our own receiver, on a permanent slot, until stopped.

    identify ─► histories ─► slot ─► where the archive ends ─► START_REPLICATION ─► Sealing ─► report what is sealed

Only what the archive holds is reported as flushed, so the slot protects the repository and nothing lies in between.
The stream begins at the start of the segment in which the archive ends: its bytes are compared with what comes again,
and other bytes mean another history. A connection that is lost is made again, with ever longer waits.
Source: decisions 10, 12, 15 and 16.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from datamanager.base.clock import Clock
from datamanager.base.errors import (
    Cancelled,
    ConfigurationError,
    DataManagerError,
    FormatUnsupported,
    ServerError,
    StoreError,
    StreamBroken,
    WalContradicts,
    WalForeign,
    WrongSecret,
)
from datamanager.base.events import Listener
from datamanager.base.pipeline import StopToken
from datamanager.base.units import Lsn
from datamanager.engine.wal.lines import Reached, ancestor, line_of, reached, record_histories
from datamanager.engine.wal.pieces import LineWriter
from datamanager.engine.wal.sealing import Sealing
from datamanager.engine.wal.state import ReceiverState
from datamanager.engine.wal.telling import TICK_SECONDS, Telling
from datamanager.postgres.connection import ServerAddress, connect
from datamanager.postgres.replication import ReplicationSession
from datamanager.postgres.wal.history import TimelineHistory
from datamanager.postgres.wal.names import segment_start
from datamanager.postgres.wal.slot import SlotKeeper, SlotState, how_to_limit
from datamanager.postgres.wal.stream import SLOT_IN_USE, WAL_REMOVED, Identity, WalStream, as_receiver
from datamanager.repository.wal.archive import Line, WalArchive
from datamanager.repository.wal.names import line_timeline

# Waiting mends none of these.
_FINAL = (WalForeign, WalContradicts, ConfigurationError, WrongSecret, FormatUnsupported)
_LAST_SEAL_SECONDS = 0.7  # what is left when stopping is asked for; the slot keeps what was not sealed
_COMMAND_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class ReceiveOptions:
    """What the caller decides.

    Args:
        cluster: its name here; stands in new lines.
        slot: see ``slot_name``.
        application_name: by which synchronous_standby_names may name this receiver; see ``receiver_name``.
        interval_seconds: between two pieces; what an outage loses at most, beside the time of sealing.
        synchronous: seal at once whenever bytes have come, for commits that wait for it.
        new_history: begin a new line of the server's timeline, for its machine was put back to an older state.
        silence_seconds: how long the server may say nothing.
        retry_seconds: the wait after the first failure, which doubles with each more, and the longest.
        reached: the line and the position up to which an earlier receiver had filled this archive; None when unknown.
    """

    cluster: str
    slot: str
    application_name: str
    interval_seconds: float = 3.0
    synchronous: bool = False
    new_history: bool = False
    silence_seconds: float = 60.0
    retry_seconds: tuple[float, float] = (1.0, 30.0)
    reached: tuple[str, Lsn] | None = None


def receive_wal(
    archive: Callable[[], WalArchive],
    address: ServerAddress,
    options: ReceiveOptions,
    stop: StopToken,
    listener: Listener,
    clock: Clock,
    on_state: Callable[[ReceiverState], None] = lambda state: None,
) -> None:
    """Keep the archive of a server current until ``stop``, across restarts, promotions and lost connections.

    Args:
        archive: asked anew for each connection, so that a drive that comes back may be opened again.
        listener: is told what was connected, lost and why, caught up, and every gap.
        on_state: is told at each change, at most about once a second.

    Raises: WalForeign (another server answers), WalContradicts (this one went back in time; ``new_history`` is the
        remedy), ConfigurationError; before the first connection also what waiting would not mend: AuthenticationFailed,
        RightMissing, ServerUnfit (no limit is set for slots).
    """
    _Receiver(archive, address, options, stop, listener, clock, on_state).run()


class _Receiver:
    """What lasts from one connection to the next. One thread."""

    def __init__(
        self,
        archive: Callable[[], WalArchive],
        address: ServerAddress,
        options: ReceiveOptions,
        stop: StopToken,
        listener: Listener,
        clock: Clock,
        on_state: Callable[[ReceiverState], None],
    ) -> None:
        self._archive = archive
        self._address = address
        self._options = options
        self._stop = stop
        self._clock = clock
        self._telling = Telling(ReceiverState(synchronous=options.synchronous), listener, clock, on_state)
        self._wait = options.retry_seconds[0]
        self._worked = False  # one connection came as far as streaming
        self._new_history = options.new_history
        self._reached = options.reached

    def run(self) -> None:
        while not self._stop.stopping:
            try:
                self._connected()
            except DataManagerError as error:
                if self._stop.stopping:
                    break
                self._lost(error)
                if not self._may_pass(error):
                    raise
            self._stop.wait(self._wait)
            self._wait = min(self._options.retry_seconds[1], self._wait * 2)
        self._telling.change(connected=False, caught_up=False, error="")

    def _may_pass(self, error: DataManagerError) -> bool:
        if isinstance(error, _FINAL):
            return False
        return self._worked or error.retryable or isinstance(error, StoreError | Cancelled)

    def _lost(self, error: DataManagerError) -> None:
        self._telling.change(connected=False, caught_up=False, error=error.message)
        self._telling.warn_once(
            f"{error.message}; tried again until it works" if self._may_pass(error) else error.message
        )

    # -- one connection ------------------------------------------------------------------------------------------------

    def _connected(self) -> None:
        """Receive over one connection until it ends. Raises: DataManagerError."""
        archive = self._archive()
        address = as_receiver(self._address, self._options.application_name)
        connection = connect(address, stop=self._stop, replication=True)
        session = ReplicationSession(connection, self._stop, self._clock, self._telling.executed, _COMMAND_SECONDS)
        # A stream is ended by hanging up; asking the server to cancel it would take a connection more.
        with contextlib.closing(session):
            stream = WalStream(session, self._clock, silence_seconds=self._options.silence_seconds)
            while True:
                identity = stream.identify()
                if identity.system != archive.system:
                    raise WalForeign(
                        f"receive WAL: the server is {identity.system}, and the archive is of {archive.system}"
                    )
                self._timeline(archive, stream, identity)

    def _timeline(self, archive: WalArchive, stream: WalStream, identity: Identity) -> None:
        """Receive from where the archive ends until that timeline does. Raises: DataManagerError."""
        slot = self._slot()
        size = stream.segment_size()
        history = self._histories(archive, stream, identity.timeline, size)
        lines = archive.lines()
        self._tell_what_is_gone(lines, line_of(lines, history, size))
        ends = reached(lines, history, size)
        if ends is not None:
            self._check_reached(stream, identity, ends)
            timeline, start = ends.next_segment(history, size)
        elif slot.restart_lsn is not None:
            # Never the present position: on 14 that is where pg_receivewal begins, leaving out what the slot kept.
            timeline, start = history.timeline_at(slot.restart_lsn), segment_start(slot.restart_lsn, size)
        else:
            raise StreamBroken(f"receive WAL: slot {slot.name} keeps nothing yet")
        while not self._received(archive, stream, ancestor(history, timeline), size, start):
            timeline, start = self._behind_gap(history, identity, size, start, ends)

    def _tell_what_is_gone(self, lines: list[Line], line: Line | None) -> None:
        """Tell when the line to go on with holds less than it did: its objects were deleted, or the drive is another.

        What the server still has comes again; a gap is told where that is known.
        """
        if self._telling.state.line and self._telling.state.sealed:
            self._reached = self._telling.state.line, self._telling.state.sealed
        if self._reached is None or line is None:
            return
        identity, had = self._reached
        another = line.id != identity and any(one.id == identity for one in lines)
        if another or line_timeline(identity) != line.timeline:
            return
        end = max((one.end for one in line.reach()), default=None)
        if end is None or end < had:
            left = "is now empty" if end is None else f"now ends at {end}"
            self._telling.warn_once(
                f"the archive had reached {had} of timeline {line.timeline} and {left}: what was there is gone;"
                " what the server still has is fetched again, and a new backup makes every moment from then on"
                " restorable"
            )

    def _check_reached(self, stream: WalStream, identity: Identity, ends: Reached) -> None:
        """Raises: WalContradicts, StreamBroken (a standby that has not come so far yet)."""
        if ends.timeline != identity.timeline or identity.position >= ends.at:
            return
        behind = f"the server is at {identity.position} of timeline {ends.timeline}, and the archive reaches {ends.at}"
        if stream.in_recovery:
            raise StreamBroken(f"receive WAL: {behind}; waiting for it")
        if stream.identify().timeline != identity.timeline:
            raise StreamBroken(f"receive WAL: {behind}; it has just been promoted")
        raise WalContradicts(f"receive WAL: {behind}")

    def _slot(self) -> SlotState:
        """The slot, made where it is missing. Raises: as ``SlotKeeper``."""
        with SlotKeeper.opened(self._address, self._options.slot, self._stop, self._telling.executed) as keeper:
            state = keeper.state()
            if state is not None and state.lost and not state.active:
                self._telling.warn(
                    f"the server gave up slot {keeper.name}: its WAL went beyond the limit while nobody fetched it;"
                    " a new one is made"
                )
                keeper.drop()
                state = None
            elif state is not None and keeper.limit() is None:
                self._telling.warn_once(
                    f"slot {keeper.name} has no limit, so WAL that is not fetched can fill the server's disk;"
                    f" run {how_to_limit()} on the server"
                )
            if state is None:
                if self._worked:
                    self._telling.warn(f"slot {keeper.name} is gone from the server; it is made again")
                state = keeper.create()
        return state

    def _histories(self, archive: WalArchive, stream: WalStream, timeline: int, size: int) -> TimelineHistory:
        """The history of the server's timeline, stored with those of its ancestors. Raises: DataManagerError."""
        text = stream.history(timeline) or b""
        history = TimelineHistory.parse(timeline, text)
        texts = {timeline: text}
        for one in history.switches:
            older = stream.history(one.timeline)
            if older is not None:
                texts[one.timeline] = older
        cluster, version = self._options.cluster, stream.version
        record_histories(archive, history, texts, size, cluster, version)
        if self._new_history:
            archive.begin_line(timeline, size, text, cluster, version)
            self._new_history = False
        return history

    def _behind_gap(
        self, history: TimelineHistory, identity: Identity, size: int, failed: Lsn, ends: Reached | None
    ) -> tuple[int, Lsn]:
        """Where to go on when the server no longer has the segment at ``failed``. Raises: StreamBroken."""
        if ends is not None and failed + size == ends.at:
            return ends.timeline, ends.at  # only its comparison is lost: the archive has that segment whole
        with SlotKeeper.opened(self._address, self._options.slot, self._stop, self._telling.executed) as keeper:
            slot, oldest = keeper.state(), keeper.oldest(identity.timeline, size)
        kept = slot.restart_lsn if slot is not None else None
        known = (oldest, kept, identity.position)
        later = [one for one in known if one is not None and segment_start(one, size) > failed]
        if not later:
            raise StreamBroken(f"receive WAL: the server has no WAL at {failed}, and none behind it yet")
        start = segment_start(min(later), size)
        since = f"between {ends.at} and {start}" if ends is not None else f"before {start}"
        self._telling.warn_once(
            f"the server no longer has the WAL {since}: the archive has a gap there;"
            " backups from before it cannot be restored to a moment behind it"
        )
        return history.timeline_at(min(later)), start

    # -- one stream ----------------------------------------------------------------------------------------------------

    def _received(
        self, archive: WalArchive, stream: WalStream, history: TimelineHistory, size: int, start: Lsn
    ) -> bool:
        """Receive one timeline from a segment's start to its end; false when the server has no longer that segment.

        Raises: DataManagerError.
        """
        line = line_of(archive.lines(), history, size)
        if line is None:
            raise StreamBroken("receive WAL: its line is gone from the archive")
        writer = LineWriter(line, start)
        for message in writer.unreadable:
            self._telling.warn_once(f"{message}; it is fetched again if the server still has it")
        try:
            stream.start(self._options.slot, line.timeline, start)
        except ServerError as error:
            if error.sqlstate == SLOT_IN_USE:
                raise StreamBroken(f"{error.message}: another receiver, or a connection that was lost") from error
            raise
        if line.id != self._telling.state.line:
            self._telling.change(complete_until="", sealed=Lsn(0))
        self._telling.change(connected=True, line=line.id, timeline=line.timeline, received=start, error="")
        self._telling.phase(f"receiving WAL of timeline {line.timeline} from {start}")
        with _rung() as (bell, wake):
            interval = 0.0 if self._options.synchronous else self._options.interval_seconds
            sealing = Sealing(writer, size, interval, self._clock, wake)
            try:
                self._pump(stream, sealing, bell)
                sealing.end_line(self._stop)
            except ServerError as error:
                if error.sqlstate == WAL_REMOVED and stream.received == start:
                    if writer.unreadable:
                        self._telling.warn_once(
                            f"the server no longer has the WAL from {start}, of which the archive cannot read a part:"
                            " no backup can be restored across it, until a newer one is made"
                        )
                    return False
                raise
            finally:
                sealing.finish(_LAST_SEAL_SECONDS)
                stream.sealed = sealing.sealed
                self._telling.progress(stream, sealing, force=True)
                with contextlib.suppress(DataManagerError):
                    stream.report()
        return True

    def _pump(self, stream: WalStream, sealing: Sealing, bell: socket.socket) -> None:
        """Bytes one way, what is sealed the other, until the timeline ends. Raises: DataManagerError."""
        while True:
            for one in stream.arrived():
                sealing.add(one.data)
                if sealing.full:
                    break
            sealing.check()
            if stream.ended is not None:
                return
            if stream.asked:
                sealing.hurry()
            if sealing.sealed != stream.sealed or (stream.asked and stream.sealed == stream.received):
                stream.sealed = sealing.sealed
                stream.report()
            if self._telling.progress(stream, sealing):
                self._worked, self._wait = True, self._options.retry_seconds[0]
            stream.wait(TICK_SECONDS, bell.fileno(), reading=not sealing.full)
            with contextlib.suppress(BlockingIOError):
                bell.recv(4096)


@contextlib.contextmanager
def _rung() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A bell: what is rung at the second end wakes whoever polls the first."""
    bell, wake = socket.socketpair()
    with bell, wake:
        bell.setblocking(False)
        wake.setblocking(False)
        yield bell, wake
