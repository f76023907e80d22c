"""A bank under load: what is written while a backup runs must be in the copy whole or not at all.

Each transfer takes from one account, gives to another, writes a line and counts it. Whatever the moment, the balances
add up to nothing, the lines add up to the balances, and the counters to the number of lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from tests.servers import Load, Server

DATABASE = "bank"
ACCOUNTS = 20000
_TRANSFER = f"""
\\set giver random(1, {ACCOUNTS})
\\set taker random(1, {ACCOUNTS})
\\set amount random(1, 100)
\\set counter random(1, 8)
BEGIN;
UPDATE accounts SET balance = balance - :amount WHERE n = :giver;
UPDATE accounts SET balance = balance + :amount WHERE n = :taker;
INSERT INTO transfers (giver, taker, amount, note) VALUES (:giver, :taker, :amount, repeat('x', 60));
UPDATE counters SET turns = turns + 1 WHERE n = :counter;
COMMIT;
"""
# Two clients lock accounts in any order; pgbench tries again after a deadlock.
_AGAIN = ("--max-tries=20",)


def open_bank(server: Server) -> None:
    """Make its database."""
    server.sql(f"CREATE DATABASE {DATABASE}")
    server.script(
        f"""
        CREATE TABLE accounts (n int PRIMARY KEY, balance bigint NOT NULL, filler text) WITH (fillfactor = 80);
        INSERT INTO accounts SELECT n, 0, repeat('y', 40) FROM generate_series(1, {ACCOUNTS}) n;
        CREATE TABLE transfers (n bigserial PRIMARY KEY, giver int, taker int, amount bigint, note text);
        CREATE INDEX ON transfers (giver);
        CREATE TABLE counters (n int PRIMARY KEY, turns bigint NOT NULL);
        INSERT INTO counters SELECT n, 0 FROM generate_series(1, 8) n;
        """,
        database=DATABASE,
    )


@contextmanager
def busy(server: Server, rate: float = 400) -> Iterator[Load]:
    """Transfers while the body runs."""
    with server.load(clients=2, rate=rate, database=DATABASE, script=_TRANSFER, extra=_AGAIN) as load:
        yield load


def assert_books_balance(dsn: str) -> int:
    """On a server or a clone: the sums hold, by index and by table. Returns the number of transfers."""
    with psycopg.connect(psycopg.conninfo.make_conninfo(dsn, dbname=DATABASE), autocommit=True) as connection:
        seen = []
        for off in ("enable_seqscan", "enable_indexonlyscan"):
            connection.execute("RESET ALL")
            connection.execute(f"SET {off} = off")
            seen.append(
                connection.execute(
                    "SELECT (SELECT sum(balance) FROM accounts)::bigint, (SELECT count(*) FROM accounts)::bigint,"
                    " (SELECT sum(turns) FROM counters)::bigint, (SELECT count(*) FROM transfers)::bigint,"
                    " (SELECT count(*) FROM accounts a LEFT JOIN ("
                    "   SELECT n, sum(s) AS s FROM (SELECT giver AS n, -amount AS s FROM transfers"
                    "   UNION ALL SELECT taker, amount FROM transfers) x GROUP BY n"
                    " ) y USING (n) WHERE a.balance <> coalesce(y.s, 0))::bigint"
                ).fetchone()
            )
    assert seen[0] == seen[1], f"by index {seen[0]}, by table {seen[1]}"
    assert seen[0] is not None
    total, accounts, turns, transfers, wrong = seen[0]
    assert (total, accounts, turns, wrong) == (0, ACCOUNTS, transfers, 0)
    return int(transfers)
