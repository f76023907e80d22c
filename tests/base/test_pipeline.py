"""Threads that succeed or fail together: the first error wins, stopping ends every wait, queues are bounded."""

from __future__ import annotations

import select
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from datamanager.base.errors import Cancelled, IntegrityError, StoreFull
from datamanager.base.pipeline import Channel, StopToken, TaskGroup

SOON = 5.0  # seconds; far more than any wait that ends as it should


@pytest.fixture
def stop() -> Iterator[StopToken]:
    with StopToken() as token:
        yield token


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


# -- StopToken ------------------------------------------------------------------------------------------------------


def test_a_token_does_nothing_until_it_is_asked_to_stop(stop: StopToken) -> None:
    stop.check()
    assert not stop.stopping
    assert stop.wait(0) is False
    assert select.select([stop], [], [], 0)[0] == []


def test_the_first_reason_to_stop_stays(stop: StopToken) -> None:
    stop.stop("cancelled by Anna")
    stop.stop("time limit")
    assert stop.stopping
    assert stop.reason == "cancelled by Anna"
    with pytest.raises(Cancelled, match="cancelled by Anna"):
        stop.check()


def test_a_poll_that_includes_the_token_wakes_up(stop: StopToken) -> None:
    timer = threading.Timer(0.05, stop.stop, ["enough"])
    timer.start()
    began = time.monotonic()
    assert select.select([stop], [], [], SOON)[0] == [stop]
    assert stop.wait(SOON) is True
    assert time.monotonic() - began < SOON
    timer.join()


def test_a_token_can_be_set_from_a_signal_handler_and_again_and_again(stop: StopToken) -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: stop.stop("signal"))
    try:
        for _ in range(1000):
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert stop.reason == "signal"


def test_a_token_that_is_closed_can_still_be_asked_to_stop() -> None:
    with StopToken() as token:
        pass
    token.stop("late")
    assert token.stopping


def drain(channel: Channel[int]) -> None:
    for _ in channel:
        pass


# -- TaskGroup and Channel --------------------------------------------------------------------------------------------


def test_items_come_out_in_the_order_they_went_in(stop: StopToken) -> None:
    found: list[int] = []
    with TaskGroup(stop) as group:
        channel: Channel[int] = group.channel(3)
        group.start("consume", lambda: found.extend(channel))
        for number in range(100):
            channel.put(number)
        channel.close()
    assert found == list(range(100))


def test_every_item_reaches_exactly_one_of_several_consumers(stop: StopToken) -> None:
    found: list[int] = []
    lock = threading.Lock()

    with TaskGroup(stop) as group:
        channel: Channel[int] = group.channel(1)

        def consume() -> None:
            for item in channel:
                with lock:
                    found.append(item)

        for number in range(5):
            group.start(f"consume-{number}", consume)
        for number in range(500):
            channel.put(number)
        channel.close()
    assert sorted(found) == list(range(500))


def test_a_full_queue_makes_its_producer_wait(stop: StopToken) -> None:
    produced: list[int] = []
    go_on = threading.Event()
    with TaskGroup(stop) as group:
        channel: Channel[int] = group.channel(4)

        def produce() -> None:
            for number in range(50):
                channel.put(number)
                produced.append(number)
            channel.close()

        group.start("produce", produce)
        deadline = time.monotonic() + SOON
        while len(produced) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.25)  # longer than the queue's own look-ups
        assert len(produced) == 4
        go_on.set()
        assert list(channel) == list(range(50))


def test_the_first_error_wins_and_the_others_stop(stop: StopToken) -> None:
    ended: list[str] = []

    def fail() -> None:
        time.sleep(0.05)
        raise StoreFull("write pack: no room")

    def forever(name: str) -> None:
        try:
            for _ in group.channel(1):
                pass
        finally:
            ended.append(name)

    def run() -> None:
        with group:
            group.start("waits-1", lambda: forever("1"))
            group.start("waits-2", lambda: forever("2"))
            group.start("fails", fail)

    group = TaskGroup(stop)
    began = time.monotonic()
    with pytest.raises(StoreFull, match="no room"):
        run()
    assert sorted(ended) == ["1", "2"]
    assert time.monotonic() - began < SOON


def test_a_consumer_that_fails_frees_its_producer(stop: StopToken) -> None:
    def consume() -> None:
        for _ in channel:
            raise IntegrityError("read pack: damaged")

    def run() -> None:
        with group:
            group.start("consume", consume)
            for number in range(1000):
                channel.put(number)

    group = TaskGroup(stop)
    channel: Channel[int] = group.channel(1)
    with pytest.raises(IntegrityError, match="damaged"):
        run()


def test_the_error_of_the_block_itself_stops_the_threads_and_is_raised(stop: StopToken) -> None:
    def run() -> None:
        with TaskGroup(stop) as group:
            channel: Channel[int] = group.channel(1)
            group.start("consume", lambda: drain(channel))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()


def test_stopping_from_outside_ends_every_wait_with_its_reason(stop: StopToken) -> None:
    def run() -> None:
        with TaskGroup(stop) as group:
            empty: Channel[int] = group.channel(1)
            full: Channel[int] = group.channel(1)
            full.put(0)
            group.start("waits for an item", lambda: drain(empty))
            group.start("waits for room", lambda: full.put(1))
            group.start("waits to close", full.close)

    timer = threading.Timer(0.05, stop.stop, ["cancelled by Ben"])
    timer.start()
    began = time.monotonic()
    with pytest.raises(Cancelled, match="cancelled by Ben"):
        run()
    assert time.monotonic() - began < SOON
    timer.join()


def test_a_failed_group_does_not_stop_another_one(stop: StopToken) -> None:
    def fail() -> None:
        raise StoreFull("full")

    with pytest.raises(StoreFull), TaskGroup(stop) as group:
        group.start("fails", fail)
    stop.check()
    with TaskGroup(stop) as group:
        group.check()


def test_an_exit_of_the_interpreter_in_a_thread_is_not_swallowed(stop: StopToken) -> None:
    def leave() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit), TaskGroup(stop) as group:
        group.start("leaves", leave)


def test_closing_an_empty_channel_ends_its_consumers(stop: StopToken) -> None:
    with TaskGroup(stop) as group:
        channel: Channel[int] = group.channel(1)
        channel.close()
        assert list(channel) == []
        assert list(channel) == []
