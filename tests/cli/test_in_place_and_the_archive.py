"""Restores in place while WAL is archived, and what is the newest moment after one was undone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from datamanager.app.wal_beat import WalFiles, read_wal_beat
from datamanager.base.units import Lsn
from datamanager.config.home import Home
from tests.cli.caller import Installation
from tests.conftest import NewServer
from tests.servers import Server


class Office:
    """A cluster whose WAL a receiver of its own process archives, and numbered rows."""

    def __init__(self, installation: Installation, server: Server) -> None:
        self.installation = installation
        self.server = server
        server.sql("create table numbered (n int primary key)")
        installation.init()
        installation.ok("cluster", "add", "office", server.dsn, "--repo", "usb", "--no-settings")
        installation.ok("config", "set", "clusters.office.install_path", str(server.bin))

    def write(self, *rows: int) -> datetime:
        """Commit rows; returns a moment behind them."""
        for row in rows:
            self.server.sql("insert into numbered values (%s)", row)
        time.sleep(0.05)
        now: datetime = self.server.value("select clock_timestamp()")
        time.sleep(0.05)
        return now.astimezone(UTC)

    def rows(self) -> list[int]:
        return [n for (n,) in self.server.sql("select n from numbered order by n")]

    def wait_until_archived(self) -> None:
        """Until the receiver has all that the server has written, on the server's own timeline."""
        files = WalFiles.of(Home(self.installation.home, self.installation.home), "office")
        position = Lsn.parse(self.server.value("select pg_current_wal_flush_lsn()::text"))
        walfile = "select ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int"
        timeline = self.server.value(walfile)
        deadline = time.monotonic() + 30
        while True:
            beat = read_wal_beat(files.beat)
            if beat is not None and beat.progress.timeline == timeline and beat.progress.sealed >= position:
                return
            assert time.monotonic() < deadline, (beat, timeline, position)
            time.sleep(0.05)

    def restored(self, new_server: NewServer, target: Path, *words: str) -> list[int]:
        """What somebody finds who restores it elsewhere."""
        self.installation.ok("restore", "latest", *words, "--target", target)
        restored = new_server.adopt(target, self.server.version, own=False)
        found: list[int] = restored.value("select array_agg(n order by n) from numbered")
        restored.destroy()
        return found


@pytest.fixture
def office(new_server: NewServer, installation: Installation) -> Office:
    return Office(installation, new_server(config={"max_slot_wal_keep_size": "1GB"}))


@pytest.fixture
def archived(office: Office) -> Iterator[Office]:
    """The same, with a receiver at work."""
    receiver = office.installation.start("wal", "start", "office", "--yes", "--interval", "0.2")
    try:
        office.wait_until_archived()
        yield office
    finally:
        receiver.terminate()
        receiver.communicate(timeout=30)


@pytest.mark.pg("18")
@pytest.mark.decision(12)
def test_a_restore_to_a_time_in_place_is_undone_and_the_newest_moment_is_not_on_what_was_undone(
    archived: Office, new_server: NewServer, open_folder: Path
) -> None:
    office, run = archived, archived.installation
    office.write(1)
    run.ok("backup", "run", "office")
    second, third = office.write(2), office.write(3)
    office.write(4)
    office.wait_until_archived()
    done = run.result(
        "restore", "latest", "--in-place", "--to-time", third.isoformat(), "--cluster", "office", "--confirm", "office"
    )
    assert office.rows() == [1, 2, 3]
    assert done["timeline"] == 2
    assert done["following_backup_id"]
    office.write(20)
    office.wait_until_archived()
    run.result("restore", "undo", "office", "--confirm", "office")
    assert office.rows() == [1, 2, 3, 4]
    office.wait_until_archived()
    assert office.restored(new_server, open_folder / "after the undo") == [1, 2, 3, 4]
    office.write(5)
    office.wait_until_archived()
    assert office.restored(new_server, open_folder / "later") == [1, 2, 3, 4, 5]
    assert office.restored(new_server, open_folder / "undone", "--timeline", "2") == [1, 2, 3, 20]

    again = run.result(
        "restore", "latest", "--in-place", "--to-time", second.isoformat(), "--cluster", "office", "--confirm", "office"
    )
    assert office.rows() == [1, 2]
    assert again["timeline"] == 3
    office.write(30)
    office.wait_until_archived()
    assert office.restored(new_server, open_folder / "again") == [1, 2, 30]


@pytest.mark.pg("18")
@pytest.mark.decision(12)
def test_the_newest_backup_after_an_undo_is_none_of_what_was_undone(
    office: Office, new_server: NewServer, open_folder: Path
) -> None:
    run = office.installation
    office.write(1)
    first = run.result("backup", "run", "office")["backup_id"]
    office.write(2)
    following = run.result("restore", first, "--in-place", "--confirm", "office")["following_backup_id"]
    run.result("restore", "undo", "office", "--confirm", "office")
    assert office.restored(new_server, open_folder / "after the undo") == [1, 2]
    planned = run.result("restore", "latest", "--in-place", "--dry-run")
    assert planned["backup_id"] not in (first, following)
    run.result("restore", "undo", "office", "--confirm", "office")
    assert run.result("restore", "latest", "--in-place", "--dry-run")["backup_id"] == following


@pytest.mark.pg("18")
@pytest.mark.decision(12)
def test_an_undo_that_was_killed_counts_once_it_is_complete(office: Office) -> None:
    run = office.installation
    run.ok("config", "set", "clusters.office.data_directory", str(office.server.data_directory))
    office.write(1)
    first = run.result("backup", "run", "office")["backup_id"]
    done = run.result("restore", first, "--in-place", "--confirm", "office")
    assert run.killed_at("starting the server", "restore", "undo", "office", "--confirm", "office")
    run.run("restore", "complete", "office")
    assert run.result("restore", "latest", "--in-place", "--dry-run")["backup_id"] == done["safety_backup_id"]


@pytest.mark.pg("18")
@pytest.mark.decision(12)
def test_going_back_over_two_restores_leaves_the_timelines_of_both_behind(office: Office) -> None:
    run = office.installation
    office.write(1)
    first = run.result("backup", "run", "office")["backup_id"]
    oldest = run.result("restore", first, "--in-place", "--confirm", "office")
    newer = run.result("restore", first, "--in-place", "--confirm", "office")
    assert newer["timeline"] == 3
    run.run("restore", "undo", "office", "--to", oldest["kept"]["id"], "--confirm", "office")
    assert run.result("restore", "latest", "--in-place", "--dry-run")["backup_id"] == oldest["safety_backup_id"]


@pytest.mark.pg("18")
@pytest.mark.decision(12)
def test_a_timeline_is_not_begun_twice_although_what_was_on_it_was_deleted(office: Office) -> None:
    run = office.installation
    office.write(1)
    first = run.result("backup", "run", "office")["backup_id"]
    assert run.result("restore", first, "--in-place", "--confirm", "office")["timeline"] == 2
    run.result("restore", "undo", "office", "--confirm", "office")
    (kept,) = run.result("restore", "kept", "office")["kept"]
    run.ok("restore", "forget", "office", kept["id"], "--confirm", "office")
    assert run.result("restore", first, "--in-place", "--confirm", "office")["timeline"] == 3
