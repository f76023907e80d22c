"""Changes scattered evenly over the data, so many pages at a time, as a busy day leaves them.

One row is updated on each of the pages drawn. The tables were made with room on each page and no change touches an
indexed column, so the new version stays on its page (a HOT update), and dead versions are pruned when the page is next
drawn: the data does not grow, and the number of changed pages is known. (The rows say what share stayed.) What follows
such a change follows here too: visibility map pages lose bits, the checkpoint writes pg_control, transaction status
pages fill.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import LiteralString

import numpy as np
from psycopg import sql

from benchmarks.process import ContenderFailed
from benchmarks.server import PAGE_BYTES, BenchmarkServer

# Every table with rows enough to be scattered over; a note's text changes without changing its length.
_CHANGES: dict[str, dict[str, LiteralString]] = {
    "bench": {"pgbench_accounts": "abalance = abalance + 1 + floor(random() * 1000)::int"},
    "clinic": {
        "clinic.notes": "body = overlay(body placing md5(random()::text)"
        " from 1 + floor(random() * greatest(1, length(body) - 32))::int for 32)",
        "clinic.visits": "minutes = 5 + (minutes + 1) % 100",
        "clinic.prescriptions": "refills = (refills + 1) % 10",
        "clinic.patients": "balance = 100 + floor(random() * 90000) / 100",
    },
}

_TOUCH: LiteralString = """
CREATE OR REPLACE FUNCTION public.benchmark_touch(relation text, change text, pages bigint[]) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    page bigint;
    changed bigint;
    total bigint := 0;
BEGIN
    FOREACH page IN ARRAY pages LOOP
        EXECUTE format('UPDATE %s SET %s WHERE ctid = (SELECT ctid FROM %s WHERE ctid >= $1 AND ctid < $2'
                       ' ORDER BY random() LIMIT 1)', relation, change, relation)
            USING format('(%s,0)', page)::tid, format('(%s,0)', page + 1)::tid;
        GET DIAGNOSTICS changed = ROW_COUNT;
        total := total + changed;
    END LOOP;
    RETURN total;
END $$
"""
# At most this share of the tables' pages: beyond it a server sends files whole, and nothing is scattered any more.
_MOST = 0.4
_SUMMARY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class _Part:
    database: str
    table: str
    change: LiteralString
    pages: int


class Churn:
    """Changes on one server, each draw of pages new; the same seed draws the same pages."""

    def __init__(self, server: BenchmarkServer, seed: int = 1) -> None:
        self._server = server
        self._numbers = np.random.default_rng(seed)
        self._parts: list[_Part] = []

    def touch(self, pages: int) -> int:
        """Change one row on each of ``pages`` pages (fewer where the data is small); checkpoint; the rows changed.

        Raises: psycopg.Error, ContenderFailed.
        """
        parts = self._ready()
        total = sum(part.pages for part in parts)
        drawn = np.sort(self._numbers.choice(total, min(pages, int(total * _MOST)), replace=False))
        changed, first = 0, 0
        for part in parts:
            mine = drawn[(drawn >= first) & (drawn < first + part.pages)] - first
            first += part.pages
            with self._server.connect(part.database) as connection:
                row = connection.execute(
                    "SELECT public.benchmark_touch(%s, %s, %s::bigint[])", (part.table, part.change, mine.tolist())
                ).fetchone()
                changed += int(row[0]) if row else 0
        self._server.checkpoint()
        wait_for_summaries(self._server)
        return changed

    def touch_share(self, share: float) -> int:
        """Change so large a share of the pages of the whole cluster; the rows changed."""
        return self.touch(round(self._server.data_bytes() / PAGE_BYTES * share))

    def stayed(self) -> float:
        """Share of all updates so far that stayed on their page."""
        updates = stayed = 0
        for database in _CHANGES:
            with self._server.connect(database) as connection:
                row = connection.execute(
                    "SELECT coalesce(sum(n_tup_upd), 0), coalesce(sum(n_tup_hot_upd), 0) FROM pg_stat_user_tables"
                ).fetchone()
                if row is not None:
                    updates, stayed = updates + int(row[0]), stayed + int(row[1])
        return stayed / updates if updates else 1.0

    def _ready(self) -> list[_Part]:
        if not self._parts:
            for database, tables in _CHANGES.items():
                with self._server.connect(database) as connection:
                    connection.execute(_TOUCH)
                    for table, change in tables.items():
                        size = connection.execute("SELECT pg_relation_size(%s::regclass)", (table,)).fetchone()
                        self._parts.append(_Part(database, table, change, int(size[0]) // PAGE_BYTES if size else 0))
        return self._parts


def wait_for_summaries(server: BenchmarkServer) -> None:
    """Until the server has summarized its WAL up to the last checkpoint, as it has on any server after some seconds.

    Raises: ContenderFailed, when it does not.
    """
    if server.major < 17:
        return
    behind = sql.SQL("SELECT redo_lsn > (pg_get_wal_summarizer_state()).summarized_lsn FROM pg_control_checkpoint()")
    deadline = time.monotonic() + _SUMMARY_SECONDS
    with server.connect() as connection:
        while (row := connection.execute(behind).fetchone()) is not None and row[0]:
            if time.monotonic() > deadline:
                raise ContenderFailed("the server does not summarize its WAL")
            time.sleep(0.1)
