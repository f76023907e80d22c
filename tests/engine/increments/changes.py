"""Random DDL and DML on a real server, the same for the same seed.

    changes = Changes(server, seed=1)
    changes.prepare()                     two tablespaces, two databases, a few tables
    changes.round(20)                     twenty random acts
    before = picture(server.dsn)          what it holds then (held.py)

Choices come from ``random.Random(seed)`` and from catalog queries in a fixed order, contents from ``md5(n::text)``.
Tablespaces are created by ``prepare`` only: a backup during which one is created is refused. The whole cluster stays
below ``LIMIT_BYTES``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.rows import TupleRow

from tests.servers import Server

Connection = psycopg.Connection[TupleRow]

LIMIT_BYTES = 110 << 20
SPACES = ("pg_default", "one", "two")
_FIRST_DATABASES = ("alpha", "beta")
_MOST_DATABASES = 3
_SCHEMAS = ("public", "side")

# Rows of about 100 bytes: from a single page to 20 MB, small ones far more often.
_ROWS = (1, 40, 40, 700, 3000, 3000, 9000, 30000, 150000)

_TABLES = """
    SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND n.nspname IN ('public', 'side') AND c.relname LIKE 't\\_%' ORDER BY 1, 2
"""
_INDEXES = """
    SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'i' AND n.nspname IN ('public', 'side') AND c.relname LIKE 't\\_%' ORDER BY 1, 2
"""
_KINDS = {
    "btree": "body",
    "hash": "body",
    "brin": "n",
    "gin": "to_tsvector('simple'::regconfig, body)",
    "gist": "point(n::float8, mark::float8)",
    "spgist": "body",
}


class Changes:
    """Changes a server at random. One thread. ``journal`` holds what was done, for the report of a failure."""

    def __init__(self, server: Server, seed: int) -> None:
        self.server = server
        self.random = random.Random(seed)
        self.journal: list[str] = []
        self._number = 0
        self._here = ""

    # -- the frame -----------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make tablespaces, databases and the first tables."""
        for name in SPACES[1:]:
            self.server.tablespace(name)
        for name in _FIRST_DATABASES:
            self._do(None, f"CREATE DATABASE {name}")
            with self._in(name) as connection:
                self._do(connection, "CREATE SCHEMA side")
                for _ in range(4):
                    self.create_table(connection)
                self.large_objects(connection)
                self.sequences(connection)

    def round(self, count: int, *, beside_backup: bool = False) -> None:
        """Do ``count`` random acts, each in a random database, with a checkpoint now and then.

        Args: beside_backup - leave out what no backup survives, PostgreSQL's own neither: its replay of a database
        copied by files whose source is gone by then leaves the copy empty.
        """
        inside: list[Any] = [
            *[self.create_table, self.extend, self.update_scattered, self.delete_scattered] * 3,
            *[self.shrink, self.vacuum, self.build_index, self.large_objects, self.sequences] * 2,
            *[self.drop_table, self.truncate, self.vacuum_full, self.reindex, self.cluster, self.move_table],
            *[self.move_index, self.drop_index, self.persistence, self.materialized_view, self.rewrite],
            *[self.rolled_back, self.savepoints, self.schema, self.lines_of_catalog, self.freeze],
        ]
        outside: list[Any] = [self.checkpoint, self.checkpoint]
        if not beside_backup:
            outside += [self.create_database, self.drop_database, self.move_database]
        for _ in range(count):
            act = self.random.choice(inside + outside)
            if act in outside:
                act()
                continue
            with self._in(self.random.choice(self.databases())) as connection:
                if act in (self.create_table, self.extend, self.rewrite) and self._full():
                    self.drop_largest(connection)
                else:
                    act(connection)

    def databases(self) -> list[str]:
        """The databases that take part, by name."""
        query = "SELECT datname FROM pg_database WHERE datname ~ '^(alpha|beta|d_)' ORDER BY datname"
        return [name for (name,) in self.server.sql(query)]

    @contextmanager
    def _in(self, database: str) -> Iterator[Connection]:
        with self.server.connect(database=database) as connection:
            self._here = database
            yield connection

    def _do(self, connection: Connection | None, statement: str) -> None:
        self.journal.append(f"{self._here if connection else 'postgres'}: {statement}")
        if connection is None:
            self.server.sql(statement)
        else:
            connection.execute(statement)

    def _full(self) -> bool:
        return int(self.server.value("SELECT sum(pg_database_size(oid)) FROM pg_database")) > LIMIT_BYTES

    def _new(self, prefix: str) -> str:
        self._number += 1
        return f"{prefix}_{self._number}"

    def _one_of(self, connection: Connection, query: str = _TABLES) -> str | None:
        found = [f"{schema}.{name}" for schema, name in connection.execute(query)]
        return self.random.choice(found) if found else None

    def _chance(self, share: float) -> bool:
        return self.random.random() < share

    # -- tables --------------------------------------------------------------------------------------------------------

    def create_table(self, connection: Connection) -> None:
        schemas = [name for (name,) in connection.execute("SELECT nspname FROM pg_namespace ORDER BY 1")]
        schema = self.random.choice([one for one in _SCHEMAS if one in schemas])
        name = f"{schema}.{self._new('t')}"
        kind = "UNLOGGED " if self._chance(0.12) else ""
        fill = self.random.choice([100, 100, 70, 30])
        space = self.random.choice([SPACES[0], *SPACES])
        self._do(
            connection,
            f"CREATE {kind}TABLE {name} (n bigint PRIMARY KEY, mark int, body text, wide text)"
            f" WITH (fillfactor = {fill}) TABLESPACE {space}",
        )
        if self._chance(0.2):
            self._do(connection, f"ALTER TABLE {name} ALTER wide SET STORAGE EXTERNAL")
        self._insert(connection, name, self.random.choice(_ROWS))

    def _insert(self, connection: Connection, name: str, rows: int) -> None:
        (last,) = connection.execute(f"SELECT coalesce(max(n), 0) FROM {name}").fetchone() or (0,)
        wide = "repeat(md5(g::text), 300)" if rows <= 200 and self._chance(0.5) else "NULL"
        self._do(
            connection,
            f"INSERT INTO {name} (n, mark, body, wide) SELECT g, g % 97, md5(g::text) || md5((-g)::text), {wide}"
            f" FROM generate_series({last + 1}, {last + rows}) g",
        )

    def extend(self, connection: Connection) -> None:
        if name := self._one_of(connection):
            self._insert(connection, name, self.random.choice(_ROWS))

    def shrink(self, connection: Connection) -> None:
        """Delete the tail and let VACUUM give the pages back, at times with new rows right after."""
        if name := self._one_of(connection):
            share = self.random.choice([0.0, 0.3, 0.6, 0.9])
            self._do(connection, f"DELETE FROM {name} WHERE n > (SELECT max(n) * {share} FROM {name})")
            self._do(connection, f"VACUUM (TRUNCATE true) {name}")
            if self._chance(0.4):
                self._insert(connection, name, self.random.choice(_ROWS[:6]))

    def _scattered(self, column: str = "n") -> str:
        modulus, salt = self.random.choice([3, 20, 200, 1000]), self.random.randrange(1000)
        return f"abs(hashint8({column} + {salt})) % {modulus} = 0"

    def update_scattered(self, connection: Connection) -> None:
        if name := self._one_of(connection):
            self._do(connection, f"UPDATE {name} SET mark = mark + 1 WHERE {self._scattered()}")

    def delete_scattered(self, connection: Connection) -> None:
        if name := self._one_of(connection):
            self._do(connection, f"DELETE FROM {name} WHERE {self._scattered()}")

    def vacuum(self, connection: Connection) -> None:
        if name := self._one_of(connection):
            self._do(connection, f"VACUUM (ANALYZE) {name}")

    def freeze(self, connection: Connection) -> None:
        name = self._one_of(connection) if self._chance(0.7) else ""
        self._do(connection, f"VACUUM (FREEZE) {name or ''}")

    def vacuum_full(self, connection: Connection) -> None:
        name = self.random.choice([self._one_of(connection), self._one_of(connection), "pg_class", "pg_attribute"])
        if name:
            self._do(connection, f"VACUUM FULL {name}")

    def truncate(self, connection: Connection) -> None:
        if name := self._one_of(connection):
            self._do(connection, f"TRUNCATE {name}")
            if self._chance(0.5):
                self._insert(connection, name, self.random.choice(_ROWS[:6]))

    def drop_table(self, connection: Connection) -> None:
        if name := self._one_of(connection):
            self._do(connection, f"DROP TABLE {name} CASCADE")

    def drop_largest(self, connection: Connection) -> None:
        tables = [f"{schema}.{name}" for schema, name in connection.execute(_TABLES)]
        sizes = {one: connection.execute("SELECT pg_total_relation_size(%s::regclass)", (one,)) for one in tables}
        largest = {one: row[0] for one, cursor in sizes.items() if (row := cursor.fetchone())}
        if largest:
            self._do(connection, f"DROP TABLE {max(largest, key=lambda one: (largest[one], one))} CASCADE")

    def persistence(self, connection: Connection) -> None:
        if name := self._one_of(connection):
            (kind,) = connection.execute(
                "SELECT relpersistence::text FROM pg_class WHERE oid = %s::regclass", (name,)
            ).fetchone() or ("p",)
            self._do(connection, f"ALTER TABLE {name} SET {'LOGGED' if kind == 'u' else 'UNLOGGED'}")

    def rewrite(self, connection: Connection) -> None:
        if name := self._one_of(connection):
            kind = self.random.choice(["int", "bigint", "numeric"])
            self._do(connection, f"ALTER TABLE {name} ALTER mark TYPE {kind}")
            if self._chance(0.3):
                column = self._new("added")
                self._do(connection, f"ALTER TABLE {name} ADD {column} text DEFAULT md5(txid_current()::text)")

    def cluster(self, connection: Connection) -> None:
        if name := self._one_of(connection):
            self._do(connection, f"CLUSTER {name} USING {name.split('.')[1]}_pkey")

    def move_table(self, connection: Connection) -> None:
        if name := self._one_of(connection):
            self._do(connection, f"ALTER TABLE {name} SET TABLESPACE {self.random.choice(SPACES)}")

    # -- indexes -------------------------------------------------------------------------------------------------------

    def build_index(self, connection: Connection) -> None:
        name = self._one_of(connection)
        if name is None:
            return
        kind = self.random.choice(sorted(_KINDS))
        how = "CONCURRENTLY " if self._chance(0.3) else ""
        new = self._new(f"{name.split('.')[1]}_{kind}")
        self._do(connection, f"CREATE INDEX {how}{new} ON {name} USING {kind} (({_KINDS[kind]}))")

    def drop_index(self, connection: Connection) -> None:
        name = self._one_of(connection, _INDEXES)
        if name and not name.endswith("_pkey"):
            how = "CONCURRENTLY " if self._chance(0.3) else ""
            self._do(connection, f"DROP INDEX {how}{name}")

    def reindex(self, connection: Connection) -> None:
        how = "CONCURRENTLY " if self._chance(0.5) else ""
        if self._chance(0.5):
            if name := self._one_of(connection, _INDEXES):
                self._do(connection, f"REINDEX INDEX {how}{name}")
        elif name := self._one_of(connection):
            self._do(connection, f"REINDEX TABLE {how}{name}")

    def move_index(self, connection: Connection) -> None:
        if name := self._one_of(connection, _INDEXES):
            self._do(connection, f"ALTER INDEX {name} SET TABLESPACE {self.random.choice(SPACES)}")

    # -- other objects -------------------------------------------------------------------------------------------------

    def large_objects(self, connection: Connection) -> None:
        """Create some, overwrite some, unlink some."""
        count, turns = self.random.choice([1, 5, 20]), self.random.choice([1, 100, 2000])
        self._do(
            connection,
            f"SELECT lo_from_bytea(0, decode(repeat(md5(g::text), {turns}), 'hex')) FROM generate_series(1, {count}) g",
        )
        if self._chance(0.5):
            self._do(
                connection,
                "SELECT lo_put(oid, 100, decode(md5(oid::text), 'hex')) FROM pg_largeobject_metadata"
                f" WHERE {self._scattered('oid::bigint')}",
            )
        if self._chance(0.5):
            self._do(
                connection, f"SELECT lo_unlink(oid) FROM pg_largeobject_metadata WHERE {self._scattered('oid::bigint')}"
            )

    def sequences(self, connection: Connection) -> None:
        found = [name for (name,) in connection.execute("SELECT relname FROM pg_class WHERE relkind = 'S' ORDER BY 1")]
        if not found or self._chance(0.3):
            self._do(connection, f"CREATE SEQUENCE {self._new('s')} START {self.random.randrange(1, 10**6)}")
        elif self._chance(0.2):
            self._do(connection, f"DROP SEQUENCE {self.random.choice(found)}")
        else:
            turns = self.random.choice([1, 20, 200])
            name = self.random.choice(found)
            self._do(connection, f"SELECT count(nextval('{name}')) FROM generate_series(1, {turns})")

    def materialized_view(self, connection: Connection) -> None:
        query = "SELECT schemaname, matviewname FROM pg_matviews ORDER BY 1, 2"
        if (name := self._one_of(connection, query)) and self._chance(0.7):
            act = "REFRESH" if self._chance(0.7) else "DROP"
            self._do(connection, f"{act} MATERIALIZED VIEW {name}")
        elif (table := self._one_of(connection)) is not None:
            (kind,) = connection.execute(
                "SELECT relpersistence::text FROM pg_class WHERE oid = %s::regclass", (table,)
            ).fetchone() or ("p",)
            if kind == "p":
                new = self._new("m")
                text = f"SELECT n % 50 AS g, count(*) AS c, min(body) AS b FROM {table} GROUP BY 1"
                self._do(connection, f"CREATE MATERIALIZED VIEW public.{new} AS {text}")

    def schema(self, connection: Connection) -> None:
        found = connection.execute("SELECT FROM pg_namespace WHERE nspname = 'side'").rowcount
        self._do(connection, "DROP SCHEMA side CASCADE" if found else "CREATE SCHEMA side")

    def lines_of_catalog(self, connection: Connection) -> None:
        """Many small catalog rows, and a role, which lives in the shared catalogs."""
        name = self._new("r")
        self._do(connection, f"CREATE ROLE {name} NOLOGIN")
        self._do(connection, f"CREATE FUNCTION {name}() RETURNS int LANGUAGE sql AS 'SELECT {self._number}'")
        self._do(connection, f"COMMENT ON FUNCTION {name}() IS '{name * 20}'")
        if self._chance(0.5):
            self._do(connection, f"DROP FUNCTION {name}()")
            self._do(connection, f"DROP ROLE {name}")

    def rolled_back(self, connection: Connection) -> None:
        """A transaction that creates, fills, truncates and then never was."""
        name, gone = self._one_of(connection), self._new("gone")
        self._do(connection, "BEGIN")
        self._do(connection, f"CREATE TABLE {gone} AS SELECT g, md5(g::text) FROM generate_series(1, 5000) g")
        if name:
            self._do(connection, f"TRUNCATE {name}")
            self._insert(connection, name, 500)
        self._do(connection, "ROLLBACK")

    def savepoints(self, connection: Connection) -> None:
        """Half of a transaction is rolled back, the other half committed."""
        if name := self._one_of(connection):
            self._do(connection, "BEGIN")
            self._insert(connection, name, 40)
            self._do(connection, "SAVEPOINT here")
            self._insert(connection, name, 700)
            self._do(connection, f"DELETE FROM {name} WHERE {self._scattered()}")
            self._do(connection, "ROLLBACK TO here")
            self._insert(connection, name, 40)
            self._do(connection, "COMMIT")

    # -- databases -----------------------------------------------------------------------------------------------------

    def create_database(self) -> None:
        found = self.databases()
        if len(found) >= _MOST_DATABASES or self._full():
            self.drop_database()
            return
        strategy = f" STRATEGY {self.random.choice(['file_copy', 'wal_log'])}" if self.server.major >= 15 else ""
        small = "SELECT datname FROM pg_database WHERE pg_database_size(oid) < 25000000 ORDER BY 1"
        templates = ["template0", *[one for (one,) in self.server.sql(small) if one in found]]
        space = self.random.choice(SPACES)
        template = self.random.choice(templates)
        statement = f"CREATE DATABASE {self._new('d')} TEMPLATE {template} TABLESPACE {space}{strategy}"
        self._unless_refused(statement)

    def drop_database(self) -> None:
        found = [one for one in self.databases() if one.startswith("d_")]
        if found:
            self._do(None, f"DROP DATABASE {self.random.choice(found)}")

    def move_database(self) -> None:
        name, space = self.random.choice(self.databases()), self.random.choice(SPACES)
        self._unless_refused(f"ALTER DATABASE {name} SET TABLESPACE {space}")

    def _unless_refused(self, statement: str) -> None:
        """Whether tables of the database lie in its new tablespace already is the server's to say: then nothing."""
        try:
            self._do(None, statement)
        except (psycopg.errors.ObjectNotInPrerequisiteState, psycopg.errors.FeatureNotSupported) as refused:
            self.journal.append(f"({refused})")

    def checkpoint(self) -> None:
        self._do(None, "CHECKPOINT")
        if self._chance(0.3):
            self._do(None, "SELECT pg_switch_wal()")
