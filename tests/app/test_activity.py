"""How busy a server is: one count an hour, on a real server, with a clock that a test moves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from datamanager.app.activity import ActivitySampler
from datamanager.app.context import Context
from datamanager.base.events import ignore
from datamanager.base.pipeline import StopToken
from datamanager.config.home import Home
from datamanager.config.state_url import sqlite_url
from datamanager.state.database import open_state
from tests.cli.caller import Installation
from tests.servers import Server

MONDAY_TEN = datetime(2026, 11, 23, 10, 0, 5, tzinfo=UTC)


class MovedClock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.passed = timedelta(0)

    def now(self) -> datetime:
        return MONDAY_TEN + self.passed

    def elapsed(self) -> float:
        return 1000.0 + self.passed.total_seconds()


def test_the_transactions_of_an_hour_are_counted_once_an_hour(tmp_path: Path, server: Server) -> None:
    installation = Installation(tmp_path)
    installation.ok("cluster", "add", "clinic", server.dsn)
    clock = MovedClock()
    home = Home(installation.home, installation.home)
    with StopToken() as stop, open_state(sqlite_url(home.state_file), clock=clock) as state:
        sampler = ActivitySampler(Context(home, clock, stop, ignore))
        sampler.look(state)
        assert list(state.known.activity("clinic")) == []
        server.sql("select pg_stat_force_next_flush()")
        for _ in range(20):
            server.sql("select 1")
        clock.passed = timedelta(minutes=30)
        sampler.look(state)
        clock.passed = timedelta(hours=1)
        sampler.look(state)
        (first,) = state.known.activity("clinic")
        assert (first.hour, first.samples) == (10, 1)  # Monday, 10:00 to 11:00
        assert first.transactions >= 20
        # Nobody looked for two hours, so nothing is known of either.
        clock.passed = timedelta(hours=3)
        sampler.look(state)
        assert len(state.known.activity("clinic")) == 1
        clock.passed = timedelta(hours=4)
        sampler.look(state)
        assert [one.hour for one in state.known.activity("clinic")] == [10, 13]
