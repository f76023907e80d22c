"""Pushing a new layer onto those of the parent, and merging the newest ones so that the stack stays short.

The newest layers are merged while the merged part has at least half the weight of the next one, or while there would be
more than eight: what a backup writes then follows what changed, and a reader never paints more than eight layers.
Source: ``docs/format.md`` decision 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import zstandard

from datamanager.base.pipeline import StopToken, TaskGroup
from datamanager.repository.format import MAX_LAYERS, Kind
from datamanager.repository.layers.builder import LayerBuilder, LayerEncoder
from datamanager.repository.layers.contents import by_path
from datamanager.repository.layers.layer import FILE_BYTES, ROW_BYTES, FileEntry, FileFlag
from datamanager.repository.layers.reader import overlay
from datamanager.repository.manifest import LayerReference
from datamanager.repository.packs.pack import NO_FINGERPRINT
from datamanager.repository.packs.stream import PackStream
from datamanager.repository.repository import Repository

_TYPICAL_PATH_BYTES = 20
_ZSTD_LEVEL = 3


def push_layer(
    repository: Repository,
    newest: list[LayerBuilder],
    older: list[LayerReference],
    stop: StopToken,
    before_put: Callable[[int], None],
) -> list[LayerReference]:
    """Store ``newest`` on top of ``older`` (both newest first), as one layer with as many of the older as is due.

    Returns: the layers of the new backup, newest first. Raises: StoreError, IntegrityError, Cancelled.
    """
    merged = layers_to_merge(sum(one.files for one in newest), sum(one.rows for one in newest), older)
    readers = [repository.layer(reference) for reference in reversed(older[:merged])]
    builders = list(reversed(newest))
    tables = [*(reader.packs for reader in readers), *(one.packs for one in builders)]
    joined = [entry for table in tables for entry in table]
    groups = by_path([*(reader.entries() for reader in readers), *(one.entries() for one in builders)], tables)
    at_bottom = merged == len(older)
    spans: list[tuple[str, int, int]] = []
    with TaskGroup(stop) as group:
        compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
        stream = PackStream(repository.objects, Kind.META, group, lambda pack: None, before_put)

        def put(chunk: bytes) -> None:
            pack, number = stream.add(compressor.compress(chunk), len(chunk), NO_FINGERPRINT)
            if spans and spans[-1][0] == pack.hex():
                spans[-1] = (spans[-1][0], spans[-1][1], spans[-1][2] + 1)
            else:
                spans.append((pack.hex(), number, 1))

        encoder = LayerEncoder(put)
        for entry in _merged(groups, at_bottom=at_bottom):
            encoder.add(entry, joined)
        size = encoder.finish()
        stream.finish()
    reference = LayerReference(spans, size.blocks, size.table, size.index, size.files, size.rows)
    return [reference, *older[merged:]]


def _merged(groups: Iterator[list[FileEntry]], *, at_bottom: bool) -> Iterator[FileEntry]:
    for group in groups:
        entry = overlay(group)
        if not (at_bottom and entry.flags & FileFlag.GONE):
            yield entry


def layers_to_merge(files: int, rows: int, older: list[LayerReference]) -> int:
    """How many of the ``older`` layers (newest first) a new layer of so many files and rows is merged with."""
    weight = _weight(files, rows)
    merged = 0
    for reference in older:
        below = _weight(reference.files, reference.rows)
        if 2 * weight < below and 1 + len(older) - merged <= MAX_LAYERS:
            break
        weight += below
        merged += 1
    return merged


def _weight(files: int, rows: int) -> int:
    return files * (FILE_BYTES + _TYPICAL_PATH_BYTES) + rows * ROW_BYTES
