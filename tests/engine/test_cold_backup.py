"""Cold backups: the data directory of a stopped or broken server, through the same engine, restored and started."""

from __future__ import annotations

import time
from pathlib import Path

import psycopg
import pytest

from datamanager.base.clock import SystemClock
from datamanager.base.errors import Busy, StreamBroken
from datamanager.base.events import Progress
from datamanager.base.pipeline import StopToken
from datamanager.engine.backup.run import BackupResult, run_backup
from datamanager.engine.backup.session import BackupOptions
from datamanager.engine.restore.run import apply_restore
from datamanager.postgres.cold_facts import cold_facts, read_last_start
from datamanager.postgres.cold_source import ColdSource
from datamanager.postgres.server_manifest import manifest_files
from datamanager.repository.manifest import Manifest
from tests.conftest import NewServer
from tests.engine.conftest import Heard, Works, account, pg, programs_of
from tests.engine.test_living_clusters import standby_of
from tests.servers import Server

ROWS = 20_000


def cold_backup(
    works: Works, data_directory: Path, *, stop: StopToken | None = None, heard: Heard | None = None
) -> BackupResult:
    source = ColdSource(data_directory, SystemClock())
    facts = cold_facts(
        data_directory,
        source.major,
        source.control,
        last=read_last_start(data_directory),
        install_path=None,
        account=account(),
        config_file=None,
        settings={},
    )
    options = BackupOptions("tests", "a cold one", control=source.control.record())
    return run_backup(works.repository, source, facts, options, stop or works.stop, heard or Heard())


def fill(server: Server) -> None:
    server.tablespace("fast")
    server.tablespace("big")
    server.sql("create table plain as select n, md5(n::text) m from generate_series(1, %s) n", ROWS)
    server.sql("create table in_fast tablespace fast as select n, md5(n::text) m from generate_series(1, %s) n", ROWS)
    server.sql("create table in_big tablespace big as select n, md5(n::text) m from generate_series(1, %s) n", ROWS)
    server.sql("create unlogged table scratch as select n from generate_series(1, 500) n")
    server.sql("create unlogged table scratch_fast tablespace fast as select n from generate_series(1, 700) n")


def rows(dsn: str) -> list[tuple[int, int]]:
    with psycopg.connect(dsn) as connection:
        return [
            connection.execute(f"select count(*), sum(hashtext(t::text)::bigint) from {name} t").fetchall()[0]
            for name in ("plain", "in_fast", "in_big")
        ]


def unlogged(dsn: str) -> list[int]:
    with psycopg.connect(dsn) as connection:
        names = ("scratch", "scratch_fast")
        return [connection.execute(f"select count(*) from {name}").fetchall()[0][0] for name in names]


def check_pages(works: Works, manifest: Manifest, target: Path, version: str) -> None:
    """PostgreSQL's own programs find every byte and every page right."""
    programs = programs_of(version, manifest.major)
    pg(programs, "pg_checksums", "--check", "-D", target)
    exported = works.export(manifest)
    assert "successfully verified" in pg(programs, "pg_verifybackup", exported.target)


@pytest.mark.pg("15,18")
def test_a_cleanly_stopped_cluster_comes_back_with_its_unlogged_rows(
    new_server: NewServer, works: Works, pg_version: str
) -> None:
    server = new_server()
    fill(server)
    before = rows(server.dsn)
    server.stop()
    result = cold_backup(works, server.data_directory)
    manifest = result.manifest
    assert result.warnings == []
    assert (manifest.cold, manifest.control["state"]) == (True, "shut down")
    assert manifest.control["checkpoint"] == manifest.start_lsn < manifest.stop_lsn
    assert {one.location for one in manifest.tablespaces} == {
        str(server.folder / f"tablespace-{name}") for name in ("fast", "big")
    }
    target = works.restore(manifest)
    check_pages(works, manifest, target, pg_version)
    with works.clone(target, manifest, pg_version) as clone:
        assert rows(clone.dsn) == before
        assert unlogged(clone.dsn) == [500, 700]
    server.start()
    assert rows(server.dsn) == before


@pytest.mark.pg("15,18")
def test_a_crashed_cluster_recovers_when_its_cold_copy_is_started(
    new_server: NewServer, works: Works, pg_version: str
) -> None:
    server = new_server()
    fill(server)
    server.sql("checkpoint")
    server.sql("update plain set m = 'after the checkpoint' where n % 7 = 0")
    server.sql("create table young tablespace fast as select 1 n")
    before = rows(server.dsn)
    server.stop("immediate")
    result = cold_backup(works, server.data_directory, heard=(heard := Heard()))
    manifest = result.manifest
    assert manifest.control["state"] == "in production"
    (warning,) = result.warnings
    assert "crash recovery runs when it is restored" in warning
    assert manifest.warnings == heard.warnings == [warning]
    target = works.restore(manifest)
    programs = programs_of(pg_version, manifest.major)
    exported = works.export(manifest)
    assert "successfully verified" in pg(programs, "pg_verifybackup", exported.target)
    with works.clone(target, manifest, pg_version) as clone:
        assert rows(clone.dsn) == before
        assert unlogged(clone.dsn) == [0, 0]  # as after any crash
    pg(programs, "pg_checksums", "--check", "-D", target)


@pytest.mark.pg("18")
def test_a_second_cold_backup_stores_only_what_changed_and_a_live_one_goes_on_from_it(
    new_server: NewServer, works: Works
) -> None:
    server = new_server(config={"wal_level": "minimal", "max_wal_senders": "0"})
    fill(server)
    server.stop()
    first = cold_backup(works, server.data_directory)
    again = cold_backup(works, server.data_directory)
    assert again.manifest.parent == first.manifest.backup
    assert again.manifest.bytes_stored < first.manifest.bytes_stored / 10
    server.start_config = {"wal_level": "replica", "max_wal_senders": "4"}
    server.start()
    before = rows(server.dsn)
    live = works.back_up(server)
    assert not live.manifest.cold
    target = works.restore(live.manifest)
    with works.clone(target, live.manifest, server.version) as clone:
        assert rows(clone.dsn) == before


def test_damaged_pages_are_found_and_flag_the_backup(new_server: NewServer, works: Works) -> None:
    server = new_server()
    server.sql("create table plain as select n, md5(n::text) m from generate_series(1, 20000) n")
    path = server.data_directory / server.value("select pg_relation_filepath('plain')")
    server.stop()
    with path.open("r+b") as file:
        for block in (3, 77):
            file.seek(block * 8192 + 5000)
            file.write(b"damaged!")
    result = cold_backup(works, server.data_directory)
    (failure,) = result.manifest.checksum_failures
    assert (server.data_directory / failure.path, failure.blocks) == (path, [3, 77])


def test_a_server_started_meanwhile_discards_the_copy(new_server: NewServer, works: Works) -> None:
    server = new_server()
    server.sql("create table plain as select n, md5(n::text) m from generate_series(1, 20000) n")
    server.stop()

    class Starter(Heard):
        def __call__(self, event: object) -> None:
            super().__call__(event)  # type: ignore[arg-type]
            if isinstance(event, Progress) and not server.running:
                server.start()

    with pytest.raises((StreamBroken, Busy)):
        cold_backup(works, server.data_directory, heard=Starter())
    assert works.repository.backup_ids() == []
    assert list(works.storage.list("leases/")) == []


def test_every_file_but_wal_is_in_the_manifest_of_the_copy(new_server: NewServer, works: Works) -> None:
    server = new_server()
    server.sql("create unlogged table scratch as select n from generate_series(1, 500) n")
    path = server.value("select pg_relation_filepath('scratch')")
    server.stop()
    manifest = cold_backup(works, server.data_directory).manifest
    target = works.restore(manifest)
    listed = {one.path.decode() for one in manifest_files((target / "backup_manifest").read_bytes())}
    there = {
        str(one.relative_to(server.data_directory))
        for one in server.data_directory.rglob("*")
        if one.is_file() and not one.is_relative_to(server.data_directory / "pg_wal")
    }
    assert path in listed
    left_out = {one for one in there if one.endswith("pg_internal.init") or one.startswith("pg_subtrans/")}
    assert there - listed == {"postmaster.opts"} | left_out
    assert listed <= there
    restored = {one.name for one in (target / "pg_wal").iterdir()}
    assert restored == {one.name for one in (server.data_directory / "pg_wal").iterdir()}


@pytest.mark.decision(1)
def test_wal_of_a_stopped_standby_that_empties_a_database_is_told_and_the_copy_is_kept(
    new_server: NewServer, works: Works, pg_version: str
) -> None:
    primary = new_server(config={"autovacuum": "off"})
    primary.sql("create table kept as select generate_series(1, 1000) n")
    primary.sql("create database mold")
    standby = standby_of(primary, new_server, works.folder / "standby")
    primary.sql("create database cast_one template mold strategy file_copy")
    primary.sql("drop database mold")
    reached = primary.value("select pg_current_wal_lsn()")
    deadline = time.monotonic() + 20
    while standby.value("select pg_last_wal_replay_lsn() < %s", reached) and time.monotonic() < deadline:
        time.sleep(0.05)
    standby.stop("immediate")
    result = cold_backup(works, standby.data_directory)
    said = [one for one in result.warnings if "copies a database and removes its source" in one]
    assert len(said) == 1
    again = works.plan(result.manifest, works.folder / "restored")
    restored = apply_restore(works.reopened(), again, works.stop, Heard())
    assert sum("copies a database and removes its source" in one for one in restored.warnings) == 1
    with works.clone(restored.target, result.manifest, pg_version) as clone, psycopg.connect(clone.dsn) as connection:
        assert connection.execute("select count(*) from kept").fetchone() == (1000,)
