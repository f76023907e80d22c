"""Going on with a restore that waits at its moment: to its end, or to nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from datamanager.app.context import Context
from datamanager.app.started import Started, start_clone
from datamanager.base.events import PhaseStarted
from datamanager.engine.recovery.pause import Paused, drop_paused, finish_paused
from datamanager.engine.recovery.workplace import Recovered
from datamanager.postgres.account import service_account
from datamanager.postgres.programs import Programs, find_programs


@dataclass(frozen=True)
class Finished:
    """A directory that anybody can start; ``started`` is the server on it, if one was wanted."""

    paused: Paused
    recovered: Recovered
    started: Started | None


def finish(context: Context, target: Path, *, start: bool, port: int) -> Finished:
    """Promote the server that waits, stop it, and leave a plain cluster.

    Raises: NotFound, TargetUnfit, ProgramMissing, ServerError, IntegrityError, Cancelled.
    """
    paused = Paused.read(Path(os.path.abspath(target)))  # noqa: PTH100 - links stay as the owner wrote them
    context.listener(PhaseStarted("promoting the server"))
    place = Path(paused.target)
    programs = _programs(context, paused)
    recovered = finish_paused(paused, programs, service_account(place), context.stop, context.executed)
    if not start:
        return Finished(paused, recovered, None)
    return Finished(paused, recovered, start_clone(context, place, paused.cluster, paused.major, paused.server, port))


def drop(context: Context, target: Path) -> Paused:
    """End the server that waits and delete what was restored. Raises: NotFound, TargetUnfit, ProgramMissing."""
    paused = Paused.read(Path(os.path.abspath(target)))  # noqa: PTH100 - links stay as the owner wrote them
    context.listener(PhaseStarted("deleting what was restored"))
    drop_paused(paused, _programs(context, paused), service_account(Path(paused.target)), context.executed)
    return paused


def _programs(context: Context, paused: Paused) -> Programs:
    known = context.config().clusters.get(paused.cluster)
    account = service_account(Path(paused.target))
    return find_programs(paused.major, known.install_path if known else None, account=account)
