"""How far a receiver of WAL is. Apart from the receiver, so that whoever reads it needs nothing of a server."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from datamanager.base.units import Lsn

_UNKNOWN = Lsn(0)


@dataclass(frozen=True, slots=True)
class ReceiverState:
    """How far the receiver is. Positions are 0 while unknown; times RFC 3339 in UTC, empty before the first.

    Args: line, timeline - that are written; received, sealed - up to where bytes came and are in the archive; server -
        up to where the server was when last heard of; caught_up - everything up to there was received; complete_until
        - by the server's clock, all that it had written by then is in the archive; changed - when ``connected`` last
        changed; error - why there is no connection, or why the last one was lost.
    """

    connected: bool = False
    line: str = ""
    timeline: int = 0
    received: Lsn = _UNKNOWN
    sealed: Lsn = _UNKNOWN
    server: Lsn = _UNKNOWN
    sealed_at: str = ""
    caught_up: bool = False
    complete_until: str = ""
    synchronous: bool = False
    changed: str = ""
    error: str = ""

    def to_values(self) -> dict[str, Any]:
        """As JSON; ``from_values`` reads it."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: str(value) if isinstance(value, Lsn) else value for name, value in values.items()}

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> ReceiverState:
        """Raises: ValueError, KeyError, TypeError."""
        positions = {name: Lsn.parse(values[name]) for name in ("received", "sealed", "server")}
        return cls(**{one.name: values[one.name] for one in fields(cls)} | positions)

    @property
    def complete_time(self) -> datetime | None:
        """Until when the line is known to hold all that the server had written, by the server's clock."""
        return datetime.fromisoformat(self.complete_until) if self.complete_until else None

    @property
    def sealed_time(self) -> datetime | None:
        return datetime.fromisoformat(self.sealed_at) if self.sealed_at else None
