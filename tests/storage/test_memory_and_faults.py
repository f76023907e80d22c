"""The store in memory, and the fault wrapper that other tests rely on."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from datamanager.base.clock import SystemClock
from datamanager.base.errors import StoreFull, StoreUnavailable
from datamanager.storage.memory import MemoryStorage

from .faults import Call, FaultyStorage


class _SetClock:
    """A clock that stands where it is put."""

    def __init__(self) -> None:
        self.at = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

    def now(self) -> datetime:
        return self.at

    def elapsed(self) -> float:
        return self.at.timestamp()


def test_times_come_from_the_clock_it_was_given() -> None:
    clock = _SetClock()
    store = MemoryStorage(clock)
    store.put("leases/a-1", [b"x"])
    clock.at = datetime(2026, 3, 1, 12, 5, tzinfo=UTC)
    store.put("leases/a-2", [b"x"])
    assert store.stat("leases/a-2").mtime - store.stat("leases/a-1").mtime == 300
    assert {found.mtime for found in store.list("")} == {clock.at.timestamp(), clock.at.timestamp() - 300}


def test_a_bounded_memory_fills_up_and_gives_room_back() -> None:
    store = MemoryStorage(SystemClock(), capacity_bytes=100)
    store.put("packs/00/one", [bytes(60)])
    with pytest.raises(StoreFull):
        store.put("packs/00/two", [bytes(41)])
    space = store.space()
    assert space is not None
    assert (space.total, space.free) == (100, 40)
    store.delete("packs/00/one")
    store.delete("packs/00/one")
    store.put("packs/00/two", [bytes(100)])


@pytest.fixture
def faulty() -> FaultyStorage:
    store = FaultyStorage(MemoryStorage(SystemClock()), seed=7)
    store.put("packs/00/one", [bytes(range(256)) * 4])
    return store


def _wrong_bits(got: bytes, wanted: bytes) -> int:
    return sum((left ^ right).bit_count() for left, right in zip(got, wanted, strict=True))


def test_a_flipped_bit_is_one_bit_and_the_same_one_through_every_range(faulty: FaultyStorage) -> None:
    whole = faulty.get("packs/00/one")
    faulty.flip_bit("packs/00/one")
    spoilt = faulty.get("packs/00/one")
    assert _wrong_bits(spoilt, whole) == 1
    assert b"".join(faulty.get("packs/00/one", start, 64) for start in range(0, 1024, 64)) == spoilt
    assert faulty.get("packs/00/one", -1024) == spoilt
    assert faulty.get("packs/00/one", -100, 50) == spoilt[-100:-50]


def test_a_short_read_is_short_once(faulty: FaultyStorage) -> None:
    whole = faulty.get("packs/00/one")
    faulty.short_read("packs/00/one")
    short = faulty.get("packs/00/one")
    assert len(short) < len(whole)
    assert whole.startswith(short)
    assert faulty.get("packs/00/one") == whole


def test_an_error_comes_once_and_only_for_its_key(faulty: FaultyStorage) -> None:
    faulty.fail_once("get", StoreUnavailable("get: input/output error"), key="packs/00/one")
    assert faulty.stat("packs/00/one").size == 1024
    with pytest.raises(StoreUnavailable):
        faulty.get("packs/00/one")
    assert len(faulty.get("packs/00/one")) == 1024


def test_the_store_is_full_after_so_many_bytes(faulty: FaultyStorage) -> None:
    faulty.fill_after(100)
    faulty.put("packs/00/two", [bytes(90)])
    with pytest.raises(StoreFull):
        faulty.put("packs/00/three", [bytes(11)])
    faulty.make_room()
    faulty.put("packs/00/three", [bytes(11)])


def test_the_hook_sees_every_call_before_it_happens_and_may_stop_it() -> None:
    seen: list[Call] = []

    def stop_at_third(call: Call) -> None:
        seen.append(call)
        if call.number == 3:
            raise KeyboardInterrupt

    store = FaultyStorage(MemoryStorage(SystemClock()), hook=stop_at_third)
    store.put("leases/a-1", [b"x"])
    store.barrier()
    with pytest.raises(KeyboardInterrupt):
        store.put("leases/a-2", [b"x"])
    assert [found.key for found in store.list("")] == ["leases/a-1"]
    assert seen == [
        Call(1, "put", "leases/a-1"),
        Call(2, "barrier", ""),
        Call(3, "put", "leases/a-2"),
        Call(4, "list", ""),
    ]
