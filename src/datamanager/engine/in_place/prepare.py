"""Preparing a restored cluster beside the present one: a backup, recovered to its own end or to a moment after it.

1 restore   into the directories that the plan of the restore in place names
2 recover   as an isolated clone that archives nothing (engine/recovery/run.py); it is promoted and stopped. Every known
            timeline's history is there, so that the new one gets a number that nobody has used
3 pg_wal    moved to where it lies outside
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from datamanager.base.events import Listener
from datamanager.base.files import sync_tree
from datamanager.base.pipeline import StopToken
from datamanager.engine.recovery.replay import Replay
from datamanager.engine.recovery.room import with_room_for_wal
from datamanager.engine.recovery.run import RecoveryOptions, restore_to_moment
from datamanager.engine.restore.plan import RestoreOptions, plan_restore
from datamanager.postgres.account import Account
from datamanager.postgres.programs import Programs
from datamanager.repository.manifest import Manifest
from datamanager.repository.repository import Repository


@dataclass(frozen=True)
class Preparation:
    """How a cluster is prepared.

    Args:
        owner: (uid, gid) of the files, for root.
        within: directories of the present cluster that the new one may lie in; see ``InPlacePlan.within``.
        histories: of every timeline known, by file name; see ``run.known_histories``.
    """

    account: Account
    programs: Programs
    owner: tuple[int, int] | None = None
    within: frozenset[Path] = frozenset()
    histories: Mapping[str, bytes] = field(default_factory=dict)
    threads: int = 2


@dataclass(frozen=True)
class FromBackup:
    """Prepares a cluster from a backup and what is replayed onto it; see ``run.Prepare``."""

    repository: Repository
    manifest: Manifest
    replay: Replay
    how: Preparation
    stop: StopToken
    listener: Listener

    def __call__(self, target: Path, tablespaces: Mapping[str, Path], pg_wal: Path | None) -> None:
        options = RestoreOptions(target, tablespaces, self.how.owner, self.how.threads, within=self.how.within)
        plan = plan_restore(self.repository, self.manifest, options)
        plan = with_room_for_wal(plan, self.replay.needs, self.replay.segment_size)
        replay = replace(self.replay, histories={**self.replay.histories, **self.how.histories})
        recovery = RecoveryOptions(self.how.account, self.how.programs)
        restore_to_moment(self.repository, plan, replay, recovery, self.stop, self.listener)
        if pg_wal is not None:
            _move_wal(target, pg_wal, self.how.owner)


def _move_wal(target: Path, pg_wal: Path, owner: tuple[int, int] | None) -> None:
    """Move a stopped cluster's pg_wal to another volume and leave a link. Raises: OSError."""
    source = target / "pg_wal"
    pg_wal.mkdir(mode=0o700, parents=True)
    shutil.copytree(source, pg_wal, dirs_exist_ok=True)
    if owner is not None:
        for folder, names, files in os.walk(pg_wal):
            for name in (".", *names, *files):
                os.chown(Path(folder, name), *owner)
    pg_wal.chmod(source.stat().st_mode & 0o7777)
    sync_tree(pg_wal)
    shutil.rmtree(source)
    source.symlink_to(pg_wal, target_is_directory=True)
    if owner is not None:
        os.chown(source, *owner, follow_symlinks=False)
    sync_tree(target)
