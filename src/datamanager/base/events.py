"""What a running job tells whoever listens. The engine emits; only ``cli`` and ``web`` show.

A listener is any callable taking an Event. It is called from several threads and must return quickly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PhaseStarted:
    """The job entered a phase, named for people: ``waiting for checkpoint``, ``streaming``, ``verifying``."""

    phase: str


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes done of a total; the total is None while unknown. ``done`` never falls within a phase.

    Args: fraction - 0 to 1, where it is not the bytes that tell: an increment is as far as the files that it went past.
    """

    done_bytes: int
    total_bytes: int | None = None
    fraction: float | None = None


@dataclass(frozen=True, slots=True)
class Warned:
    """Something the owner should know that did not stop the job; it also stands in the result."""

    message: str


@dataclass(frozen=True, slots=True)
class Executed:
    """A command or SQL statement that was run, secrets masked (requirement R2)."""

    text: str


@dataclass(frozen=True, slots=True)
class Touched:
    """What the job works on, for the log (R95): ``database clinic``, ``1204 files, 3.1 GiB``; never a row's value."""

    text: str


Event = PhaseStarted | Progress | Warned | Executed | Touched
Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The listener of those who do not listen."""
