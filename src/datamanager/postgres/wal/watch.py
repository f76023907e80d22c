"""One look at what the archive of a server's WAL does to the server: its slot, and commits that wait for it.

Source: PostgreSQL documentation, views pg_replication_slots and pg_stat_activity (wait event SyncRep); 19.6.2
(synchronous_standby_names).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from datamanager.base.errors import NotFound
from datamanager.base.pipeline import StopToken
from datamanager.base.units import Lsn
from datamanager.postgres.connection import ServerAddress, cancelled_by, connect, server_errors
from datamanager.postgres.wal.slot import SlotKeeper, SlotState

SYNCHRONOUS = "synchronous_standby_names"

_LOOK = (
    "SELECT (SELECT system_identifier FROM pg_catalog.pg_control_system()),"
    " (CASE WHEN pg_is_in_recovery() THEN coalesce(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())"
    " ELSE pg_current_wal_flush_lsn() END)::text,"
    " current_setting('synchronous_standby_names'),"
    " (SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE wait_event = 'SyncRep')"
)


@dataclass(frozen=True, slots=True)
class WalWatch:
    """A server at one moment.

    Args:
        position: up to where its WAL is on its own disk.
        synchronous_standbys: ``synchronous_standby_names`` as it is in force.
        waiting: commits that wait for a synchronous standby, as far as the role may see them.
        slot: None when there is none of that name; limit - of all slots, in bytes, None for no limit.
        former: others that were asked for and that the server has.
    """

    system: int
    position: Lsn
    synchronous_standbys: str
    waiting: int
    slot: SlotState | None
    limit: int | None
    former: tuple[SlotState, ...] = ()

    def waits_for(self, name: str) -> bool:
        """Whether commits wait for the receiver of that name."""
        return names_standby(self.synchronous_standbys, name)


def names_standby(setting: str, name: str) -> bool:
    """Whether ``synchronous_standby_names`` names a standby."""
    return name in re.split(r"[^a-z0-9_$]+", setting.lower())


def watch_wal(
    address: ServerAddress, slot: str, stop: StopToken, on_sql: Callable[[str], None], former: Collection[str] = ()
) -> WalWatch:
    """Ask the server.

    Args: former - names of slots to look at, too.
    Raises: as ``connect``; ServerUnfit, when a slot's name is taken.
    """
    try:
        connection = connect(address, stop=stop, on_executed=on_sql)
    except NotFound:
        connection = connect(address, stop=stop, on_executed=on_sql, database="template1")
    with connection, cancelled_by(stop, connection):
        keeper = SlotKeeper(connection, slot)
        state, limit = keeper.state(), keeper.limit()
        others = [SlotKeeper(connection, one).state() for one in former if one != slot]
        with server_errors("look at WAL"):
            ((system, position, standbys, waiting),) = connection.execute(_LOOK.encode()).fetchall()
    left = tuple(one for one in others if one is not None)
    return WalWatch(int(str(system)), Lsn.parse(str(position)), str(standbys), int(str(waiting)), state, limit, left)


def system_of(address: ServerAddress, stop: StopToken, on_sql: Callable[[str], None]) -> int:
    """The system identifier of the server that answers. Raises: as ``connect``."""
    try:
        connection = connect(address, stop=stop, on_executed=on_sql)
    except NotFound:
        connection = connect(address, stop=stop, on_executed=on_sql, database="template1")
    with connection, cancelled_by(stop, connection), server_errors("ask who the server is"):
        ((system,),) = connection.execute(b"SELECT system_identifier FROM pg_catalog.pg_control_system()").fetchall()
    return int(str(system))
