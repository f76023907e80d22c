"""The rolling verify reads every stored byte within its days, a share a run, and remembers it in the repository."""

from __future__ import annotations

import random

import pytest

from datamanager.engine.verify.rolling import DAY_SECONDS, due_folders, folder_of, folder_states, oldest_waiting
from datamanager.engine.verify.run import VerifyOptions, VerifyResult
from datamanager.repository.checked import load_checked
from datamanager.repository.format import HEADER
from datamanager.repository.repository import Repository
from datamanager.storage.base import StoredObject
from tests.engine.synthetic_source import SyntheticCluster, make_cluster
from tests.repository.parts import SetClock, backup, flip, keys, new_repository, verify

START = 1_700_000_000.0
HOUR = 3600.0


def packs(seed: int, count: int, stored: float = START) -> list[StoredObject]:
    chance = random.Random(f"packs {seed}")
    made = []
    for _ in range(count):
        name = chance.randbytes(16).hex()
        made.append(StoredObject(f"packs/{name[:2]}/{name}", chance.randrange(1 << 16, 1 << 25), stored))
    return made


class Reader:
    """Reads what is due, as verify would, without reading."""

    def __init__(self, packs: list[StoredObject], days: int) -> None:
        self.packs = packs
        self.days = days
        self.checked: dict[str, float] = {}
        self.read: list[int] = []

    def run(self, now: float) -> int:
        due = due_folders(folder_states(self.packs, self.checked, now), now, self.days)
        self.checked |= dict.fromkeys(due, now)
        self.read.append(sum(one.size for one in self.packs if folder_of(one.key) in due))
        return self.read[-1]

    def age(self, now: float) -> float:
        found = oldest_waiting(folder_states(self.packs, self.checked, now), {}, now)
        assert found is not None
        return found

    @property
    def total(self) -> int:
        return sum(one.size for one in self.packs)


@pytest.mark.parametrize(("count", "days"), [(1, 30), (7, 30), (500, 30), (3000, 30), (500, 7), (500, 1), (3000, 365)])
def test_a_run_every_day_reads_every_byte_within_the_days(count: int, days: int) -> None:
    chance = random.Random(count)
    reader = Reader(packs(1, count), days)
    for day in range(3 * days + 3):
        now = START + (day + 1) * DAY_SECONDS + chance.uniform(-2, 2) * HOUR
        assert reader.age(now) <= (days + 0.5) * DAY_SECONDS
        reader.run(now)
    if count >= 500 and days == 30:
        assert max(reader.read) < reader.total / days * 1.6  # no run reads much more than its share


def test_a_repository_that_was_never_read_catches_up_two_shares_a_run() -> None:
    reader = Reader(packs(2, 1000, stored=START - 400 * DAY_SECONDS), 30)
    for day in range(40):
        reader.run(START + day * DAY_SECONDS)
    share = reader.total / 30
    assert share * 1.9 < reader.read[0] < share * 2.4
    assert max(reader.read) < share * 2.4
    assert reader.age(START + 39 * DAY_SECONDS) <= 30.5 * DAY_SECONDS


def test_a_missed_week_is_caught_up_at_most_two_shares_a_run() -> None:
    reader = Reader(packs(3, 1000), 30)
    days = [*range(1, 40), *range(47, 100)]
    for day in days:
        reader.run(START + day * DAY_SECONDS)
    share = reader.total / 30
    after = reader.read[39:]
    assert share * 1.9 < after[0] < share * 2.4
    assert max(after) < share * 2.4
    assert after[-1] < share * 1.35
    assert reader.age(START + 99 * DAY_SECONDS) <= 30.5 * DAY_SECONDS


def test_a_run_soon_after_another_one_reads_nothing_again() -> None:
    reader = Reader(packs(4, 1000), 30)
    assert reader.run(START + DAY_SECONDS) > 0
    for hour in range(1, 20):
        assert reader.run(START + DAY_SECONDS + hour * HOUR) == 0
    assert reader.run(START + 2 * DAY_SECONDS - HOUR) > 0


def test_a_clock_that_was_ahead_does_not_put_a_folder_off_for_ever() -> None:
    reader = Reader(packs(5, 300), 30)
    reader.checked = {folder_of(one.key): START + 9000 * DAY_SECONDS for one in reader.packs}
    for day in range(40):
        reader.run(START + day * DAY_SECONDS)
    assert sum(reader.read) >= reader.total or reader.age(START + 40 * DAY_SECONDS) <= 30.5 * DAY_SECONDS


def test_nothing_stored_is_nothing_due() -> None:
    assert due_folders([], START, 30) == []
    assert oldest_waiting([], {}, START) is None


# -- through the repository ----------------------------------------------------------------------------------------

ROLLING = VerifyOptions(depth="rolling", rolling_days=4)


def many_packs(clock: SetClock) -> tuple[Repository, SyntheticCluster]:
    """Several backups of different clusters, one pack each."""
    repository = new_repository(clock=clock)
    cluster = make_cluster(pages=20, tables=1)
    for seed in range(8):
        backup(repository, make_cluster(seed, pages=20, tables=1))
    return repository, cluster


def test_four_daily_runs_read_every_pack_and_a_full_verify_counts_as_well() -> None:
    clock = SetClock()
    repository, _ = many_packs(clock)
    everything = {key.split("/")[1] for key in keys(repository.storage, "packs/")}
    results: list[VerifyResult] = []
    for _ in range(4):
        clock.advance(DAY_SECONDS)
        results.append(verify(repository, ROLLING))
    assert set(load_checked(repository)) == everything
    assert all(0 < result.packs_read < 8 for result in results)
    ages = [result.oldest_unread_seconds or 0.0 for result in results]
    assert ages[:2] == [DAY_SECONDS, 2 * DAY_SECONDS]  # since the backups were made
    assert max(ages) <= 3 * DAY_SECONDS
    assert all(result.ok for result in results)
    assert keys(repository.storage, "marks/") == []
    clock.advance(DAY_SECONDS)
    assert verify(repository, VerifyOptions(depth="present")).oldest_unread_seconds == ages[-1] + DAY_SECONDS
    assert verify(repository).oldest_unread_seconds == 0
    assert verify(repository, VerifyOptions(depth="present")).oldest_unread_seconds == 0
    assert verify(repository, ROLLING).packs_read == 0  # all of it was read today


def test_a_damage_is_found_by_the_run_whose_share_it_is_in() -> None:
    clock = SetClock()
    repository, _ = many_packs(clock)
    spoilt = keys(repository.storage, "packs/")[3]
    flip(repository.storage, spoilt, HEADER.size + 3)
    found = []
    for _ in range(4):
        clock.advance(DAY_SECONDS)
        found += [damage.key for damage in verify(repository, ROLLING).damages]
    assert found == [spoilt]
    assert len(keys(repository.storage, "damaged/")) == 1
