"""The receivers of WAL as the service's parent sees them: one child a cluster whose configuration says ``wal = true``.

One that dies is begun again with a back-off, one that says nothing any more is killed first. One whose supervisor was
killed ends by itself when its standard input does; the lock in ``STATE/wal`` keeps two apart.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from datamanager.app.context import Context
from datamanager.app.serve_children import LONGEST_PAUSE_SECONDS, PlannerProcess, pause_after
from datamanager.app.wal_beat import WalFiles
from datamanager.base.errors import DataManagerError

Begin = Callable[[Sequence[str]], "subprocess.Popen[bytes]"]
_LOOK_SECONDS = 2.0
_STEADY_SECONDS = 300.0
# What is left is sealed within a second; a drive that hangs is not waited for.
_END_SECONDS = 10.0


@dataclass
class _Child:
    """One receiver. ``end_by`` is set once it was asked to end; its successor waits for that."""

    config: object
    process: PlannerProcess | None = None
    deaths: int = 0
    begin_at: float = 0.0
    end_by: float | None = None


class WalChildren:
    """The receivers of one service. Used by one thread.

    Args: begin - starts a command as the account of the jobs; say - is told what happens; hung_seconds - a receiver
        that says nothing for so long is killed.
    """

    def __init__(self, context: Context, begin: Begin, say: Callable[[str], None], hung_seconds: float) -> None:
        self._context = context
        self._begin = begin
        self._say = say
        self._hung_seconds = hung_seconds
        self._children: dict[str, _Child] = {}
        self._wanted: dict[str, object] = {}  # by cluster all that its receiver reads of the configuration
        self._read: tuple[int, int, int] | None = None
        self._looked = -_LOOK_SECONDS

    def look(self, now: float) -> None:
        """Begin, end, and begin again; every two seconds."""
        ending = any(one.end_by is not None for one in self._children.values())
        if now - self._looked < (0.0 if ending else _LOOK_SECONDS):
            return
        self._looked = now
        self._read_config()
        for name, config in self._wanted.items():
            self._children.setdefault(name, _Child(config))
        for name, child in list(self._children.items()):
            if child.end_by is not None:
                self._await_end(name, child, now)
            elif name not in self._wanted:
                self._ask_one(child, now)
                self._say(f"The WAL of {name} is no longer archived by the service.")
            elif child.config != self._wanted[name]:
                self._ask_one(child, now)
                self._say(f"The configuration of {name} has changed; its receiver of WAL is started again.")
            elif child.process is None:
                if now >= child.begin_at:
                    self._begin_one(name, child, now)
            elif (cause := child.process.trouble(now)) is not None:
                self._died(name, child, cause, now)
            elif child.process.beats and now - child.process.began > _STEADY_SECONDS:
                child.deaths = 0

    def ask(self) -> None:
        """Let all end in an orderly way; ``end`` waits for it."""
        for child in self._children.values():
            if child.process is not None:
                child.process.ask()

    def end(self, alive: Callable[[], None] = lambda: None) -> None:
        """End all; those that take too long are killed. Args: alive - called again and again meanwhile."""
        self.ask()
        deadline = time.monotonic() + _END_SECONDS
        while any(one.process is not None and one.process.runs for one in self._children.values()):
            if time.monotonic() > deadline:
                self._say("A receiver of WAL did not end in time; it was killed.")
                break
            alive()
            time.sleep(0.05)
        for child in self._children.values():
            if child.process is not None:
                child.process.kill()
        self._children.clear()

    def _read_config(self) -> None:
        """Which clusters are wanted; while the configuration cannot be read, the same as before."""
        try:
            status = self._context.home.config_file.stat()
            stamp = status.st_ino, status.st_mtime_ns, status.st_size
        except OSError:
            return
        if stamp == self._read:
            return
        try:
            config = self._context.config()
        except DataManagerError:
            return
        self._read = stamp
        wanted = {name: one for name, one in config.clusters.items() if one.wal}
        self._wanted = {name: (one, config.repositories) for name, one in wanted.items()}

    def _begin_one(self, name: str, child: _Child, now: float) -> None:
        try:
            process = self._begin(("wal", "start", name, "--supervised"))
        except DataManagerError as error:
            self._say(f"{error.message}.")
            child.begin_at = now + LONGEST_PAUSE_SECONDS
            return
        child.process = PlannerProcess(process, WalFiles.of(self._context.home, name).beat, self._hung_seconds)

    def _died(self, name: str, child: _Child, cause: str, now: float) -> None:
        child.process = None
        child.deaths += 1
        pause = pause_after(child.deaths)
        child.begin_at = now + pause
        self._say(f"The receiver of the WAL of {name} {cause}; it is started again in {pause:.0f} s.")

    def _ask_one(self, child: _Child, now: float) -> None:
        """Let one end; nobody waits for it here, for the service has others to look after, and its watchdog."""
        child.end_by = now + _END_SECONDS
        if child.process is not None:
            child.process.ask()

    def _await_end(self, name: str, child: _Child, now: float) -> None:
        """Forget one that has ended; one that takes too long is killed."""
        if child.process is not None:
            if child.process.runs and now < (child.end_by or 0.0):
                return
            child.process.kill()
        del self._children[name]
