"""WAL is kept exactly as long as a kept backup or the window needs it, and what goes is said before."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamanager.base.errors import IntegrityError
from datamanager.base.events import ignore
from datamanager.base.pipeline import StopToken
from datamanager.base.units import MIB, Lsn
from datamanager.engine.verify.findings import VerifyOptions
from datamanager.engine.wal.pruning import WalPruneOptions, WalPruneResult, prune_wal, window_of
from datamanager.engine.wal.retention import BackupNeed, LineFacts, LinePlan, plan_lines
from datamanager.postgres.wal.history import TimelineHistory
from datamanager.repository.mark import DELETED
from datamanager.repository.repository import Repository
from datamanager.repository.wal.archive import Line, WalArchive
from datamanager.repository.wal.container import WalInfo
from datamanager.repository.wal.names import StoredWal
from datamanager.storage.memory import MemoryStorage
from tests.engine.synthetic_source import SYSTEM_IDENTIFIER, make_cluster
from tests.repository.parts import SetClock, backup, flip, new_repository, reopen, verify

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
SEGMENT = MIB


def history(timeline: int, *switches: tuple[int, int]) -> TimelineHistory:
    text = "".join(f"{number}\t{Lsn(at * SEGMENT)}\tno reason\n" for number, at in switches)
    return TimelineHistory.parse(timeline, text.encode())


def line(
    timeline: int,
    first: int,
    last: int,
    *switches: tuple[int, int],
    name: str = "",
    days_ago: float = 9,
    young: int = 0,
) -> LineFacts:
    """A line that holds the segments from ``first`` up to ``last``; the ``young`` newest came just now."""
    stored = [
        StoredWal(
            Lsn(one * SEGMENT),
            Lsn((one + 1) * SEGMENT),
            f"{name or timeline}/{one}",
            1000,
            (NOW - (timedelta() if one >= last - young else days_ago * DAY)).timestamp(),
        )
        for one in range(first, last)
    ]
    created = NOW - (days_ago + 1) * DAY
    return LineFacts(name or f"line{timeline}", timeline, SEGMENT, history(timeline, *switches), created, tuple(stored))


def made(timeline: int, at: float, days_ago: float, *, good: bool = True) -> BackupNeed:
    """A backup that began in the middle of a segment and ended a little behind it."""
    start = Lsn(int(at * SEGMENT))
    ended = NOW - days_ago * DAY
    return BackupNeed(f"backup at {at} of {timeline}", timeline, start, Lsn(start + 5000), ended, good)


def kept(plans: Sequence[LinePlan], lines: Sequence[LineFacts]) -> dict[str, list[int]]:
    going = {one.line: {each.key for each in (*one.going, *one.covered)} for one in plans}
    return {one.id: [each.start // SEGMENT for each in one.stored if each.key not in going[one.id]] for one in lines}


def test_a_backup_that_was_made_while_the_clock_was_wrong_lets_nothing_go() -> None:
    only = line(1, 0, 20)
    backups = [made(1, 3.5, 9), made(1, 7.5, 5), made(1, 15.5, 365 * 50)]
    (plan,) = plan_lines([only], backups, 7 * DAY, NOW)
    assert kept([plan], [only])["line1"] == list(range(3, 20))


def test_without_a_window_wal_stays_from_the_oldest_kept_backup_on() -> None:
    only = line(1, 0, 20)
    (plan,) = plan_lines([only], [made(1, 7.5, 5), made(1, 15.5, 1)], None, NOW)
    assert kept([plan], [only]) == {"line1": list(range(7, 20))}
    assert plan.since is not None
    assert plan.since.ended == NOW - 5 * DAY
    assert not plan.whole


def test_with_a_window_it_stays_from_the_newest_backup_that_is_older() -> None:
    only, backups = line(1, 0, 20), [made(1, 3.5, 8), made(1, 7.5, 5), made(1, 15.5, 1)]
    (plan,) = plan_lines([only], backups, 3 * DAY, NOW)
    assert kept([plan], [only]) == {"line1": list(range(7, 20))}
    (plan,) = plan_lines([only], backups, 30 * DAY, NOW)  # not promised that far back yet: nothing may go
    assert kept([plan], [only]) == {"line1": list(range(3, 20))}
    backups[1] = replace(backups[1], good=False)
    (plan,) = plan_lines([only], backups, 3 * DAY, NOW)
    assert kept([plan], [only]) == {"line1": list(range(3, 20))}


@pytest.mark.decision(12)
def test_what_leads_to_a_younger_timeline_stays_and_an_abandoned_one_until_its_last_backup_is_gone() -> None:
    old, new = line(1, 0, 20), line(2, 10, 30, (1, 10))
    before, left, after = made(1, 5.5, 6), made(1, 15.5, 4), made(2, 20.5, 2)
    plans = plan_lines([old, new], [before, left, after], None, NOW)
    assert kept(plans, [old, new]) == {"line1": list(range(5, 20)), "line2": list(range(10, 30))}
    # Of the backups only one of the branch that was left is older than the window: it leads nowhere else.
    plans = plan_lines([old, new], [before, left, after], 3 * DAY, NOW)
    assert kept(plans, [old, new]) == {"line1": [*range(5, 10), *range(15, 20)], "line2": list(range(10, 30))}
    plans = plan_lines([old, new], [left, after], None, NOW)
    assert kept(plans, [old, new]) == {"line1": list(range(15, 20)), "line2": list(range(20, 30))}
    plans = plan_lines([old, new], [after], None, NOW)
    assert kept(plans, [old, new]) == {"line1": [], "line2": list(range(20, 30))}
    assert not plans[0].whole, "line 2 came from it, and its number must stay taken"
    alone = line(3, 40, 50, (2, 40))
    plans = plan_lines([old, line(2, 10, 30, (1, 12), name="left"), alone], [made(3, 45.5, 1)], None, NOW)
    assert [(one.line, one.whole) for one in plans] == [("line1", True), ("left", True), ("line3", False)]


def test_two_lines_of_one_timeline_are_kept_both_where_a_backup_may_belong_to_either() -> None:
    first, second = line(1, 0, 20, name="first"), line(1, 10, 30, name="second", days_ago=3)
    plans = plan_lines([first, second], [made(1, 12.5, 4)], None, NOW)
    assert kept(plans, [first, second]) == {"first": list(range(12, 20)), "second": list(range(12, 30))}


def test_wal_that_waits_for_the_first_backup_stays_for_a_day_and_a_line_in_use_for_ever() -> None:
    only = line(1, 0, 20, young=4)
    (plan,) = plan_lines([only], [], None, NOW)
    assert kept([plan], [only]) == {"line1": [16, 17, 18, 19]}
    assert (plan.whole, plan.since) == (False, None)
    older, newer = line(1, 0, 20, name="older", days_ago=20), line(2, 20, 22, (1, 20), name="newer")
    backups = [made(2, 21.5, 1)]
    assert [one.whole for one in plan_lines([line(3, 0, 9, (1, 5), days_ago=20), newer], backups, None, NOW)] == [
        True, False,
    ]  # fmt: skip
    assert [one.whole for one in plan_lines([older, newer], backups, None, NOW, live={"older"})] == [False, False]


def test_a_piece_that_a_longer_one_covers_goes() -> None:
    only = line(1, 0, 3)
    piece = StoredWal(Lsn(SEGMENT), Lsn(SEGMENT + 100), "piece", 10, 0.0)
    only = replace(only, stored=tuple(sorted([*only.stored, piece])))
    (plan,) = plan_lines([only], [made(1, 0.5, 1)], None, NOW)
    assert (plan.covered, plan.going) == ((piece,), ())


@settings(max_examples=200, deadline=None)
@given(st.randoms(use_true_random=False))
def test_from_each_anchor_every_byte_up_to_the_end_stays_and_nothing_before_all_of_them(chance: random.Random) -> None:
    """Random trees of timelines, against the walk that a replay makes."""
    lines = [line(1, 0, 30)]
    for timeline in range(2, chance.randint(2, 5)):
        parent = chance.choice([one for one in lines if one.history.begins < 28 * SEGMENT])
        switches = [(one.timeline, int(one.at) // SEGMENT) for one in parent.history.switches]
        at = chance.randint(int(parent.history.begins) // SEGMENT + 1, 29)
        lines.append(line(timeline, at, 30, *switches, (parent.timeline, at)))
    backups = []
    for _ in range(chance.randint(0, 6)):
        of = chance.choice(lines)
        place = chance.randint(int(of.history.begins) // SEGMENT, 29) + 0.5
        backups.append(made(of.timeline, place, chance.uniform(0, 10), good=chance.random() < 0.8))
    window = chance.choice([None, 2 * DAY, 5 * DAY])
    plans = {one.line: one for one in plan_lines(lines, backups, window, NOW)}
    left = {(one.timeline, number) for one in lines for number in kept([plans[one.id]], [one])[one.id]}
    for one in lines:
        reaching = [each for each in backups if one.history.timeline_at(each.start) == each.timeline]
        promised = [each for each in reaching if window is not None and each.good and each.ended <= NOW - window]
        if not reaching:
            continue
        anchor = max(promised, key=lambda each: each.start) if promised else min(reaching, key=lambda each: each.start)
        for number in range(anchor.start // SEGMENT, 30):
            assert (one.history.timeline_at(Lsn(number * SEGMENT + SEGMENT // 2)), number) in left
    for one in lines:
        for number in kept([plans[one.id]], [one])[one.id]:
            assert any(each.start // SEGMENT <= number for each in backups)


def test_the_window_is_known_only_where_the_cluster_is() -> None:
    assert window_of({"clinic"}, {}) is None
    assert window_of({"clinic", "former name"}, {"clinic": DAY}) == DAY
    assert window_of({"clinic", "lab"}, {"clinic": DAY, "lab": 3 * DAY}) == 3 * DAY
    assert window_of({"clinic", "lab"}, {"clinic": DAY, "lab": None}) is None


# -- applied -----------------------------------------------------------------------------------------------------------
class Archive:
    """A repository with a line of WAL and backups on it."""

    def __init__(self) -> None:
        self.clock = SetClock(NOW)
        self.repository: Repository = new_repository(MemoryStorage(self.clock), self.clock)
        self.cluster = make_cluster(7, pages=10, tables=2)
        self.archive = WalArchive(self.repository, SYSTEM_IDENTIFIER)
        self.line: Line = self.archive.begin_line(1, SEGMENT, b"", "office", "18.1")
        self.written = 28  # the backups of the synthetic source begin in segment 32

    def write(self, segments: int = 1) -> None:
        for _ in range(segments):
            data = random.Random(self.written).randbytes(2000) + bytes(SEGMENT - 2000)
            self.line.put(Lsn(self.written * SEGMENT), data, WalInfo(self.clock.now().isoformat()))
            self.written += 1
            self.clock.advance(3600)

    def prune(self, **options: Any) -> WalPruneResult:
        with StopToken() as stop:
            return prune_wal(self.repository, WalPruneOptions(**options), stop, ignore)

    def segments(self) -> list[int]:
        return [one.start // SEGMENT for one in self.line.stored()]

    def back_up(self) -> str:
        return backup(self.repository, self.cluster).manifest.backup

    def delete(self, name: str) -> None:
        self.repository.put_mark(name, DELETED)


@pytest.fixture
def archive() -> Archive:
    made = Archive()
    made.write(10)
    made.back_up()
    return made


def test_what_lies_before_the_oldest_backup_goes_as_the_dry_run_said(archive: Archive) -> None:
    planned = archive.prune(dry_run=True)
    assert archive.segments() == list(range(28, 38))
    done = archive.prune()
    assert archive.segments() == list(range(32, 38))
    assert (done.objects, done.bytes) == (planned.objects, planned.bytes) == (4, done.bytes)
    assert done.bytes > 0
    assert not archive.prune().something_goes
    assert verify(archive.repository).ok


def test_nothing_goes_while_a_restore_is_at_work(archive: Archive) -> None:
    lease = archive.repository.take_lease("restore")
    assert "a restore on " in archive.prune().waiting
    assert archive.segments() == list(range(28, 38))
    lease.release()
    assert not archive.prune().waiting
    assert archive.segments() == list(range(32, 38))


def test_a_deleted_backup_that_may_come_back_keeps_its_wal_and_an_unreadable_one_keeps_everything(
    archive: Archive,
) -> None:
    name = archive.back_up()
    for one in archive.repository.backup_ids():
        archive.delete(one)
    archive.clock.advance(2 * 86_400)
    archive.prune()
    assert archive.segments() == list(range(32, 38))
    gone = [one.key.rpartition("/")[2] for one in archive.repository.storage.list("manifests/")]
    assert len(archive.prune(dry_run=True, gone=gone).plans[SYSTEM_IDENTIFIER][0].going) == 6
    archive.written = 28
    archive.line.put(Lsn(28 * SEGMENT), bytes(SEGMENT), WalInfo("2026-11-24T12:00:00+00:00"))
    for folder in ("manifests", "manifests-b"):
        flip(archive.repository.storage, f"{folder}/{name}", 100)
    archive.repository.put_mark(name, "undeleted")
    fresh = reopen(archive.repository)
    with pytest.raises(IntegrityError), StopToken() as stop:
        prune_wal(fresh, WalPruneOptions(), stop, ignore)
    assert archive.segments()[0] == 28


def test_a_line_whose_record_cannot_be_read_stays(archive: Archive) -> None:
    records = [one.key for one in archive.repository.storage.list(f"wal/{SYSTEM_IDENTIFIER:016x}/lines/")]
    for key in records:
        flip(archive.repository.storage, key, 100)
    assert not archive.prune().something_goes
    assert archive.segments() == list(range(28, 38))


def test_a_piece_stays_that_is_all_that_is_left_of_a_damaged_segment(archive: Archive) -> None:
    whole = archive.line.stored()[-1]
    data = archive.line.read(whole.start, whole.end)
    for length in (1000, 3000):
        archive.line.put(whole.start, data[:length], WalInfo(archive.clock.now().isoformat()))
    archive.line.put(Lsn(36 * SEGMENT), archive.line.read(36 * SEGMENT, 36 * SEGMENT + 500), WalInfo("then"))
    flip(archive.repository.storage, whole.key, 100)
    archive.prune()
    left = [one for one in archive.line.stored() if one.start == whole.start]
    assert [one.end - one.start for one in left] == [3000, SEGMENT]
    assert [one.end - one.start for one in archive.line.stored() if one.start == 36 * SEGMENT] == [SEGMENT]


# -- verified ----------------------------------------------------------------------------------------------------------
def test_verify_names_damaged_wal_and_what_cannot_be_reached_behind_it(archive: Archive) -> None:
    early, late = archive.line.stored()[1], archive.line.stored()[-1]
    flip(archive.repository.storage, early.key, 100)
    flip(archive.repository.storage, late.key, 100)
    found = verify(archive.repository)
    (name,) = archive.repository.backup_ids()
    damages = {one.key: one.what for one in found.damages}
    assert set(damages) == {early.key, late.key}
    assert (
        f"from {early.start} to {early.end} is lost, so no moment behind it can be restored until backup {name}"
        in (damages[early.key])
    )
    assert "until the next backup" in damages[late.key]
    assert (found.wal.stretches, found.wal.stretches_read) == (10, 10)
    assert [one.ok for one in found.backups] == [True]


def test_verify_calls_a_damaged_copy_of_a_line_or_a_piece_no_loss(archive: Archive) -> None:
    whole = archive.line.stored()[-1]
    archive.line.put(whole.start, archive.line.read(whole.start, whole.start + 1000), WalInfo("then"))
    piece = next(one for one in archive.line.stored() if one.end - one.start == 1000)
    flip(archive.repository.storage, piece.key, 100)
    record = f"wal/{SYSTEM_IDENTIFIER:016x}/lines/{archive.line.id}-a"
    flip(archive.repository.storage, record, 100)
    found = verify(archive.repository)
    assert {one.key: one.redundant for one in found.damages} == {piece.key: True, record: True}


def test_a_rolling_verify_reads_each_stretch_once_in_its_cycle(archive: Archive) -> None:
    archive.write(30)
    read = []
    for _ in range(5):
        found = verify(archive.repository, VerifyOptions(depth="rolling", rolling_days=5))
        read.append(found.wal.stretches_read)
        archive.clock.advance(86_400)
    assert sum(read) == 40
    assert max(read) < 25
