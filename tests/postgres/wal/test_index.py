"""The index of a segment says what an exact walk finds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from datamanager.base.units import Lsn
from datamanager.postgres.replay_hazards import HazardScanner
from datamanager.postgres.wal.index import index_segment
from datamanager.postgres.wal.names import segment_name
from datamanager.postgres.wal.records import Record, commit_time, restore_point, walk
from tests.conftest import NewServer
from tests.postgres.wal.generated import CONFIG, INITDB, SEGMENT_SIZE, segments, write_everything


def beginning_in(records: list[Record], begin: int, end: int) -> list[Record]:
    return [one for one in records if begin <= one.lsn < end]


def check(index: dict[str, Any], data: bytes, begin: int, records: list[Record]) -> None:
    """Hold an index of ``data`` against what the walk of all WAL found."""
    end = begin + len(data)
    assert index["range"] == [begin, end]
    inside = beginning_in(records, begin, end)
    whole = [one for one in inside if one.end <= end or is_switch(one)]
    assert index["first"] == (int(inside[0].lsn) if inside and inside[0].lsn + 8 <= end else None)
    assert index["last"] == ([int(whole[-1].lsn), int(whole[-1].end)] if whole else None)
    begun = [one for one in inside[len(whole) :] if one.lsn + 8 <= end]  # less than a word says nothing
    assert (index["begun"] or [])[:2] == [int(place) for one in begun for place in (one.lsn, one.end)]
    if begun and begun[0].lsn + 24 <= end:
        assert index["begun"][2] == begun[0].rmid << 8 | begun[0].info
    commits = [(int(one.lsn), moment) for one in whole if (moment := commit_time(one)) is not None]
    assert index["commits"] == len(commits)
    assert index.get("first_commit") == (list(commits[0]) if commits else None)
    assert index.get("last_commit") == (list(commits[-1]) if commits else None)
    assert index.get("least") == min((moment for _, moment in commits), default=None)
    assert index.get("greatest") == max((moment for _, moment in commits), default=None)
    points = [[int(one.lsn), *point] for one in whole if (point := restore_point(one))]
    assert index.get("points", []) == points


def is_switch(record: Record) -> bool:
    return record.rmid == 0 and record.info & 0xF0 == 0x40


@pytest.mark.pg("14,18")
@pytest.mark.decision(14)
def test_an_index_says_what_an_exact_walk_finds(new_server: NewServer) -> None:
    server = new_server(config=CONFIG, initdb_args=INITDB)
    # Commits that come from elsewhere have more before their time.
    server.script(
        """
        create table t (n int);
        select pg_replication_origin_create('elsewhere');
        select pg_replication_origin_session_setup('elsewhere');
        begin; insert into t values (1); select pg_replication_origin_xact_setup('0/1', now()); commit;
        insert into t values (2);
        """
    )
    write_everything(server)
    server.stop()
    stored = segments(server)
    first = min(stored)
    data = b"".join(stored.values())
    records = list(walk(data, first, SEGMENT_SIZE))
    for begin, segment in stored.items():
        if begin > records[-1].lsn:
            continue
        index = index_segment(segment, begin, SEGMENT_SIZE)
        assert json.loads(json.dumps(index)) == index
        assert len(json.dumps(index)) < 2048
        check(index, segment, begin, records)
        for cut in (1, 23, 24, 40, 8191, 8192, 8200, 70_001, 500_000, SEGMENT_SIZE - 5):
            if begin + cut < records[-1].end:
                check(index_segment(segment[:cut], begin, SEGMENT_SIZE), segment[:cut], begin, records)


@pytest.mark.pg("14,15")
@pytest.mark.decision(1)
def test_what_replay_would_do_harm_with_stands_in_the_index(new_server: NewServer) -> None:
    server = new_server(config=CONFIG)
    begin = max(segments(server, segment_size=16 << 20))
    server.sql("create database source")
    place = server.tablespace("aside")
    server.sql(f"create database copy template source{' strategy file_copy' if server.major >= 15 else ''}")
    server.sql("drop database source")
    server.sql("alter database copy set tablespace aside")
    segment = segments(server, segment_size=16 << 20)[begin]
    index = index_segment(segment, begin, 16 << 20)
    assert [one[2] for one in index["tablespaces"]] == [str(place)]
    scanner = HazardScanner(Lsn(begin))
    scanner.begin(segment_name(1, begin, 16 << 20))
    scanner.feed(segment)
    scanner.end()
    found = scanner.finish()
    assert [one[:3] for one in index["tablespaces"]] == [[int(a.lsn), a.oid, a.location] for a in found.tablespaces]
    copied = {tuple(one) for one in index["copied"]}
    assert len(found.databases) == 2
    for one in found.databases:
        told = (int(one.lsn), one.database, one.tablespace, one.source_database, one.source_tablespace)
        assert told in copied
        assert one.is_move or any(
            removed[0] > one.lsn and removed[1] == one.source_database and one.source_tablespace in removed[2:]
            for removed in index["removed"]
        )


def test_noise_is_no_wal() -> None:
    for data in (b"", b"short", bytes(100_000), b"\xff" * 100_000, bytes(range(256)) * 400):
        for start in (0x1000000, 0x1000008, 0x1002000):
            index = index_segment(data, start, 1 << 20)
            assert (index["first"], index["last"], index["begun"], index["commits"]) == (None, None, None, 0)
            assert index["range"] == [start, start + len(data)]
