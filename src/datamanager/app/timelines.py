"""Which timelines of a cluster are taken, and which of them recovery no more chooses by itself (decision 12)."""

from __future__ import annotations

from pathlib import Path

from datamanager.app.context import Context
from datamanager.app.opening import Unlocking, choose, opened
from datamanager.base.errors import DataManagerError, IntegrityError
from datamanager.base.events import Warned
from datamanager.engine.in_place.kept import control_of_directory, list_kept
from datamanager.postgres.wal.history import TimelineHistory
from datamanager.postgres.wal.names import history_name
from datamanager.repository.repository import Repository
from datamanager.repository.wal.archive import WalArchive


def taken_timelines(repository: Repository, system: int) -> frozenset[int]:
    """Every timeline that a repository tells of. A restore begins none of them again. Raises: StoreError."""
    archive = WalArchive(repository, system)
    backups = {one.timeline for one in repository.manifests() if one.system_identifier == str(system)}
    archived = {span.timeline for line in archive.lines() for span in line.history.spans()}
    return frozenset(backups | archived | {int(one) for one in archive.abandoned() if one.isdigit()})


def abandon_what_was_set_aside(context: Context, name: str, data_directory: Path) -> None:
    """Have recovery go on by itself only with the history that is in force, not with what exchanges set aside.

    It fails with a warning: the exchange is done.
    """
    control = control_of_directory(data_directory)
    if control is None:
        return
    try:
        in_force = _lineage(data_directory, control.timeline)
        aside = {
            number
            for one in list_kept(data_directory)
            if one.position is not None
            for number in _lineage(one.place, one.position.timeline)
        }
        with opened(context, choose(context, None, name), Unlocking()) as repository:
            archive = WalArchive(repository, control.system_identifier)
            for number in sorted(aside - in_force):
                archive.abandon(number)
            for line in archive.lines():
                if line.timeline in in_force:
                    archive.take_up(line)
            for number in sorted(in_force):
                archive.take_up(number)
    except (DataManagerError, OSError) as error:
        cause = error.message if isinstance(error, DataManagerError) else str(error)
        context.listener(
            Warned(
                f"the repository was not told which history is in force: {cause}; until a newer backup is made, "
                f"restore with --timeline {control.timeline}"
            )
        )


def _lineage(data_directory: Path, timeline: int) -> set[int]:
    """A timeline and those that it comes from."""
    try:
        text = (data_directory / "pg_wal" / history_name(timeline)).read_bytes()
        return {one.timeline for one in TimelineHistory.parse(timeline, text).spans()}
    except (FileNotFoundError, IntegrityError):
        return {timeline}
