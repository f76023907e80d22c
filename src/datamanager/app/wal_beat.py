"""What a receiver of WAL says of itself every two seconds, in ``STATE/wal/CLUSTER.json``, for whoever wonders.

{"time": RFC 3339, "pid": 812, "started": 1234.5, "boot": "…", "began": RFC 3339, "supervised": true, "ended": false,
 "repository": "usb", "slot": "…", "application_name": "…", "state": {"connected": true, "sealed": "0/3000148", …}}

Beside it lie ``CLUSTER.lock``, held by the one receiver there may be; ``CLUSTER.stop``, by which it is asked to end;
``CLUSTER.slots``, the names of the slots that were made, which outlive it.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from datamanager.base.files import write_durably
from datamanager.config.home import Home
from datamanager.engine.wal.state import ReceiverState
from datamanager.system.processes import ProcessIdentity, is_alive

BEAT_SECONDS = 2.0
# A receiver that said nothing for so long is taken for hung; a busy machine takes seconds.
SILENT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class WalBeat:
    """One sign of life.

    Args: time - when it was given; began - when that receiver began; supervised - the service keeps it running;
        ended - it has ended by itself; error - what made it end.
    """

    time: datetime
    process: ProcessIdentity
    began: datetime
    repository: str
    slot: str
    application_name: str
    supervised: bool = False
    ended: bool = False
    error: str = ""
    progress: ReceiverState = field(default_factory=ReceiverState)

    def alive(self, now: datetime) -> bool:
        """Whether that receiver still receives: its process lives and has said so within a minute."""
        fresh = abs(now - self.time) <= timedelta(seconds=SILENT_SECONDS)
        return not self.ended and fresh and is_alive(self.process)


@dataclass(frozen=True, slots=True)
class WalFiles:
    """The files of one cluster's receiver."""

    folder: Path
    cluster: str

    @classmethod
    def of(cls, home: Home, cluster: str) -> WalFiles:
        return cls(home.wal, cluster)

    @property
    def beat(self) -> Path:
        return self.folder / f"{self.cluster}.json"

    @property
    def lock(self) -> Path:
        return self.folder / f"{self.cluster}.lock"

    @property
    def stop(self) -> Path:
        return self.folder / f"{self.cluster}.stop"

    @property
    def slots(self) -> Path:
        return self.folder / f"{self.cluster}.slots"

    def remove(self) -> None:
        """Forget everything but the lock, which somebody may hold."""
        for path in (self.beat, self.stop, self.slots):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def slot_names(self) -> list[str]:
        """The slots that were made for the cluster and not dropped."""
        try:
            names = json.loads(self.slots.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return []
        return [one for one in names if isinstance(one, str)] if isinstance(names, list) else []

    def note_slot(self, name: str) -> None:
        """Remember a slot, durably, before it is made. Raises: OSError."""
        names = self.slot_names()
        if name not in names:
            write_durably(self.slots, json.dumps([*names, name]).encode("ascii"), mode=0o600)

    def forget_slot(self, name: str) -> None:
        """Raises: OSError."""
        names = [one for one in self.slot_names() if one != name]
        write_durably(self.slots, json.dumps(names).encode("ascii"), mode=0o600)


def write_wal_beat(path: Path, beat: WalBeat) -> None:
    """Replace the file, without waiting for the disk: after a power cut its content means nothing. Raises: OSError."""
    values = {
        "time": beat.time.isoformat(),
        "pid": beat.process.pid,
        "started": beat.process.started,
        "boot": beat.process.boot,
        "began": beat.began.isoformat(),
        "supervised": beat.supervised,
        "ended": beat.ended,
        "error": beat.error,
        "repository": beat.repository,
        "slot": beat.slot,
        "application_name": beat.application_name,
        "state": beat.progress.to_values(),
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(values) + "\n", encoding="ascii")
    temporary.replace(path)


def read_wal_beat(path: Path) -> WalBeat | None:
    """The last sign of life; None when there is none or it cannot be understood."""
    try:
        values = json.loads(path.read_text(encoding="ascii"))
        return WalBeat(
            datetime.fromisoformat(values["time"]),
            ProcessIdentity(int(values["pid"]), float(values["started"]), str(values["boot"])),
            datetime.fromisoformat(values["began"]),
            str(values["repository"]),
            str(values["slot"]),
            str(values["application_name"]),
            bool(values["supervised"]),
            bool(values["ended"]),
            str(values["error"]),
            ReceiverState.from_values(values["state"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
