"""The rows of one pack as pieces to be written: all arithmetic on pages, chunks and files at once, in arrays.

An old backup has a row for nearly every page, so nothing here is done row by row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from datamanager.base.errors import IntegrityError
from datamanager.engine.restore.page_check import PageChecker
from datamanager.repository.format import PAGES_PER_CHUNK

_RUN_BYTES = 1 << 20  # a write; its chunks are still in the processor's cache when the kernel copies them

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What the writing threads know of files, by number.

    ``first_blocks``: the number within its relation of the first page of a file whose pages are checked, else -1.
    """

    sizes: I64
    first_blocks: I64


@dataclass(frozen=True, slots=True)
class Pieces:
    """Parts of chunks, in the order of a pack; one entry each.

    ``start`` and ``end`` are bytes in the chunk, ``offset`` bytes in the file; ``last`` ends a run: bytes that follow
    each other in one file and are written together.
    """

    chunk: I64
    start: I64
    end: I64
    file: I64
    offset: I64
    last: npt.NDArray[np.bool_]

    def __iter__(self) -> Iterator[tuple[int, int, int, int, int, bool]]:
        columns = (self.chunk, self.start, self.end, self.file, self.offset, self.last)
        return zip(*(column.tolist() for column in columns), strict=True)

    @property
    def total_bytes(self) -> int:
        return int((self.end - self.start).sum())

    def runs(self) -> tuple[I64, I64, I64]:
        """File, first byte and end of each run."""
        ends = np.flatnonzero(self.last)
        starts = np.append(0, ends[:-1] + 1)
        return self.file[ends], self.offset[starts], self.offset[ends] + self.end[ends] - self.start[ends]


def cut_rows(rows: I64, sizes: I64, page_size: int) -> Pieces:
    """Rows of one pack cut at the ends of chunks and files.

    Args: rows - columns pack, position, file, first page, pages, in order of position; sizes - of the files.
    Raises: IntegrityError, for a row outside its file.
    """
    _, position, file, first, pages = rows.T
    begin = position // PAGES_PER_CHUNK
    number, nth = expanded((position + pages - 1) // PAGES_PER_CHUNK - begin + 1)
    chunk = begin[number] + nth
    from_page = np.maximum(position[number], chunk * PAGES_PER_CHUNK)
    to_page = np.minimum(position[number] + pages[number], (chunk + 1) * PAGES_PER_CHUNK)
    file = file[number]
    offset = (first[number] + from_page - position[number]) * page_size
    size = np.minimum((to_page - from_page) * page_size, sizes[file] - offset)
    if int(size.min()) <= 0:
        raise IntegrityError("read layer: a row lies outside its file")
    start = (from_page - chunk * PAGES_PER_CHUNK) * page_size
    last = np.ones(len(chunk), np.bool_)
    follows = (file[1:] == file[:-1]) & (offset[1:] == offset[:-1] + size[:-1])
    last[:-1] = ~follows | (offset[1:] % _RUN_BYTES == 0)
    return Pieces(chunk, start, start + size, file, offset, last)


def expanded(counts: I64) -> tuple[I64, I64]:
    """Each index as often as its count says, and which of its repetitions each is."""
    number = np.repeat(np.arange(len(counts)), counts)
    return number, np.arange(len(number)) - np.repeat(np.cumsum(counts) - counts, counts)


class CheckedPages:
    """The pages of a pack whose checksums are checked, handed over chunk by chunk.

    Args: pieces - in order of their chunks.
    """

    def __init__(self, pieces: Pieces, files: FileFacts, page_size: int) -> None:
        first_block = files.first_blocks[pieces.file]
        whole_pages = (pieces.end - pieces.start) // page_size
        number, nth = expanded(np.where(first_block >= 0, whole_pages, 0))
        self._chunks = pieces.chunk[number]
        self._places = pieces.start[number] // page_size + nth
        self._files = pieces.file[number]
        self._blocks = first_block[number] + pieces.offset[number] // page_size + nth

    def hand_over(self, chunk: int, raw: bytes | memoryview, checker: PageChecker) -> None:
        """Raises: IntegrityError."""
        begin, end = np.searchsorted(self._chunks, [chunk, chunk + 1]).tolist()
        if end > begin:
            span = slice(begin, end)
            checker.add(raw, self._places[span], self._files[span], self._blocks[span])
