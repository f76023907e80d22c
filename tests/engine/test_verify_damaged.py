"""What verify finds damaged is written down, so that the next full read stores it anew; what is over is forgotten."""

from __future__ import annotations

import pytest

from datamanager.base.errors import StoreDenied
from datamanager.engine.verify.run import VerifyOptions
from datamanager.repository.damaged import DamagedChunks, read_list
from datamanager.repository.format import HEADER, meta_keys, pack_id
from datamanager.repository.known import ParentFiles
from datamanager.repository.repository import Repository
from tests.engine.synthetic_source import make_cluster
from tests.repository.parts import backup, copy_of, flip, keys, new_repository, overwrite, reopen, verify
from tests.storage.faults import Call, FaultyStorage

CLUSTER = make_cluster(pages=60, tables=2)


@pytest.fixture(scope="module")
def made() -> Repository:
    repository = new_repository()
    backup(repository, CLUSTER)
    return repository


@pytest.fixture
def repository(made: Repository) -> Repository:
    return reopen(made, copy_of(made.storage))


def the_pack(repository: Repository) -> str:
    (key,) = keys(repository.storage, "packs/")
    return key


def damaged(repository: Repository) -> DamagedChunks:
    return DamagedChunks.load(reopen(repository))


@pytest.mark.parametrize(
    "options",
    [
        VerifyOptions(depth="full"),
        VerifyOptions(depth="sample", sample_percent=100),
        VerifyOptions(depth="rolling", rolling_days=1),
    ],
)
def test_a_damaged_chunk_that_was_read_is_written_down(repository: Repository, options: VerifyOptions) -> None:
    key = the_pack(repository)
    pack = pack_id(key) or b""
    offset = int(repository.pack(pack).directory.offsets[2])
    flip(repository.storage, key, offset + 5)
    result = verify(repository, options)
    assert [(one.key, one.chunks) for one in result.damaged] == [(key, (2,))]
    assert damaged(repository).chunks(pack) == frozenset({2})


@pytest.mark.parametrize("spoil", ["missing", "cut", "another"])
def test_a_pack_that_cannot_be_read_at_all_is_written_down_whole(repository: Repository, spoil: str) -> None:
    key = the_pack(repository)
    content = repository.storage.get(key)
    if spoil == "missing":
        repository.storage.delete(key)
    elif spoil == "cut":
        overwrite(repository.storage, key, content[: len(content) // 2])
    else:
        backup(repository, make_cluster(9, pages=4, tables=1))
        other = next(one for one in keys(repository.storage, "packs/") if one != key)
        overwrite(repository.storage, key, repository.storage.get(other))
    verify(repository)
    assert damaged(repository).chunks(pack_id(key) or b"") is None


def test_a_look_that_reads_nothing_writes_nothing_down(repository: Repository) -> None:
    repository.storage.delete(the_pack(repository))
    assert not verify(repository, VerifyOptions(depth="present")).ok
    assert keys(repository.storage, "damaged/") == []


def test_damaged_metadata_is_not_written_down(repository: Repository) -> None:
    (manifest,) = repository.manifests()
    for key in meta_keys(bytes.fromhex(manifest.layers[0].spans[0][0])):
        flip(repository.storage, key, HEADER.size + 30)
    assert not verify(repository).ok
    assert keys(repository.storage, "damaged/") == []


def test_the_same_damage_is_written_down_once(repository: Repository) -> None:
    flip(repository.storage, the_pack(repository), HEADER.size + 5)
    verify(repository)
    before = keys(repository.storage, "damaged/")
    verify(repository)
    verify(repository, VerifyOptions(depth="sample", sample_percent=100))
    assert keys(repository.storage, "damaged/") == before != []


def test_damage_that_a_full_reading_does_not_find_any_more_is_forgotten(repository: Repository) -> None:
    key = the_pack(repository)
    before = flip(repository.storage, key, HEADER.size + 5)
    verify(repository)
    overwrite(repository.storage, key, before)
    assert verify(repository).ok
    assert keys(repository.storage, "damaged/") == []


def test_of_a_list_only_what_is_over_is_forgotten(repository: Repository) -> None:
    key = the_pack(repository)
    offsets = repository.pack(pack_id(key) or b"").directory.offsets
    flip(repository.storage, key, int(offsets[1]) + 3)
    flip(repository.storage, key, int(offsets[4]) + 3)
    verify(repository)
    assert damaged(repository).chunks(pack_id(key) or b"") == frozenset({1, 4})
    flip(repository.storage, key, int(offsets[1]) + 3)
    verify(repository)
    assert damaged(repository).chunks(pack_id(key) or b"") == frozenset({4})
    (only,) = keys(repository.storage, "damaged/")
    assert [one.chunks for one in read_list(repository, only)] == [(4,)]


def test_the_damage_of_a_backup_that_was_deleted_is_forgotten(repository: Repository) -> None:
    flip(repository.storage, the_pack(repository), HEADER.size + 5)
    verify(repository)
    (manifest,) = repository.manifests()
    repository.put_mark(manifest.backup, "deleted")
    verify(repository)
    assert keys(repository.storage, "damaged/") == []


def test_what_is_known_to_be_damaged_can_be_looked_at_alone(repository: Repository) -> None:
    key = the_pack(repository)
    backup(repository, make_cluster(9, pages=4, tables=1))
    before = flip(repository.storage, key, HEADER.size + 5)
    verify(repository)
    again = verify(repository, VerifyOptions(depth="known"))
    assert (again.packs_read, [damage.key for damage in again.damages]) == (1, [key])
    overwrite(repository.storage, key, before)
    again = verify(repository, VerifyOptions(depth="known"))
    assert (again.packs_read, again.ok) == (1, True)
    assert keys(repository.storage, "damaged/") == []


def test_on_a_medium_that_cannot_be_written_the_damage_is_told_all_the_same(repository: Repository) -> None:
    flip(repository.storage, the_pack(repository), HEADER.size + 5)

    def denied(call: Call) -> None:
        if call.method == "put":
            raise StoreDenied("put: read-only file system")

    result = verify(reopen(repository, FaultyStorage(repository.storage, hook=denied)))
    assert not result.ok
    assert keys(repository.storage, "damaged/") == []
    assert any("without telling" in warning for warning in result.warnings)


# -- what the next backup makes of it ------------------------------------------------------------------------------


def broken_for(repository: Repository, number: int) -> set[bytes]:
    """Packs for which the next backup, with that one as its parent, has to read everything."""
    opened = reopen(repository)
    manifest = opened.manifests()[number]
    files = ParentFiles(opened, opened.contents(manifest), manifest, DamagedChunks.load(opened))
    return files.broken_packs({pack_id(key) for key in keys(opened.storage, "packs/")})


@pytest.mark.parametrize("spoil", ["flip", "cut", "missing"])
def test_the_next_full_read_stores_damaged_chunks_anew_and_the_one_after_it_needs_none(
    repository: Repository, spoil: str
) -> None:
    key = the_pack(repository)
    pack = pack_id(key) or b""
    content = repository.storage.get(key)
    if spoil == "flip":
        flip(repository.storage, key, int(repository.pack(pack).directory.offsets[2]) + 5)
    else:
        repository.storage.delete(key)
        if spoil == "cut":
            repository.storage.put(key, [content[:-70_000]])
    assert [verdict.ok for verdict in verify(reopen(repository)).backups] == [False]
    assert broken_for(repository, 0) == {pack}
    fresh = reopen(repository)
    second = backup(fresh, CLUSTER).manifest
    assert second.bytes_stored > 0
    found = verify(reopen(repository), VerifyOptions(backups=[second.backup]))
    assert found.ok, found.damages
    assert broken_for(repository, 1) == set()
    whole = [verdict.backup for verdict in verify(reopen(repository)).backups if verdict.ok]
    assert whole == [second.backup]
    assert broken_for(repository, 1) == set()


def test_a_missing_pack_that_nobody_wrote_down_is_noticed_by_the_next_backup(repository: Repository) -> None:
    repository.storage.delete(the_pack(repository))
    assert keys(repository.storage, "damaged/") == []
    assert len(broken_for(repository, 0)) == 1
    second = backup(reopen(repository), CLUSTER).manifest
    assert verify(reopen(repository), VerifyOptions(backups=[second.backup])).ok
