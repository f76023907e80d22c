"""What a delta restore in place writes over a cluster's data: chosen once, and the very same after a kill.

Until then the archive may have gone on and the newest backup may be the safety backup, so the choice is written down
with the record (engine/in_place/delta.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from datamanager.app import moments
from datamanager.app.context import Context
from datamanager.app.moments import Moment
from datamanager.engine.in_place.delta import Record
from datamanager.engine.recovery.replay import Replay, replay_from_json
from datamanager.engine.recovery.targets import Target
from datamanager.repository.manifest import Manifest
from datamanager.repository.repository import Repository
from datamanager.repository.wal.archive import WalArchive


@dataclass(frozen=True)
class Wanted:
    """A backup and the way to the moment.

    Args: moment - for people; replay - None for the backup's own end.
    """

    manifest: Manifest
    moment: str
    replay: Replay | None
    warnings: tuple[str, ...] = ()


def words_of(repository: Repository, backup: str, cluster: str, moment: Moment) -> tuple[str, ...]:
    """What was asked, as words of the command: times in UTC, the backup by its whole id.

    Raises: NotFound, UsageError.
    """
    found = "latest" if backup == "latest" else repository.find(backup, cluster).backup
    return (found, *(_options(moment.target()) if moment.is_given else ()))


def choose(context: Context, repository: Repository, backup: str, cluster: str, moment: Moment) -> Wanted:
    """Raises: as ``moments.choose``."""
    chosen = moments.choose(context, repository, backup, cluster, moment)
    plan = chosen.recovery
    if plan is None or chosen.replay is None:
        return Wanted(
            chosen.manifest, f"the end of backup {chosen.manifest.backup}", None, plan.warnings if plan else ()
        )
    return Wanted(chosen.manifest, plan.words(moment.shown_in), chosen.replay, plan.warnings)


def chosen_before(repository: Repository, record: Record) -> Wanted:
    """What a record that was cut off says. Raises: NotFound, WalMissing, IntegrityError, StoreError."""
    manifest = repository.manifest(record.backup)
    if record.replay is None:
        return Wanted(manifest, record.moment, None)
    lines = tuple(WalArchive(repository, int(manifest.system_identifier)).lines())
    return Wanted(manifest, record.moment, replay_from_json(record.replay, lines))


def _options(target: Target) -> tuple[str, ...]:
    given = {
        "--to-time": target.time.isoformat() if target.time is not None else "",
        "--to-lsn": str(target.lsn) if target.lsn is not None else "",
        "--to-name": target.name,
        "--timeline": str(target.timeline or ""),
    }
    return tuple(word for option, value in given.items() if value for word in (option, value))
