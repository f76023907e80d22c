"""The receivers of WAL as the supervisor sees them: whatever they do, it goes on looking after the others."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from datamanager.app.context import Context
from datamanager.app.wal_children import WalChildren
from datamanager.base.clock import SystemClock
from datamanager.base.events import ignore
from datamanager.base.pipeline import StopToken
from datamanager.config.home import Home

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


class Deaf:
    """A home with clusters whose receivers hear nothing of being asked to end."""

    def __init__(self, folder: Path, stop: StopToken) -> None:
        self.home = Home(folder, folder)
        self.begun: list[subprocess.Popen[bytes]] = []
        self.said: list[str] = []
        context = Context(self.home, SystemClock(), stop, ignore)
        self.children = WalChildren(context, self._begin, self.said.append, 600.0)

    def _begin(self, words: Sequence[str]) -> subprocess.Popen[bytes]:
        self.begun.append(subprocess.Popen([sys.executable, "-c", DEAF], stdin=subprocess.PIPE))
        return self.begun[-1]

    def configure(self, *names: str) -> None:
        sections = [f'[clusters.{name}]\nconninfo = "host=/nowhere"\nwal = true\n' for name in names]
        self.home.config_file.write_text("\n".join(sections), encoding="utf-8")

    def look(self, now: float) -> float:
        """How long a look took, in seconds."""
        began = time.monotonic()
        self.children.look(now)
        return time.monotonic() - began

    @property
    def alive(self) -> int:
        return sum(one.poll() is None for one in self.begun)


@pytest.fixture
def deaf(tmp_path: Path) -> Iterator[Deaf]:
    with StopToken() as stop:
        made = Deaf(tmp_path, stop)
        try:
            yield made
        finally:
            for one in made.begun:
                one.kill()
                one.communicate()


def test_receivers_that_do_not_end_hold_up_nobody_and_are_killed_together(deaf: Deaf) -> None:
    deaf.configure("front", "back", "yard")
    deaf.look(1000.0)
    deaf.look(1003.0)
    assert deaf.alive == 3
    deaf.configure("yard")
    assert deaf.look(1006.0) < 1.0
    assert deaf.look(1015.0) < 1.0
    assert deaf.alive == 3
    assert deaf.look(1016.5) < 1.0
    assert deaf.alive == 1
    assert len(deaf.said) == 2
    deaf.look(1020.0)
    assert len(deaf.begun) == 3


def test_the_successor_of_a_receiver_is_begun_once_that_has_ended(deaf: Deaf) -> None:
    deaf.configure("front")
    deaf.look(1000.0)
    deaf.look(1003.0)
    text = deaf.home.config_file.read_text(encoding="utf-8")
    deaf.home.config_file.write_text(text + "wal_interval = 0.5\n", encoding="utf-8")
    deaf.look(1006.0)
    deaf.look(1009.0)
    assert len(deaf.begun) == 1
    deaf.look(1016.5)
    assert deaf.alive == 0
    deaf.look(1019.0)
    deaf.look(1022.0)
    assert len(deaf.begun) == 2
    assert deaf.alive == 1
