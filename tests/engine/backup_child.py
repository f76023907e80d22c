"""A process that runs one backup and obeys SIGINT, for tests that stop it from outside.

    python -m tests.engine.backup_child DSN REPOSITORY fast|spread

Prints a JSON line for every phase and, last, how it ended, with the longest pause of a second thread in seconds.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from pathlib import Path

from datamanager.base.clock import SystemClock
from datamanager.base.errors import DataManagerError
from datamanager.base.events import Event, PhaseStarted, Progress
from datamanager.base.pipeline import StopToken
from datamanager.engine.backup.run import run_backup
from datamanager.engine.backup.session import BackupOptions
from datamanager.postgres.base_backup import BaseBackupOptions, BaseBackupSource
from datamanager.postgres.connection import ServerAddress
from datamanager.postgres.facts import collect_facts
from datamanager.postgres.monitor import BackupMonitor
from datamanager.repository.repository import Repository
from datamanager.storage.local import LocalStorage
from tests.engine.conftest import SECRET

TICK_SECONDS = 0.05


class Ticker:
    """Counts the longest pause between two ticks of a thread that does nothing else."""

    def __init__(self) -> None:
        self.longest = 0.0
        self.ticks = 0
        threading.Thread(target=self._tick, daemon=True).start()

    def _tick(self) -> None:
        last = time.monotonic()
        while True:
            time.sleep(TICK_SECONDS)
            now = time.monotonic()
            self.longest, last = max(self.longest, now - last), now
            self.ticks += 1


def say(**words: object) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


def listen(event: Event) -> None:
    if isinstance(event, PhaseStarted):
        say(phase=event.phase)
    elif isinstance(event, Progress):
        say(done=event.done_bytes)


def back_up(dsn: str, folder: Path, *, fast: bool, stop: StopToken) -> None:
    repository = Repository.open(LocalStorage(folder), SECRET, SystemClock())
    address = ServerAddress(dsn)
    facts = collect_facts(address, stop, repository.ring.fingerprint_key.reveal(), lambda text: None)
    monitor = BackupMonitor(
        address, "", lambda phase: say(phase=f"server: {phase}"), lambda text: None, lambda error: None
    )
    protocol = BaseBackupOptions(label="child", fast_checkpoint=fast)
    source = BaseBackupSource(address, facts.major, protocol, SystemClock(), lambda text: None, monitor.watch)
    try:
        run_backup(repository, source, facts, BackupOptions("tests", "child"), stop, listen)
    finally:
        monitor.close()


def main() -> None:
    dsn, folder, checkpoint = sys.argv[1:]
    ticker = Ticker()
    with StopToken() as stop:
        signal.signal(signal.SIGINT, lambda number, frame: stop.stop("stopped by the tests"))
        ended = "done"
        try:
            back_up(dsn, Path(folder), fast=checkpoint == "fast", stop=stop)
        except DataManagerError as error:
            ended = type(error).__name__
        say(ended=ended, longest=ticker.longest, ticks=ticker.ticks)


if __name__ == "__main__":
    main()
