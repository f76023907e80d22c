"""The retry wrapper, over a store that fails on purpose."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pytest

from datamanager.base.clock import SystemClock
from datamanager.base.errors import (
    Cancelled,
    ObjectExists,
    ObjectMissing,
    StoreDenied,
    StoreUnavailable,
    StoreUnplugged,
)
from datamanager.base.pipeline import StopToken
from datamanager.storage.base import Buffer, StoredObject
from datamanager.storage.memory import MemoryStorage
from datamanager.storage.retry import RetryingStorage, RetryPolicy

from .faults import FaultyStorage

_QUICK = RetryPolicy(attempts=4, first_seconds=0.01, longest_seconds=0.02)


class _Parts(NamedTuple):
    stop: StopToken
    faulty: FaultyStorage
    store: RetryingStorage


@pytest.fixture
def parts() -> Iterator[_Parts]:
    with StopToken() as stop:
        faulty = FaultyStorage(MemoryStorage(SystemClock()))
        yield _Parts(stop, faulty, RetryingStorage(faulty, stop, _QUICK))


def _passing() -> StoreUnavailable:
    return StoreUnavailable("put: input/output error")


@pytest.mark.parametrize("method", ["put", "get", "list", "stat", "delete", "space"])
def test_a_passing_fault_is_not_seen(parts: _Parts, method: str) -> None:
    if method != "put":
        parts.store.put("leases/a-1", [b"x"])
    for _ in range(3):
        parts.faulty.fail_once(method, _passing())
    if method == "put":
        parts.store.put("leases/a-1", [b"x"])
        assert parts.store.get("leases/a-1") == b"x"
    elif method == "get":
        assert parts.store.get("leases/a-1") == b"x"
    elif method == "list":
        assert [found.key for found in parts.store.list("")] == ["leases/a-1"]
    elif method == "stat":
        assert parts.store.stat("leases/a-1").size == 1
    elif method == "delete":
        parts.store.delete("leases/a-1")
        assert [*parts.store.list("")] == []
    else:
        assert parts.store.space() is None
    assert [call.method for call in parts.faulty.calls].count(method) >= 4


def test_attempts_are_bounded(parts: _Parts) -> None:
    for _ in range(9):
        parts.faulty.fail_once("get", _passing())
    with pytest.raises(StoreUnavailable):
        parts.store.get("leases/a-1")
    assert len(parts.faulty.calls) == 4


@pytest.mark.parametrize("error", [StoreUnplugged("x"), StoreDenied("x"), ObjectMissing("x")])
def test_a_lasting_error_is_raised_at_once(parts: _Parts, error: StoreDenied) -> None:
    parts.faulty.fail_once("get", error)
    with pytest.raises(type(error)):
        parts.store.get("leases/a-1")
    assert len(parts.faulty.calls) == 1


def test_a_failed_barrier_is_not_repeated(parts: _Parts) -> None:
    parts.faulty.fail_once("barrier", _passing())
    with pytest.raises(StoreUnavailable):
        parts.store.barrier()
    assert len(parts.faulty.calls) == 1


def test_waits_double_up_to_a_bound_and_spread_downward() -> None:
    policy = RetryPolicy(first_seconds=0.4, longest_seconds=10.0)
    assert [policy.wait_seconds(failures, 0.0) for failures in range(1, 8)] == [0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    assert policy.wait_seconds(3, 0.5) == pytest.approx(1.2)
    assert policy.wait_seconds(5000, 0.0) == 10.0


def test_stopping_ends_a_wait_at_once(parts: _Parts) -> None:
    slow = RetryingStorage(parts.faulty, parts.stop, RetryPolicy(first_seconds=60, longest_seconds=60))
    parts.faulty.fail_once("get", _passing())
    timer = threading.Timer(0.1, parts.stop.stop, ["the owner asked"])
    timer.start()
    began = time.monotonic()
    with pytest.raises(Cancelled, match="the owner asked") as cancelled:
        slow.get("leases/a-1")
    timer.join()
    assert time.monotonic() - began < 5
    assert isinstance(cancelled.value.__cause__, StoreUnavailable)
    assert len(parts.faulty.calls) == 1


def test_a_stopped_job_can_still_clean_up_but_does_not_linger(parts: _Parts) -> None:
    parts.store.put("leases/a-1", [b"x"])
    parts.stop.stop("the owner asked")
    parts.store.delete("leases/a-1")
    assert [*parts.store.list("")] == []
    parts.faulty.fail_once("delete", _passing())
    calls = len(parts.faulty.calls)
    with pytest.raises(StoreUnavailable):
        parts.store.delete("leases/a-1")
    assert len(parts.faulty.calls) == calls + 1


class _LosesAnswers(MemoryStorage):
    """Stores the object, then loses the answer once."""

    lost = False

    def put(self, key: str, data: Sequence[Buffer]) -> None:
        super().put(key, data)
        if not self.lost:
            self.lost = True
            raise StoreUnavailable("put: connection reset")


def test_a_put_whose_answer_was_lost_succeeds_at_the_second_try() -> None:
    with StopToken() as stop:
        store = RetryingStorage(_LosesAnswers(SystemClock()), stop, _QUICK)
        store.put("leases/a-1", [b"our ", b"bytes"])
        assert store.get("leases/a-1") == b"our bytes"
        with pytest.raises(ObjectExists):
            store.put("leases/a-1", [b"our ", b"bytes"])


def test_a_name_that_another_took_between_two_tries_is_refused(parts: _Parts) -> None:
    parts.faulty.fail_once("put", _passing())
    other = parts.store
    other_wrote = threading.Event()

    def take(*_: object) -> float:
        if not other_wrote.is_set():
            other_wrote.set()
            other.put("leases/a-1", [b"theirs"])
        return 0.0

    store = RetryingStorage(parts.faulty, parts.stop, _QUICK, chance=take)
    with pytest.raises(ObjectExists):
        store.put("leases/a-1", [b"ours"])
    assert store.get("leases/a-1") == b"theirs"


class _BreaksOff(MemoryStorage):
    """A listing that fails midway, once."""

    broken = False

    def list(self, prefix: str) -> Iterator[StoredObject]:
        for number, found in enumerate(super().list(prefix)):
            if number == 2 and not self.broken:
                self.broken = True
                raise StoreUnavailable("list: connection reset")
            yield found


def test_a_listing_that_broke_off_names_every_object_once() -> None:
    with StopToken() as stop:
        store = RetryingStorage(_BreaksOff(SystemClock()), stop, _QUICK)
        for number in range(4):
            store.put(f"leases/{number}", [b"x"])
        assert sorted(found.key for found in store.list("")) == [f"leases/{number}" for number in range(4)]
