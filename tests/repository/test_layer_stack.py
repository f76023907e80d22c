"""A stack of layers, pushed and merged again and again, shows what painting every layer page by page shows."""

from __future__ import annotations

import random
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamanager.base.errors import IntegrityError
from datamanager.base.pipeline import StopToken
from datamanager.repository.format import MAX_LAYERS, ZERO_PACK
from datamanager.repository.layers.builder import LayerBuilder, encode_layer
from datamanager.repository.layers.contents import Contents
from datamanager.repository.layers.layer import FileEntry, FileFlag, FileKind, Rows
from datamanager.repository.layers.reader import LayerReader
from datamanager.repository.layers.stack import layers_to_merge, push_layer
from datamanager.repository.manifest import LayerReference
from datamanager.repository.repository import Repository
from tests.repository.parts import new_repository

PAGE = 1024
PACKS = [bytes([number]) * 16 for number in range(1, 6)]

Place = tuple[bytes, int]  # pack and position
Pages = dict[int, Place | None]  # None: zeros
Row = tuple[int, int, int, int]  # first page, pages, pack of PACKS or ZERO_PACK, position


class Told:
    """One entry of a layer as a test says it."""

    def __init__(self, rows: Iterable[Row], size: int, kept: int = 0, flags: FileFlag = FileFlag.NONE) -> None:
        self.rows, self.size, self.kept, self.flags = list(rows), size, kept, flags


GONE = Told((), 0, flags=FileFlag.GONE)
Layer = dict[bytes, Told]


class Painted:
    """The files after every layer so far, painted page by page as docs/format.md says."""

    def __init__(self) -> None:
        self.files: dict[bytes, tuple[Pages, int, FileFlag]] = {}

    def paint(self, layer: Layer) -> None:
        for path, told in layer.items():
            if told.flags & FileFlag.GONE:
                self.files.pop(path, None)
                continue
            before = self.files.get(path, ({}, 0, FileFlag.NONE))[0]
            pages = {page: place for page, place in before.items() if page < told.kept}
            for first, count, pack, position in told.rows:
                for n in range(count):
                    pages[first + n] = None if pack == ZERO_PACK else (PACKS[pack], position + n)
            self.files[path] = pages, told.size, told.flags

    def shown(self) -> dict[bytes, tuple[dict[int, Place], int, FileFlag]]:
        return {
            path: ({page: one for page, one in pages.items() if one and page * PAGE < size}, size, flags)
            for path, (pages, size, flags) in self.files.items()
        }


def builder_of(layer: Layer, chance: random.Random) -> LayerBuilder:
    """The layer as a backup would make it: its own order of packs, its rows in any order."""
    builder = LayerBuilder()
    for path in chance.sample(sorted(layer), len(layer)):
        told = layer[path]
        builder.begin_file(path, FileKind.REGULAR, 0o600)
        for first, count, pack, position in chance.sample(told.rows, len(told.rows)):
            number = ZERO_PACK if pack == ZERO_PACK else builder.pack_number(PACKS[pack])
            builder.add_row(first, count, number, position)
        builder.end_file(told.size, kept=told.kept, flags=told.flags)
    for identity, _ in list(builder.packs):
        builder.set_digest(identity, identity[::-1])
    return builder


def contents_of(repository: Repository, layers: list[LayerReference]) -> Contents:
    readers = [repository.layer(reference) for reference in reversed(layers)]
    return Contents([pack for reader in readers for pack in reader.packs], readers, PAGE)


def shown_by(entry: FileEntry, packs: list[tuple[bytes, bytes]]) -> tuple[dict[int, Place], int, FileFlag]:
    pages: dict[int, Place] = {}
    end = 0
    for first, count, pack, position in zip(*(column.tolist() for column in entry.rows), strict=True):
        assert first >= end, "rows rise and are disjoint"
        end = first + count
        for n in range(count if pack != ZERO_PACK else 0):
            pages[first + n] = (packs[pack][0], position + n)
    assert end * PAGE < entry.size + PAGE, "no row lies beyond the file"
    return pages, entry.size, entry.flags


def push(repository: Repository, newest: list[LayerBuilder], older: list[LayerReference]) -> list[LayerReference]:
    with StopToken() as stop:
        return push_layer(repository, newest, older, stop, lambda size: None)


def assert_shows(repository: Repository, layers: list[LayerReference], painted: Painted) -> None:
    contents = contents_of(repository, layers)
    expected = painted.shown()
    assert {entry.path: shown_by(entry, contents.packs) for entry in contents.files()} == expected
    for path in [*sorted(expected)[:: max(1, len(expected) // 20)], b"never"]:
        entry = contents.find(path)
        assert (entry is None) == (path not in expected)
        assert entry is None or shown_by(entry, contents.packs) == expected[path]


PATHS = [b"a", b"a/b", b"a/c", b"b", b"base/1", b"base/1.1"]


@st.composite
def rows_below(draw: st.DrawFn, end: int) -> list[Row]:
    rows, first = [], draw(st.integers(0, 8))
    while first < end:
        count = draw(st.integers(1, end - first))
        pack = draw(st.sampled_from([*range(len(PACKS)), ZERO_PACK]))
        rows.append((first, count, pack, draw(st.integers(0, 3)) * 32 + draw(st.integers(0, 31))))
        first += count + draw(st.integers(0, 12))
    return rows


@st.composite
def layers_upon(draw: st.DrawFn, painted: Painted) -> tuple[Layer, Layer]:
    """What a backup says upon what is there: its own layer and, below it, what it stored anew."""
    own: Layer = {}
    anew: Layer = {}
    for path in draw(st.lists(st.sampled_from(PATHS), unique=True, max_size=len(PATHS))):
        before = painted.files.get(path)
        if before is not None and draw(st.integers(0, 5)) == 0:
            own[path] = GONE
            continue
        end = draw(st.integers(0, 60))
        size = max(0, end * PAGE - draw(st.integers(0, PAGE - 1)))
        known = -(-before[1] // PAGE) if before is not None else 0
        kept = draw(st.integers(0, min(known, end)))
        flags = FileFlag.COMPOSED if draw(st.booleans()) else FileFlag.NONE
        own[path] = Told(draw(rows_below(end)), size, kept, flags)
    for path, (_, size, flags) in painted.files.items():
        if draw(st.integers(0, 3)) == 0:
            pages = -(-size // PAGE)
            anew[path] = Told(draw(rows_below(size // PAGE)), size, pages, flags)
    return own, anew


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_stack_shows_what_painting_page_by_page_shows(data: st.DataObject) -> None:
    repository, painted, chance = new_repository(), Painted(), random.Random(data.draw(st.integers(0, 99)))
    layers: list[LayerReference] = []
    for _ in range(data.draw(st.integers(1, 9))):
        own, anew = data.draw(layers_upon(painted))
        newest = [builder_of(own, chance), *([builder_of(anew, chance)] if anew else [])]
        # An empty file keeps nothing: 0 pages kept is a file sent whole, which is the same.
        painted.paint(anew)
        painted.paint(own)
        layers = push(repository, newest, layers)
        assert len(layers) <= MAX_LAYERS
        assert_shows(repository, layers, painted)


def scattered(chance: random.Random, rows: int, end: int) -> list[Row]:
    """So many rows of one page each that none can be joined."""
    firsts = sorted(chance.sample(range(end), rows))
    return [(first, 1, chance.randrange(len(PACKS)), chance.randrange(10_000) * 2) for first in firsts]


def test_merging_files_of_rows_over_many_blocks_shows_every_page() -> None:
    chance = random.Random("many blocks")
    repository, painted = new_repository(), Painted()
    layers: list[LayerReference] = []
    end = 70_000
    for number in range(4):
        layer: Layer = {b"base/%05d" % n: Told([(0, 3, n % 5, 64 * n)], 3 * PAGE) for n in range(number, 4000, 7)}
        for path in (b"base/00002x", b"base/03000y"):
            kept = end - 20_000 * number if number else 0
            layer[path] = Told(scattered(chance, 30_000, end), end * PAGE, kept)
        painted.paint(layer)
        layers = push(repository, [builder_of(layer, chance)], layers)
    assert max(reference.blocks for reference in layers) > 4
    assert_shows(repository, layers, painted)


def test_a_file_of_the_bottom_layer_that_is_gone_leaves_no_trace() -> None:
    repository, chance = new_repository(), random.Random(0)
    layers = push(repository, [builder_of({b"a": Told([(0, 1, 0, 0)], PAGE)}, chance)], [])
    layers = push(repository, [builder_of({b"a": GONE}, chance)], layers)
    assert [(one.files, one.rows) for one in layers] == [(0, 0)]
    assert list(contents_of(repository, layers).files()) == []


def test_a_file_that_is_gone_stays_gone_above_layers_that_are_not_merged() -> None:
    repository, chance = new_repository(), random.Random(0)
    many: Layer = {b"f%03d" % n: Told([(0, 1, 0, n)], PAGE) for n in range(100)}
    layers = push(repository, [builder_of(many, chance)], [])
    layers = push(repository, [builder_of({b"f050": GONE}, chance)], layers)
    layers = push(repository, [builder_of({b"f051": GONE}, chance)], layers)
    assert [one.files for one in layers] == [2, 100]
    assert len(list(contents_of(repository, layers).files())) == 98


def reference(files: int, rows: int = 0) -> LayerReference:
    return LayerReference([("00" * 16, 0, 1)], 1, 0, 0, files, rows)


def test_a_ninth_layer_merges_at_least_the_newest_of_the_eight() -> None:
    tall = [reference(4**n) for n in range(2, 10)]
    assert layers_to_merge(1, 0, tall) >= 1
    assert layers_to_merge(1, 0, tall[:7]) == 0
    assert layers_to_merge(0, 0, tall) >= 1


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**7)), min_size=1, max_size=200))
def test_there_are_never_more_than_eight_layers(pushes: list[tuple[int, int]]) -> None:
    stack: list[LayerReference] = []
    for files, rows in pushes:
        merged = layers_to_merge(files, rows, stack)
        whole = [reference(files, rows), *stack[:merged]]
        stack = [reference(sum(one.files for one in whole), sum(one.rows for one in whole)), *stack[merged:]]
        assert 1 <= len(stack) <= MAX_LAYERS


def test_a_pack_that_two_layers_name_is_entered_once() -> None:
    repository, chance = new_repository(), random.Random(0)
    layers = push(repository, [builder_of({b"a": Told([(0, 1, 0, 0)], PAGE)}, chance)], [])
    layers = push(repository, [builder_of({b"b": Told([(0, 1, 0, 5), (1, 1, 1, 0)], 2 * PAGE)}, chance)], layers)
    (only,) = layers
    assert sorted(repository.layer(only).packs) == sorted((pack, pack[::-1]) for pack in PACKS[:2])


def test_a_pack_named_with_two_contents_is_refused() -> None:
    repository, chance = new_repository(), random.Random(0)
    layers = push(repository, [builder_of({b"a": Told([(0, 1, 0, 0)], PAGE)}, chance)], [])
    other = builder_of({b"b": Told([(0, 1, 0, 5)], PAGE)}, chance)
    other.set_digest(PACKS[0], bytes(16))
    with pytest.raises(IntegrityError, match="named with two contents"):
        push(repository, [other], layers)


def test_a_file_whose_rows_do_not_rise_from_block_to_block_is_refused() -> None:
    def rows(firsts: range) -> Rows:
        first = np.array(firsts, np.uint32)
        same = np.ones(len(first), np.uint32)
        return Rows(first, same, same * 0, first * 2)

    def entry(rows: Rows) -> FileEntry:
        return FileEntry(b"f", FileKind.REGULAR, 0o600, 10**6 * PAGE, 0, FileFlag.NONE, 0, rows)

    table = [(PACKS[0], bytes(16))]
    blocks = [encode_layer([entry(rows(firsts))], table).blocks[0] for firsts in (range(0, 90, 3), range(60, 150, 3))]
    blocks[1] = blocks[1][:12] + b"\1" + blocks[1][13:]
    chunks = [*blocks, *encode_layer([], table).table]
    with pytest.raises(IntegrityError, match="rows out of order"):
        list(LayerReader(chunks.__getitem__, 2, 1, 0).entries())
