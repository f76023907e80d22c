"""``datamanager services``: services that are stopped around a job, and started again.

Not ``datamanager service``, which is this program's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from datamanager.base.errors import NotFound, ServiceError
from datamanager.cli.command import noun
from datamanager.cli.lazy import lazy
from datamanager.cli.outcome import Outcome

if TYPE_CHECKING:
    from datamanager.app import around, described_services
    from datamanager.cli.session import Session
    from datamanager.jobs.services_around import ServiceDown
else:
    around = lazy("datamanager.app.around")
    described_services = lazy("datamanager.app.described_services")

command = noun(
    "services",
    "Services that are stopped around a job, and started again (--stop-service of the job's command).",
)


@command.command("list", examples=["datamanager services list", "datamanager services list --all --json"])
@click.option("--all", "everything", is_flag=True, help="Also those of this computer, which need no description.")
def list_(session: Session, everything: bool) -> Outcome:
    """List the services that are described here, and those that a job stopped and that do not run again."""
    found, warnings = described_services.listed(session.context, everything=everything)
    down = around.services_down(session.context)
    lines = [f"{one.name}: {one.state}" + (f" ({one.title})" if one.title else "") for one in found]
    if not found and not everything:
        lines = ["No service is described here; `datamanager services list --all` shows those of this computer."]
    lines += [_sentence(one) for one in down]
    data = {
        "services": [{"name": one.name, "state": one.state.value, "title": one.title} for one in found],
        "down": [_fields(one) for one in down],
    }
    return Outcome("\n".join(lines), data, warnings)


@command.command(
    "add",
    examples=[
        "datamanager services add exchange --stop '/opt/exchange/exchange stop' --start '/opt/exchange/exchange start' "
        "--state '/opt/exchange/exchange status'",
    ],
)
@click.argument("name")
@click.option("--stop", required=True, metavar="COMMAND", help="Stops it, and returns when it has stopped.")
@click.option("--start", required=True, metavar="COMMAND", help="Starts it, and returns when it runs.")
@click.option(
    "--state", required=True, metavar="COMMAND", help="Ends with 0 while it runs, with 1, 2 or 3 while it does not."
)
@click.option(
    "--limit",
    type=click.IntRange(1, 3600),
    default=90,
    show_default=True,
    metavar="SECONDS",
    help="How long a start or a stop may take.",
)
def add(session: Session, name: str, stop: str, start: str, state: str, limit: int) -> Outcome:
    """Describe a service that this computer does not list itself, or describe it anew.

    No shell reads the commands; a program is named by its whole path or stands on PATH.
    """
    now = described_services.add(session.context, name, stop=stop, start=start, state=state, limit_seconds=limit)
    return Outcome(f"Service {name} is described; now it is {now.state}.", {"name": name, "state": now.state.value})


@command.command("remove", examples=["datamanager services remove exchange"])
@click.argument("name")
def remove(session: Session, name: str) -> Outcome:
    """Forget the description of a service. The service itself stays as it is."""
    described_services.remove(session.context, name)
    return Outcome(f"Service {name} is no longer described.", {"name": name})


@command.command("restore", examples=["datamanager services restore"])
def restore(session: Session) -> Outcome:
    """Start now what ended jobs stopped and nobody started again. Nothing is started that did not run before."""
    before = around.services_down(session.context)
    down = around.restore_services(session.context, wait=True, even_if_tried=True)
    left = {(one.name, one.run) for one in down}
    started = sorted({one.name for one in before if (one.name, one.run) not in left})
    data = {"started": started, "down": [_fields(one) for one in down]}
    text = f"Run again: {', '.join(started)}." if started else "No service waits to be started again."
    if not down:
        return Outcome(text, data)
    names = ", ".join(one.name or "unknown" for one in down)
    failure = ServiceError(
        f"start services again: not running: {names}",
        hint="Look into their logs, mend them, and run this again; `datamanager services forget NAME` gives one up.",
    )
    return Outcome("\n".join(_sentence(one) for one in down), data, failure=failure)


@command.command("forget", examples=["datamanager services forget exchange"])
@click.argument("name")
def forget(session: Session, name: str) -> Outcome:
    """Give up starting a service again that a job had stopped; nobody is alarmed about it any more."""
    if not around.forget_service(session.context, name):
        raise NotFound(
            f"forget service {name}: no job owes its start", hint="Run `datamanager services list` to see those owed."
        )
    return Outcome(f"Service {name} will not be started again by itself.", {"name": name})


def _sentence(one: ServiceDown) -> str:
    if one.since is None:
        return f"What was stopped is not known: {one.error}."
    why = one.error or "nobody has tried yet; `datamanager services restore` does"
    return f"{one.name} was stopped by job {one.run} at {one.since:%Y-%m-%d %H:%M} UTC and does not run again: {why}."


def _fields(one: ServiceDown) -> dict[str, object]:
    return {
        "name": one.name,
        "job": one.run,
        "since": one.since and one.since.isoformat(),
        "error": one.error,
        "tried": one.tried and one.tried.isoformat(),
    }
