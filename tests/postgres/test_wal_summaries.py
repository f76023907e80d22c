"""WAL summaries on real servers: when an increment on a parent is possible, and each reason why it is not."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from psycopg import pq

from datamanager.base.clock import SystemClock
from datamanager.base.errors import Cancelled, ServerUnreachable
from datamanager.base.pipeline import StopToken
from datamanager.base.units import Lsn
from datamanager.postgres.connection import ServerAddress, connect
from datamanager.postgres.replication import ReplicationSession, result_rows
from datamanager.postgres.wal_summaries import Summaries, SummaryRange, missing_reason, read_summaries
from tests.conftest import NewServer
from tests.servers import Server, hand_over

SUMMARIZING = {"summarize_wal": "on"}


class Parent:
    """A backup of a server that goes nowhere: its timeline, start, stop, and the cuts at its end."""

    def __init__(self, server: Server) -> None:
        rows: list[list[str | None]] = []
        with (
            StopToken() as stop,
            connect(ServerAddress(server.dsn), replication=True) as connection,
            ReplicationSession(connection, stop, SystemClock(), lambda text: None, 30) as wire,
        ):
            wire.send("BASE_BACKUP (CHECKPOINT 'fast', WAIT false)")
            while (result := wire.result()) is not None:
                if result.status == pq.ExecStatus.COPY_OUT:
                    assert sum(len(message) for message in wire.copy_messages()) > 1 << 20
                elif result.nfields == 2:
                    rows += result_rows(result)
        (start, timeline), (stop_at, _) = rows[0], rows[-1]
        self.start, self.stop = Lsn.parse(start or ""), Lsn.parse(stop_at or "")
        self.timeline = int(timeline or 0)
        self.cuts: tuple[Lsn, ...] = ()

    def remember(self, server: Server) -> Parent:
        self.cuts = self.look(server).cuts_until(self.timeline, self.start)
        assert self.cuts[-1] == self.start
        return self

    def look(self, server: Server, *, user: str = "") -> Summaries:
        with StopToken() as stop:
            address = ServerAddress(server.make_dsn(user=user))
            return read_summaries(address, stop, lambda text: None, reach=(self.timeline, self.start))

    def reason(self, server: Server, *, user: str = "") -> str | None:
        return missing_reason(self.look(server, user=user), self.timeline, self.start, self.stop, self.cuts)


def write(server: Server, rows: int = 2000) -> None:
    server.sql("create table if not exists written (n int, filler text)")
    server.sql("insert into written select n, repeat(md5(n::text), 8) from generate_series(1, %s) n", rows)


def run_past(server: Server, position: Lsn) -> None:
    """Write until the server's WAL is well beyond ``position``, with checkpoints on the way."""
    while Lsn.parse(server.value("select pg_current_wal_lsn()::text")) < position + (1 << 20):
        write(server)
        server.sql("checkpoint")


def restart_on(server: Server, copy: Path) -> None:
    """Put a copy of the data directory back and start on it."""
    server.stop("immediate")
    shutil.rmtree(server.data_directory)
    copy.rename(server.data_directory)
    hand_over(server.data_directory)
    (server.data_directory / "postmaster.pid").unlink(missing_ok=True)
    server.start()


@pytest.mark.pg("17-18")
@pytest.mark.decision(20)
def test_a_plain_replication_role_sees_all_and_an_increment_right_after_a_full_is_possible(
    new_server: NewServer,
) -> None:
    server = new_server(config=SUMMARIZING)
    server.sql("create role plain login replication")
    write(server)
    for _ in range(4):
        parent = Parent(server)
        begun = time.monotonic()
        found = parent.look(server, user="plain")
        assert time.monotonic() - begun < 2
        assert missing_reason(found, parent.timeline, parent.start, parent.stop) is None
        cuts = found.cuts_until(parent.timeline, parent.start)
        assert cuts[-1] == parent.start
        assert missing_reason(found, parent.timeline, parent.start, parent.stop, cuts) is None
    assert (found.supported, found.enabled, found.in_recovery, found.unknown) == (True, True, False, "")
    assert (found.timeline, found.keep_seconds, found.wal_level) == (1, 10 * 86400, "replica")
    assert (found.data_checksums, found.wal_log_hints) == (True, False)
    assert found.summarized is not None
    assert found.summarized[0] == 1


@pytest.mark.pg("17-18")
@pytest.mark.decision(4)
def test_normal_life_is_no_obstacle_restarts_and_crashes_included(new_server: NewServer) -> None:
    server = new_server(config={**SUMMARIZING, "fsync": "on"})
    write(server)
    parent = Parent(server).remember(server)
    write(server, 20000)
    server.sql("checkpoint")
    assert parent.reason(server) is None
    server.restart()
    write(server)
    assert parent.reason(server) is None
    server.kill9()
    server.start()
    write(server)
    Parent(server)
    assert parent.reason(server) is None


@pytest.mark.pg("17-18")
@pytest.mark.decision(4)
def test_a_machine_that_was_put_back_is_recognized(new_server: NewServer, open_folder: Path) -> None:
    server = new_server(config={**SUMMARIZING, "fsync": "on"})
    write(server)
    server.stop()
    shutil.copytree(server.data_directory, open_folder / "copy", symlinks=True)
    server.start()
    write(server)
    parent = Parent(server)
    write(server)
    assert parent.reason(server) is None
    restart_on(server, open_folder / "copy")
    early = parent.reason(server)
    assert early is not None
    assert "history differs" in early
    assert f"before the parent's end {parent.stop}" in early
    run_past(server, parent.stop)
    late = parent.reason(server)
    assert late is not None
    assert f"no checkpoint of it was at the parent's start {parent.start}" in late


def freeze_and_copy(server: Server, copy: Path) -> None:
    """Take what a hypervisor's snapshot takes: the disk of a running machine at one moment."""
    postmaster = psutil.Process(server.postmaster_pid)
    processes = [postmaster, *postmaster.children(recursive=True)]
    gone = contextlib.suppress(psutil.NoSuchProcess)  # a backend that was on its way out
    for process in processes:
        with gone:
            process.suspend()
    try:
        shutil.copytree(server.data_directory, copy, symlinks=True)
    finally:
        for process in processes:
            with gone:
                process.resume()


@pytest.mark.pg("17-18")
@pytest.mark.decision(4)
def test_another_history_with_a_backup_at_the_very_same_start_is_told_by_the_checkpoints_before(
    new_server: NewServer, open_folder: Path
) -> None:
    """On a quiet server a backup begins a few bytes into the next segment, in both histories the same one."""
    server = new_server(config={**SUMMARIZING, "fsync": "on"})
    write(server)
    freeze_and_copy(server, open_folder / "copy")
    write(server, 10)
    parent = Parent(server).remember(server)
    write(server)
    assert parent.reason(server) is None
    restart_on(server, open_folder / "copy")
    write(server, 20)
    other = Parent(server)
    assert other.start == parent.start
    run_past(server, parent.stop)
    reason = parent.reason(server)
    assert reason is not None
    assert "in only one of them" in reason
    # By the parent's start alone this machine would pass.
    assert missing_reason(parent.look(server), parent.timeline, parent.start, parent.stop) is None
    assert other.reason(server) is None


@pytest.mark.pg("17-18")
@pytest.mark.decision(20)
def test_switched_off_and_a_gap_after_switching_on_again_are_reasons(new_server: NewServer) -> None:
    server = new_server(config={**SUMMARIZING, "min_wal_size": "32MB", "max_wal_size": "32MB"})
    write(server)
    parent = Parent(server).remember(server)
    server.configure(summarize_wal="off")
    wait_for(lambda: server.value("show summarize_wal") == "off")
    assert parent.reason(server) == "the server keeps no WAL summaries (summarize_wal is off)"
    server.configure(summarize_wal="on")
    wait_for(lambda: server.value("show summarize_wal") == "on")
    assert parent.reason(server) is None  # shortly off and on again: no WAL was removed meanwhile
    server.configure(summarize_wal="off")
    for _ in range(4):
        write(server)
        server.sql("select pg_switch_wal()")
        server.sql("checkpoint")
    server.configure(summarize_wal="on")
    wait_for(
        lambda: (
            server.value("select count(*) from pg_available_wal_summaries() where start_lsn > %s", str(parent.stop)) > 0
        )
    )
    reason = parent.reason(server)
    assert reason is not None
    assert reason.startswith("WAL summaries since the parent are missing, from 0/")
    assert Parent(server).reason(server) is None


@pytest.mark.pg("17-18")
@pytest.mark.decision(20)
def test_summaries_that_the_server_removed_are_missed(new_server: NewServer) -> None:
    server = new_server(config={**SUMMARIZING, "wal_summary_keep_time": "1d"})
    write(server)
    parent = Parent(server)
    for _ in range(3):
        write(server)
        server.sql("checkpoint")
    server.stop()
    folder = server.data_directory / "pg_wal" / "summaries"
    for name in sorted(path.name for path in folder.iterdir())[:-1]:
        (folder / name).unlink()
    server.start()
    reason = parent.reason(server)
    assert reason is not None
    assert f"after the parent's start {parent.start} (they are kept for 1 day)" in reason


@pytest.mark.pg("17-18")
@pytest.mark.decision(20)
def test_a_parent_made_before_summarizing_began_counts_if_its_wal_is_still_there(new_server: NewServer) -> None:
    server = new_server()
    write(server)
    parent = Parent(server)
    assert parent.reason(server) == "the server keeps no WAL summaries (summarize_wal is off)"
    server.configure(summarize_wal="on")
    wait_for(lambda: server.value("select count(*) from pg_stat_activity where backend_type = 'walsummarizer'") == 1)
    server.sql("checkpoint")
    wait_for(lambda: server.value("select count(*) from pg_available_wal_summaries()") > 0)
    assert parent.reason(server) is None


@pytest.mark.pg("14-16")
def test_older_servers_are_known_to_have_no_summaries(server: Server) -> None:
    with StopToken() as stop:
        found = read_summaries(ServerAddress(server.dsn), stop, lambda text: None)
    assert (found.supported, found.enabled, found.timeline, found.ranges) == (False, None, 1, ())
    assert missing_reason(found, 1, Lsn(1), Lsn(1)) == "the server is older than PostgreSQL 17"


@pytest.mark.pg("18")
@pytest.mark.decision(20)
def test_without_an_sql_session_or_a_right_the_state_is_unknown_and_no_error(new_server: NewServer) -> None:
    server = new_server(config=SUMMARIZING)
    server.sql("create role narrow login replication")
    server.hba_first("local all narrow reject")
    with StopToken() as stop:
        address = ServerAddress(server.make_dsn(user="narrow"))
        found = read_summaries(address, stop, lambda text: None, reach=(1, Lsn(1)))
        assert (found.supported, found.enabled) == (None, None)
        reason = missing_reason(found, 1, Lsn(1), Lsn(1))
        assert reason is not None
        assert reason.startswith("the server's WAL summaries cannot be seen (connect to")
        server.sql("create role clipped login replication")
        server.sql("revoke execute on function pg_available_wal_summaries() from public")
        clipped = read_summaries(ServerAddress(server.make_dsn(user="clipped")), stop, lambda text: None)
        assert "permission denied" in clipped.unknown
        server.stop()
        with pytest.raises(ServerUnreachable):
            read_summaries(address, stop, lambda text: None)


@pytest.mark.pg("18")
@pytest.mark.decision(20)
def test_a_summarizer_that_stands_still_is_waited_for_a_bounded_time_and_a_stop_ends_the_wait(
    new_server: NewServer,
) -> None:
    server = new_server(config=SUMMARIZING)
    write(server)
    (summarizer,) = (
        psutil.Process(pid)
        for (pid,) in server.sql("select pid from pg_stat_activity where backend_type = 'walsummarizer'")
    )
    summarizer.suspend()
    try:
        parent = Parent(server)
        begun = time.monotonic()
        assert parent.reason(server) == (
            f"the server has not summarized its WAL up to the parent's start {parent.start} yet"
        )
        assert 9 < time.monotonic() - begun < 15
        said: list[str] = []
        address = ServerAddress(server.dsn)
        with StopToken() as stop:
            timer = threading.Timer(0.5, stop.stop, ["enough"])
            timer.start()
            with pytest.raises(Cancelled, match="enough"):
                read_summaries(address, stop, said.append, reach=(parent.timeline, parent.start))
            timer.join()
        assert len(said) == len(set(said)) == 4
    finally:
        summarizer.resume()
    assert parent.reason(server) is None


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def lsn(text: str) -> Lsn:
    return Lsn.parse(text)


def summaries(*ranges: tuple[str, str], position: str = "0/9000", pending: str | None = None) -> Summaries:
    made = tuple(SummaryRange(1, lsn(start), lsn(end)) for start, end in ranges)
    return Summaries(
        supported=True,
        enabled=True,
        keep_seconds=0,
        ranges=made,
        in_recovery=False,
        timeline=1,
        position=lsn(position),
        pending=None if pending is None else lsn(pending),
    )


@pytest.mark.decision(20)
@pytest.mark.parametrize(
    ("found", "said"),
    [
        (summaries(("0/10", "0/20"), ("0/20", "0/30")), None),
        (summaries(("0/10", "0/20")), None),
        (summaries(("0/20", "0/30")), None),
        (summaries(("0/10", "0/20"), ("0/10", "0/28"), ("0/20", "0/30")), None),  # overlapping ones are allowed
        (summaries(("0/10", "0/30")), "no checkpoint of it was at the parent's start 0/20"),
        (summaries(("0/10", "0/18"), ("0/18", "0/28")), "no checkpoint"),
        (summaries(("0/10", "0/18")), "not summarized its WAL up to the parent's start 0/20 yet"),
        (summaries(("0/10", "0/18"), pending="0/20"), "yet"),
        (summaries(("0/10", "0/18"), pending="0/21"), "no checkpoint"),
        (summaries(("0/10", "0/20"), ("0/28", "0/30")), "missing, from 0/20 to 0/28"),
        (summaries(("0/28", "0/30")), "begin at 0/28, after the parent's start 0/20 (they are kept for ever)"),
        (summaries(), "no WAL summaries yet"),
        (summaries(("0/10", "0/20"), position="0/24"), "its WAL ends at 0/24, before the parent's end 0/25"),
    ],
)
def test_the_verdict_follows_from_the_ranges_alone(found: Summaries, said: str | None) -> None:
    reason = missing_reason(found, 1, lsn("0/20"), lsn("0/25"))
    assert (reason is None) if said is None else (reason is not None and said in reason)


@pytest.mark.decision(19)
def test_standbys_and_other_timelines_are_refused() -> None:
    standby = Summaries(supported=True, enabled=True, in_recovery=True, timeline=1)
    assert "standby" in str(missing_reason(standby, 1, Lsn(1), Lsn(1)))
    promoted = summaries(("0/10", "0/20"))
    assert missing_reason(promoted, 3, lsn("0/20"), lsn("0/25")) == (
        "the server's timeline is 1, that of the parent was 3"
    )
