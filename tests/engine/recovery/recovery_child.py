"""A restore to a moment in a process of its own, slow enough to be killed midway.

Arguments: repository, target, PostgreSQL's version, where the last record begins.
"""

from __future__ import annotations

import sys
from pathlib import Path

from datamanager.base.clock import SystemClock
from datamanager.base.pipeline import StopToken
from datamanager.base.units import Lsn
from datamanager.engine.recovery.run import RecoveryOptions, restore_to_moment
from datamanager.engine.restore.plan import RestoreOptions, plan_restore
from datamanager.repository.repository import Repository
from datamanager.repository.wal.archive import WalArchive
from datamanager.storage.registry import open_storage
from tests.engine.conftest import SECRET, Heard, account, owner, programs_of
from tests.engine.recovery.moments import Archive, slowed


def main(place: str, target: str, version: str, until: str) -> None:
    repository = Repository.open(open_storage(place, growing=["wal"]), SECRET, SystemClock())
    (manifest,) = repository.manifests()
    archive = Archive(WalArchive(repository, int(manifest.system_identifier)))
    replay = archive.replay(manifest, 1, Lsn.parse(until))
    plan = plan_restore(repository, manifest, RestoreOptions(Path(target), owner=owner()))
    options = RecoveryOptions(account(), programs_of(version, manifest.major), patience=40)
    with StopToken() as stop:
        restore_to_moment(repository, plan, slowed(replay, 1.0), options, stop, Heard())


if __name__ == "__main__":
    main(*sys.argv[1:])
