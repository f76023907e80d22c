"""Which generations of a data pack are stored: generation 1, unless a listing shows others.

One listing of ``packs/`` a repository, made when it is first needed; after that only the folder of a pack that was not
where it should be is listed again, since a prune may have moved it. Source: ``docs/format.md``, Packs.
"""

from __future__ import annotations

import threading

from datamanager.repository.format import pack_generation, pack_key
from datamanager.storage.base import Storage


class PackPlaces:
    """Thread-safe. Remembers only packs that were written again: 300 bytes each."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._lock = threading.Lock()
        self._listed = False
        self._again: dict[bytes, tuple[int, ...]] = {}

    def generations(self, pack: bytes) -> tuple[int, ...]:
        """The generations to try, the newest first; (1,) also for a pack that no listing has shown.

        Raises: StoreError.
        """
        with self._lock:
            if not self._listed:
                self._again = self._list("packs/")
                self._listed = True
            return self._again.get(pack, (1,))

    def refresh(self, pack: bytes) -> None:
        """List the pack's folder again. Raises: StoreError."""
        folder = pack_key(pack).rpartition("/")[0] + "/"
        found = self._list(folder)
        with self._lock:
            for known in [one for one in self._again if pack_key(one).startswith(folder)]:
                del self._again[known]
            self._again.update(found)

    def _list(self, prefix: str) -> dict[bytes, tuple[int, ...]]:
        found: dict[bytes, list[int]] = {}
        firsts: set[bytes] = set()
        for one in self._storage.list(prefix):
            place = pack_generation(one.key)
            if place is None:
                continue
            if place[1] == 1:
                firsts.add(place[0])
            else:
                found.setdefault(place[0], []).append(place[1])
        return {
            pack: (*sorted(numbers, reverse=True), *((1,) if pack in firsts else ())) for pack, numbers in found.items()
        }
