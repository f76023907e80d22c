"""The children of the service as their parent sees them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from datamanager.app.planner_file import read_beat
from datamanager.base.errors import Busy
from datamanager.postgres.account import UnixAccount
from datamanager.system.processes import ProcessIdentity, end_tree, is_alive

# A planner's role, as its command line tells it.
PLANNER = "planner"
# Starting imports and migrates; a machine that has just booted is slow.
BIRTH_SECONDS = 180.0
LONGEST_PAUSE_SECONDS = 60.0
# One that waits for a drive that hangs does not go even when it is killed; nobody waits for that.
_KILLED_SECONDS = 2.0


def pause_after(deaths: int) -> float:
    """How long to wait before a child is begun again that has died so often in a row, in seconds: 1, 2, 4, ... 60."""
    # It may die for days, of a drive that is away: the power must not outgrow a float.
    return min(2.0 ** min(deaths - 1, 10), LONGEST_PAUSE_SECONDS)


class PlannerProcess:
    """The planner as its parent sees it."""

    def __init__(self, process: subprocess.Popen[bytes], file: Path, hung_seconds: float) -> None:
        self._process = process
        self._file = file
        self._hung_seconds = hung_seconds
        self.began = time.monotonic()
        self.beats = False
        self._last_beat = self.began
        self._stamp = self._stamped()

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    @property
    def was_refused(self) -> bool:
        """Whether it ended because another one plans."""
        return self._process.poll() == Busy.exit_code

    def trouble(self, now: float) -> str | None:
        """What is wrong with it, as the rest of a sentence; None when it lives."""
        code = self._process.poll()
        if code is not None:
            self.kill()
            return "was killed" if code < 0 else f"ended with exit code {code}"
        stamp = self._stamped()
        if stamp != self._stamp:
            self._stamp, self._last_beat, self.beats = stamp, now, True
        silent = now - self._last_beat
        if silent > (self._hung_seconds if self.beats else max(self._hung_seconds, BIRTH_SECONDS)):
            self.kill()
            return f"said nothing for {silent:.0f} s and was killed"
        return None

    def ask(self) -> None:
        """Let it end in an orderly way, with its jobs."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.write(b"stop\n")
                self._process.stdin.flush()

    def kill(self) -> None:
        """End it at once; the jobs that it began go on."""
        self._process.kill()
        _reap(self._process)
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def _stamped(self) -> int:
        """Changes with every sign of life, whatever the clock shows."""
        try:
            status = os.lstat(self._file)
        except OSError:
            return 0
        return hash((status.st_mtime_ns, status.st_ino))


class Errand:
    """A child that does one thing."""

    def __init__(self, process: subprocess.Popen[bytes], deadline: float) -> None:
        self._process = process
        self._deadline = deadline

    def ended(self, now: float) -> bool:
        if self._process.poll() is None and now < self._deadline:
            return False
        self.end()
        return True

    def end(self) -> None:
        if self._process.poll() is None:
            end_tree(self._process.pid, 3.0)
        _reap(self._process)
        if self._process.stdin is not None:
            self._process.stdin.close()


def _reap(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_KILLED_SECONDS)


def end_former_planner(file: Path, account: UnixAccount | None) -> bool:
    """End a planner whose supervisor was killed and that hangs, alone: its jobs go on. Returns: whether there was one.

    The file is the account's own, so what it names is only touched when it is such a process and the account's. One
    whose supervisor lives is left alone.
    """
    beat = read_beat(file)
    if beat is None or not is_alive(beat.process) or not _is_planner(beat.process, account):
        return False
    with contextlib.suppress(psutil.Error):
        found = psutil.Process(beat.process.pid)
        found.kill()
        found.wait(5)
    return True


def _is_supervised(planner: psutil.Process) -> bool:
    parent = planner.parent()
    return parent is not None and "serve" in parent.cmdline()


def _is_planner(process: ProcessIdentity, account: UnixAccount | None) -> bool:
    try:
        found = psutil.Process(process.pid)
        words = found.cmdline()
        if "serve" not in words or PLANNER not in words or _is_supervised(found):
            return False
        if sys.platform == "win32":
            return True
        return found.uids().real == (os.getuid() if account is None else account.user_id)
    except psutil.Error:
        return False
