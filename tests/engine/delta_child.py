"""A process that runs delta restores and is killed in them, for tests.

    python -m tests.engine.delta_child REPOSITORY BACKUP TARGET

For every line of its input, the seconds after which to die (or -1 to live), a restore begins in a process of its own;
the answer is a line with that process's exit status, negative for a signal.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from datamanager.base.clock import SystemClock
from datamanager.base.events import ignore
from datamanager.base.pipeline import StopToken
from datamanager.engine.restore.delta import DeltaOptions, apply_delta, plan_delta
from datamanager.repository.repository import Repository
from datamanager.storage.local import LocalStorage
from tests.engine.conftest import SECRET


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def restore(folder: Path, backup: str, target: Path, seconds: float) -> None:
    """Die so many seconds after the plan is ready, unless the restore is quicker."""
    repository = Repository.open(LocalStorage(folder), SECRET, SystemClock())
    manifest = repository.manifest(backup)
    plan = plan_delta(repository, manifest, DeltaOptions(target, confirm=manifest.cluster))
    if seconds >= 0:
        timer = threading.Timer(seconds, die)
        timer.daemon = True
        timer.start()
    with StopToken() as stop:
        apply_delta(repository, plan, stop, ignore)


def main() -> None:
    folder, backup, target = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            restore(folder, backup, target, float(line))
            os._exit(0)
        _, status = os.waitpid(process, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
