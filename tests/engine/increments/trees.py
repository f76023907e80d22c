"""Two directories of one cluster, page by page: what differs, and whether PostgreSQL would have told.

``differences`` names every file and page that differs between two exports, ``page_lsn`` says when a page was last
changed, and ``masked`` takes from a page what PostgreSQL changes without a word in the WAL (hint bits) when page
checksums and ``wal_log_hints`` are off. What is masked is what the server's own ``wal_consistency_checking`` masks:
src/backend/access/common/bufmask.c, heap_mask, btree_mask, hash_mask, gist_mask. SP-GiST never logs its own.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path

PAGE = 8192

# Of the moment of the backup, not of the data: where recovery begins, what it needs, and the backup's own papers.
OF_THE_MOMENT = re.compile(r"^(?:global/pg_control|backup_label|backup_manifest|pg_wal/.*)$")
_RELATION = re.compile(r"^(?:global|base/\d+|pg_tblspc/\d+/PG_[^/]+/\d+)/(\d+)(_fsm|_vm|_init)?(?:\.\d+)?$")

_HEAP_HINTS = 0x0100 | 0x0200 | 0x0400 | 0x0800  # HEAP_XMIN_COMMITTED, _XMIN_INVALID, _XMAX_COMMITTED, _XMAX_INVALID
_PD_FULL, _PD_HAS_FREE = 0x0002, 0x0001
_LP_DEAD, _LP_NORMAL = 3, 1
# Of the metapage of an SP-GiST index: pages with room, noted without a word in the WAL even with page checksums
# (src/backend/access/spgist/spgutils.c, SpGistUpdateMetaPage).
_SPGIST_HINTS = slice(28, 28 + 8 * 8)


@dataclass(frozen=True)
class Difference:
    """A file that only one tree has or whose length differs (``block`` is None), or a page that differs."""

    path: str
    block: int | None
    left: bytes
    right: bytes

    @property
    def relation(self) -> str | None:
        """File number of the relation, None for a file that holds no pages."""
        match = _RELATION.match(self.path)
        return match[1] if match else None

    @property
    def fork(self) -> str:
        match = _RELATION.match(self.path)
        return (match[2] or "") if match else ""

    def __repr__(self) -> str:
        sizes = f"{len(self.left)} and {len(self.right)} bytes" if self.block is None else f"block {self.block}"
        return f"<{self.path}: {sizes}>"


def files_of(tree: Path) -> dict[str, Path]:
    """Every regular file by its path as in a backup manifest; tablespaces are followed, their links are not."""
    found = {}
    for folder, _, names in os.walk(tree, followlinks=True):
        for name in names:
            path = Path(folder) / name
            found[path.relative_to(tree).as_posix()] = path
    return found


def differences(left: Path, right: Path) -> list[Difference]:
    """Everything but what is ``OF_THE_MOMENT``, in order of path and block."""
    first, second = files_of(left), files_of(right)
    found: list[Difference] = []
    for path in sorted(first.keys() | second.keys()):
        if OF_THE_MOMENT.match(path):
            continue
        one = first[path].read_bytes() if path in first else None
        other = second[path].read_bytes() if path in second else None
        if one is None or other is None or len(one) != len(other):
            found.append(Difference(path, None, one or b"", other or b""))
        elif one != other:
            found += _pages(path, one, other)
    return found


def _pages(path: str, one: bytes, other: bytes) -> list[Difference]:
    pages = range(0, len(one), PAGE)
    return [
        Difference(path, at // PAGE, one[at : at + PAGE], other[at : at + PAGE])
        for at in pages
        if one[at : at + PAGE] != other[at : at + PAGE]
    ]


def page_lsn(page: bytes) -> int:
    """When the page was last changed by something in the WAL; 0 for a new page."""
    high, low = struct.unpack_from("<II", page)
    return (int(high) << 32) | int(low)


def masked(page: bytes, kind: str) -> bytes:
    """The page without its hints. Args: kind - ``heap`` or the name of the index's access method."""
    work = bytearray(page)
    if kind == "spgist" and is_spgist_metapage(page):
        work[_SPGIST_HINTS] = bytes(_SPGIST_HINTS.stop - _SPGIST_HINTS.start)
    flags, lower, upper, special = struct.unpack_from("<HHHH", work, 10)
    struct.pack_into("<H", work, 8, 0)  # checksum
    struct.pack_into("<H", work, 10, flags & ~(_PD_FULL | _PD_HAS_FREE))
    struct.pack_into("<I", work, 20, 0)  # pd_prune_xid
    work[lower:upper] = bytes(max(0, upper - lower))  # bytes in the hole mean nothing
    for at in range(24, lower, 4):
        (line,) = struct.unpack_from("<I", work, at)
        offset, state = line & 0x7FFF, line >> 15 & 3
        if kind == "heap" and state == _LP_NORMAL:
            (mask,) = struct.unpack_from("<H", work, offset + 20)
            struct.pack_into("<H", work, offset + 20, mask & ~_HEAP_HINTS)
        elif kind in ("btree", "hash", "gist") and state == _LP_DEAD:
            struct.pack_into("<I", work, at, line & ~(3 << 15) | _LP_NORMAL << 15)
    if kind == "btree" and special <= PAGE - 16:
        _clear(work, special + 12, 1 << 6)  # BTP_HAS_GARBAGE
        struct.pack_into("<H", work, special + 14, 0)  # btpo_cycleid
    if kind == "gist" and special <= PAGE - 16:
        _clear(work, special + 12, 1 << 3)  # F_HAS_GARBAGE
    if kind == "hash" and special <= PAGE - 16:
        _clear(work, special + 12, 1 << 7)  # LH_PAGE_HAS_DEAD_TUPLES
    return bytes(work)


def is_spgist_metapage(page: bytes) -> bool:
    """Page 0 of an SP-GiST index, by its own flags. Source: src/include/access/spgist_private.h."""
    flags, _, _, name = struct.unpack_from("<HHHH", page, PAGE - 8)
    return bool(name == 0xFF82 and flags & 1)


def _clear(work: bytearray, at: int, bits: int) -> None:
    (found,) = struct.unpack_from("<H", work, at)
    struct.pack_into("<H", work, at, found & ~bits)
