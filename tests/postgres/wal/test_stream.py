"""START_REPLICATION on real servers: identity, histories, bytes, signs of life, ends of timelines, WAL that is gone."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from datamanager.base.clock import SystemClock
from datamanager.base.errors import Cancelled, ServerError, StreamBroken
from datamanager.base.pipeline import StopToken
from datamanager.base.units import MIB, Lsn
from datamanager.postgres.connection import ServerAddress, connect
from datamanager.postgres.replication import ReplicationSession
from datamanager.postgres.wal.names import segment_name
from datamanager.postgres.wal.stream import SLOT_IN_USE, WAL_REMOVED, WalStream, as_receiver
from tests.conftest import NewServer
from tests.servers import Proxy, Server, hand_over

SLOT = "stream_tests"


class Streaming:
    """A stream and what came of it."""

    def __init__(self, dsn: str, stop: StopToken, silence: float) -> None:
        address = as_receiver(ServerAddress(dsn), "the_receiver")
        connection = connect(address, stop=stop, replication=True)
        self.session = ReplicationSession(connection, stop, SystemClock(), lambda text: None, 10)
        self.stream = WalStream(self.session, SystemClock(), silence_seconds=silence)
        self.data = bytearray()
        self._never, self._other = socket.socketpair()

    def pump(self, until: Callable[[], object], seconds: float = 15) -> None:
        deadline = time.monotonic() + seconds
        while True:
            for one in self.stream.arrived():
                self.data += one.data
            if until():
                return
            assert time.monotonic() < deadline
            self.stream.wait(0.1, self._never.fileno(), reading=True)

    def close(self) -> None:
        self.session.close()
        self._never.close()
        self._other.close()


@contextlib.contextmanager
def streaming(dsn: str, stop: StopToken | None = None, silence: float = 30) -> Iterator[Streaming]:
    with contextlib.ExitStack() as stack:
        made = Streaming(dsn, stop or stack.enter_context(StopToken()), silence)
        stack.callback(made.close)
        yield made


def with_slot(new_server: NewServer, **settings: str) -> Server:
    server = new_server(config={"max_slot_wal_keep_size": "1GB", **settings}, initdb_args=("--wal-segsize=1",))
    server.sql("select pg_create_physical_replication_slot(%s, true)", SLOT)
    return server


def start_of(server: Server) -> Lsn:
    """Of the segment in which the server writes."""
    return Lsn(Lsn.parse(server.value("select pg_current_wal_lsn()::text")) // MIB * MIB)


@pytest.mark.pg("14,15,18")
def test_bytes_arrive_as_they_lie_in_the_servers_segments_and_it_knows_what_is_safe(new_server: NewServer) -> None:
    server = with_slot(new_server)
    with streaming(server.dsn) as made:
        stream = made.stream
        identity = stream.identify()
        assert identity.system == server.value("select system_identifier from pg_control_system()")
        assert (identity.timeline, stream.segment_size(), stream.in_recovery) == (1, MIB, False)
        assert stream.version.split(".")[0] == str(server.major)
        assert stream.history(1) is None
        assert stream.history(7) is None
        start = start_of(server)
        stream.start(SLOT, 1, start)
        server.sql("create table kept as select n, md5(n::text) from generate_series(1, 30000) n")
        flushed = Lsn.parse(server.value("select pg_current_wal_flush_lsn()::text"))
        made.pump(lambda: stream.received >= flushed)
        assert stream.server_end >= flushed
        for at in range(start, flushed - MIB, MIB):
            name = segment_name(1, at, MIB)
            assert made.data[at - start :][:MIB] == (server.data_directory / "pg_wal" / name).read_bytes()
        columns = "application_name, write_lsn - '0/0', flush_lsn - '0/0', replay_lsn - '0/0'"
        stream.report()
        for sealed in (start, flushed):
            stream.sealed = Lsn(sealed)
            stream.report()
            made.pump(lambda: not stream.asked)
            deadline = time.monotonic() + 5
            wanted = [("the_receiver", stream.received, sealed, sealed)]
            while server.sql(f"select {columns} from pg_stat_replication") != wanted:
                assert time.monotonic() < deadline
                made.pump(lambda: True)
                stream.report()
        ((kept,),) = server.sql("select restart_lsn - '0/0' from pg_replication_slots")
        assert kept == flushed


@pytest.mark.decision(22)
def test_a_server_that_has_nothing_to_say_is_heard_and_one_that_is_gone_is_missed(
    new_server: NewServer, proxy: Callable[[Server], Proxy]
) -> None:
    server = with_slot(new_server)
    wire = proxy(server)
    with streaming(wire.dsn, silence=0.6) as made:
        made.stream.start(SLOT, 1, start_of(server))
        begun = time.monotonic()
        made.pump(lambda: time.monotonic() > begun + 1.5)
        wire.stall()
        begun = time.monotonic()
        with pytest.raises(StreamBroken, match="said nothing"):
            made.pump(lambda: False)
        assert 0.3 < time.monotonic() - begun < 1.5
        wire.resume()


def test_a_stop_ends_the_wait_at_once(new_server: NewServer) -> None:
    server = with_slot(new_server)
    with StopToken() as stop, streaming(server.dsn, stop) as made:
        made.stream.start(SLOT, 1, start_of(server))
        threading.Timer(0.3, stop.stop, ["enough"]).start()
        begun = time.monotonic()
        with pytest.raises(Cancelled, match="enough"):
            made.pump(lambda: False)
        assert time.monotonic() - begun < 1


@pytest.mark.pg("15")
def test_the_end_of_a_timeline_names_the_next_and_the_session_goes_on(new_server: NewServer) -> None:
    server = with_slot(new_server)
    server.sql("create table kept as select n from generate_series(1, 1000) n")
    start = start_of(server)
    server.stop()
    (server.data_directory / "recovery.signal").touch()
    hand_over(server.data_directory / "recovery.signal")
    server.configure(restore_command="exit 1")
    server.start()
    with streaming(server.dsn) as made:
        stream = made.stream
        assert stream.identify().timeline == 2
        assert stream.history(2) == (server.data_directory / "pg_wal" / "00000002.history").read_bytes()
        stream.start(SLOT, 1, start)
        made.pump(lambda: stream.ended is not None)
        assert stream.ended is not None
        assert (stream.ended.timeline, stream.ended.start) == (2, stream.received)
        assert len(made.data) == stream.received - start
        at = stream.ended.start
        # From its very end there is nothing to send.
        stream.start(SLOT, 1, at)
        assert stream.ended is not None
        stream.start(SLOT, 2, at // MIB * MIB)
        made.data.clear()
        made.pump(lambda: stream.received > at)
        assert stream.ended is None


@pytest.mark.pg("14")
def test_wal_that_is_gone_is_told_apart_and_the_session_goes_on(new_server: NewServer) -> None:
    server = with_slot(new_server, min_wal_size="2MB", max_wal_size="4MB")
    early = start_of(server)
    server.sql("select pg_drop_replication_slot(%s)", SLOT)
    for _ in range(3):
        server.sql("create table if not exists kept (n int, t text)")
        server.sql("insert into kept select n, md5(n::text) from generate_series(1, 20000) n")
        server.sql("checkpoint")
    server.sql("select pg_create_physical_replication_slot(%s, true)", SLOT)
    with streaming(server.dsn) as made:
        made.stream.start(SLOT, 1, early)
        with pytest.raises(ServerError) as gone:
            made.pump(lambda: False)
        assert gone.value.sqlstate == WAL_REMOVED
        assert made.stream.received == early
        made.stream.start(SLOT, 1, start_of(server))
        made.pump(lambda: made.data)
        with streaming(server.dsn) as second, pytest.raises(ServerError) as used:
            second.stream.start(SLOT, 1, start_of(server))
        assert used.value.sqlstate == SLOT_IN_USE


@pytest.mark.pg("14")
def test_a_server_that_stops_asks_whether_all_is_safe_and_ends_the_stream(new_server: NewServer) -> None:
    server = with_slot(new_server)
    with streaming(server.dsn) as made:
        stream = made.stream
        stream.start(SLOT, 1, start_of(server))
        made.pump(lambda: stream.received >= stream.server_end)
        stream.sealed = stream.received
        stream.report()
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        made.pump(lambda: stream.asked)
        stopping.join(0.5)
        assert stopping.is_alive()

        def answer() -> None:
            stream.sealed = stream.received
            stream.report()

        with pytest.raises(StreamBroken):
            made.pump(answer)
        stopping.join(10)
        assert not stopping.is_alive()


def test_the_walsender_gives_a_lost_peer_up_soon(new_server: NewServer) -> None:
    server = with_slot(new_server)
    address = as_receiver(ServerAddress(server.dsn + " application_name=other options='-c geqo=off'"), "the_receiver")
    with connect(address, replication=True) as connection, StopToken() as stop:
        session = ReplicationSession(connection, stop, SystemClock(), lambda text: None, 10)
        assert session.query("SHOW wal_sender_timeout") == [["20s"]]
        assert session.query("SHOW geqo") == [["off"]]
        assert session.query("SHOW application_name") == [["the_receiver"]]
        session.close()
