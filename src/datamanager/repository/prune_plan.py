"""What a prune would do, decided from what was found. Pure: nothing here reads or writes a store.

    dead        objects that no root needs: manifests of deleted backups, their metadata, packs without a live page
    superseded  generations of a pack of which a higher one holds every live page
    rewrites    packs of which little is live, worst first, as far as the caller's limit reaches

Source: ``docs/format.md``, Prune and decision 3.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from datamanager.repository.format import PADDING_BYTES, manifest_keys, pack_generation
from datamanager.repository.packs.pack import PackDirectory
from datamanager.repository.packs.page_masks import U32, count_pages, full_masks
from datamanager.storage.base import StoredObject

LIVE_SHARE = 0.60  # below it a pack is written again; simulated: 1.13 times the database after a year, see decision 3
ORPHAN_SECONDS = 7 * 86_400.0  # packs of interrupted backups serve for resuming until then
# Bytes of a directory a chunk, compressed: the fingerprints do not compress.
_ROW_BYTES = 24


@dataclass(frozen=True, slots=True)
class PackState:
    """One data pack with live pages and all its stored generations.

    Args:
        generations: stored sizes, by generation.
        keeper: the highest generation that holds every live page; None when none does.
        live_bytes, chunk_bytes: of the keeper's sealed chunks, what live pages take (estimated) and all.
        chunks: how many there are.
    """

    pack: bytes
    generations: Mapping[int, int]
    keeper: int | None
    live_bytes: int
    chunk_bytes: int
    chunks: int

    @property
    def live_share(self) -> float:
        return self.live_bytes / self.chunk_bytes if self.chunk_bytes else 1.0

    @property
    def expected_bytes(self) -> int:
        """The size of a next generation, padding included."""
        size = self.live_bytes + _ROW_BYTES * self.chunks + 256
        return -(-size // PADDING_BYTES) * PADDING_BYTES


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A pack to be written again: ``target`` from ``source``. Sizes in bytes; ``size`` is what then goes."""

    pack: bytes
    source: int
    target: int
    size: int
    expected: int
    live_share: float


@dataclass(frozen=True, slots=True)
class Superseded:
    """Generations that can go once generation ``keeper`` was read and is whole."""

    pack: bytes
    keeper: int
    generations: Mapping[int, int]


@dataclass(slots=True)
class PrunePlan:
    """Sizes in bytes by key, or of each item."""

    backups: list[str] = field(default_factory=list)
    manifests: dict[str, int] = field(default_factory=dict)
    metadata: dict[str, int] = field(default_factory=dict)
    packs: dict[str, int] = field(default_factory=dict)
    superseded: list[Superseded] = field(default_factory=list)
    rewrites: list[Rewrite] = field(default_factory=list)
    postponed: list[Rewrite] = field(default_factory=list)
    kept_orphans: int = 0  # bytes of packs of interrupted backups, kept for resuming

    @property
    def dead(self) -> dict[str, int]:
        """Everything that nobody needs, in the order in which it goes: manifests, metadata, packs."""
        return self.manifests | self.metadata | self.packs


def judge_pack(
    pack: bytes,
    generations: Mapping[int, int],
    directories: Mapping[int, PackDirectory],
    live: U32,
    page_size: int,
) -> PackState:
    """Find out which generation holds every live page and how much of it is live.

    Args: directories - of the generations that can be read, by number.
    """
    for number in sorted(directories, reverse=True):
        directory = directories[number]
        if len(live) > len(directory):
            continue
        wanted = np.zeros(len(directory), np.uint32)
        wanted[: len(live)] = live
        have = full_masks(directory.raw, page_size) if directory.masks is None else directory.masks
        if np.any(wanted & ~have):
            continue
        stored = np.diff(directory.offsets)
        shares = count_pages(wanted) / np.maximum(count_pages(have), 1)
        return PackState(pack, generations, number, int((stored * shares).sum()), int(stored.sum()), len(directory))
    return PackState(pack, generations, None, 0, 0, 0)


def plan_rewrites(states: Sequence[PackState], limit_bytes: float, plan: PrunePlan) -> None:
    """Add what is superseded, and what is to be written again: worst first, up to ``limit_bytes`` of packs."""
    found: list[tuple[Rewrite, bool]] = []
    for state in states:
        if state.keeper is None:
            continue
        top = max(state.generations)
        # A keeper below the top: the newer generation lacks pages of a backup that was undeleted.
        worn = state.live_share < LIVE_SHARE and state.expected_bytes < state.generations[state.keeper]
        if worn or state.keeper != top:
            size = sum(state.generations.values())
            rewrite = Rewrite(state.pack, state.keeper, top + 1, size, state.expected_bytes, state.live_share)
            found.append((rewrite, state.keeper == top))
        else:
            _supersede(plan, state.pack, state.keeper, state.generations)
    sizes = {state.pack: state.generations for state in states}
    left = limit_bytes
    for one, from_top in sorted(found, key=lambda item: (item[0].live_share, item[0].pack)):
        if one.size <= left:
            plan.rewrites.append(one)
            left -= one.size
        else:
            plan.postponed.append(one)
            if from_top:
                _supersede(plan, one.pack, one.source, sizes[one.pack])


def _supersede(plan: PrunePlan, pack: bytes, keeper: int, generations: Mapping[int, int]) -> None:
    lower = {number: size for number, size in generations.items() if number < keeper}
    if lower:
        plan.superseded.append(Superseded(pack, keeper, lower))


def plan_dead(
    plan: PrunePlan,
    listed: Sequence[StoredObject],
    live: Collection[bytes],
    known_dead: Collection[bytes],
    condemned: Collection[str],
    orphans_before: float,
) -> None:
    """Add the packs, of data or of layers, without anything live.

    Args:
        listed: what lies below ``packs/``, ``meta/`` and ``meta-b/``.
        live: ids that some root needs.
        known_dead: ids that deleted backups name, so that they are no orphans.
        condemned: keys that an earlier list names.
        orphans_before: packs that nobody names go when the store put them before this time.
    """
    for one in listed:
        place = pack_generation(one.key)
        if place is None or place[0] in live:
            continue
        if place[0] in known_dead or one.key in condemned or one.mtime < orphans_before:
            (plan.packs if one.key.startswith("packs/") else plan.metadata)[one.key] = one.size
        else:
            plan.kept_orphans += one.size


def plan_manifests(plan: PrunePlan, deleted: Iterable[str], sizes: Mapping[str, int]) -> None:
    """Add both copies of the manifests of deleted backups, the first copy first."""
    for backup in deleted:
        plan.backups.append(backup)
        for key in manifest_keys(backup):
            if key in sizes:
                plan.manifests[key] = sizes[key]
