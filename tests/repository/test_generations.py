"""Later generations of a pack: the same addresses with fewer pages, and readers that take the right one."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from datamanager.base.errors import IntegrityError, ObjectMissing
from datamanager.repository.format import (
    HEADER,
    MASKED,
    PAGES_PER_CHUNK,
    Kind,
    pack_generation,
    pack_id,
    pack_key,
)
from datamanager.repository.objects import OpenPack
from datamanager.repository.packs.chunk_reader import ChunkReader, read_chunk
from datamanager.repository.packs.generation import check_pages, keep_pages
from datamanager.repository.packs.pack import PackBuilder, SealedPack, fingerprint, full_mask
from datamanager.repository.packs.page_masks import chunk_runs, count_pages, full_masks, page_masks, split_row
from datamanager.repository.repository import Repository
from datamanager.storage.memory import MemoryStorage
from tests.repository.parts import SetClock, flip, new_repository, overwrite, reopen

PAGE = 512
CHUNKS = [PAGE * 32, PAGE * 32, PAGE * 5 + 17, PAGE * 32, PAGE]


@pytest.fixture
def repository() -> Repository:
    clock = SetClock()
    return new_repository(MemoryStorage(clock), clock)


def contents(seed: int = 1) -> list[bytes]:
    chance = random.Random(seed)
    return [chance.randbytes(size // 4).ljust(size, b"x") for size in CHUNKS]


def put_first(repository: Repository, chunks: list[bytes]) -> SealedPack:
    """Generation 1."""
    builder = repository.objects.new_pack(Kind.PACK, bytearray(PackBuilder.BUFFER_BYTES))
    key = repository.ring.fingerprint_key.reveal()
    compressor = zstandard.ZstdCompressor()
    for raw in chunks:
        builder.add(compressor.compress(raw), len(raw), fingerprint(key, raw))
    sealed = builder.finish()
    repository.storage.put(pack_key(sealed.id), sealed.parts)
    return sealed


def open_generation(repository: Repository, pack: bytes, number: int) -> OpenPack:
    return repository.objects.open_pack((pack_key(pack, number),), pack, Kind.PACK)


def put_next(repository: Repository, pack: bytes, source: int, target: int, masks: list[int]) -> SealedPack:
    opened = open_generation(repository, pack, source)
    builder = repository.objects.new_generation(pack, PAGE)
    data = memoryview(repository.storage.get(opened.key))
    key = repository.ring.fingerprint_key.reveal()
    keep_pages(builder, opened.directory, opened.opener(), data, masks, key)
    sealed = builder.finish()
    repository.storage.put(pack_key(pack, target), sealed.parts)
    repository.forget_pack(pack)
    return sealed


def page(raw: bytes, number: int) -> bytes:
    return raw[number * PAGE : (number + 1) * PAGE]


masks_of_chunks = st.tuples(*(st.integers(0, full_mask(size, PAGE)) for size in CHUNKS))


@settings(max_examples=60, deadline=None)
@given(masks_of_chunks, masks_of_chunks)
def test_every_page_that_is_kept_comes_back_and_no_other(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    repository = new_repository()
    chunks = contents()
    one = put_first(repository, chunks)
    two = put_next(repository, one.id, 1, 2, list(first))
    both = [a & b for a, b in zip(first, second, strict=True)]
    three = put_next(repository, one.id, 2, 3, both)
    assert one.digest == two.digest == three.digest
    for number, masks in ((2, list(first)), (3, both)):
        opened = open_generation(reopen(repository), one.id, number)
        assert opened.directory.header.flags == MASKED
        assert opened.directory.digest() == one.digest
        data = repository.storage.get(opened.key)
        for chunk, mask in enumerate(masks):
            directory = opened.directory
            assert directory.complete(chunk) == (mask == full_mask(len(chunks[chunk]), PAGE))
            sealed = data[int(directory.offsets[chunk]) : int(directory.offsets[chunk + 1])]
            assert bool(sealed) == bool(mask)
            if mask:
                raw = opened.opener().open(chunk, sealed)
                pages = range(-(-len(raw) // PAGE))
                kept = [page(chunks[chunk], at) if mask >> at & 1 else bytes(len(page(raw, at))) for at in pages]
                assert raw == b"".join(kept)
            else:
                with pytest.raises(IntegrityError):
                    opened.opener().open(chunk, sealed)
        check_pages(
            opened.directory,
            opened.opener(),
            memoryview(data),
            np.array(masks, np.uint32),
            repository.ring.fingerprint_key.reveal(),
        )


def test_a_reader_takes_the_highest_generation_that_has_the_pages(repository: Repository) -> None:
    chunks = contents()
    one = put_first(repository, chunks)
    entry = (one.id, one.digest)
    put_next(repository, one.id, 1, 2, [0xFF, 0, 0x3F, 0, 1])
    reader = reopen(repository)
    assert [opened.key for opened in reader.generations(one.id)] == [pack_key(one.id, 2), pack_key(one.id)]
    assert reader.pack(one.id).key == pack_key(one.id, 2)
    assert page(read_chunk(reader, entry, 0, 2, 3), 4) == page(chunks[0], 4)
    assert read_chunk(reader, entry, 1, 0, 32) == chunks[1]  # from generation 1, which is still there
    rows = np.array([0, 40, 64]), np.array([8, 2, 6])
    mixed = ChunkReader(reader, entry, *rows)
    assert page(mixed.chunk(0), 7) == page(chunks[0], 7)
    assert page(mixed.chunk(1), 9) == page(chunks[1], 9)
    assert mixed.chunk(2) == chunks[2]
    repository.storage.delete(pack_key(one.id))
    for start, count in ((8, 1), (7, 2), (0, 32)):
        with pytest.raises(IntegrityError, match="lacks pages"):
            read_chunk(reopen(repository), entry, 0, start, count)
    with pytest.raises(IntegrityError, match="lacks pages"):
        ChunkReader(reopen(repository), entry, *rows).chunk(1)
    reader = reopen(repository)
    assert page(ChunkReader(reader, entry, np.array([0]), np.array([8])).chunk(0), 7) == page(chunks[0], 7)


def test_an_unreadable_generation_gives_way_to_the_one_before(repository: Repository) -> None:
    chunks = contents()
    one = put_first(repository, chunks)
    put_next(repository, one.id, 1, 2, [1, 0, 0, 0, 0])
    flip(repository.storage, pack_key(one.id, 2), -20)
    told: list[str] = []
    reader = reopen(repository, told=told)
    assert read_chunk(reader, (one.id, one.digest), 0, 0, 32) == chunks[0]
    assert any("generation 1" in text for text in told)


def test_a_pack_that_was_moved_is_found_by_a_reader_that_looked_before(repository: Repository) -> None:
    chunks = contents()
    one = put_first(repository, chunks)
    entry = (one.id, one.digest)
    reader = reopen(repository)
    assert read_chunk(reader, entry, 0, 0, 32) == chunks[0]
    put_next(repository, one.id, 1, 2, [full_mask(CHUNKS[0], PAGE), 0, 0, 0, 0])
    repository.storage.delete(pack_key(one.id))
    assert read_chunk(reader, entry, 0, 0, 32) == chunks[0]
    put_next(repository, one.id, 2, 5, [1, 0, 0, 0, 0])
    repository.storage.delete(pack_key(one.id, 2))
    assert page(ChunkReader(reader, entry, np.array([0]), np.array([1])).chunk(0), 0) == page(chunks[0], 0)
    repository.storage.delete(pack_key(one.id, 5))
    with pytest.raises(ObjectMissing):
        read_chunk(reader, entry, 0, 0, 1)


def test_another_pack_under_the_name_is_refused(repository: Repository) -> None:
    one = put_first(repository, contents())
    with pytest.raises(IntegrityError, match="another pack"):
        read_chunk(repository, (one.id, bytes(16)), 0, 0, 1)
    with pytest.raises(IntegrityError, match="no chunk 5"):
        read_chunk(repository, (one.id, one.digest), 5, 0, 1)


def test_a_page_that_is_not_there_cannot_be_kept(repository: Repository) -> None:
    one = put_first(repository, contents())
    put_next(repository, one.id, 1, 2, [1, 1, 1, 1, 1])
    with pytest.raises(IntegrityError, match="lacks pages"):
        put_next(repository, one.id, 2, 3, [3, 1, 1, 1, 1])


def test_the_masked_flag_is_authenticated(repository: Repository) -> None:
    one = put_first(repository, contents())
    put_next(repository, one.id, 1, 2, [1, 1, 1, 1, 1])
    for number in (1, 2):
        data = bytearray(repository.storage.get(pack_key(one.id, number)))
        data[9] ^= MASKED
        overwrite(repository.storage, pack_key(one.id, number), bytes(data))
        with pytest.raises(IntegrityError):
            open_generation(reopen(repository), one.id, number)
    assert HEADER.size == 64


@pytest.mark.parametrize(
    "name",
    [
        "packs/00/" + "00" * 16 + ".1",
        "packs/00/" + "00" * 16 + ".02",
        "packs/00/" + "00" * 16 + ".",
        "packs/00/" + "00" * 16 + ".x",
        "packs/01/" + "00" * 16 + ".2",
        "meta/00/" + "00" * 16 + ".2",
        "meta-b/00/" + "00" * 16 + ".3",
    ],
)
def test_names_that_are_no_generation_are_ignored(name: str) -> None:
    assert pack_generation(name) is None
    assert pack_id(name) is None


def test_a_generation_has_its_number_as_suffix() -> None:
    identity = bytes(range(16))
    assert pack_key(identity, 12) == f"packs/00/{identity.hex()}.12"
    assert pack_generation(pack_key(identity, 12)) == (identity, 12)
    assert pack_generation(pack_key(identity)) == (identity, 1)


# -- masks ----------------------------------------------------------------------------------------------------------

rows_of_pages = st.lists(st.tuples(st.integers(0, 400), st.integers(1, 150)), min_size=1, max_size=20)


@given(rows_of_pages)
def test_masks_name_exactly_the_pages_of_the_rows(rows: list[tuple[int, int]]) -> None:
    positions, pages = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    chunks, bits, owner = page_masks(positions, pages)
    found = [set[int]() for _ in rows]
    for chunk, mask, row in zip(chunks.tolist(), bits.tolist(), owner.tolist(), strict=True):
        assert mask
        found[row] |= {chunk * PAGES_PER_CHUNK + at for at in range(PAGES_PER_CHUNK) if mask >> at & 1}
    assert found == [set(range(position, position + count)) for position, count in rows]


@given(rows_of_pages)
def test_runs_of_chunks_are_merged_and_in_order(rows: list[tuple[int, int]]) -> None:
    rows.sort()
    positions, pages = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    runs = chunk_runs(positions, pages)
    wanted = {at // PAGES_PER_CHUNK for position, count in rows for at in range(position, position + count)}
    assert {chunk for first, end in runs for chunk in range(first, end)} == wanted
    assert all(one[1] < other[0] for one, other in pairwise(runs))


@given(st.integers(0, 1000), st.integers(1, 200), st.integers(0, 1000))
def test_a_row_is_cut_at_the_borders_of_chunks(first: int, pages: int, position: int) -> None:
    pieces = list(split_row(first, pages, position))
    places = [
        (at + step, chunk * PAGES_PER_CHUNK + start + step)
        for at, chunk, start, count in pieces
        for step in range(count)
    ]
    assert places == [(first + step, position + step) for step in range(pages)]
    assert all(start + count <= PAGES_PER_CHUNK for _, _, start, count in pieces)


def test_pages_are_counted_and_full_masks_end_with_the_chunk() -> None:
    masks = np.array([0, 1, 0xFFFF_FFFF, 0x8000_0001], np.uint32)
    assert count_pages(masks).tolist() == [0, 1, 32, 2]
    assert full_masks(np.array(CHUNKS, np.uint32), PAGE).tolist() == [full_mask(size, PAGE) for size in CHUNKS]
