"""``datamanager service``: let the operating system begin ``serve``, so that schedules run with nobody signed in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from datamanager.cli.command import noun
from datamanager.cli.lazy import lazy
from datamanager.cli.outcome import Outcome

if TYPE_CHECKING:
    from datamanager.app import audit
    from datamanager.app import service as app
    from datamanager.cli.session import Session
    from datamanager.config import home
    from datamanager.system import installation
else:
    audit = lazy("datamanager.app.audit")
    app = lazy("datamanager.app.service")
    home = lazy("datamanager.config.home")
    installation = lazy("datamanager.system.installation")

command = noun("service", "Run schedules with nobody signed in: a service of this computer.")

_ROOT = click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False, exists=True, resolve_path=True),
    metavar="FOLDER",
    help="The system below FOLDER, such as an image, instead of the running one.",
)
_OF_USER = click.option("--user", "of_user", is_flag=True, help="A service of this account alone, without root.")
_DRY_RUN = click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")


@command.command(
    "install",
    examples=[
        "sudo datamanager service install",
        "sudo datamanager service install --account postgres --metrics-port 9187",
        "datamanager service install --dry-run",
        "datamanager service install --user",
    ],
)
@click.option("--account", metavar="NAME", help="The account that jobs run as; PostgreSQL's own unless given.")
@_OF_USER
@click.option(
    "--metrics-port",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="Serve /metrics and /health on this port of 127.0.0.1.",
)
@_ROOT
@click.option("--no-start", is_flag=True, help="Let it begin with the next start of the computer.")
@_DRY_RUN
def install(
    session: Session,
    account: str | None,
    of_user: bool,
    metrics_port: int | None,
    root: Path | None,
    no_start: bool,
    dry_run: bool,
) -> Outcome:
    """Install the service, or install it anew with other options, and start it.

    For the whole computer a small supervisor runs as root; jobs run as the account of PostgreSQL. The configuration
    that this account had in its own folder is copied to where every account finds it.
    """
    named = os.environ.get(home.VARIABLE, "")
    options = app.ServiceOptions(
        account=account,
        named_home=Path(named) if named else None,
        system_home=home.system_home(os.environ),
        metrics_port=metrics_port,
        root=root,
        of_user=of_user,
        start=not no_start,
    )
    installer = installation.service_installer(root, of_user=of_user, work_folder=session.home.state)
    plan = app.plan_installation(session.context, installer, options)
    if dry_run:
        return _shown(plan.steps, plan.warnings)
    installation.apply(plan.steps, "install service", session.context.executed)
    app.note_installed(session.context, options, plan.account)
    lines = ["The service is installed" + (" and runs." if root is None and not no_start else ".")]
    if of_user:
        lines.append("It begins when this account signs in; `loginctl enable-linger` lets it begin with the computer.")
    data = {"installed": True, "account": plan.account, "steps": [step.describe() for step in plan.steps]}
    return Outcome("\n".join(lines), data, warnings=plan.warnings)


@command.command("remove", examples=["sudo datamanager service remove", "datamanager service remove --dry-run"])
@_OF_USER
@_ROOT
@_DRY_RUN
def remove(session: Session, of_user: bool, root: Path | None, dry_run: bool) -> Outcome:
    """End the service and take it away. Configuration, schedules, history and backups stay."""
    installer = installation.service_installer(root, of_user=of_user, work_folder=session.home.state)
    steps = installer.remove()
    if dry_run:
        return _shown(steps, ())
    installation.apply(steps, "remove service", session.context.executed)
    if steps and root is None:
        audit.audited(session.context, "service removed", "datamanager")
    text = "The service is gone; schedules do not run by themselves any more." if steps else "There is no service."
    return Outcome(text, {"removed": bool(steps), "steps": [step.describe() for step in steps]})


@command.command("status", examples=["datamanager service status"])
@_OF_USER
@_ROOT
def status(session: Session, of_user: bool, root: Path | None) -> Outcome:
    """Say whether the service is installed and whether its planner lives."""
    installer = installation.service_installer(root, of_user=of_user, work_folder=session.home.state)
    found = app.report(session.context, installer)
    service = found.service
    if service.installed:
        words = ["installed" if service.file is None else f"installed ({service.file})"]
        words += (
            [] if service.enabled is None else ["begins with the computer" if service.enabled else "does not begin"]
        )
        words += [] if service.running is None else ["runs" if service.running else "does not run"]
        text = f"Service: {', '.join(words)}."
    else:
        text = "Service: not installed. `datamanager service install` does it."
    planner = "does not run"
    if found.planner_alive:
        planner = "does not answer" if found.planner_silent else "runs"
    data = {
        "installed": service.installed,
        "enabled": service.enabled,
        "running": service.running,
        "file": None if service.file is None else str(service.file),
        "planner_alive": found.planner_alive,
        "planner_silent": found.planner_silent,
    }
    return Outcome(f"{text}\nPlanner: {planner}.", data)


def _shown(steps: installation.InstallationPlan, warnings: tuple[str, ...]) -> Outcome:
    """What a dry run prints: each step, and the whole text of what would be written."""
    lines = ["Nothing would be done."] if not steps else ["This would be done, in this order:"]
    files = []
    for step in steps:
        lines.append(f"  {step.describe()}")
        if isinstance(step, installation.WriteFile):
            files += [f"\n# {step.path}", installation.readable(step.data).rstrip("\n")]
    return Outcome(
        "\n".join([*lines, *files]),
        {"dry_run": True, "steps": [step.describe() for step in steps]},
        warnings=warnings,
        log="Showed what would be done.",
    )
