"""Clones stay quiet: leftovers of production neither hold them up nor let them reach anybody (decision 13)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from datamanager.base.errors import ServerDidNotStart, TargetUnfit
from datamanager.base.pipeline import StopToken
from datamanager.postgres.account import service_account
from datamanager.postgres.clone import CloneOptions, clean_auto_conf, prepare_clone, reduce_libraries
from datamanager.postgres.connection import connect
from datamanager.postgres.control_file import ControlFile, read_control_file
from datamanager.postgres.local_server import LocalServer
from datamanager.postgres.programs import Programs, find_programs
from tests.conftest import NewServer
from tests.postgres.test_local_server import free_port, processes_of
from tests.servers import Server, hand_over
from tests.servers.server import copy_data_directory


class Clone:
    """A copy of a stopped server's data directory and what is needed to start it as a clone."""

    def __init__(self, source: Server, folder: Path) -> None:
        self.data_directory = folder / "clone"
        copy_data_directory(source, self.data_directory)
        self.data_directory.chmod(0o700)
        self.side_directory = folder / "side"
        self.sockets = folder / "sockets"
        self.account = service_account(self.data_directory)
        self.programs = find_programs(source.major, source.bin, account=self.account)
        self.port = free_port()
        with StopToken() as stop:
            self.control: ControlFile = read_control_file(
                self.data_directory, self.programs, account=self.account, stop=stop, on_executed=lambda text: None
            )

    def prepare(self, **arguments: object) -> CloneOptions:
        return prepare_clone(
            self.data_directory, self.side_directory, self.control, port=self.port, socket_directory=self.sockets,
            account=self.account, programs=self.programs, **arguments,  # type: ignore[arg-type]
        )  # fmt: skip

    @contextmanager
    def started(self, options: Mapping[str, str]) -> Iterator[LocalServer]:
        local = LocalServer(
            self.data_directory, self.programs, self.account, self.sockets, self.port, options,
            self.side_directory / "server.log", on_executed=lambda text: None,
        )  # fmt: skip
        try:
            with StopToken() as stop:
                local.start(stop, limit_seconds=50)
            yield local
        finally:
            local.stop("immediate")


def shown(local: LocalServer, name: str) -> str:
    with connect(local.address) as connection:
        return str(connection.execute(f"SHOW {name}".encode()).fetchall()[0][0])


def publisher_and_subscriber(new_server: NewServer) -> tuple[Server, Server]:
    publisher = new_server(config={"wal_level": "logical"})
    publisher.sql("CREATE TABLE visits (id int PRIMARY KEY)")
    publisher.sql("CREATE PUBLICATION p FOR TABLE visits")
    subscriber = new_server(config={"wal_level": "logical", "max_connections": "57"})
    subscriber.sql("CREATE TABLE visits (id int PRIMARY KEY)")
    subscriber.sql(f"CREATE SUBSCRIPTION s CONNECTION '{publisher.dsn}' PUBLICATION p")
    publisher.sql("INSERT INTO visits VALUES (1)")
    deadline = time.monotonic() + 20
    while subscriber.value("SELECT count(*) FROM visits") == 0 and time.monotonic() < deadline:
        time.sleep(0.1)
    return publisher, subscriber


@pytest.mark.pg("14-18")
@pytest.mark.decision(13)
def test_a_clone_with_a_subscription_and_leftover_targets_starts_and_stays_quiet(
    new_server: NewServer, open_folder: Path
) -> None:
    publisher, subscriber = publisher_and_subscriber(new_server)
    subscriber.stop()
    clone = Clone(subscriber, open_folder)
    auto_conf = clone.data_directory / "postgresql.auto.conf"
    witness = open_folder / "archived"
    auto_conf.write_text(
        "# kept comment\n"
        "work_mem = '7MB'\n"
        "recovery_target_time = '2020-01-01'\nrecovery_target_name = 'gone'\n"
        f"restore_command = 'cp /production/%f %p'\nPRIMARY_CONNINFO = '{publisher.dsn} password=geheim'\n"
        f"archive_mode = 'always'\narchive_command = 'touch {witness}'\n"
        "synchronous_standby_names = '*'\nport = '1'\nlisten_addresses = '*'\nexternal_pid_file = '/production.pid'\n"
        "include_if_exists = '/production/more.conf'\nshared_preload_libraries = 'auto_explain'\n"
        "shared_buffers = '900GB'\nmax_connections = '3'\nmax_logical_replication_workers = '4'\n"
    )
    for name in ("standby.signal", "recovery.signal"):
        (clone.data_directory / name).touch()
    hand_over(clone.data_directory)
    publisher.sql("INSERT INTO visits VALUES (2)")
    publisher.sql("SELECT pg_switch_wal()")
    before = publisher.sql("SELECT confirmed_flush_lsn FROM pg_replication_slots")
    options = clone.prepare(settings={"autovacuum": "off"}, shared_preload_libraries="auto_explain, pg_cron")
    assert set(options.removed_settings) == {
        "recovery_target_time", "recovery_target_name", "restore_command", "primary_conninfo", "archive_mode",
        "archive_command", "synchronous_standby_names", "include_if_exists",
    }  # fmt: skip
    assert "geheim" not in auto_conf.read_text()
    original = clone.side_directory / "postgresql.auto.conf.original"
    assert "geheim" in original.read_text()
    assert original.stat().st_mode & 0o777 == 0o600
    assert auto_conf.read_text().startswith("# kept comment\nwork_mem = '7MB'\n")
    assert options.dropped_libraries == ("auto_explain", "pg_cron")
    with clone.started(options.options) as local:
        for name, value in {
            "archive_mode": "off", "max_logical_replication_workers": "0", "max_wal_senders": "0", "ssl": "off",
            "jit": "off", "listen_addresses": "", "port": str(clone.port), "work_mem": "7MB", "autovacuum": "off",
            "shared_preload_libraries": "", "external_pid_file": "", "max_connections": "100", "restore_command": "",
            "config_file": str(clone.side_directory / "postgresql.conf"),
            "hba_file": str(clone.side_directory / "pg_hba.conf"),
            "ident_file": str(clone.side_directory / "pg_ident.conf"),
        }.items():  # fmt: skip
            assert shown(local, name) == value, name
        with connect(local.address) as connection:
            assert connection.execute("SELECT subenabled FROM pg_subscription").fetchall() == [(True,)]
            assert connection.execute("SELECT pg_is_in_recovery()").fetchall() == [(False,)]
            workers = connection.execute(
                "SELECT backend_type FROM pg_stat_activity WHERE backend_type ~ 'logical|archiver|autovacuum'"
            ).fetchall()
            assert workers == []
            connection.execute("SELECT pg_switch_wal()")
        time.sleep(1)
        assert publisher.sql("SELECT confirmed_flush_lsn FROM pg_replication_slots") == before
        assert publisher.sql("SELECT * FROM pg_stat_replication") == []
        with connect(local.address) as connection:
            assert connection.execute("SELECT count(*) FROM public.visits").fetchall() == [(1,)]
    assert not witness.exists()
    assert processes_of(clone.data_directory) == []


@pytest.mark.pg("14,18")
@pytest.mark.decision(13)
def test_the_same_copy_does_not_even_start_when_it_is_not_made_a_clone(
    new_server: NewServer, open_folder: Path
) -> None:
    source = new_server(start=False)
    clone = Clone(source, open_folder)
    with (clone.data_directory / "postgresql.auto.conf").open("a") as file:
        file.write("recovery_target_time = '2020-01-01'\nrecovery_target_name = 'gone'\nrestore_command = 'false'\n")
    (clone.data_directory / "recovery.signal").touch()
    hand_over(clone.data_directory)
    clone.side_directory.mkdir()
    clone.sockets.mkdir()
    clone.account.take([clone.side_directory, clone.sockets])
    with pytest.raises(ServerDidNotStart, match="multiple recovery targets"), clone.started({}):
        pass
    with clone.started(clone.prepare().options) as local:
        assert shown(local, "recovery_target_name") == ""


@pytest.mark.pg("14-18")
@pytest.mark.decision(13)
def test_nobody_else_reaches_a_clone_and_nobody_streams_from_it(new_server: NewServer, open_folder: Path) -> None:
    source = new_server()
    source.stop()
    clone = Clone(source, open_folder)
    options = clone.prepare()
    assert clone.sockets.stat().st_mode & 0o777 == 0o700
    assert clone.side_directory.stat().st_mode & 0o777 == 0o700
    with clone.started(options.options) as local:
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(f"host=127.0.0.1 port={clone.port} user=postgres")
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(local.address.conninfo, replication="true")


@pytest.mark.pg("14-18")
@pytest.mark.decision(13)
def test_a_clone_recovers_with_the_planned_settings_and_enough_of_the_source_limits(
    new_server: NewServer, open_folder: Path
) -> None:
    source = new_server(config={
        "max_connections": "140", "max_worker_processes": "11", "max_wal_senders": "13",
        "max_prepared_transactions": "5", "max_locks_per_transaction": "77",
    })  # fmt: skip
    source.stop()
    clone = Clone(source, open_folder)
    assert clone.control.max_connections == 140
    options = clone.prepare(
        recovery={"restore_command": "exit 1", "recovery_target_timeline": "1", "recovery_target_action": "promote"},
        hot_standby=True,
    )
    assert (clone.data_directory / "recovery.signal").exists()
    with clone.started(options.options) as local:
        assert shown(local, "restore_command") == "exit 1"
        assert shown(local, "max_wal_senders") == "13"
        assert shown(local, "max_locks_per_transaction") == "77"
        with connect(local.address) as connection:
            deadline = time.monotonic() + 20
            while connection.execute("SELECT pg_is_in_recovery()").fetchall() != [(False,)]:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            assert connection.execute("SELECT timeline_id FROM pg_control_checkpoint()").fetchall()
    with pytest.raises(ValueError, match="archive_mode"):
        clone.prepare(recovery={"archive_mode": "on"})


def test_preparing_twice_keeps_the_first_original(new_server: NewServer, open_folder: Path) -> None:
    source = new_server(start=False)
    clone = Clone(source, open_folder)
    auto_conf = clone.data_directory / "postgresql.auto.conf"
    auto_conf.write_bytes(b"work_mem = '7MB'\nrestore_command = 'caf\xe9'\n")
    first = clone.prepare()
    assert first.removed_settings == ("restore_command",)
    assert clone.prepare().removed_settings == ()
    assert (clone.side_directory / "postgresql.auto.conf.original").read_bytes().endswith(b"'caf\xe9'\n")
    assert auto_conf.read_bytes() == b"work_mem = '7MB'\n"
    assert auto_conf.stat().st_uid == clone.data_directory.stat().st_uid
    auto_conf.unlink()
    assert clean_auto_conf(clone.data_directory, clone.side_directory, clone.account) == ()


def test_a_side_directory_within_the_data_directory_is_refused(new_server: NewServer, open_folder: Path) -> None:
    clone = Clone(new_server(start=False), open_folder)
    clone.side_directory = clone.data_directory / "side"
    with pytest.raises(TargetUnfit):
        clone.prepare()


def test_only_known_libraries_that_are_installed_are_loaded(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "orioledb.so").touch()
    programs = Programs(tmp_path / "bin", "18.6")
    kept, dropped = reduce_libraries('orioledb, "$libdir/pg_tde",pg_cron,,timescaledb', programs)
    assert kept == ("orioledb",)
    assert dropped == ("$libdir/pg_tde", "pg_cron", "timescaledb")
