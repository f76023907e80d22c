"""Stopping a backup while the server says nothing, and what a lost connection leaves behind (decisions 6, 10, 22)."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from datamanager.base.errors import (
    Busy,
    Cancelled,
    DataManagerError,
    RightMissing,
    ServerUnfit,
    ServerUnreachable,
    StreamBroken,
)
from datamanager.base.events import Event, Progress
from datamanager.base.pipeline import StopToken
from datamanager.postgres.connection import ServerAddress, connect
from tests.conftest import NewServer
from tests.engine.conftest import Heard, Works, assert_nothing_left
from tests.servers import Proxy, Server

CHECKOUT = Path(__file__).resolve().parents[2]


class Child:
    """A backup in a process of its own, and what it says."""

    def __init__(self, dsn: str, repository: Path, checkpoint: str) -> None:
        self.said: list[dict[str, Any]] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.engine.backup_child", dsn, str(repository), checkpoint],
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self.said.append(json.loads(line))

    def wait_for(self, true: Callable[[dict[str, Any]], bool], seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not any(true(words) for words in self.said):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the child did not come so far: {self.said[-5:]}")
            time.sleep(0.02)

    def interrupt(self) -> float:
        """Send SIGINT and return how many seconds passed until the process was gone."""
        begun = time.monotonic()
        self.process.send_signal(signal.SIGINT)
        self.process.wait(timeout=60)
        self._reader.join()
        return time.monotonic() - begun

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextlib.contextmanager
def child(dsn: str, works: Works, checkpoint: str) -> Iterator[Child]:
    made = Child(dsn, works.folder / "repository", checkpoint)
    try:
        yield made
    finally:
        made.close()


def slow_checkpoints(new_server: NewServer) -> Server:
    """A server whose spread checkpoint takes the better part of an hour: much is dirty and nothing hurries."""
    server = new_server(
        config={"checkpoint_timeout": "1h", "shared_buffers": "64MB", "bgwriter_lru_maxpages": "0", "autovacuum": "off"}
    )
    server.sql("create table dirty as select n, md5(n::text) from generate_series(1, 300000) n")
    return server


def wait_until_nothing_is_left(server: Server, works: Works, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            assert_nothing_left(server, works)
        except AssertionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
@pytest.mark.pg("14,18")
@pytest.mark.decision(6)
@pytest.mark.decision(17)
def test_an_interrupt_during_a_spread_checkpoint_ends_the_process_within_10_seconds(
    new_server: NewServer, works: Works
) -> None:
    server = slow_checkpoints(new_server)
    with child(server.dsn, works, "spread") as backup:
        backup.wait_for(lambda words: words.get("phase") == "server: waiting for the server's checkpoint")
        time.sleep(2)
        assert server.value("select count(*) from pg_replication_slots where temporary") == 1
        seconds = backup.interrupt()
    end = backup.said[-1]
    assert end["ended"] == "Cancelled"
    assert seconds < 10
    assert end["ticks"] > 20
    assert end["longest"] < 1.0, "another thread stood still while the server was silent"
    wait_until_nothing_is_left(server, works, 2)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
@pytest.mark.decision(6)
def test_an_interrupt_while_the_network_is_dead_ends_the_process_within_10_seconds(
    new_server: NewServer, works: Works, proxy: Callable[[Server], Proxy]
) -> None:
    server = new_server()
    ballast(server, 40)
    wire = proxy(server)
    wire.delay = 0.005
    with child(wire.dsn, works, "fast") as backup:
        backup.wait_for(lambda words: words.get("done", 0) > 4 << 20)
        wire.stall()
        time.sleep(1.5)
        seconds = backup.interrupt()
    end = backup.said[-1]
    assert end["ended"] == "Cancelled"
    assert seconds < 10
    assert end["longest"] < 1.0, "another thread stood still while the network was dead"
    assert works.repository.backup_ids() == []
    wire.resume()
    wait_until_nothing_is_left(server, works)


def ballast(server: Server, mebibytes: int) -> None:
    """A file of random bytes in the data directory, which every backup brings along: bulk without rows."""
    with open("/dev/urandom", "rb") as source:
        (server.data_directory / "ballast").write_bytes(source.read(mebibytes << 20))


def at(bytes_done: int, act: Callable[[], object]) -> Heard:
    """A listener that acts once when so much of the stream has been stored."""

    class Acting(Heard):
        acted = False

        def __call__(self, event: Event) -> None:
            super().__call__(event)
            if isinstance(event, Progress) and event.done_bytes >= bytes_done and not self.acted:
                self.acted = True
                act()

    return Acting()


@pytest.mark.pg("14,18")
@pytest.mark.decision(10)
def test_the_slot_is_there_during_the_backup_and_gone_after_success_failure_and_stop(
    new_server: NewServer, works: Works
) -> None:
    server = new_server()
    ballast(server, 24)
    seen: list[Any] = []

    def look() -> None:
        seen.extend(
            server.sql("select temporary, slot_type, restart_lsn is not null, active from pg_replication_slots")
        )

    with StopToken() as stop:

        def look_and_stop() -> None:
            look()
            stop.stop("enough")

        with pytest.raises(Cancelled, match="enough"):
            works.back_up(server, heard=at(4 << 20, look_and_stop), stop=stop, max_rate_kib=16384)
    assert seen == [(True, "physical", True, True)]
    wait_until_nothing_is_left(server, works, 3)

    def fail() -> None:
        look()
        raise ServerUnfit("a failure of the test")

    with pytest.raises(ServerUnfit, match="a failure of the test"):
        works.back_up(server, heard=at(4 << 20, fail), max_rate_kib=16384)
    wait_until_nothing_is_left(server, works, 3)
    works.back_up(server, heard=at(4 << 20, look), max_rate_kib=65536)
    assert seen == [(True, "physical", True, True)] * 3
    assert server.slots_left() == []


@pytest.mark.pg("14,18")
@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_server_that_stops_midway_fails_the_backup_and_the_next_one_reuses_its_packs(
    new_server: NewServer, works: Works, mode: str
) -> None:
    server = new_server()
    ballast(server, 80)
    stopper: list[threading.Thread] = []

    def stop_server() -> None:
        stopper.append(threading.Thread(target=server.stop, args=(mode,)))
        stopper[0].start()

    with pytest.raises(StreamBroken) as broken:
        works.back_up(server, heard=at(48 << 20, stop_server), max_rate_kib=65536)
    stopper[0].join()
    assert broken.value.retryable
    assert "\n" not in broken.value.message
    with pytest.raises(ServerUnreachable):
        works.back_up(server)
    server.start()
    wait_until_nothing_is_left(server, works)
    result = works.back_up(server)
    assert result.counts.reused > 24 << 20
    assert result.manifest.method == "full"


@pytest.mark.pg("14,18")
@pytest.mark.decision(22)
def test_a_connection_cut_midway_fails_the_backup_and_publishes_nothing(
    new_server: NewServer, works: Works, proxy: Callable[[Server], Proxy]
) -> None:
    server = new_server()
    ballast(server, 24)
    wire = proxy(server)
    heard = at(8 << 20, wire.cut)
    with pytest.raises(StreamBroken, match="connection was lost"):
        works.back_up(server, dsn=wire.dsn, heard=heard, max_rate_kib=32768)
    wait_until_nothing_is_left(server, works)


@pytest.mark.decision(22)
def test_a_peer_that_falls_silent_is_given_up_after_the_limit_and_not_twice_the_limit(
    new_server: NewServer, works: Works, proxy: Callable[[Server], Proxy]
) -> None:
    server = new_server()
    ballast(server, 24)
    wire = proxy(server)
    stalled: list[float] = []

    def stall() -> None:
        wire.stall()
        stalled.append(time.monotonic())

    with pytest.raises(StreamBroken, match="said nothing for 2 s") as silent:
        works.back_up(server, dsn=wire.dsn, heard=at(8 << 20, stall), max_rate_kib=32768, silence_seconds=2.0)
    # The limit, then at most 3 s for a request to cancel, and the monitor's own end.
    assert 1.5 < time.monotonic() - stalled[0] < 2.0 + 3.0 + 3.0
    assert "Check the network" in silent.value.hint
    wire.resume()
    wait_until_nothing_is_left(server, works)


def test_a_second_backup_of_the_same_cluster_is_busy_and_the_first_goes_on(new_server: NewServer, works: Works) -> None:
    server = new_server()
    ballast(server, 8)
    refused: list[DataManagerError] = []

    def second() -> None:
        try:
            works.back_up(server, repository=works.reopened())
        except DataManagerError as error:
            refused.append(error)

    result = works.back_up(server, heard=at(2 << 20, second), max_rate_kib=16384)
    assert [type(error) for error in refused] == [Busy]
    assert "another one of this cluster" in refused[0].message
    assert works.repository.backup_ids() == [result.manifest.backup]
    assert works.back_up(server).manifest.sequence == 2


def test_two_clusters_share_a_repository_at_the_same_time(new_server: NewServer, works: Works) -> None:
    one, other = new_server(), new_server()
    ballast(one, 8)
    inner: list[Any] = []
    heard = at(2 << 20, lambda: inner.append(works.back_up(other, repository=works.reopened())))
    first = works.back_up(one, heard=heard, max_rate_kib=16384).manifest
    (second,) = (result.manifest for result in inner)
    assert first.system_identifier != second.system_identifier
    assert (first.parent, second.parent) == (None, None)
    assert works.back_up(one).manifest.parent == first.backup
    assert works.back_up(other).manifest.parent == second.backup


def test_what_a_server_refuses_is_said_with_its_remedy(new_server: NewServer, works: Works) -> None:
    server = new_server(config={"max_wal_senders": "1", "max_replication_slots": "1"})
    server.sql("create role plain login")
    with pytest.raises(RightMissing) as right:
        works.back_up(server, dsn=server.make_dsn(user="plain"))
    assert "ALTER ROLE" in right.value.hint
    server.sql("select pg_create_physical_replication_slot('taken')")
    with pytest.raises(ServerUnfit) as slots:
        works.back_up(server)
    assert "max_replication_slots" in slots.value.hint
    server.sql("select pg_drop_replication_slot('taken')")
    with connect(ServerAddress(server.dsn), replication=True), pytest.raises(ServerUnfit) as senders:
        works.back_up(server)
    assert "max_wal_senders" in senders.value.hint
    assert works.repository.backup_ids() == []


@pytest.mark.pg("14,18")
def test_wal_level_minimal_is_refused_before_anything_is_read(new_server: NewServer, works: Works) -> None:
    server = new_server(config={"wal_level": "minimal", "max_wal_senders": "0"})
    with pytest.raises(ServerUnfit) as refused:
        works.back_up(server)
    assert "wal_level" in refused.value.hint
    assert_nothing_left(server, works)
