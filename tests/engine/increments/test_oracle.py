"""PostgreSQL's own pg_basebackup and pg_combinebackup as the oracle: same moments, same files."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamanager.postgres.incremental import relation_of
from datamanager.postgres.wal_summaries import Relation
from tests.conftest import NewServer
from tests.engine.conftest import Works
from tests.engine.increments.changes import Changes
from tests.engine.increments.held import picture
from tests.engine.increments.test_equality import QUIET, kinds
from tests.engine.increments.test_property import remove_trees
from tests.engine.increments.trees import PAGE, Difference, differences, files_of, masked
from tests.servers import Server


class Oracle:
    """A chain of the server's own: one full, then increments on the one before; combined on demand."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.chain: list[Path] = []

    def spaces(self, target: Path) -> list[str]:
        """Words that put each tablespace beside ``target``."""
        query = "select oid::text, pg_tablespace_location(oid) from pg_tablespace where oid > 16383"
        return [f"--tablespace-mapping={place}={target}.ts-{oid}" for oid, place in self.server.sql(query)]

    def back_up(self) -> None:
        target = self.folder / f"link-{len(self.chain)}"
        words = [f"--incremental={self.chain[-1] / 'backup_manifest'}"] if self.chain else []
        self.server.run(
            "pg_basebackup", "-D", target, "-c", "fast", "-X", "fetch", "--no-sync", *words, *self.spaces(target)
        )
        self.chain.append(target)

    def combine(self, name: str) -> Path:
        target = self.folder / name
        last = self.chain[-1]
        spaces = [
            f"--tablespace-mapping={link.resolve()}={target}.ts-{link.name}" for link in (last / "pg_tblspc").iterdir()
        ]
        self.server.run("pg_combinebackup", "--no-sync", "-o", target, *spaces, *self.chain)
        return target


@pytest.fixture
def oracle_folder(open_folder: Path) -> Path:
    """Where the server's account writes."""
    return open_folder


@pytest.mark.pg("17,18")
@pytest.mark.parametrize("seed", [11])
@pytest.mark.decision(7)
def test_a_chain_combined_by_postgresql_holds_the_files_of_our_backup_of_that_moment(
    new_server: NewServer, works: Works, seed: int
) -> None:
    server = new_server(config=QUIET)
    changes = Changes(server, seed)
    changes.prepare()
    oracle = Oracle(server, works.folder)
    for number in range(4):
        if number:
            changes.round(12)
            picture(server.dsn)
        server.sql("checkpoint")
        oracle.back_up()
        manifest = works.back_up(server).manifest
        if number == 0:
            continue
        assert manifest.method == "native"
        combined, ours = oracle.combine("combined"), works.export(manifest).target
        assert sorted(files_of(ours).keys() - moment(ours)) == sorted(files_of(combined).keys() - moment(combined))
        found = differences(ours, combined)
        cut = relations_cut_short(server)
        assert [one for one in found if not read_in_between(one, server) and not lost_by_server(one, server, cut)] == []
        remove_trees(combined)
        remove_trees(ours)


def relations_cut_short(server: Server) -> set[Relation]:
    """What decision 26 is about: the server's own increments may lack pages of these."""
    query = (
        "select distinct c.reltablespace::bigint, c.reldatabase::bigint, c.relfilenode::bigint"
        " from pg_available_wal_summaries() s, pg_wal_summary_contents(s.tli, s.start_lsn, s.end_lsn) c"
        " where c.is_limit_block and c.relblocknumber > 0"
    )
    return {Relation(*row) for row in server.sql(query)}


def lost_by_server(one: Difference, server: Server, cut: set[Relation]) -> bool:
    """Whether pg_combinebackup has not what the server holds, of a relation that was cut short, and ours has it."""
    return one.block is not None and relation_of(one.path.encode()) in cut and one.left == held(one, server)


def held(one: Difference, server: Server) -> bytes:
    """The page of the server itself."""
    with (server.data_directory / one.path).open("rb") as file:
        file.seek((one.block or 0) * PAGE)
        return file.read(PAGE)


def read_in_between(one: Difference, server: Server) -> bool:
    """Whether a page got hint bits between the two moments, as whoever connects may leave them, and ours has them."""
    if one.block is None or one.relation is None or one.fork:
        return False
    kind = kinds(server).get(one.relation, "")
    same = masked(one.left, kind)[8:] == masked(one.right, kind)[8:]  # but for the LSN
    return one.left == held(one, server) and kind != "" and same


def moment(tree: Path) -> set[str]:
    """WAL: which segments come along depends on the second of the backup."""
    return {name for name in files_of(tree) if name.startswith("pg_wal/")}


@pytest.mark.pg("17,18")
@pytest.mark.decision(7)
def test_pages_beyond_a_truncation_never_come_back_from_an_older_backup(new_server: NewServer, works: Works) -> None:
    """Full, cut off, grown again by pages that the WAL does not know (COPY extends ahead): zeros, as on the server."""
    server = new_server(config=QUIET)
    server.sql("create table cut (n int, body text) with (autovacuum_enabled = off)")
    fill = "insert into cut select g, md5(g::text) || repeat('x', 400) from generate_series({}, {}) g"
    server.sql(fill.format(1, 8000))
    works.back_up(server)
    before = size(server)
    server.sql("delete from cut where n > 1000")
    server.sql("vacuum (truncate true) cut")
    assert size(server) < before // 4
    kept = size(server)
    shorter = works.back_up(server).manifest
    server.script(
        "begin;\ncopy cut from stdin;\n" + "".join(f"{n}\t{'y' * 400}\n" for n in range(6000)) + "\\.\nrollback;\n"
    )
    path = str(server.value("select pg_relation_filepath('cut')"))
    grown = works.back_up(server).manifest
    held = {"grown": (server.data_directory / path).read_bytes()}
    zeros = [at for at in range(kept, len(held["grown"]), PAGE) if not any(held["grown"][at : at + PAGE])]
    assert [one for one in zeros if one < before], "the scene has no page that the WAL does not know"
    server.sql("vacuum (truncate true) cut")
    server.sql(fill.format(9000, 9100))
    last = works.back_up(server).manifest
    held["last"] = (server.data_directory / path).read_bytes()
    assert [one.method for one in (shorter, grown, last)] == ["native"] * 3
    for name, manifest in (("grown", grown), ("last", last)):
        exported = works.export(manifest, name).target
        assert (exported / path).read_bytes() == held[name]


def size(server: Server) -> int:
    return int(server.value("select pg_relation_size('cut')"))
