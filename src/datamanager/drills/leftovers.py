"""What killed drills left behind: found by their records, ended and removed; nothing else is ever touched.

A drill's server is told from every other one by its data directory, whose path no other cluster can have: a random
name below a folder that the drill itself made.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from datamanager.base.errors import DataManagerError, IntegrityError
from datamanager.drills.workplace import NAME, read_record
from datamanager.repository.lease import machine_id
from datamanager.system.processes import is_alive

# An immediate shutdown takes well under a second; it also gives back what the server holds of shared memory.
_QUIT_SECONDS = 5.0
_KILL_SECONDS = 5.0
# pg_ctl begins the server through a shell.
_PROGRAMS = ("postgres", "pg_ctl", "sh")


def remove_leftovers(records: Path, warn: Callable[[str], None]) -> list[Path]:
    """End the servers and remove the folders of drills whose process is gone; returns those folders.

    Args: records - the folder with the records of drills; it may be absent. warn - told what could not be removed.
    Those of drills that still run, here or on another machine, are left alone. Idempotent, and safe beside another one.
    """
    removed = []
    for path in sorted(records.glob("*.json")) if records.is_dir() else ():
        try:
            record = read_record(path)
            if record.machine != machine_id() or is_alive(record.owner):
                continue
            workplace = record.workplace(path)
            end_server(workplace.data)
            workplace.remove()
            removed.append(workplace.folder)
        except FileNotFoundError:
            continue  # another drill was quicker
        except IntegrityError as error:
            warn(f"{error.message}; it was left alone, and what it may name as well")
        except (OSError, DataManagerError) as error:
            warn(f"a folder of an earlier test restore could not be removed: {error}")
    return removed


def end_server(data_directory: Path) -> None:
    """End every process that works on a drill's data directory, also one that is only being started.

    Raises: ValueError, for any other directory; OSError, when some process does not end.
    """
    if not NAME.fullmatch(data_directory.parent.name):
        raise ValueError(f"end server: {data_directory} is not the data directory of a test restore")
    for process in _working_on(data_directory):
        _quit(process)
    _wait(data_directory, _QUIT_SECONDS)
    deadline = time.monotonic() + _KILL_SECONDS
    while found := _working_on(data_directory):
        if time.monotonic() > deadline:
            raise OSError(f"processes {', '.join(str(one.pid) for one in found)} do not end")
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, timeout=0.2)


def _quit(process: psutil.Process) -> None:
    """SIGQUIT is an immediate shutdown to a postmaster, and the end to everything else that belongs to it."""
    with contextlib.suppress(psutil.Error):
        if sys.platform == "win32":
            process.kill()
        else:
            process.send_signal(signal.SIGQUIT)


def _wait(data_directory: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and _working_on(data_directory):
        time.sleep(0.05)


def _working_on(data_directory: Path) -> list[psutil.Process]:
    """Servers by their working directory; pg_ctl, and a server it has just begun, by their PGDATA."""
    wanted = data_directory.resolve()
    found = []
    for process in psutil.process_iter(["name", "status"]):
        name, status = str(process.info["name"] or ""), process.info["status"]
        if name.startswith(_PROGRAMS) and status not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            with contextlib.suppress(psutil.Error, OSError):
                if _works_on(process, name, wanted):
                    found.append(process)
    return found


def _works_on(process: psutil.Process, name: str, wanted: Path) -> bool:
    with contextlib.suppress(psutil.Error, OSError):
        # Whoever looks around in the folder with a shell is no server.
        if name.startswith("postgres") and Path(process.cwd()) == wanted:
            return True
    named = process.environ().get("PGDATA")
    return named is not None and Path(named).resolve() == wanted
