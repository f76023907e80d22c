"""Comparing the pages of a stream with what the parent holds at the same place.

A page that was last changed before the parent began must be the one that the parent stored: it was on the server's disk
by then. Where it is not, the parent is not what the server held, and whoever builds on it must know.
Source: ``docs/design.md``, PostgreSQL decisions 5 and 17.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from datamanager.base.errors import IncrementRefused
from datamanager.base.units import Lsn
from datamanager.engine.backup.chunking import Chunk
from datamanager.postgres.page import page_lsns, spgist_metapages
from datamanager.repository.known import ParentFiles

MOST_MISMATCHES = 1000


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A page that differs from the parent's although nothing was to change it; ``block`` of that file."""

    path: bytes
    block: int


class PageComparer:
    """Thread-safe.

    Args:
        judged_to: pages last changed at or before this LSN are held against the parent; 0 judges none.
        exact: every change of a page is in the WAL, hint bits included, so equal LSNs mean equal bytes.
        strict: the first mismatch is an error.
    """

    def __init__(self, parent: ParentFiles, page_size: int, judged_to: Lsn, *, exact: bool, strict: bool) -> None:
        self.parent = parent
        self.page_size = page_size
        self._judged_to = int(judged_to)
        self._exact = exact
        self._strict = strict
        self._lock = threading.Lock()
        self.mismatches: list[Mismatch] = []
        self.judged = 0  # pages compared with the parent's

    def count(self, chunk: Chunk) -> None:
        """The chunk was held against the parent's."""
        if chunk.file.judged and self._judged_to:
            with self._lock:
                self.judged += -(-len(chunk.raw) // self.page_size)

    def changed_pages(self, chunk: Chunk) -> npt.NDArray[np.int64] | None:
        """Numbers within the chunk of the pages that the parent does not hold; None to store the whole chunk, as the
        parent has none of it or some of it cannot be read.

        Raises: IncrementRefused, when strict and the parent is not what the server held.
        """
        file = chunk.file.parent
        if file is None or chunk.first_page * self.page_size >= file.size:
            return None
        length = len(chunk.raw)
        count = -(-length // self.page_size)
        new = np.zeros((count, self.page_size), np.uint8)
        new.reshape(-1)[:length] = np.frombuffer(chunk.raw, np.uint8)
        old = np.empty_like(new)
        have = self.parent.read_pages(file, chunk.first_page, old)
        need = np.minimum(length - np.arange(count) * self.page_size, self.page_size)
        if not have.all():
            return None
        equal = (new.view(np.uint64) == old.view(np.uint64)).all(axis=1)
        changed = np.flatnonzero(~equal | (have < need))
        self.count(chunk)
        if chunk.file.judged and self._judged_to and length % self.page_size == 0:
            self._judge(chunk, new, old, changed)
        return changed

    def _judge(
        self,
        chunk: Chunk,
        new: npt.NDArray[np.uint8],
        old: npt.NDArray[np.uint8],
        changed: npt.NDArray[np.int64],
    ) -> None:
        inside = chunk.file.parent.size // self.page_size - chunk.first_page if chunk.file.parent else 0
        judged = changed[changed < inside]
        lsn, before = page_lsns(new[judged]), page_lsns(old[judged])
        wrong = (lsn > 0) & (lsn <= self._judged_to) & ((lsn != before) | self._exact)
        wrong &= ~(spgist_metapages(new[judged]) & (lsn == before))
        with self._lock:
            found = [Mismatch(chunk.file.path, chunk.first_page + int(page)) for page in judged[wrong]]
            self.mismatches += found[: MOST_MISMATCHES - len(self.mismatches)]
        if found and self._strict:
            raise IncrementRefused(
                f"audit increment: block {found[0].block} of {found[0].path.decode(errors='replace')} is not what "
                f"backup {self.parent.manifest.backup} holds, although nothing changed it since"
            )
