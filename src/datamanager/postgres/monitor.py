"""A second look at a running backup: which phase the server is in, and whether its WAL still has room.

The backup's slot keeps WAL, so a slow repository could fill the server's disk; and ``max_slot_wal_keep_size`` could cut
the slot off and end the backup. Both are watched once a second; at half of the room a warning, at four fifths a stop.
Source: ``docs/design.md``, PostgreSQL decisions 10 and 17; PostgreSQL documentation, views pg_stat_progress_basebackup
and pg_replication_slots.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass

import psycopg

from datamanager.base.errors import DataManagerError, NotFound, ServerUnfit
from datamanager.base.pipeline import StopToken
from datamanager.base.units import format_size
from datamanager.postgres.connection import ServerAddress, connect, hang_up

_LOOK_SECONDS = 1.0
_PATIENCE_SECONDS = 2.0  # a look takes milliseconds; one that does not end by then waits for a dead network
WARN_SHARE, STOP_SHARE = 0.5, 0.8

_PHASES = {
    "initializing": "starting",
    "waiting for checkpoint to finish": "waiting for the server's checkpoint",
    "estimating backup size": "estimating the size",
    "streaming database files": "copying",
    "waiting for wal archiving to finish": "waiting for the server's WAL archive",
    "transferring wal files": "copying the WAL",
}

_SLOT = """
select pg_wal_lsn_diff(case when pg_is_in_recovery() then pg_last_wal_receive_lsn() else pg_current_wal_lsn() end,
                       restart_lsn)::bigint,
       safe_wal_size, wal_status
  from pg_replication_slots where slot_name = %s
"""


@dataclass(frozen=True, slots=True)
class WalRoom:
    """WAL kept for the backup and how much more there is room for, in bytes; ``limit`` names what sets the bound."""

    kept: int
    room: int
    limit: str

    @property
    def share(self) -> float:
        return self.kept / max(1, self.kept + self.room)


class BackupMonitor:
    """Watches one backup from a thread and a connection of its own until ``close``.

    Args:
        data_directory: of the cluster, if it lies on this host; empty otherwise.
        on_phase: told of each phase the server enters.
        on_warning: told once when half of the room is used.
        on_danger: told with the error when the backup must stop.
        on_executed: told each statement the first time.
    """

    def __init__(
        self,
        address: ServerAddress,
        data_directory: str,
        on_phase: Callable[[str], None],
        on_warning: Callable[[str], None],
        on_danger: Callable[[DataManagerError], None],
        on_executed: Callable[[str], None] | None = None,
    ) -> None:
        self._address = address
        self._data_directory = data_directory
        self._on_phase = on_phase
        self._on_warning = on_warning
        self._on_danger = on_danger
        self._on_executed = on_executed
        self._told: set[str] = set()
        self._stop = StopToken()
        self._slot = ""
        self._connection: psycopg.Connection[tuple[object, ...]] | None = None
        self._thread = threading.Thread(target=self._watch, name="monitor", daemon=True)

    def watch(self, slot: str) -> None:
        """Begin, once the backup's slot exists; go on with another slot when the backup begins again."""
        self._slot = slot
        if self._thread.ident is None:
            self._thread.start()

    def _tell_once(self, statement: str) -> None:
        """The same look every second stands in the log once."""
        if self._on_executed is not None and statement not in self._told:
            self._told.add(statement)
            self._on_executed(statement)

    def close(self) -> None:
        self._stop.stop("the backup has ended")
        if self._thread.is_alive():
            self._thread.join(_PATIENCE_SECONDS)
        if self._thread.is_alive() and self._connection is not None:
            hang_up(self._connection)
        if self._thread.is_alive():
            self._thread.join()
        self._stop.close()

    def _watch(self) -> None:
        try:
            with self._connect() as connection:
                self._connection = connection
                self._look_until_stopped(connection)
        except (psycopg.Error, DataManagerError) as error:
            if not self._stop.stopping:
                self._on_warning(f"watch backup: the server's WAL cannot be watched ({str(error).splitlines()[0]})")

    def _connect(self) -> psycopg.Connection[tuple[object, ...]]:
        """A session in ``postgres``, or in template1 where that database was dropped. Raises: as ``connect``."""
        try:
            return connect(self._address, stop=self._stop, database="postgres", on_executed=self._tell_once)
        except NotFound:
            return connect(self._address, stop=self._stop, database="template1", on_executed=self._tell_once)

    def _look_until_stopped(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        phase, warned = "", False
        while not self._stop.wait(_LOOK_SECONDS):
            seen = self._phase(connection)
            if seen and seen != phase:
                phase = seen
                self._on_phase(phase)
            room = self._room(connection)
            if room is None:
                continue
            if room.share >= STOP_SHARE:
                self._on_danger(_danger(room))
                return
            if room.share >= WARN_SHARE and not warned:
                warned = True
                self._on_warning(
                    f"the server keeps {format_size(room.kept)} of WAL for this backup; "
                    f"{room.limit} leaves room for {format_size(room.room)}"
                )

    def _phase(self, connection: psycopg.Connection[tuple[object, ...]]) -> str:
        row = connection.execute(
            "select p.phase from pg_stat_progress_basebackup p join pg_replication_slots s on s.active_pid = p.pid"
            " where s.slot_name = %s",
            (self._slot,),
        ).fetchone()
        return _PHASES.get(str(row[0]), str(row[0])) if row and row[0] else ""

    def _room(self, connection: psycopg.Connection[tuple[object, ...]]) -> WalRoom | None:
        row = connection.execute(_SLOT, (self._slot,)).fetchone()
        if row is None or row[0] is None:
            return None
        kept, safe, status = int(str(row[0])), row[1], row[2]
        rooms = []
        if status == "lost":
            rooms.append(WalRoom(kept, 0, "max_slot_wal_keep_size"))
        elif safe is not None:
            rooms.append(WalRoom(kept, max(0, int(str(safe))), "max_slot_wal_keep_size"))
        if self._data_directory:
            try:
                free = shutil.disk_usage(f"{self._data_directory}/pg_wal").free
                rooms.append(WalRoom(kept, free, "the server's WAL volume"))
            except OSError:
                pass  # not on this host, or not for this account to see
        return max(rooms, key=lambda room: room.share, default=None)


def _danger(room: WalRoom) -> ServerUnfit:
    return ServerUnfit(
        f"back up cluster: the server keeps {format_size(room.kept)} of WAL for it and {room.limit} leaves only "
        f"{format_size(room.room)}; stopped before the server is in danger",
        hint="Use a faster repository, back up in a quieter hour, or raise the limit named.",
    )
