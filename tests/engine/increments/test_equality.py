"""On a quiet server an increment and a full read right after it hold the same files, page for page.

The exceptions are what docs/postgres.md lists: the room noted in the metapage of an SP-GiST index; without page
checksums hint bits too. PostgreSQL writes both without a word in the WAL.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import psycopg
import pytest

from datamanager.base.units import Lsn
from datamanager.repository.manifest import Manifest
from tests.conftest import NewServer
from tests.engine.conftest import Works
from tests.engine.increments.changes import Changes
from tests.engine.increments.held import picture, picture_databases
from tests.engine.increments.test_property import remove_trees
from tests.engine.increments.trees import Difference, differences, is_spgist_metapage, masked, page_lsn
from tests.servers import Server

# Nothing may write between the increment and the full read; vacuum is among the random changes.
QUIET = {"autovacuum": "off", "summarize_wal": "on", "checkpoint_timeout": "1h"}


def export_both(works: Works, other: Works, server: Server) -> tuple[Manifest, Path, Path]:
    """An increment, and in another repository, which knows nothing of it, a full read right after."""
    increment = works.back_up(server).manifest
    full = other.back_up(server, full=True).manifest
    assert (increment.method, full.method) == ("native", "full")
    return increment, works.export(increment, "increment").target, other.export(full, "full").target


def another(works: Works, number: int) -> Works:
    """A second repository beside the first."""
    folder = works.folder / f"other-{number}"
    folder.mkdir()
    folder.chmod(0o755)
    return Works(folder)


def compare(new_server: NewServer, works: Works, seed: int, rounds: int, **initdb: object) -> list[list[Difference]]:
    """Differences after each of ``rounds`` rounds of changes, each with hint bits set by reading everything."""
    server = new_server(config=QUIET, **initdb)  # type: ignore[arg-type]
    changes = Changes(server, seed)
    changes.prepare()
    found = []
    works.back_up(server)
    for number in range(rounds):
        changes.round(15)
        picture(server.dsn)
        other = another(works, number)
        try:
            manifest, left, right = export_both(works, other, server)
            found.append([one for one in differences(left, right) if not explained(one, server, manifest)])
            remove_trees(left)
        finally:
            other.close()
            remove_trees(other.folder)
    return found


def explained(one: Difference, server: Server, manifest: Manifest) -> bool:
    """Whether a page differs by hints alone; with checksums only SP-GiST's metapage may.

    Also when the full read found hint bits that somebody's look left after the increment had begun: the LSN tells.
    """
    kind = kinds(server).get(one.relation or "", "")
    if one.block is None or one.fork or not kind:
        return False
    same = masked(one.left, kind)[8:] == masked(one.right, kind)[8:]  # but for the LSN
    start = int(Lsn.parse(manifest.start_lsn))
    if page_lsn(one.right) > start >= page_lsn(one.left):
        return same
    unlogged = not manifest.checksums or (kind == "spgist" and one.block == 0)
    return same and unlogged and page_lsn(one.left) == page_lsn(one.right)


def kinds(server: Server) -> dict[str, str]:
    """By file number: heap, or the name of the index's access method."""
    query = (
        "SELECT pg_relation_filenode(c.oid)::text, CASE WHEN relkind = 'i' THEN amname ELSE 'heap' END"
        " FROM pg_class c LEFT JOIN pg_am a ON a.oid = c.relam WHERE relkind IN ('r', 'm', 't', 'S', 'i')"
        " AND pg_relation_filenode(c.oid) IS NOT NULL"
    )
    found: dict[str, str] = {}
    for name in picture_databases(server.dsn):
        with psycopg.connect(server.make_dsn(database=name)) as connection:
            found |= {str(node): str(kind) for node, kind in connection.execute(query)}
    return found


@pytest.mark.pg("17,18")
@pytest.mark.parametrize("seed", [5])
@pytest.mark.decision(5)
@pytest.mark.decision(7)
def test_with_page_checksums_an_increment_equals_a_full_read_right_after_page_for_page(
    new_server: NewServer, works: Works, seed: int
) -> None:
    assert compare(new_server, works, seed, rounds=2) == [[], []]


@pytest.mark.pg("17")
@pytest.mark.parametrize("seed", [5])
@pytest.mark.decision(5)
def test_without_page_checksums_an_increment_differs_from_a_full_read_by_hint_bits_alone(
    new_server: NewServer, works: Works, seed: int
) -> None:
    assert compare(new_server, works, seed, rounds=2, initdb_args=("--no-data-checksums",)) == [[], []]


@pytest.mark.pg("17")
@pytest.mark.decision(5)
def test_hint_bits_that_no_increment_carries_are_seen_without_checksums_and_are_no_damage(
    new_server: NewServer, works: Works
) -> None:
    """Otherwise the test above could pass because nothing ever differed; and the audit must not cry for them."""
    server = new_server(config=QUIET, initdb_args=("--no-data-checksums",))
    # More than one table: the audit has a thirtieth of the files sent whole.
    for number in range(3):
        server.sql(f"create table hinted_{number} as select n, md5(n::text) from generate_series(1, 20000) n")
    works.back_up(server)
    for number in range(3):
        server.sql(f"select count(*) from hinted_{number}")
    other = another(works, 0)
    try:
        manifest, left, right = export_both(works, other, server)
        found = differences(left, right)
        again = works.back_up(server, full=True)
    finally:
        other.close()
    differing = Counter(one.relation for one in found)
    nodes = server.sql("select pg_relation_filenode(oid)::text from pg_class where relname like 'hinted%'")
    assert sum(differing[node] > 100 for (node,) in nodes) >= 2
    assert [one for one in found if not explained(one, server, manifest)] == []
    assert again.warnings == []
    assert again.manifest.audit["mismatches"] == []


@pytest.mark.pg("15,17,18")
@pytest.mark.decision(5)
def test_the_metapage_of_an_spgist_index_changes_without_a_word_in_the_wal_and_is_no_damage(
    new_server: NewServer, works: Works
) -> None:
    server = new_server(config=QUIET if server_summarizes(new_server) else {"autovacuum": "off"})
    for number in range(3):  # more than one: the audit has a thirtieth of the files sent whole
        server.sql(f"create table words_{number} (n int, body text)")
        server.sql(f"create index on words_{number} using spgist (body)")
        server.sql(f"insert into words_{number} select n, md5(n::text) from generate_series(1, 20000) n")
    works.back_up(server)
    for turn in range(4):
        for number in range(3):
            text = f"md5((n * 7 + {turn})::text)"
            server.sql(f"insert into words_{number} select n, {text} from generate_series(1, 40) n")
    if server.major >= 17:
        other = another(works, 0)
        try:
            manifest, left, right = export_both(works, other, server)
            found = differences(left, right)
        finally:
            other.close()
        assert len(found) >= 2
        assert [one for one in found if not (one.block == 0 and is_spgist_metapage(one.left))] == []
        assert [one for one in found if not explained(one, server, manifest)] == []
    again = works.back_up(server, full=True)
    assert again.warnings == []
    assert again.manifest.audit["mismatches"] == []


def server_summarizes(new_server: NewServer) -> bool:
    return int(new_server.version) >= 17
