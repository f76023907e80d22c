"""Damage that a backup brings along although every stored byte is as it was read: a test restore finds and names it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from datamanager.base.errors import ServerError
from datamanager.drills.findings import Kind, remedy, summary
from tests.conftest import NewServer
from tests.drills.conftest import Drills
from tests.servers import Server

PAGE = 8192
PATIENTS = """
    create schema office;
    create table office.patients (id int primary key, name text);
    insert into office.patients select n, 'patient ' || n from generate_series(1, 2000) n;
    create index patients_by_name on office.patients (name);
    create table office.visits as select n from generate_series(1, 5000) n;
    checkpoint;
"""


def path_of(server: Server, relation: str) -> Path:
    return server.data_directory / str(server.value("select pg_relation_filepath(%s)", relation))


@contextlib.contextmanager
def stopped(server: Server) -> Iterator[None]:
    server.sql("checkpoint")
    server.stop()
    yield
    server.start()


def read_page(path: Path, block: int) -> bytes:
    with path.open("rb") as file:
        file.seek(block * PAGE)
        return file.read(PAGE)


def write_page(path: Path, block: int, page: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(block * PAGE)
        file.write(page)


def new_office(new_server: NewServer, **options: object) -> Server:
    server = new_server(config={"autovacuum": "off"}, **options)  # type: ignore[arg-type]
    server.script(PATIENTS)
    return server


def with_stale_index_page(server: Server) -> None:
    """An index page becomes an older one of itself, whose checksum is right: what a drive does that loses a write."""
    index = path_of(server, "office.patients_by_name")
    with stopped(server):
        before = read_page(index, 1)
    server.sql("insert into office.patients select n, 'patient 10' || n from generate_series(3000, 3040) n")
    with stopped(server):
        assert read_page(index, 1) != before
        write_page(index, 1, before)


@pytest.mark.pg("15,17,18")
def test_an_index_page_that_went_back_in_time_is_found_and_named(new_server: NewServer, drills: Drills) -> None:
    server = new_office(new_server)
    with_stale_index_page(server)
    manifest = drills.works.back_up(server).manifest
    assert not manifest.damaged  # its checksum is right, so nobody noticed
    result = drills.run(manifest)
    (finding,) = result.findings
    assert (finding.kind, finding.database) == (Kind.INDEX, "postgres")
    assert (finding.table, finding.index) == ("office.patients", "office.patients_by_name")
    assert summary(result.findings).startswith(
        "in the database postgres the index office.patients_by_name of the table office.patients is damaged: "
    )
    assert "REINDEX INDEX office.patients_by_name" in remedy(result.findings, manifest.backup)
    assert result.checks()["amcheck"] == "failed"
    drills.assert_nothing_left()


@pytest.mark.pg("15,17,18")
def test_a_page_that_cannot_be_read_is_found_without_checksums_and_without_amcheck(
    new_server: NewServer, drills: Drills
) -> None:
    server = new_office(new_server, initdb_args=("--no-data-checksums",))
    table = path_of(server, "office.visits")
    with stopped(server):
        write_page(table, 3, os.urandom(PAGE))
    manifest = drills.works.back_up(server).manifest
    result = drills.run(manifest, amcheck=False)
    (finding,) = result.findings
    assert (finding.kind, finding.table) == (Kind.READ, "office.visits")
    assert "invalid page in block 3" in finding.sentence
    assert result.counted.rows == 2000  # the rest was read all the same
    assert result.amcheck == "not asked for"
    drills.assert_nothing_left()


def test_a_table_whose_file_is_gone_is_found(new_server: NewServer, drills: Drills) -> None:
    server = new_office(new_server)
    table = path_of(server, "office.visits")
    with stopped(server):
        table.unlink()
    result = drills.run(drills.works.back_up(server).manifest, amcheck=False)
    assert [(one.kind, one.table) for one in result.findings] == [(Kind.READ, "office.visits")]


@pytest.mark.pg("15,18")
def test_a_sequence_that_was_lost_is_found_before_the_first_new_row_fails(
    new_server: NewServer, drills: Drills
) -> None:
    server = new_office(new_server)
    server.sql("create sequence office.numbers")
    sequence = path_of(server, "office.numbers")
    with stopped(server):
        write_page(sequence, 0, bytes(PAGE))
    result = drills.run(drills.works.back_up(server).manifest)
    assert [one.kind for one in result.findings] == [Kind.READ]
    assert "numbers" in summary(result.findings)
    drills.assert_nothing_left()


@pytest.mark.pg("15,18")
@pytest.mark.decision(2)
def test_a_visibility_map_that_went_back_in_time_is_found(new_server: NewServer, drills: Drills) -> None:
    server = new_office(new_server)
    server.sql("vacuum freeze office.visits")
    map_file = Path(f"{path_of(server, 'office.visits')}_vm")
    with stopped(server):
        before = read_page(map_file, 0)
    server.sql("delete from office.visits where n = 7")
    with stopped(server):
        write_page(map_file, 0, before)
    result = drills.run(drills.works.back_up(server).manifest)
    kinds = {one.kind for one in result.findings if one.table == "office.visits"}
    assert Kind.VISIBILITY in kinds
    assert result.checks()["visibility_maps"] == "failed"


class Backends(threading.Thread):
    """Sends a signal to the first session that it sees on a server below a folder."""

    def __init__(self, folder: Path, number: signal.Signals) -> None:
        super().__init__(daemon=True)
        self._folder = folder
        self._number = number
        self._ended = threading.Event()
        self.sent = 0

    def run(self) -> None:
        while not self._ended.is_set():
            for process in psutil.process_iter(["name"]):
                with contextlib.suppress(psutil.Error, OSError):
                    if process.info["name"] == "postgres" and Path(process.cwd()).is_relative_to(self._folder):
                        words = " ".join(process.cmdline())
                        if " postgres [local] " in words:
                            process.send_signal(self._number)
                            self.sent += 1
                            return
            time.sleep(0.002)

    def close(self) -> None:
        self._ended.set()
        self.join()


@contextlib.contextmanager
def hit(drills: Drills, number: signal.Signals) -> Iterator[None]:
    hitter = Backends(drills.options().scratch, number)
    hitter.start()
    try:
        yield
    finally:
        hitter.close()
    assert hitter.sent == 1
    drills.assert_nothing_left()


def test_a_server_that_crashes_over_the_data_is_a_finding(new_server: NewServer, drills: Drills) -> None:
    manifest = drills.works.back_up(new_office(new_server)).manifest
    with hit(drills, signal.SIGSEGV):
        result = drills.run(manifest)
    assert {one.kind for one in result.findings} == {Kind.CRASH}
    assert "signal 11" in result.findings[0].sentence


def test_a_server_that_is_killed_from_outside_says_nothing_about_the_backup(
    new_server: NewServer, drills: Drills
) -> None:
    manifest = drills.works.back_up(new_office(new_server)).manifest
    with hit(drills, signal.SIGKILL), pytest.raises(ServerError, match="ended from outside"):
        drills.run(manifest)
