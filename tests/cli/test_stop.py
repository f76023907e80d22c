"""Ctrl-C and SIGTERM: an orderly end within seconds, and nothing left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.caller import Done, Installation
from tests.conftest import NewServer

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """Read lines until one holds ``text``."""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"ended before {text!r}: {seen}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_backup_ends_with_130_and_leaves_no_slot_and_no_lease(
    installation: Installation, new_server: NewServer, number: int
) -> None:
    server = new_server()
    repository = installation.init()
    installation.ok("cluster", "add", "clinic", server.dsn)
    process = installation.start("backup", "run", "clinic", "--max-rate", "100KB", "--json")
    seen = wait_for(process, '"copying"')
    process.send_signal(number)
    began = time.monotonic()
    rest, errors = process.communicate(timeout=30)
    assert time.monotonic() - began < 10
    done = Done(process.returncode, seen + rest, errors)
    assert done.code == 130
    assert done.last["message_type"] == "error"
    assert signal.Signals(number).name in done.last["message"]
    assert server.value("SELECT count(*) FROM pg_replication_slots") == 0
    assert not list((repository / "leases").iterdir())
    assert installation.result("backup", "list")["backups"] == []


def test_a_reader_that_goes_away_does_not_stop_a_backup(installation: Installation, new_server: NewServer) -> None:
    server = new_server()
    installation.init()
    installation.ok("cluster", "add", "clinic", server.dsn)
    process = installation.start("backup", "run", "clinic")
    wait_for(process, "asking the server")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert (process.wait(timeout=60), errors) == (0, "")
    assert len(installation.result("backup", "list")["backups"]) == 1


def test_a_second_backup_of_the_same_cluster_is_refused_while_one_runs(
    installation: Installation, new_server: NewServer, tmp_path: Path
) -> None:
    server = new_server()
    installation.init()
    installation.ok("cluster", "add", "clinic", server.dsn)
    process = installation.start("backup", "run", "clinic", "--max-rate", "100KB", "--json")
    try:
        wait_for(process, '"copying"')
        second = installation.run("backup", "run", "clinic")
        assert second.code == 12
        assert f"process {process.pid}" in second.errors
        check = installation.result("repo", "check")
        assert [one["kind"] for one in check["at_work"]] == ["backup"]
    finally:
        process.terminate()
        process.communicate(timeout=30)
