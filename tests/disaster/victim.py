"""A process that backs up or restores for real, and is killed at a named moment (``trap``).

Run as ``python -m tests.disaster.victim`` with one JSON object on standard input; it ends by the kill, or prints the
backup's id (or ``restored``) when the moment never came.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datamanager.base.clock import SystemClock
from datamanager.base.events import Event, PhaseStarted, Progress
from datamanager.base.pipeline import StopToken
from datamanager.engine.backup.run import run_backup
from datamanager.engine.backup.session import BackupOptions
from datamanager.engine.restore.plan import RestoreOptions, plan_restore
from datamanager.engine.restore.run import apply_restore
from datamanager.postgres.base_backup import BaseBackupOptions, BaseBackupSource
from datamanager.postgres.connection import ServerAddress
from datamanager.postgres.facts import collect_facts
from datamanager.repository.keys import SlotSecret
from datamanager.repository.repository import Repository
from datamanager.storage.base import Buffer
from datamanager.storage.local import LocalStorage
from tests.disaster.trap import Trap
from tests.storage.faults import Call, FaultyStorage


class TrappedStorage(FaultyStorage):
    """Tells the trap before every call and after every put."""

    def __init__(self, inner: LocalStorage, trap: Trap) -> None:
        def before(call: Call) -> None:
            trap.reached(call.method, call.key)

        super().__init__(inner, hook=before)
        self._trap = trap

    def put(self, key: str, data: Sequence[Buffer]) -> None:
        super().put(key, data)
        self._trap.reached("stored", key)


def work(order: dict[str, Any]) -> str:
    """Carry out one order; returns what to print."""
    trap = Trap(order["moment"])
    storage = TrappedStorage(LocalStorage(Path(order["repository"])), trap)
    secret = SlotSecret.from_key_file(Path(order["key_file"]).read_bytes())
    repository = Repository.open(storage, secret, SystemClock())

    def listen(event: Event) -> None:
        if isinstance(event, PhaseStarted):
            trap.reached("phase", event.phase.replace(" ", "_"))
        elif isinstance(event, Progress):
            trap.reached("progress", "any")

    with StopToken() as stop:
        if order["work"] == "restore":
            options = RestoreOptions(
                Path(order["target"]), {old: Path(new) for old, new in order["tablespaces"].items()}
            )
            plan = plan_restore(repository, repository.find(order["backup"]), options)
            apply_restore(repository, plan, stop, listen)
            return "restored"
        address = ServerAddress(order["dsn"])
        facts = collect_facts(address, stop, repository.ring.fingerprint_key.reveal(), lambda text: None)
        source = BaseBackupSource(
            address,
            facts.major,
            BaseBackupOptions("victim"),
            SystemClock(),
            lambda text: None,
            lambda slot: trap.reached("slot", slot),
        )
        result = run_backup(repository, source, facts, BackupOptions("office", "victim"), stop, listen)
        return result.manifest.backup


if __name__ == "__main__":
    sys.stdout.write(work(json.load(sys.stdin)) + "\n")
