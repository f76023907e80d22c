"""Databases whose files move while a backup runs: replay empties them, so such a backup must not be kept."""

from __future__ import annotations

import psycopg
import pytest

from datamanager.base.errors import StreamBroken
from tests.conftest import NewServer
from tests.engine.conftest import Works
from tests.engine.test_cancel import at, ballast

# Replay of a database copied by files begins by removing the copy, and then finds the source gone: the base backup read
# the source's folder after the move. The clone starts, and nobody can connect to the database (14 to 18, pg_basebackup
# too). Source: src/backend/commands/dbcommands.c, dbase_redo, XLOG_DBASE_CREATE_FILE_COPY.


@pytest.mark.pg("14,15,17,18")
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
        works.back_up(server, heard=at(2 << 20, move), max_rate_kib=8192)
    assert works.repository.backup_ids() == []
    manifest = works.back_up(server).manifest
    target = works.restore(manifest)
    with works.clone(target, manifest, pg_version) as clone:
        dsn = psycopg.conninfo.make_conninfo(clone.dsn, dbname="moving")
        with psycopg.connect(dsn) as connection:
            assert connection.execute("select count(*) from kept").fetchone() == (1000,)
