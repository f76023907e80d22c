"""The repository remembers when each folder of packs was last read whole."""

from __future__ import annotations

import pytest

from datamanager.base.errors import IntegrityError, ObjectExists
from datamanager.repository.checked import load_checked, read_checked, save_checked
from datamanager.repository.format import Kind, canonical_json
from tests.repository.parts import copy_of, flip, keys, new_repository, reopen
from tests.storage.faults import Call, FaultyStorage

DAY = 86_400.0


def test_what_is_not_read_again_keeps_its_time() -> None:
    repository = new_repository()
    assert load_checked(repository) == {}
    save_checked(repository, {"00": 10 * DAY, "a7": 10 * DAY}, 10 * DAY)
    save_checked(repository, {"a7": 11 * DAY, "ff": 11 * DAY}, 11 * DAY)
    assert load_checked(repository) == {"00": 10 * DAY, "a7": 11 * DAY, "ff": 11 * DAY}
    assert keys(repository.storage, "checked/") == ["checked/00000002"]


def test_a_reading_never_becomes_older_than_it_was() -> None:
    repository = new_repository()
    save_checked(repository, {"00": 10 * DAY}, 10 * DAY)
    save_checked(repository, {"00": 9 * DAY}, 9 * DAY)
    assert load_checked(repository) == {"00": 10 * DAY}


def test_two_that_write_at_the_same_time_both_succeed() -> None:
    repository = new_repository()

    def meanwhile(call: Call) -> None:
        if call.method == "put" and call.key == "checked/00000001":
            storage.fail_once("put", ObjectExists("put: the name is taken"), "checked/00000001")
            repository.objects.put_small(Kind.CHECKED, call.key, [call.key], canonical_json({"folders": {}}))

    storage = FaultyStorage(repository.storage, hook=meanwhile)
    assert save_checked(reopen(repository, storage), {"00": DAY}, DAY) == "checked/00000002"
    assert load_checked(repository) == {"00": DAY}


def test_a_state_that_cannot_be_read_gives_way_to_the_one_before() -> None:
    repository = new_repository()
    save_checked(repository, {"00": DAY}, DAY)
    older = repository.storage.get("checked/00000001")
    save_checked(repository, {"00": 2 * DAY}, 2 * DAY)
    told: list[str] = []
    spoilt = reopen(repository, copy_of(repository.storage), told)
    spoilt.storage.put("checked/00000001", [older])
    flip(spoilt.storage, "checked/00000002", 90)
    assert load_checked(spoilt) == {"00": DAY}
    assert [("checked/00000002" in message) for message in told] == [True]


@pytest.mark.parametrize("wrong", [{}, {"folders": []}, {"folders": {"00": 5}}, {"folders": {"00": "yesterday"}}])
def test_a_state_that_no_writer_of_ours_made_is_refused(wrong: dict[str, object]) -> None:
    repository = new_repository()
    repository.objects.put_small(Kind.CHECKED, "checked/00000001", ["checked/00000001"], canonical_json(wrong))
    with pytest.raises(IntegrityError, match="malformed"):
        read_checked(repository, "checked/00000001")
