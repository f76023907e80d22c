"""Clusters that change while they are backed up, and clusters that are unlike the usual one."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from datamanager.base.errors import DataManagerError, StreamBroken
from datamanager.engine.restore.plan import RestoreOptions, plan_restore
from datamanager.engine.restore.run import apply_restore
from datamanager.repository.manifest import Manifest
from tests.conftest import NewServer
from tests.engine.conftest import Heard, Works, outside, pg
from tests.engine.test_cancel import at, ballast, wait_until_nothing_is_left
from tests.servers import Server, hand_over, process_options


@contextmanager
def repeating(act: Callable[[int], object]) -> Iterator[list[int]]:
    """Call ``act`` with 0, 1, 2, … in a thread; yields the numbers done. What it raises is raised at the end."""
    ending = threading.Event()
    done: list[int] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            while not ending.is_set():
                act(len(done))
                done.append(len(done))
        except BaseException as error:  # noqa: BLE001 - raised below
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield done
    finally:
        ending.set()
        thread.join()
    if failures:
        raise failures[0]


@pytest.mark.pg("14,15,18")
def test_tables_and_databases_that_come_and_go_during_the_backup_do_no_harm(
    new_server: NewServer, works: Works, pg_version: str
) -> None:
    server = new_server()
    ballast(server, 16)
    server.sql("create database going")
    for number in range(40):
        server.sql(f"create table gone_{number} as select generate_series(1, 500) n")
    server.sql("create table kept as select generate_series(1, 5000) n")
    strategy = " strategy file_copy" if server.major >= 15 else ""

    def change(turn: int) -> None:
        server.sql(f"create table new_{turn} as select generate_series(1, 1000) n")
        server.sql(f"create index on new_{turn} (n)")
        server.sql(f"drop table if exists gone_{turn}")
        server.sql(f"drop table if exists new_{turn - 3 if turn > 3 else 'none'}")
        if turn == 3:
            server.sql("drop database going")
            server.sql(f"create database coming{strategy}")
        server.sql(f"truncate new_{turn}")
        server.sql("vacuum full kept")

    with repeating(change) as turns:
        result = works.back_up(server, max_rate_kib=16384)
    assert len(turns) > 5
    assert result.warnings == []
    target = works.restore(result.manifest)
    with works.clone(target, result.manifest, pg_version) as clone:
        with psycopg.connect(clone.dsn) as connection:
            assert connection.execute("select count(*) from kept").fetchone() == (5000,)
            names = {name for (name,) in connection.execute("select datname from pg_database")}
        assert "coming" in names
        assert "going" not in names
        pg(clone.programs, "pg_amcheck", "--all", "--install-missing", dsn=clone.dsn)
    pg(clone.programs, "pg_checksums", "--check", "-D", target)


@pytest.mark.pg("14,17,18")
@pytest.mark.decision(1)
def test_a_backup_during_which_a_tablespace_is_created_is_not_kept_for_its_replay_would_reach_the_live_one(
    new_server: NewServer, works: Works
) -> None:
    server = new_server()
    ballast(server, 12)

    def create() -> None:
        server.tablespace("late")
        server.sql("create table in_late tablespace late as select generate_series(1, 1000) n")

    with pytest.raises(StreamBroken, match=r"a tablespace was created in .*tablespace-late while the backup ran"):
        works.back_up(server, heard=at(4 << 20, create), max_rate_kib=16384)
    wait_until_nothing_is_left(server, works, 3)
    manifest = works.back_up(server).manifest
    assert [one.location for one in outside(manifest)] == [str(server.folder / "tablespace-late")]


@pytest.mark.pg("14,18")
@pytest.mark.decision(1)
def test_a_tablespace_dropped_during_the_backup_costs_nothing(
    new_server: NewServer, works: Works, pg_version: str
) -> None:
    server = new_server()
    ballast(server, 12)
    place = server.tablespace("leaving")
    server.sql("create table in_it tablespace leaving as select generate_series(1, 1000) n")

    def drop() -> None:
        server.sql("drop table in_it")
        server.sql("drop tablespace leaving")

    manifest = works.back_up(server, heard=at(4 << 20, drop), max_rate_kib=16384).manifest
    target = works.restore(manifest)
    with works.clone(target, manifest, pg_version) as clone, psycopg.connect(clone.dsn) as connection:
        assert connection.execute("select count(*) from pg_tablespace").fetchone() == (2,)
    assert place.is_dir()
    assert list((target / "pg_tblspc").iterdir()) == []


@pytest.mark.pg("14,18")
def test_wal_segments_of_64_mb_and_an_empty_cluster_come_back(
    new_server: NewServer, works: Works, pg_version: str
) -> None:
    server = new_server(initdb_args=("--data-checksums", "--wal-segsize=64"), config={"min_wal_size": "128MB"})
    server.sql("create database empty_one")
    manifest = works.back_up(server).manifest
    assert manifest.wal_segment_size == 64 << 20
    target = works.restore(manifest)
    with works.clone(target, manifest, pg_version) as clone, psycopg.connect(clone.dsn) as connection:
        assert connection.execute("show wal_segment_size").fetchone() == ("64MB",)


@pytest.mark.skipif(sys.platform == "win32", reason="modes of files are POSIX")
def test_a_key_file_that_nobody_may_write_comes_back_for_a_caller_who_is_not_root(
    new_server: NewServer, works: Works
) -> None:
    server = new_server()
    secret = server.data_directory / "server.key"
    secret.write_bytes(b"a key" * 1000)
    secret.chmod(0o400)
    hand_over(secret)
    manifest = works.back_up(server).manifest
    assert restore_as_servers_account(works, manifest, works.folder / "restored") == ""
    restored = works.folder / "restored" / "server.key"
    assert restored.read_bytes() == secret.read_bytes()
    assert restored.stat().st_mode & 0o777 == 0o400
    closed = works.folder / "closed"
    closed.mkdir(mode=0o000)
    if process_options():
        refused = restore_as_servers_account(works, manifest, closed / "below" / "restored")
        assert refused.startswith("TargetUnfit: ")
        assert "no right to write" in refused


def restore_as_servers_account(works: Works, manifest: Manifest, target: Path) -> str:
    """Restore in a child of the servers' account, which is not root, and return the error it met.

    A fork, because that account may not enter the folder of our own interpreter.
    """
    hand_over(works.folder / "repository")
    ours, childs = socket.socketpair()
    child = os.fork()
    if child == 0:
        said = "nothing"
        try:
            options = process_options()
            if options:
                os.setgroups([])
                os.setgid(options["group"])
                os.setuid(options["user"])
            said = restore_as_caller(works, manifest, target)
        finally:
            childs.sendall(said.encode())
            os._exit(0)
    childs.close()
    with ours, ours.makefile("rb") as answer:
        said = answer.read().decode()
    os.waitpid(child, 0)
    return said


def restore_as_caller(works: Works, manifest: Manifest, target: Path) -> str:
    try:
        plan = plan_restore(works.reopened(), manifest, RestoreOptions(target))
        apply_restore(works.reopened(), plan, works.stop, Heard())
    except Exception as error:  # noqa: BLE001 - told to the parent
        return f"{type(error).__name__}: {error}"
    return ""


# -- standbys --


def standby_of(primary: Server, new_server: NewServer, folder: Path) -> Server:
    primary.run("pg_basebackup", "-D", folder, "-c", "fast", "-X", "fetch", "-R")
    # What pg_basebackup writes names options that the libpq of some builds does not know.
    conninfo = f"host={primary.host} port={primary.port} user={primary.superuser}"
    return new_server.adopt(folder, config={"primary_conninfo": conninfo})


@pytest.mark.pg("14,18")
@pytest.mark.decision(19)
def test_a_standby_is_backed_up_and_its_clone_opens_as_a_server_of_its_own(
    new_server: NewServer, works: Works, pg_version: str
) -> None:
    primary = new_server()
    primary.sql("create table kept as select generate_series(1, 5000) n")
    standby = standby_of(primary, new_server, works.folder / "standby")
    primary.sql("insert into kept select generate_series(1, 5000)")
    deadline = time.monotonic() + 20
    while standby.value("select count(*) from kept") < 10000 and time.monotonic() < deadline:
        time.sleep(0.05)
    # A backup of a standby ends where its files are known to be, which a restartpoint brings forward.
    primary.sql("checkpoint")
    standby.sql("checkpoint")
    result = works.back_up(standby)
    target = works.restore(result.manifest)
    with works.clone(target, result.manifest, pg_version) as clone, psycopg.connect(clone.dsn) as connection:
        assert connection.execute("select pg_is_in_recovery(), count(*) from kept").fetchone() == (False, 10000)


@pytest.mark.decision(19)
def test_a_standby_that_is_promoted_midway_fails_the_backup_and_the_next_one_works(
    new_server: NewServer, works: Works
) -> None:
    primary = new_server()
    primary.sql("create table kept as select generate_series(1, 5000) n")
    standby = standby_of(primary, new_server, works.folder / "standby")
    ballast(standby, 24)

    def promote() -> None:
        standby.value("select pg_promote(true, 30)")

    with pytest.raises(StreamBroken, match="promoted") as failed:
        works.back_up(standby, heard=at(6 << 20, promote), max_rate_kib=16384)
    assert "run the backup again" in failed.value.hint
    wait_until_nothing_is_left(standby, works)
    result = works.back_up(standby)
    assert result.manifest.timeline == 2


def test_a_restore_that_was_planned_before_the_directory_was_filled_writes_nothing_over_it(
    new_server: NewServer, works: Works
) -> None:
    manifest = works.back_up(new_server()).manifest
    target = works.folder / "restored"
    plan = works.plan(manifest, target)
    (target / "base").mkdir(parents=True)
    (target / "PG_VERSION").write_text("somebody else's\n")
    with pytest.raises(DataManagerError):
        apply_restore(works.reopened(), plan, works.stop, Heard())
    assert (target / "PG_VERSION").read_text() == "somebody else's\n"
    assert not os.path.lexists(target / "global" / "pg_control")
