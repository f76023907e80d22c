"""Damaged lists: which stored chunks verify found unreadable, so that no writer relies on them again.

    object   damaged/<32 digits>, sealed, kind 7: {"time", "items": [{"key", "chunks": [numbers] or null, "what"}]}
    item     one *generation* of a data pack, by its key; null chunks mean all of it

A pack that is written again (by heal or prune) gets another key, so what an item says ends by itself once readers take
another generation than the one it names. Nothing is overwritten: verify adds lists and deletes those that are settled.
Source: ``docs/format.md`` decision 6.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from datamanager.base.errors import IntegrityError
from datamanager.repository.format import (
    MAX_CHUNKS_PER_PACK,
    MAX_SMALL_OBJECT_BYTES,
    PAGES_PER_CHUNK,
    Kind,
    canonical_json,
    pack_id,
)
from datamanager.repository.objects import UNREADABLE
from datamanager.repository.repository import Repository

FOLDER = "damaged/"
MAX_WHAT_LETTERS = 200
# Room for the frame around the items; one item of a pack's largest number of chunks takes 0.9 MB.
_LIST_BYTES = MAX_SMALL_OBJECT_BYTES - 4096
_LIST_KEY = re.compile(r"^damaged/[0-9a-f]{32}\Z")

Chunks = frozenset[int] | None


@dataclass(frozen=True, slots=True)
class DamagedItem:
    """One damaged generation of a data pack.

    Args:
        key: its object, ``packs/…``.
        chunks: numbers of the chunks that cannot be read, or None for the whole pack.
        what: what is wrong, for people, in a few words.
    """

    key: str
    chunks: tuple[int, ...] | None
    what: str

    @property
    def pack(self) -> bytes:
        """The pack's id. Raises: IntegrityError, when the key names no data pack."""
        found = pack_id(self.key) if self.key.startswith("packs/") else None
        if found is None:
            raise IntegrityError(f"read damaged list: {self.key[:80]!r} is not a pack")
        return found

    def to_json(self) -> dict[str, Any]:
        chunks = None if self.chunks is None else sorted(self.chunks)
        return {"key": self.key, "chunks": chunks, "what": self.what[:MAX_WHAT_LETTERS]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> DamagedItem:
        """Raises: IntegrityError, KeyError, TypeError, ValueError."""
        chunks = None if value["chunks"] is None else tuple(int(one) for one in value["chunks"])
        if chunks and not 0 <= min(chunks) <= max(chunks) < MAX_CHUNKS_PER_PACK:
            raise ValueError("a chunk that no pack has")
        item = cls(str(value["key"]), chunks, str(value["what"]))
        _ = item.pack
        return item


class DamagedChunks:
    """What is known to be damaged now. Immutable and thread-safe; a chunk in it counts as absent for every writer."""

    def __init__(self, places: dict[bytes, Chunks]) -> None:
        self._places = places

    @classmethod
    def load(cls, repository: Repository) -> DamagedChunks:
        """Read every damaged list: one listing when there is none, else also one directory a damaged pack.

        A list that cannot be read is reported and left out. Raises: StoreError.
        """
        places: dict[bytes, Chunks] = {}
        for item in (item for items in read_lists(repository).values() for item in items):
            if holds_still(repository, item):
                known = places.get(item.pack, frozenset())
                both = item.chunks is not None and known is not None
                places[item.pack] = known | frozenset(item.chunks or ()) if both and known is not None else None
        return cls(places)

    @classmethod
    def none(cls) -> DamagedChunks:
        return cls({})

    def has(self, pack: bytes, chunk: int) -> bool:
        """Whether that chunk, or its whole pack, is known to be damaged."""
        if pack not in self._places:
            return False
        chunks = self._places[pack]
        return chunks is None or chunk in chunks

    def touches(self, pack: bytes, positions: npt.NDArray[Any], pages: npt.NDArray[Any]) -> bool:
        """Whether any of these rows of one pack (position = chunk × 32 + page) needs a damaged chunk."""
        chunks = self.chunks(pack)
        if chunks is None:
            return True
        known = np.array(sorted(chunks), np.int64)
        first = positions.astype(np.int64) // PAGES_PER_CHUNK
        last = (positions.astype(np.int64) + pages.astype(np.int64) - 1) // PAGES_PER_CHUNK
        return bool(np.any(np.searchsorted(known, first) < np.searchsorted(known, last, side="right")))

    @property
    def packs(self) -> set[bytes]:
        """Ids of the packs of which anything is damaged."""
        return set(self._places)

    def chunks(self, pack: bytes) -> Chunks:
        """The damaged chunks of a pack, None for all of it, empty for one that is whole as far as is known."""
        return self._places.get(pack, frozenset())

    def __len__(self) -> int:
        return len(self._places)


def read_lists(repository: Repository) -> dict[str, tuple[DamagedItem, ...]]:
    """Every damaged list by its key; one that cannot be read is reported and left out. Raises: StoreError."""
    found: dict[str, tuple[DamagedItem, ...]] = {}
    for key in sorted(one.key for one in repository.storage.list(FOLDER)):
        if _LIST_KEY.match(key):
            try:
                found[key] = read_list(repository, key)
            except UNREADABLE as error:
                repository.objects.report(f"{error.message}; verify will find again what it said")
    return found


def read_list(repository: Repository, key: str) -> tuple[DamagedItem, ...]:
    """One damaged list. Raises: IntegrityError, FormatUnsupported, ObjectMissing, StoreError."""
    plain, _ = repository.objects.get_small(Kind.DAMAGED, key, [key])
    try:
        return tuple(DamagedItem.from_json(one) for one in json.loads(plain)["items"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise IntegrityError(f"read {key}: malformed damaged list") from error


def holds_still(repository: Repository, item: DamagedItem) -> bool:
    """Whether readers would still take the generation that the item names, or can take none.

    Raises: StoreError, when the store does not answer.
    """
    try:
        return repository.pack(item.pack).key == item.key
    except UNREADABLE:
        return True


def record(
    repository: Repository, found: Sequence[DamagedItem], settled: Callable[[DamagedItem], bool] = lambda item: False
) -> list[str]:
    """Write down what was found, unless the lists there say it already; drop what is settled.

    Args:
        found: damaged generations; several items may name one.
        settled: whether an item of an older list, which ``found`` does not repeat, is known to be over.
    Returns: keys of the lists written. Raises: StoreError. New lists are durable before an old one goes.
    """
    lists = read_lists(repository)
    old = [item for items in lists.values() for item in items]
    kept = [item for item in old if not settled(item) or _says(found, item)]
    superseded = [key for key, items in lists.items() if any(item not in kept for item in items)]
    staying = [item for key, items in lists.items() if key not in superseded for item in items]
    wanted = [*(item for item in kept if item not in staying), *found]
    new: list[DamagedItem] = []
    for item in wanted:
        if not _says([*staying, *new], item):
            new.append(item)
    written = [_put(repository, part) for part in _parts(new)]
    if written:
        repository.storage.barrier()
    for key in superseded:
        repository.storage.delete(key)
    return written


def drop_settled(repository: Repository, needed: Container[bytes]) -> list[str]:
    """Delete the lists of which every item is healed or names a pack that nobody needs.

    Args: needed - ids of the packs that backups refer to.
    Returns: the keys deleted. Raises: StoreError.
    """
    dropped = []
    for key, items in read_lists(repository).items():
        if not any(item.pack in needed and holds_still(repository, item) for item in items):
            repository.storage.delete(key)
            dropped.append(key)
    return dropped


def _says(items: Iterable[DamagedItem], item: DamagedItem) -> bool:
    """Whether these items together say all that ``item`` says."""
    chunks: set[int] = set()
    for one in items:
        if one.key == item.key:
            if one.chunks is None:
                return True
            chunks.update(one.chunks)
    return item.chunks is not None and chunks.issuperset(item.chunks)


def _parts(items: Sequence[DamagedItem]) -> Iterator[list[DamagedItem]]:
    """As many items a list as its bound allows."""
    part: list[DamagedItem] = []
    room = _LIST_BYTES
    for item in items:
        size = len(canonical_json(item.to_json())) + 1
        if part and size > room:
            yield part
            part, room = [], _LIST_BYTES
        part.append(item)
        room -= size
    if part:
        yield part


def _put(repository: Repository, items: Sequence[DamagedItem]) -> str:
    key = f"{FOLDER}{secrets.token_hex(16)}"
    time = repository.clock.now().isoformat(timespec="seconds")
    plain = canonical_json({"time": time, "items": [item.to_json() for item in items]})
    repository.objects.put_small(Kind.DAMAGED, key, [key], plain)
    return key
