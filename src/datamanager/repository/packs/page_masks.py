"""From rows to chunks and the pages in them: a mask has bit *i* for page *i* of its chunk. Pure functions.

A row is (position, pages) in one pack, position = chunk × 32 + page, and runs on over the chunks that follow.
Source: ``docs/format.md``, Chunks and addresses.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from datamanager.repository.format import PAGES_PER_CHUNK

U32 = npt.NDArray[np.uint32]
I64 = npt.NDArray[np.int64]


def split_row(first: int, pages: int, position: int) -> Iterator[tuple[int, int, int, int]]:
    """A row cut at the borders of chunks: (first page in the file, chunk, first page in the chunk, pages)."""
    while pages > 0:
        chunk, start = divmod(position, PAGES_PER_CHUNK)
        count = min(pages, PAGES_PER_CHUNK - start)
        yield first, chunk, start, count
        first, pages, position = first + count, pages - count, position + count


def page_masks(positions: I64, pages: I64) -> tuple[I64, U32, I64]:
    """The chunks that rows touch, which pages of each, and the number of the row: in the order of the rows.

    Args: int64 arrays of one length; at least one page a row.
    """
    ends = positions + pages
    first, last = positions // PAGES_PER_CHUNK, (ends - 1) // PAGES_PER_CHUNK
    counts = last - first + 1
    row = np.repeat(np.arange(len(positions)), counts)
    chunks = first[row] + np.arange(len(row)) - (np.cumsum(counts) - counts)[row]
    begin = chunks * PAGES_PER_CHUNK
    low = np.maximum(positions[row] - begin, 0)
    high = np.minimum(ends[row] - begin, PAGES_PER_CHUNK)
    one = np.uint64(1)
    bits = (one << high.astype(np.uint64)) - (one << low.astype(np.uint64))
    return chunks, bits.astype(np.uint32), row


def count_pages(masks: U32) -> I64:
    """The number of pages in each mask."""
    bits = np.unpackbits(np.ascontiguousarray(masks, "<u4").view(np.uint8).reshape(-1, 4), axis=1)
    pages: I64 = bits.sum(axis=1, dtype=np.int64)
    return pages


def full_masks(raw: U32, page_size: int) -> U32:
    """The mask of all pages of each chunk. Args: raw - bytes of each chunk, at most 32 pages."""
    pages = -(-raw.astype(np.int64) // page_size)
    return ((np.int64(1) << pages) - 1).astype(np.uint32)


def chunk_runs(positions: I64, pages: I64) -> list[tuple[int, int]]:
    """Runs of chunks (first, end) that rows touch, merged and in order. Args: positions - rising."""
    first, end = positions // PAGES_PER_CHUNK, -(-(positions + pages) // PAGES_PER_CHUNK)
    reach = np.maximum.accumulate(end)
    starts = np.flatnonzero(np.concatenate(([True], first[1:] > reach[:-1])))
    stops = np.append(starts[1:] - 1, len(first) - 1)
    return list(zip(first[starts].tolist(), reach[stops].tolist(), strict=True))
