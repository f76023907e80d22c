"""What a drill found wrong, in words that say where it is and what to do."""

from __future__ import annotations

import enum
from dataclasses import dataclass

# Of the server's own words; what was found must fit into the history.
_LONGEST_WORDS = 400


class Kind(enum.Enum):
    """What is wrong with a thing; the value completes a sentence about it."""

    RESTORE = "cannot be restored"
    START = "does not start"
    CRASH = "brings the server down"
    OPEN = "cannot be opened"
    READ = "cannot be read"
    INDEX = "is damaged"
    TABLE = "has damaged rows"
    VISIBILITY = "is noted as cleaner than it is (its visibility map is wrong)"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that does not come back as it should.

    Args:
        database: empty for what concerns all of the cluster.
        table: schema and name; empty for a database as a whole.
        index: of that table, schema and name; empty for the table itself.
        said: the server's own words.
    """

    kind: Kind
    database: str = ""
    table: str = ""
    index: str = ""
    said: str = ""
    note: str = ""

    @property
    def sentence(self) -> str:
        """Without a full stop, for a message."""
        where = f"in the database {self.database} " if self.database and self.table else ""
        said = f": {self.said[:_LONGEST_WORDS]}" if self.said else ""
        note = f" ({self.note})" if self.note else ""
        return f"{where}{self._what} {self.kind.value}{said}{note}"

    @property
    def _what(self) -> str:
        if self.index:
            return f"the index {self.index} of the table {self.table}"
        if self.table:
            return f"the table {self.table}"
        return f"the database {self.database}" if self.database else "the backup"


def summary(findings: list[Finding], more: int = 0) -> str:
    """The first finding and how many more there are; empty without any."""
    if not findings:
        return ""
    others = len(findings) - 1 + more
    return findings[0].sentence + (f"; and {others} more finding{'s' if others > 1 else ''}" if others else "")


def remedy(findings: list[Finding], backup: str) -> str:
    """The next step, a full sentence."""
    kinds = {one.kind for one in findings}
    if kinds == {Kind.INDEX}:
        index = next(one.index for one in findings)
        return (
            f"The rows themselves were read. Rebuild the index on the server with `REINDEX INDEX {index};`, "
            "then back up again and test that backup."
        )
    if kinds <= {Kind.RESTORE}:
        return (
            "Run `datamanager repo verify` to see what is damaged, take a new backup, and test it; "
            f"an older one may still come back where {backup} does not."
        )
    return (
        "Look whether the server's own table has it too, check its drive and memory, and test older backups with "
        "`datamanager drill run ID`; pin the newest one that passes with `datamanager backup pin ID`."
    )
