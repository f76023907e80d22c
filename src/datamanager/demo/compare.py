"""Is the restored copy the original? Counts and content hashes of tables, and the writer's unbroken run of commits.

Everything is computed by the server in SQL, so it works over any connection and ships no rows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from datamanager.base.errors import ServerError
from datamanager.base.units import Lsn
from datamanager.postgres.connection import server_errors

Connection = psycopg.Connection[TupleRow]

LARGE_OBJECTS = "pg_catalog.pg_largeobject"

# What turns values into text must be the same on both sides, whatever the roles and databases have configured.
_TEXT_FORM = """
    SET LOCAL timezone = 'UTC'; SET LOCAL datestyle = 'ISO, YMD'; SET LOCAL intervalstyle = 'postgres';
    SET LOCAL bytea_output = 'hex'; SET LOCAL extra_float_digits = 1; SET LOCAL xmlbinary = 'base64';
    SET LOCAL lc_monetary = 'C'; SET LOCAL search_path = pg_catalog;
"""

# Ordinary tables, partitions and materialized views. Unlogged and temporary tables are not part of a backup.
_TABLES = """
    SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'm') AND c.relpersistence = 'p' AND (c.relkind = 'r' OR c.relispopulated)
      AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%'
    ORDER BY 1, 2
"""
# The seed differs between the two sums, so that two changes that cancel out in one do not in the other.
_DIGEST = sql.SQL(
    'SELECT count(*), coalesce(sum(hashtextextended(t::text COLLATE "C", 0)), 0),'
    ' coalesce(sum(hashtextextended(t::text COLLATE "C", 1)), 0) FROM ONLY {} t'
)


class TableDigest(NamedTuple):
    """Number of rows, and a hash of their content that does not depend on their order."""

    rows: int
    content_hash: str


@dataclass(frozen=True, slots=True)
class CommitRunReport:
    """What ``commit_log`` of a restored copy holds against what the writer noted.

    ``missing`` and ``lost`` hold the first ten numbers at most: numbers absent below the highest, and commits noted
    at or before the end that are absent.
    """

    count: int
    highest: int
    required: int
    missing: tuple[int, ...]
    lost: tuple[int, ...]

    @property
    def ok(self) -> bool:
        """An unbroken run 1..n that holds every required commit."""
        return not self.missing and not self.lost and self.count == self.highest


def table_digests(connection: Connection, exclude: Collection[str] = ()) -> dict[str, TableDigest]:
    """Count and hash the content of every table of the connection's database, and its large objects.

    Args:
        connection: without an open transaction; its role must be able to read the tables (large objects: a superuser).
        exclude: names ``schema.table`` to leave out, as they stand in the result (no quotes).
    Returns: by ``schema.table``; large objects under ``LARGE_OBJECTS``. System schemas, unlogged and temporary tables
        are left out. All from one snapshot. Hashes compare between databases of one encoding and byte order.
    Raises: RightMissing, ServerUnreachable (retryable), ServerError.
    """
    with server_errors("compare tables"), connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        connection.execute(_TEXT_FORM)
        names = [(str(schema), str(table)) for schema, table in connection.execute(_TABLES)]
        names.append(("pg_catalog", "pg_largeobject"))
        return {
            f"{schema}.{table}": _digest(connection, schema, table)
            for schema, table in names
            if f"{schema}.{table}" not in exclude
        }


def check_commit_run(
    connection: Connection, commits: Sequence[tuple[int, Lsn]], end_lsn: Lsn, table: str = "public.commit_log"
) -> CommitRunReport:
    """Hold a restored ``commit_log`` against the writer's notes.

    Args:
        commits: the writer's notes: number and position noted after the commit.
        end_lsn: the end the backup reports; every commit noted at or before it must be there. Later ones may be.
    Raises: ServerError (also when the table is not there).
    """
    name = sql.Identifier(*table.split("."))
    required = sorted(number for number, noted in commits if noted <= end_lsn)
    with server_errors("check commits"), connection.transaction():
        row = connection.execute(sql.SQL("SELECT count(*), coalesce(max(n), 0) FROM {}").format(name)).fetchone()
        missing = _numbers(
            connection,
            sql.SQL(
                "SELECT g FROM generate_series(1, (SELECT max(n) FROM {0})) g"
                " WHERE NOT EXISTS (SELECT FROM {0} WHERE n = g) ORDER BY g LIMIT 10"
            ).format(name),
        )
        lost = _numbers(
            connection,
            sql.SQL("SELECT g FROM unnest(%s::bigint[]) g EXCEPT SELECT n FROM {} ORDER BY g LIMIT 10").format(name),
            (required,),
        )
    count, highest = row if row is not None else (0, 0)
    return CommitRunReport(count=int(count), highest=int(highest), required=len(required), missing=missing, lost=lost)


def _digest(connection: Connection, schema: str, table: str) -> TableDigest:
    row = connection.execute(_DIGEST.format(sql.Identifier(schema, table))).fetchone()
    if row is None:
        raise ServerError(f"compare tables: no answer for {schema}.{table}")
    count, first, second = (int(value) for value in row)
    # Each sum of 64-bit hashes modulo 2^64, so that its length does not grow with the table.
    return TableDigest(rows=count, content_hash=f"{first % 2**64:016x}{second % 2**64:016x}")


def _numbers(connection: Connection, query: sql.Composed, arguments: tuple[object, ...] = ()) -> tuple[int, ...]:
    return tuple(int(row[0]) for row in connection.execute(query, arguments or None))
