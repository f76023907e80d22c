"""Marks: what is said about a backup after it was made. Small sealed objects of kind 5; nothing is overwritten.

    deleted | undeleted     whether the backup counts; what only deleted backups need is prune's to take away
    pin | unpin             whether retention must leave it alone
    verified                what was shown about it, and when
    proven | disproven      what the last test restore showed: it came back, or it did not
    rolling                 it was verified, and replaces every older backup of its name

Of each pair the mark with the highest sequence counts. Source: ``docs/format.md``, Marks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

from datamanager.base.errors import IntegrityError
from datamanager.repository.format import canonical_json

DELETED, UNDELETED = "deleted", "undeleted"
PIN, UNPIN = "pin", "unpin"
PROVEN, DISPROVEN = "proven", "disproven"
ROLLING = "rolling"

_KEY = re.compile(r"^marks/(\d{8}T\d{6}Z-[0-9a-f]{8})\.(\d{6,})-[0-9a-f]{8}\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class Mark:
    """Something said about a backup after it was made. ``time`` is RFC 3339 in UTC; ``note`` is for people."""

    backup: str
    sequence: int
    name: str
    time: str
    note: str = ""

    def to_json(self) -> bytes:
        value = {"backup": self.backup, "sequence": self.sequence, "name": self.name, "time": self.time}
        return canonical_json(value | ({"note": self.note} if self.note else {}))

    @classmethod
    def from_json(cls, data: bytes, name: str) -> Mark:
        """Raises: IntegrityError. Fields that a newer program added are ignored."""
        try:
            value = json.loads(data)
            note = str(value.get("note", ""))
            return cls(str(value["backup"]), int(value["sequence"]), str(value["name"]), str(value["time"]), note)
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise IntegrityError(f"read {name}: malformed mark") from error


def backup_of(key: str) -> tuple[str, int] | None:
    """Backup and sequence that the key of a mark names; None for anything else that lies there."""
    match = _KEY.match(key)
    return (match[1], int(match[2])) if match else None


def standing(marks: Iterable[Mark], word: str, opposite: str) -> dict[str, Mark]:
    """Of each backup the mark ``word``, if none of ``opposite`` has the same sequence or a higher one."""
    last: dict[str, Mark] = {}
    for mark in marks:
        if mark.name not in (word, opposite):
            continue
        known = last.get(mark.backup)
        if known is None or (mark.sequence, mark.name == opposite) > (known.sequence, known.name == opposite):
            last[mark.backup] = mark
    return {backup: mark for backup, mark in last.items() if mark.name == word}
