"""Processes of this machine: which one is meant, whether it lives, its end with everything below it, its priority.

A process is told apart from a later one with the same number by when it began. On Linux that is counted from the boot,
so that a wall clock that is set meanwhile changes nothing; elsewhere the system keeps the moment of the start itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from datamanager.base.lazy import lazy

if TYPE_CHECKING:
    import psutil
else:
    psutil = lazy("psutil")  # on Linux only processes that are ended need it

# Starts are kept in hundredths of a second, and a float that went through JSON comes back as it was.
_SAME_START_SECONDS = 0.02
_LOOK_SECONDS = 0.05
# How long killed processes may take to go; only one in an uninterruptible wait takes longer.
_KILLED_SECONDS = 5.0
# Below everything else, above what runs only on an idle machine.
_NICENESS = 10


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process of one boot.

    Args:
        pid: its number.
        started: when it began, in seconds on the system's own scale (since the boot on Linux, since the epoch
            elsewhere); only good for comparing.
        boot: the boot it ran in; see ``boot_id``.
    """

    pid: int
    started: float
    boot: str


@cache
def boot_id() -> str:
    """Changes with every start of the machine. Source: random(4)."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_bytes().decode().strip()
    return str(int(psutil.boot_time()))


def this_process() -> ProcessIdentity:
    """The identity of the calling process."""
    return ProcessIdentity(os.getpid(), _started(os.getpid()), boot_id())


def identify(pid: int) -> ProcessIdentity | None:
    """The process that has this number now; None when none has, or when it ended and was not waited for yet."""
    try:
        return None if _ended(pid) else ProcessIdentity(pid, _started(pid), boot_id())
    except (OSError, ValueError, psutil.Error):
        return None


def has_ended(pid: int) -> bool:
    """Whether no process has that number, or only one that ended and was not waited for; False where nobody tells."""
    try:
        return _ended(pid)
    except (FileNotFoundError, ProcessLookupError, psutil.NoSuchProcess):
        return not _hidden(pid)
    except (psutil.Error, OSError):
        return False


def age_seconds(identity: ProcessIdentity) -> float | None:
    """For how long a process has been there, whatever the wall clock was set to; None when it is gone."""
    if not is_alive(identity):
        return None
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME) - identity.started
    return time.time() - identity.started


def is_alive(identity: ProcessIdentity) -> bool:
    """Whether that very process still runs; one that ended and was not waited for does not.

    A process about which the system tells this account nothing but that the number is taken counts as alive.
    """
    if identity.pid <= 0 or (sys.platform == "linux" and identity.boot != boot_id()):
        return False
    try:
        return abs(_started(identity.pid) - identity.started) <= _SAME_START_SECONDS and not _ended(identity.pid)
    except (psutil.AccessDenied, PermissionError):
        return True
    except (OSError, ValueError, psutil.Error):
        return _hidden(identity.pid)


def ancestors() -> list[ProcessIdentity]:
    """The calling process, its parent, and so on, as far as they can be seen."""
    pids = [os.getpid()]
    with contextlib.suppress(psutil.Error, OSError):
        pids += [parent.pid for parent in psutil.Process().parents()]
    return [identity for pid in pids if (identity := identify(pid)) is not None]


def _started(pid: int) -> float:
    """Raises: OSError, psutil.Error. Source: proc_pid_stat(5), field 22, counted behind the name's last parenthesis."""
    if sys.platform == "linux":
        return int(_stat(pid)[19]) / os.sysconf("SC_CLK_TCK")
    return psutil.Process(pid).create_time()


def _ended(pid: int) -> bool:
    """Raises: OSError, psutil.Error. Source: proc_pid_stat(5), field 3."""
    if sys.platform == "linux":
        return _stat(pid)[0] in (b"Z", b"X", b"x")
    return psutil.Process(pid).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


def _stat(pid: int) -> list[bytes]:
    """The fields behind a process's name. Raises: OSError; the process may be gone, or hidden from this account."""
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()


def _hidden(pid: int) -> bool:
    """Whether the number is taken by a process whose entry this account may not see (mount option hidepid)."""
    if sys.platform != "win32":
        try:
            os.kill(pid, 0)
        except PermissionError:
            return True
        except OSError:
            return False
    return False


class GroupOptions(TypedDict, total=False):
    """Arguments of subprocess.Popen."""

    start_new_session: bool
    creationflags: int


def group_options() -> GroupOptions:
    """How to begin a child that ``end_tree`` can end with everything it began, whatever its parents do meanwhile.

    It leads a session of its own (on Windows: a process group without a window), so a key pressed at our terminal does
    not reach it, and it outlives us.
    """
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    return {"start_new_session": True}


def end_tree(process: int | ProcessIdentity, grace_seconds: float) -> bool:
    """Ask a process to end, and kill it and everything below it that is left after ``grace_seconds``.

    The process is asked alone, so that it can end its children in its own way. What it leaves behind, its session's
    members included where it leads one, is asked and killed as well. Never touches the calling process.

    Args: process - a number, or an identity, with which a process that only has the same number is left alone;
        grace_seconds - 0 kills at once.
    Returns: whether nothing of it is left. Idempotent.
    """
    pid = process if isinstance(process, int) else process.pid
    if pid in (0, os.getpid()) or (isinstance(process, ProcessIdentity) and not is_alive(process)):
        return pid != os.getpid()
    leads_session = _leads_session(pid)
    members = _Members(pid, leads_session)
    if grace_seconds > 0:
        members.look()
        _ask(pid)
        _until(lambda: not members.alive(root_only=True), grace_seconds / 2)
        for member in members.alive():
            with contextlib.suppress(psutil.Error):
                member.terminate()
        _until(lambda: not members.alive(), grace_seconds / 2)
    return _until(members.killed, _KILLED_SECONDS)


class _Members:
    """A process and what belongs to it, remembered from look to look: a child whose parent ended loses its place."""

    def __init__(self, pid: int, leads_session: bool) -> None:
        self._pid = pid
        self._leads_session = leads_session
        self._known: dict[int, psutil.Process] = {}

    def look(self) -> None:
        """Find members that are new."""
        for process in [*self._known.values(), *self._root()]:
            with contextlib.suppress(psutil.Error):
                self._add(process)
                for child in process.children(recursive=True):
                    self._add(child)
        if self._leads_session:
            for number in psutil.pids():
                with contextlib.suppress(psutil.Error, OSError):
                    if number not in self._known and _session(number) == self._pid:
                        self._add(psutil.Process(number))

    def _root(self) -> list[psutil.Process]:
        try:
            return [] if self._pid in self._known else [psutil.Process(self._pid)]
        except psutil.Error:
            return []

    def _add(self, process: psutil.Process) -> None:
        if process.pid != os.getpid():
            self._known.setdefault(process.pid, process)

    def alive(self, *, root_only: bool = False) -> list[psutil.Process]:
        self.look()
        return [one for one in self._known.values() if (one.pid == self._pid or not root_only) and _runs(one)]

    def killed(self) -> bool:
        """Kill what is left; True when nothing was."""
        left = self.alive()
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        return not left


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


def _session(pid: int) -> int:
    if sys.platform == "win32":
        return 0
    return os.getsid(pid)


def _leads_session(pid: int) -> bool:
    """Also when it ended already: others may be left in the session that bears its number."""
    if sys.platform == "win32":
        return False
    try:
        return os.getsid(pid) == pid
    except OSError:
        return os.getsid(0) != pid


def _ask(pid: int) -> None:
    """An orderly end, as a person would ask for it: SIGTERM, on Windows Ctrl-Break (it must share our console)."""
    with contextlib.suppress(OSError, ValueError):
        if sys.platform == "win32":
            os.kill(pid, signal.CTRL_BREAK_EVENT)
        else:
            os.kill(pid, signal.SIGTERM)


def _until(holds: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_SECONDS)
    return True


def lower_priority() -> None:
    """Let this process, and what it begins from now on, give way to others in computing and on the disk.

    Does what the system allows, and nothing where it allows nothing. Source: setpriority(2), ioprio_set(2) (best
    effort, lowest level), SetPriorityClass.
    """
    process = psutil.Process()
    with contextlib.suppress(psutil.Error, OSError):
        if sys.platform == "win32":
            process.nice(psutil.BELOW_NORMAL_PRIORITY_CLASS)
        else:
            process.nice(max(process.nice(), _NICENESS))
    with contextlib.suppress(psutil.Error, OSError):
        if sys.platform == "win32":
            process.ionice(psutil.IOPRIO_LOW)
        elif sys.platform == "linux":
            process.ionice(psutil.IOPRIO_CLASS_BE, 7)
