"""What people were told of, so that they are told once; and small facts that whoever tells must remember."""

from __future__ import annotations

import builtins
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, select, update

from datamanager.base.clock import Clock
from datamanager.base.errors import NotFound
from datamanager.state.connections import Database
from datamanager.state.model import Alert
from datamanager.state.rows import value_of
from datamanager.state.tables import alerts, facts


class AlertStore:
    """Thread-safe; every method raises StateUnavailable (retryable) and StateError."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def raise_(self, key: str, title: str, text: str, urgent: bool = False) -> Alert:
        """Note that something is so: the open alert of that key with its words as of now, else a new one."""
        now = self._clock.now()
        words = {"title": title, "text": text, "urgent": urgent, "last_seen": now}
        with self._database.writing("raise alert") as connection:
            statement = self._database.insert(alerts).values(
                key=key, first_seen=now, times_sent=0, acknowledged_by="", **words
            )
            connection.execute(
                statement.on_conflict_do_update(
                    index_elements=["key"], index_where=alerts.c.ended.is_(None), set_=words
                )
            )
            found = _open(connection, key)
        if found is None:
            raise NotFound(f"raise alert: {key} ended at the same moment")
        return found

    def clear(self, key: str) -> Alert | None:
        """Note that it is so no longer. Returns: the alert that ended by this; None when none was open."""
        with self._database.writing("clear alert") as connection:
            found = _open(connection, key)
            if found is None:
                return None
            ended = replace(found, ended=self._clock.now())
            open_ = update(alerts).where(alerts.c.key == key, alerts.c.ended.is_(None))
            return ended if connection.execute(open_.values(ended=ended.ended)).rowcount else None

    def open(self) -> builtins.list[Alert]:
        """Alerts of what is still so, oldest first."""
        return self._found(select(alerts).where(alerts.c.ended.is_(None)).order_by(alerts.c.number))

    def list(self, limit: int | None = 50) -> builtins.list[Alert]:
        """All alerts, newest first."""
        return self._found(select(alerts).order_by(alerts.c.number.desc()).limit(limit))

    def sent(self, key: str, time: datetime) -> None:
        """Note that people were told of the newest alert of that key. Raises: NotFound."""
        self._change(key, "note alert", sent=time, times_sent=alerts.c.times_sent + 1)

    def acknowledge(self, key: str, who: str) -> Alert:
        """Note that someone has taken notice. Raises: NotFound."""
        return self._change(key, "acknowledge alert", acknowledged=self._clock.now(), acknowledged_by=who)

    def value(self, name: str) -> str | None:
        """A small fact, as when the last digest went out; None when it was never set."""
        with self._database.reading("read fact") as connection:
            return connection.execute(select(facts.c.text).where(facts.c.name == name)).scalar_one_or_none()

    def set_value(self, name: str, text: str) -> None:
        with self._database.writing("save fact") as connection:
            self._database.put(connection, facts, {"name": name, "text": text})

    def _change(self, key: str, doing: str, **values: Any) -> Alert:
        newest = select(alerts.c.number).where(alerts.c.key == key).order_by(alerts.c.number.desc()).limit(1)
        with self._database.writing(doing) as connection:
            number = connection.execute(newest).scalar_one_or_none()
            if number is None:
                raise NotFound(
                    f"{doing}: there is none of {key!r}", hint="Run `datamanager status` to see what is open."
                )
            connection.execute(update(alerts).where(alerts.c.number == number).values(**values))
            changed = connection.execute(select(alerts).where(alerts.c.number == number)).mappings().one()
            return value_of(Alert, changed)

    def _found(self, query: Select[Any]) -> builtins.list[Alert]:
        with self._database.reading("list alerts") as connection:
            return [value_of(Alert, row) for row in connection.execute(query).mappings()]


def _open(connection: Connection, key: str) -> Alert | None:
    row = connection.execute(select(alerts).where(alerts.c.key == key, alerts.c.ended.is_(None))).mappings().first()
    return None if row is None else value_of(Alert, row)
