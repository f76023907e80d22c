"""What a server holds: all that a backup must bring back, to be compared with what a clone holds."""

from __future__ import annotations

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

Connection = psycopg.Connection[TupleRow]

Picture = dict[str, dict[str, object]]

_STORED = """
    SELECT n.nspname, c.relname, c.relkind::text, c.relpersistence::text FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'm', 'S') AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%'
    ORDER BY 1, 2
"""
_CATALOG = {
    "relations": "SELECT oid::bigint, relname, relkind::text, relpersistence::text, reltablespace::bigint, relhasindex"
    " FROM pg_class WHERE oid >= 16384 AND relname NOT LIKE 'pg\\_%' ORDER BY 1",
    "columns": "SELECT attrelid::bigint, attname, atttypid::bigint FROM pg_attribute"
    " WHERE attrelid IN (SELECT oid FROM pg_class WHERE relkind IN ('r', 'm') AND oid >= 16384) ORDER BY 1, attnum",
    "indexes": "SELECT indexrelid::bigint, indisvalid, indisready FROM pg_index WHERE indexrelid >= 16384 ORDER BY 1",
    "functions": "SELECT proname, prosrc FROM pg_proc WHERE oid >= 16384 ORDER BY 1",
    "schemas": "SELECT nspname FROM pg_namespace ORDER BY 1",
    "roles": "SELECT rolname FROM pg_roles ORDER BY 1",
    "databases": "SELECT datname, dattablespace::bigint FROM pg_database ORDER BY 1",
    "large objects": "SELECT count(*),"
    " md5(string_agg(md5(loid::text || pageno || data::text), '' ORDER BY loid, pageno)) FROM pg_largeobject",
    "owners of large objects": "SELECT oid::bigint, lomowner::bigint FROM pg_largeobject_metadata ORDER BY 1",
}


def picture(dsn: str) -> Picture:
    """Everything a backup must bring back, by database: rows of every table, sequences, large objects, catalog.

    Unlogged tables count as the empty tables that a backup makes of them.
    """
    found: Picture = {}
    with psycopg.connect(dsn, autocommit=True) as connection:
        names = [
            str(name)
            for (name,) in connection.execute("SELECT datname FROM pg_database WHERE datallowconn ORDER BY datname")
        ]
    for name in names:
        with psycopg.connect(psycopg.conninfo.make_conninfo(dsn, dbname=name), autocommit=True) as connection:
            found[name] = _of_database(connection)
    return found


def _of_database(connection: Connection) -> dict[str, object]:
    connection.execute("SET enable_indexscan = off")
    connection.execute("SET enable_indexonlyscan = off")
    connection.execute("SET enable_bitmapscan = off")
    found: dict[str, object] = {what: connection.execute(query).fetchall() for what, query in _CATALOG.items()}
    for schema, table, kind, persistence in connection.execute(_STORED).fetchall():
        name = sql.Identifier(schema, table)
        if kind == "S":
            query = sql.SQL("SELECT last_value, is_called FROM {}").format(name)
        else:
            query = sql.SQL(
                "SELECT count(*), md5(string_agg(h, '' ORDER BY h COLLATE \"C\"))"
                ' FROM (SELECT md5(t::text COLLATE "C") h FROM ONLY {} t) x'
            ).format(name)
        empty = persistence == "u" and kind == "r"
        found[f"{schema}.{table}"] = [(0, None)] if empty else connection.execute(query).fetchall()
    return found


def assert_same(found: Picture, wanted: Picture, about: str) -> None:
    """Raises: AssertionError, that names the first things that differ."""
    different = [
        f"{name}: {what}: {str(found.get(name, {}).get(what))[:200]} is not {str(held)[:200]}"
        for name, things in wanted.items()
        for what, held in things.items()
        if found.get(name, {}).get(what) != held
    ]
    more = [name for name in found if name not in wanted]
    assert not different, f"{about}: " + "\n".join(different[:5])
    assert not more, f"{about}: databases {more} should not be there"


def assert_unlogged_empty_and_indexes_agree(dsn: str) -> None:
    """On a clone: unlogged tables are empty and usable; an index-only scan finds as many rows as reading the table.

    A visibility map that claims too much makes the index-only scan count deleted rows (PostgreSQL decision 2).
    """
    for name in picture_databases(dsn):
        with psycopg.connect(psycopg.conninfo.make_conninfo(dsn, dbname=name), autocommit=True) as connection:
            for schema, table, kind, persistence in connection.execute(_STORED).fetchall():
                if kind != "r" or not table.startswith("t_"):
                    continue
                counts = _both_counts(connection, sql.Identifier(schema, table))
                assert counts[0] == counts[1], f"{name}: {schema}.{table}: by index and by reading {counts}"
                assert persistence != "u" or counts == (0, 0), f"{name}: {schema}.{table} is unlogged and not empty"


def picture_databases(dsn: str) -> list[str]:
    """Databases that one can connect to."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        return [str(name) for (name,) in connection.execute("SELECT datname FROM pg_database WHERE datallowconn")]


def _both_counts(connection: Connection, name: sql.Identifier) -> tuple[int, int]:
    counts: list[int] = []
    for index, reading in (("on", "off"), ("off", "on")):
        connection.execute(f"SET enable_indexonlyscan = {index}")
        connection.execute(f"SET enable_seqscan = {reading}")
        connection.execute("SET enable_bitmapscan = off")
        row = connection.execute(sql.SQL("SELECT count(*) FROM {} WHERE n >= 0").format(name)).fetchone()
        counts.append(int(row[0]) if row else -1)
    return counts[0], counts[1]
