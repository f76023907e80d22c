"""Names of WAL files: segments by timeline and position, and the histories of timelines.

Source: PostgreSQL src/include/access/xlog_internal.h (XLogFileName, TLHistoryFileName).
"""

from __future__ import annotations

import re

from datamanager.base.units import MIB, Lsn

SEGMENT = re.compile(r"[0-9A-F]{24}\Z")
HISTORY_FILE = re.compile(r"[0-9A-F]{8}\.history\Z")
_LOG_BYTES = 1 << 32


def segment_name(timeline: int, at: int, segment_size: int) -> str:
    """The file that holds the byte at ``at``: 24 upper-case digits."""
    number = at // segment_size
    per_log = _LOG_BYTES // segment_size
    return f"{timeline:08X}{number // per_log:08X}{number % per_log:08X}"


def segment_place(name: str, segment_size: int) -> tuple[int, Lsn]:
    """Timeline and first position of a segment. Raises: ValueError."""
    if not SEGMENT.match(name):
        raise ValueError(f"not the name of a WAL segment: {name!r}")
    place = (int(name[8:16], 16) << 32) + int(name[16:], 16) * segment_size
    if segment_name(int(name[:8], 16), place, segment_size) != name:
        raise ValueError(f"not the name of a WAL segment of {segment_size} bytes: {name!r}")
    return int(name[:8], 16), Lsn(place)


def segment_start(at: int, segment_size: int) -> Lsn:
    """Where the segment begins that holds the byte at ``at``."""
    return Lsn(at - at % segment_size)


def history_name(timeline: int) -> str:
    """As in ``00000002.history``."""
    return f"{timeline:08X}.history"


def is_segment_size(size: int) -> bool:
    """Whether a server can have segments of that many bytes: a power of two from 1 MiB to 1 GiB."""
    return MIB <= size <= 1024 * MIB and size.bit_count() == 1
