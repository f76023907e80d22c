"""The files of a backup in a directory that has most of them already, and what lies there beside them."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from datamanager.engine.in_place.places import HIDDEN
from datamanager.engine.restore.delta_target import JOURNAL, MOVED_CONTROL_FILE, DeltaTarget
from datamanager.engine.restore.file_writer import read_into, write_all
from datamanager.engine.restore.layout import TABLESPACE_MAP, Destination, Layout
from datamanager.engine.restore.pieces import I64, expanded
from datamanager.repository.format import PAGES_PER_CHUNK, ZERO_PACK
from datamanager.repository.layers.layer import FileEntry, FileKind

_BLOCK_BYTES = 1 << 20
_ZEROS = bytes(_BLOCK_BYTES)
_PART_PAGES = 128 * PAGES_PER_CHUNK  # 32 MiB: 5 ms of comparing, and whole chunks
_OURS = frozenset((os.fsencode(JOURNAL), MOVED_CONTROL_FILE, b"lost+found"))

# A restore in place keeps the state before it in a mounted data directory itself (engine/in_place/places.py).
_KEPT = f"{HIDDEN}datamanager-"

Expected = dict[bytes, FileKind]


def is_restored(path: bytes) -> bool:
    """Whether a path of the backup is written at all: no map that leads elsewhere, no journal of another time."""
    return path not in (TABLESPACE_MAP, os.fsencode(JOURNAL), MOVED_CONTROL_FILE)


def expect(expected: Expected, path: bytes, kind: FileKind) -> None:
    """Add a path and the directories that it lies in."""
    expected[path] = kind
    parent = path.rpartition(b"/")[0]
    while parent and parent not in expected:
        expected[parent] = FileKind.DIRECTORY
        parent = parent.rpartition(b"/")[0]


# -- what the backup does not have ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Extra:
    """Something that the backup does not have, or has as something else; ``path`` as the backup would spell it."""

    path: bytes
    place: str
    is_directory: bool


def extras(target: DeltaTarget, expected: Expected, *, mend: bool) -> Iterator[Extra]:
    """What has to go from the directory and its tablespaces, of a directory that goes only the directory itself.

    Args: mend - give ourselves the right to look into directories. Raises: OSError.
    """
    yield from _extras(target, b"", str(target.root), expected, mend)
    for oid, place in target.links.items():
        path = b"pg_tblspc/%d/%s" % (oid, target.version_folder)
        yield from _extras(target, path, os.path.join(place, os.fsdecode(target.version_folder)), expected, mend)  # noqa: PTH118


def _extras(target: DeltaTarget, path: bytes, place: str, expected: Expected, mend: bool) -> Iterator[Extra]:
    for one in _listed(place, mend):
        inner = (path + b"/" if path else b"") + os.fsencode(one.name)
        if (
            inner in _OURS
            or one.name.startswith(_KEPT)
            or (path == b"pg_tblspc" and one.name.isdigit() and int(one.name) in target.links)
        ):
            continue
        kind = expected.get(inner)
        try:
            status = one.stat(follow_symlinks=inner == b"pg_wal")
        except FileNotFoundError:
            continue  # beforehand, the server may be running
        if kind is FileKind.DIRECTORY and stat.S_ISDIR(status.st_mode):
            yield from _extras(target, inner, one.path, expected, mend)
        elif kind is not FileKind.REGULAR or not stat.S_ISREG(status.st_mode):
            yield Extra(inner, one.path, one.is_dir(follow_symlinks=False))


def _listed(place: str, mend: bool) -> list[os.DirEntry[str]]:
    if mend:
        _open_up(place)
    try:
        with os.scandir(place) as scan:
            return list(scan)
    except (PermissionError, FileNotFoundError):
        if mend:
            raise
        return []  # a plan says what it can see


def _open_up(place: str) -> None:
    """Give ourselves the right to look into a directory and to remove from it. Raises: OSError."""
    if os.name != "nt":
        mode = stat.S_IMODE(os.stat(place).st_mode)  # noqa: PTH116
        if mode & 0o700 != 0o700:
            os.chmod(place, mode | 0o700)  # noqa: PTH101


def files_below(extra: Extra) -> Iterator[tuple[str, os.stat_result]]:
    """Place and status of every file that goes with it."""
    if not extra.is_directory:
        with contextlib.suppress(FileNotFoundError):
            yield extra.place, os.lstat(extra.place)
        return
    for folder, _, names in os.walk(extra.place):
        for name in names:
            place = os.path.join(folder, name)  # noqa: PTH118
            with contextlib.suppress(FileNotFoundError):
                yield place, os.lstat(place)


def remove(extra: Extra) -> int:
    """Remove it, never what a link leads to; returns the number of files. Raises: OSError."""
    if not extra.is_directory:
        os.unlink(extra.place)  # noqa: PTH108
        return 1
    count = 0
    _open_up(extra.place)
    for folder, folders, names in os.walk(extra.place):
        count += len(names)
        for name in folders:
            place = os.path.join(folder, name)  # noqa: PTH118
            if not os.path.islink(place):  # noqa: PTH114
                _open_up(place)
    shutil.rmtree(extra.place)
    return count


# -- what the backup has --------------------------------------------------------------------------------------------


class PresentLayout(Layout):
    """Makes files and directories or, where they are, gives them size, rights and zeros as the backup has them.

    ``compared`` and ``written`` are bytes of pages that the backup stores as zeros.
    """

    def __init__(self, destination: Destination, page_size: int) -> None:
        super().__init__(destination)
        self._page_size = page_size
        self._block = memoryview(bytearray(_BLOCK_BYTES))
        self.compared = 0
        self.written = 0

    def add(self, entry: FileEntry) -> None:
        """Bring one file or directory into shape and remember its rows. Raises: OSError, TargetUnfit."""
        if not is_restored(entry.path) or self._is_tablespace(entry.path):
            return
        path = self._destination.place(entry.path)
        status = _status(path)
        if entry.kind is FileKind.REGULAR and status is not None and status.st_nlink > 1:
            os.unlink(path)  # noqa: PTH108 - under its other name it belongs to somebody else
            status = None
        if status is None:
            super().add(entry)
            return
        if stat.S_ISLNK(status.st_mode):
            status = os.stat(path)  # noqa: PTH116 - pg_wal: every other link has been removed
        self._set_rights(path, entry, status)
        if entry.kind is FileKind.REGULAR:
            self._reshape(path, entry)
            self._remember(path, entry)

    def take_by_pack(self) -> list[I64]:
        """As of Layout, in parts small enough to keep every thread at work: one pack may hold gigabytes of rows."""
        return [part for rows in super().take_by_pack() for part in _parts(rows)]

    def _is_tablespace(self, path: bytes) -> bool:
        head, _, last = path.rpartition(b"/")
        return head == b"pg_tblspc" and last.isdigit() and int(last) in self._destination.links

    def _set_rights(self, path: str, entry: FileEntry, status: os.stat_result) -> None:
        if os.name == "nt":
            return
        ours = self._ours(entry)
        if stat.S_IMODE(status.st_mode) != entry.mode | ours:
            os.chmod(path, entry.mode | ours)  # noqa: PTH101
        if entry.mode & ours != ours:
            self._closed.append((path, entry.mode))
        owner = self._destination.owner
        if owner is not None and owner != (status.st_uid, status.st_gid):
            os.chown(path, *owner)

    def _reshape(self, path: str, entry: FileEntry) -> None:
        flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags)
        try:
            before = os.fstat(descriptor).st_size
            if before != entry.size:
                os.ftruncate(descriptor, entry.size)
            for start, end in self._zero_ranges(entry, min(before, entry.size)):
                self._clear(descriptor, start, end)
        finally:
            os.close(descriptor)

    def _zero_ranges(self, entry: FileEntry, size: int) -> list[tuple[int, int]]:
        """Bytes below ``size`` that the backup has as zeros: those of no row, and of rows that say so."""
        rows, page = entry.rows, self._page_size
        if (
            len(rows.pack) == 1
            and rows.pack[0] != ZERO_PACK
            and not rows.first[0]
            and int(rows.pages[0]) * page >= size
        ):
            return []  # nearly every file
        held = rows.pack != ZERO_PACK
        first = rows.first[held].astype(np.int64) * page
        ends = first + rows.pages[held].astype(np.int64) * page
        starts, stops = np.append(0, ends), np.minimum(np.append(first, size), size)
        gaps = np.flatnonzero(stops > starts)
        return list(zip(starts[gaps].tolist(), stops[gaps].tolist(), strict=True))

    def _clear(self, descriptor: int, start: int, end: int) -> None:
        for begin in range(start, end, _BLOCK_BYTES):
            block = self._block[: min(_BLOCK_BYTES, end - begin)]
            if not read_into(descriptor, block, begin):
                raise OSError(f"it became shorter at byte {begin}")
            zeros = memoryview(_ZEROS)[: len(block)]
            for first, last in differing_runs(block, zeros, self._page_size):
                write_all(descriptor, zeros[first:last], begin + first)
                self.written += last - first
            self.compared += len(block)


def _parts(rows: I64) -> list[I64]:
    """Rows of one pack by stretches of chunks, cut where one ends."""
    pack, position, file, first, pages = rows.T
    begin = position // _PART_PAGES
    number, nth = expanded((position + pages - 1) // _PART_PAGES - begin + 1)
    part = begin[number] + nth
    start = np.maximum(position[number], part * _PART_PAGES)
    end = np.minimum(position[number] + pages[number], (part + 1) * _PART_PAGES)
    columns = (pack[number], start, file[number], first[number] + start - position[number], end - start)
    order = np.lexsort((start, part))
    table = np.stack([column[order] for column in columns], axis=1)
    return np.split(table, np.flatnonzero(np.diff(part[order])) + 1)


def differing_runs(present: memoryview, wanted: memoryview, page_size: int) -> Iterator[tuple[int, int]]:
    """Where two buffers of one length differ: first byte and end of each run of pages; the last page may be short."""
    size = len(wanted)
    whole = size // page_size * page_size
    one = np.frombuffer(present[:whole], np.uint64).reshape(-1, page_size // 8)
    other = np.frombuffer(wanted[:whole], np.uint64).reshape(-1, page_size // 8)
    differ = np.append((one != other).any(axis=1), whole < size and bytes(present[whole:]) != bytes(wanted[whole:]))
    edges = np.flatnonzero(np.diff(differ, prepend=False, append=False)) * page_size
    for first, last in edges.reshape(-1, 2).tolist():
        yield first, min(last, size)


def _status(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None
