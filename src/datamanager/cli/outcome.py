"""What a command hands back: the same facts for programs and for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from datamanager.base.errors import DataManagerError


@dataclass(frozen=True, slots=True)
class Outcome:
    """A command that was carried out.

    Args:
        text: what people read; may be several lines.
        data: the fields of the ``result`` line, ready for JSON; sizes in bytes, times RFC 3339 in UTC.
        warnings: what did not stop it; any of them makes the exit code 3.
        log: one line for the run's log, without secrets; the first line of ``text`` unless given.
        failure: set when the command found what it looks for, and that is bad: the outcome is shown, then the error
            ends the command; ``data`` goes into the ``error`` line.
        exit_code: set by a command whose answer is its exit code (``status``); else 0, or 3 with warnings.
    """

    text: str
    data: dict[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    log: str = ""
    failure: DataManagerError | None = None
    exit_code: int | None = None

    @property
    def log_line(self) -> str:
        return self.log or self.text.split("\n", 1)[0]
