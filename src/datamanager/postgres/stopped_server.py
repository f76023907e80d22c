"""Whether a data directory is at rest: no server has it, and none takes it while it is copied.

A server that was killed leaves its postmaster.pid, so the number in it counts only while a PostgreSQL process has it.
Every process of a server has the data directory as its working directory, which tells even where the file was removed.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import psutil

from datamanager.base.errors import Busy
from datamanager.postgres.data_directory import reading_error
from datamanager.postgres.isolation import running_data_directories

_PID_FILE = "postmaster.pid"


def require_stopped(data_directory: Path) -> None:
    """Raises: Busy, when a server runs on the directory; RightMissing."""
    number = server_process(data_directory)
    same = [one for one in running_data_directories() if _same(one, data_directory)]
    if number is not None or same:
        who = f"process {number}" if number is not None else "its processes work in there"
        raise Busy(
            f"read data directory: a server runs on {data_directory} ({who})",
            hint="Stop it first (`pg_ctl stop`, or its service), or leave --cold out: a server that runs is backed up"
            " without stopping it.",
        )


def server_process(data_directory: Path) -> int | None:
    """The number of the server that postmaster.pid names and that is alive, else None. Raises: RightMissing."""
    text = pid_file(data_directory).split(b"\n", 1)[0].strip()
    # A server in single-user mode writes its number with a minus.
    number = abs(int(text)) if text.lstrip(b"-").isdigit() else 0
    if number in (0, os.getpid(), os.getppid() if hasattr(os, "getppid") else 0):
        return None
    try:
        process = psutil.Process(number)
        alive = process.status() != psutil.STATUS_ZOMBIE and process.name().startswith("postgres")
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:
        alive = True  # somebody has this number, and we may not see who
    return number if alive else None


def pid_file(data_directory: Path) -> bytes:
    """What postmaster.pid holds, nothing where there is none. Raises: RightMissing, ServerUnfit."""
    path = data_directory / _PID_FILE
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:
        raise reading_error(os.fsencode(path), error) from error


def _same(one: Path, other: Path) -> bool:
    with contextlib.suppress(OSError):
        return one.samefile(other)
    return False
