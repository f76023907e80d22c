"""``datamanager logs``: where the logs of all runs are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datamanager.cli.command import noun
from datamanager.cli.outcome import Outcome

if TYPE_CHECKING:
    from datamanager.cli.session import Session

command = noun("logs", "Where the logs of all runs are.")


@command.command("path", examples=["datamanager logs path"])
def path(session: Session) -> Outcome:
    """Print the folder of the logs. The newest ten of each job are kept, or as many as `logs.keep` says."""
    folder = session.home.logs
    return Outcome(str(folder), {"path": str(folder)})
