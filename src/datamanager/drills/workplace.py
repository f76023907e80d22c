"""The folder of one drill, and the record by which a later drill finds it.

    SCRATCH/datamanager-drill-1a2b3c4d/
        data/        the restored data directory
        ts-OID/      each tablespace
        server/      configuration and log of the clone, output of pg_amcheck
        socket/      unless its path would be too long for a socket: then a folder of its own among the temporary ones

The record is durable before the folder exists, so that no kill can leave a folder that nobody knows.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from datamanager.base.errors import IntegrityError, TargetUnfit
from datamanager.base.files import sync_directory, write_durably
from datamanager.postgres.account import Account
from datamanager.repository.lease import machine_id
from datamanager.system.processes import ProcessIdentity, this_process

NAME = re.compile(r"datamanager-drill-[0-9a-f]{8}")
PORT = 5432  # only a socket's name: a clone listens on no network address (but on Windows)
# sun_path holds 103 bytes on macOS and BSD, 107 on Linux.
_SOCKET_PATH_BYTES = 100
# A server that is being ended may make a file in a folder that is being removed.
_REMOVE_ATTEMPTS = 20
_REMOVE_PAUSE_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Workplace:
    """Where one drill works. Nothing of it exists before ``make``.

    Args: record - the file that tells later drills of it; ``socket`` lies within ``folder`` or beside no other files.
    """

    folder: Path
    socket: Path
    record: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def side(self) -> Path:
        return self.folder / "server"

    def tablespace(self, oid: int) -> Path:
        return self.folder / f"ts-{oid}"

    def make(self, backup: str, account: Account) -> None:
        """Write the record, then make the folders, which only ``account`` and root enter. Raises: TargetUnfit."""
        owner = this_process()
        note = Record(str(self.folder), str(self.socket), backup, machine_id(), owner.pid, owner.started, owner.boot)
        try:
            write_durably(self.record, json.dumps(asdict(note)).encode(), mode=0o600)
            for folder in (self.folder, self.socket):
                folder.mkdir(mode=0o700)
                account.take([folder])
        except OSError as error:
            with contextlib.suppress(OSError):
                self.remove()
            raise TargetUnfit(
                f"make folder {error.filename or self.folder}: {(error.strerror or 'not possible').lower()}",
                hint="Give a folder that this account may write with --scratch.",
            ) from error

    def remove(self) -> None:
        """Remove everything and then the record; idempotent. Raises: OSError, with the record still there."""
        for folder in (self.folder, self.socket):
            remove_tree(folder)
        self._forget()

    def leave(self) -> None:
        """Remove the socket's folder and the record, and leave the rest to whoever asked for it. Raises: OSError."""
        remove_tree(self.socket)
        self._forget()

    def _forget(self) -> None:
        self.record.unlink(missing_ok=True)
        sync_directory(self.record.parent)


@dataclass(frozen=True, slots=True)
class Record:
    """What stands in a drill's record: its folders, and the process that uses them."""

    folder: str
    socket: str
    backup: str
    machine: str
    pid: int
    started: float
    boot: str

    @property
    def owner(self) -> ProcessIdentity:
        return ProcessIdentity(self.pid, self.started, self.boot)

    def workplace(self, record: Path) -> Workplace:
        return Workplace(Path(self.folder), Path(self.socket), record)


def read_record(path: Path) -> Record:
    """Raises: IntegrityError, when it is no record, or names folders that no drill makes; OSError."""
    try:
        value = json.loads(path.read_bytes())
        found = Record(
            folder=str(value["folder"]),
            socket=str(value["socket"]),
            backup=str(value["backup"]),
            machine=str(value["machine"]),
            pid=int(value["pid"]),
            started=float(value["started"]),
            boot=str(value["boot"]),
        )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise IntegrityError(f"read {path}: not the record of a test restore") from error
    folder, socket = Path(found.folder), Path(found.socket)
    inside = socket == folder / "socket"
    if not (folder.is_absolute() and NAME.fullmatch(folder.name)) or not (
        inside or (socket.is_absolute() and NAME.fullmatch(socket.name))
    ):
        raise IntegrityError(f"read {path}: it names {folder}, which is no folder of a test restore")
    return found


def new_workplace(scratch: Path, records: Path) -> Workplace:
    """A workplace below ``scratch``, an absolute folder, with a name that no other has; nothing is made yet."""
    name = f"datamanager-drill-{secrets.token_hex(4)}"
    folder = scratch / name
    socket = folder / "socket"
    if len(os.fsencode(socket / f".s.PGSQL.{PORT}")) > _SOCKET_PATH_BYTES:
        socket = Path(tempfile.gettempdir()).absolute() / name
    return Workplace(folder, socket, records / f"{name}.json")


def remove_tree(folder: Path) -> None:
    """Remove a folder and everything in it; links are removed, never followed. Raises: OSError."""
    if folder.is_symlink():
        raise OSError(f"{folder} is a link, which no test restore made")
    for attempt in range(_REMOVE_ATTEMPTS):
        if not folder.is_dir():
            return
        try:
            shutil.rmtree(folder)
        except OSError:
            if attempt == _REMOVE_ATTEMPTS - 1:
                raise
            time.sleep(_REMOVE_PAUSE_SECONDS)
