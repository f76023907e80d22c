"""The directories and files that a restore writes, made at their size before the first page.

A file at its final size costs nothing for its zero pages. What is to be written stays behind as rows, ordered by where
they are stored.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from datamanager.base.errors import TargetUnfit
from datamanager.repository.format import ZERO_PACK
from datamanager.repository.layers.layer import FileEntry, FileFlag, FileKind

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


class Layout:
    """The files made so far, by number, and the rows still to be fetched. One thread adds."""

    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        self.paths: list[str] = []
        self.names: list[bytes] = []
        self.sizes = array("Q")
        self.crcs = array("I")
        self.composed = bytearray()
        self._rows = [array("I") for _ in range(5)]  # pack, position, file, first page, pages
        self._closed: list[tuple[str, int]] = []

    def add(self, entry: FileEntry) -> None:
        """Make a file or directory and remember its rows. Raises: OSError, TargetUnfit."""
        if entry.path == TABLESPACE_MAP:
            return  # it would attach the restored server to the original tablespaces (PostgreSQL decision 1)
        path = self._destination.place(entry.path)
        if entry.kind is FileKind.DIRECTORY:
            os.makedirs(path, mode=0o700, exist_ok=True)  # noqa: PTH103 - hot and plain
        else:
            self._make_file(path, entry)
        if os.name != "nt":
            ours = self._ours(entry)
            os.chmod(path, entry.mode | ours)  # noqa: PTH101
            if entry.mode & ours != ours:
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
        self._remember(path, entry)

    def _remember(self, path: str, entry: FileEntry) -> None:
        """Number the file and keep its rows."""
        number = len(self.paths)
        self.paths.append(path)
        self.names.append(entry.path)
        self.sizes.append(entry.size)
        self.crcs.append(entry.crc32c)
        self.composed.append(bool(entry.flags & FileFlag.COMPOSED))
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
