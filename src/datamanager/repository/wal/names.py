"""Names of WAL objects: ``wal/<system 16>/<timeline 8>-<8>/<log 8>/<start 8>-<length 8>``, lower-case digits.

Source: ``docs/format.md``, WAL.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from datamanager.base.units import Lsn
from datamanager.repository.format import WAL_FOLDER

LOG_BYTES = 1 << 32  # positions that share their upper half lie in one folder
MAX_STRETCH_BYTES = 32 << 20  # a longer segment is several objects

_LINE = re.compile(r"(?P<timeline>[0-9a-f]{8})-[0-9a-f]{8}\Z")
_STRETCH = re.compile(r"(?P<log>[0-9a-f]{8})/(?P<start>[0-9a-f]{8})-(?P<length>[0-9a-f]{8})\Z")


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """Bytes from ``start`` up to, not including, ``end``."""

    start: Lsn
    end: Lsn

    def __len__(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True, order=True)
class StoredWal:
    """One object as it is listed: which bytes of the WAL it holds. ``size`` is that of the object in bytes."""

    start: Lsn
    end: Lsn
    key: str
    size: int
    mtime: float


def system_folder(system: int) -> str:
    """Where the archive of a system identifier lies, ending in ``/``."""
    return f"{WAL_FOLDER}/{system:016x}/"


def line_timeline(name: str) -> int | None:
    """The timeline of a line's name; None for anything else that lies there."""
    match = _LINE.match(name)
    return int(match["timeline"], 16) if match else None


def log_folder(line_folder: str, at: int) -> str:
    return f"{line_folder}{at >> 32:08x}/"


def stretch_key(line_folder: str, start: int, length: int) -> str:
    """Where the object for these bytes lies; they are of one log."""
    return f"{log_folder(line_folder, start)}{start % LOG_BYTES:08x}-{length:08x}"


def stretch_range(line_folder: str, key: str) -> Range | None:
    """The bytes that a key names; None for anything else that lies there."""
    match = _STRETCH.match(key.removeprefix(line_folder))
    if match is None:
        return None
    start = (int(match["log"], 16) << 32) + int(match["start"], 16)
    length = int(match["length"], 16)
    if not 0 < length <= MAX_STRETCH_BYTES or start % LOG_BYTES + length > LOG_BYTES:
        return None
    return Range(Lsn(start), Lsn(start + length))


def merged(ranges: list[Range]) -> list[Range]:
    """What they cover together, ascending and without a hole in each."""
    found: list[Range] = []
    for one in sorted(ranges):
        if found and one.start <= found[-1].end:
            if one.end > found[-1].end:
                found[-1] = Range(found[-1].start, one.end)
        else:
            found.append(one)
    return found
