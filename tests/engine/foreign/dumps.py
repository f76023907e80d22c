"""A small clinic in a database of its own, and everything PostgreSQL's programs make of it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from datamanager.base.clock import SystemClock
from datamanager.base.pipeline import StopToken
from datamanager.engine.foreign.database import DatabaseOptions, DatabaseResult, apply_database, plan_database
from datamanager.engine.foreign.recognise import ForeignFile, recognise
from datamanager.engine.foreign.target import NewDatabases
from datamanager.postgres.connection import ServerAddress
from tests.engine.conftest import Heard
from tests.servers import Server, binaries

ROWS = 3000
CLINIC = f"""
CREATE TABLE visits (id int PRIMARY KEY, note text);
INSERT INTO visits
  SELECT g, E'a note\\\\.\\n-- Name: x; Type: DATABASE; Schema: -; Owner: -\\n\\\\connect elsewhere ' || g
  FROM generate_series(1, {ROWS}) g;
CREATE TABLE empty_lines (line text);
INSERT INTO empty_lines SELECT '' FROM generate_series(1, 10);
CREATE FUNCTION quoted() RETURNS text LANGUAGE sql AS $body$
  select 'COPY visits FROM stdin;
\\restrict abc
GRANT ALL ON visits TO nobody_there;
DROP DATABASE clinic;'
$body$;
SELECT lo_from_bytea(4711, 'a large object');
ALTER TABLE visits OWNER TO doctor;
GRANT SELECT ON visits TO "the nurse";
"""
ROLES = ("doctor", "the nurse")


class Clinic:
    """The database and the folder for dumps. Made by ``clinic_of``."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.folder = folder

    def dump(self, name: str, *words: str, program: str = "pg_dump") -> Path:
        """Dump the clinic (or everything) into the folder, with the server's own program, and return the file."""
        made = self.server.folder / f"dump-{name}"
        whole = [] if program == "pg_dumpall" else ["clinic"]
        self.server.run(program, *words, "-f", made, *whole)
        target = self.folder / name
        shutil.copytree(made, target) if made.is_dir() else shutil.copy(made, target)
        shutil.rmtree(made) if made.is_dir() else made.unlink()
        return target


@contextlib.contextmanager
def clinic_of(server: Server, folder: Path) -> Iterator[Clinic]:
    """Make the clinic, and remove it with its roles at the end."""
    for role in ROLES:
        server.sql(f'CREATE ROLE "{role}"')
    server.sql("CREATE DATABASE clinic TEMPLATE template0")
    server.sql("ALTER DATABASE clinic SET work_mem = '7MB'")
    server.sql("GRANT CREATE ON DATABASE clinic TO doctor")
    server.sql("COMMENT ON DATABASE clinic IS 'the original'")
    try:
        server.script(CLINIC, database="clinic")
        yield Clinic(server, folder)
    finally:
        for name in databases_of(server) - {"postgres", "template0", "template1"}:
            server.sql(f'DROP DATABASE "{name}" WITH (FORCE)')
        for role in ROLES:
            server.sql(f'DROP ROLE IF EXISTS "{role}"')


def databases_of(server: Server) -> set[str]:
    return {name for (name,) in server.sql("SELECT datname FROM pg_database")}


def state_of(server: Server, database: str) -> tuple[object, ...]:
    """All of the clinic that a restore must bring back."""
    query = """SELECT (SELECT count(*) FROM visits), (SELECT md5(string_agg(note, '|' ORDER BY id)) FROM visits),
        (SELECT count(*) FROM empty_lines), quoted(), convert_from(lo_get(4711), 'UTF8'),
        (SELECT relowner::regrole::text FROM pg_class WHERE relname = 'visits'),
        (SELECT relacl::text FROM pg_class WHERE relname = 'visits')"""
    return server.sql(query, database=database)[0]


def into(
    server: Server,
    file: Path | ForeignFile,
    name: str,
    *,
    heard: Heard | None = None,
    create_roles: bool = False,
    no_owner: bool = False,
    keep_failed: bool = False,
    stop: StopToken | None = None,
) -> DatabaseResult:
    """Restore a dump into a new database of a server."""
    heard = heard or Heard()
    address = ServerAddress(server.dsn)
    with StopToken() as own:
        token = stop or own
        foreign = recognise(file, token) if isinstance(file, Path) else file
        databases = NewDatabases(address, token, heard, lambda text: None)
        try:
            path = binaries(server.version)
            options = DatabaseOptions(name, create_roles, no_owner, keep_failed, install_path=path)
            plan = plan_database(foreign, options, databases)
            return apply_database(plan, address, databases, SystemClock(), token, heard, lambda text: None)
        finally:
            databases.close()
