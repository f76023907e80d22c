"""The receiver and a server's timelines: promotions, restores, machines put back, and WAL that is gone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from datamanager.base.errors import WalContradicts
from datamanager.base.units import Lsn
from datamanager.repository.wal.names import Range
from tests.conftest import NewServer
from tests.engine.wal.conftest import (
    LIMITED,
    Receiving,
    assert_same_as_server,
    flushed,
    keeper,
    wait_until,
    whole_reach,
)
from tests.servers import Server, copy_data_directory, hand_over

Receive = Callable[..., Receiving]
SMALL = ("--wal-segsize=1",)
FORGETFUL = {**LIMITED, "min_wal_size": "2MB", "max_wal_size": "4MB"}


def write(server: Server, rows: int = 1000) -> Lsn:
    """Rows of some 100 bytes of WAL each; where the WAL is then."""
    server.sql("create table if not exists kept (n int, t text)")
    server.sql("insert into kept select n, md5(n::text) from generate_series(1, %s) n", rows)
    return flushed(server)


def promote_by_recovery(server: Server) -> None:
    """Start it as after a restore: the end of its WAL is where the next timeline begins."""
    (server.data_directory / "recovery.signal").touch()
    hand_over(server.data_directory / "recovery.signal")
    server.configure(restore_command="exit 1")
    server.start()
    # Hot standby answers a moment before the end of recovery.
    wait_until(lambda: not server.value("select pg_is_in_recovery()"))
    server.sql("checkpoint")


@pytest.mark.pg("18")
@pytest.mark.decision(12)
def test_a_promoted_standby_is_followed_to_the_new_timeline(
    new_server: NewServer, receive: Receive, open_folder: Path
) -> None:
    primary = new_server(config=LIMITED, initdb_args=SMALL)
    primary.run("pg_basebackup", "-D", open_folder / "standby", "-c", "fast")
    (open_folder / "standby" / "standby.signal").touch()
    hand_over(open_folder / "standby")
    standby = new_server.adopt(open_folder / "standby", config={"primary_conninfo": primary.dsn})
    receiving = receive(standby)
    receiving.until(lambda: receiving.state.connected)
    at = write(primary, 5000)
    receiving.until_sealed(at)
    primary.stop()
    standby.sql("select pg_promote()")
    receiving.until(lambda: receiving.state.timeline == 2)
    receiving.until_sealed(write(standby))
    old, new = receiving.line(1), receiving.line(2)
    (switch,) = new.history.switches
    assert switch.at >= at
    assert whole_reach(old).end == switch.at
    assert new.history.text == (standby.data_directory / "pg_wal" / "00000002.history").read_bytes()
    assert whole_reach(new).start <= switch.at
    assert whole_reach(new).end >= flushed(standby)
    assert_same_as_server(new, standby)
    # What the old timeline has in its last segment is one piece.
    assert len([one for one in old.stored() if one.end > switch.at // (1 << 20) * (1 << 20)]) <= 1


@pytest.mark.pg("14")
def test_the_end_of_a_timeline_that_was_missed_is_fetched_before_the_next(
    new_server: NewServer, receive: Receive
) -> None:
    server = new_server(config=LIMITED, initdb_args=SMALL)
    first = receive(server)
    first.until_sealed(write(server))
    first.end()
    write(server, 20000)
    for timeline in (2, 3):
        server.stop("immediate" if timeline == 2 else "fast")
        promote_by_recovery(server)
        write(server, 20000)
        assert server.value("select timeline_id from pg_control_checkpoint()") == timeline
    again = receive(server)
    again.until(lambda: again.state.timeline == 3)
    again.until_sealed(flushed(server))
    ends = [one.at for one in again.line(3).history.switches]
    assert [whole_reach(again.line(number)).end for number in (1, 2)] == ends
    for number in (1, 2, 3):
        assert_same_as_server(again.line(number), server)


def copied(server: Server, folder: Path) -> Path:
    """A copy of the data directory of a server, which is stopped and started for it."""
    server.stop()
    copy_data_directory(server, folder / "copy")
    server.start()
    return folder / "copy"


def put_back(server: Server, copy: Path) -> None:
    server.stop("immediate")
    shutil.rmtree(server.data_directory)
    shutil.copytree(copy, server.data_directory, symlinks=True)
    hand_over(server.data_directory)


@pytest.mark.pg("15")
@pytest.mark.decision(12)
def test_a_restore_in_place_leaves_the_old_line_as_it_is_and_goes_on_with_the_new(
    new_server: NewServer, receive: Receive, open_folder: Path
) -> None:
    server = new_server(config=LIMITED, initdb_args=SMALL)
    write(server)
    copy = copied(server, open_folder)
    receiving = receive(server)
    at = write(server, 30000)
    receiving.until_sealed(at)
    put_back(server, copy)
    shutil.rmtree(server.data_directory / "pg_replslot")  # a slot is never in a backup
    (server.data_directory / "pg_replslot").mkdir(mode=0o700)
    hand_over(server.data_directory / "pg_replslot")
    promote_by_recovery(server)
    receiving.until(lambda: receiving.state.timeline == 2)
    receiving.until_sealed(write(server))
    old, new = receiving.line(1), receiving.line(2)
    assert new.history.switches[0].at < at <= whole_reach(old).end
    assert whole_reach(new).start <= new.history.switches[0].at
    assert_same_as_server(new, server)
    # Put back and promoted once more, to the same number: another line, though both are of timeline 2.
    receiving.end()  # what it could see in between is a machine that was put back
    put_back(server, copy)
    server.start()
    write(server, 100)
    server.stop()
    promote_by_recovery(server)
    receiving = receive(server)
    receiving.until(lambda: receiving.state.connected and receiving.state.line not in (old.id, new.id))
    receiving.until_sealed(write(server))
    assert [one.timeline for one in receiving.archive.lines()] == [1, 2, 2]


@pytest.mark.pg("18")
@pytest.mark.decision(4)
@pytest.mark.parametrize("past", [False, True], ids=["not yet past", "past"])
def test_a_machine_put_back_contradicts_and_a_new_history_is_the_remedy(
    new_server: NewServer, receive: Receive, open_folder: Path, past: bool
) -> None:
    server = new_server(config=LIMITED, initdb_args=SMALL)
    with keeper(server) as slot:
        slot.create()
    copy = copied(server, open_folder)
    receiving = receive(server)
    at = write(server, 3000)
    receiving.until_sealed(at)
    receiving.end()
    before = receiving.line().reach()
    put_back(server, copy)
    server.start()
    while (flushed(server) > at + (1 << 20)) != past:
        write(server, 7001)
    again = receive(server)
    failure = again.wait_end()
    assert isinstance(failure, WalContradicts)
    assert "wal start --new-history" in failure.hint
    assert again.line().reach() == before
    anew = receive(server, new_history=True)
    anew.until_sealed(write(server))
    first, second = anew.archive.lines()
    assert (first.timeline, second.timeline) == (1, 1)
    assert first.reach() == before
    assert whole_reach(second).end >= flushed(server)
    assert_same_as_server(second, server)
    anew.end()
    # The newer line is the one that goes on from now.
    last = receive(server)
    last.until_sealed(write(server))
    assert last.state.line == second.id


@pytest.mark.pg("14")
def test_wal_that_is_gone_from_the_server_is_a_gap_told_once(new_server: NewServer, receive: Receive) -> None:
    server = new_server(config=FORGETFUL, initdb_args=SMALL)
    first = receive(server)
    at = write(server)
    first.until_sealed(at)
    first.end()
    with keeper(server) as slot:
        assert slot.drop()
        assert not slot.drop()
    for _ in range(4):
        write(server, 10000)
        server.sql("checkpoint")
    again = receive(server)
    again.until_sealed(write(server))
    again.until_sealed(write(server))
    held = again.line().reach()
    assert len(held) == 2
    assert held[0].end >= at
    assert len([one for one in again.heard.warnings if "gap" in one]) == 1
    assert_same_as_server(again.line(), server)
    assert oldest_of(server) == held[1].start


def oldest_of(server: Server) -> Lsn:
    with keeper(server) as slot:
        found = slot.oldest(1, 1 << 20)
    assert found is not None
    return found


@pytest.mark.pg("15")
@pytest.mark.decision(10)
def test_a_slot_that_the_server_gave_up_is_replaced_and_the_loss_is_told(
    new_server: NewServer, receive: Receive
) -> None:
    server = new_server(config={**FORGETFUL, "max_slot_wal_keep_size": "2MB"}, initdb_args=SMALL)
    first = receive(server)
    first.until_sealed(write(server))
    first.end()
    for _ in range(6):
        write(server, 10000)
        server.sql("checkpoint")
    with keeper(server) as slot:
        state = slot.state()
    assert state is not None
    assert state.lost
    again = receive(server)
    again.until_sealed(write(server))
    assert any("gave up slot" in one for one in again.heard.warnings)
    assert any("gap" in one for one in again.heard.warnings)
    assert len(again.line().reach()) == 2
    with keeper(server) as slot:
        state = slot.state()
    assert state is not None
    assert not state.lost


def test_an_archive_that_ends_with_a_whole_segment_is_compared_there_too(
    new_server: NewServer, receive: Receive
) -> None:
    server = new_server(config={**LIMITED, "wal_keep_size": "100MB"}, initdb_args=SMALL)
    first = receive(server)
    write(server)
    first.until_sealed(flushed(server))
    first.end()
    line = first.line()
    (held,) = line.reach()
    border = Lsn(held.end // (1 << 20) * (1 << 20))
    line.delete([one for one in line.stored() if one.end > border])
    again = receive(server)
    again.until_sealed(write(server))
    assert f"from {Lsn(border - (1 << 20))}" in again.heard.phases[0]
    assert line.reach() == [Range(held.start, whole_reach(line).end)]
    assert_same_as_server(line, server)
