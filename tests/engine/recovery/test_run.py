"""Restores to a moment on real servers: exactly what was committed before it, and never less in silence."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from datamanager.base.errors import Cancelled, IntegrityError, ServerDidNotStart, WalMissing
from datamanager.base.events import Event, Progress
from datamanager.base.pipeline import StopToken
from datamanager.base.units import Lsn
from datamanager.engine.recovery.pause import Paused, drop_paused, finish_paused
from datamanager.engine.recovery.replay import Replay
from datamanager.postgres.control_file import parse_control_bytes, read_control_bytes
from datamanager.postgres.wal.names import segment_start
from datamanager.repository.format import WAL_FOLDER, folders
from datamanager.repository.manifest import Manifest
from datamanager.storage.local import LocalStorage
from tests.conftest import NewServer
from tests.engine.conftest import Heard, Works, account, programs_of
from tests.engine.recovery.moments import SEGMENT, SMALL, Archive, restored_to, slowed
from tests.servers import ProgramFailed, Server
from tests.servers.processes import is_alive

ROWS = "select coalesce(array_agg(n order by n), '{}') from numbered"


def written(server: Server, first: int, last: int) -> dict[int, Lsn]:
    """Commit rows one by one; returns how far the WAL was flushed behind each."""
    places: dict[int, Lsn] = {}
    with server.connect() as connection:
        for number in range(first, last + 1):
            connection.execute("insert into numbered select %s, repeat(md5(%s::text), 200)", (number, number))
            ((flushed,),) = connection.execute("select pg_current_wal_flush_lsn()::text").fetchall()
            places[number] = Lsn.parse(flushed)
    return places


def rows_of(new_server: NewServer, target: Path) -> list[int]:
    """What anybody finds who starts the directory as it lies there."""
    server = new_server.adopt(target, own=False, config={"archive_mode": "off"})
    found: list[int] = server.value(ROWS)
    assert server.value("select pg_is_in_recovery()") is False
    server.destroy()
    return found


def assert_plain(target: Path) -> None:
    """Nothing of a recovery is left, and nothing beside the directory."""
    names = {one.name for one in target.iterdir()}
    assert not names & {"recovery.signal", "standby.signal", "unfinished-restore", "postmaster.pid", "postmaster.opts"}
    assert "postgresql.conf" in names
    settings = (target / "postgresql.auto.conf").read_text()
    assert not [name for name in ("recovery_", "restore_command", "archive_", "primary_") if name in settings]
    assert not target.with_name(f"{target.name}.wal").exists()
    assert parse_control_bytes(read_control_bytes(target)).state == "shut down"


def assert_unstartable(new_server: NewServer, target: Path) -> None:
    """No server is at work there, and none comes up as people start one."""
    pid_file = target / "postmaster.pid"
    assert not pid_file.exists() or not is_alive(int(pid_file.read_text().split()[0]))
    with pytest.raises(ProgramFailed):
        new_server.adopt(target, own=False, start=False).start(timeout=10)
    assert (target / "unfinished-restore").exists()
    control = target / "global" / "pg_control"
    assert not control.exists() or parse_control_bytes(control.read_bytes()).timeline == 1


class Living:
    """A server with a numbered table, a backup at row 50, and an archive that goes on."""

    def __init__(self, new_server: NewServer, works: Works, rows: int, **config: str) -> None:
        self.works = works
        self.server = new_server(initdb_args=SMALL, config={"wal_keep_size": "256MB", **config})
        self.server.sql("create table numbered (n int primary key, t text)")
        self.places = written(self.server, 1, 50)
        self.archive = Archive.of(works, self.server)
        self.manifest: Manifest = works.back_up(self.server).manifest
        self.write(rows)

    def write(self, rows: int) -> None:
        """Go on to that row, and archive it."""
        self.places |= written(self.server, max(self.places) + 1, rows)
        timeline, _ = self.archive.place_of(self.server)
        begin = segment_start(Lsn.parse(self.manifest.start_lsn), SEGMENT) if timeline == 1 else None
        self.archive.take(self.server, begin)

    def promote(self) -> None:
        """The server goes on, on a timeline of its own."""
        self.server.stop()
        (self.server.data_directory / "standby.signal").touch()
        self.server.start()
        assert self.server.value("select pg_promote()")

    def replay(self, row: int, timeline: int = 1) -> Replay:
        return self.archive.replay(self.manifest, timeline, self.places[row])


@pytest.fixture
def works(open_folder: Path) -> Iterator[Works]:
    """A repository with room for WAL, in a folder that the servers' account may enter."""
    made = Works(open_folder, LocalStorage.create(open_folder / "repository", folders(), [WAL_FOLDER]))
    yield made
    made.close()


@pytest.fixture
def living(new_server: NewServer, works: Works) -> Living:
    return Living(new_server, works, 250)


@pytest.mark.pg("15,18")
@pytest.mark.decision(3)
def test_restores_to_random_moments_hold_exactly_the_rows_committed_before(
    new_server: NewServer, works: Works, living: Living, pg_version: str
) -> None:
    for row in sorted(random.Random(5).sample(range(51, 251), 3)):
        done = restored_to(works, living.manifest, living.replay(row), f"to {row}", pg_version)
        assert done.recovered is not None
        assert done.recovered.timeline == 2
        assert_plain(done.restored.target)
        assert rows_of(new_server, done.restored.target) == list(range(1, row + 1))


@pytest.mark.slow
@pytest.mark.pg("14-18")
@pytest.mark.decision(3)
def test_ten_random_moments_each_hold_exactly_the_rows_committed_before(
    new_server: NewServer, works: Works, living: Living, pg_version: str
) -> None:
    with living.server.load(clients=2, rate=200):
        living.write(900)
    for row in sorted(random.Random().sample(range(51, 901), 10)):
        done = restored_to(works, living.manifest, living.replay(row), f"to {row}", pg_version)
        assert rows_of(new_server, done.restored.target) == list(range(1, row + 1))


@pytest.mark.pg("15,18")
@pytest.mark.decision(12)
def test_restores_on_both_sides_of_each_switch_of_timelines(
    new_server: NewServer, works: Works, pg_version: str
) -> None:
    living = Living(new_server, works, 80)
    living.promote()
    living.write(110)
    living.promote()
    timeline, _ = living.archive.place_of(living.server)
    line = living.archive.begun(living.server, timeline)
    # Of this one the archive begins right where it was left: the head of the segment is its parent's.
    living.places |= written(living.server, 111, 140)
    living.archive.take(living.server, line.history.begins)
    ends = {row: timeline for timeline, rows in ((1, (80,)), (2, (81, 110)), (3, (111, 140))) for row in rows}
    for row, timeline in ends.items():
        done = restored_to(works, living.manifest, living.replay(row, timeline), f"to {row}", pg_version)
        assert done.recovered is not None
        # Three numbers are taken, and the histories of all lie in every spool.
        assert done.recovered.timeline == 4
        assert rows_of(new_server, done.restored.target) == list(range(1, row + 1))
        histories = sorted(one.name for one in (done.restored.target / "pg_wal").glob("*.history"))
        assert histories[-1] == "00000004.history"


@pytest.mark.decision(3)
@pytest.mark.decision(13)
def test_what_production_left_behind_does_not_reach_the_recovery(
    new_server: NewServer, works: Works, open_folder: Path, pg_version: str
) -> None:
    archived = open_folder / "archived"
    archived.mkdir(mode=0o777)
    archived.chmod(0o777)
    living = Living(
        new_server,
        works,
        60,
        archive_mode="on",
        archive_command=f"cp %p {archived}/%f",
        restore_command="false",
        recovery_target_name="nowhere",
        track_commit_timestamp="on",
    )
    server = living.server
    place = server.tablespace("elsewhere")
    for setting in ("restore_command = 'false'", "recovery_target_time = '2020-01-01'", "primary_conninfo = 'host=x'"):
        server.sql(f"alter system set {setting}")
    server.sql("create table there (n int) tablespace elsewhere")
    living.manifest = works.back_up(server).manifest
    server.sql("insert into there values (1)")
    living.write(70)
    server.stop()
    before = sorted(archived.iterdir())
    done = restored_to(works, living.manifest, living.replay(70), "restored", pg_version)
    assert_plain(done.restored.target)
    assert sorted(archived.iterdir()) == before
    restored = new_server.adopt(
        done.restored.target, own=False, config={"archive_mode": "off", "recovery_target_name": ""}
    )
    assert restored.value("select count(*) from there") == 1
    assert restored.value("select count(*) from numbered where pg_xact_commit_timestamp(xmin) is not null") == 70
    assert restored.value("select pg_tablespace_location(oid) from pg_tablespace where spcname = 'elsewhere'") != str(
        place
    )


@pytest.mark.decision(3)
def test_a_target_that_the_backups_own_wal_holds_needs_no_archive(
    new_server: NewServer, works: Works, pg_version: str
) -> None:
    living = Living(new_server, works, 51)
    at_the_end = living.archive.replay(living.manifest, 1, Lsn.parse(living.manifest.stop_lsn))
    assert at_the_end.needs == ()
    done = restored_to(works, living.manifest, at_the_end, "restored", pg_version)
    assert_plain(done.restored.target)
    assert rows_of(new_server, done.restored.target) == list(range(1, 51))


@pytest.mark.decision(3)
def test_wal_that_is_missing_or_damaged_midway_ends_the_restore_and_promotes_nothing(
    new_server: NewServer, works: Works, living: Living, pg_version: str
) -> None:
    replay = living.replay(250)
    stored = replay.needs[0].line.stored()
    hole = stored[len(stored) // 2]
    path = works.folder / "repository" / hole.key
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + b"\0" + whole[len(whole) // 2 + 1 :])
    with pytest.raises(IntegrityError):
        restored_to(works, living.manifest, replay, "damaged", pg_version)
    assert_unstartable(new_server, works.folder / "damaged")
    path.unlink()
    with pytest.raises(WalMissing) as caught:
        restored_to(works, living.manifest, replay, "missing", pg_version)
    assert caught.value.position == hole.start
    assert_unstartable(new_server, works.folder / "missing")


@pytest.mark.root
@pytest.mark.pg("15,18")
@pytest.mark.decision(3)
def test_a_spool_that_becomes_unreadable_never_looks_like_the_end_of_wal(
    new_server: NewServer, works: Works, living: Living, pg_version: str
) -> None:
    spool = works.folder / "restored.wal"

    class Locks(Heard):
        def __call__(self, event: Event) -> None:
            super().__call__(event)
            if isinstance(event, Progress) and (works.folder / "restored" / "postmaster.pid").exists():
                os.chown(spool, 0, 0)

    with pytest.raises(ServerDidNotStart, match="could not restore file"):
        restored_to(works, living.manifest, slowed(living.replay(250), 0.2), "restored", pg_version, Locks())
    assert_unstartable(new_server, works.folder / "restored")
    assert "end of" not in (spool / "server.log").read_text()


@pytest.mark.decision(3)
def test_a_restore_that_is_killed_never_promotes_what_it_has(
    new_server: NewServer, works: Works, living: Living, pg_version: str
) -> None:
    target = works.folder / "restored"
    words = [works.folder / "repository", target, pg_version, str(living.places[250])]
    child = subprocess.Popen([sys.executable, "-m", "tests.engine.recovery.recovery_child", *map(str, words)])
    try:
        deadline = time.monotonic() + 60
        while not (target / "postmaster.pid").exists() and time.monotonic() < deadline:
            assert child.poll() is None
            time.sleep(0.05)
        postmaster = int((target / "postmaster.pid").read_text().split()[0])
    finally:
        child.kill()
        child.wait()
    deadline = time.monotonic() + 30
    while is_alive(postmaster) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "nobody brings the WAL any more" in (works.folder / "restored.wal" / "server.log").read_text()
    assert_unstartable(new_server, target)


def test_cancelling_ends_it_within_seconds_and_leaves_no_process(
    new_server: NewServer, works: Works, living: Living, pg_version: str
) -> None:
    target = works.folder / "restored"
    asked: list[float] = []

    class Cancels(Heard):
        def __call__(self, event: Event) -> None:
            super().__call__(event)
            if isinstance(event, Progress) and (target / "postmaster.pid").exists() and not asked:
                asked.append(time.monotonic())
                works.stop.stop("stopped by the test")

    with pytest.raises(Cancelled):
        restored_to(works, living.manifest, slowed(living.replay(250), 0.2), target.name, pg_version, Cancels())
    assert time.monotonic() - asked[0] < 10
    works.stop.close()
    works.stop = StopToken()
    assert_unstartable(new_server, target)
    assert [one.name for one in (works.folder / "restored.wal").iterdir()] == ["server.log"]


@pytest.mark.pg("14,18")
def test_a_paused_restore_is_looked_at_and_finished_without_the_repository(
    new_server: NewServer, works: Works, living: Living, pg_version: str
) -> None:
    done = restored_to(works, living.manifest, living.replay(170), "restored", pg_version, pause=True)
    assert done.recovered is None
    paused = done.paused
    assert paused is not None
    programs = programs_of(pg_version, living.manifest.major)
    target = done.restored.target
    found = Paused.read(target)
    assert found == paused
    shown = living.server.run("psql", "-X", "-A", "-t", "-d", found.conninfo, "-c", ROWS, "-c", "show archive_mode")
    assert shown.stdout.split()[-1] == "off"
    assert shown.stdout.split()[0].endswith(",170}")
    assert (
        "cannot execute"
        in living.server.run("psql", "-X", "-d", found.conninfo, "-c", "delete from numbered", check=False).stderr
    )
    (works.folder / "repository").rename(works.folder / "away")
    recovered = finish_paused(found, programs, account(), works.stop, lambda text: None)
    (works.folder / "away").rename(works.folder / "repository")
    assert recovered.timeline == 2
    assert_plain(target)
    assert rows_of(new_server, target) == list(range(1, 171))


def test_a_paused_restore_that_is_dropped_leaves_nothing(works: Works, living: Living, pg_version: str) -> None:
    before = sorted(works.folder.iterdir())
    done = restored_to(works, living.manifest, living.replay(100), "restored", pg_version, pause=True)
    assert done.paused is not None
    postmaster = int((done.restored.target / "postmaster.pid").read_text().split()[0])
    drop_paused(done.paused, programs_of(pg_version, living.manifest.major), account(), lambda text: None)
    assert not is_alive(postmaster)
    assert sorted(works.folder.iterdir()) == before
