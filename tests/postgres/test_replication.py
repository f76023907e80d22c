"""The replication session on real servers: it never blocks, maps what goes wrong, and knows each major's stream."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from psycopg import pq

from datamanager.base.clock import SystemClock
from datamanager.base.errors import Cancelled, IncrementRefused, RightMissing, ServerError, ServerUnfit, StreamBroken
from datamanager.base.pipeline import StopToken
from datamanager.base.units import Lsn
from datamanager.postgres.connection import ServerAddress, connect
from datamanager.postgres.replication import ReplicationSession, result_rows
from tests.conftest import NewServer
from tests.servers import Proxy, Server, hand_over


@contextlib.contextmanager
def session(dsn: str, stop: StopToken | None = None, *, silence: float = 10) -> Iterator[ReplicationSession]:
    said: list[str] = []
    with contextlib.ExitStack() as stack:
        token = stop or stack.enter_context(StopToken())
        connection = connect(ServerAddress(dsn), stop=token, replication=True)
        yield stack.enter_context(ReplicationSession(connection, token, SystemClock(), said.append, silence))


@pytest.mark.pg("14-18")
def test_a_query_gives_its_rows_as_text_and_none_for_null(server: Server) -> None:
    with session(server.dsn) as wire:
        ((identifier, timeline, position, database),) = wire.query("IDENTIFY_SYSTEM")
        assert int(identifier or 0) == server.value("select system_identifier from pg_control_system()")
        assert (timeline, database) == ("1", None)
        assert Lsn.parse(position or "") > 0
        assert wire.query("SHOW server_version_num") == [[str(server.value("show server_version_num"))]]


@pytest.mark.pg("14-18")
@pytest.mark.decision(22)
def test_each_major_sends_the_results_that_the_source_expects(new_server: NewServer) -> None:
    server = new_server()
    server.tablespace("one")
    old = "BASE_BACKUP LABEL 'x' PROGRESS FAST WAL NOWAIT"
    new = "BASE_BACKUP (LABEL 'x', PROGRESS, CHECKPOINT 'fast', WAL, WAIT false, MANIFEST 'yes')"
    statuses: list[str] = []
    received = 0
    with session(server.dsn) as wire:
        wire.query('CREATE_REPLICATION_SLOT "mine" TEMPORARY PHYSICAL RESERVE_WAL')
        wire.send(new if server.major >= 15 else f"{old} MANIFEST 'yes'")
        while (result := wire.result()) is not None:
            statuses.append(pq.ExecStatus(result.status).name)
            if result.status == pq.ExecStatus.COPY_OUT:
                received += sum(len(message) for message in wire.copy_messages())
    assert received > 1 << 20
    copies = ["COPY_OUT"] if server.major >= 15 else ["COPY_OUT"] * 3
    assert statuses == ["TUPLES_OK", "TUPLES_OK", *copies, "TUPLES_OK", *statuses[3 + len(copies) :]]
    assert set(statuses[3 + len(copies) :]) <= {"COMMAND_OK"}


@pytest.mark.decision(22)
def test_keepalives_and_the_limit_on_unacknowledged_data_are_in_force_on_the_connection(server: Server) -> None:
    with connect(ServerAddress(server.tcp_dsn), replication=True) as connection:
        copy = socket.socket(fileno=socket.dup(connection.pgconn.socket))
        with copy:

            def option(name: int) -> int:
                return copy.getsockopt(socket.IPPROTO_TCP, name)

            assert copy.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert option(socket.TCP_KEEPIDLE) == 30
            assert option(socket.TCP_KEEPINTVL) == 10
            assert option(socket.TCP_KEEPCNT) == 3
            assert option(socket.TCP_USER_TIMEOUT) == 60_000


def test_errors_of_commands_say_what_they_mean(server: Server, new_server: NewServer) -> None:
    server.sql("create role plain_replication login replication")
    try:
        with session(server.dsn) as wire, pytest.raises(ServerError, match=r"run on server: .*nonsense"):
            wire.query("BASE_BACKUP (NONSENSE)")
        with session(server.dsn) as wire, pytest.raises(ServerError, match="does not exist") as missing:
            wire.query('DROP_REPLICATION_SLOT "nobody"')
        assert missing.value.sqlstate == "42704"
        with session(server.make_dsn(user="plain_replication")) as wire, pytest.raises(RightMissing) as right:
            wire.query("BASE_BACKUP (TARGET 'server', TARGET_DETAIL '/tmp/somewhere')")
        assert "REPLICATION" in right.value.hint
    finally:
        server.sql("drop role plain_replication")
    full = new_server(config={"max_replication_slots": "1"})
    full.sql("select pg_create_physical_replication_slot('taken')")
    with session(full.dsn) as wire, pytest.raises(ServerUnfit) as slots:
        wire.query('CREATE_REPLICATION_SLOT "one_more" TEMPORARY PHYSICAL')
    assert "max_replication_slots" in slots.value.hint


@pytest.mark.pg("14,18")
def test_wal_level_is_the_remedy_only_where_it_is_the_cause(new_server: NewServer) -> None:
    server = new_server(config={"wal_level": "logical"})
    server.sql("select pg_create_logical_replication_slot('decoding', 'pgoutput')")
    with session(server.dsn) as wire, pytest.raises(ServerUnfit, match="run on server") as refused:
        wire.query("START_REPLICATION SLOT decoding PHYSICAL 0/1")
    assert "wal_level" not in refused.value.hint
    server.sql("select pg_drop_replication_slot('decoding')")
    server.configure(max_replication_slots="0")
    server.restart()
    with session(server.dsn) as wire, pytest.raises(ServerUnfit) as slots:
        wire.query('CREATE_REPLICATION_SLOT "one" TEMPORARY PHYSICAL')
    assert "max_replication_slots" in slots.value.hint


@pytest.mark.pg("17,18")
@pytest.mark.decision(20)
def test_what_stands_only_in_an_increments_way_is_told_apart(new_server: NewServer) -> None:
    server = new_server()
    full, increment = "BASE_BACKUP (LABEL 'INCREMENTAL', CHECKPOINT 'fast'", ", WAIT false, INCREMENTAL)"
    with session(server.dsn) as wire, pytest.raises(IncrementRefused, match="summarization") as off:
        wire.query(full + increment)
    assert (off.value.sqlstate, off.value.exit_code, off.value.retryable) == ("55000", 27, False)
    server.configure(summarize_wal="on")
    with session(server.dsn) as wire, pytest.raises(IncrementRefused, match="UPLOAD_MANIFEST"):
        wire.query(full + increment)
    with session(server.dsn) as wire, pytest.raises(IncrementRefused, match="manifest") as garbage:
        upload(wire, b"no manifest")
    assert garbage.value.sqlstate == "XX000"
    # Without its increment the same command meets other errors, and so does an increment.
    for words in (", NONSENSE)", ", NONSENSE, INCREMENTAL)"):
        with session(server.dsn) as wire, pytest.raises(ServerError) as other:
            wire.query(full + words)
        assert type(other.value) is ServerError


def upload(wire: ReplicationSession, manifest: bytes) -> None:
    """Send a manifest the blocking way."""
    wire.send("UPLOAD_MANIFEST")
    assert wire.result() is not None
    pgconn = wire._connection.pgconn
    pgconn.put_copy_data(manifest)
    pgconn.put_copy_end()
    while wire.result() is not None:
        pass


@pytest.mark.decision(6)
def test_a_stop_ends_a_wait_at_once_and_cancels_what_the_server_does(new_server: NewServer) -> None:
    server = new_server(config={"checkpoint_timeout": "1h", "bgwriter_lru_maxpages": "0"})
    server.sql("create table dirty as select n, md5(n::text) from generate_series(1, 50000) n")
    with StopToken() as stop:
        threading.Timer(0.7, stop.stop, ["enough"]).start()
        begun = time.monotonic()
        with pytest.raises(Cancelled, match="enough"), session(server.dsn, stop, silence=60) as wire:
            wire.query("BASE_BACKUP (CHECKPOINT 'spread')")
        assert 0.5 < time.monotonic() - begun < 4
    deadline = time.monotonic() + 3
    while server.sql("select 1 from pg_stat_progress_basebackup") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.sql("select 1 from pg_stat_progress_basebackup") == []


@pytest.mark.decision(6)
def test_silence_ends_after_its_limit_whether_a_result_or_data_is_waited_for(
    server: Server, proxy: Callable[[Server], Proxy]
) -> None:
    wire = proxy(server)
    with session(wire.dsn, silence=1.0) as quiet:
        wire.stall()
        begun = time.monotonic()
        with pytest.raises(StreamBroken, match="said nothing for 1 s"):
            quiet.query("IDENTIFY_SYSTEM")
        assert 0.9 < time.monotonic() - begun < 1.8
    wire.resume()
    with session(wire.dsn, silence=1.0) as quiet:
        quiet.send("BASE_BACKUP (CHECKPOINT 'fast')")
        assert [quiet.result() is not None for _ in range(3)] == [True] * 3
        messages = quiet.copy_messages()
        next(messages)
        wire.stall()
        arrived = [time.monotonic()]
        with pytest.raises(StreamBroken, match="said nothing for 1 s"):
            arrived.extend(time.monotonic() for _ in messages)
        assert 0.9 < time.monotonic() - arrived[-1] < 1.8
    wire.resume()


@pytest.mark.pg("14,18")
def test_a_server_that_dies_is_a_broken_stream_wherever_it_is_noticed(new_server: NewServer) -> None:
    server = new_server()
    with session(server.dsn) as wire:
        server.kill9()
        with pytest.raises(StreamBroken, match="connection") as lost:
            wire.query("IDENTIFY_SYSTEM")
        assert lost.value.retryable
        with pytest.raises(StreamBroken):
            wire.query("IDENTIFY_SYSTEM")
    server.start()
    with session(server.dsn) as wire:
        wire.send("BASE_BACKUP (CHECKPOINT 'fast', MAX_RATE 1024)" if server.major >= 15 else "BASE_BACKUP FAST")
        assert wire.result() is not None
        server.kill9()
        with pytest.raises(StreamBroken, match="connection"):
            read_all(wire)


def read_all(wire: ReplicationSession) -> None:
    while (result := wire.result()) is not None:
        if result.status == pq.ExecStatus.COPY_OUT:
            assert sum(len(message) for message in wire.copy_messages()) > 0


def test_notices_are_kept_and_commands_are_told(server: Server) -> None:
    odd = server.data_directory / "odd"
    odd.symlink_to("/nowhere")
    said: list[str] = []
    try:
        with StopToken() as stop:
            connection = connect(ServerAddress(server.dsn), stop=stop, replication=True)
            with ReplicationSession(connection, stop, SystemClock(), said.append, 10) as wire:
                wire.send("BASE_BACKUP (CHECKPOINT 'fast')")
                while (result := wire.result()) is not None:
                    if result.status == pq.ExecStatus.COPY_OUT:
                        assert sum(1 for _ in wire.copy_messages()) > 10
                    else:
                        result_rows(result)
                assert any("odd" in notice for notice in wire.notices)
    finally:
        odd.unlink()
    assert said == ["BASE_BACKUP (CHECKPOINT 'fast')"]


@pytest.mark.pg("14,18,15-debian")
def test_a_stream_over_tls_arrives_whole(new_server: NewServer) -> None:
    server = new_server(start=False)
    key, certificate = server.data_directory / "server.key", server.data_directory / "server.crt"
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "9"]
    subprocess.run([*words, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    key.chmod(0o600)
    hand_over(server.data_directory)
    server.configure(ssl="on")
    server.start()
    (server.data_directory / "ballast").write_bytes(bytes(range(256)) * 40_000)
    for _ in range(5):
        with session(f"{server.tcp_dsn} sslmode=require", silence=5) as wire:
            assert wire.query("SHOW ssl") == [["on"]]
            wire.send("BASE_BACKUP (CHECKPOINT 'fast')" if server.major >= 15 else "BASE_BACKUP FAST")
            received = 0
            while (result := wire.result()) is not None:
                if result.status == pq.ExecStatus.COPY_OUT:
                    received += sum(len(message) for message in wire.copy_messages())
            assert received > 10 << 20
