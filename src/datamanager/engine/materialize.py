"""Writing the files of a backup: packs are read once each, in any order, and every page is written once.

    layout   every directory and file is made at its final size, so that zero pages cost nothing
    fetch    packs in parallel; a whole pack when more than half of it is wanted, else ranges
    write    runs of chunks by one call each; the CRC-32C of what was written is kept by place
    check    each file's CRC-32C, folded from its chunks, is the one the server sent with the backup

Source: ``docs/format.md`` decision 15.
"""

from __future__ import annotations

import os
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from datamanager.base.crc import append_zeros, combine
from datamanager.base.errors import IntegrityError, TargetUnfit
from datamanager.base.pipeline import Channel, StopToken, TaskGroup
from datamanager.repository.format import PAGES_PER_CHUNK, ZERO_PACK
from datamanager.repository.layer import FileEntry, FileKind
from datamanager.repository.objects import OpenPack
from datamanager.repository.repository import Contents, Repository

_BATCH_ROWS = 1_000_000  # 100 MB while they are sorted; a fresh full of 1 TiB has 11,000
_GAP_BYTES = 256 << 10  # 2 ms of a hard disk: reading over a gap is cheaper than seeking past it
_RUN_CHUNKS = 4  # 1 MiB a write, still in the processor's cache when the kernel copies it
_KEEP_LOCK = 0  # a CRC of 256 KiB takes 10 us: less than giving the interpreter's lock away and taking it back
_OPEN_FILES = 32  # a thread

TABLESPACE_MAP = b"tablespace_map"

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a backup's paths go.

    Args:
        root: the data directory.
        links: directory of each tablespace outside it, by oid.
        renamed: paths that get another name for now (the control file).
        owner: (uid, gid), or None to leave files to the caller's account.
    """

    root: Path
    links: Mapping[int, Path]
    renamed: Mapping[bytes, bytes]
    owner: tuple[int, int] | None

    def place(self, path: bytes) -> str:
        """The absolute path of a stored path. Raises: TargetUnfit, for a name that Windows reads as something else."""
        if os.name == "nt" and (b":" in path or b"\\" in path):
            raise TargetUnfit(
                f"restore {os.fsdecode(path)}: Windows cannot have a file of this name",
                hint="Restore the backup on the system that it was made on.",
            )
        path = self.renamed.get(path, path)
        parts = path.split(b"/", 2)
        if parts[0] == b"pg_tblspc" and len(parts) == 3 and parts[1].isdigit() and int(parts[1]) in self.links:
            return f"{self.links[int(parts[1])]}{os.sep}{os.fsdecode(parts[2])}"
        return f"{self.root}{os.sep}{os.fsdecode(path)}"


class _Layout:
    """The files made so far and the rows still to be fetched."""

    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        self.paths: list[str] = []
        self.names: list[bytes] = []
        self.sizes = array("Q")
        self.crcs = array("I")
        self._rows = [array("I") for _ in range(5)]  # pack, position, file, first page, pages
        self._closed: list[tuple[str, int]] = []

    def add(self, entry: FileEntry) -> None:
        """Make a file or directory and remember its rows. Raises: OSError."""
        if entry.path == TABLESPACE_MAP:
            return  # it would attach the restored server to the original tablespaces (PostgreSQL decision 1)
        path = self._destination.place(entry.path)
        if entry.kind is FileKind.DIRECTORY:
            os.makedirs(path, mode=0o700, exist_ok=True)  # noqa: PTH103 - hot and plain
        else:
            self._make_file(path, entry)
        if os.name != "nt":
            os.chmod(path, entry.mode | self._ours(entry))  # noqa: PTH101
            if entry.mode & self._ours(entry) != self._ours(entry):
                self._closed.append((path, entry.mode))
        if self._destination.owner is not None:
            os.chown(path, *self._destination.owner)

    @staticmethod
    def _ours(entry: FileEntry) -> int:
        """The rights we need until everything is written: somebody may keep a key of mode 0400 in the cluster."""
        return 0o700 if entry.kind is FileKind.DIRECTORY else 0o600

    def close_up(self) -> None:
        """Take back the rights that only we needed. Raises: OSError."""
        for path, mode in reversed(self._closed):
            os.chmod(path, mode)  # noqa: PTH101

    def _make_file(self, path: str, entry: FileEntry) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        try:
            descriptor = os.open(path, flags, 0o600)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)  # noqa: PTH103, PTH120
            descriptor = os.open(path, flags, 0o600)
        try:
            os.ftruncate(descriptor, entry.size)
        finally:
            os.close(descriptor)
        number = len(self.paths)
        self.paths.append(path)
        self.names.append(entry.path)
        self.sizes.append(entry.size)
        self.crcs.append(entry.crc32c)
        rows = entry.rows
        held = rows.pack != ZERO_PACK
        columns = (rows.pack, rows.position, np.full(len(rows.pack), number, np.uint32), rows.first, rows.pages)
        for column, values in zip(self._rows, columns, strict=True):
            column.frombytes(values[held].astype(np.uint32).tobytes())

    @property
    def rows(self) -> int:
        return len(self._rows[0])

    def take_by_pack(self) -> list[I64]:
        """The rows so far, a matrix of five columns a pack, in order of pack and position; then forgets them."""
        columns = [np.frombuffer(column, np.uint32).astype(np.int64) for column in self._rows]
        self._rows = [array("I") for _ in range(5)]
        if not len(columns[0]):
            return []
        order = np.lexsort((columns[1], columns[0]))
        table = np.stack([column[order] for column in columns], axis=1)
        return np.split(table, np.flatnonzero(np.diff(table[:, 0])) + 1)


class Materializer:
    """Writes one backup to a destination. Used once.

    Args: on_bytes - told of bytes written, from several threads.
    """

    def __init__(
        self,
        repository: Repository,
        contents: Contents,
        destination: Destination,
        threads: int,
        on_bytes: Callable[[int], None],
    ) -> None:
        self._repository = repository
        self._contents = contents
        self._layout = _Layout(destination)
        self._threads = threads
        self._on_bytes = on_bytes
        self._lock = threading.Lock()
        self._written = [array("I") for _ in range(4)]  # file, first page, bytes, crc

    def run(self, stop: StopToken) -> int:
        """Write everything; returns the number of files.

        Raises: IntegrityError naming what is damaged, ObjectMissing, StoreError, OSError of the target, Cancelled.
        """
        self._tasks(stop, self._contents.files())
        self._check_crcs()
        self._layout.close_up()
        return len(self._layout.paths)

    def _tasks(self, stop: StopToken, files: Iterator[FileEntry]) -> None:
        for entry in files:
            self._layout.add(entry)
            if self._layout.rows >= _BATCH_ROWS:
                self._fetch(stop)
            stop.check()
        self._fetch(stop)

    def _fetch(self, stop: StopToken) -> None:
        packs = self._layout.take_by_pack()
        with TaskGroup(stop) as group:
            channel: Channel[I64] = group.channel(2 * self._threads)

            def work() -> None:
                with _FileWriter(self._layout.paths) as writer:
                    for rows in channel:
                        self._write_pack(rows, writer, group)

            for number in range(self._threads):
                group.start(f"write-{number}", work)
            for rows in packs:
                channel.put(rows)
            channel.close()

    def _write_pack(self, rows: I64, writer: _FileWriter, group: TaskGroup) -> None:
        identity, digest = self._contents.packs[int(rows[0, 0])]
        pack = self._repository.pack(identity)
        if pack.directory.digest() != digest:
            raise IntegrityError(f"read {pack.key}: it is another pack than the backup was made with")
        reader = _ChunkReader(self._repository, pack, _wanted_chunks(rows))
        page_size = self._contents.page_size
        run = _Run(writer, self._remember)
        for _, position, file, first, pages in rows.tolist():
            while pages > 0:
                chunk, start = divmod(position, PAGES_PER_CHUNK)
                count = min(pages, PAGES_PER_CHUNK - start)
                raw = reader.chunk(chunk)
                piece = raw if start == 0 and count == PAGES_PER_CHUNK else self._cut(raw, start, count)
                run.add(file, first * page_size, piece)
                position, first, pages = position + count, first + count, pages - count
            group.check()
        run.flush()
        self._on_bytes(run.total)

    def _cut(self, raw: bytes, start: int, count: int) -> memoryview:
        size = self._contents.page_size
        return memoryview(raw)[start * size : (start + count) * size]

    def _remember(self, file: int, offset: int, length: int, crc: int) -> None:
        with self._lock:
            for column, value in zip(
                self._written, (file, offset // self._contents.page_size, length, crc), strict=True
            ):
                column.append(value)

    def _check_crcs(self) -> None:
        """Fold what was written, by file and place, with zeros for what was not. Raises: IntegrityError."""
        columns = [np.frombuffer(column, np.uint32).astype(np.int64) for column in self._written]
        order = np.lexsort((columns[1], columns[0]))
        table = np.stack([column[order] for column in columns], axis=1)
        starts = np.searchsorted(table[:, 0], np.arange(len(self._layout.paths) + 1))
        page_size = self._contents.page_size
        for file, size in enumerate(self._layout.sizes):
            crc = end = 0
            for _, first, length, part in table[starts[file] : starts[file + 1]].tolist():
                if first * page_size != end:
                    crc = append_zeros(crc, first * page_size - end)
                crc = combine(crc, part, length)
                end = first * page_size + length
            if end != size:
                crc = append_zeros(crc, size - end)
            if crc != self._layout.crcs[file] or end > size:
                name = os.fsdecode(self._layout.names[file])
                raise IntegrityError(f"restore {name}: what was written is not what the server sent")


def _wanted_chunks(rows: I64) -> list[tuple[int, int]]:
    """Runs of chunks (first, end) that the rows of one pack need, merged and in order."""
    runs: list[tuple[int, int]] = []
    for position, pages in zip(rows[:, 1].tolist(), rows[:, 4].tolist(), strict=True):
        first, end = position // PAGES_PER_CHUNK, -(-(position + pages) // PAGES_PER_CHUNK)
        if runs and first <= runs[-1][1]:
            runs[-1] = (runs[-1][0], max(runs[-1][1], end))
        else:
            runs.append((first, end))
    return runs


class _ChunkReader:
    """Opens the wanted chunks of one pack, in rising order; keeps the last one opened."""

    def __init__(self, repository: Repository, pack: OpenPack, wanted: list[tuple[int, int]]) -> None:
        offsets = pack.directory.offsets
        if wanted[-1][1] > len(pack.directory):
            raise IntegrityError(f"read {pack.key}: it has no chunk {wanted[-1][1] - 1}")
        self._offsets = offsets.tolist()
        self._opener = pack.opener()
        self._last = (-1, b"")
        self._spans: list[tuple[int, memoryview]] = []
        whole = int(offsets[-1] - offsets[0])
        needed = sum(int(offsets[end] - offsets[first]) for first, end in wanted)
        if 2 * needed > whole:
            ranges = [(int(offsets[0]), int(offsets[-1]))]
        else:
            ranges = _merge([(int(offsets[first]), int(offsets[end])) for first, end in wanted])
        for start, end in ranges:
            data = repository.storage.get(pack.key, start, end - start)
            self._spans.append((start, memoryview(data)))

    def chunk(self, number: int) -> bytes:
        """Raises: IntegrityError."""
        if self._last[0] != number:
            start, end = self._offsets[number], self._offsets[number + 1]
            while len(self._spans) > 1 and self._spans[1][0] <= start:
                self._spans.pop(0)
            begin, data = self._spans[0]
            self._last = (number, self._opener.open(number, data[start - begin : end - begin]))
        return self._last[1]


def _merge(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged = ranges[:1]
    for start, end in ranges[1:]:
        if start - merged[-1][1] <= _GAP_BYTES:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    return merged


class _FileWriter:
    """Writes at places in many files, a few of them open at a time. One a thread."""

    def __init__(self, paths: list[str]) -> None:
        self._paths = paths
        self._open: OrderedDict[int, int] = OrderedDict()

    def write(self, file: int, offset: int, buffers: list[bytes | memoryview]) -> None:
        """Raises: OSError."""
        descriptor = self._open.get(file)
        if descriptor is None:
            flags = os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
            descriptor = self._open[file] = os.open(self._paths[file], flags)
            if len(self._open) > _OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
        else:
            self._open.move_to_end(file)
        if hasattr(os, "pwritev"):
            done = os.pwritev(descriptor, buffers, offset)
            if done == sum(len(buffer) for buffer in buffers):
                return
            buffers, offset = [memoryview(b"".join(buffers))[done:]], offset + done
        for buffer in buffers:
            offset += _write_all(descriptor, memoryview(buffer), offset)

    def __enter__(self) -> _FileWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)


def _write_all(descriptor: int, data: memoryview, offset: int) -> int:
    total = len(data)
    while data:
        if hasattr(os, "pwrite"):
            done = os.pwrite(descriptor, data, offset)
        else:  # Windows; the descriptor belongs to one thread
            os.lseek(descriptor, offset, os.SEEK_SET)
            done = os.write(descriptor, data)
        data, offset = data[done:], offset + done
    return total


class _Run:
    """Pieces that follow each other in one file, written together.

    Args: on_written - told file, offset, bytes and CRC-32C of each run.
    """

    def __init__(self, writer: _FileWriter, on_written: Callable[[int, int, int, int], None]) -> None:
        self._writer = writer
        self._on_written = on_written
        self._file, self._start, self._end = -1, 0, 0
        self._buffers: list[bytes | memoryview] = []
        self._crc = 0
        self.total = 0

    def add(self, file: int, offset: int, piece: bytes | memoryview) -> None:
        if file != self._file or offset != self._end or len(self._buffers) >= _RUN_CHUNKS:
            self.flush()
            self._file, self._start, self._end = file, offset, offset
        self._crc = crc32c(piece, self._crc, _KEEP_LOCK)
        self._buffers.append(piece)
        self._end += len(piece)

    def flush(self) -> None:
        if self._buffers:
            self._writer.write(self._file, self._start, self._buffers)
            self._on_written(self._file, self._start, self._end - self._start, self._crc)
            self._crc = 0
            self.total += self._end - self._start
            self._buffers = []
