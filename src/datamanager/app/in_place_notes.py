"""What a home knows of restores in place under way, in ``STATE/in-place/CLUSTER.json``.

The journal beside the data directory is what ends an exchange that was cut off (engine/in_place). The note only says
where to look for one, and that the restored cluster is still to be backed up: whoever comes after a kill goes on.

    begin ─► exchange (journal beside the data) ─► backup owed ─► dropped

{"kind": "restore", "owes_backup": false, "data_directory": "/var/…", "repository": "usb", "began": RFC 3339,
 "pid": 812, "started": 1234.5, "boot": "…", "user_id": 0, "error": "", "command": "", "tries": 0, "again": null}
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from datamanager.base.files import sync_directory, write_durably
from datamanager.config.home import Home
from datamanager.system.processes import ProcessIdentity, is_alive, this_process

_SUFFIX = ".json"
NOTES_FOLDER = "in-place"


@dataclass(frozen=True, slots=True)
class Note:
    """One restore in place, or undo, that is not over.

    Args:
        kind: ``restore`` or ``undo``; a delta is a restore.
        owes_backup: the restored data are in force and not backed up yet.
        repository: name or address of where the following backup goes; empty for the cluster's own.
        process: who is at it.
        user_id: the account that began it, which alone may end it; 0 on Windows.
        error: why it could not be ended, with the ``command`` that mends it.
        tries: how often that was; again - when it is tried next by itself, None for not before the next start.
    """

    cluster: str
    kind: str
    data_directory: Path
    repository: str
    began: datetime
    process: ProcessIdentity
    user_id: int
    owes_backup: bool = False
    error: str = ""
    command: str = ""
    tries: int = 0
    again: datetime | None = None

    @property
    def cut_off(self) -> bool:
        """Whether nobody is at it any more."""
        return not is_alive(self.process)

    @property
    def own(self) -> bool:
        return self.user_id == account_id()

    def is_due(self, now: datetime) -> bool:
        """Whether it is to be tried to end it."""
        return self.cut_off and (self.tries == 0 or (self.again is not None and self.again <= now))


def account_id() -> int:
    """The number of this account; 0 on Windows."""
    return 0 if sys.platform == "win32" else os.geteuid()


def notes_folder(home: Home) -> Path:
    return home.state / NOTES_FOLDER


def new_note(cluster: str, kind: str, data_directory: Path, repository: str, began: datetime) -> Note:
    return Note(cluster, kind, data_directory, repository, began, this_process(), account_id())


def taken_over(note: Note) -> Note:
    """The same with this process at it."""
    return replace(note, process=this_process())


def write_note(home: Home, note: Note) -> None:
    """Durably. Raises: OSError."""
    folder = notes_folder(home)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    value = {
        "kind": note.kind,
        "owes_backup": note.owes_backup,
        "data_directory": str(note.data_directory),
        "repository": note.repository,
        "began": note.began.isoformat(),
        "pid": note.process.pid,
        "started": note.process.started,
        "boot": note.process.boot,
        "user_id": note.user_id,
        "error": note.error,
        "command": note.command,
        "tries": note.tries,
        "again": None if note.again is None else note.again.isoformat(),
    }
    write_durably(folder / f"{note.cluster}{_SUFFIX}", (json.dumps(value) + "\n").encode(), mode=0o600)


def drop_note(home: Home, cluster: str) -> None:
    """It is over; nothing is raised, for a note too many costs a look."""
    with contextlib.suppress(OSError):
        (notes_folder(home) / f"{cluster}{_SUFFIX}").unlink(missing_ok=True)
        sync_directory(notes_folder(home))


def read_note(home: Home, cluster: str) -> Note | None:
    """None when there is none, or it cannot be understood."""
    try:
        value: Any = json.loads((notes_folder(home) / f"{cluster}{_SUFFIX}").read_bytes())
        return Note(
            cluster,
            str(value["kind"]),
            Path(value["data_directory"]),
            str(value["repository"]),
            datetime.fromisoformat(value["began"]),
            ProcessIdentity(int(value["pid"]), float(value["started"]), str(value["boot"])),
            int(value["user_id"]),
            bool(value["owes_backup"]),
            str(value["error"]),
            str(value["command"]),
            int(value["tries"]),
            None if value["again"] is None else datetime.fromisoformat(value["again"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def read_notes(home: Home) -> Iterator[Note]:
    """All of them, by cluster; one look into a folder when there is none."""
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = sorted(one.name for one in notes_folder(home).iterdir())
    for name in names:
        if name.endswith(_SUFFIX) and not name.startswith("."):
            note = read_note(home, name.removesuffix(_SUFFIX))
            if note is not None:
                yield note
