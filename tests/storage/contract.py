"""What every store must do. A test module subclasses StorageContract and gives it a fixture ``store``.

The fixture yields an empty store in which objects can be put under the folders of FOLDERS.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamanager.base.errors import ObjectExists, ObjectMissing
from datamanager.storage.base import Storage

FOLDERS = ("packs/00", "packs/a7", "packs/ff", "leases", "manifests")

_BAD_KEYS = [
    *("", "/", "a//b", "/packs/00/a", "packs/00/", "packs/../leases/a", "packs/.hidden", "leases/a b", "leases/a:b"),
    *("leases/a\\b", "leases/a\n", "leases/a\0b", "leases/ä", "leases/a.", "..", "leases/.."),
]

# One contract runs on many stores on purpose; without a database no example of one store is replayed on another.
_small = settings(
    max_examples=25,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
)


class Numbered:
    """Fresh keys, so that the examples of one property share a store."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self) -> str:
        self._count += 1
        return f"packs/00/{self._count:032x}"


class StorageContract:
    """See the docstrings of datamanager.storage.base.Storage, sentence by sentence."""

    @pytest.fixture
    def fresh_key(self) -> Numbered:
        return Numbered()

    def test_an_object_comes_back_as_its_parts_joined(self, store: Storage) -> None:
        store.put("packs/00/one", [b"abc", bytearray(b"def"), b"", memoryview(b"ghi")])
        assert store.get("packs/00/one") == b"abcdefghi"

    def test_a_part_of_wider_items_counts_in_bytes(self, store: Storage) -> None:
        store.put("packs/00/wide", [memoryview(b"12345678").cast("I"), b"9"])
        assert store.get("packs/00/wide") == b"123456789"
        assert store.stat("packs/00/wide").size == 9

    def test_an_object_of_no_bytes_is_refused(self, store: Storage) -> None:
        for nothing in ([], [b""]):
            with pytest.raises(ValueError, match="at least one byte"):
                store.put("packs/00/empty", nothing)
        assert [*store.list("")] == []

    def test_more_parts_than_one_system_call_takes_arrive_in_order(self, store: Storage) -> None:
        parts = [number.to_bytes(3, "big") for number in range(3000)]
        store.put("packs/00/many", parts)
        assert store.get("packs/00/many") == b"".join(parts)

    def test_eight_mebibytes_in_chunks_come_back(self, store: Storage) -> None:
        parts = [bytes([number]) * (256 << 10) for number in range(32)]
        store.put("packs/ff/big", parts)
        assert store.get("packs/ff/big", 5 << 20, 4) == bytes([20]) * 4
        assert store.get("packs/ff/big") == b"".join(parts)

    def test_a_part_may_be_reused_once_put_has_returned(self, store: Storage) -> None:
        part = bytearray(b"before")
        store.put("packs/00/kept", [part])
        part[:] = b"after!"
        assert store.get("packs/00/kept") == b"before"

    @pytest.mark.parametrize(
        ("offset", "length", "expected"),
        [
            (0, None, b"0123456789"),
            (3, None, b"3456789"),
            (3, 4, b"3456"),
            (-4, None, b"6789"),
            (-4, 2, b"67"),
            (8, 100, b"89"),
            (10, 5, b""),
            (99, 1, b""),
            (-99, None, b"0123456789"),
            (-12, 3, b"0"),
            (2, 0, b""),
        ],
    )
    def test_a_range_gives_exactly_the_bytes_that_exist_in_it(
        self, store: Storage, offset: int, length: int | None, expected: bytes
    ) -> None:
        store.put("packs/00/digits", [b"0123456789"])
        assert store.get("packs/00/digits", offset, length) == expected

    def test_a_negative_length_is_refused(self, store: Storage) -> None:
        store.put("packs/00/digits", [b"0123456789"])
        with pytest.raises(ValueError, match="length"):
            store.get("packs/00/digits", 0, -1)

    @_small
    @given(data=st.lists(st.binary(max_size=700), min_size=1, max_size=8).filter(any), more=st.data())
    def test_any_range_of_any_object_is_the_slice_of_its_bytes(
        self, store: Storage, fresh_key: Numbered, data: list[bytes], more: st.DataObject
    ) -> None:
        key, whole = fresh_key(), b"".join(data)
        store.put(key, data)
        start = more.draw(st.integers(0, len(whole) + 9))
        length = more.draw(st.none() | st.integers(0, len(whole) + 9))
        assert store.get(key, start, length) == whole[start : None if length is None else start + length]
        back = more.draw(st.integers(1, len(whole)))
        assert store.get(key, -back) == whole[-back:]
        assert store.stat(key).size == len(whole)

    def test_a_taken_name_is_refused_and_keeps_its_bytes(self, store: Storage) -> None:
        store.put("leases/a-1", [b"first"])
        with pytest.raises(ObjectExists):
            store.put("leases/a-1", [b"second"])
        assert store.get("leases/a-1") == b"first"
        assert [found.key for found in store.list("")] == ["leases/a-1"]

    def test_eight_threads_racing_for_a_name_have_one_winner(self, store: Storage) -> None:
        for round_number in range(5):
            key = f"leases/race-{round_number}"
            won = _race(8, _putter(store, key))
            assert len(won) == 1
            assert store.get(key) == bytes([won[0]]) * 50_000
        assert len([*store.list("")]) == 5

    def test_eight_threads_with_names_of_their_own_all_succeed(self, store: Storage) -> None:
        won = _race(8, lambda number: store.put(f"packs/a7/{number}", [bytes([number]) * 1000]))
        assert len(won) == 8
        assert all(store.get(f"packs/a7/{number}") == bytes([number]) * 1000 for number in range(8))

    def test_what_is_not_there_is_missing(self, store: Storage) -> None:
        store.put("packs/00/other", [b"x"])
        for key in ("packs/00/none", "packs/none/at-all", "none"):
            with pytest.raises(ObjectMissing):
                store.get(key)
            with pytest.raises(ObjectMissing):
                store.stat(key)

    def test_a_folder_is_not_an_object(self, store: Storage) -> None:
        store.put("packs/00/one", [b"x"])
        with pytest.raises(ObjectMissing):
            store.get("packs/00")
        with pytest.raises(ObjectMissing):
            store.stat("packs/00")
        store.delete("packs/00")
        assert store.get("packs/00/one") == b"x"

    def test_a_deleted_object_is_gone_and_its_name_free(self, store: Storage) -> None:
        store.put("leases/a-1", [b"first"])
        store.delete("leases/a-1")
        with pytest.raises(ObjectMissing):
            store.get("leases/a-1")
        assert [*store.list("leases/")] == []
        store.put("leases/a-1", [b"second"])
        assert store.get("leases/a-1") == b"second"

    def test_deleting_what_is_absent_is_no_error(self, store: Storage) -> None:
        store.put("packs/00/other", [b"x"])
        store.delete("packs/00/none")
        store.delete("packs/none/at-all")

    def test_a_listing_names_every_object_under_the_prefix(self, store: Storage) -> None:
        for key in ("packs/00/a", "packs/00/b", "packs/ff/c", "leases/d-1"):
            store.put(key, [key.encode()])
        assert _listed(store, "") == {"packs/00/a": 10, "packs/00/b": 10, "packs/ff/c": 10, "leases/d-1": 10}
        assert _listed(store, "packs/") == {"packs/00/a": 10, "packs/00/b": 10, "packs/ff/c": 10}
        assert _listed(store, "packs/00/") == {"packs/00/a": 10, "packs/00/b": 10}
        assert _listed(store, "manifests/") == {}
        assert _listed(store, "nowhere/") == {}

    def test_a_prefix_must_end_with_a_slash(self, store: Storage) -> None:
        for prefix in ("packs", "/", "../", "packs//"):
            with pytest.raises(ValueError, match="prefix"):
                store.list(prefix)

    def test_stat_says_what_the_listing_says(self, store: Storage) -> None:
        store.put("packs/00/a", [b"four"])
        store.put("leases/d-1", [b"x"])
        assert {found.key: found for found in store.list("")} == {
            key: store.stat(key) for key in ("packs/00/a", "leases/d-1")
        }

    def test_a_later_object_is_not_older_than_an_earlier_one(self, store: Storage) -> None:
        store.put("leases/a-1", [b"x"])
        store.put("leases/a-2", [b"x"])
        assert store.stat("leases/a-2").mtime >= store.stat("leases/a-1").mtime > 1_500_000_000

    def test_a_listing_goes_on_while_objects_come_and_go(self, store: Storage) -> None:
        for number in range(20):
            store.put(f"packs/00/stays-{number}", [b"x"])
            store.put(f"packs/00/goes-{number}", [b"x"])
        listing = store.list("")
        found = {next(listing).key}
        for number in range(20):
            store.delete(f"packs/00/goes-{number}")
        found |= {each.key for each in listing}
        assert {f"packs/00/stays-{number}" for number in range(20)} <= found

    @pytest.mark.parametrize("key", _BAD_KEYS)
    def test_a_key_that_breaks_the_rule_is_a_fault_of_the_program(self, store: Storage, key: str) -> None:
        for use in (store.get, store.stat, store.delete):
            with pytest.raises(ValueError, match="key"):
                use(key)
        with pytest.raises(ValueError, match="key"):
            store.put(key, [b"x"])

    def test_a_barrier_can_be_called_at_any_time(self, store: Storage) -> None:
        store.barrier()
        store.put("leases/a-1", [b"x"])
        store.barrier()
        store.delete("leases/a-1")
        store.barrier()

    def test_space_is_unknown_or_plausible(self, store: Storage) -> None:
        space = store.space()
        assert space is None or 0 <= space.free <= space.total

    def test_the_url_names_a_scheme(self, store: Storage) -> None:
        assert "://" in store.url

    def test_closing_twice_is_harmless(self, store: Storage) -> None:
        store.close()
        store.close()


def _listed(store: Storage, prefix: str) -> dict[str, int]:
    found = [*store.list(prefix)]
    assert len({each.key for each in found}) == len(found)
    return {each.key: each.size for each in found}


def _putter(store: Storage, key: str) -> Callable[[int], None]:
    return lambda number: store.put(key, [bytes([number]) * 50_000])


def _race(threads: int, put: Callable[[int], None]) -> list[int]:
    """Start all at once; returns the numbers of those that were not told that the name is taken."""
    start = threading.Barrier(threads)
    won: list[int] = []
    failed: list[BaseException] = []

    def run(number: int) -> None:
        start.wait(10)
        try:
            put(number)
        except ObjectExists:
            return
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            failed.append(error)
            return
        won.append(number)

    workers = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert failed == []
    return won
