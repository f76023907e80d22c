"""Pieces of a growing segment: how many there are, what a new writer finds, what damage it mends."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest

from datamanager.base.errors import WalContradicts
from datamanager.base.units import MIB, Lsn
from datamanager.engine.wal.pieces import LineWriter
from datamanager.repository.repository import Repository
from datamanager.repository.wal.archive import Line, WalArchive
from datamanager.storage.local import LocalStorage

NOW = datetime(2026, 1, 2, tzinfo=UTC)
START = Lsn(5 * MIB)


@pytest.fixture
def line(repository: Repository) -> Line:
    return WalArchive(repository, 4711).begin_line(1, MIB, b"", "tests", "18.0")


def test_a_segment_never_has_more_than_sixty_pieces_and_in_the_end_one(line: Line) -> None:
    data = random.Random(5).randbytes(MIB)
    writer = LineWriter(line, START)
    most = 0
    step = MIB // 700
    last = MIB - MIB % step - step
    for at in range(0, last, step):
        writer.write(data[at : at + step], NOW)
        assert writer.sealed == START + at + step
        if at % (step * 15) == 0:
            most = max(most, len(line.stored()))
            assert [(one.start, one.end) for one in line.reach()] == [(START, writer.position)]
    assert 15 < most <= 45
    assert line.read(START, writer.position) == data[:last]
    writer.write(data[last:] + b"next", NOW)
    whole, piece = line.stored()
    assert (whole.start, whole.end) == (START, START + MIB)
    assert (piece.start, piece.end) == (START + MIB, START + MIB + 4)
    assert line.read(START, START + MIB + 4) == data + b"next"
    assert line.info(whole).index
    assert not line.info(piece).index
    assert line.info(whole).received == NOW.isoformat()


def test_a_new_writer_compares_what_is_there_and_reports_it_sealed_only_then(line: Line) -> None:
    first = LineWriter(line, START)
    for number in range(30):
        first.write(bytes([number]) * 100, NOW)
    before = len(line.stored())
    second = LineWriter(line, START)
    assert (second.position, second.sealed, second.compared) == (START, START, False)
    again = b"".join(bytes([number]) * 100 for number in range(30))
    second.write(again[:1000], NOW)
    assert (second.sealed, second.compared, second.stored) == (START + 1000, False, 0)
    second.write(again[1000:], NOW)
    assert (second.sealed, second.compared, second.stored) == (START + 3000, True, 0)
    assert len(line.stored()) == before
    second.write(b"more", NOW)
    assert line.read(START, START + 3004) == again + b"more"
    assert len(line.stored()) == 1  # many small ones, as restarts leave them, became one
    third = LineWriter(line, START)
    with pytest.raises(WalContradicts, match="0/500400 ") as told:
        third.write(again[:1024] + b"other", NOW)
    assert "--new-history" in told.value.hint
    assert line.read(START, START + 3004) == again + b"more"


def test_a_hole_within_a_segment_is_filled_when_its_bytes_come_again(line: Line) -> None:
    from_before = LineWriter(line, START)
    from_before.write(b"a" * 500, NOW)
    data = b"a" * 500 + b"b" * 300 + b"c" * 200
    line.put(START + 800, b"c" * 200, line.info(line.stored()[0]))
    assert len(line.reach()) == 2
    writer = LineWriter(line, START)
    writer.write(data + b"d", NOW)
    assert [(one.start, one.end) for one in line.reach()] == [(START, START + 1001)]
    assert line.read(START, START + 1001) == data + b"d"


def test_a_damaged_piece_is_taken_away_and_comes_again(line: Line, repository: Repository) -> None:
    writer = LineWriter(line, START)
    writer.write(b"a" * 500, NOW)
    writer.write(b"b" * 500, NOW)
    damage(repository, line.stored()[1].key)
    again = LineWriter(line, START)
    (told,) = again.unreadable
    assert "chunk" in told
    again.write(b"a" * 500 + b"b" * 500 + b"c", NOW)
    assert again.sealed == START + 1001
    assert line.read(START, START + 1001) == b"a" * 500 + b"b" * 500 + b"c"


def damage(repository: Repository, key: str, at: int = 70) -> None:
    assert isinstance(repository.storage, LocalStorage)
    path = repository.storage.root / key
    sealed = bytearray(path.read_bytes())
    sealed[at] ^= 1
    path.write_bytes(sealed)


@pytest.mark.parametrize("at", [4, 70])  # in the header, which looks like a newer format then, or in the first chunk
def test_good_pieces_outlive_a_damaged_segment_and_make_it_whole_again(
    line: Line, repository: Repository, at: int
) -> None:
    data = random.Random(6).randbytes(MIB)
    writer = LineWriter(line, START)
    writer.write(data[:1000], NOW)
    writer.write(data[1000:2000], NOW)
    # As a power cut leaves it where a drive did not keep its word: the segment is there, torn, and so are its pieces.
    whole = line.put(START, data, line.info(line.stored()[0]))
    damage(repository, whole.key, at)
    assert line.drop_covered() == 0
    again = LineWriter(line, START)
    assert len(again.unreadable) == 1
    assert line.read(START, START + 2000) == data[:2000]
    again.write(data[:5000], NOW)
    again.write(data[5000:], NOW)
    assert [(one.start, one.end) for one in line.stored()] == [(START, START + MIB)]
    assert line.read(START, START + MIB) == data


def test_a_damaged_piece_stays_until_its_bytes_come_again(line: Line, repository: Repository) -> None:
    LineWriter(line, START).write(b"a" * 500, NOW)
    (piece,) = line.stored()
    damage(repository, piece.key)
    writer = LineWriter(line, START)
    assert [one.key for one in line.stored()] == [piece.key]  # the server may no longer have it
    writer.write(b"a" * 500, NOW)
    assert line.read(START, START + 500) == b"a" * 500


def test_a_timeline_that_ends_leaves_one_piece_with_its_index(line: Line) -> None:
    writer = LineWriter(line, START)
    for number in range(20):
        writer.write(bytes([number]) * 100, NOW)
    writer.end_line(NOW)
    (one,) = line.stored()
    assert (one.start, one.end) == (START, START + 2000)
    assert line.info(one).index["range"] == [START, START + 2000]
