"""What a readiness check says: one finding a question, each with a code that stays the same."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from datamanager.base.errors import DataManagerError, TargetUnfit

# What compressed files of unknown content may need when they are unpacked (requirement R77).
UNKNOWN_FACTOR = 7
# Every question, and why its answer matters.
_WHY = {
    "key": "Without a key nothing in the repository can be read.",
    "backup": "A restore that lacks a part of its backup breaks off.",
    "damage": "A restore breaks off where stored bytes cannot be read, and damaged pages come back damaged.",
    "wal": "Replay ends at the first file that is missing.",
    "system": "PostgreSQL reads its files only on the kind of system that wrote them.",
    "programs": "Only PostgreSQL of the same major version can start on the files, or replay WAL onto them.",
    "version": "An older minor release brings back bugs that were mended.",
    "preload": "A server that is told to load a library which is not there does not start.",
    "extensions": "Whatever uses an extension that is not there fails.",
    "locale": "Nobody can connect to a database whose locale is not there.",
    "collation": "Indexes on text keep the order of the library that built them: under another one look-ups miss rows.",
    "target": "A restore never overwrites anything, and must be able to write.",
    "tablespace": "Each tablespace needs a new directory, apart from every cluster's.",
    "space": "A restore that runs out of room breaks off.",
    "owner": "PostgreSQL runs only as an account that gets to its files and owns them, and never as root.",
    "port": "Two servers cannot listen on the same port.",
}


class Level(StrEnum):
    """All is well; it cannot be told; something will be amiss afterwards; the restore would fail."""

    OK = "ok"
    UNKNOWN = "unknown"
    WARNING = "warning"
    BLOCKING = "blocking"


_WORST_FIRST = list(reversed(Level))


@dataclass(frozen=True, slots=True)
class Finding:
    """One answer.

    Args:
        code: names the question, such as ``space`` or ``collation``; stable, for programs.
        sentence: a full sentence for people; remedy: another one, what to do; empty where all is well.
        refusal: the kind of error that a restore ends with which this blocks.
    """

    code: str
    level: Level
    sentence: str
    remedy: str = ""
    refusal: type[DataManagerError] = TargetUnfit

    @property
    def why(self) -> str:
        """Why the question matters, in a full sentence."""
        return _WHY[self.code]


def fine(code: str, sentence: str) -> Finding:
    return Finding(code, Level.OK, sentence)


def unknown(code: str, sentence: str, remedy: str) -> Finding:
    return Finding(code, Level.UNKNOWN, sentence, remedy)


def warning(code: str, sentence: str, remedy: str) -> Finding:
    return Finding(code, Level.WARNING, sentence, remedy)


def blocking(code: str, sentence: str, remedy: str, refusal: type[DataManagerError] = TargetUnfit) -> Finding:
    return Finding(code, Level.BLOCKING, sentence, remedy, refusal)


def refused(code: str, error: DataManagerError) -> Finding:
    """What an error says, as a finding that blocks."""
    text = error.message.partition(": ")[2] or error.message
    return blocking(code, f"{text[:1].upper()}{text[1:]}.", error.hint, type(error))


def is_ready(findings: Iterable[Finding]) -> bool:
    """Whether nothing blocks: only then is the restore offered (requirement R76)."""
    return all(one.level is not Level.BLOCKING for one in findings)


def for_later(findings: Iterable[Finding], codes: Collection[str]) -> list[Finding]:
    """The same, with warnings in the place of what blocks for questions that only matter after the restore."""
    return [
        replace(one, level=Level.WARNING) if one.code in codes and one.level is Level.BLOCKING else one
        for one in findings
    ]


def worst_first(findings: Iterable[Finding]) -> Sequence[Finding]:
    return sorted(findings, key=lambda one: _WORST_FIRST.index(one.level))


def space_needed_for_unknown(size: int) -> int:
    """Bytes to have free for ``size`` bytes of which nobody knows what they unpack to."""
    return UNKNOWN_FACTOR * size
