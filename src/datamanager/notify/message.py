"""A message to people, and how it reads: who, what happened, what it means, the one next step."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, tzinfo

from datamanager.config.model import NotifyEvent
from datamanager.schedule.words import clock_time, date_text

MAX_LINE, MAX_TITLE = 1000, 200
# Signs that turn the reading direction could make a line say something else than it does.
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# A command on a line of its own; what stands in back quotes in a hint is one.
_COMMAND = re.compile(r"`([^`]+)`")


@dataclass(frozen=True, slots=True)
class Message:
    """One text for every channel that wants it.

    Args:
        id: the same message has the same id however often it is tried.
        key: what it is about; a newer one takes the place of an older one that still waits.
        urgent: marked as important.
        everywhere: for every channel, whatever it asked for.
    """

    id: str
    key: str
    event: NotifyEvent
    title: str
    body: str
    created: datetime
    urgent: bool = False
    everywhere: bool = False


@dataclass(frozen=True, slots=True)
class Sender:
    """Who speaks, in every text.

    Args: databases - the databases of each cluster by its name; zone - of all times in texts.
    """

    organization: str
    server: str
    zone: tzinfo
    databases: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Said:
    """The parts of a text, each a plain sentence or two; ``next_step`` is one thing to do."""

    title: str
    happened: str
    means: str
    next_step: str
    subject: str = ""


def one_line(text: str, longest: int = MAX_LINE) -> str:
    """``text`` on one line: whatever could end or turn a line is a space."""
    plain = "".join(" " if _ends_or_turns(letter) else letter for letter in text)
    joined = " ".join(plain.split())
    return joined if len(joined) <= longest else joined[: longest - 1] + "…"


def _ends_or_turns(letter: str) -> bool:
    return letter in _TURNING or unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")


def title_of(sender: Sender, title: str) -> str:
    """``[Dr. Miller] The backup of clinic failed (front-desk)``."""
    server = one_line(sender.server)
    organization = one_line(sender.organization)
    return one_line(f"[{organization}] {title} ({server})" if organization else f"[{server}] {title}", MAX_TITLE)


def heading(sender: Sender, subject: str = "") -> list[str]:
    """The lines that say whose message it is and which databases it is about."""
    lines = [one_line(sender.organization)] if sender.organization.strip() else []
    lines.append(f"Computer: {one_line(sender.server)}")
    databases = [one_line(name) for name in sender.databases.get(subject, ())]
    if databases:
        lines.append(f"Database server: {one_line(subject)}")
        lines.append(f"Databases: {one_line(', '.join(databases))}")
    elif subject:
        lines.append(f"About: {one_line(subject)}")
    return lines


def body_of(sender: Sender, said: Said) -> str:
    """The whole text."""
    return "\n".join(
        [
            *heading(sender, said.subject),
            *("", "WHAT HAPPENED", one_line(said.happened)),
            *("", "WHAT IT MEANS", one_line(said.means)),
            *("", "WHAT TO DO NEXT", _COMMAND.sub(r"\1", one_line(said.next_step))),
            "",
        ]
    )


def moment(time: datetime, zone: tzinfo) -> str:
    """``Monday, November 23, 2026 at 1:04 AM (EST)``, in English whatever the machine speaks."""
    local = time.astimezone(zone)
    return f"{day(time, zone)} at {clock_time(local.time())} ({local.tzname()})"


def day(time: datetime, zone: tzinfo) -> str:
    """``Monday, November 23, 2026``."""
    local = time.astimezone(zone)
    return date_text(local.date())
