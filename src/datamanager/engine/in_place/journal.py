"""What an exchange is about, written down before each step, beside the data directory and nowhere else.

Whoever finds a journal whose process has ended puts the old data back, or completes the exchange if the new data are
already in force (``recovery.finish_or_undo``). It needs neither the state database nor the configuration.

    PREPARING    the new data are being made; nothing is in force
    STOPPING     the server is being stopped, or has been
    EXCHANGING   renames are under way; ``Swap.done`` tells whether the new data are in force
    EXCHANGED    the new data are in force; the server is to be started
    RETURNING    they did not start; the old ones are coming back
"""

from __future__ import annotations

import enum
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from datamanager.base.errors import Busy, IntegrityError
from datamanager.base.files import sync_folder, write_durably
from datamanager.engine.in_place.kept import Kept, Outside, read_own
from datamanager.engine.in_place.places import Places
from datamanager.system.processes import ProcessIdentity, is_alive

_FORMAT = 1


class Phase(enum.StrEnum):
    """How far an exchange is."""

    PREPARING = "preparing"
    STOPPING = "stopping"
    EXCHANGING = "exchanging"
    EXCHANGED = "exchanged"
    RETURNING = "returning"


@dataclass(frozen=True, slots=True)
class Journal:
    """One exchange.

    Args:
        kind: ``restore``, whose new data can be made again and are deleted when they do not come into force; ``undo``,
            whose data are kept whatever happens.
        process: who is at it.
        made: what was prepared outside ``incoming`` and goes with it.
        control: how the server is stopped and started (ServerControl.record).
        running: whether the server ran and is to run again.
        old, new: inodes of the two data directories, where those themselves are renamed.
        old_entries: what lay in the data directory, where entries are moved.
        kept: the record to be left.
        undone: the record of the state that comes back, which ends with this.
        start_seconds: how long the server may take to start.
    """

    identity: str
    kind: str
    phase: Phase
    process: ProcessIdentity
    began: datetime
    places: Places
    incoming: Path
    outgoing: Path
    made: tuple[Outside, ...]
    control: Mapping[str, Any]
    running: bool
    start_seconds: float
    old: int | None = None
    new: int | None = None
    old_entries: tuple[str, ...] = ()
    kept: Kept | None = None
    undone: Path | None = None

    @property
    def path(self) -> Path:
        return self.places.journal


def write_journal(journal: Journal) -> None:
    """Write it durably, for this account alone. Raises: OSError."""
    value = {
        "format": _FORMAT,
        "identity": journal.identity,
        "kind": journal.kind,
        "phase": journal.phase.value,
        "process": [journal.process.pid, journal.process.started, journal.process.boot],
        "began": journal.began.isoformat(),
        "data_directory": str(journal.places.data_directory),
        "whole": journal.places.whole,
        "incoming": str(journal.incoming),
        "outgoing": str(journal.outgoing),
        "made": [[str(one.path), one.kind, one.oid] for one in journal.made],
        "control": dict(journal.control),
        "running": journal.running,
        "start_seconds": journal.start_seconds,
        "old": journal.old,
        "new": journal.new,
        "old_entries": list(journal.old_entries),
        "kept": None if journal.kept is None else journal.kept.to_json(),
        "undone": None if journal.undone is None else str(journal.undone),
    }
    write_durably(journal.path, (json.dumps(value, indent=1) + "\n").encode(), mode=0o600)


def drop_journal(journal: Journal) -> None:
    """The exchange is over. Raises: OSError."""
    journal.path.unlink(missing_ok=True)
    sync_folder(journal.path.parent)


def find_journal(data_directory: Path) -> Path | None:
    """The journal of an exchange of this data directory that did not come to its end."""
    real = Path(os.path.realpath(data_directory))
    candidates = (Places(real, whole).journal for whole in (True, False))
    return next((path for path in candidates if path.is_file()), None)


def read_journal(path: Path) -> Journal:
    """Raises: IntegrityError (cannot be understood), RightMissing (another account's)."""
    try:
        return _parsed(json.loads(read_own(path)), path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"read journal {path}: {error}",
            hint="An exchange did not come to its end; put back by hand what lies in the directories that it names.",
        ) from error


def require_abandoned(journal: Journal) -> None:
    """Raises: Busy, while the process that writes it lives."""
    require_abandoned_by(journal.process, f" since {journal.began:%H:%M} UTC")


def require_abandoned_by(process: ProcessIdentity, since: str = "") -> None:
    """Raises: Busy, while that process lives."""
    if process.pid != os.getpid() and is_alive(process):
        raise Busy(f"restore in place: process {process.pid} is at it{since}")


def _parsed(value: Mapping[str, Any], path: Path) -> Journal:
    if value["format"] != _FORMAT:
        raise ValueError("a newer program wrote it")
    pid, started, boot = value["process"]
    journal = Journal(
        identity=str(value["identity"]),
        kind=str(value["kind"]),
        phase=Phase(value["phase"]),
        process=ProcessIdentity(int(pid), float(started), str(boot)),
        began=datetime.fromisoformat(value["began"]).astimezone(UTC),
        places=Places(Path(value["data_directory"]), bool(value["whole"])),
        incoming=Path(value["incoming"]),
        outgoing=Path(value["outgoing"]),
        made=tuple(Outside(Path(place), str(kind), oid) for place, kind, oid in value["made"]),
        control=value["control"],
        running=bool(value["running"]),
        start_seconds=float(value["start_seconds"]),
        old=value["old"],
        new=value["new"],
        old_entries=tuple(map(str, value["old_entries"])),
        kept=None if value["kept"] is None else Kept.from_json(value["kept"]),
        undone=None if value["undone"] is None else Path(value["undone"]),
    )
    if journal.path != path:
        raise ValueError("it speaks of another data directory")
    return journal
