"""Page checksums, many pages at once.

The checksum mixes the page, taken as 32 columns of 32-bit words, by a parallel FNV-1a, folds the columns, adds the
block number and reduces to 16 bits that are never zero. A page whose upper bound is zero is new and has none.
Source: PostgreSQL src/include/storage/checksum_impl.h; block numbers count from the start of the relation.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

_COLUMNS = 32
_PRIME = np.uint32(16777619)
_LSN_BYTES = 8
_CHECKSUM_WORD = 4  # bytes 8 and 9, as a 16-bit word
_UPPER_WORD = 7  # bytes 14 and 15

_OFFSETS = np.array(
    [
        0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
        0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
        0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
        0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
    ],
    np.uint32,
)  # fmt: skip

_RELATION = re.compile(
    rb"^(?:global|base/\d+|pg_tblspc/\d+/PG_\d+_\d+/\d+)/\d+(?:_(?:fsm|vm|init))?(?:\.(?P<segment>\d+))?\Z"
)


def relation_segment(path: bytes) -> int | None:
    """The number of a relation's segment file, None for a file that holds no pages."""
    match = _RELATION.match(path)
    return None if match is None else int(match["segment"] or 0)


def checksums(pages: npt.NDArray[np.uint8], first_block: int) -> npt.NDArray[np.uint16]:
    """The checksum each page ought to have.

    Args: pages - shape (n, page size), whole pages; first_block - block number of the first within its relation.
    """
    words = pages.view("<u4").astype(np.uint32, copy=True)
    words[:, 2] &= np.uint32(0xFFFF_0000)  # the checksum's own field counts as zero
    rows = words.reshape(len(pages), -1, _COLUMNS)
    sums = np.broadcast_to(_OFFSETS, (len(pages), _COLUMNS)).copy()
    with np.errstate(over="ignore"):
        for row in range(rows.shape[1]):
            _mix(sums, rows[:, row])
        zeros = np.zeros_like(sums)
        _mix(sums, zeros)
        _mix(sums, zeros)
    folded: npt.NDArray[np.uint32] = np.bitwise_xor.reduce(sums, axis=1)
    folded ^= np.arange(first_block, first_block + len(pages), dtype=np.uint64).astype(np.uint32)
    reduced: npt.NDArray[np.uint16] = (folded % np.uint32(65535) + np.uint32(1)).astype(np.uint16)
    return reduced


def _mix(sums: npt.NDArray[np.uint32], values: npt.NDArray[np.uint32]) -> None:
    mixed = sums ^ values
    np.multiply(mixed, _PRIME, out=sums)
    sums ^= mixed >> np.uint32(17)


def wrong_blocks(data: bytes, page_size: int, first_block: int, before_lsn: int) -> list[int]:
    """Numbers of the blocks whose stored checksum is wrong, counted from the start of the relation.

    New pages are skipped, and those written after ``before_lsn`` (the backup's start): replay rewrites them.
    A part of a page at the end is skipped too.
    """
    count = len(data) // page_size
    if not count:
        return []
    pages = np.frombuffer(data, np.uint8, count * page_size).reshape(count, page_size)
    heads = pages.view("<u2")
    lsn_words = pages[:, :_LSN_BYTES].copy().view("<u4").astype(np.uint64)
    lsns = (lsn_words[:, 0] << np.uint64(32)) | lsn_words[:, 1]
    judged = (heads[:, _UPPER_WORD] != 0) & (lsns < np.uint64(before_lsn))
    wrong = judged & (heads[:, _CHECKSUM_WORD] != checksums(pages, first_block))
    return [first_block + int(block) for block in np.flatnonzero(wrong)]
