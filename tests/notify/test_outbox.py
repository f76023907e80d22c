"""What waits, how long, and what is tried when; and that nobody waits for a slow attempt."""

from __future__ import annotations

import itertools
import threading
import time
from datetime import timedelta

from datamanager.config.model import NotifyEvent
from datamanager.notify.courier import Courier
from datamanager.notify.outbox import Health, Outbox, Report, Waiting, from_text, to_text
from tests.notify.parts import NOW, message

ALL = {"office": (NotifyEvent.ALL,), "phone": (NotifyEvent.FAILURE,)}


def test_each_channel_gets_what_it_asked_for_and_urgent_ones_everything() -> None:
    box = Outbox().add(
        [
            message(id="1", key="a"),
            message(id="2", key="b", event=NotifyEvent.DIGEST),
            message(id="3", key="c", event=NotifyEvent.DIGEST, everywhere=True),
        ],
        ALL,
    )
    assert [one.message.id for one in box.due("office", NOW)] == ["1", "2", "3"]
    assert [one.message.id for one in box.due("phone", NOW)] == ["1", "3"]


def test_a_newer_message_takes_the_place_of_an_older_one_of_its_key() -> None:
    box = Outbox().add([message(id="1", key="a"), message(id="2", key="b")], ALL)
    box = box.add([message(id="3", key="a")], ALL)
    assert [one.message.id for one in box.due("office", NOW)] == ["2", "3"]


def test_a_channel_that_fails_is_tried_ever_more_rarely_and_given_up_after_a_day() -> None:
    box, now, tries = Outbox().add([message()], {"office": (NotifyEvent.ALL,)}), NOW, []
    while box.waiting:
        if box.due("office", now):
            tries.append(now)
            box = box.reported("office", Report(trouble="closed"), now)
        now += timedelta(seconds=20)
        box = box.swept({"office"}, now)
    gaps = [(b - a).total_seconds() / 60 for a, b in itertools.pairwise(tries)]
    assert [round(one) for one in gaps[:6]] == [1, 2, 4, 8, 16, 30]
    assert max(gaps) <= 31
    assert now - NOW <= timedelta(hours=24, minutes=1)
    assert box.health("office") == Health(None, "closed", NOW, len(tries), box.health("office").retry, 1)


def test_what_was_taken_goes_and_recipients_that_were_refused_stay() -> None:
    box = Outbox().add([message(id="1", key="a"), message(id="2", key="b"), message(id="3", key="c")], ALL)
    box = box.reported("office", Report({"1": (), "2": ("x@y",)}, "x@y: full"), NOW)
    assert box.health("office").sent == NOW
    waiting = [one for one in box.waiting if one.channel == "office"]
    assert [(one.message.id, one.left) for one in waiting] == [("2", ("x@y",)), ("3", ())]
    assert len([one for one in box.waiting if one.channel == "phone"]) == 3
    box = box.reported("office", Report({"2": (), "3": ()}), NOW)
    assert box.health("office") == Health(sent=NOW)


def test_a_retry_set_by_a_clock_that_was_wrong_holds_nothing_up() -> None:
    box = Outbox().add([message()], ALL).reported("office", Report(trouble="x"), NOW + timedelta(days=1000))
    assert len(box.due("office", NOW)) == 1


def test_what_is_stored_comes_back_and_what_cannot_be_read_is_empty() -> None:
    box = Outbox(
        waiting=(Waiting(message("Größe \U0001f600"), "office", ("a@b",)),),
        channels={"office": Health(NOW, "x", NOW, 3, NOW, 1)},
        told={"a": NOW}, looked=NOW, counted=3, seen={"j": NOW}, ending=("k",), digest=NOW, digest_pace="daily",
        heartbeat=Health(trouble="y"), pinged=NOW,
    )  # fmt: skip
    assert from_text(to_text(box)) == box
    assert from_text("{broken") == from_text(None) == from_text('{"waiting": 7}') == Outbox()


def test_the_courier_never_makes_its_caller_wait_and_says_so_when_time_is_up() -> None:
    courier, go = Courier(), threading.Event()

    def work() -> Report:
        go.wait(20)
        return Report({"1": ()})

    begun = time.monotonic()
    courier.begin("slow", work, 0.3)
    courier.begin("slow", work, 0.3)  # one at a time
    courier.begin("quick", lambda: Report({"2": ()}), 5)
    courier.reports()
    assert time.monotonic() - begun < 0.2
    got = dict(courier.reports(10))
    assert 0.2 < time.monotonic() - begun < 3
    assert got["slow"].trouble == "no answer within 0 s"
    assert not courier.is_free("slow")
    go.set()
    deadline = time.monotonic() + 5
    late: list[tuple[str, Report]] = []
    while not late and time.monotonic() < deadline:
        assert not courier.is_free("slow")
        late = courier.reports()
    # It was taken after all, and must not be sent again.
    assert late == [("slow", Report({"1": ()}))]
    assert courier.is_free("slow")


def test_what_a_library_raises_becomes_a_report_without_its_words() -> None:
    def work() -> Report:
        raise RuntimeError("the token is toktoktoken")

    courier = Courier()
    courier.begin("broken", work, 5)
    assert courier.reports(5) == [("broken", Report(trouble="unexpected RuntimeError"))]
