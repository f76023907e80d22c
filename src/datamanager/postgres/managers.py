"""Programs that run a cluster for others, and would undo or corrupt what is done behind their back.

Patroni, repmgr, Pacemaker and their kind start a stopped server, promote another one, or copy it anew. A data directory
that one of them holds is not restored in place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

# By the name of a program: its own, or a word of an interpreter's command line that ends with it.
_PROGRAMS = {
    "patroni": "Patroni",
    "stolon-keeper": "stolon",
    "pg_autoctl": "pg_auto_failover",
    "repmgrd": "repmgr",
    "pacemakerd": "Pacemaker",
    "spilo": "Patroni",
}
# Only one above the server in the tree of processes says that it runs this very server.
_PARENTS_ONLY = frozenset(("patroni", "stolon-keeper", "pg_autoctl", "spilo"))
_FILES = {
    "patroni.dynamic.json": "Patroni",
    "pg_autoctl.cfg": "pg_auto_failover",
    "stolon-temp-postgresql.conf": "stolon",
}
_HINTS = {
    "Patroni": "Restore with Patroni's own bootstrap (`patronictl reinit` after it), or into another directory with"
    " `--target` and take the data over from there.",
    "Pacemaker": "Take the resource out of its hands first (`pcs resource unmanage`), or restore into another directory"
    " with `--target`.",
    "repmgr": "Stop repmgrd and unregister the standbys first, or restore into another directory with `--target`.",
}
_OTHER_HINT = "Restore into another directory with `--target`, and let the manager take the data over from there."


@dataclass(frozen=True, slots=True)
class Manager:
    """A program that manages the cluster: its name for people, how it was noticed, and what to do instead."""

    name: str
    noticed: str

    @property
    def remedy(self) -> str:
        return _HINTS.get(self.name, _OTHER_HINT)


@dataclass(frozen=True, slots=True)
class Running:
    """A process, as far as it is looked at here."""

    pid: int
    words: tuple[str, ...]


def manager_of(
    data_directory: Path, above: Iterable[Running] | None = None, others: Iterable[Running] | None = None
) -> Manager | None:
    """Who manages the cluster, or None.

    Args: above - the processes above its server, see ``processes_above``; others - all of this machine when not given.
    """
    for name, title in _FILES.items():
        if (data_directory / name).exists():
            return Manager(title, f"its file {name} lies in the data directory")
    for process in above or ():
        if found := _program(process.words):
            return Manager(_PROGRAMS[found], f"process {process.pid} started the server")
    for process in _all() if others is None else others:
        found = _program(process.words)
        if found and found not in _PARENTS_ONLY:
            return Manager(_PROGRAMS[found], f"process {process.pid} of this machine")
    return None


def processes_above(pid: int) -> list[Running]:
    """The parents of a process, nearest first, as far as they can be seen."""
    with contextlib.suppress(psutil.Error, OSError):
        return [found for one in psutil.Process(pid).parents() if (found := _seen(one)) is not None]
    return []


def _all() -> Iterable[Running]:
    return (found for one in psutil.process_iter() if (found := _seen(one)) is not None)


def _seen(process: psutil.Process) -> Running | None:
    with contextlib.suppress(psutil.Error, OSError):
        return Running(process.pid, tuple(process.cmdline() or [process.name()]))
    return None


def _program(words: tuple[str, ...]) -> str | None:
    """Which of them it is: by its own name, or as the script that an interpreter runs."""
    names = [Path(word).name.removesuffix(".py").removesuffix(".exe") for word in words[:2] if not word.startswith("-")]
    return next((name for name in names if name in _PROGRAMS), None)
