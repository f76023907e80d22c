"""Walking real WAL: pg_waldump of the same version is the oracle; torn ends stop at the last valid record."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamanager.base.units import Lsn
from datamanager.postgres.wal.records import Record, Walker, commit_time, restore_point, walk
from tests.conftest import NewServer
from tests.postgres.wal.generated import (
    CONFIG,
    INITDB,
    SEGMENT_SIZE,
    Dumped,
    as_dumped,
    dump,
    position,
    segments,
    write_everything,
)
from tests.servers import Server, create


def tuples(dumped: list[Dumped]) -> list[tuple[int, int, int, int, int]]:
    return [(int(one.lsn), int(one.prev), one.rmid, one.length, one.xid) for one in dumped]


@pytest.mark.pg("14,15,18")
@pytest.mark.decision(16)
def test_every_record_is_the_one_that_pg_waldump_tells(new_server: NewServer) -> None:
    server = new_server(config=CONFIG, initdb_args=INITDB)
    system = int(server.value("select system_identifier from pg_control_system()"))
    write_everything(server)
    stored = segments(server)
    first = min(stored)
    told = dump(server, first)
    server.stop("immediate")
    data = b"".join(segments(server)[at] for at in sorted(segments(server)))
    walked = walk(data, first, SEGMENT_SIZE, timeline=1, system=system)
    records = [one for one in walked if one.lsn <= told[-1].lsn]
    assert [as_dumped(one) for one in records] == tuples(told)
    assert [commit_time(one) for one in records] == [one.time for one in told]
    assert sum(one.time is not None for one in told) > 900
    assert any("COMMIT_PREPARED" in one.text for one in told)
    assert max(one.length for one in told) > 2 * SEGMENT_SIZE
    points = [restore_point(one) for one in records]
    assert [one[1] for one in points if one] == ["point 0", "point 1", "point 2"]
    switched = [one for one in records if one.rmid == 0 and one.info & 0xF0 == 0x40]
    assert len(switched) == 3
    assert all(one.end % SEGMENT_SIZE == 0 for one in switched)
    other = walk(data, first, SEGMENT_SIZE, system=system + 1)
    assert list(other) == []
    assert "another server" in other.walker.stopped


@pytest.mark.pg("18")
def test_a_new_timeline_is_walked_from_the_segment_in_which_it_began(new_server: NewServer) -> None:
    server = new_server(config={**CONFIG, "restore_command": "false"}, initdb_args=INITDB)
    server.script("create table t as select n from generate_series(1, 20000) n")
    server.kill9()
    (server.data_directory / "recovery.signal").touch()
    server.start()
    server.script("insert into t select n from generate_series(1, 20000) n")
    assert server.value("select timeline_id from pg_control_checkpoint()") == 2
    stored = segments(server, timeline=2)
    first = min(stored)
    told = dump(server, first, timeline=2)
    data = b"".join(segments(server, timeline=2)[at] for at in sorted(stored))
    records = [one for one in walk(data, first, SEGMENT_SIZE, timeline=2) if one.lsn <= told[-1].lsn]
    assert [as_dumped(one) for one in records] == tuples(told)
    older = walk(data, first, SEGMENT_SIZE, timeline=1)
    list(older)
    assert older.walker.stopped.endswith("is of timeline 2")
    assert first < older.end < told[-1].lsn


@pytest.mark.pg("14,18")
def test_a_record_whose_end_a_crash_took_is_passed_over_as_the_server_does(new_server: NewServer) -> None:
    server = new_server(config=CONFIG, initdb_args=INITDB)
    start = position(server)
    while SEGMENT_SIZE - position(server) % SEGMENT_SIZE > 20_000:
        server.sql("select pg_logical_emit_message(false, 'x', repeat('a', 9000))")
    server.sql("select pg_logical_emit_message(true, 'x', repeat('b', 90000))")
    server.kill9()
    begin = max(at for at in segments(server) if at <= start + SEGMENT_SIZE) - SEGMENT_SIZE
    lost = max(Lsn(one.end) for one in whole(server) if len(one.body) > 80_000) // SEGMENT_SIZE * SEGMENT_SIZE
    for path in (server.data_directory / "pg_wal").glob("0*"):
        if int(path.name[16:], 16) * SEGMENT_SIZE >= lost:
            path.unlink()
    server.start()
    server.script("create table t as select n from generate_series(1, 100) n")
    told = dump(server, Lsn(begin))
    records = [one for one in whole(server) if begin <= one.lsn <= told[-1].lsn]
    assert any("OVERWRITE_CONTRECORD" in one.text for one in told)
    assert [as_dumped(one) for one in records if one.lsn >= told[0].lsn] == tuples(told)
    assert not any(len(one.body) > 80_000 for one in records)
    pieces = Walker(min(segments(server)), SEGMENT_SIZE)
    data = b"".join(segments(server).values())
    piecewise = [one for at in range(0, len(data), 5000) for one in pieces.feed(data[at : at + 5000])]
    assert [one.lsn for one in piecewise] == [one.lsn for one in whole(server)]


def whole(server: Server) -> list[Record]:
    stored = segments(server)
    return list(walk(b"".join(stored.values()), min(stored), SEGMENT_SIZE))


# -- cuts --


@dataclass(frozen=True)
class Sample:
    start: Lsn
    data: bytes
    records: list[Record]


@cache
def sample() -> Sample:
    """Real WAL up to its last record, made once."""
    server = create(18, config=CONFIG, initdb_args=INITDB)
    try:
        write_everything(server, rounds=2)
        server.stop()
        stored = segments(server)
        first = min(stored)
        data = b"".join(stored.values())
    finally:
        server.destroy()
    walked = walk(data, first, SEGMENT_SIZE)
    records = list(walked)
    return Sample(first, data[: walked.end - first], records)


@st.composite
def cuts(draw: st.DrawFn) -> int:
    """Anywhere, and often near the beginning or the end of a record or a page."""
    data, start = sample().data, sample().start
    near = draw(st.sampled_from(["anywhere", "record", "page"]))
    if near == "record":
        record = draw(st.sampled_from(sample().records))
        return min(len(data), max(0, record.lsn - start + draw(st.integers(-40, 40))))
    if near == "page":
        return min(len(data), max(0, draw(st.integers(0, len(data) // 8192)) * 8192 + draw(st.integers(-48, 48))))
    return draw(st.integers(0, len(data)))


@given(cuts())
@settings(max_examples=60, deadline=None)
@pytest.mark.decision(16)
def test_wal_that_is_cut_anywhere_ends_with_the_last_record_that_is_whole(cut: int) -> None:
    origin = (cut // SEGMENT_SIZE) * SEGMENT_SIZE
    origin = max(0, origin - SEGMENT_SIZE)
    begin = sample().start + origin
    walked = walk(sample().data[origin:cut], begin, SEGMENT_SIZE)
    records = list(walked)
    expected = [one for one in expected_from(begin) if one.end <= sample().start + cut or is_cut_switch(one, cut)]
    assert records == expected
    assert walked.end == (expected[-1].end if expected else begin)
    assert not walked.walker.stopped
    unfinished = expected_from(begin)[len(expected) : len(expected) + 1]
    if walked.walker.begun is not None:
        assert walked.walker.begun == unfinished[0].lsn
    elif unfinished:
        assert sample().start + cut - unfinished[0].lsn < 4 or begin == unfinished[0].lsn


def expected_from(begin: int) -> list[Record]:
    return [one for one in sample().records if one.lsn >= begin]


def is_cut_switch(record: Record, cut: int) -> bool:
    switch = record.rmid == 0 and record.info & 0xF0 == 0x40
    return switch and record.lsn + 24 <= sample().start + cut and record.lsn % 8192 <= 8192 - 24


@given(cuts(), st.sampled_from(["zeros", "garbage", "recycled"]), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
@pytest.mark.decision(16)
def test_whatever_follows_a_torn_end_is_not_taken_for_wal(cut: int, tail: str, random: object) -> None:
    segment = cut // SEGMENT_SIZE * SEGMENT_SIZE
    data, start = sample().data, sample().start
    origin = max(0, segment - SEGMENT_SIZE)
    missing = segment + SEGMENT_SIZE - cut
    if tail == "zeros":
        behind = bytes(missing)
    elif tail == "garbage":
        behind = random.randbytes(missing)  # type: ignore[attr-defined]
    else:
        behind = data[origin + cut - segment :][:missing] if segment else bytes(missing)
    torn = data[origin:cut] + behind
    walked = walk(torn, start + origin, SEGMENT_SIZE)
    records = list(walked)
    expected = expected_from(start + origin)
    untouched = list(untouched_records(expected, start + origin, torn, data[origin:]))
    assert records == expected[: len(records)]
    # A record whose lost end had the same bytes, or nothing but padding, is as good as one that is whole.
    assert len(untouched) <= len(records) <= len(untouched) + 1


def untouched_records(records: list[Record], start: int, torn: bytes, data: bytes) -> Iterator[Record]:
    for one in records:
        place, end = one.lsn - start, one.end - start
        if is_switch(one):
            end = place + 64
        if torn[place:end] != data[place:end]:
            return
        yield one


def is_switch(record: Record) -> bool:
    return record.rmid == 0 and record.info & 0xF0 == 0x40


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_it_does_not_matter_in_which_pieces_wal_comes(data: st.DataObject) -> None:
    places = sorted(data.draw(st.lists(cuts(), max_size=30)))
    walker = Walker(sample().start, SEGMENT_SIZE)
    records: list[Record] = []
    for begin, end in zip([0, *places], [*places, len(sample().data)], strict=True):
        records += walker.feed(sample().data[begin:end])
    assert records == sample().records
    assert walker.end == sample().records[-1].end


@given(st.data())
@settings(max_examples=15, deadline=None)
def test_a_walk_goes_on_from_the_end_of_any_record_and_finds_its_way_in_from_anywhere(data: st.DataObject) -> None:
    records, start = sample().records, sample().start
    number = data.draw(st.integers(0, len(records) - 2))
    behind = records[number].end
    piece = sample().data[behind - start :][: 4 * SEGMENT_SIZE]
    assert list(walk(piece, behind, SEGMENT_SIZE))[:20] == records[number + 1 : number + 21]
    inside = data.draw(cuts())
    switch = next((one for one in records if one.lsn <= start + inside < one.end and is_switch(one)), None)
    found = list(walk(sample().data[inside:], start + inside, SEGMENT_SIZE, inside=True))
    page = -(-(start + inside) // 8192) * 8192
    assert found == ([] if switch and page < switch.end else [one for one in records if one.lsn >= page])


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_a_flipped_bit_ends_the_walk_at_its_record(data: st.DataObject) -> None:
    records, start = sample().records, sample().start
    number = data.draw(st.integers(0, len(records) - 1).filter(lambda one: not is_switch(records[one])))
    victim = records[number]
    origin = (victim.lsn - start) // SEGMENT_SIZE * SEGMENT_SIZE
    spoiled = bytearray(sample().data[origin : victim.end - start])
    place = data.draw(st.integers(victim.lsn - start - origin, victim.lsn - start - origin + 15))
    spoiled[place] ^= 1 << data.draw(st.integers(0, 7))
    walked = walk(spoiled, start + origin, SEGMENT_SIZE)
    list(walked)
    assert walked.end <= victim.lsn


def test_what_is_no_wal_has_no_records() -> None:
    for data in (b"", b"short", bytes(30_000), b"\xff" * 30_000, bytes(range(256)) * 100):
        walked = walk(data, 0x1000000, SEGMENT_SIZE)
        assert list(walked) == []
        assert walked.end == 0x1000000
