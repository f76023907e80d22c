"""What replay of real WAL would do harm with: tablespaces that it creates, databases whose source goes."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest

from datamanager.base.units import Lsn
from datamanager.postgres.replay_hazards import HazardScanner, ReplayHazards, replay_hazards
from tests.conftest import NewServer
from tests.servers import Server


@pytest.mark.pg("14-18")
@pytest.mark.decision(1)
def test_every_tablespace_created_in_the_wal_is_found_with_its_path_and_no_other(new_server: NewServer) -> None:
    server = new_server(config={"max_wal_size": "1GB", "autovacuum": "off"})
    server.tablespace("early")
    server.sql("create table filler (t text)")
    start = Lsn.parse(server.value("select pg_current_wal_insert_lsn()::text"))
    places: list[str] = []
    for number in range(24):
        name = f"n{number}" + "-long" * (60 if number == 7 else 0)
        with contextlib.suppress(OSError):
            places.append(str(make_tablespace(server, name, f"t{number}")))
        # Odd amounts between them, so that some records cross the border of a page.
        server.sql("insert into filler select repeat(md5(n::text), 9) from generate_series(1, %s) n", 400 + number * 37)
    server.sql("select pg_switch_wal()")
    pg_wal = server.data_directory / "pg_wal"
    found = replay_hazards(pg_wal, start).tablespaces
    assert [one.location for one in found] == places
    oids = [row[0] for row in server.sql("select oid from pg_tablespace where spcname like 't%' order by oid")]
    assert [one.oid for one in found] == oids
    assert [one.lsn for one in found] == sorted(one.lsn for one in found)
    assert replay_hazards(pg_wal, Lsn(found[-1].lsn + 1)).tablespaces == []
    assert len(replay_hazards(pg_wal, found[-1].lsn).tablespaces) == 1
    assert in_small_pieces(pg_wal, start).tablespaces == found
    server.sql("drop tablespace t3")
    assert len(replay_hazards(pg_wal, start).tablespaces) == len(places)


def make_tablespace(server: Server, folder: str, name: str) -> Path:
    place = server.tablespace(folder)
    server.sql(f'alter tablespace "{folder}" rename to {name}')
    return place


def in_small_pieces(pg_wal: Path, start: Lsn) -> ReplayHazards:
    scanner = HazardScanner(start)
    for path in sorted(pg_wal.glob("0*")):
        scanner.begin(path.name)
        data = path.read_bytes()
        for position in range(0, len(data), 7777):
            scanner.feed(memoryview(data)[position : position + 7777])
        scanner.end()
    return scanner.finish()


@pytest.mark.decision(1)
def test_a_recycled_segment_is_not_read_as_what_it_once_was(new_server: NewServer, open_folder: Path) -> None:
    server = new_server(config={"autovacuum": "off"})
    server.tablespace("one")
    ((name,),) = server.sql("select pg_walfile_name(pg_current_wal_lsn())")
    content = (server.data_directory / "pg_wal" / name).read_bytes()
    (open_folder / name).write_bytes(content)
    assert len(replay_hazards(open_folder, Lsn(0)).tablespaces) == 1
    (open_folder / name).rename(open_folder / "000000010000000000000077")
    assert replay_hazards(open_folder, Lsn(0)).tablespaces == []


def test_noise_is_no_wal() -> None:
    scanner = HazardScanner(Lsn(0))
    for content in (b"", b"short", bytes(100_000), b"\xff" * 100_000, bytes(range(256)) * 400):
        scanner.begin("000000010000000000000001")
        scanner.feed(content)
        scanner.end()
    scanner.begin("archive_status/000000010000000000000001.done")
    scanner.feed(b"x")
    scanner.end()
    assert scanner.finish() == ReplayHazards()


# -- databases --


def oid_of(server: Server, database: str) -> int:
    return int(server.value("select oid from pg_database where datname = %s", database))


def position(server: Server) -> Lsn:
    return Lsn.parse(server.value("select pg_current_wal_insert_lsn()::text"))


def copies_as_dumped(server: Server, start: Lsn) -> dict[Lsn, tuple[int, ...]]:
    """Copies of databases by files as pg_waldump tells them, oids as in the record; it reads up to the WAL's end."""
    words = ("-p", server.data_directory / "pg_wal", "-s", str(start), "-r", "Database")
    text = server.run("pg_waldump", *words, check=False).stdout
    # Since 15 CREATE_FILE_COPY and CREATE_WAL_LOG; of a copy the source comes first, each as tablespace/database.
    found = re.findall(r"lsn: (\S+), .* desc: CREATE(?:_FILE_COPY)? copy dir (\d+)/(\d+) to (\d+)/(\d+)", text)
    return {
        Lsn.parse(lsn): (int(into_database), int(into_space), int(database), int(space))
        for lsn, space, database, into_space, into_database in found
    }


@pytest.mark.pg("14,15,16,17,18")
@pytest.mark.decision(1)
def test_a_database_copied_by_files_is_told_when_its_source_is_removed_and_only_then(new_server: NewServer) -> None:
    server = new_server(config={"wal_keep_size": "1GB", "autovacuum": "off"})
    by_files = " strategy file_copy" if server.major >= 15 else ""
    server.tablespace("other")
    for name in ("moving", "template", "plain"):
        server.sql(f"create database {name}{by_files}")
    start = position(server)
    server.sql(f"create database harmless{by_files}")
    server.sql("drop database harmless")
    server.sql("drop database plain")
    if server.major >= 15:
        server.sql("create database logged template template strategy wal_log")
        server.sql("drop database logged")
    server.sql(f"create database staying template template{by_files}")
    pg_wal = server.data_directory / "pg_wal"
    assert replay_hazards(pg_wal, start).databases == []
    moving, template, staying = (oid_of(server, name) for name in ("moving", "template", "staying"))
    server.sql("alter database moving set tablespace other")
    server.sql("drop database template")
    after = position(server)
    server.sql("alter database staying set tablespace other")
    server.sql("select pg_switch_wal()")

    found = replay_hazards(pg_wal, start).databases
    told = [(one.database, one.source_database, one.is_move) for one in found]
    assert told == [(moving, moving, True), (staying, template, False), (staying, staying, True)]
    dumped = copies_as_dumped(server, start)
    assert len(dumped) == 4  # and the one whose source stayed
    for one in found:
        oids = (one.database, one.tablespace, one.source_database, one.source_tablespace)
        assert dumped[one.lsn] == oids
    assert in_small_pieces(pg_wal, start).databases == found
    assert replay_hazards(pg_wal, after).databases == found[2:]


@pytest.mark.pg("15,18")
@pytest.mark.decision(1)
def test_a_database_copied_through_the_wal_needs_no_source(new_server: NewServer) -> None:
    server = new_server(config={"wal_keep_size": "1GB", "autovacuum": "off"})
    server.sql("create database template")
    start = position(server)
    server.sql("create database copied template template strategy wal_log")
    server.sql("drop database template")
    assert replay_hazards(server.data_directory / "pg_wal", start) == ReplayHazards()
