"""Restores to a moment through the command line: times, positions, names, and what cannot be reached."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from datamanager.base.clock import SystemClock
from datamanager.base.units import Lsn, Secret
from datamanager.postgres.wal.names import segment_name, segment_start
from datamanager.repository.keys import SlotSecret
from datamanager.repository.repository import Repository
from datamanager.repository.wal.archive import WalArchive
from datamanager.repository.wal.container import WalInfo
from datamanager.storage.registry import open_storage
from tests.cli.caller import PASSPHRASE, Installation
from tests.conftest import NewServer
from tests.servers import Server, create, make_folder, remove_folder

SEGMENT = 1 << 20


@dataclass
class Office:
    """A cluster with a backup, an archive, and rows whose times of commit are known."""

    installation: Installation
    server: Server
    repository: Path
    backup: str = ""
    times: dict[int, datetime] = field(default_factory=dict)
    places: dict[int, Lsn] = field(default_factory=dict)

    def write(self, *rows: int) -> None:
        """Commit rows one by one, with moments between them."""
        with self.server.connect() as connection:
            for row in rows:
                connection.execute("insert into numbered values (%s)", (row,))
                ((now, flushed),) = connection.execute(
                    "select clock_timestamp(), pg_current_wal_flush_lsn()::text"
                ).fetchall()
                self.times[row], self.places[row] = now.astimezone(UTC), Lsn.parse(flushed)
                time.sleep(0.02)

    def archive(self, begin: Lsn | None = None) -> None:
        """What the server has flushed, from the backup's first segment on."""
        storage = open_storage(str(self.repository), growing=["wal"])
        with contextlib.closing(storage):
            repository = Repository.open(storage, SlotSecret.passphrase(Secret(PASSPHRASE)), SystemClock())
            archive = WalArchive(
                repository, int(self.server.value("select system_identifier from pg_control_system()"))
            )
            line = archive.line(1) or archive.begin_line(1, SEGMENT, b"", "office", self.server.version)
            reach = line.reach()
            at = reach[-1].end if reach else begin or Lsn(0)
            flushed = Lsn.parse(self.server.value("select pg_current_wal_flush_lsn()::text"))
            while at < flushed:
                start = segment_start(at, SEGMENT)
                end = min(flushed, Lsn(start + SEGMENT))
                data = (self.server.data_directory / "pg_wal" / segment_name(1, start, SEGMENT)).read_bytes()
                line.put(at, data[at - start : end - start], WalInfo(datetime.now(UTC).isoformat()))
                at = end

    def rows(self, new_server: NewServer, target: Path) -> list[int]:
        """What is found by whoever starts what was restored."""
        restored = new_server.adopt(target, self.server.version, own=False)
        found: list[int] = restored.value("select array_agg(n order by n) from numbered")
        restored.destroy()
        return found


@pytest.fixture(scope="module")
def office() -> Iterator[Office]:
    """Rows 1 to 3, a backup, 4 to 9, the restore point ``before import`` behind 6; then a quiet night."""
    folder = make_folder("moments")
    server = create(18, config={"wal_keep_size": "256MB"}, initdb_args=("--data-checksums", "--wal-segsize=1"))
    try:
        installation = Installation(folder)
        repository = installation.init()
        server.sql("create table numbered (n int primary key)")
        installation.ok("cluster", "add", "office", server.dsn, "--repo", "usb")
        installation.ok("config", "set", "clusters.office.install_path", str(server.bin))
        made = Office(installation, server, repository)
        made.write(1, 2, 3)
        first = installation.result("backup", "run", "office")
        made.backup = first["backup_id"]
        made.write(4, 5, 6)
        server.sql("select pg_create_restore_point('before import')")
        made.write(7, 8, 9)
        time.sleep(0.1)
        server.sql("checkpoint")
        made.archive(segment_start(Lsn.parse(first["start_lsn"]), SEGMENT))
        yield made
    finally:
        server.destroy()
        remove_folder(folder)


def test_latest_means_the_newest_moment_and_says_which(
    office: Office, new_server: NewServer, open_folder: Path
) -> None:
    target = open_folder / "restored"
    planned = office.installation.result("restore", "latest", "--target", target, "--dry-run")["recovery"]
    assert datetime.fromisoformat(planned["last_commit"]) <= office.times[9]
    assert planned["next_commit"] is None
    assert planned["timeline"] == 1
    assert planned["wal_bytes"] > 0
    done = office.installation.ok("restore", "latest", "--target", target)
    assert "the last commit included is of 20" in done.out
    assert "goes on as timeline 2" in done.out
    assert office.rows(new_server, target) == list(range(1, 10))
    assert [one.name for one in open_folder.iterdir()] == ["restored"]


@pytest.mark.decision(14)
def test_a_time_keeps_what_was_committed_up_to_it(office: Office, new_server: NewServer, open_folder: Path) -> None:
    zone = "America/New_York"
    for row in (4, 7):
        # A commit's own time is a little before the moment at which its session went on.
        moment = office.times[row] + timedelta(milliseconds=5)
        target = open_folder / f"to {row}"
        words = ("restore", "latest", "--to-time", moment.isoformat(), "--zone", zone, "--target", target)
        dry = office.installation.ok(*words, "--dry-run")
        assert f"Times are those of {zone}." in dry.out
        assert re.search(r"the next one, of 20\S+ \S+-0[45]:00, is not", dry.out)
        found = office.installation.result(*words)["recovery"]
        assert datetime.fromisoformat(found["last_commit"]) <= moment < datetime.fromisoformat(found["next_commit"])
        assert office.rows(new_server, target) == list(range(1, row + 1))


@pytest.mark.decision(14)
def test_a_moment_of_a_quiet_night_is_no_error(office: Office, new_server: NewServer, open_folder: Path) -> None:
    target = open_folder / "restored"
    moment = office.times[9] + timedelta(milliseconds=60)
    done = office.installation.run("restore", "latest", "--to-time", moment.isoformat(), "--target", target)
    assert done.code in (0, 3), done  # that nothing was committed between may be worth a warning
    assert office.rows(new_server, target) == list(range(1, 10))


def test_a_restore_point_and_a_position_are_moments_too(
    office: Office, new_server: NewServer, open_folder: Path
) -> None:
    named = open_folder / "named"
    office.installation.ok("restore", "latest", "--to-name", "before import", "--target", named)
    assert office.rows(new_server, named) == list(range(1, 7))
    placed = open_folder / "placed"
    found = office.installation.result("restore", office.backup, "--to-lsn", str(office.places[5]), "--target", placed)
    assert office.rows(new_server, placed) == list(range(1, 6))
    assert found["recovered"]["timeline"] == 2


def test_a_backup_named_alone_is_its_own_end(office: Office, new_server: NewServer, open_folder: Path) -> None:
    target = open_folder / "restored"
    found = office.installation.result("restore", office.backup, "--target", target)
    assert found["recovery"] is None
    assert office.rows(new_server, target) == [1, 2, 3]


def test_what_cannot_be_reached_is_refused_with_what_can(office: Office, open_folder: Path) -> None:
    target = open_folder / "restored"
    for words in (
        ("--to-time", "2020-01-01 12:00"),
        ("--to-time", "2099-01-01 12:00"),
        ("--to-lsn", "0/100"),
        ("--to-lsn", "FF/0"),
        ("--to-name", "after import"),
    ):
        done = office.installation.run("restore", "latest", *words, "--target", target)
        assert done.code == 53, done
        assert "reachable: 20" in done.errors
        assert not target.exists()


def test_times_that_clocks_show_twice_or_never_are_refused(office: Office, open_folder: Path) -> None:
    words = ("restore", "latest", "--zone", "Europe/Berlin", "--target", open_folder / "restored", "--to-time")
    twice = office.installation.run(*words, "2026-10-25 02:30")
    assert twice.code == 2
    assert "2026-10-25 02:30:00+02:00" in twice.errors
    assert "2026-10-25 02:30:00+01:00" in twice.errors
    assert office.installation.run(*words, "2026-03-29 02:30").code == 2
    assert office.installation.run(*words, "yesterday").code == 2
    assert office.installation.run(*words, "2026-10-25 02:30+01:00").code == 53


def test_contradicting_options_are_refused(office: Office, open_folder: Path) -> None:
    target = open_folder / "restored"
    both = ("--to-lsn", "0/100", "--to-name", "x")
    for words in (both, ("--pause", "--start"), ("--any-platform",), ("--to-lsn", "nowhere"), ("--zone", "Nowhere/X")):
        assert office.installation.run("restore", "latest", "--target", target, *words).code == 2, words
    alone = office.installation.run("restore", office.backup, "--target", target, "--pause")
    assert alone.code == 2
    assert "nothing is replayed" in alone.errors
    assert not target.exists()


def test_without_programs_of_that_major_nothing_is_begun(office: Office, open_folder: Path, tmp_path: Path) -> None:
    target = open_folder / "restored"
    office.installation.ok("config", "set", "clusters.office.install_path", str(tmp_path))
    try:
        done = office.installation.run("restore", "latest", "--target", target)
        dry = office.installation.run("restore", "latest", "--target", target, "--dry-run", "--json")
    finally:
        office.installation.ok("config", "set", "clusters.office.install_path", str(office.server.bin))
    assert done.code == dry.code == 26
    (first, *_) = dry.last["readiness"]
    assert (first["code"], first["level"]) == ("programs", "blocking")
    assert not target.exists()


def test_a_paused_restore_is_looked_at_then_kept_or_dropped(
    office: Office, new_server: NewServer, open_folder: Path
) -> None:
    target = open_folder / "it's a look"
    words = ("restore", "latest", "--to-lsn", str(office.places[6]), "--target", target, "--pause")
    done = office.installation.ok(*words)
    line = re.search(r'Look with: psql "(.*)"', done.out)
    assert line is not None
    assert f"datamanager restore finish '{open_folder}/it'\"'\"'s a look'" in done.out
    shown = office.server.run("psql", "-X", "-A", "-t", "-d", line[1], "-c", "select max(n) from numbered")
    assert shown.stdout.strip() == "6"
    assert office.installation.run("restore", "drop", open_folder).code == 11
    office.installation.ok("restore", "drop", target)
    assert not any(one.exists() for one in (target, target.with_name(f"{target.name}.wal")))

    office.installation.ok(*words)
    finished = office.installation.result("restore", "finish", target, "--start", "--port", "5997")
    try:
        assert finished["recovered"]["timeline"] == 2
        counted = office.server.run(
            "psql", "-X", "-A", "-t", "-d", finished["server"]["conninfo"], "-c", "select count(*) from numbered"
        )
        assert counted.stdout.strip() == "6"
    finally:
        office.server.run("pg_ctl", "stop", "-m", "immediate", "-D", target, check=False)
    assert office.installation.run("restore", "finish", target).code == 11


@pytest.mark.skipif(os.name == "nt", reason="paths of sockets have no limit there")
def test_a_target_with_a_long_path_can_be_recovered(office: Office, new_server: NewServer, open_folder: Path) -> None:
    folder = open_folder / ("a folder with a long name " * 5).strip()
    folder.mkdir(mode=0o755)
    target = folder / "restored"
    office.installation.ok("restore", "latest", "--to-lsn", str(office.places[4]), "--target", target)
    assert office.rows(new_server, target) == [1, 2, 3, 4]
