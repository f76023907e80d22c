"""Where the record of the last checkpoint ends, read from the WAL itself.

A record begins with its length; one that does not fit a page goes on behind the next page's header.
Source: PostgreSQL src/include/access/xlogrecord.h, xlog_internal.h; src/backend/access/transam/README.
"""

from __future__ import annotations

import sys
from pathlib import Path

from datamanager.base.units import Lsn
from datamanager.postgres.control_file import ControlFile

_RECORD_HEADER, _RESOURCE_MANAGER = 24, 17
_SHORT_PAGE_HEADER, _LONG_PAGE_HEADER = 24, 40
_ALIGNMENT = 8
# A checkpoint's record has some 114 bytes.
_LONGEST = 1024


def segment_name(timeline: int, position: int, segment_bytes: int) -> str:
    """The name of the segment that holds ``position``."""
    per_file = (1 << 32) // segment_bytes
    high, low = divmod(position // segment_bytes, per_file)
    return f"{timeline:08X}{high:08X}{low:08X}"


def end_of_record(pg_wal: Path, control: ControlFile) -> Lsn | None:
    """The position behind the checkpoint's record, as PostgreSQL would write the next one; None when it is not there.

    Blocks only on reading; a WAL that cannot be read counts as one that lacks the record.
    """
    name = segment_name(control.timeline, control.checkpoint, control.wal_segment_size)
    try:
        with (pg_wal / name).open("rb") as file:
            address = int.from_bytes(file.read(16)[8:16], sys.byteorder)
            file.seek(control.checkpoint % control.wal_segment_size)
            header = file.read(_RECORD_HEADER)
    except OSError:
        return None
    length = int.from_bytes(header[:4], sys.byteorder)
    # A recycled segment still holds the pages of its former place; the resource manager of checkpoints is 0.
    if address != control.checkpoint - control.checkpoint % control.wal_segment_size or not (
        _RECORD_HEADER < length <= _LONGEST and header[_RESOURCE_MANAGER] == 0
    ):
        return None
    return _advance(control.checkpoint, length, control)


def _advance(position: int, length: int, control: ControlFile) -> Lsn:
    remaining = -(-length // _ALIGNMENT) * _ALIGNMENT
    while True:
        room = control.wal_block_size - position % control.wal_block_size
        if remaining < room:
            return Lsn(position + remaining)
        position += room
        remaining -= room
        if not remaining:
            return Lsn(position)
        long = position % control.wal_segment_size == 0
        position += _LONG_PAGE_HEADER if long else _SHORT_PAGE_HEADER
