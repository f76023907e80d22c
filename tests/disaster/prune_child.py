"""A process that takes one backup of a cluster made from a number, or prunes, for tests that kill it.

Run as ``python -m tests.disaster.prune_child`` with one JSON object on standard input: ``repository``, ``key_file``,
``work`` (backup or prune) and ``number``. It prints ``begun`` and then, unless it is killed, how it ended.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from datamanager.base.clock import SystemClock
from datamanager.base.errors import Busy
from datamanager.base.events import ignore
from datamanager.base.pipeline import StopToken
from datamanager.engine.backup.run import run_backup
from datamanager.engine.backup.session import BackupOptions
from datamanager.engine.prune.run import PruneOptions, prune_repository
from datamanager.repository.keys import SlotSecret
from datamanager.repository.repository import Repository
from datamanager.storage.local import LocalStorage
from tests.engine.synthetic_source import SyntheticCluster, SyntheticSource, make_cluster

_TURN = 6  # every so many numbers the cluster is set back, so that old pages come again


def cluster_of(number: int) -> SyntheticCluster:
    """The cluster as it is at that number: the same for everybody who asks."""
    cluster = make_cluster(5, pages=60, tables=5)
    for seed in range(number - number % _TURN, number + 1):
        cluster = cluster.with_changed_pages(seed, 0.25)
    return cluster


def work(order: dict[str, Any]) -> str:
    """Carry out one order; returns what to print."""
    secret = SlotSecret.from_key_file(Path(order["key_file"]).read_bytes())
    repository = Repository.open(LocalStorage(Path(order["repository"])), secret, SystemClock())
    sys.stdout.write("begun\n")
    sys.stdout.flush()
    with StopToken() as stop:
        try:
            if order["work"] == "prune":
                pruned = prune_repository(repository, PruneOptions(), stop, ignore)
                return f"pruned {pruned.objects_deleted} {pruned.packs_rewritten} exclusive {pruned.exclusive}"
            cluster = cluster_of(order["number"])
            options = BackupOptions("office", str(order["number"]))
            result = run_backup(repository, SyntheticSource(cluster), cluster.facts, options, stop, ignore)
            return result.manifest.backup
        except Busy as error:
            return f"busy: {error.message}"


if __name__ == "__main__":
    sys.stdout.write(work(json.load(sys.stdin)) + "\n")
