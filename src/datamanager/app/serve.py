"""What the children of ``serve`` do, by role; the supervisor itself loads none of this."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from datamanager.app import around, notifications, planner, serve_restores, status, supervisor
from datamanager.app.context import Context
from datamanager.app.supervisor import ServeOptions
from datamanager.base.events import Event
from datamanager.config.home import make_private_folder
from datamanager.notify.courier import Courier
from datamanager.state.finding import Finding, Severity
from datamanager.system.locks import held

Say = Callable[[str], None]
_TELL_SECONDS = 60.0
_PATIENCE_SECONDS = 10.0
# One whose supervisor was killed may be on its way out.
_LOCK_SECONDS = 10.0


_DYING = Finding(
    "planner",
    Severity.NOT_PROTECTED,
    "",
    "Scheduled jobs may not run: the planner ended several times in a row; its log tells why.",
    "datamanager logs path",
)


def plan(context: Context, options: ServeOptions, say: Say, log: Callable[[Event], None]) -> None:
    """Be the planner until ``context.stop``, or until the supervisor says ``stop`` or is gone.

    Raises: Busy (another account's service plans for this home), ConfigurationError.
    """
    make_private_folder(context.home.run)
    lock = context.home.run / "planner.lock"
    with held(lock, context.stop, limit_seconds=_LOCK_SECONDS) as mine:
        if not mine:
            raise supervisor.another_serves(context.home)
        one = planner.Planner(context, options, say, log)
        threading.Thread(target=_obey, args=(context, one), name="supervisor", daemon=True).start()
        one.run()


def _obey(context: Context, one: planner.Planner) -> None:
    """Read what the supervisor writes; the end of it means that the supervisor is gone."""
    # Not through sys.stdin: its lock, held by a thread that waits, makes Python abort at its end.
    if os.read(0, 64).strip() != b"stop":
        # Its successor begins a planner of its own, which goes on with our jobs.
        one.forsaken = True
    context.stop.stop("serve: the service is about to end")


def restore_services(context: Context) -> int:
    """Start again what killed runs stopped; returns how many services do not run."""
    return len(around.restore_services(context, wait=True))


def finish_restores(context: Context) -> list[str]:
    """End restores in place that were cut off; returns a sentence for each. Raises: ConfigurationError, Cancelled."""
    return serve_restores.finish_restores(context)


def tell(context: Context) -> tuple[str, ...]:
    """Tell people that the planner dies again and again, and what else is wrong; returns troubles with channels.

    Raises: ConfigurationError, StateUnavailable (retryable), StateError.
    """
    with context.state() as state:
        found = status.gather(context, patience_seconds=_PATIENCE_SECONDS).verdict
        findings = list(found.findings)
        if not any(one.kind == _DYING.kind for one in findings):
            # It may just have been begun once more.
            findings.append(_DYING)
        told = notifications.tell(
            context,
            state,
            Courier(),
            findings=findings,
            verdict=found.sentence,
            wait_seconds=_TELL_SECONDS,
        )
    return told.warnings
