"""``datamanager restore finish`` and ``drop``: how a restore ends that waits at its moment to be looked at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from datamanager.cli.command import Command
from datamanager.cli.lazy import lazy
from datamanager.cli.outcome import Outcome

if TYPE_CHECKING:
    from datamanager.app import paused
    from datamanager.cli import restore_text
    from datamanager.cli.session import Session
else:
    paused = lazy("datamanager.app.paused")
    restore_text = lazy("datamanager.cli.restore_text")

_directory = click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")


@click.command("finish", cls=Command, examples=["datamanager restore finish /srv/restored"])
@_directory
@click.option("--start", is_flag=True, help="Start a server on it, cut off from archive, network and other servers.")
@click.option("--port", type=click.IntRange(1, 65535), default=5433, show_default=True, help="With --start: its port.")
def finish(session: Session, directory: Path, start: bool, port: int) -> Outcome:
    """End a restore that was made with --pause: promote the server that waits on DIR, and stop it.

    DIR is then a complete cluster on a timeline of its own.
    """
    done = paused.finish(session.context, directory, start=start, port=port)
    text = (
        f"The restore in {done.paused.target} is finished: it ended at {done.recovered.end} of timeline "
        f"{done.paused.timeline}, and goes on as timeline {done.recovered.timeline}."
    )
    data = {"target": done.paused.target, "recovered": restore_text.recovered_fields(done.recovered)}
    if done.started is not None:
        text += restore_text.server_sentences(done.started)
        data["server"] = restore_text.server_fields(done.started)
    return Outcome(text, data)


@click.command("drop", cls=Command, examples=["datamanager restore drop /srv/restored"])
@_directory
def drop(session: Session, directory: Path) -> Outcome:
    """Give up a restore that was made with --pause: end the server that waits on DIR, and delete what was restored."""
    dropped = paused.drop(session.context, directory)
    return Outcome(f"The restore in {dropped.target} was deleted.", {"target": dropped.target})
