"""The permanent slot of a receiver: the server keeps WAL for it, up to a limit without which none is made.

Nobody looks at the server's disk while this program is switched off, so ``max_slot_wal_keep_size`` must be set first:
beyond it the server gives the slot up (``lost``), and the archive has a gap instead of the server a full disk.
Source: PostgreSQL documentation, view pg_replication_slots; 19.6.1 (max_slot_wal_keep_size); decisions 10 and 12.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import psycopg

from datamanager.base.errors import NotFound, ServerUnfit
from datamanager.base.pipeline import StopToken
from datamanager.base.units import GIB, MIB, Lsn, parse_size
from datamanager.postgres.connection import ServerAddress, cancelled_by, connect, server_errors
from datamanager.postgres.settings import SettingChange, alter, plan_settings, to_run
from datamanager.postgres.wal.names import SEGMENT, segment_place

LIMIT = "max_slot_wal_keep_size"
SLOT_PREFIX = "datamanager_"
_USUAL, _MOST = 10 * GIB, 50 * GIB
_LONGEST_NAME = 63
_UNLIMITED = "-1"

_SLOT = (
    "SELECT slot_type, active, active_pid, restart_lsn::text, wal_status, safe_wal_size,"
    " pg_wal_lsn_diff(CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_lsn()"
    " ELSE coalesce(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) END, restart_lsn)::bigint"
    " FROM pg_catalog.pg_replication_slots WHERE slot_name = %s"
)


@dataclass(frozen=True, slots=True)
class SlotState:
    """A slot as the server shows it.

    Args: restart_lsn - from there on the server keeps its WAL; retained - how many bytes that is; wal_status -
        reserved, extended, unreserved or lost; safe_wal_size - how many more may be written before it is lost, None
        without a limit.
    """

    name: str
    active: bool
    active_pid: int | None
    restart_lsn: Lsn | None
    wal_status: str
    safe_wal_size: int | None
    retained: int

    @property
    def lost(self) -> bool:
        """Whether it keeps nothing any more and never will."""
        return self.restart_lsn is None or self.wal_status == "lost"


def slot_name(cluster: str, repository: bytes) -> str:
    """The slot of one cluster and one repository: ``datamanager_clinic_1f2e3d4c``, at most 63 characters."""
    plain = re.sub(r"[^a-z0-9_]", "_", cluster.lower())
    digest = hashlib.blake2b(cluster.encode() + b"\0" + repository, digest_size=4).hexdigest()
    return f"{SLOT_PREFIX}{plain}"[: _LONGEST_NAME - 9] + f"_{digest}"


def receiver_name(cluster: str) -> str:
    """The application name of a cluster's receiver, as in ``datamanager_clinic``."""
    return "datamanager_" + re.sub(r"[^a-z0-9_]", "_", cluster.lower())[: _LONGEST_NAME - 12]


class SlotKeeper:
    """Looks after one slot over an SQL session of its own. Not thread-safe."""

    def __init__(self, connection: psycopg.Connection[Any], name: str) -> None:
        self._connection = connection
        self.name = name

    @classmethod
    @contextlib.contextmanager
    def opened(
        cls, address: ServerAddress, name: str, stop: StopToken, on_sql: Callable[[str], None]
    ) -> Iterator[SlotKeeper]:
        """Raises: as ``connect``."""
        try:
            connection = connect(address, stop=stop, on_executed=on_sql)
        except NotFound:
            connection = connect(address, stop=stop, on_executed=on_sql, database="template1")
        with connection, cancelled_by(stop, connection):
            yield cls(connection, name)

    def state(self) -> SlotState | None:
        """None when there is no such slot. Raises: ServerError, Cancelled; ServerUnfit, when the name is taken."""
        rows = self._run(_SLOT, self.name)
        if not rows:
            return None
        ((kind, active, pid, restart, status, safe, retained),) = rows
        if kind != "physical":
            raise ServerUnfit(
                f"use slot {self.name}: it is not a physical one",
                hint=f"Run `SELECT pg_drop_replication_slot('{self.name}');` if nothing needs it.",
            )
        return SlotState(
            self.name,
            bool(active),
            pid,
            Lsn.parse(restart) if restart else None,
            status or "lost",
            safe,
            max(0, retained or 0),
        )

    def create(self) -> SlotState:
        """Make the slot; it keeps the WAL from the last checkpoint's start on.

        Raises: ServerUnfit, when the server limits no slot's WAL, or has no slot to give; RightMissing, Cancelled.
        """
        if self.limit() is None:
            raise ServerUnfit(
                f"make slot {self.name}: {LIMIT} is not set, so WAL that is not fetched would fill the server's disk",
                hint=f"Run {how_to_limit()} on the server as a superuser; it needs no restart.",
            )
        self._run("SELECT pg_catalog.pg_create_physical_replication_slot(%s, true)", self.name)
        made = self.state()
        if made is None or made.restart_lsn is None:
            raise ServerUnfit(f"make slot {self.name}: the server reserved no WAL for it")
        return made

    def drop(self) -> bool:
        """Remove the slot; false when there was none. Raises: ServerUnfit, when it is in use; RightMissing."""
        if self.state() is None:
            return False
        self._run("SELECT pg_catalog.pg_drop_replication_slot(%s)", self.name)
        return True

    def limit(self) -> int | None:
        """How much WAL a slot may keep, in bytes; None for no limit."""
        ((shown,),) = self._run(f"SELECT pg_catalog.current_setting('{LIMIT}')")
        return _limit_bytes(str(shown))

    def oldest(self, timeline: int, segment_size: int) -> Lsn | None:
        """Where the oldest segment of a timeline that lies on the server begins; None when it may not be seen."""
        ((may,),) = self._run("SELECT has_function_privilege('pg_catalog.pg_ls_waldir()', 'EXECUTE')")
        if not may:
            return None
        names = [name for (name,) in self._run("SELECT name FROM pg_catalog.pg_ls_waldir() ORDER BY name")]
        for name in names:
            if SEGMENT.match(name) and int(name[:8], 16) == timeline:
                return segment_place(name, segment_size)[1]
        return None

    def _run(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        with server_errors(f"look after slot {self.name}"):
            cursor = self._connection.execute(statement.encode(), parameters or None)
            return cursor.fetchall() if cursor.description is not None else []


def limit_for(free_bytes: int | None) -> str:
    """The limit to propose: a quarter of what is free where WAL lies, at most 50 GB; 10 GB where that is unknown."""
    wanted = _USUAL if free_bytes is None else min(_MOST, free_bytes // 4)
    return f"{wanted // GIB}GB" if wanted >= GIB else f"{max(1, wanted // MIB)}MB"


def plan_limit(
    address: ServerAddress, stop: StopToken, on_sql: Callable[[str], None], data_directory: str = ""
) -> list[SettingChange]:
    """The change that a slot needs first; empty where a limit is set already. Nothing is changed.

    Args: data_directory - of the cluster, if it lies on this host.
    Raises: RightMissing, ServerUnfit (not to be changed from here), the hint naming what to run; as ``connect``.
    """
    with SlotKeeper.opened(address, LIMIT, stop, on_sql) as keeper:
        if keeper.limit() is not None:
            return []
    return plan_settings(address, stop, on_sql, {LIMIT: limit_for(_free_bytes(data_directory))})


def how_to_limit() -> str:
    """The statements for a person."""
    return to_run([alter(LIMIT, limit_for(None))])


def _limit_bytes(shown: str) -> int | None:
    return None if shown == _UNLIMITED else parse_size(shown)


def _free_bytes(data_directory: str) -> int | None:
    if not data_directory:
        return None
    try:
        return psutil.disk_usage(f"{data_directory}/pg_wal").free
    except OSError:
        return None  # not on this host, or not for this account to see
