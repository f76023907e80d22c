"""The service keeps the archive of a cluster's WAL running: through kills, hangs and its own end, never two at once."""

from __future__ import annotations

import os
import signal
import sys

import psutil
import pytest

from datamanager.app.wal_beat import WalBeat, WalFiles, read_wal_beat
from tests.app.serving import Serving, wait_until
from tests.conftest import NewServer
from tests.servers import Server


class Archived:
    """A home whose service archives the WAL of a server."""

    def __init__(self, serving: Serving, server: Server) -> None:
        self.serving = serving
        self.server = server
        serving.init()
        serving.command("cluster", "add", "office", server.dsn, "--repo", "usb", "--no-settings")
        serving.command("wal", "start", "office", "--enable", "--interval", "0.2")

    def beat(self) -> WalBeat | None:
        return read_wal_beat(WalFiles.of(self.serving.files, "office").beat)

    def receiver(self, not_before: int = 0) -> psutil.Process:
        """The receiver, as soon as it has caught up; another one than ``not_before``."""

        def lives() -> bool:
            beat = self.beat()
            return beat is not None and not beat.ended and beat.process.pid != not_before and beat.progress.caught_up

        wait_until(lives, 40, "the WAL is archived")
        beat = self.beat()
        assert beat is not None
        return psutil.Process(beat.process.pid)

    def receivers(self) -> list[psutil.Process]:
        found = []
        for process in self.serving.processes():
            words = process.cmdline()
            if "wal" in words and "--supervised" in words:
                found.append(process)
        return found


@pytest.fixture
def archived(serving: Serving, new_server: NewServer) -> Archived:
    return Archived(serving, new_server(config={"max_slot_wal_keep_size": "1GB"}))


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_receiver_that_is_killed_is_begun_again_and_ends_with_the_service(archived: Archived) -> None:
    serving = archived.serving
    service = serving.serve()
    first = archived.receiver()
    assert [one.pid for one in archived.receivers()] == [first.pid]
    os.kill(first.pid, signal.SIGKILL)
    second = archived.receiver(not_before=first.pid)
    assert "The receiver of the WAL of office was killed; it is started again" in serving.said()
    archived.server.sql("CREATE TABLE visits (id int)")
    assert serving.end(service) == 0
    assert not second.is_running()
    assert serving.processes() == []
    beat = archived.beat()
    assert beat is not None
    assert beat.ended


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_receiver_whose_supervisor_is_killed_ends_and_the_next_service_takes_over(archived: Archived) -> None:
    serving = archived.serving
    service = serving.serve()
    first = archived.receiver()
    service.kill()
    service.wait()
    next_one = serving.serve()
    second = archived.receiver(not_before=first.pid)
    wait_until(lambda: not first.is_running(), 20, "the orphan has ended")
    assert [one.pid for one in archived.receivers()] == [second.pid]
    stopped = serving.command("wal", "stop", "office", "--drop-slot")
    assert "no longer archived" in stopped.out
    wait_until(lambda: archived.receivers() == [], 20, "the service lets it be")
    assert archived.server.value("SELECT count(*) FROM pg_replication_slots") == 0
    assert serving.end(next_one) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_receiver_is_begun_again_when_what_it_was_begun_with_has_changed(archived: Archived) -> None:
    serving = archived.serving
    service = serving.serve()
    first = archived.receiver()
    serving.command("cluster", "set", "office", "wal_interval=0.5")
    second = archived.receiver(not_before=first.pid)
    assert not first.is_running()
    assert [one.pid for one in archived.receivers()] == [second.pid]
    assert "The configuration of office has changed" in serving.said()
    assert serving.end(service) == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_receiver_that_hangs_is_killed_and_begun_again(archived: Archived) -> None:
    serving = archived.serving
    service = serving.serve(hung_after=6.0)
    first = archived.receiver()
    first.suspend()
    second = archived.receiver(not_before=first.pid)
    assert not psutil.pid_exists(first.pid)
    assert "said nothing for" in serving.said()
    assert [one.pid for one in archived.receivers()] == [second.pid]
    assert serving.end(service) == 0
