"""The files of a server's increment: what INCREMENTAL.* members hold, and the label that names the parent.

    stub  = magic u32 | blocks u32 | truncation length u32 | block number u32 x blocks | zeros to a whole page | blocks

Block numbers count from the start of the segment and rise; the padding is there only where there are blocks. The file
is rebuilt to the length max(truncation length, last block + 1); pages of the parent show below the truncation length.
Source: PostgreSQL src/include/backup/basebackup_incremental.h, src/bin/pg_combinebackup/reconstruct.c (17).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from struct import Struct

import numpy as np
from crc32c import crc32c

from datamanager.base.errors import IncrementRefused
from datamanager.base.units import Lsn
from datamanager.postgres.wal_summaries import Relation

MAGIC = 0xD3AE1F0D
MAX_BLOCKS = 131_072  # of 8 KiB in a segment of 1 GiB, the only sizes for which increments are taken
_HEAD = Struct("=III")
_DEFAULT, _GLOBAL = 1663, 1664  # OIDs of pg_default and pg_global
_PREFIX = b"INCREMENTAL."
_LABEL_LSN = re.compile(rb"^INCREMENTAL FROM LSN: ([0-9A-F]+/[0-9A-F]+)\n", re.MULTILINE)
_LABEL_TIMELINE = re.compile(rb"^INCREMENTAL FROM TLI: ([0-9]+)\n", re.MULTILINE)
_RELATION = re.compile(rb"(?:global|base/([0-9]+)|pg_tblspc/([0-9]+)/[^/]+/([0-9]+))/([0-9]+)(?:\.[0-9]+)?\Z")
_VISIBILITY_MAP = re.compile(rb"_vm(?:\.[0-9]+)?\Z")


def relation_of(path: bytes) -> Relation | None:
    """Whose main fork a file is, whatever its segment; None for every other file."""
    match = _RELATION.match(path)
    if match is None:
        return None
    base, tablespace, database, file = match.groups()
    if tablespace is not None:
        return Relation(int(tablespace), int(database), int(file))
    return Relation(_DEFAULT, int(base), int(file)) if base is not None else Relation(_GLOBAL, 0, int(file))


class StubParser:
    """Takes one member of an increment in pieces of any size. One thread.

    Args:
        path: of the member, as the server's manifest lists it.
        parent_pages: pages of the parent's file; None when the parent has no such file of whole pages.
        on_page: takes each changed page with its number; the view is not valid after return.
    """

    def __init__(
        self, path: bytes, parent_pages: int | None, page_size: int, on_page: Callable[[int, memoryview], None]
    ) -> None:
        self.path = path
        self.blocks = 0
        self.bytes = 0
        self.crc32c = 0
        self._parent_pages = parent_pages
        self._page_size = page_size
        self._on_page = on_page
        self._head = bytearray()
        self._need = _HEAD.size
        self._numbers: list[int] | None = None
        self._length = 0
        self._next = 0
        self._page = bytearray()

    @staticmethod
    def target(path: bytes) -> bytes | None:
        """The file that a member rebuilds; None for a member that is the file itself."""
        folder, slash, name = path.rpartition(b"/")
        return folder + slash + name[len(_PREFIX) :] if name.startswith(_PREFIX) else None

    def feed(self, data: memoryview) -> None:
        """Take the next bytes. Raises: IncrementRefused for what no server sends."""
        self.bytes += len(data)
        self.crc32c = crc32c(data, self.crc32c)
        if self._numbers is None:
            data = self._feed_head(data)
        while len(data):
            if self._next == self.blocks:
                raise self._broken("it is longer than its blocks")
            if not self._page and len(data) >= self._page_size:
                page, data = data[: self._page_size], data[self._page_size :]
                self._give(page)
                continue
            room = self._page_size - len(self._page)
            self._page += data[:room]
            data = data[room:]
            if len(self._page) == self._page_size:
                self._give(memoryview(self._page))
                self._page = bytearray()

    def finish(self) -> tuple[int, int]:
        """The size of the rebuilt file in bytes, and how many pages of the parent may show.

        Raises: IncrementRefused.
        """
        if self._numbers is None or self._next != self.blocks or self._page:
            raise self._broken("it ends too early")
        if self._parent_pages is None:
            raise self._broken("the parent has no such file")
        last = self._numbers[-1] + 1 if self._numbers else 0
        return max(self._length, last) * self._page_size, min(self._length, self._parent_pages)

    def _give(self, page: memoryview) -> None:
        if self._numbers is not None:
            self._on_page(self._numbers[self._next], page)
            self._next += 1

    def _feed_head(self, data: memoryview) -> memoryview:
        while len(data) and len(self._head) < self._need:
            room = self._need - len(self._head)
            self._head += data[:room]
            data = data[room:]
            if len(self._head) == _HEAD.size:
                self._need = self._parse_head()
        if len(self._head) == self._need and self._need >= _HEAD.size:
            self._parse_numbers()
        return data

    def _parse_head(self) -> int:
        """How many bytes come before the first block."""
        magic, self.blocks, self._length = _HEAD.unpack(self._head)
        if magic != MAGIC or self.blocks > MAX_BLOCKS or self._length > MAX_BLOCKS:
            raise self._broken("its header makes no sense")
        size = _HEAD.size + 4 * self.blocks
        return size if self.blocks == 0 else -(-size // self._page_size) * self._page_size

    def _parse_numbers(self) -> None:
        if not self.blocks:  # nearly every file of a quiet cluster
            self._numbers = []
            return
        numbers = np.frombuffer(self._head, "=u4", self.blocks, _HEAD.size).astype(np.int64)
        if numbers[-1] >= MAX_BLOCKS or bool(np.any(np.diff(numbers) <= 0)):
            raise self._broken("its block numbers do not rise")
        self._numbers = numbers.tolist()

    def _broken(self, what: str) -> IncrementRefused:
        return IncrementRefused(f"read increment: {self.path.decode(errors='replace')}: {what}")


def is_visibility_map(path: bytes) -> bool:
    """Visibility maps always come whole: servers were wrong about which of their pages changed (decision 2)."""
    return _VISIBILITY_MAP.search(path) is not None


def without_parent(label: bytes, start: Lsn, timeline: int) -> bytes:
    """A backup_label without the lines that name the parent, with which no server would start (decision 8).

    Args: start, timeline - the parent's, which the label must name. Raises: IncrementRefused.
    """
    lsn, line = _LABEL_LSN.search(label), _LABEL_TIMELINE.search(label)
    if lsn is None or line is None or Lsn.parse(lsn[1].decode()) != start or int(line[1]) != timeline:
        raise IncrementRefused("read increment: its label does not name the parent that was sent")
    return _LABEL_TIMELINE.sub(b"", _LABEL_LSN.sub(b"", label))
