"""The options that every job command has for what is done around it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from datamanager.cli.lazy import lazy
from datamanager.cli.outcome import Outcome

if TYPE_CHECKING:
    from datamanager.app import around
    from datamanager.cli.session import Session
else:
    around = lazy("datamanager.app.around")

Body = Callable[..., Outcome]
_HOOK_SECONDS = 600
# Fields of a result that the command after the job is told, and under which name.
_FACTS = {"backup_id": "BACKUP", "cluster": "CLUSTER", "repository": "REPOSITORY"}


def around_options(body: Body) -> Body:
    """Give a job command ``--stop-service``, ``--before``, ``--after`` and ``--hook-timeout``, and do what they say.

    Stands right above the body; its ``cluster`` and ``repository`` are told to those commands.
    """

    @functools.wraps(body)
    def wrapped(
        session: Session,
        *,
        stop_services: tuple[str, ...],
        before: str,
        after: str,
        hook_timeout: int,
        **parameters: Any,
    ) -> Outcome:
        if not (stop_services or before or after or _holds(session.home.services)):
            return body(session, **parameters)
        options = around.AroundOptions(stop_services, before, after, hook_timeout)
        facts = {fact: str(parameters.get(name) or "") for name, fact in _FACTS.items()}
        with around.around(session.context, options, session.run_id, facts, session.mask) as ending:
            outcome = body(session, **parameters)
            ending.facts |= {fact: str(outcome.data[name]) for name, fact in _FACTS.items() if outcome.data.get(name)}
            if outcome.failure is not None:
                ending.failed, ending.error = True, outcome.failure.message
        return outcome

    for add in reversed(_OPTIONS):
        wrapped = add(wrapped)
    return wrapped


def _holds(folder: Path) -> bool:
    """Whether anything lies in a folder: where runs wrote nothing down, no service waits to be started again."""
    try:
        return any(folder.iterdir())
    except FileNotFoundError:
        return False
    except OSError:
        return True


_OPTIONS = (
    click.option(
        "--stop-service",
        "stop_services",
        multiple=True,
        metavar="NAME",
        help="Stop this service for the time of the job, and start it again however the job ends, even if the computer "
        "fails; may be given several times. Off by default because it is not needed: a backup is made while everything "
        "runs, and is consistent all the same.",
    ),
    click.option("--before", metavar="COMMAND", default="", help="Run this first; if it fails, the job does not run."),
    click.option(
        "--after",
        metavar="COMMAND",
        default="",
        help="Run this at the end, however it ended: DATAMANAGER_RESULT says done, failed or cancelled.",
    ),
    click.option(
        "--hook-timeout",
        type=click.IntRange(1, 86_400),
        default=_HOOK_SECONDS,
        show_default=True,
        metavar="SECONDS",
        help="How long each of these commands may take.",
    ),
)
