"""Which pages are still needed: a page is live when the composed view of some root backup shows it.

Roots are the backups without a delete mark and the parents that live leases name. A mask of 32 bits a chunk takes 17 MB
per TiB of database. Source: ``docs/format.md`` decision 3 and Prune.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from datamanager.base.errors import IntegrityError, NotFound
from datamanager.base.pipeline import StopToken
from datamanager.repository.format import BACKUP_ID, ZERO_PACK
from datamanager.repository.layers.contents import Contents
from datamanager.repository.layers.layer import FileEntry
from datamanager.repository.manifest import LayerReference, Manifest
from datamanager.repository.objects import UNREADABLE
from datamanager.repository.packs.page_masks import I64, U32, page_masks
from datamanager.repository.repository import Repository

_BATCH_ROWS = 200_000  # 30 MB while they are sorted


@dataclass(frozen=True, slots=True)
class Roots:
    """The backups of a repository. ``deleted`` are those that no live lease holds."""

    kept: list[Manifest]
    deleted: list[str]


def find_roots(repository: Repository, parents: Collection[str]) -> Roots:
    """Every manifest there is, told apart. Args: parents - named by live leases, listed before.

    Raises: IntegrityError, when a manifest that counts cannot be read: nothing may be deleted then; StoreError.
    """
    names = {
        one.key.removeprefix(folder)
        for folder in ("manifests/", "manifests-b/")
        for one in repository.storage.list(folder)
    }
    marked = repository.deleted()
    kept, deleted = [], []
    for name in sorted(name for name in names if BACKUP_ID.match(name)):
        if name in marked and name not in parents:
            deleted.append(name)
            continue
        try:
            kept.append(repository.manifest(name))
        except NotFound:
            continue  # a commit that was taken back since it was listed
        except UNREADABLE as error:
            raise _refusal(f"backup {name} cannot be read ({error.message})", name) from error
    return Roots(sorted(kept, key=lambda one: (one.sequence, one.backup)), deleted)


def _refusal(cause: str, backup: str) -> IntegrityError:
    return IntegrityError(
        f"prune repository: {cause}, so nobody knows what it needs and nothing is deleted",
        hint="Mend it from another copy with `datamanager repo heal`, or give it up with "
        f"`datamanager backup delete {backup}`.",
    )


class LivePages:
    """Collects the pages and metadata packs that backups need. One thread."""

    def __init__(self) -> None:
        self.masks: dict[bytes, U32] = {}
        self.page_sizes: dict[bytes, set[int]] = {}
        self.metadata: set[bytes] = set()
        self.named: dict[bytes, set[bytes]] = {}  # digests of all packs in the tables of layers, live or not
        self._stacks: set[tuple[object, ...]] = set()

    def add(self, repository: Repository, manifest: Manifest, stop: StopToken) -> None:
        """Everything that one backup shows.

        Raises: IntegrityError naming it, when a layer cannot be read; StoreError, Cancelled.
        """
        self.metadata |= metadata_packs(manifest.layers)
        stack = (manifest.page_size, *(tuple(reference.spans) for reference in manifest.layers))
        if stack in self._stacks:
            return
        try:
            self.add_contents(repository.contents(manifest), stop)
        except UNREADABLE as error:
            cause = f"a layer of backup {manifest.backup} cannot be read ({error.message})"
            raise _refusal(cause, manifest.backup) from error
        self._stacks.add(stack)

    def add_contents(self, contents: Contents, stop: StopToken) -> None:
        """The same for composed files. Raises: IntegrityError, ObjectMissing, StoreError, Cancelled."""
        for pack, digest in contents.packs:
            self.named.setdefault(pack, set()).add(digest)
        batch: list[FileEntry] = []
        rows = 0
        for entry in contents.files():
            if len(entry.rows.first):
                batch.append(entry)
                rows += len(entry.rows.first)
            if rows >= _BATCH_ROWS:
                self._add_batch(contents, batch)
                batch, rows = [], 0
            stop.check()
        self._add_batch(contents, batch)

    def _add_batch(self, contents: Contents, batch: list[FileEntry]) -> None:
        if not batch:
            return
        packs, positions, pages = (
            np.concatenate([getattr(entry.rows, name) for entry in batch]).astype(np.int64)
            for name in ("pack", "position", "pages")
        )
        held = packs != ZERO_PACK
        if not held.any():
            return
        packs, positions, pages = packs[held], positions[held], pages[held]
        chunks, bits, row = page_masks(positions, pages)
        owners = packs[row]
        order = np.lexsort((chunks, owners))
        owners, chunks, bits = owners[order], chunks[order], bits[order]
        starts = np.flatnonzero(np.concatenate(([True], (np.diff(owners) != 0) | (np.diff(chunks) != 0))))
        owners, chunks, bits = owners[starts], chunks[starts], np.bitwise_or.reduceat(bits, starts)
        edges = np.flatnonzero(np.concatenate(([True], np.diff(owners) != 0))).tolist()
        for start, end in zip(edges, [*edges[1:], len(owners)], strict=True):
            self._merge(contents.packs[int(owners[start])][0], chunks[start:end], bits[start:end], contents.page_size)

    def _merge(self, pack: bytes, chunks: I64, bits: U32, page_size: int) -> None:
        masks = self.masks.get(pack, np.zeros(0, np.uint32))
        if chunks[-1] >= len(masks):
            grown = np.zeros(int(chunks[-1]) + 1, np.uint32)
            grown[: len(masks)] = masks
            masks = self.masks[pack] = grown
        masks[chunks] |= bits
        self.page_sizes.setdefault(pack, set()).add(page_size)


def metadata_packs(layers: list[LayerReference]) -> set[bytes]:
    """The packs that these layers lie in."""
    return {bytes.fromhex(pack) for reference in layers for pack, _, _ in reference.spans}
