"""Servers of test runs that were killed: each folder names its owner, and the next run clears those of dead owners."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

import psutil

from tests.servers.account import folder_roots, remove_folder

OWNER_FILE = "owner.json"


def sign(folder: Path) -> None:
    """Write into ``folder`` which process it belongs to."""
    process = psutil.Process(os.getpid())
    (folder / OWNER_FILE).write_text(json.dumps({"pid": process.pid, "started": process.create_time()}))


def _owner_lives(folder: Path) -> bool:
    """Say whether the process that made ``folder`` runs; a folder that names none counts as somebody's."""
    try:
        owner = json.loads((folder / OWNER_FILE).read_text())
    except (OSError, ValueError):
        return True
    try:
        # A number is given to another process sooner or later, the time of its start is not.
        return bool(abs(psutil.Process(owner["pid"]).create_time() - owner["started"]) < 1)
    except psutil.NoSuchProcess:
        return False


def _kill_processes_in(folder: Path) -> None:
    """Kill the server that has its socket in ``folder``."""
    running = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        # The socket's folder is among the words, also of a server whose data directory is elsewhere.
        if any(str(folder) in word for word in words):
            running.append(process)
    for process in running:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            # Its children have titles in place of command lines, and leave by themselves when it is gone.
            process.kill()
    if running:
        time.sleep(0.2)


def clear_leftovers() -> list[Path]:
    """Kill the servers and remove the folders of test runs that no longer live; return the folders."""
    cleared = []
    for root in folder_roots():
        for folder in root.glob("dm-*-*"):
            if not _owner_lives(folder):
                _kill_processes_in(folder)
                remove_folder(folder)
                cleared.append(folder)
    return cleared
