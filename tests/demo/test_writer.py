"""The writer commits without pause, knows what it committed, and admits what failed."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import pytest

from datamanager.base.errors import ServerUnreachable
from datamanager.demo.compare import check_commit_run
from datamanager.demo.writer import CommitWriter
from tests.demo.conftest import NewDatabase


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def test_what_was_noted_is_an_unbroken_run_and_is_in_the_table(new_database: NewDatabase) -> None:
    connection = new_database()
    with CommitWriter(connection.info.dsn) as writer:
        wait_for(lambda: len(writer.commits) > 50)
    commits = writer.commits
    assert [number for number, _ in commits] == list(range(1, len(commits) + 1))
    positions = [position for _, position in commits]
    assert positions == sorted(positions)
    assert writer.failures == []
    report = check_commit_run(connection, commits, positions[-1])
    assert report.ok
    assert report.count == report.required == len(commits)


def test_a_noted_position_lies_behind_the_commit_and_before_the_next(new_database: NewDatabase) -> None:
    connection = new_database()
    with CommitWriter(connection.info.dsn) as writer:
        wait_for(lambda: len(writer.commits) > 20)
    positions = [position for _, position in writer.commits]
    # Every commit writes a record, so the log is longer after each.
    assert all(later > earlier for earlier, later in itertools.pairwise(positions))
    row = connection.execute("SELECT pg_current_wal_flush_lsn() >= %s::pg_lsn", (str(positions[0]),)).fetchone()
    assert row == (True,)


def test_another_writer_goes_on_where_the_first_ended(new_database: NewDatabase) -> None:
    connection = new_database()
    with CommitWriter(connection.info.dsn) as first:
        wait_for(lambda: len(first.commits) >= 3)
    with CommitWriter(connection.info.dsn) as second:
        wait_for(lambda: len(second.commits) >= 3)
    assert second.commits[0][0] == first.commits[-1][0] + 1
    assert check_commit_run(connection, first.commits + second.commits, second.commits[-1][1]).ok


def test_a_lost_connection_is_a_failure_and_the_run_goes_on_unbroken(new_database: NewDatabase) -> None:
    connection = new_database()
    with CommitWriter(connection.info.dsn) as writer:
        wait_for(lambda: len(writer.commits) > 5)
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'datamanager demo' AND datname = current_database()"
        )
        wait_for(lambda: len(writer.failures) == 1)
        at_failure = len(writer.commits)
        wait_for(lambda: len(writer.commits) > at_failure + 5)
    assert len(writer.failures) == 1
    assert check_commit_run(connection, writer.commits, writer.commits[-1][1]).ok


def test_a_writer_without_a_server_says_so_at_once() -> None:
    writer = CommitWriter("host=127.0.0.1 port=1 user=nobody")
    with pytest.raises(ServerUnreachable, match="start writer"):
        writer.start()
    writer.stop()
    assert writer.commits == []


def test_stopping_twice_or_before_the_start_is_harmless(new_database: NewDatabase) -> None:
    connection = new_database()
    writer = CommitWriter(connection.info.dsn)
    writer.stop()
    writer = CommitWriter(connection.info.dsn)
    writer.start()
    writer.stop()
    writer.stop()
    assert connection.closed is False
