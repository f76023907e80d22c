"""Damaged lists say what no writer may rely on, and stop saying it once it is over."""

from __future__ import annotations

import numpy as np
import pytest

from datamanager.base.errors import IntegrityError
from datamanager.repository import damaged
from datamanager.repository.damaged import DamagedChunks, DamagedItem, drop_settled, read_list, record
from datamanager.repository.format import MAX_CHUNKS_PER_PACK, Kind, canonical_json, pack_key
from datamanager.repository.repository import Repository
from tests.repository.parts import copy_of, flip, keys, new_repository, reopen
from tests.storage.faults import FaultyStorage

ONE, OTHER = bytes([0xAB]) * 16, bytes([0xCD]) * 16


def item(pack: bytes, *chunks: int) -> DamagedItem:
    return DamagedItem(pack_key(pack), chunks or None, "spoilt")


@pytest.fixture
def repository() -> Repository:
    return new_repository()


def test_a_chunk_that_a_list_names_is_damaged_and_its_neighbors_are_not(repository: Repository) -> None:
    record(repository, [item(ONE, 3, 5), item(OTHER)])
    known = DamagedChunks.load(repository)
    assert [known.has(ONE, chunk) for chunk in range(7)] == [False, False, False, True, False, True, False]
    assert known.has(OTHER, 0)
    assert known.has(OTHER, 77)
    assert not known.has(bytes(16), 3)
    assert known.packs == {ONE, OTHER}
    assert (known.chunks(ONE), known.chunks(OTHER), known.chunks(bytes(16))) == (frozenset({3, 5}), None, frozenset())


def test_several_lists_add_up(repository: Repository) -> None:
    record(repository, [item(ONE, 3)])
    record(repository, [item(ONE, 4), item(OTHER, 1)])
    assert len(keys(repository.storage, "damaged/")) == 2
    known = DamagedChunks.load(repository)
    assert known.chunks(ONE) == frozenset({3, 4})
    record(repository, [item(ONE)])
    assert DamagedChunks.load(repository).chunks(ONE) is None


def test_a_repository_without_damage_costs_one_listing(repository: Repository) -> None:
    storage = FaultyStorage(repository.storage)
    counted = reopen(repository, storage)
    storage.calls.clear()
    known = DamagedChunks.load(counted)
    assert not known
    assert known.packs == set()
    assert [(call.method, call.key) for call in storage.calls] == [("list", "damaged/")]


@pytest.mark.parametrize(
    ("position", "pages", "hit"),
    [
        (0, 32 * 3, False),
        (0, 32 * 3 + 1, True),
        (3 * 32 + 31, 1, True),
        (4 * 32, 32, False),
        (4 * 32, 33, True),
        (192, 900, False),
    ],
)
def test_rows_that_need_a_damaged_chunk_are_told(repository: Repository, position: int, pages: int, hit: bool) -> None:
    record(repository, [item(ONE, 3, 5), item(OTHER)])
    known = DamagedChunks.load(repository)
    rows = np.array([6 * 32, position]), np.array([1, pages])
    assert known.touches(ONE, *rows) is hit
    assert known.touches(OTHER, *rows)
    assert not known.touches(bytes(16), *rows)


def test_what_is_known_already_is_not_written_again(repository: Repository) -> None:
    assert len(record(repository, [item(ONE, 3, 5), item(OTHER)])) == 1
    before = keys(repository.storage, "damaged/")
    assert record(repository, [item(ONE, 5)]) == []
    assert record(repository, [item(OTHER, 2)]) == []
    assert record(repository, [item(ONE, 3, 5), item(OTHER)], lambda one: True) == []
    assert keys(repository.storage, "damaged/") == before


def test_what_is_settled_goes_and_the_rest_of_its_list_stays_known(repository: Repository) -> None:
    record(repository, [item(ONE, 3, 5), item(OTHER)])
    (old,) = keys(repository.storage, "damaged/")
    record(repository, [item(ONE, 5)], lambda one: one.pack == ONE)
    (new,) = keys(repository.storage, "damaged/")
    assert new != old
    known = DamagedChunks.load(repository)
    assert (known.chunks(ONE), known.chunks(OTHER)) == (frozenset({5}), None)
    record(repository, [], lambda one: True)
    assert keys(repository.storage, "damaged/") == []


def test_a_list_of_packs_that_nobody_needs_is_dropped(repository: Repository) -> None:
    record(repository, [item(ONE, 3)])
    record(repository, [item(OTHER)])
    assert drop_settled(repository, {ONE, OTHER}) == []
    assert len(drop_settled(repository, {OTHER})) == 1
    assert DamagedChunks.load(repository).packs == {OTHER}


def test_long_lists_are_several_each_within_the_bound(repository: Repository) -> None:
    everything = tuple(range(MAX_CHUNKS_PER_PACK))
    items = [DamagedItem(pack_key(bytes([number]) * 16), everything, "x" * 900) for number in range(6)]
    written = record(repository, items)
    assert len(written) > 1
    assert [len(read_list(repository, key)) for key in written] == [5, 1]
    known = DamagedChunks.load(repository)
    assert len(known.packs) == 6
    assert all(known.has(one.pack, MAX_CHUNKS_PER_PACK - 1) for one in items)


def test_a_list_that_cannot_be_read_is_told_and_the_others_count(repository: Repository) -> None:
    record(repository, [item(ONE, 3)])
    (broken,) = keys(repository.storage, "damaged/")
    record(repository, [item(OTHER)])
    told: list[str] = []
    spoilt = reopen(repository, copy_of(repository.storage), told)
    flip(spoilt.storage, broken, 100)
    assert DamagedChunks.load(spoilt).packs == {OTHER}
    assert [broken in message for message in told] == [True]


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"items": 3},
        {"items": [{"key": "packs/ab/" + "ab" * 16, "what": ""}]},
        {"items": [{"key": "packs/ab/" + "cd" * 16, "chunks": None, "what": ""}]},
        {"items": [{"key": "meta/ab/" + "ab" * 16, "chunks": None, "what": ""}]},
        {"items": [{"key": "packs/ab/" + "ab" * 16 + ".02", "chunks": None, "what": ""}]},
        {"items": [{"key": "packs/ab/" + "ab" * 16, "chunks": [-1], "what": ""}]},
        {"items": [{"key": "packs/ab/" + "ab" * 16, "chunks": [MAX_CHUNKS_PER_PACK], "what": ""}]},
        {"items": [{"key": "packs/ab/" + "ab" * 16, "chunks": ["x"], "what": ""}]},
    ],
)
def test_a_list_that_no_writer_of_ours_made_is_refused(repository: Repository, wrong: dict[str, object]) -> None:
    key = f"{damaged.FOLDER}{'0' * 32}"
    repository.objects.put_small(Kind.DAMAGED, key, [key], canonical_json(wrong))
    with pytest.raises(IntegrityError, match=r"malformed|is not a pack"):
        read_list(repository, key)
