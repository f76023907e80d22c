"""The second look at a running backup: phases, the room its WAL has, and an end that nothing can hold up."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from datamanager.base.errors import DataManagerError, ServerUnfit
from datamanager.postgres.connection import ServerAddress, connect
from datamanager.postgres.monitor import BackupMonitor, WalRoom
from tests.conftest import NewServer
from tests.servers import Proxy, Server


@dataclass
class Told:
    """What a monitor said."""

    phases: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    dangers: list[DataManagerError] = field(default_factory=list)

    def wait_for(self, wanted: Callable[[], bool], seconds: float = 10) -> None:
        deadline = time.monotonic() + seconds
        while not wanted() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert wanted(), self


@contextlib.contextmanager
def watching(dsn: str, slot: str = "watched", data_directory: str = "") -> Iterator[Told]:
    told = Told()
    monitor = BackupMonitor(
        ServerAddress(dsn), data_directory, told.phases.append, told.warnings.append, told.dangers.append
    )
    monitor.watch(slot)
    try:
        yield told
    finally:
        monitor.close()


@contextlib.contextmanager
def slot(server: Server) -> Iterator[None]:
    """A slot named watched that keeps all WAL from now on."""
    with connect(ServerAddress(server.dsn), replication=True) as connection:
        connection.execute(b"CREATE_REPLICATION_SLOT watched TEMPORARY PHYSICAL RESERVE_WAL")
        yield


def write_wal(server: Server, mebibytes: int) -> None:
    server.sql("create table if not exists flood (t text)")
    server.sql("alter table flood alter t set storage external")
    server.sql("insert into flood select repeat(md5(n::text), 32768) from generate_series(1, %s) n", mebibytes)


def test_a_share_is_of_what_is_kept_and_what_is_left() -> None:
    assert WalRoom(0, 0, "x").share == 0
    assert WalRoom(30, 70, "x").share == pytest.approx(0.3)
    assert WalRoom(30, 0, "x").share == 1


@pytest.mark.pg("14,18")
@pytest.mark.decision(10)
def test_half_of_the_limit_is_warned_of_once_and_four_fifths_are_a_danger(new_server: NewServer) -> None:
    server = new_server(config={"max_slot_wal_keep_size": "128MB", "max_wal_size": "64MB"})
    with slot(server), watching(server.dsn) as told:
        time.sleep(1.2)
        assert (told.warnings, told.dangers) == ([], [])
        write_wal(server, 80)
        told.wait_for(lambda: bool(told.warnings))
        time.sleep(1.2)
        assert len(told.warnings) == 1
        assert "max_slot_wal_keep_size leaves room for" in told.warnings[0]
        assert told.dangers == []
        write_wal(server, 35)
        told.wait_for(lambda: bool(told.dangers))
        (danger,) = told.dangers
        assert isinstance(danger, ServerUnfit)
        assert "max_slot_wal_keep_size leaves only" in danger.message
        assert server.value("select wal_status in ('reserved', 'extended') from pg_replication_slots")


@pytest.mark.decision(10)
def test_the_room_of_a_local_volume_counts_and_a_remote_directory_does_not(new_server: NewServer) -> None:
    server = new_server(config={"max_slot_wal_keep_size": "64MB", "max_wal_size": "64MB"})
    with slot(server), watching(server.dsn, data_directory="/a/directory/of/another/host") as told:
        write_wal(server, 40)
        told.wait_for(lambda: bool(told.warnings))
        assert "max_slot_wal_keep_size" in told.warnings[0]


@pytest.mark.decision(17)
def test_a_backup_elsewhere_shows_no_phase_and_ours_shows_its_own(new_server: NewServer) -> None:
    server = new_server(config={"checkpoint_timeout": "1h", "bgwriter_lru_maxpages": "0"})
    server.sql("create table dirty as select n, md5(n::text) from generate_series(1, 50000) n")
    with slot(server), watching(server.dsn) as told:
        with contextlib.closing(connect(ServerAddress(server.dsn), replication=True)) as other:
            other.pgconn.send_query(b"BASE_BACKUP (CHECKPOINT 'spread')")
            other.pgconn.flush()
            time.sleep(2.5)
            assert server.value("select count(*) from pg_stat_progress_basebackup") == 1
            other.cancel_safe(timeout=3)
        assert told.phases == []


def test_a_session_that_is_refused_or_lost_is_one_warning_and_no_end(new_server: NewServer) -> None:
    server = new_server()
    server.sql("create role only_replication login replication")
    server.hba_first("local postgres,template1 only_replication reject")
    with watching(server.make_dsn(user="only_replication")) as told:
        told.wait_for(lambda: bool(told.warnings))
    assert len(told.warnings) == 1
    assert "cannot be watched" in told.warnings[0]
    with watching(server.dsn) as told:
        time.sleep(1.3)
        server.kill9()
        told.wait_for(lambda: bool(told.warnings))
    assert "cannot be watched" in told.warnings[0]
    assert told.dangers == []


def test_a_cluster_without_the_database_postgres_is_watched_too(new_server: NewServer) -> None:
    server = new_server(config={"max_slot_wal_keep_size": "64MB", "max_wal_size": "64MB"})
    server.sql("drop database postgres", database="template1")
    with connect(ServerAddress(server.make_dsn(database="template1")), replication=True) as connection:
        connection.execute(b"CREATE_REPLICATION_SLOT watched TEMPORARY PHYSICAL RESERVE_WAL")
        with watching(server.make_dsn(database="template1")) as told:
            server.sql("create table flood (t text)", database="template1")
            server.sql("alter table flood alter t set storage external", database="template1")
            rows = "select repeat(md5(n::text), 32768) from generate_series(1, 40) n"
            server.sql(f"insert into flood {rows}", database="template1")
            told.wait_for(lambda: bool(told.warnings))
    assert "max_slot_wal_keep_size leaves room" in told.warnings[0]


@pytest.mark.decision(6)
def test_closing_does_not_wait_for_a_network_that_is_dead(
    new_server: NewServer, proxy: Callable[[Server], Proxy]
) -> None:
    server = new_server()
    wire = proxy(server)
    with watching(wire.dsn) as told:
        time.sleep(1.3)
        wire.stall()
        time.sleep(1.3)
        begun = time.monotonic()
    assert time.monotonic() - begun < 4
    assert told.warnings == []
    wire.resume()
