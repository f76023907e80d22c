"""Every table of a database is read row by row, every sequence and large object: what cannot be read is found.

Counted are tables, materialized views that hold something, TOAST tables and catalogs, each by itself (``ONLY``): a
partitioned table and a foreign one hold nothing of their own, and a foreign one would reach another server. Row
security hides nothing from the superuser who counts. Two sessions share the tables of a database.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import psycopg

from datamanager.base.errors import ServerError, ServerUnfit
from datamanager.base.pipeline import Channel, StopToken, TaskGroup
from datamanager.drills.clone import Clone, Connection, Database, run
from datamanager.drills.findings import Finding, Kind
from datamanager.postgres.connection_errors import error_of_query
from datamanager.postgres.fact_queries import printable

_SESSIONS = 2
# A list of tables is fetched in parts, so that a database with a million of them takes no more memory.
_PART = 500
_AHEAD = 64
# As many are told one by one; a broken drive would make millions.
MOST_FINDINGS = 50

_TABLES = f"""
    SELECT c.oid::bigint, n.nspname, c.relname, quote_ident(n.nspname) || '.' || quote_ident(c.relname),
           pg_relation_size(c.oid), n.nspname IN ('pg_catalog', 'information_schema', 'pg_toast'), c.relam = 2,
           tn.nspname, t.relname
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_class t ON c.relkind = 't' AND t.reltoastrelid = c.oid
    LEFT JOIN pg_namespace tn ON tn.oid = t.relnamespace
    WHERE c.oid > %s AND c.relkind IN ('r', 'm', 't') AND c.relpersistence <> 't' AND c.relispopulated
    ORDER BY c.oid LIMIT {_PART}"""
_OTHERS = """
    SELECT count(*) FILTER (WHERE relkind = 'f'), count(*) FILTER (WHERE relkind = 'm' AND NOT relispopulated),
           count(*) FILTER (WHERE relkind = 'p')
    FROM pg_class WHERE relpersistence <> 't'"""
_SIZE = """
    SELECT coalesce(sum(pg_relation_size(oid)), 0)::bigint FROM pg_class
    WHERE relkind IN ('r', 'm', 't') AND relpersistence <> 't' AND relispopulated"""
# md5 makes the server unpack every piece; length alone would be content with its header.
_LARGE_OBJECTS = """
    SELECT (SELECT count(*) FROM pg_largeobject_metadata), count(md5(data)) FROM pg_largeobject"""
_SEQUENCES = """
    SELECT c.oid::bigint, n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'S' AND c.relpersistence <> 't' ORDER BY c.oid"""
# Each looks for pages whose rows the visibility map promises more of than they hold (decision 2).
_VISIBILITY = ("pg_check_visible", "pg_check_frozen")


@dataclass(slots=True)
class Counted:
    """What was read of one database or of several. ``tables`` and ``rows`` are the users' own, without catalogs."""

    databases: int = 0
    tables: int = 0
    rows: int = 0
    bytes: int = 0
    large_objects: int = 0
    partitioned_tables: int = 0
    foreign_tables: int = 0
    views_not_populated: int = 0
    findings: list[Finding] = field(default_factory=list)
    more_findings: int = 0
    not_readable_here: list[str] = field(default_factory=list)
    server_lost: bool = False

    def add(self, other: Counted) -> None:
        for name in (
            "databases", "tables", "rows", "bytes", "large_objects", "partitioned_tables", "foreign_tables",
            "views_not_populated",
        ):  # fmt: skip
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for one in other.findings:
            self.found(one)
        self.more_findings += other.more_findings
        self.not_readable_here += other.not_readable_here
        self.server_lost = self.server_lost or other.server_lost

    def found(self, finding: Finding) -> None:
        """Keep a finding, or only count it once there are many."""
        if len(self.findings) < MOST_FINDINGS:
            self.findings.append(finding)
        else:
            self.more_findings += 1


@dataclass(frozen=True, slots=True)
class _Table:
    oid: int
    schema: str
    name: str
    quoted: str
    bytes: int
    system: bool
    heap: bool  # PostgreSQL's own access method, with a visibility map
    owner: str  # of a TOAST table: the table whose long values it holds

    @property
    def title(self) -> str:
        own = f"{printable(self.schema)}.{printable(self.name)}"
        return f"{self.owner} (its long values, {own})" if self.owner else own


class Reader:
    """Reads one database. One use.

    Args:
        on_bytes: told the size of each table that was read, from several threads.
        visibility: the schema, quoted, that has the functions of pg_visibility; empty when they are not there.
    """

    def __init__(
        self,
        clone: Clone,
        database: Database,
        stop: StopToken,
        on_bytes: Callable[[int], None],
        *,
        visibility: str,
    ) -> None:
        self._clone = clone
        self._database = database
        self._stop = stop
        self._on_bytes = on_bytes
        self._visibility = visibility
        self._counted = Counted(databases=1)
        self._lock = threading.Lock()

    def read(self) -> Counted:
        """Everything in it. What cannot be read is a finding; when the server goes away, the rest is left out.

        Raises: Cancelled; ServerError, when something else than the data stands in the way.
        """
        with TaskGroup(self._stop) as group:
            tables: Channel[_Table] = group.channel(_AHEAD)
            for number in range(_SESSIONS):
                group.start(f"count {number}", lambda: self._read_tables(tables))
            group.start("list tables", lambda: self._list(tables))
        for read in (self._read_sequences, self._read_large_objects):
            if not self._counted.server_lost:
                read()
        return self._counted

    def _list(self, tables: Channel[_Table]) -> None:
        try:
            with self._clone.session(self._database.name) as session:
                foreign, empty, partitioned = map(_number, one_row(session, _OTHERS))
                counted = self._counted
                counted.foreign_tables, counted.views_not_populated = foreign, empty
                counted.partitioned_tables = partitioned
                for table in _tables(session):
                    if self._lost():
                        break
                    tables.put(table)
        except psycopg.Error as error:
            self._stop.check()
            self._failed(error, "pg_catalog.pg_class")
        except ServerError as error:
            self._note_lost(error)
        finally:
            tables.close()

    def _read_tables(self, tables: Channel[_Table]) -> None:
        try:
            with self._clone.session(self._database.name) as session:
                for table in tables:
                    if self._lost():
                        continue
                    self._read_table(session, table)
                    self._on_bytes(table.bytes)
        except ServerError as error:
            self._note_lost(error)
            for _ in tables:
                pass  # whoever lists them must not wait for a reader for ever

    def _read_table(self, session: Connection, table: _Table) -> None:
        rows = self._asked(session, f"SELECT count(*) FROM ONLY {table.quoted}", table.title)
        if rows is None:
            return
        with self._lock:
            self._counted.bytes += table.bytes
            if not table.system:
                self._counted.tables += 1
                self._counted.rows += rows
        for function in _VISIBILITY if self._visibility and table.heap else ():
            call = f"{self._visibility}.{function}({table.oid}::regclass)"
            wrong = self._asked(session, f"SELECT count(*) FROM {call}", table.title)
            if wrong:
                said = f"{wrong} row{'' if wrong == 1 else 's'} according to {function}"
                with self._lock:
                    self._counted.found(
                        Finding(Kind.VISIBILITY, printable(self._database.name), table.title, said=said)
                    )

    def _asked(self, session: Connection, statement: str, title: str) -> int | None:
        """A number; None when what it is about cannot be read, which was noted."""
        try:
            found = run(session, statement).fetchone()
        except psycopg.Error as error:
            self._stop.check()
            self._failed(error, title)
            return None
        return _number(found[0]) if found else 0

    def _read_sequences(self) -> None:
        """A sequence that is lost makes the first new row of its table fail."""
        try:
            with self._clone.session(self._database.name) as session:
                for oid, schema, name in run(session, " ".join(_SEQUENCES.split())).fetchall():
                    title = f"{printable(str(schema))}.{printable(str(name))} (a sequence)"
                    # What pg_sequence_last_value gives is null for one that was never used.
                    self._asked(session, f"SELECT count(pg_sequence_last_value({_number(oid)}))", title)
                    if self._lost():
                        return
        except psycopg.Error as error:
            self._stop.check()
            self._failed(error, "pg_catalog.pg_class")
        except ServerError as error:
            self._note_lost(error)

    def _read_large_objects(self) -> None:
        try:
            with self._clone.session(self._database.name) as session:
                objects, _ = one_row(session, _LARGE_OBJECTS)
                self._counted.large_objects = _number(objects)
        except psycopg.Error as error:
            self._stop.check()
            self._failed(error, "pg_catalog.pg_largeobject")
        except ServerError as error:
            self._note_lost(error)

    def _lost(self) -> bool:
        with self._lock:
            return self._counted.server_lost

    def _failed(self, error: psycopg.Error, title: str) -> None:
        """Note why something could not be read. Raises: ServerError, when that says nothing about the data."""
        database = printable(self._database.name)
        said = " ".join((error.diag.message_primary or str(error)).split())
        code = error.sqlstate or ""
        if not code and not isinstance(error, psycopg.OperationalError):
            raise error_of_query(f"read {title} of database {database}", error) from error
        with self._lock:
            if not code:
                # The process that read this table is gone; the others say that they end because of it.
                self._counted.found(Finding(Kind.CRASH, database, title))
            if not code or code.startswith(("08", "57P")):
                self._counted.server_lost = True
                return
            if is_missing_software(code, said):
                if len(self._counted.not_readable_here) < MOST_FINDINGS:
                    self._counted.not_readable_here.append(f"{title} of the database {database}: {said}")
                return
        if code.startswith(("53", "57")):
            raise error_of_query(f"read {title} of database {database}", error) from error
        with self._lock:
            self._counted.found(Finding(Kind.READ, database, title, said=said))

    def _note_lost(self, error: ServerError) -> None:
        """That the server is gone is noted; with a server that is there, the error is raised again."""
        self._stop.check()
        if self._clone.stays_up():
            raise error
        with self._lock:
            self._counted.server_lost = True


def is_missing_software(code: str, said: str) -> bool:
    """Whether a statement failed for want of a library that the source had, and not for its data."""
    return code == "0A000" or "could not access file" in said or "could not load library" in said


def refuse_missing_software(counted: Counted) -> None:
    """Raises: ServerUnfit, naming what this machine lacks; a drill that could not read everything proves nothing."""
    if counted.not_readable_here:
        more = len(counted.not_readable_here) - 1
        raise ServerUnfit(
            f"test backup: {counted.not_readable_here[0]}{f' (and {more} more)' if more else ''}",
            hint="Install the extensions of the original server on this machine, and run the test restore again.",
        )


def one_row(session: Connection, statement: str) -> tuple[object, ...]:
    """The only row. Raises: psycopg.Error."""
    found = run(session, " ".join(statement.split())).fetchone()
    if found is None:
        raise psycopg.DataError("no row")
    return found


def size_of_tables(session: Connection) -> int:
    """Bytes that will be read of this database. Raises: psycopg.Error."""
    return _number(one_row(session, _SIZE)[0])


def _tables(session: Connection) -> Iterator[_Table]:
    last = 0
    while True:
        part = session.execute(" ".join(_TABLES.split()), (last,)).fetchall()
        for oid, schema, name, quoted, size, system, heap, owner_schema, owner in part:
            of = f"{printable(owner_schema)}.{printable(owner)}" if owner is not None else ""
            words = (str(schema), str(name), str(quoted))
            yield _Table(_number(oid), *words, _number(size or 0), bool(system), bool(heap), of)
        if len(part) < _PART:
            return
        last = _number(part[-1][0])


def _number(value: object) -> int:
    return int(str(value))
