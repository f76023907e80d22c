"""A PostgreSQL server of the benchmark's own, quiet while it is measured: filled, vacuumed, frozen, checkpointed."""

from __future__ import annotations

import contextlib
import re
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from benchmarks.process import ContenderFailed, run
from benchmarks.workspace import Workspace, tree_bytes, tree_files
from datamanager.base.events import ignore
from datamanager.base.pipeline import StopToken
from datamanager.demo.clinic import create_clinic

# One unit of pgbench's scale is 100,000 accounts: 15 MB with its index (measured, PostgreSQL 15).
_PGBENCH_UNIT_BYTES = 15_700_000
# Tables of the many-files data: a heap, its key, its TOAST table and that one's index.
_FILES_PER_TABLE = 4
_TABLES_PER_TRANSACTION = 250
PAGE_BYTES = 8192

# The tables of the clinic are made with room on each page for another version of some row: a tenth of it, or of the
# notes, whose rows have 1.1 KB on average, three tenths. Given later, it would take a rewrite of the table.
_ROOMY_TABLES = """
CREATE FUNCTION public.leave_room() RETURNS event_trigger LANGUAGE plpgsql AS $$
DECLARE
    made record;
BEGIN
    FOR made IN SELECT c.oid::regclass AS name, CASE c.relname WHEN 'notes' THEN 70 ELSE 90 END AS fill
                FROM pg_event_trigger_ddl_commands() d JOIN pg_class c ON c.oid = d.objid
                WHERE d.classid = 'pg_class'::regclass AND c.relkind = 'r' LOOP
        EXECUTE format('ALTER TABLE %s SET (fillfactor = %s)', made.name, made.fill);
    END LOOP;
END $$;
CREATE EVENT TRIGGER leave_room ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION public.leave_room();
"""
_ROOMY_TABLES_END = "DROP EVENT TRIGGER leave_room; DROP FUNCTION public.leave_room();"

# Nothing may happen on its own between two rounds; everything else stays as PostgreSQL ships it.
_SETTINGS = """
listen_addresses = ''
unix_socket_directories = '{folder}'
port = {port}
shared_buffers = 256MB
max_connections = 30
max_wal_size = 16GB
checkpoint_timeout = 1h
autovacuum = off
wal_level = replica
max_wal_senders = 8
archive_mode = on
archive_command = '/bin/true'
"""


class BenchmarkServer:
    """Made, started, and on leaving the ``with`` block stopped. Its files go with the workspace."""

    def __init__(self, workspace: Workspace, programs: Path, name: str, port: int) -> None:
        self._workspace = workspace
        self.programs = programs
        self.port = port
        self.version = _server_version(programs)
        self.folder = workspace.account.make_folder(workspace.path / name)
        self.data = self.folder / "data"

    @property
    def major(self) -> int:
        return int(self.version.partition(".")[0])

    @property
    def dsn(self) -> str:
        return f"host={self.folder} port={self.port} user=postgres dbname=postgres"

    def __enter__(self) -> Self:
        initdb = [self._program("initdb"), "-D", str(self.data), "-U", "postgres", "--auth=trust"]
        self._run([*initdb, "-E", "UTF8", "--locale=C", "-k"])
        settings = _SETTINGS.format(folder=self.folder, port=self.port)
        if self.major >= 17:
            settings += "summarize_wal = on\n"
        with open(self.data / "postgresql.conf", "a") as file:
            file.write(settings)
        start = [self._program("pg_ctl"), "-D", str(self.data), "-l", str(self.folder / "log"), "-w", "start"]
        try:
            self._run(start)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        with contextlib.suppress(ContenderFailed):
            self._run([self._program("pg_ctl"), "-D", str(self.data), "-m", "immediate", "-w", "stop"])

    def connect(self, database: str = "postgres") -> psycopg.Connection[TupleRow]:
        return psycopg.connect(host=str(self.folder), port=self.port, user="postgres", dbname=database, autocommit=True)

    def fill(self, size_bytes: int, *, room: bool = False) -> None:
        """Half sample clinic, half pgbench; then still. Args: room - on every page for a changed row."""
        with self.connect() as connection:
            connection.execute("CREATE DATABASE clinic")
            connection.execute("CREATE DATABASE bench")
        with self.connect("clinic") as connection, StopToken() as stop:
            if room:
                connection.execute(_ROOMY_TABLES)
            create_clinic(connection, size_bytes // 2, 1, ignore, stop)
            if room:
                connection.execute(_ROOMY_TABLES_END)
        scale = max(1, round(size_bytes / 2 / _PGBENCH_UNIT_BYTES * (0.9 if room else 1.0)))
        pgbench = [self._program("pgbench"), "-h", str(self.folder), "-p", str(self.port), "-U", "postgres"]
        self._run([*pgbench, "-i", "-q", "-s", str(scale), *(["-F", "90"] if room else []), "bench"])
        self.settle("clinic", "bench")

    def fill_with_files(self, count: int) -> None:
        """About ``count`` small files: tables of one row each."""
        with self.connect() as connection:
            tables = count // _FILES_PER_TABLE
            for start in range(0, tables, _TABLES_PER_TRANSACTION):
                with connection.transaction():
                    for number in range(start, min(start + _TABLES_PER_TRANSACTION, tables)):
                        connection.execute(
                            f"CREATE TABLE small_{number} (id int PRIMARY KEY, body text);"
                            f"INSERT INTO small_{number} VALUES (1, 'x')"
                        )
        self.settle()

    def settle(self, *databases: str) -> None:
        """Freeze and checkpoint, so that no page changes by being read."""
        for database in databases or ("postgres",):
            with self.connect(database) as connection:
                connection.execute("VACUUM (FREEZE, ANALYZE)")
        self.checkpoint()

    def checkpoint(self) -> None:
        with self.connect() as connection:
            connection.execute("CHECKPOINT")

    def set_archive_command(self, command: str) -> None:
        """Takes effect at once. Raises: psycopg.Error."""
        with self.connect() as connection:
            connection.execute(sql.SQL("ALTER SYSTEM SET archive_command = {}").format(sql.Literal(command)))
            connection.execute("SELECT pg_reload_conf()")

    def data_bytes(self) -> int:
        """What a backup reads: the data directory without WAL."""
        return tree_bytes(self.data, "pg_wal")

    def data_files(self) -> int:
        return tree_files(self.data / "base")

    def _program(self, name: str) -> str:
        return str(self.programs / name)

    def _run(self, command: list[str]) -> None:
        run(command, account=self._workspace.account, cwd=self._workspace.path)


def _server_version(programs: Path) -> str:
    """``15.18``. Raises: ContenderFailed when there is no server in the folder."""
    try:
        answer = subprocess.run([str(programs / "postgres"), "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ContenderFailed(f"no PostgreSQL server in {programs}") from error
    match = re.search(r"(\d+\.\d+)", answer.stdout)
    if match is None:
        raise ContenderFailed(f"cannot read the version of the server: {answer.stdout.strip()}")
    return match[1]
