"""``wal push``: files of a real server's pg_wal, again, foreign, cut short and contradicting."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from datamanager.base.clock import SystemClock
from datamanager.base.errors import NotFound, UsageError, WalContradicts, WalForeign
from datamanager.base.units import Lsn
from datamanager.engine.wal.push import Pushed, push_segment
from datamanager.postgres.wal.names import SEGMENT, segment_place
from datamanager.repository.repository import Repository
from datamanager.repository.wal.archive import Line, WalArchive
from datamanager.storage.local import LocalStorage
from tests.conftest import NewServer
from tests.engine.wal.conftest import system_of, whole_reach
from tests.servers import Server

ONE_MB = ("--wal-segsize=1",)
SIZE = 1 << 20


class Pushing:
    """Files of one server into one archive."""

    def __init__(self, server: Server, repository: Repository) -> None:
        self.server = server
        self.archive = WalArchive(repository, system_of(server))
        self.pg_wal = server.data_directory / "pg_wal"

    def push(self, path: Path) -> Pushed:
        return push_segment(self.archive, path, "tests", SystemClock())

    def segments(self, timeline: int = 1) -> list[Path]:
        """The finished ones, oldest first."""
        current = str(self.server.value("select pg_walfile_name(pg_current_wal_lsn())"))
        names = sorted(one.name for one in self.pg_wal.iterdir() if SEGMENT.match(one.name))
        return [self.pg_wal / one for one in names if one < current and int(one[:8], 16) == timeline]

    def line(self, timeline: int = 1) -> Line:
        found = self.archive.line(timeline)
        assert found is not None
        return found


@pytest.fixture
def pushing(new_server: NewServer, repository: Repository) -> Pushing:
    server = new_server(config={"wal_keep_size": "1GB"}, initdb_args=ONE_MB)
    server.sql("create table kept as select n, md5(n::text) from generate_series(1, 20000) n")
    return Pushing(server, repository)


@pytest.mark.pg("14,15")
def test_segments_are_stored_once_however_often_they_are_pushed(pushing: Pushing) -> None:
    segments = pushing.segments()
    assert len(segments) >= 2
    for path in (*segments, *segments[:2]):
        pushed = pushing.push(path)
        assert (pushed.line, pushed.stored_bytes) == (pushing.line().id, SIZE)
    line = pushing.line()
    assert len(line.stored()) == len(segments)
    reach = whole_reach(line)
    assert line.read(reach.start, reach.end) == b"".join(one.read_bytes() for one in segments)
    assert line.info(line.stored()[-1]).index["commits"] >= 0
    assert line.record.version == str(pushing.server.major)


def test_other_bytes_at_the_same_place_are_refused(pushing: Pushing, tmp_path: Path) -> None:
    path = pushing.segments()[-1]
    pushing.push(path)
    changed = bytearray(path.read_bytes())
    changed[SIZE // 2] ^= 1
    other = tmp_path / path.name
    other.write_bytes(changed)
    with pytest.raises(WalContradicts):
        pushing.push(other)
    line = pushing.line()
    assert line.read(*segment_span(path)) == path.read_bytes()


def segment_span(path: Path) -> tuple[Lsn, Lsn]:
    _, start = segment_place(path.name, SIZE)
    return start, Lsn(start + SIZE)


def test_what_is_not_this_servers_wal_is_refused(
    pushing: Pushing, new_server: NewServer, repository: Repository, tmp_path: Path
) -> None:
    path, misnamed, short = pushing.segments()[0], tmp_path / ("0" * 7 + "1" + "0" * 14 + "77"), tmp_path / ("0" * 24)
    shutil.copy(path, misnamed)
    with pytest.raises(WalForeign, match="was written for"):
        pushing.push(misnamed)
    short.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(WalForeign, match="5000 bytes"):
        pushing.push(short)
    misnamed.write_bytes(bytes(SIZE))
    with pytest.raises(WalForeign, match="zeros"):
        pushing.push(misnamed)
    with pytest.raises(UsageError):
        pushing.push(tmp_path / "postgresql.conf")
    with pytest.raises(NotFound):
        pushing.push(tmp_path / ("0" * 23 + "1"))
    other = Pushing(new_server(initdb_args=ONE_MB), repository)
    other.server.sql("select pg_switch_wal()")
    with pytest.raises(WalForeign, match=str(other.archive.system)):
        pushing.push(other.segments()[-1])
    assert pushing.archive.lines() == []


@pytest.mark.pg("18")
@pytest.mark.decision(16)
def test_a_partial_segment_ends_at_its_last_record_and_a_new_timeline_has_its_history(
    pushing: Pushing, tmp_path: Path
) -> None:
    server = pushing.server
    for path in pushing.segments():
        pushing.push(path)
    position = Lsn.parse(server.value("select pg_current_wal_flush_lsn()::text"))
    server.stop("immediate")
    (server.data_directory / "recovery.signal").touch()
    server.configure(restore_command="exit 1", archive_mode="on", archive_command=f"cp %p {tmp_path}/%f")
    tmp_path.parent.chmod(0o755)
    tmp_path.chmod(0o777)
    server.start()
    (partial,) = [one for one in pushing.pg_wal.iterdir() if one.name.endswith(".partial")]
    pushed = pushing.push(partial)
    assert 0 < pushed.stored_bytes < SIZE
    assert whole_reach(pushing.line()).end >= position
    assert pushing.line().read(*_held(pushing.line())) == partial.read_bytes()[: pushed.stored_bytes]
    # A segment finds the history beside it; the history itself is stored once.
    server.sql("select pg_switch_wal()")
    server.sql("create table behind_the_switch (n int)")
    segment = pushing.segments(2)[0]
    elsewhere = tmp_path / segment.name
    shutil.copy(segment, elsewhere)
    (tmp_path / "00000002.history").unlink(missing_ok=True)
    with pytest.raises(NotFound, match="timeline 2"):
        pushing.push(elsewhere)
    pushing.push(segment)
    first = pushing.line(2).id
    pushing.push(pushing.pg_wal / "00000002.history")
    assert [one.id for one in pushing.archive.lines() if one.timeline == 2] == [first]
    assert pushing.line(2).history.text == (pushing.pg_wal / "00000002.history").read_bytes()
    pushing.push(elsewhere)


def _held(line: Line) -> tuple[Lsn, Lsn]:
    last = line.stored()[-1]
    return last.start, last.end


def test_a_history_of_another_server_is_refused(
    pushing: Pushing, new_server: NewServer, repository: Repository
) -> None:
    foreign = new_server(initdb_args=ONE_MB).data_directory / "pg_wal" / "00000002.history"
    foreign.write_text("1\t0/3000000\tno recovery target specified\n")
    with pytest.raises(WalForeign, match="another server"):
        pushing.push(foreign)


def test_a_backup_label_needs_no_keeping(pushing: Pushing, tmp_path: Path) -> None:
    label = tmp_path / "000000010000000000000007.00000028.backup"
    label.write_text("START WAL LOCATION: 0/7000028")
    assert pushing.push(label) == Pushed(label.name)
    assert pushing.archive.lines() == []


def test_a_whole_segment_takes_the_place_of_its_pieces(pushing: Pushing) -> None:
    path = pushing.segments()[-1]
    pushing.push(path)
    line = pushing.line()
    (whole,) = line.stored()
    info = line.info(whole)
    line.delete([whole])
    for at in range(0, 5000, 1000):
        line.put(whole.start + at, path.read_bytes()[at : at + 1000], info)
    pushing.push(path)
    assert [(one.start, one.end) for one in line.stored()] == [(whole.start, whole.end)]


@pytest.mark.parametrize("length", [0, 300, SIZE // 4])
def test_a_segment_that_a_power_cut_left_torn_is_stored_again(
    pushing: Pushing, repository: Repository, length: int
) -> None:
    path = pushing.segments()[-1]
    pushing.push(path)
    line = pushing.line()
    (whole,) = line.stored()
    line.read(whole.start, whole.end)
    assert isinstance(repository.storage, LocalStorage)
    stored = repository.storage.root / whole.key
    stored.write_bytes(stored.read_bytes()[:length])
    pushing.push(path)
    assert line.read(*segment_span(path)) == pushing.line().read(*segment_span(path)) == path.read_bytes()
    pushing.push(path)


def test_the_module_is_quick_to_load() -> None:
    heavy = "numpy", "psycopg", "pydantic", "sqlalchemy", "zoneinfo"
    code = f"import sys, datamanager.engine.wal.push; print([one for one in {heavy} if one in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
