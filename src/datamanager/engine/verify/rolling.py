"""Which packs a rolling verify reads today: the share that is due, oldest first.

A byte has *waited* since it was last read, or since it was stored. Each run reads 1/DAYS of the data, in whole folders
of ``packs/``, so that a run every day has read every byte within DAYS. Who falls behind catches up a share more a run:
a computer that was off for a week must not read for a day when it is back. A run soon after another one reads nothing
again. Pure functions; times are seconds since 1970 by the store's clock.
Source: ``docs/format.md`` decision 6.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from datamanager.storage.base import StoredObject

DAY_SECONDS = 86_400.0
# A daily run comes now earlier, now later; what was read within this time counts as today's.
_TODAY_SECONDS = 20 * 3600.0
# Half a day late is still in time: the next daily run reads it.
_LATE_DAYS = 0.5


@dataclass(frozen=True, slots=True)
class FolderState:
    """One folder of packs. ``waiting``: the time since which its oldest byte has waited; ``read``: its last reading."""

    name: str
    bytes: int
    waiting: float
    read: float | None


def folder_of(key: str) -> str:
    """The two digits of a pack's folder."""
    return key.split("/")[1]


def folder_states(packs: Iterable[StoredObject], checked: Mapping[str, float], now: float) -> list[FolderState]:
    """The folders that hold anything, the one that has waited longest first.

    Args: packs - what lies below ``packs/``; checked - the last whole reading of each folder; one that claims to lie
    ahead of ``now`` counts as now.
    """
    sizes: dict[str, int] = {}
    stored: dict[str, float] = {}
    for one in packs:
        name = folder_of(one.key)
        sizes[name] = sizes.get(name, 0) + one.size
        stored[name] = min(one.mtime, stored.get(name, one.mtime))
    states = []
    for name, size in sizes.items():
        read = min(checked[name], now) if name in checked else None
        waiting = stored[name] if read is None else max(read, stored[name])
        states.append(FolderState(name, size, min(waiting, now), read))
    return sorted(states, key=lambda one: (one.waiting, one.name))


def due_folders(states: list[FolderState], now: float, days: int) -> list[str]:
    """The folders to be read now, oldest first; see the module.

    Args: states - as ``folder_states`` gives them; days - 1 or more.
    """
    share = sum(one.bytes for one in states) / days
    late = bool(states) and now - states[0].waiting > (days + _LATE_DAYS) * DAY_SECONDS
    today = {one.name for one in states if one.read is not None and now - one.read < _TODAY_SECONDS}
    wanted = share * (2 if late else 1) - sum(one.bytes for one in states if one.name in today)
    due: list[str] = []
    taken = 0
    for one in states:
        if taken >= wanted:
            break
        if one.name not in today:
            due.append(one.name)
            taken += one.bytes
    return due


def oldest_waiting(states: Iterable[FolderState], read: Mapping[str, float], now: float) -> float | None:
    """Seconds for which the oldest byte has waited, once ``read`` has happened; None where there are no packs."""
    ages = [now - max(one.waiting, read.get(one.name, one.waiting)) for one in states]
    return max((max(0.0, age) for age in ages), default=None)
