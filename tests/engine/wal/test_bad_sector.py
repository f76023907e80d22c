"""WAL in the archive that its drive no longer reads: it comes again from the server, or is told, and nothing waits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from datamanager.base.clock import SystemClock
from datamanager.base.errors import StoreUnavailable
from datamanager.postgres.wal.names import segment_name, segment_start
from datamanager.repository.repository import Repository
from datamanager.repository.wal.archive import WalArchive
from datamanager.storage.base import Storage
from tests.conftest import NewServer
from tests.engine.wal.conftest import LIMITED, Receiving, flushed, keeper, system_of, whole_reach
from tests.servers import Server
from tests.storage.faults import Call, FaultyStorage

Receive = Callable[..., Receiving]
pytestmark = pytest.mark.pg("18")


class Sectors:
    """What the drive does not read any more: keys, or everything."""

    def __init__(self, storage: Storage) -> None:
        self.bad: set[str] = set()
        self.away = False
        self.storage = FaultyStorage(storage, hook=self._before)
        self.storage.ensure_folders = storage.ensure_folders  # type: ignore[attr-defined]

    def _before(self, call: Call) -> None:
        if self.away or (call.method == "get" and call.key in self.bad):
            raise StoreUnavailable(f"read {call.key}: input/output error")


def filled(server: Server, receive: Receive, storage: Storage) -> None:
    """An archive that ends within a segment, by a receiver that has ended."""
    first = receive(server, storage=storage)
    first.until(lambda: first.state.caught_up)
    server.sql("create table kept as select generate_series(1, 1000) n")
    first.until_sealed(flushed(server))
    first.end()


@pytest.fixture
def server(new_server: NewServer) -> Server:
    return new_server(config=LIMITED, initdb_args=("--wal-segsize=1",))


def test_a_piece_on_a_bad_sector_comes_again_from_the_server(
    server: Server, receive: Receive, repository: Repository
) -> None:
    filled(server, receive, repository.storage)
    line = WalArchive(repository, system_of(server)).line(1)
    assert line is not None
    sectors = Sectors(repository.storage)
    sectors.bad = {line.stored()[-1].key}
    again = receive(server, storage=sectors.storage)
    server.sql("insert into kept select generate_series(1, 10)")
    again.until_sealed(flushed(server))
    (told,) = [one for one in again.heard.warnings if "input/output error" in one]
    assert "fetched again if the server still has it" in told
    sectors.bad.clear()  # a new file lies elsewhere on the drive
    reach = whole_reach(again.line())
    start = segment_start(reach.end - 1, line.segment_size)
    path: Path = server.data_directory / "pg_wal" / segment_name(1, start, line.segment_size)
    assert again.line().read(start, reach.end) == path.read_bytes()[: reach.end - start]


def test_a_drive_that_is_away_is_waited_for_and_nothing_on_it_is_taken_for_damaged(
    server: Server, receive: Receive, repository: Repository
) -> None:
    filled(server, receive, repository.storage)
    archive = WalArchive(repository, system_of(server))
    line = archive.line(1)
    assert line is not None
    before = {one.key for one in line.stored()}
    sectors = Sectors(repository.storage)
    sectors.away = True
    again = receive(server, storage=sectors.storage)
    again.until(lambda: "input/output error" in again.state.error)
    again.stop.wait(1.0)
    assert {one.key for one in line.stored()} == before
    assert not [one for one in again.heard.warnings if "fetched again" in one]
    sectors.away = False
    server.sql("insert into kept select generate_series(1, 10)")
    again.until_sealed(flushed(server))


def test_a_bad_sector_whose_wal_the_server_has_no_more_is_told_and_the_archive_goes_on(
    server: Server, receive: Receive, repository: Repository
) -> None:
    filled(server, receive, repository.storage)
    line = WalArchive(Repository(repository.storage, repository.ring, SystemClock()), system_of(server)).line(1)
    assert line is not None
    with keeper(server) as slot:
        slot.drop()
    for _ in range(4):
        server.sql("insert into kept select generate_series(1, 10)")
        server.sql("select pg_switch_wal()")
    server.sql("checkpoint")
    server.sql("checkpoint")
    sectors = Sectors(repository.storage)
    sectors.bad = {one.key for one in line.stored()}
    again = receive(server, storage=sectors.storage)
    again.until_sealed(flushed(server))
    assert [one for one in again.heard.warnings if "of which the archive cannot read a part" in one]
    assert [one for one in again.heard.warnings if "the archive has a gap there" in one]
