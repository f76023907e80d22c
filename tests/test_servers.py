"""The test servers themselves: what the other tests rely on."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from tests.conftest import NewServer
from tests.servers import ProgramFailed, Proxy, Server, select
from tests.servers.leftovers import clear_leftovers
from tests.servers.processes import is_alive

CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("specification", "versions"),
    [
        (18, ["18"]),
        ("14-16", ["14", "15", "16"]),
        (">=17", ["17", "18"]),
        ("<16", ["14", "15"]),
        (">16,17.10", ["17", "18", "17.10"]),
        ("15-debian", ["15-debian"]),
    ],
)
def test_a_mark_names_versions(specification: int | str, versions: list[str]) -> None:
    assert select(specification) == versions


@pytest.mark.parametrize("specification", ["13", "9.6", "18.99", ">=19", "", "17-"])
def test_a_mark_that_names_no_version_is_refused(specification: str) -> None:
    with pytest.raises(ValueError, match="names no version"):
        select(specification)


@pytest.mark.pg("14-18,17.10,15-debian")
def test_a_shared_server_answers_with_its_own_version_and_checksums(server: Server, pg_version: str) -> None:
    number = int(server.value("show server_version_num"))
    assert number // 10000 == server.major
    if "." in pg_version:
        assert number % 10000 == int(pg_version.partition(".")[2])
    assert server.value("show data_checksums") == "on"
    assert server.value("show data_directory") == str(server.data_directory)


def test_the_socket_path_is_short_enough_for_every_system(server: Server) -> None:
    assert len(f"{server.host}/.s.PGSQL.{server.port}") < 90


def test_loopback_and_socket_lead_to_the_same_server(server: Server) -> None:
    with psycopg.connect(server.tcp_dsn) as connection:
        row = connection.execute("select inet_server_port(), current_setting('data_directory')").fetchone()
    assert row == (server.port, str(server.data_directory))


@pytest.mark.pg("14,18")
def test_a_new_server_takes_its_configuration_and_can_be_without_checksums(new_server: NewServer) -> None:
    server = new_server(config={"work_mem": "7MB"}, initdb_args=("--no-data-checksums",))
    assert server.value("show work_mem") == "7MB"
    assert server.value("show data_checksums") == "off"


def test_a_server_killed_in_the_middle_recovers_its_committed_rows(new_server: NewServer) -> None:
    server = new_server()
    server.sql("create table kept (n int)")
    server.sql("insert into kept select generate_series(1, 1000)")
    server.kill9()
    assert not server.running
    server.start()
    assert server.value("select count(*) from kept") == 1000
    assert "not properly shut down" in server.log


def test_a_server_of_a_killed_run_is_cleared_away_and_a_living_one_s_is_not(server: Server) -> None:
    program = "import os; from tests.servers import create; print(create().folder, flush=True); os._exit(1)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    folder = Path(done.stdout.strip())
    pid = int((folder / "data" / "postmaster.pid").read_text().split("\n", 1)[0])
    assert is_alive(pid)
    assert folder in clear_leftovers()
    assert not is_alive(pid)
    assert not folder.exists()
    assert server.value("select 1") == 1


def test_a_server_that_cannot_start_shows_its_log(new_server: NewServer) -> None:
    server = new_server(start=False)
    server.configure(shared_preload_libraries="no_such_library")
    with pytest.raises(ProgramFailed, match="no_such_library"):
        server.start()


@pytest.mark.pg("14,18")
def test_a_load_writes_and_counts_without_failures(new_server: NewServer) -> None:
    server = new_server()
    with server.load(clients=2, rate=200) as load:
        deadline = time.monotonic() + 10
        while server.value("select count(*) from pgbench_history") < 20 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert load.running
    assert load.transactions == server.value("select count(*) from pgbench_history") >= 20
    assert load.failed == 0


@pytest.mark.pg("14,18")
def test_a_load_counts_the_clients_that_a_dying_server_takes_along(new_server: NewServer) -> None:
    server = new_server()
    with server.load(clients=2) as load:
        deadline = time.monotonic() + 10
        while server.value("select count(*) from pgbench_history") == 0 and time.monotonic() < deadline:
            time.sleep(0.05)
        server.kill9()
    assert load.failed == 2


def test_a_role_can_be_made_to_need_its_password(new_server: NewServer) -> None:
    server = new_server()
    server.sql("create role carol login replication password 'right'")
    server.password_only("carol")
    for words in ("", "replication=true "):
        with pytest.raises(psycopg.OperationalError, match="no password supplied"):
            psycopg.connect(words + server.make_dsn(user="carol"))
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(words + server.make_dsn(user="carol", password="wrong"))
    with psycopg.connect(server.make_dsn(user="carol", password="right")) as connection:
        assert connection.info.user == "carol"


def test_a_tablespace_holds_a_table_in_its_own_folder(new_server: NewServer) -> None:
    server = new_server()
    folder = server.tablespace("fast")
    server.sql("create table there (n int) tablespace fast")
    path = server.value("select pg_relation_filepath('there')")
    assert path.startswith("pg_tblspc/")
    assert (server.data_directory / path).resolve().is_relative_to(folder)


@pytest.mark.pg("14-18")
def test_a_copied_directory_is_adopted_beside_the_running_original(new_server: NewServer, open_folder: Path) -> None:
    server = new_server()
    server.sql("create table kept as select generate_series(1, 10) as n")
    server.run("pg_basebackup", "-D", open_folder / "copy", "-c", "fast")
    restored = new_server.adopt(open_folder / "copy")
    assert restored.port != server.port
    assert restored.value("select count(*) from kept") == 10
    restored.destroy()
    assert (open_folder / "copy" / "PG_VERSION").is_file()
    assert server.value("select count(*) from kept") == 10


def test_a_program_that_fails_says_what_it_said(server: Server) -> None:
    with pytest.raises(ProgramFailed, match="no_such_database"):
        server.run("psql", "-d", "no_such_database", "-c", "select 1")
    assert server.script("select 1;\nselect 2;") == "1\n2\n"


def test_a_cut_proxy_breaks_connections_until_it_resumes(server: Server, proxy: Callable[[Server], Proxy]) -> None:
    wire = proxy(server)
    with contextlib.closing(psycopg.connect(wire.dsn)) as connection:
        assert connection.execute("select 1").fetchone() == (1,)
        wire.cut()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(wire.dsn)
    wire.resume()
    with psycopg.connect(wire.dsn) as connection:
        assert connection.execute("select 2").fetchone() == (2,)


def test_a_stalled_proxy_answers_late_but_whole(server: Server, proxy: Callable[[Server], Proxy]) -> None:
    wire = proxy(server)
    with psycopg.connect(wire.dsn) as connection:
        wire.stall()
        connection.pgconn.send_query(b"select 7")
        time.sleep(0.3)
        connection.pgconn.consume_input()
        assert connection.pgconn.is_busy()
        wire.resume()
        result = connection.pgconn.get_result()
        assert result is not None
        assert result.get_value(0, 0) == b"7"
        assert connection.pgconn.get_result() is None


def test_a_proxy_cuts_after_the_bytes_it_was_told(server: Server, proxy: Callable[[Server], Proxy]) -> None:
    wire = proxy(server)
    with contextlib.closing(psycopg.connect(wire.dsn)) as connection:
        before = wire.bytes_from_server
        wire.cut_after(300_000)
        received = 0
        rows = "copy (select repeat('x', 999) from generate_series(1, 10000)) to stdout"
        with pytest.raises(psycopg.OperationalError), connection.cursor() as cursor, cursor.copy(rows) as copy:  # noqa: PT012
            for block in copy:
                received += len(block)
        assert wire.bytes_from_server - before == 300_000
        assert 250_000 < received <= 300_000


def test_a_slow_proxy_delays_each_answer(server: Server, proxy: Callable[[Server], Proxy]) -> None:
    wire = proxy(server)
    with psycopg.connect(wire.dsn) as connection:
        wire.delay = 0.1
        begun = time.monotonic()
        connection.execute("select 1")
        assert time.monotonic() - begun >= 0.2
