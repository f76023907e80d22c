"""Increments without a server: whatever happened between them, every backup gives back the files of its moment."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from datamanager.base.events import Listener, ignore
from datamanager.base.pipeline import StopToken
from datamanager.engine.backup.defragment import Scatter, scattered_regions
from datamanager.engine.backup.run import BackupResult, run_backup
from datamanager.engine.backup.session import BackupOptions
from datamanager.engine.restore.layout import Destination
from datamanager.engine.restore.materialize import Materializer
from datamanager.postgres.source import BackupSource
from datamanager.repository.damaged import DamagedChunks
from datamanager.repository.format import MAX_LAYERS
from datamanager.repository.known import ParentFiles
from datamanager.repository.manifest import Manifest
from datamanager.repository.repository import Repository
from tests.engine.synthetic_increment import PAGE, SyntheticServer
from tests.engine.synthetic_source import SyntheticCluster, make_cluster, tree
from tests.repository.parts import new_repository, reopen, verify

MADE_BY_US = {b"backup_manifest", b"backup_label"}


def back_up(
    repository: Repository,
    server: SyntheticServer,
    *,
    full: bool = False,
    seed: int = 0,
    scatter: Scatter = Scatter(),  # noqa: B008 - immutable
    source: BackupSource | None = None,
    pace: float = 0,
    listener: Listener = ignore,
) -> BackupResult:
    with StopToken() as stop:
        options = BackupOptions("office", "test", full=full, scatter=scatter, audit_pace_seconds=pace)
        whole = server.source(random.Random(seed))
        return run_backup(repository, source or whole, server.facts, options, stop, listener, server.summaries)


def restored(repository: Repository, manifest: Manifest, target: Path) -> dict[bytes, bytes]:
    target.mkdir()
    with StopToken() as stop:
        destination = Destination(target, {}, {}, None)
        Materializer(repository, repository.contents(manifest), destination, 2, lambda size: None).run(stop)
    return {path: content for path, content in tree(target)[0].items() if path not in MADE_BY_US}


def relations(seed: int = 1, pages: int = 90) -> SyntheticCluster:
    """A cluster with relations of some pages, their forks, and files that hold none."""
    chance = random.Random(f"relations {seed}")
    files = {b"base/5/%d" % (16384 + n): chance.randbytes(PAGE * chance.randrange(1, pages)) for n in range(5)}
    files |= {b"base/5/16384_vm": chance.randbytes(PAGE), b"base/5/16384_fsm": chance.randbytes(PAGE * 3)}
    made = make_cluster(seed)
    return made.with_files(files)


def stepped(cluster: SyntheticCluster, chance: random.Random) -> SyntheticCluster:
    """The cluster after anything that a server may do to its files."""
    files = dict(cluster.files)
    for path in [one for one in files if one.startswith((b"base/", b"pg_tblspc/"))]:
        what = chance.random()
        data = bytearray(files[path])
        pages = len(data) // PAGE
        if what < 0.35 and pages:
            for _ in range(chance.randrange(1, 6)):
                page = chance.randrange(pages)
                data[page * PAGE : (page + 1) * PAGE] = chance.choice((chance.randbytes(PAGE), bytes(PAGE)))
        elif what < 0.45:
            data += chance.randbytes(PAGE * chance.randrange(1, 40))
        elif what < 0.55 and pages > 1:
            del data[PAGE * chance.randrange(1, pages) :]
        elif what < 0.58:
            del files[path]
            continue
        elif what < 0.60:
            data = bytearray(chance.randbytes(PAGE * chance.randrange(0, 50)))
        files[path] = bytes(data)
    if chance.random() < 0.5:
        files[b"base/5/%d" % chance.randrange(20000, 20010)] = chance.randbytes(PAGE * chance.randrange(1, 70))
    return SyntheticCluster(PAGE, files, cluster.directories)


@pytest.mark.parametrize("seed", range(6))
def test_every_backup_of_a_long_history_comes_back(seed: int, tmp_path: Path) -> None:
    chance = random.Random(f"history {seed}")
    repository, server = new_repository(), SyntheticServer(relations(seed))
    taken: list[tuple[Manifest, SyntheticCluster]] = []
    for number in range(14):
        full = chance.random() < 0.15
        result = back_up(repository, server, full=full, seed=number)
        expected = "full" if number == 0 else "compared" if full else "native"
        assert result.manifest.method == expected, result.warnings
        assert 1 <= len(result.manifest.layers) <= MAX_LAYERS
        assert result.manifest.files >= len(server.cluster.files)
        taken.append((result.manifest, server.cluster))
        server.moved(stepped(server.cluster, chance) if chance.random() < 0.9 else server.cluster)
    found = verify(repository)
    assert found.ok, [str(one) for one in found.damages]
    for manifest, cluster in taken:
        assert restored(reopen(repository), manifest, tmp_path / manifest.backup) == cluster.files
    for manifest, _ in taken[::2]:
        repository.put_mark(manifest.backup, "deleted")
    for number, (manifest, cluster) in enumerate(taken[1::2]):
        assert restored(reopen(repository), manifest, tmp_path / f"again-{number}") == cluster.files


def test_an_increment_of_nothing_stores_next_to_nothing() -> None:
    repository, server = new_repository(), SyntheticServer(relations(), rewritten=0)
    back_up(repository, server)
    server.moved(server.cluster)
    result = back_up(repository, server)
    assert result.manifest.method == "native"
    assert result.counts.compressed < 4000


def test_changed_pages_alone_are_stored_and_share_chunks() -> None:
    repository, server = new_repository(), SyntheticServer(relations(), rewritten=0)
    back_up(repository, server)
    files = dict(server.cluster.files)
    for number in range(5):
        path = b"base/5/%d" % (16384 + number)
        files[path] = random.Random(number).randbytes(PAGE) + files[path][PAGE:]
    server.moved(SyntheticCluster(PAGE, files, server.cluster.directories))
    result = back_up(repository, server)
    assert result.manifest.pages_changed >= 5
    assert result.counts.compressed < 5 * PAGE * 2 + 8000


@pytest.mark.parametrize("seed", range(3))
def test_what_is_scattered_is_stored_anew_and_nothing_else_changes(seed: int, tmp_path: Path) -> None:
    chance = random.Random(f"scatter {seed}")
    repository, server = new_repository(), SyntheticServer(relations(seed))
    scatter = Scatter(region_bytes=16 * PAGE * 2, packs=3, share=1.0)
    taken: list[tuple[Manifest, SyntheticCluster]] = []
    for number in range(12):
        result = back_up(repository, server, full=number == 7, seed=number, scatter=scatter)
        taken.append((result.manifest, server.cluster))
        server.moved(stepped(server.cluster, chance))
    assert verify(repository).ok
    for manifest, cluster in taken:
        assert restored(reopen(repository), manifest, tmp_path / manifest.backup) == cluster.files
    files = ParentFiles(repository, repository.contents(taken[-1][0]), taken[-1][0], DamagedChunks.none())
    left = scattered_regions(files, PAGE, scatter)
    assert all(region.packs <= 6 for region in left)


def test_the_layers_of_many_small_backups_stay_few_and_small() -> None:
    repository, server = new_repository(), SyntheticServer(relations())
    heights = []
    for number in range(40):
        manifest = back_up(repository, server).manifest
        heights.append(len(manifest.layers))
        files = dict(server.cluster.files)
        path = b"base/5/%d" % (16384 + number % 5)
        files[path] = random.Random(number).randbytes(PAGE) + files[path][PAGE:]
        server.moved(SyntheticCluster(PAGE, files, server.cluster.directories))
    assert max(heights) <= 5
    assert verify(repository).ok
