"""Small things about processes and ports that the test servers stand on."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from tests.servers.account import process_options

_ports_handed_out: set[int] = set()
_ports_lock = threading.Lock()


class ProgramFailed(Exception):
    """A program of PostgreSQL ended with an error; the message holds its command and what it said."""


def free_port() -> int:
    """Return a TCP port of loopback that nobody uses and this process has not handed out before."""
    with _ports_lock:
        while True:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port: int = probe.getsockname()[1]
            if port not in _ports_handed_out:
                _ports_handed_out.add(port)
                return port


def is_alive(pid: int) -> bool:
    """Say whether a process runs; one that has ended and waits to be reaped does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def environment(**variables: str) -> dict[str, str]:
    """Return our environment without its PG variables, in English, with ``variables`` added."""
    words = {name: value for name, value in os.environ.items() if not name.startswith("PG") and name != "LANGUAGE"}
    return words | {"LC_ALL": "C.UTF-8", "TZ": "UTC"} | variables


def run_program(
    command: Sequence[str | Path],
    *,
    variables: Mapping[str, str] | None = None,
    folder: Path | None = None,
    input: str | None = None,
    timeout: float = 300,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run a program under the servers' account and return what it said.

    Args: variables - added to the environment; folder - working directory, "/" when not given, as the account may not
    enter the tests' own.
    Raises: ProgramFailed when it ends with an error and ``check`` is set; subprocess.TimeoutExpired.
    """
    words = [str(word) for word in command]
    done = subprocess.run(
        words,
        env=environment(**(variables or {})),
        cwd=folder or Path(Path.cwd().anchor),
        input=input if input is not None else "",
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **process_options(),
    )
    if check and done.returncode != 0:
        raise ProgramFailed(f"run {' '.join(words)}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done
