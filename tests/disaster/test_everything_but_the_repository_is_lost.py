"""The server is killed, its disk is gone, and so is the home of the program: what comes back from the repository alone.

A writer commits a numbered row every 50 ms and notes which commits were acknowledged. With the default settings at most
5 s of them may be missing, in synchronous mode none.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest

from tests.cli.caller import Installation
from tests.conftest import NewServer
from tests.servers import Server

_EVERY_SECONDS = 0.05


@dataclass
class Writer:
    """Commits rows 1, 2, 3 … until its server is gone; ``noted`` has the time of each acknowledged commit."""

    server: Server
    noted: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.server.sql("create table numbered (n int primary key)")
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def _write(self) -> None:
        number = 0
        try:
            with self.server.connect() as connection:
                while True:
                    number += 1
                    connection.execute("insert into numbered values (%s)", (number,))
                    self.noted[number] = time.monotonic()
                    time.sleep(_EVERY_SECONDS)
        except psycopg.Error:
            return

    def wait_for(self, rows: int) -> None:
        deadline = time.monotonic() + 120
        while len(self.noted) < rows:
            assert time.monotonic() < deadline, len(self.noted)
            time.sleep(0.01)

    def end(self) -> None:
        self._thread.join(30)
        assert not self._thread.is_alive()


def installation_in(folder: Path) -> Installation:
    folder.mkdir()
    return Installation(folder)


@pytest.mark.pg("15,18")
@pytest.mark.timeout(240)
@pytest.mark.parametrize("words", [(), ("--synchronous",)], ids=["default", "synchronous"])
def test_what_was_committed_comes_back_from_the_repository_alone(
    new_server: NewServer,
    open_folder: Path,
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = new_server()
    installation = installation_in(tmp_path / "office")
    repository = installation.init()
    installation.ok("cluster", "add", "office", server.dsn, "--repo", "usb", "--no-settings")
    installation.ok("backup", "run", "office")
    receiver = installation.start("wal", "start", "office", "--yes", *words)
    try:
        writer = Writer(server)
        writer.wait_for(20)
        while words and server.value("select count(*) from pg_stat_replication where sync_state = 'sync'") == 0:
            time.sleep(0.05)
        begun = len(writer.noted)
        # Commits that wait for the repository take longer than the 8 s that these take otherwise.
        writer.wait_for(begun + (40 if words else 160))
        moment = time.monotonic()
        server.kill9()
        receiver.kill()
    finally:
        receiver.kill()
        receiver.communicate()
    writer.end()
    bin_folder, version = server.bin, server.version
    server.destroy()
    shutil.rmtree(installation.home)

    elsewhere = installation_in(tmp_path / "another computer")
    target = open_folder / "restored"
    secret = ("--passphrase-file", installation.passphrase_file)
    monkeypatch.setenv("PATH", f"{bin_folder}{os.pathsep}{os.environ['PATH']}")
    done = elsewhere.ok("restore", "latest", "--repo", repository, *secret, "--target", target)
    assert "the last commit included" in done.out
    restored = new_server.adopt(target, version)
    rows = [n for (n,) in restored.sql("select n from numbered order by n")]
    assert rows == list(range(1, len(rows) + 1))
    missing = [n for n in writer.noted if n > len(rows)]
    if words:
        assert missing == []
    else:
        assert all(moment - writer.noted[n] <= 5 for n in missing), missing
