"""``datamanager serve``: run schedules and their jobs until stopped."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from datamanager.cli.command import Command
from datamanager.cli.lazy import lazy
from datamanager.cli.outcome import Outcome

if TYPE_CHECKING:
    from datamanager.app import serve as app
    from datamanager.app import supervisor
    from datamanager.base.events import Event
    from datamanager.cli.session import Session
else:
    app = lazy("datamanager.app.serve")
    supervisor = lazy("datamanager.app.supervisor")


@click.command(
    "serve",
    cls=Command,
    examples=[
        "datamanager serve",
        "datamanager serve --metrics-port 9187",
        "sudo datamanager serve --account postgres",
    ],
)
@click.option("--account", metavar="NAME", help="As root: the account that jobs run as, such as postgres.")
@click.option(
    "--metrics-port",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="Serve /metrics and /health on this port of 127.0.0.1.",
)
@click.option(
    "--grace",
    type=click.FloatRange(0, 3600),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long running jobs may go on when the service is stopped; then they are cancelled.",
)
@click.option("--role", type=click.Choice(["planner", "services", "restores", "tell"]), hidden=True)
@click.option("--hung-after", type=click.FloatRange(5, 3600), default=60.0, hidden=True)
@click.option("--settle", type=click.FloatRange(0, 3600), hidden=True)
def command(
    session: Session,
    account: str | None,
    metrics_port: int | None,
    grace: float,
    role: str | None,
    hung_after: float,
    settle: float | None,
) -> Outcome:
    """Run schedules and their jobs until stopped (Ctrl-C, SIGTERM).

    `datamanager service install` lets the operating system run it. Killed, it leaves nothing undone: the next one
    finishes restores in place that were cut off, starts the services that jobs had stopped, says which jobs were cut
    off, and catches up what was missed, once.
    """
    options = supervisor.ServeOptions(account, metrics_port, grace, hung_after, settle)

    def say(text: str) -> None:
        if session.log is not None:
            session.log.line("note", text)
        session.say(text)

    def log(event: Event) -> None:
        if session.log is not None:
            session.log.event(event)

    match role:
        case "planner":
            app.plan(session.context, options, say, log)
        case "services":
            down = app.restore_services(session.context)
            return Outcome(f"{down} services do not run." if down else "", {"down": down})
        case "restores":
            said = app.finish_restores(session.context)
            for text in said:
                say(text)
            return Outcome("", {"finished": len(said)})
        case "tell":
            return Outcome("", {}, warnings=app.tell(session.context))
        case _:
            supervisor.supervise(session.context, options, os.environ, say)
    return Outcome("", {}, log="The service was stopped.")
