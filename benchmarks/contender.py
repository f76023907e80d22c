"""The seam between a row of the table and whatever is measured in it, and the loop of alternating rounds."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import psycopg

from benchmarks.process import ContenderFailed, Finished, Peak
from datamanager.base.errors import DataManagerError


class Contender(Protocol):
    """One way to do a row's work. ``prepare`` and ``clean`` are not timed and raise ContenderFailed."""

    @property
    def name(self) -> str:
        """With its version, as the table shows it."""
        ...

    @property
    def command(self) -> str:
        """What is timed, with placeholders instead of this machine's paths; known after the first run."""
        ...

    def prepare(self) -> None:
        """Bring about the state in which the work begins; called before every run."""
        ...

    def run(self, sample_memory: bool) -> Finished:
        """Do the work once, until it is durable."""
        ...

    def stored_bytes(self) -> int | None:
        """Size of what the last run left on disk; None where that says nothing."""
        ...

    def clean(self) -> None:
        """Give back disk and settings; called after every run, also one that failed."""
        ...


@dataclass(slots=True)
class Measurement:
    """All runs of one contender in one row."""

    name: str
    command: str = ""
    seconds: list[float] = field(default_factory=list)
    stored_bytes: int | None = None
    peak: Peak = field(default_factory=Peak)
    anonymous_over_time: tuple[int, ...] = ()
    failure: str = ""
    remark: str = ""

    @property
    def median(self) -> float:
        """Seconds. Raises: KeyError where nothing was timed."""
        if not self.seconds:
            raise KeyError(self.name)
        return statistics.median(self.seconds)

    @property
    def usable(self) -> bool:
        """Whether bars may use it."""
        return not self.failure and (bool(self.seconds) or self.stored_bytes is not None)


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of design.md section 8: a figure made of the row's measurements, and what it has to be.

    ``figure`` raises KeyError where a measurement it needs is missing. ``but`` says what keeps the verdict from being
    the one that is meant, such as an older peer.
    """

    text: str
    figure: Callable[[dict[str, Measurement]], float]
    needed: float
    at_least: bool
    unit: str = "×"
    but: str = ""


def measure(
    contenders: Sequence[Contender],
    rounds: int,
    say: Callable[[str], None],
    *,
    sample_memory: bool = False,
    before_round: Callable[[int], None] = lambda turn: None,
) -> list[Measurement]:
    """Run every contender once a round, each round starting with another one; a failing one is not run again.

    Args: before_round - brings about what all contenders of a round find, such as changed data; not timed.
    """
    results = {id(contender): Measurement(contender.name) for contender in contenders}
    for turn in range(rounds):
        before_round(turn)
        first = turn % len(contenders)
        for contender in [*contenders[first:], *contenders[:first]]:
            result = results[id(contender)]
            if result.failure:
                continue
            _run_once(contender, result, sample_memory)
            say(f"    round {turn + 1}  {contender.name}: {result.failure or f'{result.seconds[-1]:.2f} s'}")
    return list(results.values())


def _run_once(contender: Contender, result: Measurement, sample_memory: bool) -> None:
    try:
        contender.prepare()
        # What earlier contenders left unwritten must not be paid by this one.
        os.sync()
        finished = contender.run(sample_memory)
        result.seconds.append(finished.seconds)
        result.peak = result.peak.most(finished.peak)
        result.anonymous_over_time = finished.anonymous_over_time
        result.stored_bytes = contender.stored_bytes()
        result.command = contender.command
        result.remark = getattr(contender, "remark", "")
    except (ContenderFailed, DataManagerError, OSError, psycopg.Error) as error:
        result.failure = str(error) or type(error).__name__
    finally:
        try:
            contender.clean()
        except (ContenderFailed, OSError, psycopg.Error) as error:
            result.failure = result.failure or f"cleaning up failed: {error}"
