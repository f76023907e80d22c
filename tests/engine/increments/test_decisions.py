"""What docs/postgres.md says of increments, each by the test that would have caught it: what the data becomes."""

from __future__ import annotations

import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psycopg
import pytest

from datamanager.base.pipeline import StopToken
from datamanager.engine.backup.increment_plan import SLICES, is_uploaded
from datamanager.postgres.page import checksums, relation_segment
from datamanager.postgres.source import FileReceiver, SourceEnd
from datamanager.repository.manifest import Manifest
from tests.conftest import NewServer
from tests.engine.conftest import Heard, Works, pg, programs_of
from tests.engine.increments.test_equality import QUIET
from tests.engine.increments.test_oracle import Oracle
from tests.engine.increments.test_property import remove_trees
from tests.engine.increments.trees import PAGE, files_of
from tests.engine.increments.wire import Wire
from tests.engine.test_damaged_pages import file_of, flip
from tests.servers import Server, copy_data_directory, hand_over


def count(dsn: str, query: str, *settings: str) -> int:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for setting in settings:
            connection.execute(f"set {setting}")
        row = connection.execute(query).fetchone()
    return int(row[0]) if row else -1


def on_clone(works: Works, manifest: Manifest, version: str, look: Callable[[str], object]) -> None:
    """Restore, start, look, remove."""
    target = works.restore(manifest)
    try:
        with works.clone(target, manifest, version) as clone:
            look(clone.dsn)
    finally:
        remove_trees(target)


# -- 2: visibility maps ------------------------------------------------------------------------------------------------


@pytest.mark.pg("17.10,17")
@pytest.mark.decision(2)
def test_rows_deleted_before_an_increment_stay_deleted_for_an_index_only_scan(
    new_server: NewServer, works: Works, pg_version: str
) -> None:
    server = new_server(config=QUIET)
    server.sql("create table visits (n int primary key, body text)")
    server.sql("insert into visits select n, md5(n::text) from generate_series(1, 30000) n")
    server.sql("vacuum (freeze) visits")
    oracle = Oracle(server, works.folder)
    oracle.back_up()
    works.back_up(server)
    server.sql("delete from visits where n between 5000 and 5100")
    oracle.back_up()
    manifest = works.back_up(server, around=(wire := Wire())).manifest
    assert manifest.method == "native"
    assert wire.stubs
    assert [path for path in wire.stubs if path.endswith(b"_vm")] == []
    assert f"{file_of(server, 'visits')}_vm".encode() in wire.whole

    def deleted(dsn: str) -> int:
        query = "select count(*) from visits where n between 5000 and 5100"
        assert count(dsn, query, "enable_indexonlyscan = off", "enable_indexscan = off") == 0
        return count(dsn, query, "enable_seqscan = off", "enable_bitmapscan = off")

    found = []
    on_clone(works, manifest, pg_version, lambda dsn: found.append(deleted(dsn)))
    assert found == [0]
    with works.clone(oracle.combine("combined"), manifest, pg_version) as clone:
        # The scene is the one of the server's bug: with its own increment 17.10 finds rows that are gone.
        assert deleted(clone.dsn) == (101 if pg_version == "17.10" else 0)


# -- 4: another history ------------------------------------------------------------------------------------------------


def put_back(server: Server, copy: Path) -> None:
    """What reverting a virtual machine does to its data directory."""
    server.stop()
    shutil.rmtree(server.data_directory)
    shutil.copytree(copy, server.data_directory, symlinks=True)
    hand_over(server.data_directory)
    server.data_directory.chmod(0o700)
    server.start()


def add_table(server: Server, name: str, rows: int = 20000) -> None:
    server.sql(f"create table {name} as select n, md5((n * {len(name)})::text) t from generate_series(1, {rows}) n")


@pytest.mark.pg("17,18")
@pytest.mark.decision(4)
@pytest.mark.parametrize("far", [True, False], ids=["run past", "just put back"])
def test_a_server_put_back_to_an_older_copy_is_read_in_full_and_nothing_of_the_lost_history_stays(
    new_server: NewServer, works: Works, pg_version: str, far: bool
) -> None:
    server = new_server(config=QUIET)
    add_table(server, "mixed")
    works.back_up(server)
    server.stop()
    copy = works.folder / "cold"
    copy_data_directory(server, copy)
    server.start()
    server.sql("update mixed set t = 'of the lost history' where n % 50 = 0")
    add_table(server, "lost")
    parent = works.back_up(server).manifest
    assert parent.method == "native"
    put_back(server, copy)
    server.sql("update mixed set t = 'of the new history' where n % 70 = 0")
    add_table(server, "new")
    if far:
        while server.value(f"select pg_current_wal_lsn() <= '{parent.stop_lsn}'::pg_lsn + (40 << 20)"):
            add_table(server, "more")
            server.sql("drop table more")
            server.sql("checkpoint")
    wanted = server.sql("select md5(string_agg(t::text, ',' order by n)) from mixed t")
    manifest = works.back_up(server).manifest
    assert (manifest.method, manifest.parent) == ("compared", parent.backup)
    assert "history differs" in manifest.reason
    path = file_of(server, "mixed")

    def look(dsn: str) -> None:
        with psycopg.connect(dsn) as connection:
            assert (
                connection.execute("select md5(string_agg(t::text, ',' order by n)) from mixed t").fetchall() == wanted
            )
            assert connection.execute("select to_regclass('lost'), count(*) from new").fetchall() == [(None, 20000)]

    on_clone(works, manifest, pg_version, look)
    exported = works.export(manifest).target
    assert (exported / path).read_bytes() == (server.data_directory / path).read_bytes()
    assert works.back_up(server).manifest.method == "native"


# -- 5: the audit ------------------------------------------------------------------------------------------------------


@pytest.mark.decision(5)
def test_every_relation_file_is_left_out_of_the_upload_once_in_thirty_increments() -> None:
    paths = [f"base/{database}/{node}".encode() for database in (1, 5) for node in range(16384, 17400)]
    for path in paths:
        assert [is_uploaded(path, number) for number in range(SLICES)].count(False) == 1
    share = [sum(not is_uploaded(path, number) for path in paths) / len(paths) for number in range(SLICES)]
    assert max(share) < 2 / SLICES


@pytest.mark.slow
@pytest.mark.pg("17")
@pytest.mark.decision(5)
def test_thirty_increments_have_every_page_sent_once(new_server: NewServer, works: Works) -> None:
    server = new_server(config=QUIET)
    add_table(server, "plain")
    works.back_up(server)
    seen: set[bytes] = set()
    stubs: set[bytes] = set()
    for _ in range(SLICES):
        result = works.back_up(server, around=(wire := Wire()))
        assert (result.manifest.method, result.warnings) == ("native", [])
        seen |= wire.whole
        stubs |= wire.stubs
    forks = {path for path in stubs if relation_segment(path) is not None}
    assert len(forks) > 200
    assert forks - seen == set()


def tables_by_slice(server: Server, number: int) -> str:
    """A new table that the audit looks at in the increment of this slice."""
    for turn in range(400):
        server.sql(f"create table looked_at_{turn} as select n, md5(n::text) t from generate_series(1, 2000) n")
        if zlib.crc32(file_of(server, f"looked_at_{turn}").encode()) % SLICES == number:
            return f"looked_at_{turn}"
    raise AssertionError("no table fell into the slice")


def edit_behind(server: Server, path: str, block: int, *, lsn_less: int) -> None:
    """Change a page on the disk of the stopped server as a stale write would: valid, with the right checksum."""
    server.stop()
    with (server.data_directory / path).open("r+b") as file:
        file.seek(block * PAGE)
        page = bytearray(file.read(PAGE))
        high, low = struct.unpack_from("<II", page)
        struct.pack_into("<II", page, 0, high, low - lsn_less)
        page[-40:-20] = b"0" * 20
        if checksummed(page):
            (value,) = checksums(np.frombuffer(bytes(page), np.uint8).reshape(1, PAGE), block)
            struct.pack_into("<H", page, 8, int(value))
        file.seek(block * PAGE)
        file.write(page)
    server.start()


def checksummed(page: bytearray) -> bool:
    return struct.unpack_from("<H", page, 8) != (0,)


@pytest.mark.pg("17,18")
@pytest.mark.decision(5)
@pytest.mark.parametrize("with_checksums", [True, False], ids=["checksums", "no checksums"])
def test_a_page_that_changed_without_a_word_in_the_wal_is_found_by_the_audit_which_reads_everything(
    new_server: NewServer, works: Works, with_checksums: bool
) -> None:
    words = ("--data-checksums",) if with_checksums else ("--no-data-checksums",)
    server = new_server(config=QUIET, initdb_args=words)
    table = tables_by_slice(server, 1)
    server.sql(f"vacuum (freeze) {table}")
    works.back_up(server)
    path = file_of(server, table)
    # Without checksums equal LSNs allow other hint bits, so there a stale write shows by its LSN alone.
    edit_behind(server, path, 3, lsn_less=0 if with_checksums else 8)
    unseen = works.back_up(server)
    assert (unseen.manifest.method, unseen.warnings, unseen.manifest.audit["slice"]) == ("native", [], 0)
    held = (server.data_directory / path).read_bytes()
    assert (works.export(unseen.manifest, "unseen").target / path).read_bytes() != held
    found = works.back_up(server, heard=(heard := Heard()), around=(wire := Wire()))
    assert (found.manifest.method, wire.runs) == ("compared", 2)
    assert f"block 3 of {path} is not what backup {unseen.manifest.backup} holds" in found.manifest.reason
    assert found.manifest.audit["mismatches"] == [{"path": path, "block": 3}]
    assert any("everything is read instead" in one for one in heard.warnings)
    assert any("are not what the server held" in one for one in found.manifest.warnings)
    assert (works.export(found.manifest, "found").target / path).read_bytes() == held
    after = works.back_up(server)
    assert (after.manifest.method, after.warnings) == ("native", [])


@pytest.mark.pg("15")
@pytest.mark.decision(5)
def test_a_full_read_makes_the_comparison_of_the_audit_for_every_page(new_server: NewServer, works: Works) -> None:
    server = new_server(config={"autovacuum": "off"})
    add_table(server, "stale")
    server.sql("vacuum (freeze) stale")
    works.back_up(server)
    path = file_of(server, "stale")
    edit_behind(server, path, 70, lsn_less=0)
    found = works.back_up(server)
    assert found.manifest.audit["mismatches"] == [{"path": path, "block": 70}]
    assert any("are not what the server held" in one for one in found.manifest.warnings)
    held = (server.data_directory / path).read_bytes()
    assert (works.export(found.manifest).target / path).read_bytes() == held
    after = works.back_up(server)
    assert (after.warnings, after.manifest.audit["mismatches"]) == ([], [])


# -- 7: the set of files -----------------------------------------------------------------------------------------------


@pytest.mark.pg("17")
@pytest.mark.decision(7)
def test_segments_and_files_that_are_gone_do_not_come_back(new_server: NewServer, works: Works) -> None:
    server = new_server(config=QUIET)
    add_table(server, "big", 1000)
    add_table(server, "dropped")
    server.sql("create database dropped_too")
    server.sql("checkpoint")
    path, gone = file_of(server, "big"), file_of(server, "dropped")
    oid = server.value("select oid from pg_database where datname = 'dropped_too'")
    server.stop()
    # New pages up to a second segment, as a crash after extending leaves them.
    segment = server.data_directory / f"{path}.1"
    with (server.data_directory / path).open("r+b") as file:
        file.truncate(1 << 30)
    segment.write_bytes(bytes(16 * PAGE))
    hand_over(segment)
    server.start()
    first = works.back_up(server).manifest
    assert first.volumes["base"] > 1 << 30
    server.sql("vacuum (truncate true) big")
    server.sql("drop table dropped")
    server.sql("drop database dropped_too")
    server.sql("checkpoint")
    cut = works.back_up(server).manifest
    exported = works.export(cut, "cut").target
    assert cut.method == "native"
    assert (exported / path).read_bytes() == (server.data_directory / path).read_bytes()
    assert (exported / f"{path}.1").stat().st_size == segment.stat().st_size == 0
    assert not (exported / gone).exists()
    assert not (exported / "base" / str(oid)).exists()
    server.sql("truncate big")
    server.sql("checkpoint")
    last = works.back_up(server).manifest
    names = files_of(works.export(last, "last").target)
    assert last.method == "native"
    assert {path, f"{path}.1", gone}.isdisjoint(names)
    relations = {one for one in files_of(server.data_directory) if relation_segment(one.encode()) is not None}
    assert {one for one in names if relation_segment(one.encode()) is not None} == relations


@pytest.mark.pg("17")
@pytest.mark.decision(7)
@pytest.mark.parametrize("fault", ["magic", "blocks", "label"])
def test_an_increment_that_makes_no_sense_becomes_a_full_read_in_the_same_run(
    new_server: NewServer, works: Works, fault: str
) -> None:
    server = new_server(config=QUIET)
    add_table(server, "plain")
    while zlib.crc32(file_of(server, "plain").encode()) % SLICES == 0:  # sent whole: there would be nothing to spoil
        server.sql("vacuum full plain")
    works.back_up(server)
    server.sql("update plain set t = 'x' where n % 3000 = 0")
    stub = Path(file_of(server, "plain")).with_name(f"INCREMENTAL.{Path(file_of(server, 'plain')).name}").as_posix()

    def mangle(path: bytes, data: bytes) -> bytes:
        if fault == "label" and path == b"backup_label":
            return data.replace(b"INCREMENTAL FROM LSN: 0/", b"INCREMENTAL FROM LSN: 1/")
        if path.decode() == stub and fault == "magic":
            return b"\0" + data[1:]
        if path.decode() == stub and fault == "blocks":
            return data[:12] + data[16:20] + data[12:16] + data[20:]
        return data

    result = works.back_up(server, around=(wire := Wire(mangle=mangle)))
    assert (result.manifest.method, wire.runs) == ("compared", 2)
    assert "increment" in result.warnings[0]
    exported = works.export(result.manifest).target
    path = file_of(server, "plain")
    assert (exported / path).read_bytes() == (server.data_directory / path).read_bytes()


# -- 8, 18: what an increment becomes, and what a damaged one is worth -------------------------------------------------


@pytest.mark.pg("17,18")
@pytest.mark.decision(8)
def test_the_export_of_an_increment_is_verified_by_postgresql_and_starts(
    new_server: NewServer, works: Works, pg_version: str
) -> None:
    server = new_server(config=QUIET)
    add_table(server, "kept")
    works.back_up(server)
    server.sql("delete from kept where n > 15000")
    manifest = works.back_up(server).manifest
    exported = works.export(manifest).target
    assert manifest.method == "native"
    assert "INCREMENTAL" not in (exported / "backup_label").read_text()
    assert "successfully verified" in pg(programs_of(pg_version, manifest.major), "pg_verifybackup", exported)
    with works.clone(exported, manifest, pg_version) as clone:
        assert count(clone.dsn, "select count(*) from kept") == 15000


@pytest.mark.pg("17,18")
@pytest.mark.decision(18)
def test_after_a_damaged_increment_everything_is_read_until_a_whole_backup_stands(
    new_server: NewServer, works: Works
) -> None:
    server = new_server(config=QUIET)
    add_table(server, "broken")
    add_table(server, "whole")
    works.back_up(server)
    server.sql("update broken set t = 'x' where n % 20 = 0")
    server.sql("checkpoint")
    path = file_of(server, "broken")
    server.stop()
    flip(server.data_directory / path, [5])
    server.start()
    damaged = works.back_up(server)
    assert [(one.path, one.blocks) for one in damaged.manifest.checksum_failures] == [(path, [5])]
    second = works.back_up(server)
    assert second.manifest.method == "compared"
    assert "damaged on the server" in second.manifest.reason
    assert second.manifest.damaged  # the server's page is as bad as before
    server.stop()
    flip(server.data_directory / path, [5])
    server.start()
    repaired = works.back_up(server)
    assert (repaired.manifest.method, repaired.manifest.damaged) == ("compared", False)
    held = (server.data_directory / path).read_bytes()
    assert (works.export(repaired.manifest).target / path).read_bytes() == held
    assert works.back_up(server).manifest.method == "native"


def cut_short(server: Server, table: str) -> None:
    """Leave the first block or two, and end the summary."""
    server.sql(f"delete from {table} where n > 50")
    server.sql(f"vacuum (truncate) {table}")
    server.sql("checkpoint")


@pytest.mark.pg("17,18")
@pytest.mark.decision(26)
def test_a_table_that_was_cut_short_and_filled_again_comes_back_whole(new_server: NewServer, works: Works) -> None:
    """Summaries are merged in the order of their directory, so each of many cuts must be met (one in two gets lost)."""
    server = new_server(config=QUIET)
    tables = [f"cut_{number}" for number in range(8)]
    for table in tables:
        server.sql(f"create table {table} as select n, repeat(n::text, 40) t from generate_series(1, 3000) n")
    server.sql("checkpoint")
    works.back_up(server)
    for table in tables:
        cut_short(server, table)
        server.sql(f"insert into {table} select n, repeat(n::text, 41) from generate_series(51, 3000) n")
        server.sql("checkpoint")
    server.sql("create table other as select 1 n")
    paths = {file_of(server, table).encode() for table in tables}
    held = {path: (server.data_directory / path.decode()).read_bytes() for path in paths}
    found = works.back_up(server, around=(wire := Wire()))
    assert (found.manifest.method, found.manifest.warnings) == ("native", [])
    assert paths <= {path for path, size in wire.members}
    exported = works.export(found.manifest).target
    for path, content in held.items():
        assert (exported / path.decode()).read_bytes() == content


@pytest.mark.pg("18")
@pytest.mark.decision(26)
def test_a_table_cut_short_while_the_increment_began_makes_it_a_full_read(new_server: NewServer, works: Works) -> None:
    server = new_server(config=QUIET)
    add_table(server, "late")
    works.back_up(server)

    class CutsLate(Wire):
        def run(self, receiver: FileReceiver, stop: StopToken, upload: bytes | None = None) -> SourceEnd:
            if upload is not None:
                cut_short(server, "late")
            return super().run(receiver, stop, upload)

    found = works.back_up(server, around=(wire := CutsLate()))
    assert (found.manifest.method, wire.runs) == ("compared", 2)
    assert "a table was cut short while the backup began" in found.manifest.reason
