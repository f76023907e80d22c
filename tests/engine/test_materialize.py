"""From a source to a repository to a directory: the same tree, whatever the page size and the names of files."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamanager.base.errors import IntegrityError, ObjectMissing
from datamanager.base.pipeline import StopToken
from datamanager.engine.restore.layout import Destination
from datamanager.engine.restore.materialize import Materializer
from datamanager.repository.format import HEADER, PAGES_PER_CHUNK, folders, manifest_keys, pack_key
from datamanager.repository.layers.layer import FileKind
from datamanager.repository.manifest import Manifest
from datamanager.repository.repository import Repository
from datamanager.storage.local import LocalStorage
from tests.engine.synthetic_source import SyntheticCluster, SyntheticSource, make_cluster, server_manifest, tree
from tests.repository.parts import backup, copy_of, flip, keys, new_repository, overwrite, reopen, verify

MANIFEST_NAME = b"backup_manifest"


def restore(repository: Repository, manifest: Manifest, target: Path, threads: int = 2) -> int:
    """Write a backup to ``target``; returns the bytes that were written."""
    target.mkdir()
    return write_into(repository, manifest, target, threads)


def write_into(repository: Repository, manifest: Manifest, target: Path, threads: int = 2) -> int:
    written: list[int] = []
    destination = Destination(target, {}, {}, None)
    with StopToken() as stop:
        contents = repository.contents(manifest)
        Materializer(repository, contents, destination, threads, written.append).run(stop)
    return sum(written)


def expected(cluster: SyntheticCluster) -> tuple[dict[bytes, bytes], set[bytes]]:
    return cluster.files | {MANIFEST_NAME: server_manifest(cluster)}, set(cluster.directories)


@pytest.mark.parametrize("page_size", [1024, 2048, 4096, 8192, 16384, 32768])
def test_what_was_backed_up_comes_back_with_every_page_size(page_size: int, tmp_path: Path) -> None:
    cluster = make_cluster(page_size, page_size, pages=80, odd_names=True, tables=4)
    repository = new_repository()
    manifest = backup(repository, cluster).manifest
    restore(reopen(repository), manifest, tmp_path / "data")
    assert tree(tmp_path / "data") == expected(cluster)
    assert manifest.page_size == page_size
    assert manifest.total_bytes == sum(map(len, expected(cluster)[0].values()))


@pytest.mark.parametrize("page_size", [1024, 8192, 32768])
def test_a_second_backup_reuses_the_first_and_both_come_back(page_size: int, tmp_path: Path) -> None:
    first_cluster = make_cluster(3, page_size, pages=80)
    second_cluster = first_cluster.with_changed_pages(4, 0.003).with_files({b"base/5/new": b"new"})
    repository = new_repository()
    first = backup(repository, first_cluster)
    second = backup(repository, second_cluster)
    assert second.manifest.bytes_reused > second.manifest.bytes_read // 4
    assert second.counts.compressed < first.counts.compressed // 2
    assert (first.manifest.method, second.manifest.method) == ("full", "compared")
    assert second.manifest.parent == first.manifest.backup
    for cluster, manifest in ((first_cluster, first.manifest), (second_cluster, second.manifest)):
        restore(repository, manifest, tmp_path / manifest.backup)
        assert tree(tmp_path / manifest.backup) == expected(cluster)


def test_a_backup_of_nothing_changed_stores_no_page_again() -> None:
    cluster = make_cluster()
    repository = new_repository()
    backup(repository, cluster)
    before = keys(repository.storage, "packs/")
    result = backup(repository, cluster)
    assert result.counts.compressed == 0
    assert keys(repository.storage, "packs/") == before
    assert result.counts.reused + result.counts.zeros == result.counts.read


def test_only_changed_pages_are_stored() -> None:
    cluster = make_cluster(tables=1)
    content = bytearray(cluster.files[b"base/5/short"])
    content[8192 * 7 + 5] ^= 1  # one page of a whole chunk
    content[8192 * 32 + 5] ^= 1  # one of the two in the last
    repository = new_repository()
    backup(repository, cluster)
    changed = cluster.with_files({b"base/5/short": bytes(content)})
    result = backup(repository, changed)
    manifest_bytes = len(server_manifest(changed))
    assert result.counts.pages == 2
    assert result.counts.read - result.counts.reused - result.counts.zeros == 2 * 8192 + manifest_bytes
    assert result.manifest.files == len(changed.files) + len(changed.directories) + 1


def test_deleting_any_backup_leaves_every_other_one_whole(tmp_path: Path) -> None:
    repository = new_repository()
    cluster = make_cluster(pages=20, tables=3)
    clusters = [cluster]
    for seed in range(3):
        clusters.append(clusters[-1].with_changed_pages(seed, 0.1))
    manifests = [backup(repository, one).manifest for one in clusters]
    for gone in range(4):
        other = reopen(repository, copy_of(repository.storage))
        for key in manifest_keys(manifests[gone].backup):
            other.storage.delete(key)
        for number in set(range(4)) - {gone}:
            target = tmp_path / f"{gone}-{number}"
            restore(other, manifests[number], target)
            assert tree(target) == expected(clusters[number])


def test_a_file_that_shrank_grew_vanished_or_came_is_as_it_was_at_each_backup(tmp_path: Path) -> None:
    page = 1024
    whole = os.urandom(page * 100)
    states: list[dict[bytes, bytes]] = [
        {b"base/a": whole},
        {b"base/a": whole[: page * 40]},
        {b"base/a": whole[: page * 40] + bytes(page * 60)},
        {},
        {b"base/a": whole},
        {b"base/a": b"", b"base/b": whole},
    ]
    repository = new_repository()
    for number, files in enumerate(states):
        cluster = SyntheticCluster(page, {b"PG_VERSION": b"18\n", **files}, (b"base",))
        manifest = backup(repository, cluster).manifest
        restore(repository, manifest, tmp_path / str(number))
        assert tree(tmp_path / str(number)) == expected(cluster)


CONTENTS = st.one_of(
    st.binary(max_size=200),
    st.tuples(st.integers(0, 90_000), st.integers(0, 2**32)).map(lambda pair: sparse(*pair)),
)


def sparse(size: int, seed: int) -> bytes:
    """Runs of zeros and of something, of odd lengths."""
    data = bytearray(size)
    step = 1 + seed % 7919
    for start in range(seed % 977, size, 3 * step):
        end = min(size, start + step)
        data[start:end] = (seed.to_bytes(8, "big") * (step // 8 + 1))[: end - start]
    return bytes(data)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(st.integers(0, 9).map(lambda n: b"base/%d" % n), CONTENTS, max_size=6),
    st.dictionaries(st.integers(0, 9).map(lambda n: b"base/%d" % n), CONTENTS, max_size=6),
    st.sampled_from([1024, 2048, 8192]),
    st.integers(1, 70_000),
)
def test_any_files_in_any_pieces_come_back(
    tmp_path_factory: pytest.TempPathFactory,
    first: dict[bytes, bytes],
    second: dict[bytes, bytes],
    page_size: int,
    piece: int,
) -> None:
    repository = new_repository()
    folder = tmp_path_factory.mktemp("any")
    for number, files in enumerate((first, first | second)):
        cluster = SyntheticCluster(page_size, {b"PG_VERSION": b"18\n", **files}, (b"base",))
        manifest = backup(repository, cluster, source=SyntheticSource(cluster, piece_bytes=piece)).manifest
        restore(repository, manifest, folder / str(number))
        assert tree(folder / str(number)) == expected(cluster)
    assert verify(repository).ok


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps no such modes")
def test_modes_come_back(tmp_path: Path) -> None:
    cluster = replace(make_cluster(pages=2, tables=1), modes={b"PG_VERSION": 0o640, b"postgresql.conf": 0o400})
    repository = new_repository()
    restore(repository, backup(repository, cluster).manifest, tmp_path / "data")
    assert (tmp_path / "data" / "PG_VERSION").stat().st_mode & 0o7777 == 0o640
    assert (tmp_path / "data" / "postgresql.conf").stat().st_mode & 0o7777 == 0o400
    assert (tmp_path / "data" / "global" / "pg_control").stat().st_mode & 0o7777 == 0o600


@pytest.mark.skipif(sys.platform != "linux", reason="counts allocated blocks")
def test_zero_pages_take_no_room_in_the_repository_nor_in_the_restored_directory(tmp_path: Path) -> None:
    size = 64 << 20
    cluster = SyntheticCluster(8192, {b"base/1": bytes(size), b"base/2": b"x" + bytes(size - 1)}, (b"base",))
    repository = new_repository()
    result = backup(repository, cluster)
    assert result.counts.zeros == 2 * size - PAGES_PER_CHUNK * 8192
    assert result.stored < 300_000
    written = restore(repository, result.manifest, tmp_path / "data")
    assert written < 300_000
    assert (tmp_path / "data" / "base" / "1").stat().st_blocks * 512 < 100_000
    assert (tmp_path / "data" / "base" / "2").stat().st_size == size


def test_it_works_on_a_real_folder_and_over_several_packs(tmp_path: Path) -> None:
    files = {b"base/%d" % number: os.urandom(9 << 20) for number in range(8)}
    cluster = SyntheticCluster(8192, files, (b"base",))
    storage = LocalStorage.create(tmp_path / "repository", folders())
    repository = new_repository(storage)
    manifest = backup(repository, cluster).manifest
    assert len(keys(storage, "packs/")) == 3
    restore(reopen(repository), manifest, tmp_path / "data", threads=3)
    assert tree(tmp_path / "data") == expected(cluster)
    assert verify(reopen(repository)).ok


# -- what must not pass ----------------------------------------------------------------------------------------------


@pytest.fixture
def small() -> tuple[Repository, Manifest]:
    repository = new_repository()
    return repository, backup(repository, make_cluster(pages=10, tables=2)).manifest


def test_a_damaged_chunk_is_never_restored(small: tuple[Repository, Manifest], tmp_path: Path) -> None:
    repository, manifest = small
    (key,) = keys(repository.storage, "packs/")
    flip(repository.storage, key, HEADER.size + 100)
    with pytest.raises(IntegrityError, match=f"{key} chunk"):
        restore(reopen(repository), manifest, tmp_path / "data")


def test_a_missing_pack_is_named(small: tuple[Repository, Manifest], tmp_path: Path) -> None:
    repository, manifest = small
    (key,) = keys(repository.storage, "packs/")
    repository.storage.delete(key)
    with pytest.raises(ObjectMissing, match=key):
        restore(reopen(repository), manifest, tmp_path / "data")


def test_a_pack_of_another_content_under_the_same_id_is_refused(
    small: tuple[Repository, Manifest], tmp_path: Path
) -> None:
    repository, manifest = small
    ((identity, digest), *_) = repository.contents(manifest).packs
    other = new_repository()
    backup(other, make_cluster(9, pages=10, tables=2))
    (foreign,) = keys(other.storage, "packs/")
    overwrite(repository.storage, pack_key(identity), other.storage.get(foreign))
    with pytest.raises(IntegrityError):
        restore(reopen(repository), manifest, tmp_path / "data")
    assert len(digest) == 16


def test_a_file_that_does_not_match_the_servers_checksum_fails_the_backup() -> None:
    cluster = make_cluster(pages=4, tables=1)
    for spoilt in (
        cluster.with_files({b"base/5/short": cluster.files[b"base/5/short"] + b"more"}),
        cluster.with_files({b"base/5/short": cluster.files[b"base/5/short"][::-1]}),
        cluster.with_files({b"base/5/unheard_of": b"x"}),
    ):
        repository = new_repository()
        source = SyntheticSource(spoilt, manifest=server_manifest(cluster))
        with pytest.raises(IntegrityError, match="check backup"):
            backup(repository, cluster, source=source)
        assert repository.backup_ids() == []


def test_a_file_that_the_server_listed_and_did_not_send_fails_the_backup() -> None:
    cluster = make_cluster(pages=4, tables=1)
    listed = cluster.with_files({b"base/5/lost": b"x"})
    with pytest.raises(IntegrityError, match="base/5/lost did not arrive"):
        backup(new_repository(), cluster, source=SyntheticSource(cluster, manifest=server_manifest(listed)))


def test_a_manifest_of_the_server_with_a_wrong_checksum_of_its_own_fails_the_backup() -> None:
    cluster = make_cluster(pages=4, tables=1)
    manifest = server_manifest(cluster).replace(b'"Size": 3,', b'"Size": 4,')
    with pytest.raises(IntegrityError, match="checksum does not fit"):
        backup(new_repository(), cluster, source=SyntheticSource(cluster, manifest=manifest))


def test_nothing_is_written_over(small: tuple[Repository, Manifest], tmp_path: Path) -> None:
    repository, manifest = small
    (tmp_path / "data" / "base").mkdir(parents=True)
    (tmp_path / "data" / "PG_VERSION").write_bytes(b"17\n")
    with pytest.raises(FileExistsError):
        write_into(repository, manifest, tmp_path / "data")
    assert (tmp_path / "data" / "PG_VERSION").read_bytes() == b"17\n"


@pytest.mark.skipif(os.name == "nt", reason="needs links")
def test_a_link_in_the_target_is_never_followed(small: tuple[Repository, Manifest], tmp_path: Path) -> None:
    repository, manifest = small
    outside = tmp_path / "outside"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "PG_VERSION").symlink_to(outside)
    with pytest.raises(OSError, match="PG_VERSION"):
        write_into(repository, manifest, tmp_path / "data")
    assert not outside.exists()


def test_find_reads_one_file_as_the_listing_has_it(small: tuple[Repository, Manifest]) -> None:
    repository, manifest = small
    contents = repository.contents(manifest)
    listed = {entry.path: entry for entry in contents.files()}
    assert list(listed) == sorted(listed)
    for path, entry in listed.items():
        found = contents.find(path)
        assert found is not None
        assert (found.size, found.kind, found.crc32c) == (entry.size, entry.kind, entry.crc32c)
        assert [column.tolist() for column in found.rows] == [column.tolist() for column in entry.rows]
    assert contents.find(b"base/nothing") is None
    assert {entry.path for entry in listed.values() if entry.kind is FileKind.DIRECTORY} >= {b"base", b"pg_wal"}
