"""Receiving WAL from a server: START_REPLICATION over the nonblocking session.

    w   start, the server's end, its clock, bytes     from the server: WAL
    k   the server's end, its clock, answer at once?  from the server: a sign of life
    r   written, flushed, applied, our clock, answer? from us: what is safe here

All are of 8 bytes but the last of k and r. A regular sign of life from us keeps the server from asking for one, so it
would say nothing for as long as nothing is written; that is why each of ours asks for an answer.
Source: PostgreSQL documentation 54.4 (START_REPLICATION); src/backend/replication/walsender.c; decision 15.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from struct import Struct
from typing import Final

from psycopg import pq
from psycopg.conninfo import make_conninfo

from datamanager.base.clock import Clock
from datamanager.base.errors import ServerError, StreamBroken
from datamanager.base.units import Lsn, parse_size
from datamanager.postgres.connection import ServerAddress
from datamanager.postgres.connection_errors import quote_identifier
from datamanager.postgres.replication import ReplicationSession, result_rows

# What a removed segment is answered with, and a slot that another walsender uses.
WAL_REMOVED, SLOT_IN_USE = "58P01", "55006"
_DATA: Final = Struct(">cqqq")
_ALIVE: Final = Struct(">cqqB")
_STATUS: Final = Struct(">cqqqqB")
_STATUS_SECONDS = 5.0  # how often the server is told what is safe here, at least
_EPOCH = 946_684_800  # 2000-01-01 in seconds since 1970
_EPOCH_TIME = datetime.fromtimestamp(_EPOCH, UTC)
# A walsender whose peer is gone holds the slot until this ends; the default of 60 s would keep us out as long.
_SENDER_TIMEOUT = "20s"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who answers, on which timeline, and up to where it has flushed (on a standby: received)."""

    system: int
    timeline: int
    position: Lsn


@dataclass(frozen=True, slots=True)
class NextTimeline:
    """The timeline that was asked for has ended; this one follows it from there."""

    timeline: int
    start: Lsn


@dataclass(frozen=True, slots=True)
class WalData:
    """Bytes of the log as they lie at ``start``; valid until the next is asked for."""

    start: Lsn
    data: memoryview


def as_receiver(address: ServerAddress, application_name: str) -> ServerAddress:
    """The address with what a receiver's session needs, above all the name by which the server calls it.

    Args: application_name - stands in pg_stat_replication, and may stand in synchronous_standby_names.
    Raises: ConfigurationError.
    """
    options = f"{address.parameters().get('options', '')} -c wal_sender_timeout={_SENDER_TIMEOUT}".strip()
    conninfo = make_conninfo(address.conninfo, application_name=application_name, options=options)
    return replace(address, conninfo=conninfo)


class WalStream:
    """The WAL of one server, over one session. Not thread-safe.

    Args:
        silence_seconds: how long the server may say nothing while it streams.
    """

    def __init__(self, session: ReplicationSession, clock: Clock, *, silence_seconds: float = 60.0) -> None:
        self._session = session
        self._clock = clock
        self._silence_seconds = silence_seconds
        self._status_seconds = min(_STATUS_SECONDS, silence_seconds / 3)
        self._heard = self._told = clock.elapsed()
        self._streaming = False
        self.asked = False
        self.server_end = Lsn(0)
        self.received = Lsn(0)
        self.sealed = Lsn(0)
        self.ended: NextTimeline | None = None
        self.complete_until: datetime | None = None
        self._alive_at: datetime | None = None

    # asked: the server waits for an answer, which it does when it shuts down and wants all of its WAL to be safe.
    # received and sealed: up to where bytes came, and are safe; 0 while that is not known.
    # complete_until: by the server's clock, all that it had flushed by then has come; None while that is not known.

    def identify(self) -> Identity:
        """Raises: ServerError, Cancelled."""
        ((system, timeline, position, *_),) = self._session.query("IDENTIFY_SYSTEM")
        if system is None or timeline is None or position is None:
            raise StreamBroken("read from server: it does not say who it is")
        self.server_end = Lsn.parse(position)
        return Identity(int(system), int(timeline), self.server_end)

    def segment_size(self) -> int:
        """Bytes in a WAL segment. Raises: ServerError, Cancelled."""
        ((shown,),) = self._session.query("SHOW wal_segment_size")
        try:
            return parse_size(shown or "")
        except ValueError as error:
            raise StreamBroken("read from server: wal_segment_size is not a size") from error

    @property
    def version(self) -> str:
        """Of the server, as in ``17.11``."""
        return self._session.parameter("server_version").split(" ")[0]

    @property
    def in_recovery(self) -> bool:
        return self._session.parameter("in_hot_standby") == "on"

    def history(self, timeline: int) -> bytes | None:
        """The history file of a timeline as it lies there; None when the server has none (timeline 1 never has).

        Raises: ServerError, Cancelled.
        """
        if timeline == 1:
            return None
        self._session.send(f"TIMELINE_HISTORY {timeline}")
        content: bytes | None = None
        try:
            while (result := self._session.result()) is not None:
                if result.status == pq.ExecStatus.TUPLES_OK:
                    content = result.get_value(0, 1)
        except ServerError as error:
            if error.sqlstate != WAL_REMOVED:
                raise
            while self._session.result() is not None:
                pass
        return content

    def start(self, slot: str, timeline: int, at: int) -> None:
        """Begin to receive a timeline at a position; ``ended`` is set at once when it went no further than that.

        Raises: ServerError with ``sqlstate`` (SLOT_IN_USE, or the slot is lost), StreamBroken, Cancelled.
        """
        self.received, self.sealed, self.ended, self.asked = Lsn(at), Lsn(0), None, False
        self.complete_until = self._alive_at = None
        self._session.send(f"START_REPLICATION SLOT {quote_identifier(slot)} PHYSICAL {Lsn(at)} TIMELINE {timeline}")
        self._heard = self._told = self._clock.elapsed()
        first = self._session.result()
        if first is not None and first.status == pq.ExecStatus.COPY_BOTH:
            self._streaming = True
        else:
            self._finish(first)

    def arrived(self) -> Iterator[WalData]:
        """The WAL that has come, in order; ends when no more is here, or with ``ended`` when the timeline does.

        Raises: StreamBroken; ServerError with WAL_REMOVED; Cancelled.
        """
        while self._streaming:
            message = self._session.take()
            if message is None:
                self._end_of_copy()
                return
            if not len(message):
                return
            self._heard = self._clock.elapsed()
            kind = bytes(message[:1])
            if kind == b"w" and len(message) > _DATA.size:
                yield self._data(message)
            elif kind == b"k" and len(message) == _ALIVE.size:
                _, end, sent, asks = _ALIVE.unpack(message)
                self.server_end = max(self.server_end, Lsn(end))
                self._is_alive(sent)
                self.asked |= bool(asks)
            else:
                raise StreamBroken(f"receive WAL: the server sent an unknown message ({kind!r})")

    def wait(self, seconds: float, wake: int, *, reading: bool) -> None:
        """Wait for data, ``wake`` or the time at which the server must be told how far we are, which is then done.

        Args: reading - False leaves what comes to the socket, and the server waits.
        Raises: StreamBroken (lost, or silent for too long), Cancelled.
        """
        now = self._clock.elapsed()
        if not reading:
            self._heard = now
        if now - self._heard > self._silence_seconds:
            raise StreamBroken(f"receive WAL: the server said nothing for {self._silence_seconds:.0f} s")
        due = max(0.0, self._told + self._status_seconds - now)
        self._session.wait_for(min(seconds, due), wake, reading=reading)
        if self._clock.elapsed() >= self._told + self._status_seconds:
            self.report()

    def report(self) -> None:
        """Tell the server what was received and what is safe (applied too, or remote_apply would wait for ever).

        Raises: StreamBroken, Cancelled.
        """
        if not self._streaming:
            return
        self.asked = False
        self._told = self._clock.elapsed()
        moment = int((self._clock.now().timestamp() - _EPOCH) * 1_000_000)
        self._session.put(_STATUS.pack(b"r", self.received, self.sealed, self.sealed, moment, 1))

    def _is_alive(self, sent: int) -> None:
        """Between two signs of life the server looks what it has flushed, and sends that or how far it goes."""
        if self.received >= self.server_end and self._alive_at is not None:
            self.complete_until = self._alive_at
        self._alive_at = _EPOCH_TIME + timedelta(microseconds=sent)

    def _data(self, message: memoryview) -> WalData:
        _, start, end, _ = _DATA.unpack(message[: _DATA.size])
        data = message[_DATA.size :]
        if start != self.received:
            raise StreamBroken(f"receive WAL: the server sent {Lsn(start)} where {self.received} was next")
        self.received = Lsn(start + len(data))
        self.server_end = max(self.server_end, self.received, Lsn(end))
        return WalData(Lsn(start), data)

    def _end_of_copy(self) -> None:
        self._streaming = False
        try:
            result = self._session.result()
            if result is not None and result.status in (pq.ExecStatus.COPY_IN, pq.ExecStatus.COPY_BOTH):
                self._session.end_copy()
                result = self._session.result()
            self._finish(result)
        except ServerError as error:
            if error.sqlstate == WAL_REMOVED:  # the session can be used again
                while self._session.result() is not None:
                    pass
            raise

    def _finish(self, result: pq.abc.PGresult | None) -> None:
        """Read the results behind a copy. Raises: StreamBroken, when the server does not name what follows."""
        while result is not None:
            if result.status == pq.ExecStatus.TUPLES_OK:
                for timeline, start, *_ in result_rows(result):
                    self.ended = NextTimeline(int(timeline or 0), Lsn.parse(start or ""))
            result = self._session.result()
        if self.ended is None:
            raise StreamBroken("receive WAL: the server ended the stream (it is shutting down)")
