"""Storing anew what lies scattered over too many packs, so that an old repository restores like a young one.

After a thousand increments a region of 64 MiB may draw on a thousand packs: a seek of a hard disk each, a request of
an object store each. Every backup re-stores the worst regions of its parent, from the repository, below its own layer.
Source: ``docs/format.md`` decision 15.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import zstandard

from datamanager.base.pipeline import StopToken
from datamanager.repository.format import PAGES_PER_CHUNK, ZERO_PACK
from datamanager.repository.known import ParentFile, ParentFiles
from datamanager.repository.layers.builder import LayerBuilder
from datamanager.repository.layers.layer import FileFlag
from datamanager.repository.packs.pack import fingerprint
from datamanager.repository.packs.stream import PackStream


@dataclass(frozen=True, slots=True)
class Scatter:
    """When a region is too scattered, and how much is stored anew in one run.

    Args:
        region_bytes: what is looked at together.
        packs: more packs than this in one region are too many.
        share: of the cluster's bytes stored anew at most, or ``least_bytes`` where that is more.
    """

    region_bytes: int = 64 << 20
    packs: int = 64
    share: float = 0.05
    least_bytes: int = 256 << 20


@dataclass(frozen=True, slots=True)
class Region:
    """Pages of one file that lie in ``packs`` different packs."""

    file: ParentFile
    first: int
    pages: int
    packs: int


def scattered_regions(parent: ParentFiles, page_size: int, scatter: Scatter) -> list[Region]:
    """The regions to store anew in this run, the most scattered first."""
    step = scatter.region_bytes // page_size
    found = []
    for file, rows in parent.in_many_rows(scatter.packs):
        region = rows.first.astype(np.int64) // step  # a row that runs on into the next region is near enough
        for number in np.unique(region).tolist():
            packs = len(np.unique(rows.pack[region == number]))
            if packs > scatter.packs:
                pages = min(step, -(-file.size // page_size) - number * step)
                found.append(Region(file, number * step, pages, packs))
    found.sort(key=lambda one: -one.packs)
    total = sum(file.size for file in parent)
    budget = max(int(total * scatter.share), scatter.least_bytes)
    chosen = []
    for one in found:
        budget -= one.pages * page_size
        if budget < 0:
            break
        chosen.append(one)
    return chosen


def store_anew(
    regions: list[Region],
    parent: ParentFiles,
    stream: PackStream,
    layer: LayerBuilder,
    fingerprint_key: bytes,
    page_size: int,
    level: int,
    stop: StopToken,
) -> int:
    """Read the regions from the repository and store them as grid chunks in ``layer``; returns the bytes stored anew.

    A chunk that cannot be read whole, or that holds the file's short last page, stays where it is.
    Raises: StoreError, Cancelled.
    """
    compressor = zstandard.ZstdCompressor(level=level)
    numbers: dict[int, int] = {}
    done = 0
    for region in regions:
        file = region.file
        whole = file.size // page_size
        for first in range(region.first, region.first + region.pages, PAGES_PER_CHUNK):
            stop.check()
            pages = np.empty((min(PAGES_PER_CHUNK, whole - first), page_size), np.uint8) if first < whole else None
            if pages is None or bool(np.any(parent.read_pages(file, first, pages) < page_size)):
                continue
            if file.number not in numbers:
                numbers[file.number] = layer.begin_file(file.path, file.kind, file.mode)
                flags = FileFlag.NONE if file.crc32c is not None else FileFlag.COMPOSED
                kept, crc = -(-file.size // page_size), file.crc32c or 0
                layer.end_file(file.size, kept=kept, crc32c=crc, flags=flags, file=numbers[file.number])
            if not pages.any():
                layer.add_row(first, len(pages), ZERO_PACK, 0, numbers[file.number])
                continue
            raw = pages.tobytes()
            pack, chunk = stream.add(compressor.compress(raw), len(raw), fingerprint(fingerprint_key, raw))
            number = layer.pack_number(pack)
            layer.add_row(first, len(pages), number, chunk * PAGES_PER_CHUNK, numbers[file.number])
            done += len(raw)
    stream.finish()
    return done
