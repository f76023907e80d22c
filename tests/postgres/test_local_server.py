"""Starting and stopping servers on this machine: ready when it says so, its reason when not, no process left."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from datamanager.base.errors import Busy, Cancelled, ServerDidNotStart, ServerUnreachable
from datamanager.base.pipeline import StopToken
from datamanager.postgres.account import service_account
from datamanager.postgres.connection import connect
from datamanager.postgres.local_server import LocalServer, relevant_lines
from datamanager.postgres.programs import find_programs
from tests.conftest import NewServer
from tests.servers import Server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def processes_of(data_directory: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["name"]):
        try:
            if not process.name().startswith(("postgres", "pg_ctl")) or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if process.cwd() == str(data_directory) or process.environ().get("PGDATA") == str(data_directory):
                found.append(process)
        except psutil.Error:
            continue
    return found


def make_local(server: Server, options: Mapping[str, str] | None = None, *, port: int = 0) -> LocalServer:
    account = service_account(server.data_directory)
    sockets = server.folder / "so ckets"
    sockets.mkdir(mode=0o700, exist_ok=True)
    account.take([sockets])
    return LocalServer(
        server.data_directory,
        find_programs(server.major, server.bin, account=account),
        account,
        sockets,
        port or free_port(),
        options or {},
        server.folder / "local.log",
        on_executed=lambda text: None,
    )


@contextmanager
def ending(local: LocalServer) -> Iterator[LocalServer]:
    try:
        yield local
    finally:
        local.stop("immediate")


def wait_until_running(local: LocalServer) -> None:
    deadline = time.monotonic() + 20
    while not local.is_running and time.monotonic() < deadline:
        time.sleep(0.05)
    assert local.is_running


@pytest.mark.pg("14-18,15-debian")
def test_a_started_server_answers_and_a_stopped_one_leaves_no_process(new_server: NewServer) -> None:
    server = new_server(start=False)
    odd = 'it\'s "odd" $HOME `x` \\ %p'
    with StopToken() as stop, ending(make_local(server, {"archive_cleanup_command": odd, "work_mem": "7MB"})) as local:
        assert not local.is_running
        local.start(stop)
        assert local.is_running
        with connect(local.address) as connection:
            assert connection.execute("SHOW archive_cleanup_command").fetchall() == [(odd,)]
            assert connection.execute("SHOW work_mem").fetchall() == [("7MB",)]
            assert connection.execute("SHOW listen_addresses").fetchall() == [("",)]
        assert local.log_file.stat().st_mode & 0o777 == 0o600
        with pytest.raises(Busy):
            local.start(stop)
        local.stop()
        assert not local.is_running
        assert processes_of(server.data_directory) == []
        local.stop()
        local.start(stop)
        local.stop("immediate")
        assert processes_of(server.data_directory) == []


@pytest.mark.pg("14-18")
def test_a_server_that_dies_says_why(new_server: NewServer) -> None:
    server = new_server(start=False)
    local = make_local(server, {"shared_preload_libraries": "no_such_library"})
    began = time.monotonic()
    with StopToken() as stop, pytest.raises(ServerDidNotStart, match=r"FATAL:.*no_such_library") as refused:
        local.start(stop)
    assert time.monotonic() - began < 15
    assert str(local.log_file) in refused.value.hint
    assert "Install the library" in refused.value.hint
    assert processes_of(server.data_directory) == []


def test_the_reason_is_taken_from_the_last_start_only(new_server: NewServer) -> None:
    server = new_server(start=False)
    with StopToken() as stop:
        with pytest.raises(ServerDidNotStart, match="no_such_library"):
            make_local(server, {"shared_preload_libraries": "no_such_library"}).start(stop)
        with pytest.raises(ServerDidNotStart, match="nonsense") as second:
            make_local(server, {"nonsense": "1"}).start(stop)
    assert "no_such_library" not in second.value.message


def test_a_port_in_use_is_named_as_the_reason(new_server: NewServer) -> None:
    first, second = new_server(start=False), new_server(start=False)
    with StopToken() as stop, ending(make_local(first)) as running:
        running.start(stop)
        account = service_account(second.data_directory)
        programs = find_programs(second.major, second.bin, account=account)
        taken = LocalServer(
            second.data_directory, programs, account, first.folder / "so ckets", running.port, {},
            second.folder / "local.log", on_executed=lambda text: None,
        )  # fmt: skip
        with pytest.raises(ServerDidNotStart) as refused:
            taken.start(stop)
        assert "port" in refused.value.hint
        assert running.is_running
    assert processes_of(second.data_directory) == []


def test_a_socket_path_that_is_too_long_is_refused_before_the_start(new_server: NewServer) -> None:
    server = new_server(start=False)
    account = service_account(server.data_directory)
    local = LocalServer(
        server.data_directory, find_programs(18, server.bin), account, Path("/tmp") / ("x" * 100), 5432, {},
        server.folder / "local.log", on_executed=lambda text: None,
    )  # fmt: skip
    with StopToken() as stop, pytest.raises(ServerDidNotStart, match="bytes"):
        local.start(stop)


@pytest.mark.pg("14-18")
@pytest.mark.requirement("R32")
def test_a_server_in_long_recovery_is_waited_for_reported_as_starting_and_ended_when_stopped(
    new_server: NewServer,
) -> None:
    server = new_server()
    server.stop()
    (server.data_directory / "standby.signal").touch()
    with StopToken() as stop, ending(make_local(server, {"hot_standby": "off"})) as local:
        raised: list[Cancelled] = []

        def start() -> None:
            try:
                local.start(stop)
            except Cancelled as error:
                raised.append(error)

        thread = threading.Thread(target=start)
        thread.start()
        wait_until_running(local)
        deadline = time.monotonic() + 10
        hint = ""
        while "wait until it accepts" not in hint and time.monotonic() < deadline:
            with pytest.raises(ServerUnreachable) as refused:
                connect(local.address)
            hint = refused.value.hint
        assert "wait until it accepts" in hint
        assert thread.is_alive()
        began = time.monotonic()
        stop.stop("enough")
        thread.join(timeout=10)
        assert time.monotonic() - began < 10
    assert [type(error) for error in raised] == [Cancelled]
    assert processes_of(server.data_directory) == []


def test_a_limit_ends_the_wait_and_the_server(new_server: NewServer) -> None:
    server = new_server()
    server.stop()
    (server.data_directory / "standby.signal").touch()
    local = make_local(server, {"hot_standby": "off"})
    with StopToken() as stop, pytest.raises(ServerDidNotStart):
        local.start(stop, limit_seconds=2)
    assert processes_of(server.data_directory) == []


def test_stopping_at_once_leaves_no_newborn_server(new_server: NewServer) -> None:
    server = new_server(start=False)
    for delay in (0.0, 0.02, 0.06, 0.15):
        with StopToken() as stop, ending(make_local(server)) as local:
            timer = threading.Timer(delay, stop.stop, ["enough"])
            timer.start()
            try:
                local.start(stop)
            except Cancelled:
                assert processes_of(server.data_directory) == []
            timer.join()
        assert processes_of(server.data_directory) == []


def test_a_server_that_does_not_react_is_killed(new_server: NewServer) -> None:
    server = new_server(start=False)
    with StopToken() as stop:
        local = make_local(server)
        local.start(stop)
        found = processes_of(server.data_directory)
        postmaster = min(found, key=lambda process: process.create_time())
        postmaster.suspend()
        local.stop("immediate", limit_seconds=1)
    assert processes_of(server.data_directory) == []


def test_a_pid_file_that_names_another_program_is_not_a_running_server(new_server: NewServer) -> None:
    server = new_server(start=False)
    pid_file = server.data_directory / "postmaster.pid"
    pid_file.write_text(f"{psutil.Process().pid}\n")
    try:
        assert not make_local(server).is_running
    finally:
        # The fixture ends whatever process the file names, which is this one.
        pid_file.unlink()


@pytest.mark.parametrize(
    ("log", "kept"),
    [
        ("2026-01-01 [1] LOG:  starting\n2026-01-01 [1] FATAL:  no\n2026 [1] HINT:  do\n", "FATAL:  no | HINT:  do"),
        ("x [1] PANIC:  a\nx [2] LOG:  b\nx [3] DETAIL:  of b\n", "PANIC:  a"),
        ("only this\n\n", "only this"),
        ("", ""),
    ],
)
def test_the_lines_that_explain_an_end_are_picked(log: str, kept: str) -> None:
    assert relevant_lines(log) == kept
