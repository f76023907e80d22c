"""``pg_amcheck`` on one database of the clone: indexes against their tables, tables against their own rules.

The extension is installed in the clone alone. Where program or extension is missing, that is said, and nothing else
suffers. Source: PostgreSQL documentation, pg_amcheck, amcheck (F.1); src/bin/pg_amcheck/pg_amcheck.c for its output.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg

from datamanager.base.errors import ProgramMissing, ServerError
from datamanager.base.pipeline import StopToken
from datamanager.drills.clone import Clone, Connection, Database, run
from datamanager.drills.counts import Counted
from datamanager.drills.findings import Finding, Kind
from datamanager.postgres.account import Account
from datamanager.postgres.fact_queries import printable
from datamanager.postgres.programs import Programs, run_program

PROGRAM = "pg_amcheck"
_JOBS = 2
_DAMAGE_FOUND = 2  # its exit status
_BEGIN = re.compile(
    r'(?P<what>heap table|btree index) "(?P<name>.*)"(?P<place>(?:, (?:block|offset|attribute) \d+)*):$'
)
_LONGEST_LINE = 64 * 1024
# Of one index, table or view, one finding is enough: a single torn page breaks hundreds of rows.
_RELATION = """
    SELECT n.nspname, c.relname, c.relkind = 'i', tn.nspname, t.relname, o.nspname, ot.relname
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_index i ON i.indexrelid = c.oid LEFT JOIN pg_class t ON t.oid = coalesce(i.indrelid, c.oid)
    LEFT JOIN pg_namespace tn ON tn.oid = t.relnamespace
    LEFT JOIN pg_class ot ON ot.reltoastrelid = t.oid AND t.relkind = 't'
    LEFT JOIN pg_namespace o ON o.oid = ot.relnamespace
    WHERE n.nspname || '.' || c.relname = {name} AND (c.relkind = 'i') = {index} LIMIT 1"""
_COLLATIONS_15 = """
    SELECT datcollversion, pg_database_collation_actual_version(oid) FROM pg_database
    WHERE datname = current_database()"""


def has_program(programs: Programs) -> bool:
    """Whether pg_amcheck is installed beside the server."""
    try:
        programs.path(PROGRAM)
    except ProgramMissing:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Installed:
    """What the extensions of a database are good for.

    Args: missing - why amcheck is not there; empty when it is. visibility - the schema of pg_visibility, quoted.
    """

    missing: str = ""
    visibility: str = ""


def install_extensions(clone: Clone, database: Database) -> Installed:
    """Put amcheck and pg_visibility into one database of the clone. Raises: ServerError, Cancelled."""
    with clone.session(database.name, writing=True) as session:
        for (name,) in run(
            session, "SELECT format('%I', evtname) FROM pg_event_trigger WHERE evtenabled <> 'D'"
        ).fetchall():
            run(session, f"ALTER EVENT TRIGGER {name} DISABLE")  # or it would run the owner's code
        return Installed(_install(session, "amcheck"), "" if _install(session, "pg_visibility") else _schema(session))


def _install(session: Connection, name: str) -> str:
    """Why it cannot be installed; empty when it is there now, in the version of this installation."""
    try:
        run(session, f"CREATE EXTENSION IF NOT EXISTS {name} WITH SCHEMA pg_catalog")
        run(session, f"ALTER EXTENSION {name} UPDATE")
    except psycopg.Error as error:
        if not error.sqlstate or error.sqlstate.startswith("57"):
            raise
        return " ".join((error.diag.message_primary or str(error)).split())
    return ""


def _schema(session: Connection) -> str:
    found = run(
        session,
        "SELECT format('%I', nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = extnamespace "
        "WHERE extname = 'pg_visibility'",
    ).fetchone()
    return str(found[0]) if found else ""


def check_database(
    clone: Clone,
    database: Database,
    programs: Programs,
    account: Account,
    output: Path,
    stop: StopToken,
) -> Counted:
    """Run pg_amcheck on one database; what it complains of are findings, one for each table or index.

    Args: output - a new file for what it says; it may say much.
    Raises: Cancelled; ServerError, when it could not do its work.
    """
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        done = run_program(
            programs,
            PROGRAM,
            [
                "--heapallindexed", "--parent-check", "--on-error-stop", f"--jobs={_JOBS}", "--no-password",
                f"--host={'127.0.0.1' if os.name == 'nt' else clone.socket}", f"--port={clone.port}",
                f"--username={clone.user}", _conninfo(database.name),
            ],
            account=account,
            stop=stop,
            on_executed=clone.executed,
            environment={
                "PGOPTIONS": clone.session_options,
                # From a database without an encoding, UTF8 would let the server refuse to send names that are not.
                "PGCLIENTENCODING": "SQL_ASCII" if database.encoding == "SQL_ASCII" else "UTF8",
            },
            combined_output=descriptor,
        )  # fmt: skip
    finally:
        os.close(descriptor)
    found = Counted()
    for finding in _findings(clone, database, output):
        found.found(finding)
    if done.status == 0 or (done.status == _DAMAGE_FOUND and found.findings):
        return found
    if not clone.stays_up():
        found.server_lost = True
        return found
    raise ServerError(f"check indexes of database {printable(database.name)}: {_complaint(output)}")


def _conninfo(name: str) -> str:
    """As a connection string, so that no name of a database is taken for one."""
    quoted = name.replace("\\", "\\\\").replace("'", "\\'")
    return f"dbname='{quoted}'"


def _findings(clone: Clone, database: Database, output: Path) -> Iterator[Finding]:
    """One for each relation that the output names, with the first thing that was said of it."""
    seen: set[tuple[str, str]] = set()
    with clone.session(database.name) as session:
        note = _sorts_otherwise(session)
        for what, name, said in _complaints(output):
            if (what, name) in seen:
                continue
            if len(seen) < 10_000:
                seen.add((what, name))
            yield _located(session, database, what, name, said, note)


def _complaints(output: Path) -> Iterator[tuple[str, str, str]]:
    """What each complaint is about, the name as pg_amcheck writes it, and its first line."""
    begun: re.Match[str] | None = None
    with output.open(encoding="utf-8", errors="surrogateescape") as file:
        while line := file.readline(_LONGEST_LINE):
            if line.startswith(" "):
                if begun is not None:
                    said = " ".join(re.sub(r"^\s*(ERROR|WARNING):\s*", "", line).split())
                    yield begun["what"], begun["name"], f"{begun['place'].lstrip(', ')}: {said}".lstrip(": ")
                begun = None
            else:
                begun = _BEGIN.match(line.rstrip("\n"))


def _located(session: Connection, database: Database, what: str, name: str, said: str, note: str) -> Finding:
    """A complaint with the table that it concerns; ``name`` is database.schema.relation without any quotes."""
    is_index = what == "btree index"
    title = printable(database.name)
    rest = name.removeprefix(f"{database.name}.")
    kind = Kind.INDEX if is_index else Kind.TABLE
    quoted = rest.replace("\\", "\\\\").replace("'", "''")
    statement = " ".join(_RELATION.split()).format(name=f"E'{quoted}'", index=is_index)
    try:
        found = run(session, statement).fetchone()
    except psycopg.Error:
        found = None
    if found is None:
        return Finding(kind, title, table="unknown" if is_index else printable(rest), index=printable(rest), said=said)
    schema, relation, _, table_schema, table, owner_schema, owner = found
    own = f"{printable(table_schema)}.{printable(table)}"
    if owner is not None:
        own = f"{printable(owner_schema)}.{printable(owner)} (its long values, {own})"
    index = f"{printable(schema)}.{printable(relation)}" if is_index else ""
    return Finding(kind, title, own, index, printable(said), note if is_index else "")


def _sorts_otherwise(session: Connection) -> str:
    """What may be wrong with indexes over text on this machine, though not on the original; empty when nothing is."""
    if session.info.server_version < 150000:
        return ""
    try:
        row = run(session, " ".join(_COLLATIONS_15.split())).fetchone()
    except psycopg.Error:
        return ""
    before, here = row if row else (None, None)
    if before is None or before == here:
        return ""
    return (
        f"this machine sorts text by version {here} of its rules, the original by {before}, so indexes over text must "
        "be rebuilt after a restore here; test on a machine like the original"
    )


def _complaint(output: Path) -> str:
    """Why pg_amcheck could not do its work."""
    with output.open("rb") as file:
        file.seek(max(0, output.stat().st_size - _LONGEST_LINE))
        lines = file.read().decode("utf-8", "replace").strip().splitlines()
    errors = [line for line in lines if "error: " in line] or lines[-1:] or ["it ended without a word"]
    return errors[0].removeprefix(f"{PROGRAM}: error: ")
