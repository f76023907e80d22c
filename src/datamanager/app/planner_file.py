"""What the planner says of itself every two seconds, in ``STATE/planner.json``, for whoever wonders whether it lives.

{"time": RFC 3339, "pid": 812, "started": 1234.5, "boot": "…", "began": RFC 3339, "running": 1, "next_due": RFC 3339}
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from datamanager.system.processes import ProcessIdentity, is_alive

# A planner that said nothing for so long is taken for hung: ten times what its slowest honest step takes.
SILENT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class PlannerBeat:
    """One sign of life.

    Args: time - when it was given; began - when that planner began; running - jobs under way; next_due - the next
        planned moment.
    """

    time: datetime
    process: ProcessIdentity
    began: datetime
    running: int = 0
    next_due: datetime | None = None

    def alive(self, now: datetime) -> bool:
        """Whether that planner still plans: its process lives and has said so within a minute."""
        return is_alive(self.process) and abs((now - self.time).total_seconds()) <= SILENT_SECONDS


def write_beat(path: Path, beat: PlannerBeat) -> None:
    """Replace the file, without waiting for the disk: after a power cut its content means nothing. Raises: OSError."""
    values = {
        "time": beat.time.isoformat(),
        "pid": beat.process.pid,
        "started": beat.process.started,
        "boot": beat.process.boot,
        "began": beat.began.isoformat(),
        "running": beat.running,
        "next_due": None if beat.next_due is None else beat.next_due.isoformat(),
    }
    # Its name is its own: only one planner runs, and a half-written one is never read.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(values) + "\n", encoding="ascii")
    temporary.replace(path)


def read_beat(path: Path) -> PlannerBeat | None:
    """The last sign of life; None when there is none or it cannot be understood."""
    try:
        values = json.loads(path.read_text(encoding="ascii"))
        due = values["next_due"]
        return PlannerBeat(
            datetime.fromisoformat(values["time"]),
            ProcessIdentity(int(values["pid"]), float(values["started"]), str(values["boot"])),
            datetime.fromisoformat(values["began"]),
            int(values["running"]),
            None if due is None else datetime.fromisoformat(due),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
