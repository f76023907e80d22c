"""A good backup passes its test restore, whatever stands in it, and nothing of the test restore stays."""

from __future__ import annotations

import pytest

from tests.conftest import NewServer
from tests.drills.conftest import Drills
from tests.servers import Server

EVERYTHING = """
    create extension pg_trgm;
    create extension file_fdw;
    create table patients (id int primary key, name text, born date) partition by range (id);
    create table patients_1 partition of patients for values from (1) to (5001);
    create table patients_2 partition of patients for values from (5001) to (20001);
    insert into patients select n, 'patient ' || n, date '1950-01-01' + n from generate_series(1, 20000) n;
    create index on patients (name);
    create unlogged table waiting_room (n int primary key);
    insert into waiting_room select generate_series(1, 100);
    create materialized view filled as select count(*) from patients;
    create materialized view empty_view as select * from patients with no data;
    create server elsewhere foreign data wrapper file_fdw;
    create foreign table far_away (n int) server elsewhere options (filename '/nowhere', format 'csv');
    create table parent (n int);
    create foreign table child (n int) inherits (parent) server elsewhere options (filename '/nowhere', format 'csv');
    insert into parent values (1), (2);
    create role nurse;
    create table secrets (owner name, said text);
    alter table secrets enable row level security;
    alter table secrets force row level security;
    create policy own on secrets using (owner = current_user);
    insert into secrets select 'nurse', 'secret ' || n from generate_series(1, 50) n;
    create table "Odd ""name"".with.dots" (x int, v text);
    insert into "Odd ""name"".with.dots" select n, repeat(md5(n::text), 300) from generate_series(1, 200) n;
    create index "index of ""it" on "Odd ""name"".with.dots" (x);
    select lo_from_bytea(0, decode(repeat('5a', 100000), 'hex')) from generate_series(1, 7);
    vacuum;
"""


def furnish(server: Server) -> None:
    """Everything that a database may hold, in several databases, one of which admits nobody."""
    server.tablespace("room")
    server.script(EVERYTHING)
    server.sql("create table in_room tablespace room as select generate_series(1, 3000) n")
    server.sql('create database "The Ärzte" tablespace room')
    server.sql("create table doctors as select generate_series(1, 40) n", database="The Ärzte")
    server.sql("create database closed")
    server.sql("create table hidden as select generate_series(1, 60) n", database="closed")
    server.sql("alter database closed allow_connections false")
    # What the owner set for his sessions must not get in the way of ours.
    for setting in ("statement_timeout = '1ms'", "session_preload_libraries = 'no_such_library'"):
        server.sql(f"alter database closed set {setting}")


# The unlogged table comes back empty.
ROWS = {
    "patients_1": 5000, "patients_2": 15000, "waiting_room": 0, "filled": 1, "parent": 2, "secrets": 50, "odd": 200,
    "in_room": 3000, "doctors": 40, "hidden": 60,
}  # fmt: skip


@pytest.mark.pg("15,17,18")
@pytest.mark.requirement("N3", missing="the owner's own queries, the objective, the signatures")
def test_a_good_backup_passes_and_nothing_of_the_test_restore_stays(new_server: NewServer, drills: Drills) -> None:
    server = new_server(config={"archive_mode": "on", "archive_command": "false", "max_prepared_transactions": "3"})
    furnish(server)
    # Its locks come back with it, and nobody is there to give them up.
    server.script("begin; alter table secrets add column more int; prepare transaction 'it''s open';")
    with server.connect() as session:
        session.execute("create temp table only_here as select 1 as n")
        manifest = drills.works.back_up(server).manifest
    result = drills.run(manifest)
    assert result.findings == []
    assert drills.heard.warnings == []
    checks = result.checks()
    assert (checks["amcheck"], checks["visibility_maps"]) == ("passed", "passed")
    assert checks["databases"] == 5
    assert (checks["tables"], checks["rows"]) == (len(ROWS), sum(ROWS.values()))
    assert checks["large_objects"] == 7
    assert checks["foreign_tables_not_read"] == 2
    assert checks["materialized_views_not_populated"] == 1
    assert checks["partitioned_tables"] == 1
    assert checks["prepared_transactions"] == 1
    assert 0 < result.restore_seconds < result.seconds
    drills.assert_nothing_left()
    assert server.value("select count(*) from patients") == 20000


def test_a_cluster_without_role_and_database_postgres_and_with_names_in_no_encoding_passes(
    new_server: NewServer, drills: Drills
) -> None:
    server = new_server()
    server.sql("create role helper superuser login")
    server.sql('alter role postgres rename to "The Boss"', user="helper")
    server.superuser = "The Boss"
    server.sql("create database raw template template0 encoding 'SQL_ASCII'")
    with server.connect(database="raw") as session:
        session.execute("set client_encoding = 'SQL_ASCII'")
        session.execute(b'create table "stra\xdfe" as select generate_series(1, 30) n')
        session.execute(b'create index "gr\xf6\xdfe" on "stra\xdfe" (n)')
    server.sql("drop database postgres", database="template1", user="helper")
    manifest = drills.works.back_up(server, dsn=server.make_dsn(database="raw")).manifest
    result = drills.run(manifest)
    assert result.findings == []
    assert (result.counted.tables, result.counted.rows) == (1, 30)
    assert result.checks()["amcheck"] == "passed"
    drills.assert_nothing_left()
