"""Ten backups with random changes between them: each comes back as it was, whatever happens to the others."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest

from datamanager.engine.prune.run import PruneOptions, PruneResult, prune_repository
from datamanager.repository.manifest import Manifest
from datamanager.repository.mark import DELETED
from tests.conftest import NewServer
from tests.engine.conftest import Clone, Heard, Works, pg, programs_of
from tests.engine.increments.bank import assert_books_balance, busy, open_bank
from tests.engine.increments.changes import Changes
from tests.engine.increments.held import (
    Picture,
    assert_same,
    assert_unlogged_empty_and_indexes_agree,
    picture,
    picture_databases,
)
from tests.engine.test_living_clusters import repeating
from tests.servers import Server

# Settings of a server that lives a lot in a short time: vacuum comes often, WAL is recycled, segments are small enough.
CONFIG = {"autovacuum_naptime": "1s", "max_wal_size": "96MB", "min_wal_size": "32MB", "checkpoint_timeout": "30s"}
ACTS = 12  # between two backups


@dataclass
class Taken:
    """A backup and what the server held at that moment; ``wanted`` is None for one taken under load."""

    manifest: Manifest
    wanted: Picture | None


@dataclass
class Story:
    """One server, one repository, one seed."""

    server: Server
    works: Works
    seed: int
    taken: list[Taken] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.changes = Changes(self.server, self.seed)
        self.changes.prepare()
        open_bank(self.server)

    @property
    def name(self) -> str:
        return f"seed {self.seed}, backup {len(self.taken)} of PostgreSQL {self.server.version}"

    def quiet_backup(self, *, full: bool = False) -> Manifest:
        """Change, note what there is, back up."""
        with busy(self.server):
            self.changes.round(ACTS)
        wanted = picture(self.server.dsn)
        manifest = self.works.back_up(self.server, full=full).manifest
        self.taken.append(Taken(manifest, wanted))
        return manifest

    def busy_backup(self) -> Manifest:
        """Back up while transfers and changes go on; slowly, so that there is something to go on beside."""
        self.changes.round(ACTS)
        with busy(self.server), repeating(lambda turn: self.changes.round(1, beside_backup=True)):
            manifest = self.works.back_up(self.server, max_rate_kib=24 << 10).manifest
        self.taken.append(Taken(manifest, None))
        return manifest

    def delete_and_prune(self, numbers: list[int]) -> PruneResult:
        """Delete these backups and give back their room; the rest is still what PostgreSQL accepts."""
        repository = self.works.reopened()
        for number in numbers:
            repository.put_mark(self.taken[number].manifest.backup, DELETED)
        done = prune_repository(repository, PruneOptions(), self.works.stop, Heard())
        left = [one.manifest for number, one in enumerate(self.taken) if number not in numbers]
        assert sorted(one.backup for one in left) == sorted(self.works.reopened().backup_ids())
        for manifest in left:
            self.verify_export(manifest)
        return done

    def check(self, number: int, *, thorough: bool = False) -> None:
        """Export, verify, restore, start, compare, amcheck."""
        taken = self.taken[number]
        name = f"{self.name}: checking backup {number} ({taken.manifest.method})"
        self.verify_export(taken.manifest)
        target = self.works.restore(taken.manifest)
        try:
            with self.works.clone(target, taken.manifest, self.server.version) as clone:
                if taken.wanted is not None:
                    assert_same(picture(clone.dsn), taken.wanted, name)
                assert_unlogged_empty_and_indexes_agree(clone.dsn)
                assert_books_balance(clone.dsn)
                amcheck(clone, thorough=thorough)
                assert_visibility_is_true(clone)
        finally:
            remove_trees(target)

    def verify_export(self, manifest: Manifest) -> None:
        """What PostgreSQL's own program says of the export."""
        exported = self.works.export(manifest).target
        try:
            label = (exported / "backup_label").read_text()
            assert "INCREMENTAL" not in label
            programs = programs_of(self.server.version, self.server.major)
            assert "successfully verified" in pg(programs, "pg_verifybackup", exported)
        finally:
            remove_trees(exported)


def remove_trees(target: Path) -> None:
    """A restored directory and the tablespaces beside it."""
    for folder in target.parent.glob(f"{target.name}*"):
        shutil.rmtree(folder)


def amcheck(clone: Clone, *, thorough: bool = False) -> None:
    """Raises: ProgramFailed, for anything that pg_amcheck finds."""
    words = ["--heapallindexed", "--rootdescend"] if thorough else []
    pg(clone.programs, "pg_amcheck", "--all", "--install-missing", "--jobs=2", *words, dsn=clone.dsn)


def assert_visibility_is_true(clone: Clone) -> None:
    """No page is called all visible or all frozen that is not; pg_amcheck does not look (PostgreSQL decision 2)."""
    for name in picture_databases(clone.dsn):
        with psycopg.connect(psycopg.conninfo.make_conninfo(clone.dsn, dbname=name), autocommit=True) as connection:
            connection.execute("CREATE EXTENSION IF NOT EXISTS pg_visibility")
            found = connection.execute(
                "SELECT oid::regclass::text, (SELECT count(*) FROM pg_check_visible(oid)),"
                " (SELECT count(*) FROM pg_check_frozen(oid)) FROM pg_class WHERE relkind IN ('r', 'm', 't')"
                " AND relpersistence = 'p'"
            ).fetchall()
        assert [one for one in found if one[1:] != (0, 0)] == []


def expected_methods(server: Server, count: int, forced: int) -> list[str]:
    """What each backup must have been."""
    later = "native" if server.major >= 17 else "compared"
    return ["full" if number == 0 else "compared" if number == forced else later for number in range(count)]


def begin(new_server: NewServer, works: Works, seed: int) -> Story:
    server = new_server()
    settings = {"summarize_wal": "on"} if server.major >= 17 else {}
    server.configure(**CONFIG, **settings)
    server.restart()
    return Story(server, works, seed)


@pytest.mark.pg("15,17,18")
@pytest.mark.decision(8)
def test_three_backups_with_random_changes_between_them_come_back_exactly(
    new_server: NewServer, works: Works, pg_version: str
) -> None:
    story = begin(new_server, works, seed=int(pg_version) * 100)
    for _ in range(3):
        story.quiet_backup()
    assert [one.manifest.method for one in story.taken] == expected_methods(story.server, 3, forced=-1)
    for number in range(3):
        story.check(number, thorough=number == 2)
    done = story.delete_and_prune([story.changes.random.randrange(3)])
    assert done.freed_bytes > 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.pg("15,17,18")
@pytest.mark.parametrize("seed", [1, 2])
def test_ten_backups_come_back_exactly_and_those_left_after_a_deletion_and_a_prune_too(
    new_server: NewServer, works: Works, pg_version: str, seed: int
) -> None:
    story = begin(new_server, works, seed)
    forced = story.changes.random.randrange(2, 8)
    under_load = set(story.changes.random.sample(range(1, 10), 2)) - {forced}
    for number in range(10):
        if number in under_load:
            story.busy_backup()
        else:
            story.quiet_backup(full=number == forced)
    methods = expected_methods(story.server, 10, forced)
    for number in under_load:
        # The load may cut a table short at the one moment at which an increment must give up (decision 26).
        if story.taken[number].manifest.reason == "a table was cut short while the backup began":
            methods[number] = "compared"
    assert [one.manifest.method for one in story.taken] == methods
    for number in range(10):
        story.check(number, thorough=number in (0, forced, 9))
    gone = story.changes.random.sample(range(10), story.changes.random.randrange(2, 8))
    done = story.delete_and_prune(gone)
    assert done.freed_bytes > 0
    # The next one stands on whatever is left, be it old.
    manifest = story.quiet_backup()
    assert (
        manifest.parent
        == max((one.manifest for n, one in enumerate(story.taken[:10]) if n not in gone), key=age).backup
    )
    story.check(10)


def age(manifest: Manifest) -> int:
    """The order of backups in their repository."""
    return manifest.sequence
