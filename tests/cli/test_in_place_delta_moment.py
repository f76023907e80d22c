"""A moment written over a cluster's own data: exactly what was committed before it, or nothing is touched."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from datamanager.engine.restore.delta_target import JOURNAL
from tests.cli.caller import Done, Installation
from tests.cli.test_in_place_and_the_archive import Office
from tests.cli.test_in_place_delta import PHASES, WORDS, starts
from tests.conftest import NewServer
from tests.servers import Server, hand_over
from tests.servers.server import copy_data_directory
from tests.storage.mounts import MIB, tmpfs

LATEST = "restore", "latest", "--cluster", "office", *WORDS
UNSAFE = "--no-safety-backup"


class Place(Office):
    """The same with a table in a tablespace, and delta restores."""

    def __init__(self, office: Office) -> None:
        self.installation, self.server = office.installation, office.server
        self.space = self.server.tablespace("fast")
        self.server.sql("create table there (n int, m text) tablespace fast")
        self.server.sql("checkpoint")
        self.installation.ok("config", "set", "clusters.office.data_directory", str(self.server.data_directory))

    def write(self, *rows: int) -> datetime:
        self.server.sql("insert into there select n, repeat(md5(n::text), 20) from unnest(%s) n", list(rows))
        return super().write(*rows)

    def delta(self, *words: str) -> dict[str, Any]:
        """The result of one, which warns of the WAL that it removes."""
        found = self.installation.run(*LATEST, *words, "--json")
        assert found.code in (0, 3), found
        return found.last

    def holds(self, *rows: int) -> None:
        """These rows everywhere, on a server of its own, with nothing left beside."""
        assert self.rows() == list(rows)
        assert self.server.value("select array_agg(n order by n) from there") == list(rows)
        assert not self.server.value("select pg_is_in_recovery()")
        assert self.server.value("show restore_command") == ""
        place = self.server.data_directory
        names = {one.name for one in (*place.iterdir(), *place.parent.iterdir())}
        assert {one for one in names if "datamanager-" in one and not one.endswith(".lock")} == set()
        assert not {JOURNAL, "recovery.signal"} & names

    def switch(self) -> None:
        self.server.sql("select pg_switch_wal()")


@pytest.fixture
def server(new_server: NewServer) -> Server:
    return new_server(config={"max_slot_wal_keep_size": "1GB"})


@pytest.fixture
def archived(server: Server, installation: Installation) -> Iterator[Place]:
    """With a receiver at work."""
    with archiving(Place(Office(installation, server))) as place:
        yield place


@contextlib.contextmanager
def archiving(place: Place) -> Iterator[Place]:
    installation = place.installation
    receiver = installation.start("wal", "start", "office", "--yes", "--interval", "0.2")
    try:
        place.wait_until_archived()
        yield place
    finally:
        receiver.terminate()
        receiver.communicate(timeout=30)


@pytest.mark.pg("15,18")
@pytest.mark.decision(11)
@pytest.mark.decision(12)
def test_a_time_between_two_backups_brings_exactly_the_rows_before_it_and_the_archive_goes_on(
    archived: Place, new_server: NewServer, open_folder: Path
) -> None:
    office, run = archived, archived.installation
    office.write(1)
    first = run.result("backup", "run", "office")["backup_id"]
    second, third = office.write(2), office.write(3)
    office.write(4)
    run.ok("backup", "run", "office")
    office.write(5)
    office.server.sql("alter system set work_mem = '7MB'")
    office.wait_until_archived()

    planned = office.delta("--to-time", third.isoformat(), "--dry-run")
    assert planned["backup_id"] == first
    assert "timeline 1" in planned["moment"]
    assert office.rows() == [1, 2, 3, 4, 5]
    done = office.delta("--to-time", third.isoformat())
    assert (done["timeline"], done["moment"]) == (2, planned["moment"])
    office.holds(1, 2, 3)
    assert office.server.value("show work_mem") == "7MB"

    office.write(20)
    office.wait_until_archived()
    mapped = "--tablespace-map", f"{office.space}={open_folder / 'space'}"
    assert office.restored(new_server, open_folder / "newest", *mapped) == [1, 2, 3, 20]

    again = office.delta("--to-time", second.isoformat(), UNSAFE)
    assert again["timeline"] == 3
    office.holds(1, 2)
    office.write(30)
    office.wait_until_archived()
    newest = office.delta(UNSAFE)
    assert newest["timeline"] == 4
    office.holds(1, 2, 30)


@pytest.mark.pg("18")
@pytest.mark.decision(3)
@pytest.mark.decision(11)
def test_killed_at_any_step_it_does_not_start_and_goes_on_to_the_very_same_moment(archived: Place) -> None:
    office, run = archived, archived.installation
    office.write(1)
    run.ok("backup", "run", "office")
    wanted = office.write(2)
    office.write(3)
    office.wait_until_archived()
    words = (*LATEST, "--to-time", wanted.isoformat(), UNSAFE)
    for phase in ("replaying WAL" if one == "recovering" else one for one in PHASES):
        assert run.killed_at(phase, *words), phase
        assert not starts(office.server), phase
        refused = run.run("restore", "complete", "office")
        assert refused.code != 0
        (command,) = [line for line in refused.errors.splitlines() if "datamanager restore" in line]
        assert f"--to-time {wanted.isoformat()}" in command
    told = shlex.split(command.split("`")[1])
    assert run.run(*told[1:]).code in (0, 3)
    office.holds(1, 2)
    office.write(4)
    office.wait_until_archived()
    third = office.write(5)
    office.write(6)
    office.wait_until_archived()
    assert run.killed_at("comparing and restoring", *words)
    another = (*LATEST, "--to-time", third.isoformat(), UNSAFE)
    assert "Do this instead of what was cut off, which was to end at position" in run.run(*another, "--dry-run").out
    assert run.killed_at("stopping the recovered server", *another)
    assert run.run(*another).code in (0, 3)
    office.holds(1, 2, 4, 5)


@pytest.mark.slow
@pytest.mark.pg("15,18")
@pytest.mark.decision(3)
def test_killed_in_the_middle_of_replay_it_replays_again(archived: Place) -> None:
    office, run = archived, archived.installation
    office.write(1)
    run.ok("backup", "run", "office")
    office.server.sql("create table filled as select n, repeat(md5(n::text), 30) from generate_series(1, 100000) n")
    wanted = office.write(2)
    office.write(3)
    office.wait_until_archived()
    words = (*LATEST, "--to-time", wanted.isoformat(), UNSAFE)
    process = run.start(*words, "--json")
    marks = [office.server.data_directory / name for name in (JOURNAL, "postmaster.pid")]
    while process.poll() is None and not all(one.exists() for one in marks):
        time.sleep(0.002)
    time.sleep(0.2)
    process.kill()
    process.communicate()
    assert marks[0].exists()
    assert not starts(office.server)
    assert office.delta("--to-time", wanted.isoformat(), UNSAFE)["safety_backup_id"] is None
    office.holds(1, 2)
    assert office.server.value("select count(*) from filled") == 100000


@pytest.mark.pg("18")
@pytest.mark.decision(3)
@pytest.mark.decision(14)
def test_what_cannot_be_reached_or_read_is_refused_before_anything_is_touched(archived: Place) -> None:
    office, run = archived, archived.installation
    early = office.write(1)
    office.write(2)
    run.ok("backup", "run", "office")
    office.write(3)
    between = int(office.server.value("select pg_walfile_name(pg_current_wal_lsn())")[8:], 16) << 24
    office.switch()
    wanted = office.write(4)
    office.switch()
    office.write(5)
    office.wait_until_archived()
    pid = office.server.postmaster_pid

    def refuses(code: int, *words: str) -> Done:
        found = run.run(*LATEST, *words)
        assert found.code == code, found
        assert "safety backup" not in found.out
        assert office.server.postmaster_pid == pid
        assert not (office.server.data_directory / JOURNAL).exists()
        office.holds(1, 2, 3, 4, 5)
        return found

    assert "reachable" in refuses(53, "--to-time", (wanted + timedelta(days=1)).isoformat()).errors
    assert "reachable" in refuses(53, "--to-time", early.isoformat()).errors
    refuses(53, "--to-lsn", "FF/0")
    refuses(53, "--to-name", "nowhere")
    refuses(53, "--timeline", "7")
    assert office.delta("--to-time", wanted.isoformat(), "--dry-run")["dry_run"]
    (damaged,) = (run.folder / "repository of usb" / "wal").rglob(f"{between:08x}-*")
    damaged.chmod(0o600)
    with damaged.open("r+b") as file:
        file.seek(damaged.stat().st_size // 2)
        file.write(bytes(16))
    assert "reading the WAL" in refuses(40, "--to-time", wanted.isoformat()).out
    refuses(40, "--to-time", wanted.isoformat(), "--dry-run")
    damaged.unlink()
    refuses(53, "--to-time", wanted.isoformat())


@pytest.mark.mounts
@pytest.mark.pg("18")
@pytest.mark.decision(11)
def test_on_a_volume_of_its_own_with_little_room_the_wal_is_counted_and_comes_a_few_segments_at_a_time(
    server: Server, installation: Installation, open_folder: Path
) -> None:
    with tmpfs(open_folder / "small", 400 * MIB) as volume:
        server.stop()
        copy_data_directory(server, volume.folder / "data")
        for one in (volume.folder / "data").iterdir():
            one.rename(volume.folder / one.name)
        (volume.folder / "data").rmdir()
        shutil.move(volume.folder / "pg_wal", open_folder / "wal")
        (volume.folder / "pg_wal").symlink_to(open_folder / "wal")
        hand_over(open_folder / "wal")
        volume.folder.parent.chmod(0o755)
        hand_over(volume.folder)
        volume.folder.chmod(0o700)
        server.data_directory = volume.folder
        server.start()
        with archiving(Place(Office(installation, server))) as office:
            is_counted_and_comes_a_few_segments_at_a_time(office)
        server.stop()


def is_counted_and_comes_a_few_segments_at_a_time(office: Place) -> None:
    run, root = office.installation, office.server.data_directory
    office.write(1)
    run.ok("backup", "run", "office")
    for row in range(2, 8):
        office.write(row)
        office.switch()
    wanted = office.write(8)
    office.write(9)
    office.wait_until_archived()
    rows = list(range(1, 10))
    words = "--to-time", wanted.isoformat(), UNSAFE
    (room,) = [one for one in office.delta(*words, "--dry-run")["rooms"] if one["path"] == str(root)]
    ballast = root / "lost+found" / "ballast"
    ballast.parent.mkdir()
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, room["free_bytes"] - 8 * MIB)
    refused = run.run(*LATEST, *words)
    assert refused.code != 0
    assert "grows by" in refused.errors + refused.out
    assert office.rows() == rows
    shutil.rmtree(ballast.parent)
    assert run.killed_at("stopping the recovered server", *LATEST, *words)
    assert not starts(office.server)
    assert office.delta(*words)["timeline"] == 2
    office.holds(*rows[:-1])
    assert (root / "pg_wal").is_symlink()
    run.ok("backup", "run", "office")


@pytest.mark.slow
@pytest.mark.pg("15")
@pytest.mark.parametrize(
    "story",
    [
        test_killed_at_any_step_it_does_not_start_and_goes_on_to_the_very_same_moment,
        test_what_cannot_be_reached_or_read_is_refused_before_anything_is_touched,
    ],
)
def test_the_same_on_an_older_server(archived: Place, story: Callable[[Place], None]) -> None:
    story(archived)
