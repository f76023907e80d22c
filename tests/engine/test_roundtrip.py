"""Backup under write load and restore beside the running original, on real servers 14 to 18."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from datamanager.demo.compare import LARGE_OBJECTS, TableDigest, check_commit_run, table_digests
from datamanager.demo.writer import CommitWriter
from tests.conftest import NewServer
from tests.engine.conftest import Clone, Heard, Works, outside, pg, programs_of
from tests.servers import Server, hand_over

ROLE = 'Dr. Größe "O\'Neil" 日本'
DATABASE = 'Praxis "Süd" & O\'Neil 診療'
COPIED = "copied by file"
TABLE = 'Befunde "2024" für O\'Neil 診'
SPACES = {'fast "ä" 1': 'ts "größe" 1', "archive": "ts 診療 two"}
HBA_LINE = "# this line of pg_hba.conf is the practice's own"
CONF_LINE = "# this line of postgresql.conf is the practice's own"


def make_cluster(server: Server, *, megabytes: int = 10) -> None:
    """Roles, grants, odd names, two tablespaces, large objects, unlogged tables, a database copied by files."""
    with server.connect() as connection:
        for name, folder in SPACES.items():
            place = server.folder / folder
            place.mkdir(mode=0o700)
            hand_over(place)
            connection.execute(
                sql.SQL("create tablespace {} location {}").format(sql.Identifier(name), sql.Literal(str(place)))
            )
        role = sql.Identifier(ROLE)
        connection.execute(sql.SQL("create role {} login password 'x' valid until '2040-01-01'").format(role))
        connection.execute("create role office nologin createdb")
        connection.execute(sql.SQL("grant office to {}").format(role))
        connection.execute(sql.SQL("alter role {} set work_mem = '7MB'").format(role))
        connection.execute(
            sql.SQL("create database {} owner {} tablespace {}").format(
                sql.Identifier(DATABASE), role, sql.Identifier("archive")
            )
        )
        connection.execute(sql.SQL("alter database {} set timezone = 'Asia/Tokyo'").format(sql.Identifier(DATABASE)))
        connection.execute("create database empty")
        connection.execute("alter system set log_min_duration_statement = '4242ms'")
    with server.connect(database=DATABASE) as connection:
        _fill(connection, megabytes)
    if server.major >= 15:
        copy = sql.SQL("create database {} template {} strategy file_copy").format(
            sql.Identifier(COPIED), sql.Identifier(DATABASE)
        )
        with server.connect() as connection:
            connection.execute(copy)
    for name, line in (("postgresql.conf", CONF_LINE), ("pg_hba.conf", HBA_LINE)):
        with (server.data_directory / name).open("a") as file:
            file.write(f"{line}\n")


def _fill(connection: psycopg.Connection[Any], megabytes: int) -> None:
    table, fast = sql.Identifier(TABLE), sql.Identifier('fast "ä" 1')
    rows = megabytes * 4000
    connection.execute("create extension pg_trgm")
    connection.execute(
        sql.SQL(
            "create table {} tablespace {} as select n, md5(n::text) || md5((-n)::text) as befund,"
            " repeat(chr(19968 + n % 5000), 20) as schrift, n * 1.25 as wert from generate_series(1, {}) n"
        ).format(table, fast, sql.Literal(rows))
    )
    connection.execute(sql.SQL("alter table {} add primary key (n)").format(table))
    connection.execute(sql.SQL("create index on {} (befund) where n % 10 = 0").format(table))
    connection.execute(sql.SQL("grant select on {} to office").format(table))
    connection.execute(sql.SQL("delete from {} where n % 7 = 0").format(table))
    connection.execute("create table wide (n int primary key, body text)")
    connection.execute("alter table wide alter body set storage external")
    connection.execute("insert into wide select n, repeat(md5(n::text), 800) from generate_series(1, 80) n")
    connection.execute("create unlogged table scratch as select generate_series(1, 1000) n")
    connection.execute(sql.SQL("create unlogged table scratch_fast tablespace {} as select 1 n").format(fast))
    connection.execute("create table parted (day date, n int) partition by range (day)")
    for month in range(1, 5):
        connection.execute(
            f"create table parted_{month} partition of parted"
            f" for values from ('2024-0{month}-01') to ('2024-0{month + 1}-01')"
        )
    connection.execute("insert into parted select date '2024-01-01' + n % 110, n from generate_series(1, 5000) n")
    connection.execute("create sequence numbers start 4711")
    connection.execute("select nextval('numbers')")
    connection.execute("create materialized view sums as select day, sum(n) s from parted group by day")
    connection.execute(
        "select lo_from_bytea(0, decode(repeat(md5(n::text), 500), 'hex')) from generate_series(1, 20) n"
    )


Digests = dict[str, dict[str, TableDigest]]


def digests(dsn: str, databases: list[str]) -> Digests:
    found: Digests = {}
    for name in databases:
        with psycopg.connect(psycopg.conninfo.make_conninfo(dsn, dbname=name), autocommit=True) as connection:
            found[name] = table_digests(connection, exclude=["public.commit_log"])
    return found


def cluster_facts(dsn: str) -> Mapping[str, object]:
    """What a restore must bring back beside tables: roles, memberships, grants, tablespaces, extensions, settings."""
    queries = {
        "roles": "select rolname, rolcanlogin, rolcreatedb, rolvaliduntil::text, rolpassword from pg_authid order by 1",
        "members": "select roleid::regrole::text, member::regrole::text from pg_auth_members order by 1, 2",
        "role settings": "select setdatabase, setrole::regrole::text, setconfig from pg_db_role_setting order by 2, 3",
        "tablespaces": "select oid, spcname, spcowner::regrole::text from pg_tablespace order by 1",
        "databases": "select datname, datdba::regrole::text, dattablespace, datacl::text from pg_database order by 1",
    }
    inside = {
        "grants": "select relname, relacl::text, relowner::regrole::text, reltablespace from pg_class order by oid",
        "extensions": "select extname, extversion from pg_extension order by 1",
        "sequence": "select last_value from numbers",
    }
    found: dict[str, object] = {}
    for database, wanted in (("postgres", queries), (DATABASE, inside)):
        with psycopg.connect(psycopg.conninfo.make_conninfo(dsn, dbname=database)) as connection:
            connection.execute("set timezone = 'UTC'")
            found |= {name: connection.execute(query).fetchall() for name, query in wanted.items()}
    return found


def check_clone(clone: Clone, manifest_stop: Any, writer: CommitWriter, before: Digests, facts: object) -> None:
    assert digests(clone.dsn, list(before)) == before
    assert all(one[LARGE_OBJECTS].rows > 0 for name, one in before.items() if name in (DATABASE, COPIED))
    assert cluster_facts(clone.dsn) == facts
    with psycopg.connect(clone.dsn, autocommit=True) as connection:
        run = check_commit_run(connection, writer.commits, manifest_stop)
    assert run.ok, run
    assert 0 < run.required < len(writer.commits)
    with psycopg.connect(psycopg.conninfo.make_conninfo(clone.dsn, dbname=DATABASE), autocommit=True) as connection:
        assert connection.execute("select count(*) from scratch").fetchone() == (0,)
        assert connection.execute("select count(*) from scratch_fast").fetchone() == (0,)
        index_only = connection.execute("select count(*) from parted where day >= '2024-02-01'").fetchone()
        assert index_only is not None
        assert index_only[0] > 1000
    pg(clone.programs, "pg_amcheck", "--all", "--install-missing", dsn=clone.dsn)


@pytest.mark.pg("14-18,15-debian")
@pytest.mark.decision(8)
@pytest.mark.requirement("R29")
@pytest.mark.requirement("R39")
@pytest.mark.requirement("R73")
def test_a_backup_under_load_comes_back_whole_beside_the_original(
    new_server: NewServer, works: Works, pg_version: str
) -> None:
    server = new_server()
    make_cluster(server)
    databases = ["postgres", "empty", DATABASE, *([COPIED] if server.major >= 15 else [])]
    facts, before = cluster_facts(server.dsn), digests(server.dsn, databases)
    with server.load(clients=1, rate=200, database="empty") as load, CommitWriter(server.dsn) as writer:
        before["empty"] = {}
        time.sleep(0.2)
        first = works.back_up(server)
        with server.connect(database=DATABASE) as connection:
            connection.execute(sql.SQL("update {} set wert = 0 where n % 20 = 1").format(sql.Identifier(TABLE)))
        second = works.back_up(server, heard=(heard := Heard()))
        time.sleep(0.2)
    del before["empty"]
    assert (writer.failures, load.failed) == ([], 0)  # requirement R29
    assert second.warnings == heard.warnings == []
    assert second.manifest.parent == first.manifest.backup
    assert second.manifest.bytes_reused > second.manifest.bytes_stored
    target = works.restore(first.manifest)
    for name, line in (("postgresql.conf", CONF_LINE), ("pg_hba.conf", HBA_LINE)):
        assert line in (target / name).read_text()
        assert (target / name).read_bytes() == (server.data_directory / name).read_bytes()
    assert "4242ms" in (target / "postgresql.auto.conf").read_text()
    with works.clone(target, first.manifest, pg_version) as clone:
        check_clone(clone, first.manifest.stop, writer, before, facts)  # requirement R39
        assert server.running
    pg(clone.programs, "pg_checksums", "--check", "-D", target)
    check_export(works, second.manifest, server, pg_version, facts)


def check_export(works: Works, manifest: Any, server: Server, version: str, facts: object) -> None:
    """The export is what PostgreSQL's own tools take: verified, started, equal to the changed original."""
    exported = works.export(manifest)
    programs = programs_of(version, server.major)
    assert "successfully verified" in pg(programs, "pg_verifybackup", exported.target)
    with works.clone(exported.target, manifest, version) as clone:
        assert digests(clone.dsn, [DATABASE]) == digests(server.dsn, [DATABASE])
        assert cluster_facts(clone.dsn) == facts
    pg(clone.programs, "pg_checksums", "--check", "-D", exported.target)


@pytest.mark.slow
@pytest.mark.pg("14,18")
def test_a_table_of_three_segments_comes_back(new_server: NewServer, works: Works, pg_version: str) -> None:
    server = new_server(config={"max_wal_size": "4GB", "wal_level": "replica", "full_page_writes": "on"})
    server.sql("create table big (n bigint, filler text)")
    server.sql("alter table big alter filler set storage plain")
    server.sql("alter table big set (autovacuum_enabled = off)")
    while server.value("select pg_relation_size('big')") <= 2 * (1 << 30) + (200 << 20):
        server.sql(
            "insert into big select n, rpad(md5(n::text), 3900, md5((n * 3)::text)) from generate_series(1, 60000) n"
        )
    wanted = server.sql("select count(*), sum(hashtext(filler)::bigint), sum(n) from big")
    with CommitWriter(server.dsn) as writer:
        result = works.back_up(server)
        time.sleep(0.2)
    path = server.value("select pg_relation_filepath('big')")
    assert (server.data_directory / f"{path}.2").stat().st_size > 100 << 20
    server.stop()
    target = works.restore(result.manifest)
    with works.clone(target, result.manifest, pg_version) as clone, psycopg.connect(clone.dsn) as connection:
        found = connection.execute("select count(*), sum(hashtext(filler)::bigint), sum(n) from big").fetchall()
        assert found == wanted
        assert check_commit_run(connection, writer.commits, result.manifest.stop).ok
    pg(clone.programs, "pg_checksums", "--check", "-D", target)


def test_nothing_of_a_tablespace_lands_inside_the_data_directory(new_server: NewServer, works: Works) -> None:
    server = new_server()
    place = server.tablespace("one")
    server.sql("create table there tablespace one as select generate_series(1, 1000) n")
    manifest = works.back_up(server).manifest
    (space,) = outside(manifest)
    assert (space.location, manifest.volumes[str(space.oid)] > 0) == (str(place), True)
    target = works.restore(manifest)
    link = target / "pg_tblspc" / str(space.oid)
    assert link.is_symlink()
    assert link.readlink() == Path(f"{target}.ts-{space.oid}")
    assert [one.name for one in link.resolve().iterdir()] == [one.name for one in place.iterdir()]
