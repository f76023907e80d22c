"""What an archive allows, from nothing but what it holds, histories and backups."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamanager.base.units import Lsn
from datamanager.engine.recovery.windows import BackupPoint, LineReach, Part, candidates, gaps, paths, windows
from datamanager.postgres.wal.history import Switch, TimelineHistory
from datamanager.repository.wal.names import Range
from tests.repository.test_manifest import MANIFEST

SIZE = 1 << 20
MORNING = datetime(2026, 11, 24, 8, 0, tzinfo=UTC)


def at(hours: float) -> datetime:
    return MORNING + timedelta(hours=hours)


def line(
    name: str, timeline: int, *held: tuple[float, float], left: tuple[tuple[int, float], ...] = (), hours: float = 0
) -> LineReach:
    """A line by the segments that it holds; ``left`` is where its ancestors were left."""
    history = TimelineHistory(timeline, tuple(Switch(number, Lsn(int(place * SIZE))) for number, place in left))
    ranges = tuple(Range(Lsn(int(begin * SIZE)), Lsn(int(end * SIZE))) for begin, end in held)
    return LineReach(name, history, SIZE, at(hours).isoformat(), ranges)


def backup(name: str, begin: float, end: float, timeline: int = 1, hours: float = 1, sequence: int = 1) -> BackupPoint:
    places = Lsn(int(begin * SIZE)), Lsn(int(end * SIZE))
    return BackupPoint(name, sequence, timeline, *places, at(hours), at(hours))


def shown(ways: list[LineReach], *backups: BackupPoint, abandoned: tuple[str, ...] = ()) -> list[tuple[object, ...]]:
    found = windows(paths(ways, abandoned), backups)
    return [(one.line, one.backup.backup, one.start / SIZE, one.end / SIZE, one.abandoned) for one in found]


def test_a_window_goes_from_the_backups_stop_to_the_next_hole() -> None:
    ways = [line("a", 1, (1, 4.5), (6, 9))]
    backups = backup("x", 2, 2.25), backup("y", 4.4, 4.75), backup("z", 6.5, 7, sequence=2)
    # The WAL of y from its start to its stop lies in its own files, the archive has nothing behind.
    assert shown(ways, *backups) == [
        ("a", "x", 2.25, 4.5, False),
        ("a", "y", 4.75, 4.75, False),
        ("a", "z", 7, 9, False),
    ]
    (way,) = paths(ways)
    assert [(one.timeline, one.start / SIZE, one.end / SIZE) for one in gaps(way)] == [(1, 4.5, 6)]


def test_a_backup_that_ends_where_a_stretch_begins_goes_on_there() -> None:
    assert shown([line("a", 1, (3, 5))], backup("x", 2, 3)) == [("a", "x", 3, 5, False)]
    assert shown([line("a", 1, (2, 3), (4, 5))], backup("x", 2, 3)) == [("a", "x", 3, 3, False)]


@pytest.mark.decision(12)
def test_a_window_follows_a_promotion_and_not_what_the_old_server_wrote_after_it() -> None:
    ways = [line("a", 1, (1, 8)), line("b", 2, (5, 9.5), left=((1, 5.25),), hours=5)]
    backups = backup("x", 2, 3), backup("late", 6, 7, hours=2), backup("new", 6, 6.5, timeline=2, hours=6)
    assert shown(ways, *backups) == [
        ("b", "x", 3, 9.5, False),
        ("b", "new", 6.5, 9.5, False),
        ("a", "x", 3, 8, False),
        ("a", "late", 7, 8, False),
    ]
    newest, _ = paths(ways)
    assert newest.parts == (
        Part("a", Lsn(SIZE), Lsn(int(5.25 * SIZE))),
        Part("b", Lsn(int(5.25 * SIZE)), Lsn(int(9.5 * SIZE))),
    )


@pytest.mark.decision(12)
def test_the_end_of_a_parent_may_come_from_the_childs_first_segment() -> None:
    left = ((1, 5.25), (2, 5.75))
    ways = [line("a", 1, (1, 5.125)), line("c", 3, (5, 7), left=left, hours=5)]
    assert shown(ways, backup("x", 2, 3))[0] == ("c", "x", 3, 7, False)
    (way, _) = paths(ways)
    assert way.parts == (
        Part("a", Lsn(SIZE), Lsn(int(5.125 * SIZE))),
        Part("c", Lsn(int(5.125 * SIZE)), Lsn(int(5.75 * SIZE))),
        Part("c", Lsn(int(5.75 * SIZE)), Lsn(int(7 * SIZE))),
    )
    without = [line("a", 1, (1, 4.5)), *ways[1:]]
    assert shown(without, backup("x", 2, 3))[0] == ("c", "x", 3, 4.5, False)
    (way, _) = paths(without)
    assert [(one.timeline, one.start / SIZE, one.end / SIZE) for one in gaps(way)] == [(1, 4.5, 5)]


@pytest.mark.decision(12)
def test_an_abandoned_timeline_comes_last_and_is_marked() -> None:
    ways = [line("a", 1, (1, 8)), line("b", 2, (5, 9), left=((1, 5.5),), hours=5)]
    for mark in ("b", "2"):
        assert shown(ways, backup("x", 2, 3), abandoned=(mark,)) == [
            ("a", "x", 3, 8, False),
            ("b", "x", 3, 9, True),
        ]


@pytest.mark.decision(4)
def test_of_two_histories_of_one_timeline_a_backup_belongs_to_the_one_written_then() -> None:
    # The machine was put back to position 6 at four o'clock; its archive went on as another line.
    ways = [line("old", 1, (1, 9)), line("new", 1, (6, 12), hours=4)]
    before, after = backup("x", 7, 8, hours=2), backup("y", 7, 8.5, hours=5)
    assert shown(ways, before, after) == [("new", "y", 8.5, 12, False), ("old", "x", 8, 9, False)]
    assert len(candidates(paths(ways), [before, after])) == 4
    # A timeline that began before then left the older line.
    third = line("third", 2, (8, 10), left=((1, 8.5),), hours=3)
    assert paths([*ways, third])[0].lines[1].id == "old"


def test_a_cold_copy_of_a_crashed_server_is_never_brought_on() -> None:
    clean = replace(MANIFEST, control={"state": "shut down"})
    crashed = replace(MANIFEST, control={"state": "in production"})
    assert BackupPoint.of(clean).refused == ""
    assert "crashed" in BackupPoint.of(crashed).refused
    way = paths([line("a", 1, (1, 100))])
    assert windows(way, [replace(backup("x", 2, 3), refused="no")]) == []


spots = st.integers(8, 80).map(lambda one: one / 8)


@given(
    st.lists(st.tuples(spots, spots).filter(lambda one: one[0] < one[1]), min_size=1, max_size=6),
    st.lists(st.tuples(spots, spots).filter(lambda one: one[0] < one[1]), max_size=6),
    spots,
    spots,
)
def test_a_window_holds_every_byte_and_ends_where_one_is_missing(
    first: list[tuple[float, float]], second: list[tuple[float, float]], switch: float, stop: float
) -> None:
    ways = [line("a", 1, *unique(first)), line("b", 2, *unique(second), left=((1, switch),), hours=1)]
    way = next(one for one in paths(ways) if one.line == "b")
    head = int(switch)  # the beginning of the segment in which the timeline was left

    def is_held(place: float) -> bool:
        by_parent = any(begin <= place < end for begin, end in first) and place < switch
        by_child = any(begin <= place < end for begin, end in second) and place >= head
        return by_parent or by_child

    found = [one for one in candidates([way], [backup("x", 0.5, stop)]) if one.line == "b"]
    assert bool(found) == (stop <= switch)
    for one in found:
        places = [one.start / SIZE + step / 8 for step in range(int((one.end - one.start) / SIZE * 8))]
        assert all(map(is_held, places))
        assert not is_held(one.end / SIZE)
    assert all(a.end <= b.start for a, b in zip(way.parts, way.parts[1:], strict=False))


def unique(held: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same without overlaps, as an archive tells it."""
    found: list[tuple[float, float]] = []
    for begin, end in sorted(held):
        if found and begin <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((begin, end))
    return found
