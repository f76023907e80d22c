"""Page checksums of what a restore writes: the witness for files whose CRC-32C nobody knows.

Pages are gathered into batches, of whatever files they are: checking many at once is three times as fast as a chunk at
a time (``postgres/page.py``). Source: ``docs/format.md`` decision 17.
"""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt

from datamanager.base.errors import IntegrityError
from datamanager.base.units import Lsn
from datamanager.postgres.page import relation_segment, wrong_pages
from datamanager.repository.manifest import Manifest

_BATCH_BYTES = 8 << 20  # 1,024 pages: what postgres/page.py takes at once

I64 = npt.NDArray[np.int64]


class PageRules:
    """Which pages of a backup must have a right checksum. Thread-safe.

    Pages written after the backup began may be torn: replay of the WAL rewrites them. Pages that were bad on the server
    when the backup was taken are restored as they were.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.page_size = manifest.page_size
        self.start = int(Lsn.parse(manifest.start_lsn))
        self._on = manifest.checksums
        self._segment_pages = manifest.segment_size // manifest.page_size
        self._bad = {os.fsencode(one.path): frozenset(one.blocks) for one in manifest.checksum_failures}

    def first_block(self, path: bytes) -> int | None:
        """The number within its relation of a file's first page; None for a file whose pages have no checksums."""
        segment = relation_segment(path) if self._on else None
        return None if segment is None else segment * self._segment_pages

    def known_bad(self, path: bytes, page: int) -> bool:
        """Whether this page of the file was bad on the server."""
        return page in self._bad.get(path, ())


class PageChecker:
    """Gathers pages and judges them a batch at a time. One a thread; owns a buffer of 8 MiB.

    Args: names - the files' paths by number, for the error.
    """

    def __init__(self, rules: PageRules, names: list[bytes]) -> None:
        self._rules = rules
        self._names = names
        count = _BATCH_BYTES // rules.page_size
        self._pages = np.empty((count, rules.page_size), np.uint8)
        self._blocks = np.empty(count, np.int64)
        self._files = np.empty(count, np.int64)
        self._end = 0

    def add(self, raw: bytes | memoryview, places: I64, files: I64, blocks: I64) -> None:
        """Pages of one chunk. Args: places - in the chunk; blocks - within the relation. Raises: IntegrityError."""
        count = len(places)
        if self._end + count > len(self._pages):
            self.flush()
        size = self._rules.page_size
        pages = np.frombuffer(raw, np.uint8, len(raw) // size * size).reshape(-1, size)
        span = slice(self._end, self._end + count)
        np.take(pages, places, axis=0, out=self._pages[span], mode="clip")
        self._blocks[span] = blocks
        self._files[span] = files
        self._end += count

    def flush(self) -> None:
        """Judge what is left. Raises: IntegrityError naming file and block of a wrong page."""
        pages, blocks = self._pages[: self._end], self._blocks[: self._end]
        for place in np.flatnonzero(wrong_pages(pages, blocks, self._rules.start)).tolist():
            path, block = self._names[int(self._files[place])], int(blocks[place])
            first = self._rules.first_block(path) or 0
            if not self._rules.known_bad(path, block - first):
                raise IntegrityError(
                    f"restore {os.fsdecode(path)}: block {block} has a wrong page checksum",
                    hint="Restore an older backup; then run `datamanager repo verify`, which names what is damaged.",
                )
        self._end = 0
