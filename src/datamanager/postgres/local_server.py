"""A server on this machine, started on a data directory, waited for, and stopped so that no process is left.

pg_ctl does the starting: it gives up an administrator's privileges on Windows, and it sees a server that dies before
it is up. Recovery may take hours, so the wait has no end of its own; a StopToken or ``limit_seconds`` ends it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import psutil
from psycopg.conninfo import make_conninfo

from datamanager.base.errors import Busy, ServerDidNotStart
from datamanager.base.pipeline import StopToken
from datamanager.postgres.account import Account
from datamanager.postgres.connection import ServerAddress
from datamanager.postgres.programs import ProgramResult, Programs, run_program

StopMode = Literal["smart", "fast", "immediate"]

# sun_path holds 108 bytes on Linux and 104 on macOS and BSD, with the zero at its end.
_SOCKET_PATH_BYTES = 107 if sys.platform == "linux" else 103
# A year: pg_ctl counts tenths of a second in 32 bits, so "for ever" must stay below 2**31 / 10.
_UNLIMITED_SECONDS = 365 * 86400
_LOOK_SECONDS = 0.1
# Source: src/include/utils/pidfile.h, LOCK_FILE_LINE_PM_STATUS (counted from 0 here).
_STATUS_LINE = 7
_LOG_TAIL_BYTES = 64 * 1024
# Between its birth and its postmaster.pid a server only reads its configuration.
_BIRTH_SECONDS = 3.0

_HINTS = (
    (r"Address already in use|could not bind|could not create any|using socket file",
     "Choose a port and a socket folder nobody uses."),
    (r"lock file \"postmaster.pid\" already exists|is another postmaster", "Stop the server of that data directory."),
    (r"recovery ended before configured recovery target", "The target lies beyond the WAL at hand: choose an earlier."),
    (r"could not locate required checkpoint record|invalid checkpoint record", "WAL of the backup is missing."),
    (r"could not restore file", "The restore command failed: its reason stands above in the log."),
    (r"insufficient parameter settings", "The settings that the log names must be at least the primary's."),
    (r"could not access file|could not load library", "Install the library that the log names on this machine."),
    (r"shared memory|Cannot allocate memory|huge pages", "Give the server less memory (shared_buffers) or free some."),
    (r"has group or world access|has wrong ownership", "The data directory must be the account's own, mode 0700."),
    (r"No space left on device", "Make room on the volumes of the data directory."),
    (r"database files are incompatible|was initialized by PostgreSQL", "Use programs of the cluster's own version."),
)  # fmt: skip


class LocalServer:
    """One data directory and the server on it. Not thread-safe; the owner calls ``stop`` when done.

    Args:
        socket_directory: exists, belongs to the account, mode 0700 keeps everybody else out; unused on Windows, where
            the server listens on 127.0.0.1.
        options: settings on the command line, which beats every file.
        log_file: takes what the server says; appended to, made with mode 0600.
        user: the superuser that ``address`` names.
    """

    def __init__(
        self,
        data_directory: Path,
        programs: Programs,
        account: Account,
        socket_directory: Path,
        port: int,
        options: Mapping[str, str],
        log_file: Path,
        *,
        user: str = "postgres",
        on_executed: Callable[[str], None],
    ) -> None:
        self.data_directory = data_directory
        self.log_file = log_file
        self.port = port
        self._programs = programs
        self._account = account
        self._socket_directory = socket_directory
        self._options = dict(options)
        self._user = user
        self._on_executed = on_executed

    @property
    def address(self) -> ServerAddress:
        """Where the started server is reached, in the database ``postgres``."""
        host = "127.0.0.1" if sys.platform == "win32" else str(self._socket_directory)
        return ServerAddress(make_conninfo("", host=host, port=self.port, user=self._user, dbname="postgres"))

    @property
    def is_running(self) -> bool:
        """Whether a server, whoever started it, works on the data directory."""
        return self._postmaster() is not None

    def start(self, stop: StopToken, *, limit_seconds: float | None = None) -> None:
        """Start, and return when sessions are accepted (in recovery: read-only ones).

        Raises: ServerDidNotStart, with what its log says last; Busy (a server runs there already); ProgramMissing;
            Cancelled. Afterwards no process of it is left.
        """
        self._refuse_long_socket_path()
        if self.is_running:
            raise Busy(f"start server: one works on {self.data_directory} already", hint="Stop it first.")
        deadline = time.monotonic() + (_UNLIMITED_SECONDS if limit_seconds is None else limit_seconds)
        with self._open_log() as log:
            said_before = log.seek(0, os.SEEK_END)
            try:
                done = self._pg_ctl_start(stop, log.fileno(), limit_seconds)
                ready = done.status == 0 and self._becomes_ready(stop, deadline)
            except BaseException:
                self._end_newborn()
                raise
        if not ready:
            self._end_newborn()
            raise self._did_not_start(said_before)

    def stop(self, mode: StopMode = "fast", *, limit_seconds: float = 60) -> None:
        """Stop the server, harder if it does not within ``limit_seconds``; one that is not running is no error.

        After ``mode`` comes ``immediate``, with the same limit, then its processes are killed.

        ``fast`` ends sessions and writes a checkpoint, ``immediate`` leaves recovery to the next start.
        """
        postmaster = self._postmaster()
        if postmaster is None:
            return
        with StopToken() as unstoppable:
            steps = dict.fromkeys((mode, "immediate"), limit_seconds)
            for step, seconds in steps.items():
                self._pg_ctl(unstoppable, "stop", "-m", step, "-w", "-t", f"{max(seconds, 1):.0f}")
                if self._postmaster() is None:
                    return
        _kill_tree(postmaster)

    def _becomes_ready(self, stop: StopToken, deadline: float) -> bool:
        """Wait until sessions are accepted; False when the server ended or the time is over.

        pg_ctl is content with a server in recovery that admits nobody (status ``standby``, hot_standby off).
        """
        while self.is_running:
            with contextlib.suppress(OSError, IndexError):
                text = (self.data_directory / "postmaster.pid").read_text(encoding="utf-8", errors="replace")
                if text.splitlines()[_STATUS_LINE].strip() == "ready":
                    return True
            if time.monotonic() > deadline:
                return False
            if stop.wait(_LOOK_SECONDS):
                stop.check()
        return False

    def _pg_ctl_start(self, stop: StopToken, log: int, limit_seconds: float | None) -> ProgramResult:
        seconds = _UNLIMITED_SECONDS if limit_seconds is None else max(limit_seconds, 1)
        words = [word for name, value in self._all_options().items() for word in ("-c", f"{name}={value}")]
        # pg_ctl hands this line to the shell (on Windows to the C library), so it must be quoted for that.
        line = subprocess.list2cmdline(words) if sys.platform == "win32" else shlex.join(words)
        return self._pg_ctl(stop, "start", "-s", "-w", "-t", f"{seconds:.0f}", "-o", line, log=log)

    def _pg_ctl(self, stop: StopToken, *arguments: str, log: int | None = None) -> ProgramResult:
        # The directory goes by PGDATA: pg_ctl would put -D between double quotes of a shell line, unescaped.
        return run_program(
            self._programs,
            "pg_ctl",
            arguments,
            account=self._account,
            stop=stop,
            on_executed=self._on_executed,
            environment={"PGDATA": str(self.data_directory)},
            combined_output=log,
        )

    def _all_options(self) -> dict[str, str]:
        """Ours first: what the caller gives wins, but for where the server listens and where its words go."""
        windows = sys.platform == "win32"
        folder = str(self._socket_directory).replace('"', '""')
        return {
            **self._options,
            "port": str(self.port),
            "listen_addresses": "127.0.0.1" if windows else "",
            "unix_socket_directories": "" if windows else f'"{folder}"',
            "logging_collector": "off",
            "log_destination": "stderr",
            "lc_messages": "C",
        }

    def _open_log(self) -> contextlib.AbstractContextManager[_Log]:
        return _Log(self.log_file, self._account)

    def _refuse_long_socket_path(self) -> None:
        path = os.fsencode(self._socket_directory / f".s.PGSQL.{self.port}")
        if sys.platform != "win32" and len(path) > _SOCKET_PATH_BYTES:
            raise ServerDidNotStart(
                f"start server: the socket's path has {len(path)} bytes, more than {_SOCKET_PATH_BYTES}",
                hint="Choose a socket folder with a shorter path, such as one below /run or /tmp.",
            )

    def _postmaster(self) -> psutil.Process | None:
        """The living server process that postmaster.pid names, if it really works on this directory."""
        try:
            first, *_ = (self.data_directory / "postmaster.pid").read_text(encoding="utf-8", errors="replace").split()
            process = psutil.Process(int(first))
            if process.status() == psutil.STATUS_ZOMBIE:
                return None
        except (OSError, ValueError, psutil.Error):
            return None
        with contextlib.suppress(psutil.Error, OSError):
            # After a reboot the number may be another program's; a server's working directory is its data directory.
            if not os.path.samefile(process.cwd(), self.data_directory):  # noqa: PTH121 - cwd is a plain string
                return None
        return process

    def _end_newborn(self) -> None:
        """End a server whose start was given up, even one that has not written its postmaster.pid yet."""
        deadline = time.monotonic() + _BIRTH_SECONDS
        while time.monotonic() < deadline:
            postmaster = self._postmaster()
            if postmaster is not None:
                self.stop("immediate", limit_seconds=10)
                return
            if not self._being_born():
                return
            time.sleep(0.05)

    def _being_born(self) -> bool:
        """Whether a process with our PGDATA, not yet known by postmaster.pid, is about."""
        for process in psutil.process_iter(["name"]):
            if not str(process.info["name"] or "").startswith(("postgres", "pg_ctl", "sh")):
                continue
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get("PGDATA") == str(self.data_directory):
                    return process.status() != psutil.STATUS_ZOMBIE
        return False

    def _did_not_start(self, said_before: int) -> ServerDidNotStart:
        try:
            with self.log_file.open("rb") as file:
                file.seek(max(said_before, file.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            text = ""
        reason = relevant_lines(text)
        hint = next((hint for pattern, hint in _HINTS if re.search(pattern, text)), "")
        message = f"start server: {reason or 'it ended without a word'}"
        return ServerDidNotStart(message, hint=f"{hint} The whole log is {self.log_file}.".strip())


class _Log:
    """The server's log, opened to append and owned by the account; closed at the end of the block."""

    def __init__(self, path: Path, account: Account) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._file = os.fdopen(descriptor, "ab")
        account.take([path])

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def seek(self, offset: int, whence: int) -> int:
        return self._file.seek(offset, whence)

    def fileno(self) -> int:
        return self._file.fileno()


def relevant_lines(log: str) -> str:
    """What a server said last that explains its end: FATAL and PANIC with their details, else its last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    kept: list[str] = []
    following = False
    for line in lines:
        if re.search(r"\b(FATAL|PANIC):", line):
            following = True
            kept.append(re.sub(r"^.*?\b((?:FATAL|PANIC):)", r"\1", line))
        elif following and re.search(r"\b(DETAIL|HINT|CONTEXT):", line):
            kept.append(re.sub(r"^.*?\b((?:DETAIL|HINT|CONTEXT):)", r"\1", line))
        else:
            following = False
    return " | ".join(kept[-4:] or lines[-1:])


def _kill_tree(postmaster: psutil.Process) -> None:
    """End a server that does not listen any more, with all of its processes."""
    processes = [postmaster]
    with contextlib.suppress(psutil.Error):
        processes += postmaster.children(recursive=True)
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=10)
