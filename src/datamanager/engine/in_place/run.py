"""A restore in place.

1 prepare    the restored cluster beside the present one: complete, recovered, checked, stopped (the caller's callable)
2 drain      who is connected is told and may be waited for
3 stop       the server; new sessions are refused, the others end
4 settle     the present configuration, owner, mode and label go to the new data; everything durable
5 exchange   the point of no return, by renames alone
6 start      the server must answer, else the old data come back by themselves
7 keep       the old data with a record, for ``undo``
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from datamanager.base.errors import (
    AuthenticationFailed,
    Cancelled,
    DataManagerError,
    IntegrityError,
    NotFound,
    RightMissing,
    ServerUnfit,
    ServerUnreachable,
    TargetTooSmall,
    TargetUnfit,
)
from datamanager.base.events import Listener, PhaseStarted, Touched, Warned
from datamanager.base.files import sync_tree
from datamanager.base.pipeline import StopToken
from datamanager.engine.in_place.act import Act, Swapped, abandon_quietly, alone
from datamanager.engine.in_place.configuration import announce_history, carry_over, copy_label, histories_known
from datamanager.engine.in_place.journal import Journal, Phase
from datamanager.engine.in_place.kept import Kept, Position, control_of_directory, outside_of, position_of
from datamanager.engine.in_place.plan import InPlacePlan
from datamanager.postgres.connection import ServerAddress, connect, server_errors
from datamanager.postgres.control_file import STOPPED, ControlFile, read_major
from datamanager.postgres.drain import Session, wait_until_alone
from datamanager.system.exchange import exchange
from datamanager.system.processes import this_process

_MOST_SESSIONS_TOLD = 10
# A server that accepts sessions answers at once; one whose processes crash over bad data never does.
_ANSWER_SECONDS = 5.0
_LOOK_SECONDS = 0.2


class Prepare(Protocol):
    """Makes the restored cluster: complete, recovered, on a timeline of its own, stopped cleanly.

    Its pg_tblspc links lead to ``tablespaces`` (by oid), and pg_wal is a link to ``pg_wal`` where that is given.
    Whatever it raises leaves production untouched, and what it made is removed.
    """

    def __call__(self, target: Path, tablespaces: Mapping[str, Path], pg_wal: Path | None) -> None: ...


@dataclass(frozen=True, slots=True)
class InPlaceResult:
    """The restored cluster in force.

    Args:
        kept: what was set aside, which ``undo`` brings back.
        position: where the restored cluster begins.
        ended: how many sessions were ended.
        configuration: files that the backup has otherwise; its own lie in the plan's folder for them.
        down_seconds: how long nobody could connect.
    """

    kept: Kept
    position: Position
    ended: int
    configuration: tuple[str, ...]
    down_seconds: float
    warnings: tuple[str, ...]


def run_in_place(
    plan: InPlacePlan,
    prepare: Prepare,
    stop: StopToken,
    listener: Listener,
    *,
    address: ServerAddress | None = None,
    swapped: Swapped = exchange,
) -> InPlaceResult:
    """Carry out a plan.

    Args: address - where the server is reached: who is connected is told, and the started server must answer there;
        stop - heard until the server was stopped; after that the way is forward.

    Raises: what ``prepare`` raises, Cancelled, ServiceError, TargetUnfit, TargetTooSmall, IntegrityError, with the
        present data in force; ServerDidNotStart likewise, after the new data had been tried.
    """
    warnings = list(plan.warnings)

    def answers() -> None:
        if address is not None:
            warnings.extend(require_answer(address, plan.options.system_identifier))

    with alone(plan.places, stop):
        act = Act(_journal(plan), plan.control, listener, answers=answers, swapped=swapped)
        with_prepared = _Preparation(plan, prepare, stop, listener, address)
        try:
            act.note(act.journal)
            control = with_prepared.prepare()
            ended = with_prepared.drain()
            down = time.monotonic()
            act.stop_server(plan.options.stop_seconds)
            stop.check()
            changed = with_prepared.settle(control.timeline)
            stop.check()
            kept = _kept(plan, position_of(control), changed)
            act.exchange(kept)
        except BaseException as error:
            if act.journal.phase is Phase.EXCHANGING:
                act.put_back()
            else:
                abandon_quietly(act, listener)
            if isinstance(error, (Cancelled, OSError)):
                raise _explained(error, plan) from error
            raise
        act.start_and_complete()
    listener(Touched(f"data directory {plan.places.data_directory}; the former one is {plan.outgoing}"))
    return InPlaceResult(
        kept, position_of(control), len(ended), tuple(changed), time.monotonic() - down, tuple(warnings)
    )


def known_histories(plan: InPlacePlan) -> dict[str, bytes]:
    """The timeline histories of the present cluster and of everything that was set aside, by name.

    A restore must not begin a timeline that one of them has begun (PostgreSQL decision 12). Raises: OSError.
    """
    return histories_known((*(one.place for one in plan.kept), plan.places.data_directory), plan.options.timelines)


def require_answer(address: ServerAddress, system_identifier: int) -> list[str]:
    """See that the server that answers is the one that was restored; returns warnings.

    A role whose password is the one of then cannot log in, which shows as well that the server answers.
    Raises: ServerError.
    """
    deadline = time.monotonic() + _ANSWER_SECONDS
    while True:
        try:
            return _answer(address, system_identifier)
        except ServerUnreachable:
            if time.monotonic() > deadline:
                raise
        time.sleep(_LOOK_SECONDS)


def _answer(address: ServerAddress, system_identifier: int) -> list[str]:
    try:
        with connect(address) as connection, server_errors("look at server"):
            row = connection.execute("SELECT system_identifier FROM pg_control_system()").fetchone()
    except (AuthenticationFailed, RightMissing, NotFound) as error:
        return [f"the server answers, but lets this program in no more: {error.message}"]
    if row is None or int(str(row[0])) != system_identifier:
        raise ServerUnfit("look at server: another server answers at its address")
    return []


class _Preparation:
    """What happens to the new data before they come into force."""

    def __init__(
        self,
        plan: InPlacePlan,
        prepare: Prepare,
        stop: StopToken,
        listener: Listener,
        address: ServerAddress | None,
    ) -> None:
        self._plan = plan
        self._prepare = prepare
        self._stop = stop
        self._listener = listener
        self._address = address

    def prepare(self) -> ControlFile:
        """Raises: IntegrityError, when what was prepared cannot come into force."""
        plan = self._plan
        self._listener(PhaseStarted("preparing"))
        self._stop.check()
        self._prepare(plan.incoming, {str(oid): path for oid, path in plan.tablespaces.items()}, plan.pg_wal)
        self._stop.check()
        return check_prepared(plan)

    def drain(self) -> list[Session]:
        """Raises: Cancelled."""
        if self._address is None or not self._plan.running:
            return []
        self._listener(PhaseStarted("waiting for sessions to end"))
        seconds = self._plan.options.drain_seconds
        left = wait_until_alone(self._address, seconds, self._stop, self._tell_sessions)
        if left:
            self._listener(Warned(f"{len(left)} sessions are ended with the server"))
        return left

    def settle(self, timeline: int) -> list[str]:
        """Raises: OSError."""
        plan = self._plan
        place = plan.places.data_directory
        self._listener(PhaseStarted("keeping the configuration"))
        trees = [plan.incoming, *(one.path for one in plan.made)]
        changed = carry_over(place, plan.incoming, plan.places.configuration(plan.identity), plan.owner)
        announce_history(plan.incoming, timeline, plan.owner)
        for tree in trees:
            tree.chmod(plan.mode)
            if plan.owner is not None:
                os.chown(tree, *plan.owner)
        copy_label(place, trees)
        for tree in trees:
            sync_tree(tree)
        return changed

    def _tell_sessions(self, sessions: list[Session]) -> None:
        shown = "; ".join(str(one) for one in sessions[:_MOST_SESSIONS_TOLD])
        more = f"; and {len(sessions) - _MOST_SESSIONS_TOLD} more" if len(sessions) > _MOST_SESSIONS_TOLD else ""
        self._listener(Touched(f"{len(sessions)} sessions connected{': ' if sessions else ''}{shown}{more}"))


def check_prepared(plan: InPlacePlan) -> ControlFile:
    """See that what was prepared is a whole cluster of this system on a timeline of its own. Raises: IntegrityError."""
    control = control_of_directory(plan.incoming)
    wrong = ""
    if control is None or read_major(plan.incoming) != plan.options.major:
        wrong = "it has no control file of this version"
    elif control.system_identifier != plan.options.system_identifier:
        wrong = f"it is of system {control.system_identifier}"
    elif control.state != STOPPED:
        wrong = f"it was not stopped cleanly ({control.state})"
    elif any((plan.incoming / name).exists() for name in ("backup_label", "tablespace_map", "recovery.signal")):
        wrong = "its recovery is not complete"
    elif set(outside_of(plan.incoming)) != set(plan.made):
        wrong = "its tablespaces or its pg_wal do not lie where they were planned"
    elif control.timeline in _timelines(plan):
        wrong = f"its timeline {control.timeline} exists already"
    if wrong or control is None:
        raise IntegrityError(
            f"restore in place: the prepared cluster cannot come into force: {wrong}",
            hint="Nothing was changed; restore another backup, or into another directory with `--target`.",
        )
    return control


def _timelines(plan: InPlacePlan) -> set[int]:
    """Every timeline that the present cluster and those that were set aside have been on."""
    found = {int(name[:8], 16) for name in known_histories(plan)}
    positions = [plan.position, *(one.position for one in plan.kept)]
    return found | {one.timeline for one in positions if one is not None}


def _journal(plan: InPlacePlan) -> Journal:
    return Journal(
        identity=plan.identity,
        kind="restore",
        phase=Phase.PREPARING,
        process=this_process(),
        began=datetime.now(UTC),
        places=plan.places,
        incoming=plan.incoming,
        outgoing=plan.outgoing,
        made=plan.made,
        control=plan.control.record(),
        running=plan.running,
        start_seconds=plan.options.start_seconds,
    )


def _kept(plan: InPlacePlan, began: Position, changed: list[str]) -> Kept:
    """The record of the present data, read once more now that the server has stopped."""
    place = plan.places.data_directory
    control = control_of_directory(place)
    return Kept(
        identity=plan.identity,
        kind="restore",
        at=datetime.now(UTC),
        data_directory=place,
        place=plan.outgoing,
        outside=tuple(outside_of(place)),
        others=(plan.places.configuration(plan.identity),) if changed else (),
        position=None if control is None else position_of(control),
        successor=plan.options.source,
        began=began,
    )


def _explained(error: Cancelled | OSError, plan: InPlacePlan) -> DataManagerError:
    """What to raise: the system's own refusals in our words."""
    if isinstance(error, Cancelled):
        return Cancelled(
            "restore in place: cancelled; the server runs on its present data", hint="Nothing was changed."
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return TargetTooSmall(f"restore in place: no room left for {error.filename or plan.incoming}")
    return TargetUnfit(
        f"restore in place: {error.filename or plan.incoming}: {(error.strerror or 'cannot be written').lower()}",
        hint="The present data are in force; nothing was changed.",
    )
