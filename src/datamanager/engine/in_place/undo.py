"""The way back from a restore in place: the kept data come into force, what is in force now is kept likewise.

Only renames: its time does not depend on the size of the data. An undo leaves a record as a restore does, so it can be
undone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from datamanager.base.errors import Busy, DataManagerError, IntegrityError, NotFound, TargetUnfit
from datamanager.base.events import Listener, Touched, Warned
from datamanager.base.pipeline import StopToken
from datamanager.base.units import Lsn, format_size
from datamanager.engine.in_place.act import Act, Swapped, abandon_quietly, alone
from datamanager.engine.in_place.journal import Journal, Phase, find_journal
from datamanager.engine.in_place.kept import Kept, control_of_directory, list_kept, outside_of, position_of
from datamanager.engine.in_place.places import Places, new_identity
from datamanager.engine.in_place.plan import FINISH
from datamanager.engine.in_place.run import require_answer
from datamanager.postgres.connection import ServerAddress, connect, server_errors
from datamanager.postgres.drain import wait_until_alone
from datamanager.postgres.managers import manager_of
from datamanager.postgres.programs import Programs
from datamanager.postgres.server_control import ServerControl
from datamanager.postgres.service_of import find_control
from datamanager.system.exchange import exchange
from datamanager.system.processes import this_process
from datamanager.system.services import ServiceManager

_QUESTION = (
    "SELECT pg_current_wal_lsn()::text, current_setting('track_commit_timestamp') = 'on',"
    " (SELECT timestamp FROM pg_last_committed_xact() WHERE current_setting('track_commit_timestamp')::bool)"
)


@dataclass(frozen=True, slots=True)
class UndoOptions:
    """As for the restore; ``identity`` of the state that comes back, None for the newest."""

    data_directory: Path
    identity: str | None = None
    service: str | None = None
    programs: Programs | None = None
    manager: ServiceManager | None = None
    managed: bool = False
    drain_seconds: float = 0.0
    start_seconds: float = 600.0
    stop_seconds: float = 120.0


@dataclass(frozen=True, slots=True)
class SetAside:
    """What was done since the state in force came into force, and an undo sets aside.

    Args:
        since: when it came into force.
        wal_bytes: how much WAL was written since; None when unknown. A quiet server writes some, too.
        last_commit: when something was committed last; None when that is unknown (track_commit_timestamp is off).
    """

    since: datetime
    lsn: Lsn | None
    wal_bytes: int | None
    last_commit: datetime | None

    def __str__(self) -> str:
        amount = "an unknown amount" if self.wal_bytes is None else format_size(self.wal_bytes)
        last = f"; the last commit was at {self.last_commit:%Y-%m-%d %H:%M:%S %Z}" if self.last_commit else ""
        return f"{amount} of WAL written since {self.since:%Y-%m-%d %H:%M:%S} UTC{last}"


@dataclass(frozen=True, slots=True)
class UndoPlan:
    """An undo that can be carried out."""

    options: UndoOptions
    identity: str
    places: Places
    kept: Kept
    set_aside: SetAside
    system_identifier: int
    control: ServerControl
    running: bool
    warnings: tuple[str, ...]

    @property
    def outgoing(self) -> Path:
        return self.places.outgoing(self.identity)

    def lines(self) -> list[str]:
        """The plan for people."""
        return [
            f"put the data of {self.kept.at:%Y-%m-%d %H:%M:%S} UTC back in force, which lie in {self.kept.place},"
            " with the configuration that they had",
            f"set aside {self.set_aside}",
            f"stop and start the server by {self.control.words}",
            f"keep what is in force now as {self.outgoing}",
            *(f"note: {text}" for text in self.warnings),
        ]


@dataclass(frozen=True, slots=True)
class UndoResult:
    """``kept`` is what was set aside now; undoing again brings it back."""

    kept: Kept
    set_aside: SetAside
    ended: int
    down_seconds: float
    warnings: tuple[str, ...]


def plan_undo(options: UndoOptions, stop: StopToken, *, address: ServerAddress | None = None) -> UndoPlan:
    """Find the state that comes back, and what is set aside for it.

    Raises: NotFound (nothing is kept), Busy (an exchange is unfinished), TargetUnfit, IntegrityError, RightMissing,
        ServiceError, ProgramMissing, Cancelled.
    """
    places = Places.of(options.data_directory)
    place = places.data_directory
    if (journal := find_journal(place)) is not None:
        raise Busy(f"undo restore: an exchange of {place} did not come to its end ({journal})", hint=FINISH)
    every = list_kept(place)
    kept = next((one for one in every if options.identity in (None, one.identity)), None)
    if kept is None:
        raise NotFound(
            f"undo restore: nothing is kept of {place}" + (f" as {options.identity}" if options.identity else ""),
            hint="Restore a backup instead: `datamanager backup list` shows them.",
        )
    system = _require_whole(kept)
    found = find_control(place, places.log, manager=options.manager, service=options.service, programs=options.programs)
    if not options.managed and (one := manager_of(place, found.above)) is not None:
        raise TargetUnfit(f"undo restore: {one.name} manages {place} ({one.noticed})", hint=one.remedy)
    newer = every.index(kept)
    notes = [f"{newer} states that were set aside later stay as they are"] if newer else []
    return UndoPlan(
        options,
        new_identity(),
        places,
        kept,
        _set_aside(kept, place, address if found.running else None, stop, newest=not newer),
        system,
        found.control,
        found.running,
        (*found.doubts, *notes),
    )


def run_undo(
    plan: UndoPlan,
    stop: StopToken,
    listener: Listener,
    *,
    address: ServerAddress | None = None,
    swapped: Swapped = exchange,
) -> UndoResult:
    """Carry out an undo; it needs no room and no backup.

    Raises: Cancelled (before the exchange), ServiceError, TargetUnfit, ServerDidNotStart: each with the data in force
        that were in force before.
    """
    warnings = list(plan.warnings)

    def answers() -> None:
        if address is not None:
            warnings.extend(require_answer(address, plan.system_identifier))

    with alone(plan.places, stop):
        act = Act(_journal(plan), plan.control, listener, answers=answers, swapped=swapped)
        left = []
        try:
            act.note(act.journal)
            if address is not None and plan.running:
                left = wait_until_alone(address, plan.options.drain_seconds, stop, lambda sessions: None)
            if left:
                listener(Warned(f"{len(left)} sessions are ended with the server"))
            stop.check()
            down = time.monotonic()
            act.stop_server(plan.options.stop_seconds)
            stop.check()
            kept = _record(plan)
            act.exchange(kept)
        except BaseException:
            if act.journal.phase is Phase.EXCHANGING:
                act.put_back()
            else:
                abandon_quietly(act, listener)
            raise
        act.start_and_complete()
    listener(Touched(f"data directory {plan.places.data_directory}; what was in force is {plan.outgoing}"))
    return UndoResult(kept, plan.set_aside, len(left), time.monotonic() - down, tuple(warnings))


def _require_whole(kept: Kept) -> int:
    """The system identifier of what is kept. Raises: IntegrityError, when part of it is not there any more."""
    control = control_of_directory(kept.place)
    missing = [str(one.path) for one in kept.outside if not one.path.is_dir()]
    if set(outside_of(kept.place)) != set(kept.outside):
        missing.append("links of its tablespaces")
    if control is None:
        missing.append("its control file")
    if missing or control is None:
        raise IntegrityError(
            f"undo restore: what is kept in {kept.place} is not whole any more: {missing[0]} is missing",
            hint="Mount what is not mounted; else restore a backup.",
        )
    return control.system_identifier


def _set_aside(kept: Kept, place: Path, address: ServerAddress | None, stop: StopToken, *, newest: bool) -> SetAside:
    """From the server if it answers, else from the control file, which knows the last checkpoint."""
    lsn, last = None, None
    if address is not None:
        try:
            with connect(address, stop=stop) as connection, server_errors("look at WAL"):
                row = connection.execute(_QUESTION).fetchone()
            if row is not None:
                lsn, last = Lsn.parse(str(row[0])), row[2]
        except DataManagerError:
            stop.check()
    if lsn is None and (control := control_of_directory(place)) is not None:
        lsn = control.checkpoint
    amount = lsn - kept.began.lsn if lsn is not None and newest else None
    return SetAside(
        kept.at,
        lsn,
        amount if amount is None or amount >= 0 else None,
        last.astimezone(UTC) if isinstance(last, datetime) else None,
    )


def _journal(plan: UndoPlan) -> Journal:
    return Journal(
        identity=plan.identity,
        kind="undo",
        phase=Phase.PREPARING,
        process=this_process(),
        began=datetime.now(UTC),
        places=plan.places,
        incoming=plan.kept.place,
        outgoing=plan.outgoing,
        made=(),
        control=plan.control.record(),
        running=plan.running,
        start_seconds=plan.options.start_seconds,
        undone=plan.kept.record,
    )


def _record(plan: UndoPlan) -> Kept:
    """The record of what is set aside, now that its server has stopped. Raises: IntegrityError."""
    place = plan.places.data_directory
    control = control_of_directory(place)
    back = control_of_directory(plan.kept.place)
    if back is None:
        raise IntegrityError(f"undo restore: {plan.kept.place} has no control file")
    return replace(
        plan.kept,
        identity=plan.identity,
        kind="undo",
        at=datetime.now(UTC),
        place=plan.outgoing,
        outside=tuple(outside_of(place)),
        position=None if control is None else position_of(control),
        successor=f"the data of {plan.kept.at:%Y-%m-%d %H:%M:%S} UTC",
        began=position_of(back),
    )
