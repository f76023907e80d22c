"""A receiver as a process of its own, to be killed: FOLDER DSN SYSTEM SLOT. It says ``ready`` before it begins."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from datamanager.base.clock import SystemClock
from datamanager.base.events import ignore
from datamanager.base.pipeline import StopToken
from datamanager.engine.wal.receive import ReceiveOptions, receive_wal
from datamanager.postgres.connection import ServerAddress
from datamanager.repository.wal.archive import WalArchive
from tests.engine.wal.conftest import open_repository


def main(folder: str, dsn: str, system: str, slot: str) -> None:
    """Receive until SIGTERM."""
    with StopToken() as stop:
        signal.signal(signal.SIGTERM, lambda number, frame: stop.stop("asked to"))
        archive = WalArchive(open_repository(Path(folder)), int(system))
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        options = ReceiveOptions("tests", slot, "datamanager_tests", interval_seconds=0.05)
        receive_wal(lambda: archive, ServerAddress(dsn), options, stop, ignore, SystemClock())


if __name__ == "__main__":
    main(*sys.argv[1:])
