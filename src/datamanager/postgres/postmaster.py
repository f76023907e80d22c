"""The server process on a data directory: which one it is, whether it admits sessions, what it said last.

Source: src/include/utils/pidfile.h (postmaster.pid); current_logfiles (PostgreSQL documentation 20.8).
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import psutil

from datamanager.base.errors import ServerDidNotStart
from datamanager.postgres.local_server import relevant_lines

_LOOK_SECONDS = 0.1
_TAIL_BYTES = 64 * 1024
# Source: src/include/utils/pidfile.h, LOCK_FILE_LINE_PM_STATUS (counted from 0 here).
_STATUS_LINE = 7


def postmaster_of(data_directory: Path) -> psutil.Process | None:
    """The living server process on the directory, if there is one.

    After a reboot the number in postmaster.pid may be another program's; a server's working directory tells it apart.
    """
    try:
        text = (data_directory / "postmaster.pid").read_text(encoding="utf-8", errors="replace")
        process = psutil.Process(abs(int(text.split("\n", 1)[0])))
        if process.status() == psutil.STATUS_ZOMBIE or not process.name().startswith("postgres"):
            return None
    except (OSError, ValueError, psutil.Error):
        return None
    with contextlib.suppress(psutil.Error, OSError):
        if not os.path.samefile(process.cwd(), data_directory):  # noqa: PTH121 - cwd is a plain string
            return None
    return process


def wait_until_ready(data_directory: Path, limit_seconds: float) -> bool:
    """Whether the server accepts sessions within the limit; False at once when it has ended."""
    deadline = time.monotonic() + limit_seconds
    while postmaster_of(data_directory) is not None:
        with contextlib.suppress(OSError, IndexError):
            text = (data_directory / "postmaster.pid").read_text(encoding="utf-8", errors="replace")
            if text.splitlines()[_STATUS_LINE].strip() == "ready":
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_SECONDS)
    return False


def last_words(data_directory: Path, log_file: Path | None, said_before: int) -> str | None:
    """Why a server did not start: the end of its own log, or of the one that its collector writes."""
    found = None
    with contextlib.suppress(OSError, IndexError):
        named = (data_directory / "current_logfiles").read_text(encoding="utf-8").split()[1]
        found = relevant_lines(_tail(data_directory / named, 0))
    if log_file is not None:
        with contextlib.suppress(OSError):
            said = relevant_lines(_tail(log_file, said_before))
            found = said if "FATAL" in said or not found else found
    return found or None


def _tail(path: Path, said_before: int) -> str:
    with path.open("rb") as file:
        file.seek(max(said_before, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        return file.read().decode("utf-8", "replace")


def did_not_start(data_directory: Path, log_file: Path | None, said_before: int) -> ServerDidNotStart:
    why = last_words(data_directory, log_file, said_before) or "it ended without a word"
    where = f"The whole log is {log_file}." if log_file else "Look into the server's own log."
    return ServerDidNotStart(f"start server: {why}", hint=where)
