"""What a run owes: the services that it stopped, written down before the first of them stops.

A journal is one file, ``STATE/services/RUN.json``, durable before anything happens and gone when everything that ran
runs again. Whoever finds one whose run has ended does what is left to do.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from datamanager.base.errors import DataManagerError, ServiceError
from datamanager.base.files import sync_directory, write_durably
from datamanager.system.processes import ProcessIdentity, is_alive

_FORMAT = 1
_SUFFIX = ".json"
# Root reads these, and another account may have put a link or a pipe there.
_READING = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True, slots=True)
class Acting:
    """A command that stops or starts a service, and goes on when its run is killed."""

    service: str
    action: str
    process: ProcessIdentity
    limit_seconds: float


@dataclass(frozen=True, slots=True)
class Journal:
    """One run's services.

    Args:
        run: the run's id.
        process: whoever stopped them, and starts them again while it lives.
        began: when they were stopped.
        services: names of those that ran and are to run again, in the order of stopping.
        over: the run came to its end; what stands here did not start again.
        acting: the command that is or was under way.
        errors: why a service did not start again, by name.
        tried: when that was tried last.
        user_id: the account that owns the file, which cannot be claimed by its content; None on Windows.
    """

    run: str
    process: ProcessIdentity
    began: datetime
    services: tuple[str, ...]
    over: bool = False
    acting: Acting | None = None
    errors: Mapping[str, str] = field(default_factory=dict)
    tried: datetime | None = None
    user_id: int | None = None

    @property
    def abandoned(self) -> bool:
        """Nobody will start its services any more but whoever finds it."""
        return self.over or not is_alive(self.process)


def journal_path(folder: Path, run: str) -> Path:
    return folder / f"{run}{_SUFFIX}"


def write_journal(folder: Path, journal: Journal) -> None:
    """Write it durably; one that root goes on with stays its account's. Raises: OSError."""
    value = {"format": _FORMAT, **asdict(journal), "began": journal.began.isoformat()}
    value["tried"] = None if journal.tried is None else journal.tried.isoformat()
    del value["user_id"]
    owner = journal.user_id if os.name != "nt" and os.geteuid() == 0 else None
    data = (json.dumps(value, indent=1) + "\n").encode()
    write_durably(journal_path(folder, journal.run), data, mode=0o644, owner=owner)


def drop_journal(folder: Path, run: str) -> None:
    """Its services run. Raises: OSError."""
    journal_path(folder, run).unlink(missing_ok=True)
    sync_directory(folder)


def journal_names(folder: Path) -> list[str]:
    """Ids of the runs that have one, in the order of their names."""
    with contextlib.suppress(OSError):
        names = [entry.name for entry in os.scandir(folder) if entry.name.endswith(_SUFFIX)]
        return sorted(name.removesuffix(_SUFFIX) for name in names if not name.startswith("."))
    return []


def read_journal(folder: Path, run: str) -> Journal | None:
    """The journal of a run; None when there is none any more. Raises: ServiceError, when it cannot be understood."""
    path = journal_path(folder, run)
    try:
        with os.fdopen(os.open(path, _READING), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("no file")
            owner = status.st_uid if os.name != "nt" else None
            return replace(_parsed(json.loads(file.read())), run=run, user_id=owner)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        cause = (error.strerror or "cannot be read").lower() if isinstance(error, OSError) else "it is not a journal"
        raise ServiceError(
            f"read journal of services {path}: {cause}",
            hint="Start by hand the services that its run had stopped, then remove the file.",
        ) from error


def read_journals(folder: Path) -> tuple[list[Journal], list[DataManagerError]]:
    """All of them, oldest first, and what could not be read."""
    found: list[Journal] = []
    errors: list[DataManagerError] = []
    for run in journal_names(folder):
        try:
            journal = read_journal(folder, run)
        except ServiceError as error:
            errors.append(error)
        else:
            if journal is not None:
                found.append(journal)
    return sorted(found, key=lambda one: one.began), errors


def _parsed(value: Mapping[str, Any]) -> Journal:
    if value["format"] != _FORMAT:
        raise ValueError("a newer program wrote it")
    acting = value["acting"]
    return Journal(
        value["run"],
        _identity(value["process"]),
        _time(value["began"]),
        tuple(str(name) for name in value["services"]),
        bool(value["over"]),
        None
        if acting is None
        else Acting(acting["service"], acting["action"], _identity(acting["process"]), float(acting["limit_seconds"])),
        {str(name): str(text) for name, text in value["errors"].items()},
        None if value["tried"] is None else _time(value["tried"]),
    )


def _identity(value: Mapping[str, Any]) -> ProcessIdentity:
    return ProcessIdentity(int(value["pid"]), float(value["started"]), str(value["boot"]))


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
