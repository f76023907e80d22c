"""Who did what: a list to which entries are only ever added, each covering the one before by its hash.

An entry that was changed, removed, put in or moved breaks the chain from there on, and one cut off at the end misses
the head that is kept beside it. Whoever may write to the database can write the whole chain anew: to notice that too,
keep the head that ``verify`` gives somewhere else.
"""

from __future__ import annotations

import builtins
import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC
from typing import Any

from sqlalchemy import Connection, Text, insert, select, type_coerce, update

from datamanager.base.clock import Clock
from datamanager.base.errors import IntegrityError
from datamanager.state.columns import canonical_json, storable
from datamanager.state.connections import Database
from datamanager.state.model import AuditEntry
from datamanager.state.rows import row_of, value_of
from datamanager.state.tables import audit, audit_head

# What the first entry covers.
_NO_DIGEST = "0" * 64
_HEAD = 1
_AT_ONCE = 1000
_JSON = ("before", "after")


class AuditStore:
    """Thread-safe; every method raises StateUnavailable (retryable) and StateError."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def append(
        self,
        *,
        who: str,
        origin: str,
        action: str,
        target: str,
        before: Any = None,
        after: Any = None,
        reason: str = "",
    ) -> AuditEntry:
        """Add an entry under the next number. Args: before, after - what JSON can say; other values become text."""
        with self._database.writing("append to audit") as connection:
            number, digest = _head(connection, locked=True)
            entry = AuditEntry(
                number=number + 1,
                time=self._clock.now().astimezone(UTC),
                who=storable(who),
                origin=storable(origin),
                action=storable(action),
                target=storable(target),
                before=json.loads(canonical_json(before)),
                after=json.loads(canonical_json(after)),
                reason=storable(reason),
            )
            entry = replace(entry, digest=_digest(entry, digest))
            connection.execute(insert(audit).values(**row_of(entry)))
            connection.execute(
                update(audit_head).where(audit_head.c.id == _HEAD).values(number=entry.number, digest=entry.digest)
            )
            return entry

    def list(self, limit: int | None = 50, before_number: int | None = None) -> builtins.list[AuditEntry]:
        """Entries, newest first. Args: before_number - only those with a smaller number; limit - None for all."""
        query = select(audit).order_by(audit.c.number.desc()).limit(limit)
        if before_number is not None:
            query = query.where(audit.c.number < before_number)
        with self._database.reading("list audit") as connection:
            return [_entry(row) for row in connection.execute(query).mappings()]

    def verify(self) -> tuple[int, str]:
        """Check every entry against the one before. Returns: how many there are, and the digest of the newest.

        Raises: IntegrityError, which names the first entry that is not as it was written.
        """
        number, digest = 0, _NO_DIGEST
        columns = [type_coerce(one, Text).label(one.name) if one.name in _JSON else one for one in audit.c]
        with self._database.reading("verify audit") as connection:
            head = _head(connection)
            streaming = connection.execution_options(yield_per=_AT_ONCE)
            try:
                with streaming.execute(select(*columns).order_by(audit.c.number)) as rows:
                    for row in rows.mappings():
                        digest = _checked(row, number + 1, digest)
                        number += 1
            except ValueError:
                raise _broken(number + 1, _CHANGED) from None
        if (number, digest) != head:
            raise _broken(number + 1, f"entries are missing at the end; {head[0]} were written")
        return number, digest


def _head(connection: Connection, *, locked: bool = False) -> tuple[int, str]:
    query = select(audit_head.c.number, audit_head.c.digest).where(audit_head.c.id == _HEAD)
    row = connection.execute(query.with_for_update() if locked else query).first()
    if row is None:
        raise IntegrityError("read audit: its head is missing", hint=_HINT)
    return row.number, row.digest


def _entry(row: Mapping[Any, Any]) -> AuditEntry:
    return value_of(AuditEntry, row)


def _checked(row: Mapping[Any, Any], number: int, before: str) -> str:
    """The digest of a row whose JSON was left as text. Raises: IntegrityError; ValueError, for what cannot be read."""
    if row["number"] != number:
        raise _broken(number, f"it is missing, the next one there is {row['number']}")
    texts = {name: row[name] for name in _JSON}
    values = {name: None if text is None else json.loads(text) for name, text in texts.items()}
    digest = _digest(_entry({**row, **values}), before)
    spelled = {name: None if value is None else canonical_json(value) for name, value in values.items()}
    if row["digest"] != digest or texts != spelled:
        raise _broken(number, _CHANGED)
    return digest


def _digest(entry: AuditEntry, before: str) -> str:
    """SHA-256 of the canonical JSON of the entry's other fields and of the digest before it."""
    fields = row_of(entry) | {"time": entry.time.astimezone(UTC).isoformat(timespec="microseconds")}
    return hashlib.sha256(canonical_json(fields | {"digest": before}).encode()).hexdigest()


_CHANGED = "it, or what stands before it, is not as it was written"
_HINT = "Someone changed the database by hand; look at who may write to it, and keep a copy of it as it is."


def _broken(number: int, cause: str) -> IntegrityError:
    return IntegrityError(f"verify audit: entry {number}: {cause}", hint=_HINT)
