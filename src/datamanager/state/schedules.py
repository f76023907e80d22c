"""Commands that run by themselves."""

from __future__ import annotations

import builtins
from datetime import datetime
from typing import Any

from sqlalchemy import Select, delete, func, select, update

from datamanager.base.errors import NotFound
from datamanager.state.connections import Database
from datamanager.state.model import Schedule
from datamanager.state.rows import row_of_schedule, schedule_of
from datamanager.state.tables import schedules


class ScheduleStore:
    """Thread-safe; every method raises StateUnavailable (retryable) and StateError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, name: str) -> Schedule:
        """Raises: NotFound."""
        found = self._found(select(schedules).where(schedules.c.name == name))
        if not found:
            raise _missing("find", name)
        return found[0]

    def list(self) -> builtins.list[Schedule]:
        """All of them, by name."""
        return self._found(select(schedules).order_by(schedules.c.name))

    def put(self, schedule: Schedule) -> None:
        """Write a schedule whole, in place of the one of that name."""
        with self._database.writing("save schedule") as connection:
            self._database.put(connection, schedules, row_of_schedule(schedule))

    def remove(self, name: str) -> None:
        """Raises: NotFound."""
        with self._database.writing("remove schedule") as connection:
            if not connection.execute(delete(schedules).where(schedules.c.name == name)).rowcount:
                raise _missing("remove", name)

    def due(self, now: datetime) -> builtins.list[Schedule]:
        """Enabled ones whose next moment has come, the longest overdue first."""
        query = select(schedules).where(schedules.c.enabled, schedules.c.next_due <= now)
        return self._found(query.order_by(schedules.c.next_due, schedules.c.name))

    def next_due(self) -> datetime | None:
        """The next moment of all that are enabled."""
        query = select(func.min(schedules.c.next_due, type_=schedules.c.next_due.type)).where(schedules.c.enabled)
        with self._database.reading("list schedules") as connection:
            found: datetime | None = connection.execute(query).scalar_one()
            return found

    def dealt_with(
        self,
        name: str,
        last_due: datetime | None,
        next_due: datetime | None,
        caught_up: int,
        *,
        of: Schedule | None = None,
    ) -> None:
        """Note how far a schedule has come; nothing happens when it was removed meanwhile.

        Args: of - what that was decided of; nothing happens when it was changed since.
        """
        values = {"last_due": last_due, "next_due": next_due, "caught_up": caught_up}
        same = [schedules.c.name == name]
        if of is not None:
            same += [schedules.c.changed == of.changed, schedules.c.next_due.is_not_distinct_from(of.next_due)]
        with self._database.writing("save schedule") as connection:
            connection.execute(update(schedules).where(*same).values(**values))

    def _found(self, query: Select[Any]) -> builtins.list[Schedule]:
        with self._database.reading("list schedules") as connection:
            return [schedule_of(row) for row in connection.execute(query).mappings()]


def _missing(verb: str, name: str) -> NotFound:
    return NotFound(
        f"{verb} schedule: none is named {name!r}", hint="Run `datamanager schedule list` to see those there are."
    )
