"""How busy each server is, hour by hour of the week, so that a quiet hour can be suggested (R85).

Once an hour the server is asked how many transactions it has ended; what came in since the hour before belongs to it.
An hour in which nobody asked, in which the server was restarted or its statistics were reset, says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from datamanager.app.addresses import address_of
from datamanager.app.context import Context
from datamanager.base.errors import DataManagerError
from datamanager.postgres.connection import connect, server_errors
from datamanager.state.database import State

# A look is at most so late; else it speaks of another hour.
_LATE_SECONDS = 300.0
_HOUR_SECONDS = 3600.0
# Source: PostgreSQL documentation, pg_stat_database.
_QUERY = """
    SELECT sum(xact_commit + xact_rollback)::float8,
           coalesce(max(stats_reset), 'epoch')::text || pg_postmaster_start_time()::text
    FROM pg_stat_database
"""


@dataclass(frozen=True, slots=True)
class _Count:
    """Args: elapsed - by the boot clock; epoch - changes when counting begins anew."""

    elapsed: float
    transactions: float
    epoch: str


class ActivitySampler:
    """Remembers the last counts of each cluster. Not thread-safe."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._last: dict[str, _Count] = {}
        self._hour: datetime | None = None

    def look(self, state: State) -> None:
        """Called at least every few minutes; asks once an hour. Raises: StateUnavailable (retryable), StateError."""
        now = self._context.clock.now()
        hour = now.replace(minute=0, second=0, microsecond=0)
        if hour == self._hour or (now - hour).total_seconds() > _LATE_SECONDS:
            return
        self._hour = hour
        for name in self._context.config().clusters:
            try:
                count = self._count(name)
            except DataManagerError:
                self._context.stop.check()
                self._last.pop(name, None)
                continue
            before = self._last.get(name)
            self._last[name] = count
            if before is not None and before.epoch == count.epoch:
                passed = count.elapsed - before.elapsed
                if abs(passed - _HOUR_SECONDS) <= _LATE_SECONDS:
                    ended = (hour.weekday() * 24 + hour.hour - 1) % 168
                    state.known.add_activity(name, ended, max(count.transactions - before.transactions, 0.0))

    def _count(self, cluster: str) -> _Count:
        """Raises: ServerError, ConfigurationError, Cancelled."""
        context = self._context
        address = address_of(context.cluster(cluster))
        connection = connect(address, stop=context.stop, on_executed=context.executed)
        with connection, server_errors("look at activity"):
            row = connection.execute(_QUERY).fetchone()
        if row is None or row[0] is None:
            return _Count(context.clock.elapsed(), 0.0, "")
        return _Count(context.clock.elapsed(), float(str(row[0])), str(row[1]))
