"""What is wrong with the protection of the data, as values: ``status`` shows them, notifications tell of them."""

from __future__ import annotations

import enum
from dataclasses import dataclass

# Kinds of findings that are suggestions and can be declined (R11).
MACHINE_OFF, READS_EVERYTHING, ONE_PLACE = "machine-off", "reads-everything", "one-place"
RECOMMENDATIONS = (MACHINE_OFF, READS_EVERYTHING, ONE_PLACE)


class Severity(enum.IntEnum):
    """How bad a finding is; the worst one decides the verdict."""

    NOTE = 0  # worth knowing, nothing to do
    ADVICE = 1  # a recommendation, which may be declined
    AT_RISK = 2
    NOT_PROTECTED = 3
    URGENT = 4  # something of the office stands still now: told on every channel, repeated until acknowledged


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that people should know, and what mends it.

    Args:
        key: the same as long as it is the same trouble, as ``overdue:clinic`` or ``planner``; what stands before the
            colon is its kind.
        cluster: whom it is about; empty when it is about the whole installation.
        sentence: whole, for people; begins with an ordinary word.
        command: the one command that mends it or shows more, as typed; empty where none does.
        declined: why a recommendation was declined; empty when it holds.
    """

    key: str
    severity: Severity
    cluster: str
    sentence: str
    command: str = ""
    declined: str = ""

    @property
    def kind(self) -> str:
        """``overdue`` of ``overdue:clinic``."""
        return self.key.partition(":")[0]


def declined_fact(key: str) -> str:
    """Under which name the state keeps that the recommendation ``key`` was declined."""
    return f"declined:{key}"
