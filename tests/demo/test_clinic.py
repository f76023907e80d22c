"""The sample clinic: as large as asked for, the same for the same seed, and holding what a backup must cope with."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
import zstandard

from datamanager.base.errors import Cancelled, ServerError, ServerUnfit, UsageError
from datamanager.base.events import Event, PhaseStarted, Progress, ignore
from datamanager.base.pipeline import StopToken
from datamanager.base.units import MIB
from datamanager.demo.clinic import change_clinic, create_clinic
from datamanager.demo.compare import LARGE_OBJECTS, table_digests
from tests.demo.conftest import Connection, NewDatabase

SMALL = 16 * MIB
# Large objects get their numbers from the server.
NUMBERED_BY_SERVER = (LARGE_OBJECTS, "clinic.documents")


@pytest.fixture
def stop() -> Iterator[StopToken]:
    with StopToken() as token:
        yield token


@pytest.fixture
def clinic(new_database: NewDatabase, stop: StopToken) -> Connection:
    connection = new_database()
    create_clinic(connection, SMALL, 5, ignore, stop)
    return connection


def value(connection: Connection, query: str) -> object:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


@pytest.mark.parametrize("size_bytes", [SMALL, 48 * MIB])
def test_a_clinic_takes_the_disk_it_was_asked_to_take(
    new_database: NewDatabase, stop: StopToken, size_bytes: int
) -> None:
    connection = new_database()
    before = int(str(value(connection, "SELECT pg_database_size(current_database())")))
    facts = create_clinic(connection, size_bytes, 1, ignore, stop)
    grown = int(str(value(connection, "SELECT pg_database_size(current_database())"))) - before
    assert grown == pytest.approx(size_bytes, rel=0.1)
    assert facts.size_bytes == pytest.approx(grown, rel=0.02)
    for table in ("patients", "visits", "notes", "scans"):
        assert facts.rows[table] == value(connection, f"SELECT count(*) FROM clinic.{table}")


def test_the_same_seed_makes_the_same_clinic_and_another_seed_another(
    new_database: NewDatabase, stop: StopToken
) -> None:
    digests = []
    for seed in (3, 3, 4):
        connection = new_database()
        create_clinic(connection, SMALL, seed, ignore, stop)
        digests.append(table_digests(connection, NUMBERED_BY_SERVER))
    assert digests[0] == digests[1]
    assert digests[0]["clinic.notes"] != digests[2]["clinic.notes"]
    assert digests[0]["clinic.scans"] != digests[2]["clinic.scans"]


def test_notes_compress_like_written_text_and_images_do_not(clinic: Connection) -> None:
    notes = "".join(str(row[0]) for row in clinic.execute("SELECT body FROM clinic.notes ORDER BY id")).encode()
    images = b"".join(bytes(row[0]) for row in clinic.execute("SELECT image FROM clinic.scans ORDER BY id"))
    compressor = zstandard.ZstdCompressor(level=1)
    assert 3 < len(notes) / len(compressor.compress(notes)) < 4.2
    assert len(images) / len(compressor.compress(images)) < 1.02


def test_a_clinic_holds_what_a_backup_must_cope_with(clinic: Connection) -> None:
    def count(condition: str) -> int:
        return int(str(value(clinic, f"SELECT count(*) FROM {condition}")))

    assert count("pg_class WHERE relpersistence = 'u' AND relname = 'waiting_room'") == 1
    assert count("clinic.waiting_room") == 12
    assert count("pg_class WHERE relkind = 'p'") == 1
    assert count("pg_class WHERE relkind = 'm' AND relispopulated") == 1
    assert count("pg_class WHERE relkind = 'v' AND relname = 'open_balances'") == 1
    assert count("pg_constraint WHERE contype = 'f' AND convalidated") == 6
    assert count("pg_largeobject_metadata") == 2
    assert (
        count("pg_attribute WHERE attrelid = 'clinic.scans'::regclass AND attname = 'image' AND attstorage = 'e'") == 1
    )
    assert count('"Praxis Müller"."Überweisungen" WHERE "備考" LIKE \'%備考\'') > 0
    assert count("clinic.patients WHERE last_name ~ '[^ -~]'") > 0
    assert value(clinic, "SELECT nextval('clinic.invoice_number') > max(invoice) FROM clinic.visits") is True


def test_progress_names_each_phase_and_never_falls(new_database: NewDatabase, stop: StopToken) -> None:
    events: list[Event] = []
    create_clinic(new_database(), SMALL, 1, events.append, stop)
    phases = [event.phase for event in events if isinstance(event, PhaseStarted)]
    assert {"filling patients", "filling notes", "filling scans", "indexes and keys"} <= set(phases)
    done = [event.done_bytes for event in events if isinstance(event, Progress)]
    assert done == sorted(done)
    assert {event.total_bytes for event in events if isinstance(event, Progress)} == {SMALL}
    assert SMALL / 2 < done[-1] <= SMALL


def test_a_stop_ends_the_filling_and_leaves_the_connection_usable(new_database: NewDatabase, stop: StopToken) -> None:
    connection = new_database()

    def stop_in_notes(event: Event) -> None:
        if event == PhaseStarted("filling notes"):
            stop.stop("asked to")

    with pytest.raises(Cancelled, match="asked to"):
        create_clinic(connection, SMALL, 1, stop_in_notes, stop)
    assert value(connection, "SELECT count(*) FROM clinic.notes") == 0
    assert value(connection, "SELECT count(*) > 0 FROM clinic.visits") is True


def test_a_clinic_that_is_too_small_is_refused(new_database: NewDatabase, stop: StopToken) -> None:
    with pytest.raises(UsageError, match="too small") as caught:
        create_clinic(new_database(), MIB, 1, ignore, stop)
    assert "16.0 MiB" in caught.value.hint


def test_a_second_clinic_in_the_same_database_is_refused(clinic: Connection, stop: StopToken) -> None:
    before = table_digests(clinic)
    with pytest.raises(UsageError, match="already"):
        create_clinic(clinic, SMALL, 6, ignore, stop)
    assert table_digests(clinic) == before


def test_a_database_that_cannot_hold_the_names_is_refused(new_database: NewDatabase, stop: StopToken) -> None:
    with pytest.raises(ServerUnfit, match="LATIN1") as caught:
        create_clinic(new_database(encoding="LATIN1"), SMALL, 1, ignore, stop)
    assert "UTF8" in caught.value.hint


def test_a_day_changes_about_one_percent_of_the_notes_all_over_the_table(clinic: Connection) -> None:
    notes = int(str(value(clinic, "SELECT count(*) FROM clinic.notes")))
    untouched = table_digests(clinic)["clinic.staff"]
    facts = change_clinic(clinic, 1)
    changed = [int(row[0]) for row in clinic.execute("SELECT id FROM clinic.notes WHERE body LIKE '% Reviewed.'")]
    assert 0.005 < len(changed) / notes < 0.02
    assert {number * 5 // (notes + 1) for number in changed} == set(range(5))
    assert facts.updated > len(changed)
    assert facts.deleted > 0
    assert facts.inserted > 0
    assert table_digests(clinic)["clinic.staff"] == untouched


@pytest.mark.pg("14,18")
def test_a_day_replaces_a_table_and_another_day_changes_other_rows(clinic: Connection) -> None:
    places = [value(clinic, "SELECT 'clinic.price_list'::regclass::oid")]
    change_clinic(clinic, 1)
    places.append(value(clinic, "SELECT 'clinic.price_list'::regclass::oid"))
    first = {row[0] for row in clinic.execute("SELECT id FROM clinic.notes WHERE body LIKE '%Reviewed.'")}
    change_clinic(clinic, 2)
    both = {row[0] for row in clinic.execute("SELECT id FROM clinic.notes WHERE body LIKE '%Reviewed.'")}
    assert places[0] != places[1]
    assert len(both - first) > 0
    assert value(clinic, "SELECT count(*) FROM clinic.complaints") == 2


def test_a_change_without_a_clinic_fails_and_changes_nothing(new_database: NewDatabase) -> None:
    connection = new_database()
    with pytest.raises(ServerError, match="change sample clinic: relation"):
        change_clinic(connection, 1)
    assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
