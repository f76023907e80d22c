"""The receiver on real servers: what it promises about loss, lost connections, full drives and its own death."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from datamanager.base.errors import ServerUnfit, StoreFull, WalForeign
from datamanager.postgres.wal.slot import SlotKeeper
from datamanager.repository.repository import Repository
from datamanager.repository.wal.archive import WalArchive
from datamanager.storage.base import Buffer, Capabilities, Space, Storage, StoredObject
from tests.conftest import NewServer
from tests.engine.wal.conftest import (
    LIMITED,
    SLOT,
    Receiving,
    assert_same_as_server,
    flushed,
    keeper,
    open_repository,
    system_of,
    whole_reach,
)
from tests.servers import Proxy, Server

Receive = Callable[..., Receiving]
CHECKOUT = Path(__file__).resolve().parents[3]


@pytest.mark.pg("14,15,18")
@pytest.mark.decision(15)
def test_what_is_committed_is_in_the_archive_within_the_interval(new_server: NewServer, receive: Receive) -> None:
    server = new_server(config=LIMITED)
    server.sql("create table kept (n int)")
    receiving = receive(server, interval_seconds=1.0)
    receiving.until(lambda: receiving.state.caught_up)
    for number in range(20):
        server.sql("insert into kept values (%s)", number)
        receiving.stop.wait(0.03)
    at = flushed(server)
    receiving.until_sealed(at, 2.0)
    server.kill9()
    assert whole_reach(receiving.line()).end >= at
    assert_same_as_server(receiving.line(), server)


@pytest.mark.pg("15")
@pytest.mark.decision(15)
def test_a_commit_that_waits_for_us_is_in_the_archive_when_it_returns(new_server: NewServer, receive: Receive) -> None:
    server = new_server(config=LIMITED)
    server.sql("create table kept (n int)")
    receiving = receive(server, synchronous=True, interval_seconds=60)
    receiving.until(lambda: receiving.state.caught_up and receiving.state.sealed)
    server.configure(synchronous_standby_names="datamanager_tests")
    with server.connect() as session:
        for level in ("on", "remote_apply"):
            session.execute(f"set synchronous_commit = {level}".encode())
            for number in range(20):
                session.execute("insert into kept values (%s)", (number,))
                row = session.execute("select pg_current_wal_insert_lsn() - '0/0'").fetchone()
                # Nobody else writes, so the commit's record ends there or a few bytes before.
                assert row is not None
                assert receiving.line().reach()[-1].end >= row[0] - 64
    assert len(receiving.line().stored()) < 60
    # While nobody receives, commits wait, and go on as soon as somebody does.
    receiving.end()
    waiting = threading.Thread(target=server.sql, args=("insert into kept values (99)",))
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive()
    receive(server, synchronous=True)
    waiting.join(10)
    assert not waiting.is_alive()


@pytest.mark.pg("14")
def test_restarts_and_crashes_of_the_server_leave_no_hole(new_server: NewServer, receive: Receive) -> None:
    server = new_server(config=LIMITED)
    server.sql("create table kept (n int)")
    receiving = receive(server)
    for number in range(3):
        receiving.until(lambda: receiving.state.connected and receiving.state.caught_up)
        server.sql("insert into kept select generate_series(1, 30000)")
        server.kill9() if number == 1 else server.stop("fast")
        receiving.until(lambda: not receiving.state.connected)
        assert receiving.state.error
        server.start()
    server.sql("insert into kept values (1)")
    receiving.until_sealed(flushed(server))
    assert whole_reach(receiving.line()).end >= flushed(server)
    assert_same_as_server(receiving.line(), server)
    assert any("tried again" in one for one in receiving.heard.warnings)
    assert "caught up" in receiving.heard.phases


def test_a_server_that_shuts_down_need_not_wait_for_the_interval(new_server: NewServer, receive: Receive) -> None:
    server = new_server(config=LIMITED)
    receiving = receive(server, interval_seconds=60)
    receiving.until(lambda: receiving.state.caught_up)
    server.sql("create table kept as select generate_series(1, 1000) n")
    begun = time.monotonic()
    server.stop("fast")
    assert time.monotonic() - begun < 5
    # The shutdown checkpoint is the last record, and it is in the archive too.
    shown = server.run("pg_controldata", server.data_directory).stdout
    (last,) = [line.split()[-1] for line in shown.splitlines() if line.startswith("Latest checkpoint location")]
    receiving.until(lambda: not receiving.state.connected)
    at = int(last.split("/")[0], 16) << 32 | int(last.split("/")[1], 16)
    assert whole_reach(receiving.line()).end > at


def test_a_cut_a_silent_and_a_killed_connection_are_each_made_again(
    new_server: NewServer, receive: Receive, proxy: Callable[[Server], Proxy]
) -> None:
    server = new_server(config=LIMITED)
    server.sql("create table kept (n int)")
    wire = proxy(server)
    receiving = receive(server, dsn=wire.dsn, silence_seconds=1.5)

    def write() -> None:
        server.sql("insert into kept select generate_series(1, 1000)")
        receiving.until_sealed(flushed(server))

    receiving.until(lambda: receiving.state.connected)
    write()
    wire.cut()
    receiving.until(lambda: not receiving.state.connected)
    wire.resume()
    write()
    server.sql("select pg_terminate_backend(pid) from pg_stat_replication")
    write()
    wire.stall()
    receiving.until(lambda: "said nothing" in receiving.state.error)
    wire.resume()
    write()
    assert whole_reach(receiving.line()).end >= flushed(server)
    assert_same_as_server(receiving.line(), server)
    assert receiving.end() < 1.5


@pytest.mark.decision(14)
def test_what_the_server_commits_while_no_word_comes_through_is_never_said_to_be_there(
    new_server: NewServer, receive: Receive, proxy: Callable[[Server], Proxy]
) -> None:
    server = new_server(config=LIMITED)
    server.sql("create table kept (n int)")
    wire = proxy(server)
    receiving = receive(server, dsn=wire.dsn, silence_seconds=6)

    def complete_until() -> datetime:
        told = receiving.state.complete_until
        return datetime.fromisoformat(told) if told else datetime.min.replace(tzinfo=UTC)

    # A quiet server writes nothing, and yet it is known that nothing is missing.
    begun = server.value("select now()")
    receiving.until(lambda: complete_until() > begun)
    wire.stall()
    committed = server.value("insert into kept values (1) returning clock_timestamp()")
    receiving.stop.wait(3)
    assert receiving.state.connected
    receiving.until(lambda: "said nothing" in receiving.state.error)
    assert begun < complete_until() < committed
    wire.resume()
    receiving.until_sealed(flushed(server))
    receiving.until(lambda: complete_until() > committed)


@pytest.mark.pg("14,18")
@pytest.mark.decision(15)
def test_an_empty_archive_begins_where_the_slot_does_not_where_the_server_is(
    new_server: NewServer, receive: Receive
) -> None:
    server = new_server(config=LIMITED)
    with keeper(server) as slot:
        restart = slot.create().restart_lsn
    assert restart
    for _ in range(4):
        server.sql("select pg_switch_wal(), pg_logical_emit_message(false, 'x', repeat('y', 1000))")
    server.sql("checkpoint")
    receiving = receive(server)
    receiving.until_sealed(flushed(server))
    reach = whole_reach(receiving.line())
    assert reach.start <= restart
    assert reach.end - reach.start > 4 * (16 << 20)
    assert_same_as_server(receiving.line(), server, at_least=5)


@pytest.mark.decision(10)
def test_without_a_limit_on_the_server_no_slot_is_made(new_server: NewServer, receive: Receive) -> None:
    server = new_server()
    receiving = receive(server)
    failure = receiving.wait_end()
    assert isinstance(failure, ServerUnfit)
    assert "ALTER SYSTEM SET max_slot_wal_keep_size = '10GB';" in failure.hint
    assert server.sql("select slot_name from pg_replication_slots") == []


def test_another_server_is_refused_before_anything_is_made_on_it(new_server: NewServer, receive: Receive) -> None:
    server = new_server(config=LIMITED)
    receiving = receive(server, system=4711)
    failure = receiving.wait_end()
    assert isinstance(failure, WalForeign)
    assert str(system_of(server)) in failure.message
    assert server.sql("select slot_name from pg_replication_slots") == []
    assert receiving.archive.lines() == []


@pytest.mark.pg("18")
def test_a_storm_of_switches_of_small_segments_arrives_whole(new_server: NewServer, receive: Receive) -> None:
    write_segments(new_server, receive, 1)


@pytest.mark.pg("15")
def test_large_segments_arrive_whole(new_server: NewServer, receive: Receive) -> None:
    write_segments(new_server, receive, 64)


def write_segments(new_server: NewServer, receive: Receive, megabytes: int) -> None:
    server = new_server(config={**LIMITED, "wal_keep_size": "2GB"}, initdb_args=(f"--wal-segsize={megabytes}",))
    receiving = receive(server)
    receiving.until(lambda: receiving.state.connected)
    server.sql("create table kept (n int, t text)")
    for _ in range(30 if megabytes == 1 else 2):
        server.sql("insert into kept select n, repeat('x', 50) from generate_series(1, 300) n")
        server.sql("select pg_switch_wal()")
    server.sql("insert into kept select n, md5(n::text) from generate_series(1, 20000) n")
    receiving.until_sealed(flushed(server), 90)
    line = receiving.line()
    assert line.segment_size == megabytes << 20
    assert whole_reach(line).end >= flushed(server)
    assert_same_as_server(line, server, at_least=3)


class Flaky:
    """A store whose puts fail while ``full`` is set."""

    def __init__(self, inner: Storage) -> None:
        self._inner = inner
        self.full = False

    @property
    def url(self) -> str:
        return self._inner.url

    @property
    def capabilities(self) -> Capabilities:
        return self._inner.capabilities

    def put(self, key: str, data: Sequence[Buffer]) -> None:
        if self.full:
            raise StoreFull("put: the drive is full")
        self._inner.put(key, data)

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        return self._inner.get(key, offset, length)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        return self._inner.list(prefix)

    def stat(self, key: str) -> StoredObject:
        return self._inner.stat(key)

    def delete(self, key: str) -> None:
        self._inner.delete(key)

    def barrier(self) -> None:
        self._inner.barrier()

    def space(self) -> Space | None:
        return self._inner.space()

    def close(self) -> None:
        self._inner.close()


def test_a_full_drive_is_told_once_and_the_slot_keeps_the_wal_meanwhile(
    new_server: NewServer, receive: Receive, repository: Repository
) -> None:
    server = new_server(config=LIMITED)
    server.sql("create table kept (n int)")
    storage = Flaky(repository.storage)
    storage.ensure_folders = repository.storage.ensure_folders  # type: ignore[attr-defined]
    receiving = receive(server, storage=storage)
    receiving.until(lambda: receiving.state.caught_up and receiving.state.sealed_at)
    storage.full = True
    server.sql("insert into kept select generate_series(1, 1000)")
    receiving.until(lambda: "full" in receiving.state.error)
    receiving.stop.wait(1.5)  # some tries more
    at = whole_reach(receiving.line()).end  # a piece that was on its way may have come to its place
    server.stop("fast")  # nobody is connected for long whom it would have to wait for
    server.start()
    with keeper(server) as slot:
        state = slot.state()
    assert state is not None
    assert state.restart_lsn is not None
    assert state.restart_lsn <= at
    assert len([one for one in receiving.heard.warnings if "drive is full" in one]) == 1
    storage.full = False
    receiving.until_sealed(flushed(server), 90)
    assert whole_reach(receiving.line()).end >= flushed(server)


@pytest.mark.decision(16)
def test_a_receiver_killed_at_any_moment_leaves_an_archive_that_the_next_one_completes(
    new_server: NewServer, tmp_path: Path, repository: Repository
) -> None:
    kill_often(new_server, tmp_path, repository, rounds=4)


@pytest.mark.slow
@pytest.mark.pg("14,18")
def test_a_receiver_killed_forty_times_leaves_no_hole(
    new_server: NewServer, tmp_path: Path, repository: Repository
) -> None:
    kill_often(new_server, tmp_path, repository, rounds=40)


def kill_often(new_server: NewServer, folder: Path, repository: Repository, rounds: int) -> None:
    """Kill the receiver at random moments under load, and compare what is there at the end."""
    chance = random.Random(rounds)
    config = {**LIMITED, "wal_keep_size": "20GB", "max_wal_size": "64MB"}
    server = new_server(config=config, initdb_args=("--wal-segsize=1",))
    system = system_of(server)
    with keeper(server) as slot:
        restart = slot.create().restart_lsn
    assert restart
    with server.load(clients=2, rate=400):
        for _ in range(rounds):
            child = receiver_child(folder, server, system)
            time.sleep(chance.random() * 0.8)
            child.kill()
            child.wait()
    at = flushed(server)
    child = receiver_child(folder, server, system)
    archive = WalArchive(open_repository(folder), system)
    deadline = time.monotonic() + 60
    while (line := archive.line(1)) is None or not (reach := line.reach()) or reach[-1].end < at:
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.1)
    child.terminate()
    assert child.wait(10) == 0
    assert whole_reach(line).start <= restart
    assert_same_as_server(line, server, at_least=4)
    last = whole_reach(line).end // line.segment_size * line.segment_size
    # Nothing is left of the pieces of whole segments, whenever their writer was killed.
    assert (
        len([one for one in line.stored() if one.end <= last]) == (last - whole_reach(line).start) // line.segment_size
    )


def receiver_child(folder: Path, server: Server, system: int) -> subprocess.Popen[bytes]:
    words = ["-m", "tests.engine.wal.receiver_child", str(folder), server.dsn, str(system), SLOT]
    child = subprocess.Popen([sys.executable, *words], cwd=CHECKOUT, stdout=subprocess.PIPE)
    assert child.stdout is not None
    with child.stdout as said:
        assert said.readline() == b"ready\n"
    return child


def test_stopping_takes_less_than_a_second_and_seals_what_has_come(new_server: NewServer, receive: Receive) -> None:
    server = new_server(config=LIMITED)
    receiving = receive(server, interval_seconds=60)
    receiving.until(lambda: receiving.state.caught_up)
    server.sql("create table kept as select generate_series(1, 1000) n")
    at = flushed(server)
    receiving.until(lambda: receiving.state.received >= at)
    assert receiving.end() < 1
    assert whole_reach(receiving.line()).end >= at
    with keeper(server) as slot:
        state = slot.state()
    assert state is not None
    assert state.restart_lsn is not None
    assert state.restart_lsn >= at


def test_a_second_receiver_waits_until_the_slot_is_free(new_server: NewServer, receive: Receive) -> None:
    server = new_server(config=LIMITED)
    first = receive(server)
    first.until(lambda: first.state.connected)
    second = receive(server)
    second.until(lambda: "another receiver" in second.state.error)
    first.end()
    second.until(lambda: second.state.connected)


def test_a_slot_dropped_under_our_feet_is_made_again(new_server: NewServer, receive: Receive) -> None:
    server = new_server(config=LIMITED)
    receiving = receive(server)
    receiving.until(lambda: receiving.state.caught_up)
    server.stop()
    receiving.until(lambda: not receiving.state.connected)
    slots = server.data_directory / "pg_replslot" / SLOT
    for path in slots.iterdir():
        path.unlink()
    slots.rmdir()
    server.start()
    receiving.until(lambda: receiving.state.connected and receiving.state.caught_up)
    assert any("made again" in one for one in receiving.heard.warnings)
    with SlotKeeper.opened(receiving.address, SLOT, receiving.stop, lambda text: None) as slot:
        assert slot.state() is not None
