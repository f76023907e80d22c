"""Two databases with the same content compare as equal, whatever their settings; any difference shows."""

from __future__ import annotations

import pytest

from datamanager.base.errors import RightMissing, ServerError
from datamanager.base.units import Lsn
from datamanager.demo.compare import LARGE_OBJECTS, check_commit_run, table_digests
from tests.demo.conftest import Connection, NewDatabase

TABLE = "CREATE TABLE t (a int, b text, c timestamptz, d bytea, e float8)"
ROWS = [
    "INSERT INTO t VALUES (1, 'x', '2026-03-01 10:00+00', '\\x00ff', 0.1)",
    "INSERT INTO t VALUES (2, 'Łódź', NULL, NULL, 1e-300)",
    "INSERT INTO t VALUES (2, NULL, '2026-03-02 10:00+00', '', 2)",
]


def made(connection: Connection, *statements: str) -> Connection:
    for statement in statements:
        connection.execute(statement.encode())
    return connection


def test_the_order_of_the_rows_does_not_matter(new_database: NewDatabase) -> None:
    one = made(new_database(), TABLE, *ROWS)
    other = made(new_database(), TABLE, *reversed(ROWS))
    assert table_digests(one) == table_digests(other)
    assert table_digests(one)["public.t"].rows == 3


def test_the_sessions_settings_do_not_matter(new_database: NewDatabase) -> None:
    connection = made(new_database(), TABLE, *ROWS)
    before = table_digests(connection)
    made(
        connection,
        "SET timezone = 'Asia/Tokyo'",
        "SET bytea_output = 'escape'",
        "SET extra_float_digits = -5",
        "SET datestyle = 'German'",
    )
    assert table_digests(connection) == before


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE t SET b = 'y' WHERE a = 1",
        "UPDATE t SET d = '\\x00fe' WHERE a = 1",
        "UPDATE t SET e = e + 1e-17 + 1e-16 WHERE a = 1",
        "UPDATE t SET b = coalesce(b, '') WHERE a = 2",
        "UPDATE t SET c = NULL WHERE a = 1",
        "DELETE FROM t WHERE a = 1",
        "INSERT INTO t SELECT * FROM t WHERE a = 1",
        "ALTER TABLE t ADD COLUMN f int DEFAULT 0",
    ],
)
def test_any_difference_shows(new_database: NewDatabase, change: str) -> None:
    connection = made(new_database(), TABLE, *ROWS)
    before = table_digests(connection)["public.t"]
    made(connection, change)
    assert table_digests(connection)["public.t"] != before


def test_large_objects_count_and_a_changed_one_shows(new_database: NewDatabase) -> None:
    connection = made(new_database(), "SELECT lo_from_bytea(4711, '\\x0102')")
    before = table_digests(connection)[LARGE_OBJECTS]
    made(connection, "SELECT lo_put(4711, 1, '\\x03')")
    after = table_digests(connection)[LARGE_OBJECTS]
    assert before.rows == after.rows == 1
    assert before != after


def test_what_a_backup_does_not_hold_or_the_caller_excludes_is_left_out(new_database: NewDatabase) -> None:
    connection = made(
        new_database(),
        'CREATE SCHEMA "Zwölf"',
        'CREATE TABLE "Zwölf"."größe" AS SELECT 1 AS a',
        "CREATE UNLOGGED TABLE fleeting AS SELECT 1 AS a",
        "CREATE TEMP TABLE passing AS SELECT 1 AS a",
        "CREATE TABLE left_out AS SELECT 1 AS a",
        "CREATE TABLE parts (a int) PARTITION BY RANGE (a)",
        "CREATE TABLE part PARTITION OF parts DEFAULT",
        "CREATE MATERIALIZED VIEW seen AS SELECT 1 AS a",
        "CREATE MATERIALIZED VIEW unseen AS SELECT 1 AS a WITH NO DATA",
    )
    found = table_digests(connection, exclude={"public.left_out"})
    assert set(found) == {"Zwölf.größe", "public.part", "public.seen", LARGE_OBJECTS}


def test_a_role_that_may_not_read_gets_a_remedy(new_database: NewDatabase) -> None:
    connection = made(new_database(), TABLE, "SET ROLE pg_monitor")
    with pytest.raises(RightMissing, match="compare tables: permission denied"):
        table_digests(connection)


LOG = "CREATE TABLE commit_log (n bigint PRIMARY KEY, note text)"
COMMITS = [(number, Lsn(number * 100)) for number in range(1, 11)]


def test_a_run_up_to_the_end_is_whole_and_later_commits_are_not_asked_for(new_database: NewDatabase) -> None:
    connection = made(new_database(), LOG, "INSERT INTO commit_log SELECT g, '' FROM generate_series(1, 7) g")
    report = check_commit_run(connection, COMMITS, Lsn(650))
    assert report.ok
    assert (report.count, report.highest, report.required) == (7, 7, 6)


def test_a_gap_in_the_run_shows(new_database: NewDatabase) -> None:
    connection = made(
        new_database(), LOG, "INSERT INTO commit_log SELECT g, '' FROM generate_series(1, 9) g WHERE g <> 4"
    )
    report = check_commit_run(connection, [], Lsn(0))
    assert not report.ok
    assert report.missing == (4,)


def test_a_commit_noted_exactly_at_the_end_is_required(new_database: NewDatabase) -> None:
    connection = made(new_database(), LOG, "INSERT INTO commit_log SELECT g, '' FROM generate_series(1, 5) g")
    report = check_commit_run(connection, COMMITS, Lsn(700))
    assert not report.ok
    assert report.missing == ()
    assert report.lost == (6, 7)


def test_numbers_below_one_break_the_run(new_database: NewDatabase) -> None:
    connection = made(new_database(), LOG, "INSERT INTO commit_log SELECT g, '' FROM generate_series(0, 5) g")
    assert not check_commit_run(connection, [], Lsn(0)).ok


def test_an_empty_log_is_whole_only_when_nothing_was_required(new_database: NewDatabase) -> None:
    connection = made(new_database(), LOG)
    assert check_commit_run(connection, COMMITS, Lsn(99)).ok
    assert check_commit_run(connection, COMMITS, Lsn(100)).lost == (1,)


def test_a_copy_without_the_log_is_an_error(new_database: NewDatabase) -> None:
    with pytest.raises(ServerError, match="check commits"):
        check_commit_run(new_database(), COMMITS, Lsn(1000))
