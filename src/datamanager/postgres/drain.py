"""Who is connected to a server that is about to stop, and a polite wait for them to leave (requirement R79).

Nobody is ended here: ``pg_ctl stop -m fast`` refuses new sessions and ends the rest within moments.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from datamanager.base.errors import ServerError
from datamanager.base.pipeline import StopToken
from datamanager.postgres.connection import ServerAddress, connect, server_errors

_LOOK_SECONDS = 0.5
_QUESTION = (
    "SELECT pid, coalesce(usename, ''), coalesce(datname, ''), coalesce(application_name, ''),"
    " coalesce(client_addr::text, 'local'), coalesce(state, '') FROM pg_stat_activity"
    # Our own sessions go by themselves; the one before this may still be on its way out.
    " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    " AND application_name NOT LIKE 'datamanager%' ORDER BY backend_start"
)


@dataclass(frozen=True, slots=True)
class Session:
    """Someone who is connected. ``state`` is the server's word, such as ``idle in transaction``; empty when unknown."""

    pid: int
    role: str
    database: str
    application: str
    client: str
    state: str

    def __str__(self) -> str:
        who = f"{self.role or 'somebody'} in {self.database or 'no database'}"
        return f"{who} ({', '.join(part for part in (self.application, self.client, self.state) if part)})"


def connected(address: ServerAddress, stop: StopToken) -> list[Session]:
    """Client sessions but those of this program, oldest first. Raises: ServerError, Cancelled."""
    with connect(address, stop=stop) as connection, server_errors("list sessions"):
        rows = connection.execute(_QUESTION).fetchall()
    return [Session(int(str(row[0])), *(str(value) for value in row[1:])) for row in rows]


def wait_until_alone(
    address: ServerAddress, seconds: float, stop: StopToken, told: Callable[[list[Session]], None]
) -> list[Session]:
    """Wait up to ``seconds`` for the others to leave by themselves.

    Args: told - is given who is left, at first and whenever that changes.
    Returns: who is left at the end; nobody also where the server cannot be asked. Raises: Cancelled.
    """
    left: list[Session] = []
    before: list[int] | None = None
    waited = 0.0
    with contextlib.suppress(ServerError):
        while True:
            left = connected(address, stop)
            if [one.pid for one in left] != before:
                told(left)
                before = [one.pid for one in left]
            if not left or waited >= seconds:
                break
            if stop.wait(min(_LOOK_SECONDS, seconds - waited)):
                stop.check()
            waited += _LOOK_SECONDS
    return left
