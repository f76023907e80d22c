"""Databases whose source goes while a backup runs: replay empties them, so such a backup must not be kept."""

from __future__ import annotations

import threading
from collections.abc import Callable

import psycopg
import pytest

from datamanager.base.errors import StreamBroken
from tests.conftest import NewServer
from tests.engine.conftest import Works
from tests.engine.test_cancel import at, ballast
from tests.servers import Server

# Replay of a database copied by files begins by removing the copy, and then finds the source gone: the base backup read
# the source's folder after the move. The clone starts, and nobody can connect to the database (14 to 18, pg_basebackup
# too). Source: src/backend/commands/dbcommands.c, dbase_redo, XLOG_DBASE_CREATE_FILE_COPY.


def beside(act: Callable[[], object]) -> Callable[[], None]:
    """Begin it, and hold up the stream for a few seconds at most: the server lets no database go before the process
    that sends the stream has said yes, which it does only while somebody reads."""

    def begin() -> None:
        thread = threading.Thread(target=act, daemon=True)
        thread.start()
        thread.join(5)

    return begin


@pytest.mark.pg("14,15,17,18")
@pytest.mark.decision(1)
def test_a_backup_during_which_a_database_moved_to_another_tablespace_is_not_kept(
    new_server: NewServer, works: Works, pg_version: str
) -> None:
    server = new_server(config={"autovacuum": "off"})
    server.tablespace("other")
    server.sql("create database moving")
    server.sql("create table kept as select generate_series(1, 1000) n", database="moving")
    ballast(server, 12)

    def move() -> None:
        server.sql("alter database moving set tablespace other")

    with pytest.raises(StreamBroken, match="database"):
        works.back_up(server, heard=at(2 << 20, beside(move)), max_rate_kib=8192)
    assert works.repository.backup_ids() == []
    manifest = works.back_up(server).manifest
    target = works.restore(manifest)
    with works.clone(target, manifest, pg_version) as clone:
        assert rows_of(clone.dsn, "moving") == 1000


@pytest.mark.pg("14,18")
@pytest.mark.decision(1)
def test_a_backup_during_which_the_template_of_a_new_database_is_dropped_is_not_kept(
    new_server: NewServer, works: Works, pg_version: str
) -> None:
    server = new_server(config={"autovacuum": "off"})
    by_files = by_files_on(server)
    server.sql("create database mold")
    server.sql("create table kept as select generate_series(1, 1000) n", database="mold")
    ballast(server, 12)

    def cast() -> None:
        server.sql(f"create database cast_one template mold{by_files}")
        server.sql("drop database mold")

    with pytest.raises(StreamBroken, match="a database was copied and its source removed") as broken:
        works.back_up(server, heard=at(2 << 20, beside(cast)), max_rate_kib=8192)
    assert "again" in broken.value.hint
    manifest = works.back_up(server).manifest
    target = works.restore(manifest)
    with works.clone(target, manifest, pg_version) as clone:
        assert rows_of(clone.dsn, "cast_one") == 1000


@pytest.mark.pg("14,15,18")
@pytest.mark.decision(1)
def test_databases_made_and_dropped_while_a_backup_runs_are_as_they_should_be_in_its_copy(
    new_server: NewServer, works: Works, pg_version: str
) -> None:
    server = new_server(config={"autovacuum": "off"})
    by_files = by_files_on(server)
    for name in ("mold", "leaving"):
        server.sql(f"create database {name}")
        server.sql("create table kept as select generate_series(1, 1000) n", database=name)
    ballast(server, 12)

    def change() -> None:
        server.sql(f"create database coming template mold{by_files}")
        server.sql(f"create database passing template mold{by_files}")
        server.sql("drop database passing")
        server.sql("drop database leaving")

    result = works.back_up(server, heard=at(2 << 20, beside(change)), max_rate_kib=8192)
    assert result.warnings == []
    target = works.restore(result.manifest)
    with works.clone(target, result.manifest, pg_version) as clone:
        assert [rows_of(clone.dsn, name) for name in ("coming", "mold")] == [1000, 1000]
        with psycopg.connect(clone.dsn) as connection:
            names = {name for (name,) in connection.execute("select datname from pg_database")}
    assert not names & {"passing", "leaving"}


def by_files_on(server: Server) -> str:
    """What makes CREATE DATABASE copy files; 14 always does."""
    return " strategy file_copy" if server.major >= 15 else ""


def rows_of(dsn: str, database: str) -> int:
    with psycopg.connect(psycopg.conninfo.make_conninfo(dsn, dbname=database)) as connection:
        ((count,),) = connection.execute("select count(*) from kept")
    return int(count)
