"""An archive whose server is stopped, crashed, promoted and cut off: what `wal status` promises is what restores."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from datamanager.app.wal_beat import WalFiles, read_wal_beat
from datamanager.base.units import Lsn
from datamanager.config.home import Home
from tests.cli.caller import Installation
from tests.conftest import NewServer
from tests.servers import Server

UNREACHABLE = 53


@dataclass
class Archive:
    """A server, its archive, and where each numbered row was committed."""

    server: Server
    installation: Installation
    places: dict[int, tuple[int, Lsn]] = field(default_factory=dict)
    receiver: subprocess.Popen[str] | None = None

    def write(self, *rows: int) -> None:
        with self.server.connect() as connection:
            for row in rows:
                connection.execute("insert into numbered values (%s)", (row,))
                ((at, timeline),) = connection.execute(
                    "select pg_current_wal_flush_lsn()::text,"
                    " ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int"
                ).fetchall()
                self.places[row] = timeline, Lsn(Lsn.parse(at) - 1)

    def receive(self) -> None:
        self.receiver = self.installation.start("wal", "start", "office", "--yes", "--interval", "0.2")
        self.settle()

    def stop_receiving(self) -> None:
        assert self.receiver is not None
        self.receiver.kill()
        self.receiver.communicate()
        self.receiver = None

    def settle(self) -> None:
        """Wait until all that the server has written is in the archive."""
        assert self.receiver is not None
        file = WalFiles.of(Home(self.installation.home, self.installation.home), "office").beat
        deadline = time.monotonic() + 60
        while True:
            beat = read_wal_beat(file)
            here = Lsn.parse(self.server.value("select pg_current_wal_flush_lsn()::text"))
            timeline = self.server.value("select timeline_id from pg_control_checkpoint()")
            if beat is not None and beat.process.pid == self.receiver.pid:
                progress = beat.progress
                if progress.sealed >= here and progress.timeline >= timeline and progress.caught_up:
                    return
            assert time.monotonic() < deadline, beat
            assert self.receiver.poll() is None, self.receiver.communicate()
            time.sleep(0.05)

    def windows(self) -> list[tuple[int, Lsn, Lsn]]:
        """Timeline, and from where to where, as they are told."""
        (found,) = self.installation.result("wal", "status", "office")["archives"]
        return [(one["timeline"], Lsn.parse(one["from_lsn"]), Lsn.parse(one["to_lsn"])) for one in found["windows"]]


@pytest.fixture
def archive(new_server: NewServer, tmp_path: Path) -> Iterator[Archive]:
    server = new_server(config={"wal_keep_size": "0", "min_wal_size": "32MB", "checkpoint_timeout": "1h"})
    installation = Installation(tmp_path)
    installation.init()
    installation.ok("cluster", "add", "office", server.dsn, "--repo", "usb", "--no-settings")
    installation.ok("config", "set", "clusters.office.install_path", str(server.bin))
    server.sql("create table numbered (n int primary key)")
    made = Archive(server, installation)
    yield made
    if made.receiver is not None:
        made.stop_receiving()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.pg("15,18")
def test_windows_reported_are_exactly_the_windows_that_restore(
    archive: Archive, new_server: NewServer, open_folder: Path
) -> None:
    server, installation = archive.server, archive.installation
    archive.receive()
    archive.write(1)
    installation.ok("backup", "run", "office")
    archive.write(2, 3)
    server.restart()
    archive.write(4)
    server.kill9()
    server.start()
    archive.write(5)
    archive.settle()

    # Cut off for a long time; the slot keeps what is written.
    archive.stop_receiving()
    for row in (6, 7, 8):
        archive.write(row)
        server.sql("select pg_switch_wal()")
    archive.receive()
    archive.write(9)
    archive.settle()

    # The slot is gone, and the server forgets what nobody keeps.
    archive.stop_receiving()
    for (slot,) in server.sql("select slot_name from pg_replication_slots"):
        while server.value("select active from pg_replication_slots where slot_name = %s", slot):
            time.sleep(0.1)
        server.sql("select pg_drop_replication_slot(%s)", slot)
    for row in (10, 11, 12, 13):
        archive.write(row)
        server.sql("select pg_switch_wal()")
        server.sql("checkpoint")
    archive.receive()
    archive.write(14)
    installation.ok("backup", "run", "office")
    archive.write(15, 16)

    # Promoted: a restore in place ends on a timeline of its own.
    archive.settle()
    back = archive.places[15][1]
    installation.run("restore", "latest", "--in-place", "--to-lsn", str(back), "--confirm", "office")
    archive.write(17)
    archive.settle()

    windows = archive.windows()
    assert {timeline for timeline, _, _ in windows} == {1, 2}
    for row, (timeline, place) in archive.places.items():
        held = any(one == timeline and start <= place < end for one, start, end in windows)
        target = open_folder / f"row {row}"
        words = ("--to-lsn", str(place), "--timeline", str(timeline), "--target", str(target))
        done = installation.run("restore", "latest", "--cluster", "office", *words)
        assert done.code == (0 if held else UNREACHABLE), (row, windows, done)
        if held:
            restored = new_server.adopt(target, server.version, own=False)
            rows = [n for (n,) in restored.sql("select n from numbered order by n")]
            restored.destroy()
            lost = {16} if timeline == 2 else set()
            assert rows == [one for one in range(1, row + 1) if one not in lost]
        else:
            assert not target.exists()
    reached = {row for row, (timeline, place) in archive.places.items() for one, start, end in windows
               if one == timeline and start <= place < end}  # fmt: skip
    assert {2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17} <= reached
    assert not reached & {1, 11, 12, 13}
