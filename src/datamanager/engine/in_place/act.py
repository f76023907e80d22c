"""The steps that a restore in place and its undo have in common, each written down before it is done.

    begin ─► stop ─► exchange ─► start ─► complete          the new data are in force
       └────────┴► abandon          └──────► put_back        the old data are in force

The point of no return is the exchange; a server that does not start on the new data brings the old ones back.
"""

from __future__ import annotations

import contextlib
import glob
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from datamanager.base.errors import Busy, DataManagerError, IntegrityError, ServerDidNotStart, TargetUnfit
from datamanager.base.events import Executed, Listener, PhaseStarted, Warned
from datamanager.base.files import sync_directory, write_durably
from datamanager.base.pipeline import StopToken
from datamanager.engine.in_place.journal import Journal, Phase, drop_journal, write_journal
from datamanager.engine.in_place.kept import Kept, remove_tree
from datamanager.engine.in_place.places import Places, inode_of
from datamanager.engine.in_place.swap import Renames, entries_of, swap_of
from datamanager.postgres.postmaster import postmaster_of
from datamanager.postgres.server_control import ServerControl
from datamanager.postgres.stopped_server import require_stopped
from datamanager.system.exchange import exchange
from datamanager.system.locks import held
from datamanager.system.processes import end_tree

_CLONE_SECONDS = 5.0
_LAST_SECONDS = 10.0
_LOOK_SECONDS = 0.05
Swapped = Callable[[Path, Path], bool]


class Act:
    """One exchange under way. One thread.

    Args:
        answers: raises ServerError when a started server is not the one that is wanted.
        swapped: exchanges two directories, or cannot; see system/exchange.py.
    """

    def __init__(
        self,
        journal: Journal,
        control: ServerControl,
        listener: Listener,
        *,
        answers: Callable[[], None] = lambda: None,
        swapped: Swapped = exchange,
    ) -> None:
        self.journal = journal
        self._control = control
        self._listener = listener
        self._answers = answers
        self._renames = Renames(self.tell, swapped)

    def tell(self, text: str) -> None:
        self._listener(Executed(text))

    def note(self, journal: Journal) -> None:
        """Write down what comes next. Raises: OSError."""
        self.tell(f"journal: {journal.phase}")
        write_journal(journal)
        self.journal = journal

    def stop_server(self, limit_seconds: float) -> None:
        """Stop it and keep others from starting it. Raises: ServiceError, OSError, Busy."""
        self.note(replace(self.journal, phase=Phase.STOPPING))
        self._listener(PhaseStarted("stopping the server"))
        self._control.stop(self.tell, limit_seconds)
        # Not before: a masked unit has lost its ExecStop, and SIGTERM would let PostgreSQL wait for its sessions.
        self._control.mask(self.tell)
        wait_until_stopped(self.journal.places.data_directory)

    def exchange(self, kept: Kept) -> None:
        """Let the incoming data come into force; on a failure the old ones are in force again.

        Raises: TargetUnfit; Busy, when a server was started meanwhile.
        """
        place = self.journal.places.data_directory
        require_stopped(place)
        self.note(
            replace(
                self.journal,
                phase=Phase.EXCHANGING,
                old=inode_of(place),
                new=inode_of(self.journal.incoming),
                old_entries=() if self.journal.places.whole else tuple(entries_of(place)),
                kept=kept,
            )
        )
        self._listener(PhaseStarted("exchanging"))
        try:
            swap_of(self.journal, self._renames).forward()
        except OSError as error:
            raise TargetUnfit(
                f"exchange {place}: {error.filename or place}: {(error.strerror or 'not possible').lower()}",
                hint="Some program has files in it open (a virus scanner, a terminal, a log viewer): end it, then run"
                " the command again.",
            ) from error

    def start_and_complete(self) -> None:
        """Start the server on the new data and leave the record; put the old ones back when it does not start.

        Raises: ServerDidNotStart, which says that and why.
        """
        with contextlib.suppress(OSError):  # on a full volume; that the swap is done tells the same
            self.note(replace(self.journal, phase=Phase.EXCHANGED))
        swap_of(self.journal, self._renames).finish()
        self._listener(PhaseStarted("starting the server"))
        self._control.unmask(self.tell)
        try:
            self._control.start(self.tell, self.journal.start_seconds)
            self._answers()
        except DataManagerError as error:
            self.put_back()
            raise ServerDidNotStart(
                f"{error.message}; the data that were in force before are in force again", hint=error.hint
            ) from error
        try:
            self._leave_record()
            self._end()
        except OSError as error:
            raise TargetUnfit(
                f"restore in place: what was restored is in force, but the way back could not be written down: "
                f"{error.filename or self.journal.path}: {(error.strerror or 'not possible').lower()}",
                hint="Make room, then run `datamanager restore complete CLUSTER`.",
            ) from error

    def put_back(self) -> None:
        """The old data in force, and their server running if it ran. Raises: OSError, IntegrityError, ServerError."""
        with contextlib.suppress(OSError):  # no room for a journal is no reason to stop halfway
            self.note(replace(self.journal, phase=Phase.RETURNING))
        self._listener(PhaseStarted("putting the former data back"))
        self._control.stop(self.tell, self.journal.start_seconds)
        wait_until_stopped(self.journal.places.data_directory)
        swap_of(self.journal, self._renames).back()
        self._unmask_and_start()
        self._discard()
        self._end()

    def abandon(self) -> None:
        """Leave everything as it was before the exchange. Raises: OSError, ServerError, ServiceError."""
        self._listener(PhaseStarted("leaving everything as it was"))
        failed: DataManagerError | None = None
        if self.journal.phase is not Phase.PREPARING:
            try:
                self._unmask_and_start()
            except DataManagerError as error:  # on a full volume it starts when there is room again
                failed = error
        self._discard()
        if failed is not None:
            self._unmask_and_start()
        self._end()

    def swap_is_done(self) -> bool:
        return swap_of(self.journal, self._renames).done

    def _unmask_and_start(self) -> None:
        self._control.unmask(self.tell)
        if self.journal.running and postmaster_of(self.journal.places.data_directory) is None:
            self._listener(PhaseStarted("starting the server"))
            self._control.start(self.tell, self.journal.start_seconds)

    def _leave_record(self) -> None:
        kept = self.journal.kept
        if kept is None:
            raise IntegrityError(f"complete exchange: {self.journal.path} has no record to leave")
        self.tell(f"record {kept.record}")
        write_durably(kept.record, (json.dumps(kept.to_json(), indent=1) + "\n").encode(), mode=0o600)
        if self.journal.undone is not None:
            self.journal.undone.unlink(missing_ok=True)
            sync_directory(self.journal.undone.parent)

    def _discard(self) -> None:
        """Delete what was made; the states that an undo exchanges stay, whatever happens."""
        incoming = self.journal.incoming
        if self.journal.kind != "restore":
            return
        if (clone := postmaster_of(incoming)) is not None:  # a killed restore leaves its clone running
            self.tell(f"end process {clone.pid}, a server on {incoming}")
            end_tree(clone.pid, _CLONE_SECONDS)
        # Recovery has folders of its own beside what it recovers: NAME.wal.
        beside = sorted(incoming.parent.glob(f"{glob.escape(incoming.name)}.*"))
        for path in (*(one.path for one in self.journal.made), *beside, incoming):
            self._remove(path)
        self._remove(self.journal.places.configuration(self.journal.identity))

    def _remove(self, path: Path) -> None:
        if f"datamanager-{self.journal.identity}" not in path.name:
            raise IntegrityError(f"delete {path}: this restore did not make it")
        if path.is_dir():
            self.tell(f"remove {path}")
            remove_tree(path)

    def _end(self) -> None:
        self.tell("journal: done")
        drop_journal(self.journal)


def wait_until_stopped(data_directory: Path) -> None:
    """See that no process of a server is left; the last go just after postmaster.pid. Raises: Busy, RightMissing."""
    deadline = time.monotonic() + _LAST_SECONDS
    while True:
        try:
            return require_stopped(data_directory)
        except Busy:
            if time.monotonic() > deadline:
                raise
        time.sleep(_LOOK_SECONDS)


@contextlib.contextmanager
def alone(places: Places, stop: StopToken) -> Iterator[None]:
    """Nobody else exchanges this data directory meanwhile. Raises: Busy, TargetUnfit, OSError."""
    with held(places.lock, stop, limit_seconds=0) as mine:
        if not mine:
            raise Busy(f"restore in place: another process is at {places.data_directory}")
        yield


def abandon_quietly(act: Act, listener: Listener) -> None:
    """``abandon`` after a failure that is raised itself; what goes wrong then is told, and stays in the journal."""
    try:
        act.abandon()
    except (DataManagerError, OSError) as error:
        listener(
            Warned(f"not everything could be left as it was: {error}; `datamanager restore complete CLUSTER` goes on")
        )
