"""What a command hands back: the same facts for programs and for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Outcome:
    """A command that was carried out.

    Args:
        text: what people read; may be several lines.
        data: the fields of the ``result`` line, ready for JSON; sizes in bytes, times RFC 3339 in UTC.
        warnings: what did not stop it; any of them makes the exit code 3.
        log: one line for the run's log, without secrets; the first line of ``text`` unless given.
    """

    text: str
    data: dict[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    log: str = ""

    @property
    def log_line(self) -> str:
        return self.log or self.text.split("\n", 1)[0]
