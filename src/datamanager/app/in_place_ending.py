"""How a restore in place, or its undo, comes to its end whatever happens to the process that began it.

A note in the home tells where it is at work (``in_place_notes.py``); the journal beside the data directory tells how it
goes on. Whoever finds both after a kill ends the exchange, and backs up what was restored.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from datamanager.app.audit import audited
from datamanager.app.context import Context
from datamanager.app.in_place_notes import Note, drop_note, new_note, read_note, taken_over, write_note
from datamanager.app.timelines import abandon_what_was_set_aside
from datamanager.base.events import Warned
from datamanager.engine.in_place.delta import finish_delta
from datamanager.engine.in_place.journal import find_journal
from datamanager.engine.in_place.places import Places
from datamanager.engine.in_place.recovery import Finished, finish_or_undo

RESTORE, UNDO = "restore", "undo"


@contextlib.contextmanager
def noted(context: Context, name: str, kind: str, data_directory: Path, repository: str = "") -> Iterator[None]:
    """Note that the block exchanges a cluster's data, so that it is ended if this process is killed.

    A restore that is done leaves the note that its backup is owed, for ``following_backup``.
    Args: kind - RESTORE or UNDO; repository - where that backup goes.
    """
    before = read_note(context.home, name)
    note = new_note(name, kind, data_directory, repository, context.clock.now())
    _write(context, note)
    try:
        yield
    except BaseException:
        if unfinished_file(data_directory) is None:
            _leave(context, name, before if before is not None and before.owes_backup else None)
        raise
    _leave(context, name, replace(note, owes_backup=True) if kind == RESTORE else None)


def end_unfinished(context: Context, name: str, data_directory: Path, *, reason: str = "") -> Finished | None:
    """Bring an exchange that was cut off to its end; None when there is none. That a backup is owed then is noted.

    Args: reason - who does it and why, for the audit log.
    Raises: Busy (it is under way), IntegrityError, RightMissing, ServerDidNotStart, ServiceError, TargetUnfit, OSError.
    """
    if unfinished_file(data_directory) is None:
        return None
    note = read_note(context.home, name)
    if note is not None and note.cut_off:
        _write(context, taken_over(note))
    finished = finish_delta(data_directory, context.listener) or finish_or_undo(data_directory, context.listener)
    if finished is None:
        return None
    if finished.completed and finished.kind != UNDO:
        note = note or new_note(name, RESTORE, data_directory, "", context.clock.now())
        _leave(context, name, replace(taken_over(note), owes_backup=True, error="", command="", tries=0, again=None))
    else:
        _leave(context, name, None)
    context.listener(Warned(str(finished)))
    audited(
        context,
        f"unfinished {finished.kind} {'completed' if finished.completed else 'taken back'}",
        name,
        after={"data_directory": str(finished.data_directory)},
        reason=reason,
    )
    if finished.completed and finished.kind == UNDO:
        abandon_what_was_set_aside(context, name, data_directory)
    return finished


def unfinished_file(data_directory: Path) -> Path | None:
    """What tells of an exchange or a delta restore of a directory that is not over."""
    if (journal := find_journal(data_directory)) is not None:
        return journal
    real = Path(os.path.realpath(data_directory))
    return next((one for whole in (True, False) if (one := Places(real, whole).delta).is_file()), None)


def _leave(context: Context, name: str, note: Note | None) -> None:
    if note is None:
        drop_note(context.home, name)
    else:
        _write(context, note)


def _write(context: Context, note: Note) -> None:
    """A home that cannot be written is no reason not to restore: the journal alone is enough to go on by hand."""
    try:
        write_note(context.home, note)
    except OSError as error:
        context.listener(
            Warned(
                f"should this be cut off, run `datamanager restore complete {note.cluster}`: the service cannot know of"
                f" it ({(error.strerror or 'not possible').lower()})"
            )
        )
