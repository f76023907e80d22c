"""The audit's chain: whatever was done to it by hand is noticed, and where it begins is named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from datamanager.base.errors import IntegrityError
from datamanager.state.database import State
from tests.state.by_hand import by_hand
from tests.state.parts import MORNING, MovedClock

# SHA-256 of the text in test_the_digest_of_an_entry_never_changes_between_releases, computed without this program.
DIGEST = "33f7b01ac55b93fb5d3dacea665eaa5959734aa06539096baef83d3e5312abf0"


@pytest.fixture
def entries(state: State, clock: MovedClock) -> State:
    """Six entries."""
    for number in range(6):
        clock.move(seconds=1)
        state.audit.append(
            who="anna", origin="cli on server1", action="schedule changed", target=f"s{number}", after={"n": number}
        )
    return state


def test_an_entry_is_returned_and_listed_as_it_was_written(state: State, clock: MovedClock) -> None:
    first = state.audit.append(
        who="anna \udcff",
        origin="cli on server1",
        action="schedule changed",
        target="nightly",
        before={"at": ["01:00"], "limit": 1.0, "text": "ä\0"},
        after=MORNING,
        reason="because",
    )
    assert (first.number, first.time, first.who, first.after) == (1, MORNING, "anna \\udcff", str(MORNING))
    clock.move(seconds=1)
    second = state.audit.append(who="bob", origin="page", action="backup deleted", target="b1")
    assert state.audit.list() == [second, first]
    assert state.audit.list(limit=1) == [second]
    assert state.audit.list(before_number=2) == [first]
    assert state.audit.verify() == (2, second.digest)


def test_the_digest_of_an_entry_never_changes_between_releases(state: State) -> None:
    entry = state.audit.append(who="a", origin="o", action="x", target="t", before={"b": 1, "a": "ä"}, reason="r")
    # SHA-256 of {"action":"x","after":null,"before":{"a":"\u00e4","b":1},"digest":"000…","number":1,"origin":"o",
    # "reason":"r","target":"t","time":"2026-11-23T06:00:00.123456+00:00","who":"a"}
    assert entry.digest == DIGEST
    assert state.audit.list() == [replace(entry, digest=DIGEST)]


@pytest.mark.parametrize(
    ("change", "entry"),
    [
        ("UPDATE audit SET who = 'bob' WHERE number = 3", 3),
        ("UPDATE audit SET after = '{\"n\":7}' WHERE number = 1", 1),
        ("UPDATE audit SET after = 'no JSON' WHERE number = 2", 2),
        ("UPDATE audit SET before = 'null' WHERE number = 4", 4),
        ("UPDATE audit SET after = '{ \"n\":2}' WHERE number = 3", 3),
        ("UPDATE audit SET time = '2026-11-23T06:00:00.000001Z' WHERE number = 3", 3),
        ("UPDATE audit SET reason = 'x' WHERE number = 6", 6),
        ("UPDATE audit SET digest = repeat_ WHERE number = 5", 5),
        ("DELETE FROM audit WHERE number = 1", 1),
        ("DELETE FROM audit WHERE number = 4", 4),
        ("DELETE FROM audit WHERE number = 6", 6),
        ("DELETE FROM audit", 1),
        ("UPDATE audit_head SET number = 5", 7),
    ],
)
def test_a_changed_or_missing_entry_is_named(entries: State, url: str, change: str, entry: int) -> None:
    assert entries.audit.verify()[0] == 6
    by_hand(url, change.replace("repeat_", f"'{'0' * 64}'"))
    with pytest.raises(IntegrityError, match=f"entry {entry}:"):
        entries.audit.verify()


def test_swapped_entries_are_noticed(entries: State, url: str) -> None:
    by_hand(
        url,
        "UPDATE audit SET number = 100 WHERE number = 2",
        "UPDATE audit SET number = 2 WHERE number = 3",
        "UPDATE audit SET number = 3 WHERE number = 100",
    )
    with pytest.raises(IntegrityError, match="entry 2:"):
        entries.audit.verify()


def test_an_entry_put_in_between_is_noticed(entries: State, url: str) -> None:
    columns = "time, who, origin, action, target, before, after, reason, digest"
    moved = [f"UPDATE audit SET number = {number + 1} WHERE number = {number}" for number in (6, 5, 4)]
    by_hand(url, *moved, f"INSERT INTO audit (number, {columns}) SELECT 4, {columns} FROM audit WHERE number = 3")
    with pytest.raises(IntegrityError, match="entry 4:"):
        entries.audit.verify()


def test_an_entry_put_at_the_end_or_before_the_beginning_is_noticed(entries: State, url: str) -> None:
    columns = "time, who, origin, action, target, before, after, reason, digest"
    for number in (7, 0):
        by_hand(url, f"INSERT INTO audit (number, {columns}) SELECT {number}, {columns} FROM audit WHERE number = 6")
        with pytest.raises(IntegrityError, match="entry 7:" if number else "entry 1:"):
            entries.audit.verify()


def test_an_audit_without_its_head_takes_no_entry(entries: State, url: str) -> None:
    by_hand(url, "DELETE FROM audit_head")
    with pytest.raises(IntegrityError, match="its head is missing"):
        entries.audit.append(who="a", origin="o", action="x", target="t")
    with pytest.raises(IntegrityError, match="its head is missing"):
        entries.audit.verify()
