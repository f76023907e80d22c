"""Whether rows point to stored pages, and are rows at all: sorted, disjoint, within their file.

A layer is checked for itself first. What it points to may have been painted over by newer layers in every backup that
is left, and pruned since; so a page that is missing counts only where the composed rows of a backup need it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from datamanager.base.pipeline import StopToken
from datamanager.repository.format import PAGES_PER_CHUNK, ZERO_PACK
from datamanager.repository.layers.contents import Contents
from datamanager.repository.layers.layer import FileEntry
from datamanager.repository.layers.reader import LayerReader

# Rows are checked this many at a time: 64 bytes of arrays each, 8 MB.
_BATCH_ROWS = 1 << 17
# Looking a few files up by name is cheaper than composing every file of a backup.
_FEW_FILES = 20

I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]

NO_CHUNKS = np.empty(0, np.uint32)


@dataclass(frozen=True, slots=True)
class HeldPack:
    """What one pack holds, in the generation that readers take.

    Args:
        raw: raw bytes of each chunk, 0 for one that is damaged; empty for a pack that cannot be read.
        masks: which pages of each chunk are there; None when all are.
    """

    raw: U32
    masks: U32 | None = None


LOST = HeldPack(NO_CHUNKS)


@dataclass(slots=True)
class LayerFaults:
    """What is wrong with the rows of one layer.

    Args:
        files: paths whose rows are impossible, the first few, and how many in all.
        missing: by number in the layer's pack table, the chunks of which a page is missing or damaged.
        suspects: paths of the files that need such a page.
    """

    files: list[bytes] = field(default_factory=list)
    impossible: int = 0
    missing: dict[int, set[int]] = field(default_factory=dict)
    suspects: set[bytes] = field(default_factory=set)
    file_count: int = 0
    row_count: int = 0

    def add_file(self, path: bytes) -> None:
        self.impossible += 1
        if len(self.files) < 3:
            self.files.append(path)


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of several files; one line a row."""

    file: I64
    first: I64
    count: I64
    pack: I64
    position: I64
    tail: I64  # bytes needed of the row's last page
    pages: I64  # pages of each file

    @classmethod
    def of(cls, entries: list[FileEntry], page_size: int) -> _Rows:
        file = np.repeat(np.arange(len(entries)), [len(entry.rows.first) for entry in entries])
        columns = [np.concatenate([entry.rows[number] for entry in entries]).astype(np.int64) for number in range(4)]
        first, count, pack, position = columns
        sizes = np.array([entry.size for entry in entries], dtype=np.uint64)
        # A file of more pages than a row can count is impossible; its pages are counted only up to that.
        pages = np.minimum(-(-sizes.astype(np.float64) // page_size), float(1 << 32)).astype(np.int64)
        remainder = (sizes % np.uint64(page_size)).astype(np.int64)
        short_last = (first + count == pages[file]) & (remainder[file] > 0)
        tail = np.where(short_last, remainder[file], page_size)
        return cls(file, first, count, pack, position, tail, pages)

    def impossible(self) -> npt.NDArray[np.bool_]:
        """Rows without pages, beyond the end of their file, or not after the row before."""
        end = self.first + self.count
        bad: npt.NDArray[np.bool_] = (self.count == 0) | (end > self.pages[self.file])
        bad[1:] |= (self.file[1:] == self.file[:-1]) & (self.first[1:] < end[:-1])
        return bad


def check_rows(layer: LayerReader, page_size: int, held: Mapping[int, HeldPack], stop: StopToken) -> LayerFaults:
    """Read a layer and compare each row with the packs.

    Args: held - by number in the layer's pack table; packs that are not in it were not read and are not judged.
    Raises: IntegrityError, ObjectMissing, when the layer cannot be read; Cancelled.
    """
    faults = LayerFaults()
    layer.find(b"")  # reads the index
    for entries in _batches(layer.entries()):
        stop.check()
        rows = _Rows.of(entries, page_size)
        faults.file_count += len(entries)
        faults.row_count += len(rows.file)
        for number in np.unique(rows.file[rows.impossible()]).tolist():
            faults.add_file(entries[number].path)
        _compare(rows, entries, page_size, held, faults)
    return faults


def check_composed(
    contents: Contents, held: Mapping[int, HeldPack], suspects: Collection[bytes] | None, stop: StopToken
) -> dict[int, set[int]]:
    """The chunks that one backup needs, once its layers are composed, and that lack a page.

    Args: held - by number in the joined pack table; suspects - the only files that can need such a chunk, None for all.
    Raises: IntegrityError, ObjectMissing, when a layer cannot be read; Cancelled.
    """
    faults = LayerFaults()
    if suspects is None:
        files: Iterable[FileEntry] = contents.files()
    elif len(suspects) <= _FEW_FILES:
        files = (entry for path in sorted(suspects) if (entry := contents.find(path)) is not None)
    else:
        files = (entry for entry in contents.files() if entry.path in suspects)
    for entries in _batches(files):
        stop.check()
        _compare(_Rows.of(entries, contents.page_size), entries, contents.page_size, held, faults)
    return faults.missing


def _compare(
    rows: _Rows, entries: list[FileEntry], page_size: int, held: Mapping[int, HeldPack], faults: LayerFaults
) -> None:
    there = np.flatnonzero(rows.pack != ZERO_PACK)
    order = there[np.argsort(rows.pack[there], kind="stable")]
    for chosen in np.split(order, np.flatnonzero(np.diff(rows.pack[order])) + 1):
        if not len(chosen):
            continue
        number = int(rows.pack[chosen[0]])
        pack = held.get(number)
        if pack is None:
            continue
        place, count, tail = rows.position[chosen], rows.count[chosen], rows.tail[chosen]
        if pack.masks is None and not _misses(pack.raw, page_size, place, count, tail):
            continue
        chunks, wanting = _missing(pack, page_size, place, count, tail)
        if wanting.any():
            faults.missing.setdefault(number, set()).update(chunks)
            faults.suspects.update(entries[one].path for one in np.unique(rows.file[chosen[wanting]]).tolist())


def _batches(files: Iterable[FileEntry]) -> Iterator[list[FileEntry]]:
    entries: list[FileEntry] = []
    rows = 0
    for entry in files:
        entries.append(entry)
        rows += len(entry.rows.first) + 1
        if rows >= _BATCH_ROWS:
            yield entries
            entries, rows = [], 0
    if entries:
        yield entries


def _misses(lengths: U32, page_size: int, position: I64, count: I64, tail: I64) -> bool:
    """Whether any row of one pack needs a byte that its chunks, all of them whole, do not hold."""
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


def _missing(
    pack: HeldPack, page_size: int, position: I64, count: I64, tail: I64
) -> tuple[set[int], npt.NDArray[np.bool_]]:
    """The chunks of one pack that lack a byte that a row needs, and which rows those are.

    A row that runs beyond the pack is among them, without a chunk of its own. Memory grows with the pack, not the rows.
    """
    total = len(pack.raw) * PAGES_PER_CHUNK
    chunk, page = np.divmod(np.arange(total, dtype=np.int64), PAGES_PER_CHUNK)
    bytes_there = np.clip(pack.raw.astype(np.int64)[chunk] - page * page_size, 0, page_size)
    if pack.masks is not None:
        bytes_there *= (pack.masks.astype(np.int64)[chunk] >> page) & 1
    end = position + count
    wanting = end > total
    start, last = np.minimum(position, total), np.minimum(end - 1, total)
    # Whole pages are wanted of all but a row's last page, of which ``tail`` bytes are.
    lacks_whole = np.concatenate(([0], np.cumsum(bytes_there < page_size)))
    wanting |= lacks_whole[last] > lacks_whole[start]
    inside = last < total
    lacks_tail = np.zeros(len(position), np.bool_)
    lacks_tail[inside] = bytes_there[last[inside]] < tail[inside]
    wanting |= lacks_tail
    needed = np.zeros(total + 1, np.int64)
    np.add.at(needed, start, 1)
    np.add.at(needed, np.maximum(start, last), -1)
    lacking = (np.cumsum(needed)[:-1] > 0) & (bytes_there < page_size)
    lacking[last[lacks_tail]] = True
    return set(np.unique(chunk[lacking]).tolist()), wanting
