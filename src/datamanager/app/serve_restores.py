"""Restores in place that a kill or a power cut ended: the service finishes them, and queues the backup.

Done by a child of the supervisor as the account that began the restore: at the service's start for every cluster, later
for what has a note (``in_place_notes.py``). A restore whose process lives is left alone, and so is one that somebody
else is finishing: the lock beside the data directory lets in one. What fails is tried a few times, then left to people.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from datamanager.app.addresses import address_of, is_local
from datamanager.app.audit import audited
from datamanager.app.context import Context
from datamanager.app.in_place_ending import RESTORE, UNDO, end_unfinished, unfinished_file
from datamanager.app.in_place_notes import Note, account_id, drop_note, new_note, read_note, taken_over, write_note
from datamanager.base.errors import Busy, ConfigurationError, DataManagerError, TargetUnfit
from datamanager.state.model import JobRequest, Trigger

# A volume that is mounted late is there by then; what lasts longer is for people, or for the next start.
_AGAIN = (timedelta(minutes=1), timedelta(minutes=10))
_COMMAND = re.compile(r"`(datamanager [^`]+)`")
_REASON, _WHO = "found by the service", "the service, after a restore in place"


def finish_restores(context: Context) -> list[str]:
    """End what was cut off of every configured cluster of this account; returns a sentence for each.

    Raises: ConfigurationError, Cancelled. Everything else is noted, for ``status`` to tell.
    """
    said: list[str] = []
    for note in _candidates(context):
        context.stop.check()
        try:
            said += _finish(context, note)
        except Busy:
            continue  # somebody is at it
        except (DataManagerError, OSError) as error:
            context.stop.check()
            said += _failed(context, note, error)
    return said


def _candidates(context: Context) -> Iterator[Note]:
    """What may have been cut off: what has a note, and what lies beside a configured data directory without one."""
    for name, config in context.config().clusters.items():
        note, place = read_note(context.home, name), config.data_directory
        if note is None and place is not None and _is_own(place):
            found = new_note(name, RESTORE, place, "", context.clock.now())
        elif note is not None and note.own and note.cut_off:
            found = note
        else:
            continue
        with contextlib.suppress(ConfigurationError):
            if is_local(address_of(config)):
                yield found


def _is_own(data_directory: Path) -> bool:
    """Whether something is unfinished there that this account began."""
    with contextlib.suppress(OSError):  # a directory that this account does not enter is another's
        file = unfinished_file(data_directory)
        return file is not None and (sys.platform == "win32" or file.lstat().st_uid == account_id())
    return False


def _has_data(note: Note) -> bool:
    return (note.data_directory / "PG_VERSION").is_file()


def _is_over(note: Note) -> bool:
    """Whether nothing is unfinished any more, and it can be seen that it is so."""
    with contextlib.suppress(OSError):
        return not note.owes_backup and unfinished_file(note.data_directory) is None and _has_data(note)
    return False


def _finish(context: Context, note: Note) -> list[str]:
    name = note.cluster
    if unfinished_file(note.data_directory) is None and not _has_data(note):
        raise TargetUnfit(f"look at {note.data_directory}: no data are there; its volume may not be mounted")
    finished = end_unfinished(context, name, note.data_directory, reason=_REASON)
    text = str(finished)
    said = [f"{text[:1].upper()}{text[1:]}."] if finished is not None else []
    left = read_note(context.home, name)
    if left is None or left.kind == UNDO:
        drop_note(context.home, name)
        return said
    # Without a journal it was cut off behind the exchange, or just before it: a backup too many does no harm.
    return [*said, *_queue_backup(context, left)]


def _queue_backup(context: Context, note: Note) -> list[str]:
    """Raises: ConfigurationError, StateUnavailable, StateError."""
    where = ("--repo", note.repository) if note.repository else ()
    request = JobRequest(
        "backup run", (note.cluster, *where), note.cluster, trigger=Trigger.PERSON, who=_WHO, heavy=True
    )
    with context.state() as state:
        queued = state.jobs.add(request)
    drop_note(context.home, note.cluster)
    number = f" as {queued.id}" if queued is not None else ""
    return [f"The restored cluster {note.cluster} is backed up{number}."]


def _failed(context: Context, note: Note, error: DataManagerError | OSError) -> list[str]:
    """Note why it does not end; the same cause is told once."""
    message = error.message if isinstance(error, DataManagerError) else f"{error.filename}: {error.strerror}"
    note = read_note(context.home, note.cluster) or note
    if _is_over(note):
        # The restored data did not start: those of before are in force again, and nothing is left to be done.
        drop_note(context.home, note.cluster)
        audited(context, f"unfinished {note.kind} taken back", note.cluster, reason=f"{_REASON}: {message}")
        return [f"The {note.kind} of {note.cluster} was cut off and taken back: {message}."]
    tries = note.tries + 1
    again = context.clock.now() + _AGAIN[note.tries] if note.tries < len(_AGAIN) else None
    hinted = _COMMAND.search(error.hint) if isinstance(error, DataManagerError) else None
    command = hinted[1] if hinted else f"datamanager restore complete {note.cluster}"
    if note.owes_backup:
        command = f"datamanager backup run {note.cluster}"
    with contextlib.suppress(OSError):
        write_note(context.home, replace(taken_over(note), error=message, command=command, tries=tries, again=again))
    told = f"The restore of {note.cluster} that was cut off cannot be finished: {message}. Run `{command}`."
    return [] if note.error == message else [told]
