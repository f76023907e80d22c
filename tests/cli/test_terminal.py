"""At a terminal: the hidden question, typed twice, and the bar."""

from __future__ import annotations

import os
import re
import select
import sys
import time

import pytest

from tests.cli.caller import HOME, PASSPHRASE, Installation
from tests.servers import Server

if sys.platform != "win32":
    import pty

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")


def at_terminal(installation: Installation, words: list[str], answers: list[tuple[str, str]]) -> tuple[int, str]:
    """Run a command at a terminal of its own and type the answer to each question.

    Args: answers - pairs of what is asked and what is typed.
    Returns: exit code, and everything shown.
    """
    pid, terminal = pty.fork()
    if pid == 0:
        environment = {**os.environ, HOME: str(installation.home), "TERM": "xterm", "COLUMNS": "120"}
        os.execve(sys.executable, [sys.executable, "-m", "datamanager.cli.main", *words], environment)
    shown, waiting, deadline = "", list(answers), time.monotonic() + 60
    while time.monotonic() < deadline:
        ready, _, _ = select.select([terminal], [], [], 1)
        if not ready:
            continue
        try:
            data = os.read(terminal, 65536)
        except OSError:  # Linux: the other side was closed
            break
        if not data:
            break
        shown += data.decode(errors="replace")
        if waiting and shown.rstrip().endswith(waiting[0][0]):
            os.write(terminal, f"{waiting.pop(0)[1]}\n".encode())
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown


def test_a_new_passphrase_is_asked_for_twice_and_never_shown(installation: Installation) -> None:
    place = str(installation.folder / "drive")
    words = ["repo", "init", "usb", place, "--no-wheels"]
    code, shown = at_terminal(installation, words, [("passphrase:", PASSPHRASE), ("again:", PASSPHRASE)])
    assert code == 0, shown
    assert PASSPHRASE not in shown
    assert "RECOVERY CODE" in shown
    other = [*words[:2], "green", f"{place} 2"]
    code, shown = at_terminal(installation, other, [("passphrase:", PASSPHRASE), ("again:", "something else")])
    assert code == 2
    assert "the two are different" in shown


def test_a_passphrase_is_asked_for_where_no_key_is_configured(clinic: Installation, installation: Installation) -> None:
    words = ["backup", "list", "--repo", str(clinic.folder / "repository of usb")]
    code, shown = at_terminal(installation, words, [("repository of usb:", PASSPHRASE)])
    assert code == 0, shown
    assert "the first one" in shown


def test_a_terminal_shows_phase_percent_speed_and_time_left(installation: Installation, server: Server) -> None:
    installation.init()
    installation.ok("cluster", "add", "clinic", server.dsn)
    code, shown = at_terminal(installation, ["backup", "run", "clinic", "--max-rate", "20MB"], [])
    assert code == 0, shown
    assert "copying" in shown
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert re.search(r"\d+ %\s+[\d.]+ [KMG]iB\s+[\d.]+ [KMG]?i?B/s\s+[\d.]+ s left", plain)
    assert "Backup 2" in shown
