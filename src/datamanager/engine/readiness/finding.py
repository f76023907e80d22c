"""What a readiness check says: one finding a question, each with a code that stays the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from datamanager.base.errors import DataManagerError

# What compressed files of unknown content may need when they are unpacked (requirement R77).
UNKNOWN_FACTOR = 7


class Level(StrEnum):
    """OK; WARNING: the restore succeeds, but something may be amiss afterwards; BLOCKING: it would fail."""

    OK = "ok"
    WARNING = "warning"
    BLOCKING = "blocking"


@dataclass(frozen=True, slots=True)
class Finding:
    """One answer.

    Args:
        code: names the question, such as ``space`` or ``collation``; stable, for programs.
        sentence: a full sentence for people; remedy: another one, what to do; empty where all is well.
    """

    code: str
    level: Level
    sentence: str
    remedy: str = ""


def fine(code: str, sentence: str) -> Finding:
    return Finding(code, Level.OK, sentence)


def warning(code: str, sentence: str, remedy: str) -> Finding:
    return Finding(code, Level.WARNING, sentence, remedy)


def blocking(code: str, sentence: str, remedy: str) -> Finding:
    return Finding(code, Level.BLOCKING, sentence, remedy)


def refused(code: str, error: DataManagerError) -> Finding:
    """What an error says, as a finding that blocks."""
    text = error.message.partition(": ")[2] or error.message
    return blocking(code, f"{text[:1].upper()}{text[1:]}.", error.hint)


def is_ready(findings: Iterable[Finding]) -> bool:
    """Whether nothing blocks: only then is the restore offered (requirement R76)."""
    return all(one.level is not Level.BLOCKING for one in findings)


def space_needed_for_unknown(size: int) -> int:
    """Bytes to have free for ``size`` bytes of which nobody knows what they unpack to."""
    return UNKNOWN_FACTOR * size
