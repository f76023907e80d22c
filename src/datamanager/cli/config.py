"""``datamanager config``: show and change the configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from datamanager.cli.command import noun
from datamanager.cli.lazy import lazy
from datamanager.cli.outcome import Outcome

if TYPE_CHECKING:
    from datamanager.app import options
    from datamanager.cli.session import Session
else:
    options = lazy("datamanager.app.options")

command = noun("config", "Show and change the configuration.")


@command.command("show", examples=["datamanager config show"])
def show(session: Session) -> Outcome:
    """Show every option in force, defaults included."""
    values = options.shown(session.context)
    lines = [f"{name} = {_text(value)}" for name, value in options.flat(values)]
    file = session.home.config_file
    if not any(values[section] for section in ("repositories", "clusters")):
        lines.append("Nothing is to be backed up yet. Begin with `datamanager repo init NAME URL`.")
    return Outcome("\n".join([f"# {file}", *lines]), {"file": str(file), "config": values}, log=f"Showed {file}.")


@command.command("get", examples=["datamanager config get clusters.office.compress_level"])
@click.argument("key")
def get(session: Session, key: str) -> Outcome:
    """Show one option in force. KEY is clusters.NAME.OPTION, repositories.NAME.OPTION or notify.OPTION."""
    value = options.get(session.context, key)
    return Outcome(_text(value), {"key": key, "value": value}, log="Showed one option.")


@command.command(
    "set",
    examples=[
        "datamanager config set clusters.office.compress_level 3",
        "datamanager config set repositories.usb.url /media/backup2/datamanager",
        'datamanager config set notify.organization "Dr. Miller, Family Practice"',
    ],
)
@click.argument("key")
@click.argument("value")
def set_(session: Session, key: str, value: str) -> Outcome:
    """Change one option; an empty VALUE brings back the default. Comments in the file stay."""
    options.change(session.context, key, value)
    now = options.get(session.context, key)
    return Outcome(f"{key} = {_text(now)}", {"key": key, "value": now}, log=f"{key} was changed.")


@command.command("export", examples=["datamanager config export > office.toml"])
def export(session: Session) -> Outcome:
    """Print the configuration file, checked. It holds no secret; key files are copied apart."""
    text = options.exported(session.context)
    return Outcome(text.rstrip("\n"), {"toml": text}, log="Exported the configuration.")


def _text(value: object) -> str:
    if value is None:
        return "(not set)"
    if isinstance(value, list):
        return ", ".join(str(one) for one in value)
    return str(value).lower() if isinstance(value, bool) else str(value)
