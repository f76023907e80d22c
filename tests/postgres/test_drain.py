"""Who is connected is told, and may be waited for (requirement R79)."""

from __future__ import annotations

import threading
import time

import pytest

from datamanager.base.errors import Cancelled
from datamanager.base.pipeline import StopToken
from datamanager.postgres.connection import ServerAddress
from datamanager.postgres.drain import Session, connected, wait_until_alone
from tests.conftest import NewServer


@pytest.mark.pg("14,18")
def test_sessions_are_told_and_waited_for_until_they_leave_or_the_time_is_over(new_server: NewServer) -> None:
    server = new_server()
    address = ServerAddress(server.dsn)
    told: list[list[Session]] = []
    with StopToken() as stop:
        assert wait_until_alone(address, 0, stop, told.append) == []
        with server.connect(), server.connect(autocommit=False) as busy:
            busy.execute("select 1")
            assert [one.state for one in connected(address, stop)] == ["idle", "idle in transaction"]
            began = time.monotonic()
            left = wait_until_alone(address, 1, stop, told.append)
            assert 0.9 < time.monotonic() - began < 5
            assert [(one.role, one.database) for one in left] == [("postgres", "postgres")] * 2
            leaving = threading.Timer(0.3, busy.close)
            leaving.start()
            assert len(wait_until_alone(address, 1.5, stop, told.append)) == 1
            leaving.join()
        assert [len(sessions) for sessions in told] == [0, 2, 2, 1]
        server.stop()
        assert wait_until_alone(address, 5, stop, told.append) == []
        with server.start().connect():
            stop.stop("cancelled")
            with pytest.raises(Cancelled):
                wait_until_alone(address, 60, stop, told.append)
