"""Layers: every file and row comes back, in order, also where a file runs over many blocks; nonsense is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamanager.base.errors import IntegrityError
from datamanager.repository.format import META_CHUNK_BYTES, ZERO_PACK
from datamanager.repository.layers.builder import EncodedLayer, LayerBuilder
from datamanager.repository.layers.layer import (
    TABLE_ENTRIES_PER_CHUNK,
    FileEntry,
    FileFlag,
    FileKind,
    Rows,
    check_path,
)
from datamanager.repository.layers.reader import LayerReader, compose, decode_block

PACKS = [bytes([number]) * 16 for number in range(6)]
U32 = 2**32 - 1


def reader(encoded: EncodedLayer) -> LayerReader:
    chunks = encoded.chunks()
    return LayerReader(chunks.__getitem__, len(encoded.blocks), len(encoded.table), len(encoded.index))


def same(one: FileEntry, other: FileEntry) -> bool:
    rows = all(np.array_equal(mine, its) for mine, its in zip(one.rows, other.rows, strict=True))
    nothing = Rows.empty()
    return rows and replace(one, rows=nothing) == replace(other, rows=nothing)


def rows_of(*rows: tuple[int, int, int, int]) -> Rows:
    columns = [np.array(column, np.uint32) for column in zip(*rows, strict=True)] or [np.empty(0, np.uint32)] * 4
    return Rows(*columns)


def add(builder: LayerBuilder, entry: FileEntry) -> None:
    builder.begin_file(entry.path, entry.kind, entry.mode)
    for row in zip(*(column.tolist() for column in entry.rows), strict=True):
        builder.add_row(*row)
    builder.end_file(entry.size, kept=entry.kept, crc32c=entry.crc32c, flags=entry.flags)


def encode(entries: list[FileEntry], packs: int = len(PACKS)) -> EncodedLayer:
    builder = LayerBuilder()
    for pack in PACKS[:packs]:
        builder.pack_number(pack)
        builder.set_digest(pack, pack[::-1])
    for entry in entries:
        add(builder, entry)
    return builder.encode()


def entry_of(path: bytes, *rows: tuple[int, int, int, int], size: int = 10**9, kept: int = 0) -> FileEntry:
    return FileEntry(path, FileKind.REGULAR, 0o600, size, kept, FileFlag.NONE, 7, rows_of(*rows))


PATHS = st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=4).map(
    lambda parts: b"/".join(part.replace(b"/", b"_").replace(b"\0", b"0").replace(b".", b"_") for part in parts)
)


@st.composite
def entries(draw: st.DrawFn) -> FileEntry:
    """A file with sorted, disjoint rows, none of which continues the one before (those are joined)."""
    first, rows = 0, []
    for gap, pages, pack, position in draw(
        st.lists(
            st.tuples(
                st.integers(1, 2**20), st.integers(1, 2**16), st.integers(0, len(PACKS)), st.integers(0, 2**22 - 1)
            ),
            max_size=30,
        )
    ):
        first += gap
        rows.append((first, pages, ZERO_PACK if pack == len(PACKS) else pack, position))
        first += pages
    return FileEntry(
        path=draw(PATHS),
        kind=draw(st.sampled_from(FileKind)),
        mode=draw(st.integers(0, 0o7777)),
        size=draw(st.integers(0, 2**64 - 1)),
        kept=draw(st.integers(0, U32)),
        flags=FileFlag(draw(st.integers(0, 3))),
        crc32c=draw(st.integers(0, U32)),
        rows=rows_of(*rows),
    )


@settings(max_examples=150)
@given(st.lists(entries(), max_size=25, unique_by=lambda entry: entry.path))
def test_a_layer_gives_back_its_files_in_order(files: list[FileEntry]) -> None:
    encoded = encode(files)
    layer = reader(encoded)
    found = list(layer.entries())
    expected = sorted(files, key=lambda entry: entry.path)
    assert [entry.path for entry in found] == [entry.path for entry in expected]
    assert all(same(*pair) for pair in zip(found, expected, strict=True))
    assert layer.packs == [(pack, pack[::-1]) for pack in PACKS]
    assert (encoded.files, encoded.rows) == (len(files), sum(len(entry.rows.first) for entry in files))


@given(st.lists(entries(), max_size=12, unique_by=lambda entry: entry.path), PATHS)
def test_find_gives_what_reading_everything_gives(files: list[FileEntry], other: bytes) -> None:
    layer = reader(encode(files))
    by_path = {entry.path: entry for entry in layer.entries()}
    for path in [*by_path, other, b"\x01", b"\xff" * 40]:
        found = layer.find(path)
        assert (found is None) == (path not in by_path)
        assert found is None or same(found, by_path[path])


def many_rows(path: bytes, count: int, offset: int = 0) -> FileEntry:
    """Rows that cannot be joined, so that some 16,000 fill a block."""
    return entry_of(path, *((number * 3 + offset, 2, number % 5, number * 64 % 2**22) for number in range(count)))


@pytest.mark.parametrize(
    "counts", [[70_000], [5, 40_000, 5], [16_000, 16_000, 16_000], [20_000, 0, 50_000, 1], [1] * 9000, [0] * 20_000]
)
def test_files_that_run_over_many_blocks_come_back_whole(counts: list[int]) -> None:
    files = [many_rows(b"base/%06d" % number, count, number) for number, count in enumerate(counts)]
    encoded = encode(files)
    assert len(encoded.blocks) > 1
    assert all(len(block) <= META_CHUNK_BYTES for block in encoded.chunks())
    layer = reader(encoded)
    found = list(layer.entries())
    assert all(same(*pair) for pair in zip(found, files, strict=True))
    for number in {0, len(files) // 2, len(files) - 1}:
        wanted = layer.find(files[number].path)
        assert wanted is not None
        assert same(wanted, files[number])
    assert layer.find(b"base/") is None
    assert layer.find(b"base/%06d-" % 0) is None
    assert layer.find(b"z") is None


def test_find_in_a_file_that_begins_where_the_block_before_ends() -> None:
    # The second file starts in the first block and is also the first path of the second block.
    files = [many_rows(b"a", 10_000), many_rows(b"b", 10_000), many_rows(b"c", 3)]
    encoded = encode(files)
    assert len(encoded.blocks) == 2
    layer = reader(encoded)
    for file in files:
        found = layer.find(file.path)
        assert found is not None
        assert same(found, file)


def test_an_empty_layer_is_a_layer() -> None:
    layer = reader(encode([], 0))
    assert list(layer.entries()) == []
    assert layer.find(b"a") is None
    assert layer.packs == []


def test_a_table_of_many_packs_takes_several_chunks() -> None:
    builder = LayerBuilder()
    packs = [number.to_bytes(16, "big") for number in range(2 * TABLE_ENTRIES_PER_CHUNK + 5)]
    for pack in packs:
        builder.pack_number(pack)
        builder.set_digest(pack, pack)
    encoded = builder.encode()
    assert len(encoded.table) == 3
    assert reader(encoded).packs == [(pack, pack) for pack in packs]


def test_pages_that_follow_each_other_in_file_and_pack_become_one_row() -> None:
    builder = LayerBuilder()
    builder.begin_file(b"f", FileKind.REGULAR, 0o600)
    pack = builder.pack_number(PACKS[0])
    builder.set_digest(PACKS[0], bytes(16))
    for chunk in range(5):
        builder.add_row(chunk * 32, 32, pack, chunk * 32)
    builder.add_row(160, 10, ZERO_PACK, 0)
    builder.add_row(170, 5, ZERO_PACK, 0)
    builder.add_row(175, 5, pack, 640)
    builder.end_file(180 * 8192)
    (entry,) = reader(builder.encode()).entries()
    assert [column.tolist() for column in entry.rows] == [
        [0, 160, 175],
        [160, 15, 5],
        [pack, ZERO_PACK, pack],
        [0, 0, 640],
    ]


def test_rows_of_different_files_are_never_joined() -> None:
    files = [entry_of(b"a", (0, 32, 0, 0)), entry_of(b"b", (32, 32, 0, 32))]
    assert [len(entry.rows.first) for entry in reader(encode(files)).entries()] == [1, 1]


def test_a_path_that_came_twice_is_refused() -> None:
    with pytest.raises(IntegrityError, match="came twice"):
        encode([entry_of(b"a"), entry_of(b"a")])


def test_a_pack_without_a_digest_is_refused() -> None:
    builder = LayerBuilder()
    builder.pack_number(PACKS[0])
    with pytest.raises(IntegrityError, match="not finished"):
        builder.encode()


@pytest.mark.parametrize(
    "path", [b"", b"/a", b"a//b", b"a/", b"..", b"a/../b", b"./a", b"a/.", b"a\0b", b"x" * 1025, b"../../etc/passwd"]
)
def test_a_path_that_could_leave_the_target_is_refused(path: bytes) -> None:
    with pytest.raises(IntegrityError, match="impossible path"):
        check_path(path)


@pytest.mark.parametrize("path", [b"a", b"a/b", b"...", b"a..b/..c", b"x" * 1024, b"a:b", b"\xff\xfe", b"a\nb"])
def test_odd_paths_that_stay_inside_are_allowed(path: bytes) -> None:
    check_path(path)


# -- blocks that lie, sealed by someone who has the key ---------------------------------------------------------------


def one_block() -> bytes:
    return encode([entry_of(b"aa", (0, 3, 0, 0), (9, 3, 1, 7)), entry_of(b"bb", (1, 1, 2, 9))]).blocks[0]


def test_a_block_cut_short_or_longer_is_refused() -> None:
    block = one_block()
    for size in range(len(block)):
        with pytest.raises(IntegrityError):
            decode_block(block[:size], 6)
    with pytest.raises(IntegrityError):
        decode_block(block + b"\0", 6)
    with pytest.raises(IntegrityError):
        decode_block(bytes(META_CHUNK_BYTES + 1), 6)


@settings(max_examples=400)
@given(st.data())
def test_a_block_with_any_bytes_changed_decodes_to_allowed_values_or_is_refused(data: st.DataObject) -> None:
    block = bytearray(one_block())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(block) - 1))
        block[position] = data.draw(st.integers(0, 255))
    try:
        files, _ = decode_block(bytes(block), 6)
    except IntegrityError:
        return
    for entry in files:
        check_path(entry.path)
        assert set(np.unique(entry.rows.pack).tolist()) <= {0, 1, 2, 3, 4, 5, ZERO_PACK}


@pytest.mark.parametrize("counts", [(U32, 3, 4, 0), (2, U32, 4, 0), (2, 3, U32, 0), (2, 3, 4, 2), (0, 0, 0, U32)])
def test_absurd_counts_are_refused_before_anything_is_allocated(counts: tuple[int, int, int, int]) -> None:
    block = np.array(counts, "<u4").tobytes() + one_block()[16:]
    with pytest.raises(IntegrityError, match="malformed block"):
        decode_block(block, 6)


def test_a_row_outside_the_pack_table_is_refused() -> None:
    block = one_block()
    decode_block(block, 3)
    with pytest.raises(IntegrityError, match="malformed block"):
        decode_block(block, 2)


def blocks_of(*groups: tuple[list[FileEntry], bool]) -> LayerReader:
    """A layer of blocks that were not written together."""
    chunks = []
    for files, continues in groups:
        block = bytearray(encode(files).blocks[0])
        block[12] = continues
        chunks.append(bytes(block))
    return LayerReader([*chunks, *encode([]).table].__getitem__, len(chunks), 1, 0)


def test_blocks_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(IntegrityError, match="out of order"):
        list(blocks_of(([entry_of(b"b")], False), ([entry_of(b"a")], False)).entries())
    with pytest.raises(IntegrityError, match="out of order"):
        list(blocks_of(([entry_of(b"a"), entry_of(b"c")], False), ([entry_of(b"b")], False)).entries())


def test_a_continuation_of_nothing_is_refused() -> None:
    for files, continues in ((entry_of(b"b"), True), (entry_of(b"a"), False)):
        with pytest.raises(IntegrityError, match="malformed sequence"):
            list(blocks_of(([entry_of(b"a")], False), ([files], continues)).entries())


def test_a_layer_that_begins_with_a_continuation_is_refused() -> None:
    with pytest.raises(IntegrityError, match="malformed sequence"):
        list(blocks_of(([entry_of(b"a")], True)).entries())


def test_an_index_that_does_not_match_is_refused() -> None:
    chunks = encode([entry_of(b"a")]).chunks()
    for index in (b"", b"\x02\0\0\0\x01\0\x01\0ab", b"\xff\xff\xff\xff", b"\x01\0\0\0\x05\0a", chunks[-1] + b"x"):
        layer = LayerReader([*chunks[:-1], index].__getitem__, 1, 1, 1)
        with pytest.raises(IntegrityError):
            layer.find(b"a")


def test_a_pack_table_cut_short_is_refused() -> None:
    chunks = encode([entry_of(b"a")]).chunks()
    chunks[1] = chunks[1][:-1]
    with pytest.raises(IntegrityError, match="malformed pack table"):
        _ = LayerReader(chunks.__getitem__, 1, 1, 1).packs


# -- composing ------------------------------------------------------------------------------------------------------

PAGE = 1024


def oracle(layers: list[FileEntry]) -> dict[int, tuple[int, int]] | None:
    """Painting as docs/format.md says it, page by page: page -> (pack, position)."""
    pages: dict[int, tuple[int, int]] = {}
    for entry in layers:
        pages = {page: place for page, place in pages.items() if page < entry.kept}
        if entry.flags & FileFlag.GONE:
            pages = {}
            continue
        for first, count, pack, position in zip(*(column.tolist() for column in entry.rows), strict=True):
            for number in range(count):
                pages[first + number] = (pack, position + number)
    newest = layers[-1]
    if newest.flags & FileFlag.GONE:
        return None
    return {page: place for page, place in pages.items() if page * PAGE < newest.size and place[0] != ZERO_PACK}


def painted(entry: FileEntry) -> dict[int, tuple[int, int]]:
    pages = {}
    previous_end = -1
    for first, count, pack, position in zip(*(column.tolist() for column in entry.rows), strict=True):
        assert first >= previous_end, "rows are sorted and disjoint"
        previous_end = first + count
        for number in range(count):
            if pack != ZERO_PACK and (first + number) * PAGE < entry.size:
                pages[first + number] = (pack, position + number)
    return pages


@st.composite
def stacks(draw: st.DrawFn) -> list[FileEntry]:
    """Entries of one file as several backups wrote them: whole, changed pages, gone and back."""

    def layers() -> Iterator[FileEntry]:
        for _ in range(draw(st.integers(1, 6))):
            if draw(st.integers(0, 9)) == 0:
                yield replace(entry_of(b"f"), size=0, flags=FileFlag.GONE)
                continue
            total = draw(st.integers(0, 120))
            rows, first = [], 0
            while (first := first + draw(st.integers(0, 40))) < total:
                count = draw(st.integers(1, total - first))
                pack = draw(st.sampled_from([0, 1, 2, ZERO_PACK]))
                rows.append((first, count, pack, draw(st.integers(0, 50)) * 32))
                first += count
            size = max(0, total * PAGE - draw(st.integers(0, PAGE - 1)))
            yield entry_of(b"f", *rows, size=size, kept=draw(st.integers(0, 140)))

    return list(layers())


@settings(max_examples=600)
@given(stacks())
def test_composing_is_painting_page_by_page(layers: list[FileEntry]) -> None:
    composed = compose(layers, PAGE)
    expected = oracle(layers)
    if expected is None:
        assert composed is None
        return
    assert composed is not None
    assert painted(composed) == expected
    assert (composed.size, composed.path, composed.kept) == (layers[-1].size, b"f", composed.kept)


def test_a_file_that_came_back_shows_nothing_of_what_it_was() -> None:
    old = entry_of(b"f", (0, 10, 0, 0), size=10 * PAGE)
    gone = replace(entry_of(b"f"), size=0, flags=FileFlag.GONE)
    back = entry_of(b"f", (2, 1, 1, 5), size=10 * PAGE, kept=10)
    composed = compose([old, gone, back], PAGE)
    assert composed is not None
    assert painted(composed) == {2: (1, 5)}


def test_pages_above_a_truncation_stay_gone_when_the_file_grows_again() -> None:
    layers = [
        entry_of(b"f", (0, 10, 0, 0), size=10 * PAGE),
        entry_of(b"f", size=4 * PAGE, kept=4),
        entry_of(b"f", (9, 1, 1, 0), size=10 * PAGE, kept=10),
    ]
    composed = compose(layers, PAGE)
    assert composed is not None
    assert painted(composed) == {0: (0, 0), 1: (0, 1), 2: (0, 2), 3: (0, 3), 9: (1, 0)}
