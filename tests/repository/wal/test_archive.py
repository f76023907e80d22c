"""A server's WAL in a repository: what was put comes back, whatever holds it, and nothing else."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamanager.base.errors import IntegrityError, WalContradicts, WalMissing
from datamanager.base.units import MIB, Lsn
from datamanager.repository.format import folders
from datamanager.repository.repository import Repository
from datamanager.repository.wal.archive import Line, WalArchive, systems
from datamanager.repository.wal.container import WalInfo
from datamanager.repository.wal.names import Range
from datamanager.storage.registry import create_storage, open_storage
from tests.repository.parts import KEY_FILE, SetClock, flip, keys, new_repository, reopen

SYSTEM = 7_401_234_567_890_123_456
SEGMENT = MIB
BEGIN = Lsn.parse("0/FFF00000")  # the last segment of a log
INFO = WalInfo("2026-11-23T10:00:00+00:00", {"commits": 3})


def line_in(repository: Repository, segment_size: int = SEGMENT) -> Line:
    return WalArchive(repository, SYSTEM).begin_line(1, segment_size, b"", "clinic", "18.6")


def bytes_of(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def test_what_was_put_comes_back_across_segments_and_logs() -> None:
    repository = new_repository()
    line = line_in(repository)
    data = bytes_of(3 * SEGMENT)
    for number in range(3):
        line.put(BEGIN + number * SEGMENT, data[number * SEGMENT : (number + 1) * SEGMENT], INFO)
    (found,) = WalArchive(reopen(repository), SYSTEM).lines()
    assert found.reach() == [Range(BEGIN, Lsn(BEGIN + 3 * SEGMENT))]
    assert found.read(BEGIN + 5, BEGIN + 2 * SEGMENT + 77) == data[5 : 2 * SEGMENT + 77]
    assert [found.info(one) for one in found.stored()] == [INFO] * 3
    assert systems(repository) == [SYSTEM]


def test_pieces_are_read_as_one_and_give_way_to_the_whole_segment() -> None:
    repository = new_repository()
    line = line_in(repository)
    data = bytes_of(SEGMENT)
    for start, end in ((0, 100), (100, 5000), (5000, 70_000)):
        line.put(BEGIN + start, data[start:end], INFO)
    assert line.read(BEGIN, BEGIN + 70_000) == data[:70_000]
    with pytest.raises(WalMissing) as caught:
        line.read(BEGIN, BEGIN + SEGMENT)
    assert caught.value.position == BEGIN + 70_000
    line.put(BEGIN, data, INFO)
    assert line.drop_covered(Range(BEGIN, Lsn(BEGIN + SEGMENT))) == 3
    assert [(one.start, one.end) for one in line.stored()] == [(BEGIN, BEGIN + SEGMENT)]
    assert line.read(BEGIN, BEGIN + SEGMENT) == data


def test_the_same_bytes_again_are_no_error_and_others_are_refused() -> None:
    line = line_in(new_repository())
    data = bytes_of(SEGMENT)
    line.put(BEGIN, data[:4000], INFO)
    line.put(BEGIN, data[:4000], INFO)
    line.put(BEGIN, data, INFO)
    line.put(BEGIN, data, INFO)
    changed = bytearray(data)
    changed[3999] ^= 1
    for start, other in ((0, bytes(changed)), (3000, bytes(changed[3000:4000])), (3999, bytes(changed[3999:]))):
        with pytest.raises(WalContradicts):
            line.put(BEGIN + start, other, INFO)
    assert line.read(BEGIN, BEGIN + SEGMENT) == data


def test_a_damaged_piece_gives_way_to_another_object_that_holds_its_bytes() -> None:
    repository = new_repository()
    line = line_in(repository)
    data = bytes_of(SEGMENT)
    line.put(BEGIN, data[:9000], INFO)
    line.put(BEGIN, data, INFO)
    whole = next(one for one in line.stored() if len(Range(one.start, one.end)) == SEGMENT)
    flip(repository.storage, whole.key, 700)
    fresh = WalArchive(reopen(repository), SYSTEM).line(1)
    assert fresh is not None
    assert fresh.read(BEGIN, BEGIN + 9000) == data[:9000]
    with pytest.raises(IntegrityError):
        fresh.read(BEGIN, BEGIN + 9001)


@pytest.mark.parametrize("place", [0.0, 0.3, 0.9, 0.999])
def test_every_flipped_bit_is_noticed(place: float) -> None:
    repository = new_repository()
    line = line_in(repository)
    stored = line.put(BEGIN, bytes_of(30_000), INFO)
    flip(repository.storage, stored.key, int(stored.size * place))
    with pytest.raises(IntegrityError):
        line.read(BEGIN, BEGIN + 30_000)


def test_an_object_under_another_name_is_not_taken() -> None:
    repository = new_repository()
    line = line_in(repository)
    stored = line.put(BEGIN, bytes_of(SEGMENT), INFO)
    other = line.put(BEGIN - SEGMENT, bytes_of(SEGMENT, 2), INFO)
    sealed = repository.storage.get(stored.key)
    repository.storage.delete(other.key)
    repository.storage.put(other.key, [sealed])
    reopened = WalArchive(reopen(repository), SYSTEM).line(1)
    assert reopened is not None
    with pytest.raises(IntegrityError):
        reopened.read(BEGIN - SEGMENT, BEGIN)


def test_a_line_survives_the_loss_of_one_copy_of_its_record() -> None:
    repository = new_repository()
    history = b"1\t0/3000060\tno recovery target specified\n\n"
    WalArchive(repository, SYSTEM).begin_line(2, SEGMENT, history, "clinic", "18.6")
    (first, _) = keys(repository.storage, "wal/")
    repository.storage.delete(first)
    told: list[str] = []
    line = WalArchive(reopen(repository, told=told), SYSTEM).line(2)
    assert line is not None, told
    assert line.history.text == history
    assert line.history.begins == Lsn.parse("0/3000060")
    assert len(told) == 1


def test_the_newest_line_of_a_timeline_counts() -> None:
    clock = SetClock()
    repository = new_repository(clock=clock)
    archive = WalArchive(repository, SYSTEM)
    first = archive.begin_line(1, SEGMENT, b"", "clinic", "18.6")
    first.put(BEGIN, bytes_of(100, 1), INFO)
    clock.advance(60)
    second = archive.begin_line(1, SEGMENT, b"", "clinic", "18.6")
    second.put(BEGIN, bytes_of(100, 2), INFO)
    newest = archive.line(1)
    assert newest is not None
    assert newest.id == second.id
    assert [one.id for one in archive.lines()] == [first.id, second.id]
    assert WalArchive(repository, SYSTEM + 1).lines() == []


def test_a_segment_of_64_mebibytes_is_several_objects(tmp_path: Path) -> None:
    storage = create_storage(tmp_path / "repository", folders(), growing=["wal"])
    repository = Repository.create(storage, [(KEY_FILE, "test")], SetClock())
    line = line_in(repository, 64 * MIB)
    begin = Lsn.parse("2/40000000")
    data = bytes(64 * MIB - 5) + b"alive"
    line.put(begin, data, INFO)
    again = Repository.open(open_storage(tmp_path / "repository", growing=["wal"]), KEY_FILE, SetClock())
    found = WalArchive(again, SYSTEM).line(1)
    assert found is not None
    assert len(found.stored()) == 2
    assert found.reach() == [Range(begin, Lsn(begin + 64 * MIB))]
    assert found.read(begin + 64 * MIB - 10, begin + 64 * MIB) == data[-10:]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2**14), st.integers(1, 2**13)).map(lambda cut: (cut[0], cut[0] + cut[1])),
        min_size=1,
        max_size=12,
    )
)
def test_pieces_in_any_order_and_overlap_say_exactly_what_they_cover(cuts: list[tuple[int, int]]) -> None:
    line = line_in(new_repository())
    data = bytes_of(2**15)
    start = BEGIN + SEGMENT
    for begin, end in cuts:
        line.put(start + begin, data[begin:end], INFO)
    line.drop_covered(Range(Lsn(start), Lsn(start + 1)))
    covered = {at for begin, end in cuts for at in range(begin, end)}
    assert {at for one in line.reach() for at in range(one.start - start, one.end - start)} == covered
    for one in line.reach():
        assert line.read(one.start, one.end) == data[one.start - start : one.end - start]


def test_an_abandoned_line_is_known_until_it_is_taken_up_again() -> None:
    repository = new_repository()
    archive = WalArchive(repository, SYSTEM)
    line = line_in(repository)
    assert archive.abandoned() == set()
    archive.abandon(line)
    archive.abandon(line)
    assert archive.abandoned() == {line.id}
    archive.take_up(line)
    archive.take_up(line)
    assert archive.abandoned() == set()
    archive.abandon(line)
    archive.drop_record(line)
    assert keys(repository.storage, "wal/") == []
