"""What the next command does about an exchange that did not come to its end: kill -9, a crash, a power cut.

It needs the journal beside the data directory and nothing else. Before the exchange everything is put back, after it
everything is completed; a server that does not start on the new data gets its old ones back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from datamanager.base.errors import IntegrityError
from datamanager.base.events import Listener
from datamanager.base.pipeline import StopToken
from datamanager.engine.in_place.act import Act, Swapped, alone
from datamanager.engine.in_place.journal import Journal, Phase, find_journal, read_journal, require_abandoned
from datamanager.engine.in_place.kept import Kept
from datamanager.postgres.server_control import control_of
from datamanager.system.exchange import exchange
from datamanager.system.services import ServiceManager


@dataclass(frozen=True, slots=True)
class Finished:
    """How an exchange ended after all.

    Args:
        kind: ``restore``, ``undo`` or ``delta restore``.
        completed: the new data are in force; else those that were in force before it.
        kept: what was set aside, when it was completed.
    """

    kind: str
    data_directory: Path
    completed: bool
    kept: Kept | None

    def __str__(self) -> str:
        what = f"an unfinished {self.kind} of {self.data_directory}"
        if self.completed and self.kept is not None:
            return f"{what} was completed: {self.kept.successor} is in force, the former data are {self.kept.place}"
        if self.completed:
            return f"{what} was completed"
        return f"{what} was taken back: the data that were in force before it are in force"


def finish_or_undo(
    data_directory: Path,
    listener: Listener,
    *,
    manager: ServiceManager | None = None,
    answers: Callable[[], None] = lambda: None,
    swapped: Swapped = exchange,
) -> Finished | None:
    """Bring an exchange of a data directory to its end; None when none is unfinished. Idempotent, may be killed.

    Args: manager - of the system's services; None for the system's own. answers - see Act.
    Raises: Busy (its process lives), IntegrityError, RightMissing, OSError, ServerDidNotStart, ServiceError.
    """
    path = find_journal(data_directory)
    if path is None:
        return None
    journal = read_journal(path)
    require_abandoned(journal)
    with StopToken() as unstoppable, alone(journal.places, unstoppable):
        if not path.is_file():
            return None  # somebody else was quicker
        return _finish(read_journal(path), listener, manager, answers, swapped)


def _finish(
    journal: Journal,
    listener: Listener,
    manager: ServiceManager | None,
    answers: Callable[[], None],
    swapped: Swapped,
) -> Finished:
    try:
        control = control_of(journal.control, manager)
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"read journal {journal.path}: {error}") from error
    act = Act(journal, control, listener, answers=answers, swapped=swapped)
    place = journal.places.data_directory
    in_force = journal.phase is Phase.EXCHANGED or (journal.phase is Phase.EXCHANGING and act.swap_is_done())
    if in_force:
        act.start_and_complete()
        return Finished(journal.kind, place, True, journal.kept)
    if journal.phase in (Phase.PREPARING, Phase.STOPPING):
        act.abandon()
    else:
        act.put_back()
    return Finished(journal.kind, place, False, None)
