"""The files of a backup, put together from its layers; and several layers put together as one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from datamanager.repository.format import ZERO_PACK
from datamanager.repository.layers.layer import FileEntry
from datamanager.repository.layers.reader import LayerReader, compose

PackTable = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Contents:
    """The files of one backup, composed from its layers, oldest first.

    ``packs`` is the joined pack table (id, digest) that the rows' pack numbers index.
    """

    packs: PackTable
    layers: list[LayerReader]
    page_size: int

    def files(self) -> Iterator[FileEntry]:
        """Every file in path order; holds a block per layer in memory. Raises: IntegrityError."""
        tables = [layer.packs for layer in self.layers]
        for group in by_path([layer.entries() for layer in self.layers], tables):
            entry = compose(group, self.page_size)
            if entry is not None:
                yield entry

    def find(self, path: bytes) -> FileEntry | None:
        """One file, without reading the others."""
        group, base = [], 0
        for layer in self.layers:
            entry = layer.find(path)
            if entry is not None:
                group.append(_shift(entry, base))
            base += len(layer.packs)
        return compose(group, self.page_size) if group else None


def by_path(layers: Sequence[Iterator[FileEntry]], tables: Sequence[PackTable]) -> Iterator[list[FileEntry]]:
    """The entries of each path, oldest to newest; their pack numbers index the joined ``tables``.

    Args: layers - each sorted by path, oldest first.
    """
    groups: Iterator[list[FileEntry]] = iter(())
    base = sum(len(table) for table in tables)
    for layer, table in zip(reversed(layers), reversed(tables), strict=True):
        base -= len(table)
        groups = _stacked(_numbered(layer, base), groups)
    return groups


def _stacked(older: Iterator[FileEntry], newer: Iterator[list[FileEntry]]) -> Iterator[list[FileEntry]]:
    """One layer below the groups of those above it. Its entries pass through no other level."""
    group = next(newer, None)
    if group is None:
        for entry in older:
            yield [entry]
        return
    for entry in older:
        while group is not None and group[0].path < entry.path:
            yield group
            group = next(newer, None)
        if group is not None and group[0].path == entry.path:
            yield [entry, *group]
            group = next(newer, None)
        else:
            yield [entry]
    while group is not None:
        yield group
        group = next(newer, None)


def _numbered(layer: Iterator[FileEntry], base: int) -> Iterator[FileEntry]:
    return layer if base == 0 else (_shift(entry, base) for entry in layer)


def _shift(entry: FileEntry, base: int) -> FileEntry:
    if base == 0 or not len(entry.rows.pack):
        return entry
    pack = entry.rows.pack.copy()
    pack[pack != ZERO_PACK] += base
    return replace(entry, rows=entry.rows._replace(pack=pack))
