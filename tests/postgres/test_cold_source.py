"""The cold source by itself: what it reads, what it leaves out and says, when it refuses, and what pg_control tells."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from datamanager.base.clock import SystemClock
from datamanager.base.errors import Busy, Cancelled, IntegrityError, NotFound, RightMissing, ServerMismatch, ServerUnfit
from datamanager.base.pipeline import StopToken
from datamanager.postgres.account import CurrentAccount
from datamanager.postgres.cold_facts import cold_facts, find_config_file, read_last_start
from datamanager.postgres.cold_source import ColdSource
from datamanager.postgres.control_file import (
    parse_control_bytes,
    parse_control_data,
    read_control_bytes,
)
from datamanager.postgres.server_manifest import check_manifest, manifest_files, wal_ranges
from datamanager.postgres.source import FileReceiver, SourceEnd, SourceStart
from datamanager.postgres.stopped_server import server_process
from datamanager.postgres.wal_position import end_of_record
from tests.conftest import NewServer
from tests.servers import Server


class Received(FileReceiver):
    """Keeps everything."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.modes: dict[str, int] = {}
        self.directories: dict[str, int] = {}
        self.begun: SourceStart | None = None
        self._open = ""

    def start(self, start: SourceStart) -> None:
        self.begun = start

    def begin_file(self, path: bytes, mode: int, size: int) -> None:
        self._open = path.decode()
        self.files[self._open] = b""
        self.modes[self._open] = mode

    def write(self, data: memoryview) -> None:
        self.files[self._open] += bytes(data)

    def end_file(self) -> None:
        self._open = ""

    def directory(self, path: bytes, mode: int) -> None:
        self.directories[path.decode()] = mode


def received(data_directory: Path, *, max_rate: int | None = None) -> tuple[Received, SourceEnd]:
    into = Received()
    with StopToken() as stop:
        return into, ColdSource(data_directory, SystemClock(), max_rate=max_rate).run(into, stop)


@contextlib.contextmanager
def account_of(uid: int) -> Iterator[None]:
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def stopped(new_server: NewServer) -> Server:
    server = new_server()
    server.tablespace("fast")
    server.sql("create table plain as select n from generate_series(1, 3000) n")
    server.sql("create table quick tablespace fast as select n from generate_series(1, 3000) n")
    server.stop()
    return server


@pytest.mark.pg("14-18,15-debian")
def test_the_control_file_read_as_it_lies_is_what_pg_controldata_says(new_server: NewServer) -> None:
    server = new_server(config={"wal_log_hints": "on", "max_connections": "61", "wal_level": "logical"})
    server.sql("create table plain (n int)")
    for mode in ("fast", "immediate"):
        server.stop(mode)
        said = parse_control_data(server.run("pg_controldata", "-D", server.data_directory).stdout)
        assert parse_control_bytes(read_control_bytes(server.data_directory)) == said
        assert said.is_clean == (mode == "fast")
        server.start()


@pytest.mark.pg("14-18")
def test_the_end_of_the_checkpoint_is_where_pg_waldump_finds_no_further_record(new_server: NewServer) -> None:
    server = new_server()
    for _ in range(6):
        server.sql("select txid_current()")
        server.stop()
        control = parse_control_bytes(read_control_bytes(server.data_directory))
        end = end_of_record(server.data_directory / "pg_wal", control)
        words = ("-p", server.data_directory / "pg_wal", "-t", str(control.timeline), "-s", str(control.checkpoint))
        done = server.run("pg_waldump", *words, check=False)
        found = re.search(r"at ([0-9A-F]+/[0-9A-F]+)[^/]*$", done.stderr.split("error in WAL record")[-1])
        assert found is not None, done.stderr
        assert str(end).split("/")[1].zfill(8) == found[1].split("/")[1].zfill(8)
        server.start()


@pytest.mark.pg("14-18")
def test_files_arrive_as_they_lie_and_the_control_file_comes_last(stopped: Server) -> None:
    into, end = received(stopped.data_directory)
    assert into.begun is not None
    (space,) = into.begun.tablespaces
    assert space.location == str(stopped.folder / "tablespace-fast")
    for path, data in into.files.items():
        place = stopped.data_directory / path
        assert place.read_bytes() == data
        assert place.stat().st_mode & 0o777 == into.modes[path]
    assert into.begun.total_bytes == sum(map(len, into.files.values())) - len(into.files["global/pg_control"])
    assert list(into.files)[-1] == "global/pg_control"
    assert any(path.startswith(f"pg_tblspc/{space.oid}/PG_") for path in into.files)
    assert {"pg_wal", "pg_wal/archive_status", "pg_tblspc", "pg_replslot", "pg_notify"} <= into.directories.keys()
    check_manifest(end.manifest)
    listed = {one.path.decode(): one.size for one in manifest_files(end.manifest)}
    assert listed == {path: len(data) for path, data in into.files.items() if not path.startswith("pg_wal/")}
    (needed,) = wal_ranges(end.manifest)
    assert (needed.start, needed.end, needed.timeline) == (into.begun.lsn, end.lsn, end.timeline)
    assert (end.checksum_failure, end.warnings, end.notices) == (False, (), ())


def test_what_belongs_to_a_moment_is_left_out_and_links_are_told(stopped: Server) -> None:
    root = stopped.data_directory
    folder = next(one for one in (root / "base").iterdir() if one.is_dir())
    out = {
        "postmaster.opts": b"x", "backup_manifest": b"x", "postgresql.auto.conf.tmp": b"x", "pg_notify/0000": b"x",
        "pg_replslot/slot/state": b"x", "pg_stat_tmp/global.stat": b"x", "pg_subtrans/0000": b"x",
        "pg_wal/summaries/1.summary": b"x", "global/pg_internal.init.77": b"x", "base/pgsql_tmp/pgsql_tmp1.0": b"x",
        f"base/{folder.name}/t3_16999": b"x", f"base/{folder.name}/t3_16999_fsm.1": b"x", "postmaster.pid": b"",
    }  # fmt: skip
    kept = {"t3_16999": b"mine", "backup_label.old": b"x", "pg_wal/00000002.history": b"1", "log/server.log": b"x"}
    for name, data in {**out, **kept}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    (root / "postgresql.conf").rename(stopped.folder / "elsewhere.conf")
    (root / "postgresql.conf").symlink_to(stopped.folder / "elsewhere.conf")
    (root / "base" / "link").symlink_to(stopped.folder)
    (root / "pg_tblspc" / "notes.txt").touch()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "s"))
        into, end = received(root)
    assert not out.keys() & into.files.keys()
    assert {name: into.files[name] for name in kept} == kept
    assert "postgresql.conf" not in into.files
    assert sorted(end.warnings) == sorted(
        [
            f"{root}/postgresql.conf is a link, which was not followed",
            f"{root}/base/link is a link, which was not followed",
            f"{root}/pg_tblspc/notes.txt is no tablespace and was left out",
            f"{root}/s is no regular file and was left out",
        ]
    )


def test_a_linked_pg_wal_is_followed(stopped: Server) -> None:
    root = stopped.data_directory
    (root / "pg_wal").rename(stopped.folder / "wal elsewhere")
    (root / "pg_wal").symlink_to(stopped.folder / "wal elsewhere")
    into, end = received(root)
    assert [one for one in into.files if one.startswith("pg_wal/0000")]
    assert end.warnings == ()


def test_a_running_server_is_refused_whether_or_not_its_pid_file_is_there(new_server: NewServer) -> None:
    server = new_server()
    with pytest.raises(Busy, match="a server runs on") as refused:
        ColdSource(server.data_directory, SystemClock())
    assert "--cold" in refused.value.hint
    kept = (server.data_directory / "postmaster.pid").read_bytes()
    (server.data_directory / "postmaster.pid").unlink()
    try:
        with pytest.raises(Busy):
            ColdSource(server.data_directory, SystemClock())
    finally:
        (server.data_directory / "postmaster.pid").write_bytes(kept)


def test_a_pid_file_that_a_killed_server_left_does_not_hinder(new_server: NewServer) -> None:
    server = new_server()
    server.kill9()
    assert (server.data_directory / "postmaster.pid").exists()
    _, end = received(server.data_directory)
    assert any("not stopped cleanly (pg_control says: in production)" in one for one in end.warnings)


def test_the_number_of_another_program_in_the_pid_file_is_no_server(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        (tmp_path / "postmaster.pid").write_text(f"{other.pid}\n")
        assert server_process(tmp_path) is None
        other.kill()


@pytest.mark.root
def test_an_account_without_rights_is_told_who_has_them(stopped: Server) -> None:
    owner = pwd.getpwuid(stopped.data_directory.stat().st_uid).pw_name
    with account_of(pwd.getpwnam("nobody").pw_uid), pytest.raises(RightMissing) as refused:
        ColdSource(stopped.data_directory, SystemClock())
    assert "this account (nobody) may not read" in refused.value.message
    assert refused.value.hint == f"Run the command as {owner}, who owns the data directory, or as root."


@pytest.mark.root
def test_a_single_file_without_rights_ends_the_backup(stopped: Server) -> None:
    (stopped.data_directory / "PG_VERSION").chmod(0o644)
    secret = stopped.data_directory / "base" / "secret"
    secret.touch(mode=0o600)  # of root
    with account_of(stopped.data_directory.stat().st_uid), pytest.raises(RightMissing, match=r"may not read .*secret"):
        received(stopped.data_directory)


def test_an_unmounted_tablespace_is_refused(stopped: Server) -> None:
    (stopped.folder / "tablespace-fast").rename(stopped.folder / "gone")
    with pytest.raises(ServerUnfit, match=r"tablespace .* holds no PG_18_") as refused:
        received(stopped.data_directory)
    assert "Mount the volume" in refused.value.hint


def test_a_damaged_missing_or_foreign_control_file_is_refused(stopped: Server) -> None:
    path = stopped.data_directory / "global" / "pg_control"
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    with pytest.raises(IntegrityError, match="pg_control is damaged"):
        ColdSource(stopped.data_directory, SystemClock())
    path.write_bytes(whole[:8] + (1900).to_bytes(4, "little") + whole[12:])
    with pytest.raises(ServerMismatch, match="layout 1900"):
        ColdSource(stopped.data_directory, SystemClock())
    path.write_bytes(whole[:8] + whole[8:12][::-1] + whole[12:])
    with pytest.raises(ServerMismatch, match="byte order"):
        ColdSource(stopped.data_directory, SystemClock())
    path.unlink()
    with pytest.raises(NotFound):
        ColdSource(stopped.data_directory, SystemClock())
    with pytest.raises(NotFound, match="PG_VERSION"):
        ColdSource(stopped.folder, SystemClock())


def test_wal_that_would_lead_a_copy_into_a_live_tablespace_is_refused(new_server: NewServer) -> None:
    server = new_server()
    server.sql("checkpoint")
    server.tablespace("young")
    server.stop("immediate")
    with pytest.raises(ServerUnfit, match="creates a tablespace") as refused:
        received(server.data_directory)
    assert "stop it cleanly" in refused.value.hint
    server.start()
    server.stop()
    received(server.data_directory)


def test_a_missing_checkpoint_is_told(stopped: Server) -> None:
    for segment in (stopped.data_directory / "pg_wal").glob("0000*"):
        segment.unlink()
    _, end = received(stopped.data_directory)
    assert any("pg_wal does not hold the checkpoint" in one for one in end.warnings)
    assert wal_ranges(end.manifest) == []


def test_the_rate_is_kept_and_a_stop_ends_the_wait(stopped: Server) -> None:
    began = time.monotonic()
    into, _ = received(stopped.data_directory, max_rate=32 << 20)
    took = time.monotonic() - began
    total = sum(map(len, into.files.values()))
    assert total / took <= 1.02 * (32 << 20)
    with StopToken() as stop:

        class Stopper(Received):
            def end_file(self) -> None:
                stop.stop("enough")

        with pytest.raises(Cancelled, match="enough"):
            ColdSource(stopped.data_directory, SystemClock(), max_rate=32 << 10).run(Stopper(), stop)


@pytest.mark.pg("15,15-debian,18")
def test_facts_come_from_the_directory_alone(stopped: Server, pg_version: str) -> None:
    source = ColdSource(stopped.data_directory, SystemClock())
    last = read_last_start(stopped.data_directory)
    assert last.bin_directory == stopped.bin.resolve()
    assert last.settings["port"] == str(stopped.port)
    facts = cold_facts(
        stopped.data_directory,
        source.major,
        source.control,
        last=last,
        install_path=None,
        account=CurrentAccount(),
        config_file=find_config_file(stopped.data_directory, last, None),
        settings={},
    )
    said = stopped.run("postgres", "--version").stdout
    assert f" {facts.version} " in f"{said.strip()} "
    assert facts.version_number // 100 == stopped.major * 100
    assert facts.config_file == str(stopped.data_directory / "postgresql.conf")
    assert (facts.data_checksums, facts.wal_level, facts.max_connections) == (True, "replica", 40)
