"""The sample clinic: a database of a given size with realistic rows, made fast from a seed, and its daily changes.

Sizes on disk: notes 45 %, images some 26 %, rows and indexes the rest. Everything but the images is loaded by COPY
first, then indexes and keys are made, then images fill up what is missing of the size asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, LiteralString

import numpy as np
import psycopg
from psycopg.rows import TupleRow

from datamanager.base.errors import ServerError, ServerUnfit, UsageError
from datamanager.base.events import Listener, PhaseStarted, Progress
from datamanager.base.pipeline import StopToken
from datamanager.base.units import MIB, format_size
from datamanager.demo.rows import ClinicRows, RowCounts, plan_rows, scan_images
from datamanager.demo.schema import CHANGES, INDEXES, REPLACED_TABLES, TABLES
from datamanager.demo.words import ClinicText
from datamanager.postgres.connection import server_errors

Connection = psycopg.Connection[TupleRow]

# Below this the fixed parts (empty tables, large objects, the smallest image) are more than the tolerance of the size.
SMALLEST_CLINIC_BYTES = 16 * MIB

_NOTES_SHARE = 0.45
_LARGE_OBJECT_BYTES = 200_000
_SCANS_PER_COPY = 64

_COPIES: dict[str, LiteralString] = {
    "staff": "COPY clinic.staff FROM STDIN",
    "patients": "COPY clinic.patients FROM STDIN",
    "visits": "COPY clinic.visits FROM STDIN",
    "prescriptions": "COPY clinic.prescriptions FROM STDIN",
    "appointments": "COPY clinic.appointments FROM STDIN",
    "referrals": 'COPY "Praxis Müller"."Überweisungen" FROM STDIN',
    "notes": "COPY clinic.notes FROM STDIN",
}


@dataclass(frozen=True, slots=True)
class ClinicFacts:
    """What was made: rows by table, bytes the database grew by on disk (without WAL)."""

    rows: dict[str, int]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ChangeFacts:
    """What a day at the clinic did: numbers of rows."""

    updated: int
    deleted: int
    inserted: int


def create_clinic(
    connection: Connection, size_bytes: int, seed: int, on_progress: Listener, stop: StopToken
) -> ClinicFacts:
    """Fill the connection's database with a sample clinic of about ``size_bytes`` on disk.

    Args:
        connection: without an open transaction; its role may create schemas and large objects.
        size_bytes: how much the database shall grow, indexes included, WAL not; at least 16 MiB; met within 10 %.
        seed: the same seed and size make the same rows on the same server version.
        on_progress: gets a PhaseStarted per table and Progress in bytes on disk (estimated within a table).
        stop: looked at some times a second; the step in work is rolled back, earlier steps stay.
    Raises: UsageError (too small, or the clinic is there already), ServerUnfit (encoding), Cancelled,
        and what ``server_errors`` makes of the server's refusals.
    """
    if size_bytes < SMALLEST_CLINIC_BYTES:
        raise UsageError(
            f"create sample clinic: {format_size(size_bytes)} is too small",
            hint=f"Ask for at least {format_size(SMALLEST_CLINIC_BYTES)}.",
        )
    with server_errors("create sample clinic"):
        return _Builder(connection, size_bytes, seed, on_progress, stop).build()


def change_clinic(connection: Connection, seed: int) -> ChangeFacts:
    """Do a day's work in one transaction: 1 % of the rows updated, some deleted, some inserted, a table replaced.

    Another seed touches other rows. Safe to call again and beside a running backup or writer.
    Raises: ServerError, and what ``server_errors`` makes of the server's refusals.
    """
    updated = deleted = 0
    text = ClinicText(seed)
    with server_errors("change sample clinic"), connection.transaction():
        for statement in CHANGES:
            count = connection.execute(statement, {"seed": seed}).rowcount
            if statement.startswith("DELETE"):
                deleted += count
            else:
                updated += count
        inserted = _insert_visits(connection, text)
        connection.execute(REPLACED_TABLES)
    return ChangeFacts(updated=updated, deleted=deleted, inserted=inserted)


def _insert_visits(connection: Connection, text: ClinicText) -> int:
    """One new visit with a note for every two hundred there are (at least ten), and one complaint."""
    row = connection.execute(
        "SELECT count(*), max(id), (SELECT max(id) FROM clinic.notes) FROM clinic.visits"
    ).fetchone()
    if row is None or row[1] is None:
        raise ServerError("change sample clinic: there are no visits")
    visits, last_visit, last_note = (int(value or 0) for value in row)
    count = max(10, visits // 200)
    connection.execute(
        "INSERT INTO clinic.visits SELECT %(last)s + g, p.id, 1, now(), 15, 'walk-in', nextval('clinic.invoice_number')"
        " FROM generate_series(1, %(count)s) g"
        " JOIN LATERAL (SELECT id FROM clinic.patients WHERE id >= 1 + g %% 7 ORDER BY id LIMIT 1) p ON true",
        {"last": last_visit, "count": count},
    )
    bodies = text.notes(count)
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO clinic.notes VALUES (%s, %s, now(), %s)",
            [(last_note + at, last_visit + at, body) for at, body in enumerate(bodies, 1)],
        )
    connection.execute(
        "CREATE TABLE IF NOT EXISTS clinic.complaints (id int PRIMARY KEY, filed timestamptz NOT NULL,"
        " body text NOT NULL)"
    )
    connection.execute(
        "INSERT INTO clinic.complaints SELECT coalesce(max(id), 0) + 1, now(), %s FROM clinic.complaints", (bodies[0],)
    )
    return 2 * count + 1


class _Builder:
    """One filling of one database, step by step; not thread-safe."""

    def __init__(
        self, connection: Connection, size_bytes: int, seed: int, on_progress: Listener, stop: StopToken
    ) -> None:
        self._connection = connection
        self._size_bytes = size_bytes
        self._seed = seed
        self._emit = on_progress
        self._stop = stop
        self._empty_bytes = 0
        self._done_bytes = 0

    def build(self) -> ClinicFacts:
        encoding = self._value("SHOW server_encoding")
        if encoding not in ("UTF8", "SQL_ASCII"):
            raise ServerUnfit(
                f"create sample clinic: the database's encoding is {encoding}",
                hint="Create the database with ENCODING 'UTF8' TEMPLATE template0.",
            )
        self._empty_bytes = int(self._value("SELECT pg_database_size(current_database())"))
        counts = plan_rows(self._size_bytes)
        if self._value("SELECT count(*) FROM pg_namespace WHERE nspname = 'clinic'"):
            raise UsageError(
                "create sample clinic: the database holds a sample clinic already", hint="Use a new, empty database."
            )
        with self._connection.transaction():
            self._connection.execute(TABLES)
        rows = self._copy_tables(counts)
        self._phase("indexes and keys")
        with self._connection.transaction():
            self._connection.execute(INDEXES)
        self._add_extras()
        rows["scans"] = self._fill_with_scans(counts.visits)
        self._phase("statistics")
        with self._connection.transaction():
            self._connection.execute("ANALYZE")
        return ClinicFacts(rows=rows, size_bytes=self._grown())

    def _copy_tables(self, counts: RowCounts) -> dict[str, int]:
        maker = ClinicRows(self._seed, counts)
        rows = {
            "staff": self._copy("staff", maker.staff()),
            "patients": self._copy("patients", maker.patients()),
            "visits": self._copy("visits", maker.visits()),
            "prescriptions": self._copy("prescriptions", maker.prescriptions()),
            "appointments": self._copy("appointments", maker.appointments()),
            "referrals": self._copy("referrals", maker.referrals()),
        }
        # A tenth of a note's bytes on disk lie outside its COPY line: row and page heads, two index entries (measured).
        rows["notes"] = self._copy("notes", maker.notes(), limit_bytes=int(self._size_bytes * _NOTES_SHARE * 0.9))
        return rows

    def _copy(self, table: str, blocks: Iterable[list[str]], limit_bytes: int | None = None) -> int:
        """COPY blocks of lines into a table until they end or ``limit_bytes`` of text were sent; rows sent."""
        self._phase(f"filling {table}")
        rows = sent_bytes = 0
        with self._connection.transaction(), self._connection.cursor().copy(_COPIES[table]) as copy:
            for lines in blocks:
                self._stop.check()
                data = "".join(lines).encode()
                copy.write(data)
                rows += len(lines)
                sent_bytes += len(data)
                self._advance(len(data))
                if limit_bytes is not None and sent_bytes >= limit_bytes:
                    break
        return rows

    def _add_extras(self) -> None:
        """Two large objects, a used sequence, a price list, patients in the unlogged waiting room."""
        generator = np.random.default_rng(self._seed + 1)
        with self._connection.transaction():
            for title in ("Consent form (scan)", "Einverständniserklärung"):
                self._connection.execute(
                    "INSERT INTO clinic.documents (title, content) VALUES (%s, lo_from_bytea(0, %s))",
                    (title, generator.bytes(_LARGE_OBJECT_BYTES)),
                )
            self._connection.execute(
                "INSERT INTO clinic.price_list SELECT 'P' || g, g * 1.15 FROM generate_series(1, 1500) g"
            )
            self._connection.execute("SELECT setval('clinic.invoice_number', max(invoice)) FROM clinic.visits")
            self._connection.execute("INSERT INTO clinic.waiting_room SELECT id FROM clinic.patients LIMIT 12")

    def _fill_with_scans(self, visits: int) -> int:
        """Images until the size is met; each COPY is a step of its own, so that the size can be measured between."""
        self._phase("filling scans")
        images = scan_images(self._seed, visits)
        rows, missing = 0, self._missing()
        while missing > 0:
            self._stop.check()
            with (
                self._connection.transaction(),
                self._connection.cursor().copy("COPY clinic.scans FROM STDIN (FORMAT BINARY)") as copy,
            ):
                copy.set_types(["int8", "int8", "text", "timestamptz", "bytea"])
                for _ in range(_SCANS_PER_COPY):
                    image = next(images)
                    copy.write_row(image)
                    rows += 1
                    self._advance(len(image[-1]))
                    missing -= len(image[-1])
                    if missing <= 0:
                        break
            missing = self._missing()
        return rows

    def _missing(self) -> int:
        """Bytes of images still to be written; out of line, 1,996 of each 2,038 bytes on a page are data."""
        return int((self._size_bytes - self._grown()) * 0.97) - 16 * 1024

    def _grown(self) -> int:
        return int(self._value("SELECT pg_database_size(current_database())")) - self._empty_bytes

    def _value(self, query: LiteralString) -> Any:
        with self._connection.transaction():
            row = self._connection.execute(query).fetchone()
        if row is None:
            raise ServerError(f"create sample clinic: no answer to {query}")
        return row[0]

    def _phase(self, name: str) -> None:
        self._stop.check()
        self._emit(PhaseStarted(name))

    def _advance(self, data_bytes: int) -> None:
        self._done_bytes = min(self._done_bytes + data_bytes, self._size_bytes)
        self._emit(Progress(self._done_bytes, self._size_bytes))
