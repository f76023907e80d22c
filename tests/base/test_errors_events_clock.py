"""The tree of errors, the events and the clock: what everybody relies on."""

from __future__ import annotations

import inspect
import re
import time
from dataclasses import FrozenInstanceError
from datetime import UTC, timedelta

import pytest

from datamanager.base import errors
from datamanager.base.clock import SystemClock
from datamanager.base.errors import DataManagerError, ObjectMissing, StoreError, StoreUnavailable
from datamanager.base.events import Executed, PhaseStarted, Progress, Warned, ignore


def all_errors() -> list[type[DataManagerError]]:
    return [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, DataManagerError)]


def leaves() -> list[type[DataManagerError]]:
    return [kind for kind in all_errors() if not kind.__subclasses__()]


def test_exit_codes_are_unique_and_fit_a_process() -> None:
    codes = [kind.exit_code for kind in leaves()]
    assert len(set(codes)) == len(codes)
    assert all(2 <= code <= 130 for code in codes)
    assert DataManagerError.exit_code == 1


def test_the_drawn_tree_is_the_tree() -> None:
    drawn = set(re.findall(r"^[ │├└─]*(\w+)", errors.__doc__ or "", re.MULTILINE))
    for kind in all_errors():
        assert kind.__name__ in drawn
    for kind in leaves():
        assert re.search(rf"── {kind.__name__}\s+{kind.exit_code}\b", errors.__doc__ or ""), kind


def test_only_what_passes_by_itself_is_worth_another_try() -> None:
    assert {kind.__name__ for kind in all_errors() if kind.retryable} == {
        "ServerUnreachable",
        "StreamBroken",
        "StoreUnavailable",
        "StateUnavailable",
        "NotSent",
    }


def test_a_hint_given_replaces_that_of_the_class() -> None:
    assert StoreUnavailable("get pack: timed out").hint == StoreUnavailable.default_hint
    assert StoreUnavailable("get pack: timed out", hint="Wait.").hint == "Wait."
    assert str(ObjectMissing("get x: no such object")) == "get x: no such object"
    assert isinstance(ObjectMissing("x"), StoreError)


@pytest.mark.parametrize("kind", all_errors())
def test_default_hints_are_sentences(kind: type[DataManagerError]) -> None:
    assert not kind.default_hint or re.fullmatch(r"[A-Z].*\.", kind.default_hint)
    assert kind("x").message == "x"


def test_events_are_values_that_nobody_changes() -> None:
    assert Progress(1) == Progress(1, None)
    event = PhaseStarted("copying")
    with pytest.raises(FrozenInstanceError):
        event.phase = "x"  # type: ignore[misc]
    for one in (event, Progress(1, 2), Warned("w"), Executed("select 1")):
        ignore(one)


def test_the_wall_clock_is_aware_and_the_other_one_never_goes_back() -> None:
    clock = SystemClock()
    assert clock.now().utcoffset() == timedelta(0)
    assert clock.now().tzinfo is UTC
    readings = [clock.elapsed() for _ in range(1000)]
    assert readings == sorted(readings)
    before = clock.elapsed()
    time.sleep(0.02)
    assert 0.015 < clock.elapsed() - before < 10
