"""Layers: what one backup learned, as a sorted table of files and of the rows that say where their pages are.

    layer  = data blocks | pack table chunks | index chunks, each one chunk of a metadata pack, at most 256 KiB raw
    block  = files u32 | rows u32 | path bytes u32 | flags u32 (bit 0: the first file began in the block before)
             path length u16 x files | paths | kind u8 x files | flags u8 x files | mode u16 x files |
             size u64 x files | kept u32 x files | crc32c u32 x files | rows of the file u32 x files |
             first page u32 x rows | pages u32 x rows | pack u32 x rows | position u32 x rows
    table  = (pack id 16 | digest 16) x n
    index  = count u32 | path length u16 x count | the first path of each block

Files are sorted by path (bytes), rows by first page. ``first page`` and ``position`` are stored as the distance
(mod 2^32) from where the file's row before ended; its first row in a block counts from 0. A row runs on over the chunks
that follow, all but the last of which hold 32 pages; ``pack`` 2^32-1 means zeros. ``docs/format.md``, Layer, has the
reasons.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from struct import Struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from datamanager.base.errors import IntegrityError
from datamanager.repository.format import MAX_PATH_BYTES, META_CHUNK_BYTES

BLOCK = Struct("<IIII")
CONTINUES = 1
FILE_BYTES = 2 + 1 + 1 + 2 + 8 + 4 + 4 + 4
ROW_BYTES = 16
INDEX_COUNT = Struct("<I")
TABLE_ENTRY = 32
TABLE_ENTRIES_PER_CHUNK = META_CHUNK_BYTES // TABLE_ENTRY

_BAD_PART = re.compile(rb"(?:\A|/)\.{0,2}(?:/|\Z)")  # an empty part, `.` or `..`

U32 = npt.NDArray[np.uint32]


class FileKind(IntEnum):
    """What a path is. Links are never stored: restoring makes them from its plan alone."""

    REGULAR = 0
    DIRECTORY = 1


class FileFlag(IntFlag):
    """GONE: no longer there. BADSUM: the server reported pages with wrong checksums.

    COMPOSED: put together from a server's increment, so that nobody knows the CRC-32C of the whole (it is 0).
    """

    NONE = 0
    GONE = 1
    BADSUM = 2
    COMPOSED = 4


class Rows(NamedTuple):
    """Rows of one file, sorted and disjoint; four arrays of one length. ``pack`` indexes a pack table."""

    first: U32
    pages: U32
    pack: U32
    position: U32

    @classmethod
    def empty(cls) -> Rows:
        nothing = np.empty(0, np.uint32)
        return cls(nothing, nothing, nothing, nothing)


@dataclass(slots=True)  # not frozen: that would take 1.5 us more each, and a cluster has 300,000; nobody changes one
class FileEntry:
    """One file as one layer knows it.

    Sizes in bytes, ``kept`` in pages, ``path`` as the server's manifest spells it.
    """

    path: bytes
    kind: FileKind
    mode: int
    size: int
    kept: int
    flags: FileFlag
    crc32c: int
    rows: Rows


def check_path(path: bytes) -> None:
    """Refuse what could leave the target directory on any system. Raises: IntegrityError."""
    if len(path) > MAX_PATH_BYTES or b"\0" in path or _BAD_PART.search(path):
        raise IntegrityError(f"read layer: impossible path {path[:80]!r}")
