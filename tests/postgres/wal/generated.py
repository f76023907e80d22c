"""Real WAL for tests, and what pg_waldump says of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from datamanager.base.units import Lsn
from datamanager.postgres.wal.names import SEGMENT, segment_place
from datamanager.postgres.wal.records import Record, microseconds
from tests.servers import Server

SEGMENT_SIZE = 1 << 20
INITDB = ("--data-checksums", "--wal-segsize=1")
CONFIG = {
    "wal_level": "logical",
    "autovacuum": "off",
    "wal_keep_size": "1GB",
    "max_prepared_transactions": "10",
    "fsync": "off",
}
_LINE = re.compile(
    r"rmgr: (?P<rmgr>\S+)\s+len \(rec/tot\):\s*\d+/\s*(?P<length>\d+), tx:\s*(?P<xid>\d+),"
    r" lsn: (?P<lsn>\S+), prev (?P<prev>\S+), desc: (?P<text>.*)"
)
_TIME = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+) UTC")
_COMMIT = re.compile(r"(COMMIT|COMMIT_PREPARED) ")
RESOURCE_MANAGERS = (
    "XLOG", "Transaction", "Storage", "CLOG", "Database", "Tablespace", "MultiXact", "RelMap", "Standby", "Heap2",
    "Heap", "Btree", "Hash", "Gin", "Gist", "Sequence", "SPGist", "BRIN", "CommitTs", "ReplicationOrigin", "Generic",
    "LogicalMessage",
)  # fmt: skip


@dataclass(frozen=True)
class Dumped:
    """A record as pg_waldump tells it; ``time`` of a commit in microseconds since 2000."""

    lsn: Lsn
    prev: Lsn
    rmid: int
    length: int
    xid: int
    text: str
    time: int | None


def as_dumped(record: Record) -> tuple[int, int, int, int, int]:
    return int(record.lsn), int(record.prev), record.rmid, record.length, record.xid


def dump(server: Server, start: Lsn, pg_wal: Path | None = None, timeline: int = 1) -> list[Dumped]:
    """Every record from ``start`` to the end of the WAL."""
    words = ("-p", pg_wal or server.data_directory / "pg_wal", "-s", str(start), "-t", str(timeline))
    text = server.run("pg_waldump", *words, check=False).stdout
    found: list[Dumped] = []
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        told = match["text"]
        time = _TIME.search(told) if match["rmgr"] == "Transaction" and _COMMIT.match(told) else None
        moment = datetime.fromisoformat(time[1]).replace(tzinfo=UTC) if time else None
        found.append(
            Dumped(
                Lsn.parse(match["lsn"]),
                Lsn.parse(match["prev"]),
                RESOURCE_MANAGERS.index(match["rmgr"]),
                int(match["length"]),
                int(match["xid"]),
                told,
                microseconds(moment) if moment else None,
            )
        )
    return found


def position(server: Server) -> Lsn:
    return Lsn.parse(server.value("select pg_current_wal_insert_lsn()::text"))


def segments(server: Server, timeline: int = 1, segment_size: int = SEGMENT_SIZE) -> dict[Lsn, bytes]:
    """Every segment of a timeline that the server has, by position."""
    found: dict[Lsn, bytes] = {}
    for path in sorted((server.data_directory / "pg_wal").iterdir()):
        if SEGMENT.match(path.name):
            number, begin = segment_place(path.name, segment_size)
            if number == timeline:
                found[begin] = path.read_bytes()
    return found


def write_everything(server: Server, rounds: int = 3) -> None:
    """Commits of each kind, restore points, messages, records over several segments, switches, DDL, checkpoints."""
    server.sql("create table if not exists notes (id int primary key, t text)")
    server.sql("create sequence if not exists numbers")
    for number in range(rounds):
        begin = number * 10_000
        server.script(
            f"""
            insert into notes select n, md5(n::text) from generate_series({begin}, {begin + 3000}) n;
            begin; savepoint a; update notes set t = 'x' where id = {begin}; savepoint b;
            delete from notes where id = {begin + 1}; release a; commit;
            begin; update notes set t = 'prepared' where id = {begin + 2}; prepare transaction 'one{number}';
            commit prepared 'one{number}';
            begin; update notes set t = 'given up' where id = {begin + 3}; prepare transaction 'two{number}';
            rollback prepared 'two{number}';
            begin; delete from notes where id < 50; rollback;
            select pg_create_restore_point('point {number}');
            select pg_logical_emit_message(true, 'app', repeat('message ', {number * 40_000 + 3}));
            select pg_logical_emit_message(false, 'app', repeat('w', {number} * 1500000));
            select nextval('numbers');
            create table passing{number} (a int, b text); insert into passing{number} values (1, 'b');
            truncate passing{number}; drop table passing{number};
            do $$ begin
                for i in 1..300 loop update notes set t = i::text where id = {begin + 5}; commit; end loop;
            end $$;
            checkpoint;
            select pg_switch_wal();
            """
        )
    server.script("insert into notes select n, 'after' from generate_series(900000, 900500) n")
