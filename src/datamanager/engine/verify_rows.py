"""Whether rows point to stored pages, and are rows at all: sorted, disjoint, within their file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from datamanager.base.pipeline import StopToken
from datamanager.repository.format import PAGES_PER_CHUNK, ZERO_PACK
from datamanager.repository.layer import FileEntry
from datamanager.repository.layer_reader import LayerReader

# Rows are checked this many at a time: 64 bytes of arrays each, 8 MB.
_BATCH_ROWS = 1 << 17

I64 = npt.NDArray[np.int64]


@dataclass(slots=True)
class LayerFaults:
    """What is wrong with the rows of one layer.

    Args:
        files: paths whose rows are impossible, the first few, and how many in all.
        packs: numbers in the layer's pack table of the packs in which a page is missing or damaged.
    """

    files: list[bytes] = field(default_factory=list)
    impossible: int = 0
    packs: set[int] = field(default_factory=set)
    file_count: int = 0
    row_count: int = 0

    def add_file(self, path: bytes) -> None:
        self.impossible += 1
        if len(self.files) < 3:
            self.files.append(path)


@dataclass(frozen=True, slots=True)
class _Batch:
    entries: list[FileEntry]

    def columns(self) -> I64:
        """file, first page, pages, pack, position; one line a row."""
        counts = [len(entry.rows.first) for entry in self.entries]
        file = np.repeat(np.arange(len(self.entries)), counts)
        columns = [np.concatenate([entry.rows[number] for entry in self.entries]) for number in range(4)]
        return np.stack([file, *(column.astype(np.int64) for column in columns)])


def check_rows(
    layer: LayerReader, page_size: int, raw: Mapping[int, npt.NDArray[np.uint32]], stop: StopToken
) -> LayerFaults:
    """Read a layer and compare each row with the packs.

    Args: raw - by number in the layer's pack table, the raw bytes of each chunk (0 where damaged); packs that are not
    in it were not read and are not judged.
    Raises: IntegrityError, ObjectMissing, when the layer cannot be read; Cancelled.
    """
    faults = LayerFaults()
    layer.find(b"")  # reads the index
    for batch in _batches(layer):
        stop.check()
        sizes = np.array([entry.size for entry in batch.entries], dtype=np.uint64)
        # A file of more pages than a row can count is impossible; its pages are counted only up to that.
        pages = np.minimum(-(-sizes.astype(np.float64) // page_size), float(1 << 32)).astype(np.int64)
        file, first, count, pack, position = batch.columns()
        faults.file_count += len(batch.entries)
        faults.row_count += len(file)
        for number in np.unique(file[_impossible(file, first, count, pages)]).tolist():
            faults.add_file(batch.entries[number].path)
        remainder = (sizes % np.uint64(page_size)).astype(np.int64)
        short_last = (first + count == pages[file]) & (remainder[file] > 0)
        tail = np.where(short_last, remainder[file], page_size)
        held = np.flatnonzero(pack != ZERO_PACK)
        order = held[np.argsort(pack[held], kind="stable")]
        for rows in np.split(order, np.flatnonzero(np.diff(pack[order])) + 1):
            if not len(rows):
                continue
            lengths = raw.get(int(pack[rows[0]]))
            if lengths is not None and _misses(lengths, page_size, position[rows], count[rows], tail[rows]):
                faults.packs.add(int(pack[rows[0]]))
    return faults


def _batches(layer: LayerReader) -> Iterator[_Batch]:
    entries: list[FileEntry] = []
    rows = 0
    for entry in layer.entries():
        entries.append(entry)
        rows += len(entry.rows.first) + 1
        if rows >= _BATCH_ROWS:
            yield _Batch(entries)
            entries, rows = [], 0
    if entries:
        yield _Batch(entries)


def _impossible(file: I64, first: I64, count: I64, pages: I64) -> npt.NDArray[np.bool_]:
    """Rows without pages, beyond the end of their file, or not after the row before."""
    end = first + count
    bad: npt.NDArray[np.bool_] = (count == 0) | (end > pages[file])
    bad[1:] |= (file[1:] == file[:-1]) & (first[1:] < end[:-1])
    return bad


def _misses(lengths: npt.NDArray[np.uint32], page_size: int, position: I64, count: I64, tail: I64) -> bool:
    """Whether any row of one pack needs a byte that its chunks do not hold.

    Args: tail - bytes needed of each row's last page.
    """
    if not len(lengths):
        return True
    last = position + count - 1
    first_chunk, last_chunk = position // PAGES_PER_CHUNK, last // PAGES_PER_CHUNK
    if bool((last_chunk >= len(lengths)).any()):
        return True
    whole = (lengths == PAGES_PER_CHUNK * page_size).astype(np.int64)
    before = np.concatenate(([0], np.cumsum(whole)))
    unbroken = before[last_chunk] - before[first_chunk] == last_chunk - first_chunk
    enough = lengths.astype(np.int64)[last_chunk] >= last % PAGES_PER_CHUNK * page_size + tail
    return not bool((unbroken & enough).all())
