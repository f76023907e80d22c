"""When the server cannot, or must not, send only what changed: everything is read in the same run, and the reason told;
and what an increment costs when nothing changed (docs/postgres.md, decisions 7, 9, 19 and 20)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from datamanager.base.errors import DataManagerError
from datamanager.repository.manifest import Manifest
from tests.conftest import NewServer
from tests.engine.conftest import Heard, Works, pg, programs_of
from tests.engine.increments.test_decisions import add_table, count, on_clone
from tests.engine.increments.test_equality import QUIET
from tests.engine.increments.wire import Wire
from tests.engine.test_cancel import at, ballast
from tests.servers import Server


def assert_whole(works: Works, manifest: Manifest, version: str, tables: dict[str, int]) -> None:
    """The backup is verified by PostgreSQL, starts, and holds these numbers of rows."""
    exported = works.export(manifest, f"export-{manifest.backup}").target
    assert "successfully verified" in pg(programs_of(version, manifest.major), "pg_verifybackup", exported)

    def look(dsn: str) -> None:
        assert {name: count(dsn, f"select count(*) from {name}") for name in tables} == tables

    on_clone(works, manifest, version, look)


# -- 7: the parent -----------------------------------------------------------------------------------------------------


@pytest.mark.pg("17")
@pytest.mark.decision(7)
def test_a_parent_that_cannot_be_read_is_no_parent(new_server: NewServer, works: Works, pg_version: str) -> None:
    server = new_server(config=QUIET)
    add_table(server, "kept")
    works.back_up(server)
    for name in ("meta", "meta-b"):
        for path in (works.folder / "repository" / name).rglob("*"):
            if path.is_file():
                path.write_bytes(bytes(path.stat().st_size))
    result = works.back_up(server)
    assert result.manifest.method == "full"
    assert any("nothing of backup" in one for one in result.warnings)
    assert_whole(works, result.manifest, pg_version, {"kept": 20000})
    assert works.back_up(server).manifest.method == "native"


# -- 9: what nothing costs ---------------------------------------------------------------------------------------------


@pytest.mark.pg("17,18")
@pytest.mark.decision(9)
def test_a_stuck_archiver_holds_up_no_increment_and_an_idle_one_sends_next_to_nothing(
    new_server: NewServer, works: Works
) -> None:
    server = new_server(config={**QUIET, "archive_mode": "on", "archive_command": "false"})
    add_table(server, "much", 200000)
    server.sql("checkpoint")
    works.back_up(server)
    works.back_up(server)
    line = "# a line that leaves no trace in the WAL"
    with (server.data_directory / "postgresql.conf").open("a") as file:
        file.write(f"{line}\n")
    idle = works.back_up(server, around=(wire := Wire()))
    assert idle.manifest.method == "native"
    assert idle.seconds < 20  # with WAIT it would never end
    assert server.value("select failed_count > 0 and archived_count = 0 from pg_stat_archiver")
    total = int(server.value("select sum(pg_database_size(oid)) from pg_database"))
    assert wire.sent_bytes < total / 4
    assert idle.manifest.bytes_stored < 512 << 10
    exported = works.export(idle.manifest).target
    assert (exported / "postgresql.conf").read_text().endswith(f"{line}\n")


# -- 19: standbys ------------------------------------------------------------------------------------------------------


@pytest.fixture
def standby(new_server: NewServer, open_folder: Path) -> Iterator[tuple[Server, Server]]:
    """A primary that summarizes its WAL, and a standby that follows it."""
    primary = new_server(config=QUIET)
    add_table(primary, "kept")
    folder = open_folder / "standby"
    primary.run("pg_basebackup", "-D", folder, "-c", "fast", "-R", "--no-sync")
    # Of what -R writes, the walreceiver of builds that bring another libpq along knows but the oldest words.
    conninfo = f"host={primary.host} port={primary.port} user={primary.superuser}"
    with (folder / "postgresql.auto.conf").open("a") as file:
        file.write(f"primary_conninfo = '{conninfo}'\n")
    follower = new_server.adopt(folder)
    catch_up(primary, follower)
    yield primary, follower
    follower.stop("immediate")


def catch_up(primary: Server, follower: Server) -> None:
    """Wait until the standby has replayed what the primary has written, and make that a restart point."""
    primary.sql("checkpoint")
    position = primary.value("select pg_current_wal_lsn()::text")
    wait_for(follower, f"select pg_last_wal_replay_lsn() >= '{position}'::pg_lsn")
    follower.sql("checkpoint")


def wait_for(server: Server, question: str) -> None:
    """Ask until the answer is yes; half a minute at most."""
    for _ in range(300):
        if server.value(question):
            return
        server.sql("select pg_sleep(0.1)")
    pytest.fail(f"still not so: {question}\n{server.log[-2000:]}")


@pytest.mark.pg("17,18")
@pytest.mark.decision(19)
def test_a_standby_is_read_in_full_and_after_its_promotion_too_until_a_backup_of_its_own_stands(
    standby: tuple[Server, Server], works: Works, pg_version: str
) -> None:
    primary, follower = standby
    assert works.back_up(primary).manifest.method == "full"
    assert works.back_up(primary).manifest.method == "native"
    add_table(primary, "second")
    catch_up(primary, follower)
    first = works.back_up(follower).manifest
    assert (first.method, "standby" in first.reason) == ("compared", True)
    assert_whole(works, first, pg_version, {"kept": 20000, "second": 20000})
    of_primary = works.back_up(primary).manifest  # its parent came from a standby
    assert (of_primary.method, "primary" in of_primary.reason) == ("compared", True)
    catch_up(primary, follower)
    primary.stop()
    follower.sql("select pg_promote()")
    follower.sql("checkpoint")
    add_table(follower, "third")
    promoted = works.back_up(follower).manifest
    assert promoted.timeline == 2
    assert (promoted.method, "timeline" in promoted.reason) == ("compared", True)
    assert_whole(works, promoted, pg_version, {"kept": 20000, "second": 20000, "third": 20000})
    last = works.back_up(follower).manifest
    assert last.method == "native", last.reason
    assert_whole(works, last, pg_version, {"kept": 20000, "second": 20000, "third": 20000})


@pytest.mark.pg("17,18")
@pytest.mark.decision(19)
def test_a_promotion_midway_leaves_no_backup(standby: tuple[Server, Server], works: Works) -> None:
    _, follower = standby
    ballast(follower, 12)
    heard = at(2 << 20, lambda: follower.sql("select pg_promote()"))
    with pytest.raises(DataManagerError):
        works.back_up(follower, heard=heard, max_rate_kib=8192)
    assert works.repository.backup_ids() == []
    assert follower.value("select pg_is_in_recovery()") is False


# -- 20: summaries that are gone ---------------------------------------------------------------------------------------


def summaries_of(server: Server) -> list[Path]:
    return sorted((server.data_directory / "pg_wal" / "summaries").glob("*.summary"))


@pytest.mark.pg("17,18")
@pytest.mark.decision(20)
def test_without_summaries_everything_is_read_and_the_reason_stands_in_the_backup(
    new_server: NewServer, works: Works, pg_version: str
) -> None:
    server = new_server(config={**QUIET, "summarize_wal": "off"})
    add_table(server, "kept")
    works.back_up(server)
    off = works.back_up(server).manifest
    assert (off.method, off.reason) == ("compared", "the server keeps no WAL summaries (summarize_wal is off)")
    server.sql("alter system set summarize_wal = on")
    server.reload()
    server.sql("checkpoint")
    gap = works.back_up(server).manifest
    assert gap.method in ("native", "compared")  # summaries may reach back to the parent's checkpoint by themselves
    assert gap.method == "native" or gap.reason
    first = works.back_up(server).manifest
    assert first.method == "native", first.reason
    for path in summaries_of(server):
        path.unlink()
    add_table(server, "second")
    gone = works.back_up(server).manifest
    assert gone.method == "compared"
    assert "summaries" in gone.reason
    assert_whole(works, gone, pg_version, {"kept": 20000, "second": 20000})
    assert works.back_up(server).manifest.method == "native"


@pytest.mark.pg("17,18")
@pytest.mark.decision(20)
@pytest.mark.parametrize("fault", ["summaries go after they were looked at", "the upload is refused"])
def test_an_error_of_the_server_becomes_a_full_read_in_the_same_run_once(
    new_server: NewServer, works: Works, pg_version: str, fault: str
) -> None:
    server = new_server(config=QUIET)
    add_table(server, "kept")
    parent = works.back_up(server).manifest
    server.sql("delete from kept where n > 19000")
    server.sql("checkpoint")
    wait_for(server, f"select count(*) > 0 from pg_available_wal_summaries() where start_lsn >= '{parent.start_lsn}'")
    wire, heard = Wire(), Heard()
    slots: list[str] = []

    def lose(slot: str) -> None:
        slots.append(slot)
        for path in summaries_of(server) if fault.startswith("summaries") else []:
            path.unlink()

    if fault.startswith("the upload"):
        wire = Wire(mangle_upload=lambda upload: upload.replace(b'"Files"', b'"Fails"'))
    result = works.back_up(server, around=wire, heard=heard, on_slot=lose)
    assert (result.manifest.method, wire.runs, len(slots)) == ("compared", 2, 2)
    assert [one is None for one in wire.uploads] == [False, True]
    assert result.manifest.reason
    assert any("everything is read instead" in one for one in heard.warnings)
    assert server.slots_left() == []
    assert_whole(works, result.manifest, pg_version, {"kept": 19000})


@pytest.mark.pg("17")
@pytest.mark.decision(20)
def test_a_role_that_may_only_replicate_takes_increments(new_server: NewServer, works: Works, pg_version: str) -> None:
    server = new_server(config=QUIET)
    add_table(server, "kept")
    server.sql("create role carrier login replication")
    dsn = server.make_dsn(user="carrier")
    with psycopg.connect(dsn) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("select pg_read_file('postgresql.conf')")
    works.back_up(server, dsn=dsn)
    server.sql("delete from kept where n > 19000")
    second = works.back_up(server, dsn=dsn).manifest
    assert second.method == "native", second.reason
    assert_whole(works, second, pg_version, {"kept": 19000})
