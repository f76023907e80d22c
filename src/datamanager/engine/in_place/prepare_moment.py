"""Preparing a restored cluster at a moment: a backup, and the archived WAL after it replayed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from datamanager.base.events import Listener
from datamanager.base.pipeline import StopToken
from datamanager.engine.in_place.prepare import Preparation, move_wal
from datamanager.engine.recovery.room import with_room_for_wal
from datamanager.engine.recovery.run import RecoveryOptions, Replay, restore_to_moment
from datamanager.engine.restore.plan import RestoreOptions, plan_restore
from datamanager.repository.manifest import Manifest
from datamanager.repository.repository import Repository


@dataclass(frozen=True)
class AtMoment:
    """Prepares a cluster from a backup and the WAL after it; see ``run.Prepare``."""

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
            move_wal(target, pg_wal, self.how.owner)
