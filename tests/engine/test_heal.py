"""A repository is healed from another copy of it: every damage that the other one can make good, and nothing else."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import pytest

from datamanager.base.errors import StoreUnavailable, UsageError
from datamanager.base.events import ignore
from datamanager.base.pipeline import StopToken
from datamanager.engine.heal.run import HealOptions, HealResult, heal_repository
from datamanager.engine.verify.run import VerifyOptions
from datamanager.repository.damaged import DamagedChunks
from datamanager.repository.format import HEADER, Kind, manifest_keys, meta_keys, pack_id, pack_key, ring_keys
from datamanager.repository.packs.chunk_reader import read_pages
from datamanager.repository.packs.pack import full_mask
from datamanager.repository.repository import Repository
from datamanager.storage.memory import MemoryStorage
from tests.engine.synthetic_source import SyntheticCluster, make_cluster
from tests.repository.parts import (
    SetClock,
    backup,
    copy_of,
    flip,
    keys,
    new_repository,
    overwrite,
    reopen,
    verify,
)
from tests.storage.faults import Call, FaultyStorage

CLUSTER = make_cluster(pages=60, tables=2)
CHANGED = CLUSTER.with_changed_pages(1, 0.05)


@pytest.fixture(scope="module")
def made() -> Repository:
    repository = new_repository()
    backup(repository, CLUSTER)
    backup(repository, CHANGED)
    return repository


@pytest.fixture
def repository(made: Repository) -> Repository:
    """Free to be spoilt."""
    return reopen(made, copy_of(made.storage))


@pytest.fixture
def source(made: Repository) -> Repository:
    """A copy of the drive."""
    return reopen(made, named_copy(made))


def named_copy(repository: Repository) -> MemoryStorage:
    storage = MemoryStorage(SetClock(), name=f"copy-{secrets.token_hex(4)}")
    for one in repository.storage.list(""):
        storage.put(one.key, [repository.storage.get(one.key)])
    return storage


def heal(repository: Repository, source: Repository, *, dry_run: bool = False) -> HealResult:
    with StopToken() as stop:
        return heal_repository(reopen(repository), source, HealOptions(dry_run=dry_run), stop, ignore)


def packs_of(repository: Repository) -> list[str]:
    return sorted(keys(repository.storage, "packs/"), key=lambda key: -repository.storage.stat(key).size)


def flip_chunk(repository: Repository, key: str, chunk: int) -> None:
    """One bit in the middle of a chunk."""
    identity = pack_id(key) or b""
    offset = int(reopen(repository).pack(identity).directory.offsets[chunk])
    flip(repository.storage, key, offset + 9)


def assert_content(repository: Repository, cluster: SyntheticCluster, number: int) -> None:
    """Every file of a backup reads as it was."""
    opened = reopen(repository)
    contents = opened.contents(opened.manifests()[number])
    for entry in contents.files():
        if entry.path in cluster.files:
            data = bytearray(entry.size)
            for page, piece in read_pages(opened, contents, entry):
                start = page * cluster.page_size
                data[start : start + len(piece)] = piece
            assert bytes(data[: entry.size]) == cluster.files[entry.path], entry.path


def assert_whole(repository: Repository) -> None:
    result = verify(reopen(repository))
    assert result.ok, result.damages
    assert result.warnings == []
    assert keys(repository.storage, "damaged/") == []
    assert_content(repository, CLUSTER, 0)
    assert_content(repository, CHANGED, 1)


# -- data packs ----------------------------------------------------------------------------------------------------


def test_a_damaged_chunk_comes_from_the_other_copy_and_the_backups_are_whole_again(
    repository: Repository, source: Repository
) -> None:
    key = packs_of(repository)[0]
    flip_chunk(repository, key, 2)
    assert [verdict.ok for verdict in verify(repository).backups] == [False, False]
    before = keys(source.storage, "")
    result = heal(repository, source)
    assert [(one.damaged_key, one.key) for one in result.healed] == [(key, f"{key}.2")]
    assert "1 of " in result.healed[0].what
    assert (result.not_healed, result.affected) == ([], [])
    assert keys(source.storage, "") == before
    assert_whole(repository)


def cut(repository: Repository, key: str) -> None:
    content = repository.storage.get(key)
    overwrite(repository.storage, key, content[: len(content) // 2])


def put_another(repository: Repository, key: str) -> None:
    overwrite(repository.storage, key, repository.storage.get(packs_of(repository)[1]))


def delete(repository: Repository, key: str) -> None:
    repository.storage.delete(key)


@pytest.mark.parametrize("spoil", [delete, cut, put_another])
def test_a_pack_that_is_lost_altogether_comes_back(
    repository: Repository, source: Repository, spoil: Callable[[Repository, str], None]
) -> None:
    key = packs_of(repository)[0]
    spoil(repository, key)
    assert not verify(repository).ok
    result = heal(repository, source)
    assert [(one.damaged_key, one.key) for one in result.healed] == [(key, f"{key}.2")]
    assert result.affected == []
    assert reopen(repository).pack(pack_id(key) or b"").key == f"{key}.2"
    assert not DamagedChunks.load(reopen(repository))
    found = verify(repository)
    assert all(verdict.ok for verdict in found.backups)
    assert not [damage for damage in found.damages if not damage.redundant]


def test_a_missing_pack_needs_no_verify_before(repository: Repository, source: Repository) -> None:
    key = packs_of(repository)[0]
    repository.storage.delete(key)
    assert heal(repository, source).healed[0].damaged_key == key
    assert_whole(repository)


def test_copies_that_are_damaged_at_different_places_heal_each_other(
    repository: Repository, source: Repository
) -> None:
    key = packs_of(repository)[0]
    for chunk in (1, 4):
        flip_chunk(repository, key, chunk)
    for chunk in (0, 2, 3):
        flip_chunk(source, key, chunk)
    verify(repository)
    result = heal(repository, source)
    assert (len(result.healed), result.not_healed, result.affected) == (1, [], [])
    assert_whole(repository)


def test_what_is_damaged_in_both_is_named_with_the_backups_that_need_it(
    repository: Repository, source: Repository
) -> None:
    key = packs_of(repository)[0]
    for chunk in (1, 4):
        flip_chunk(repository, key, chunk)
    flip_chunk(source, key, 4)
    verify(repository)
    result = heal(repository, source)
    assert [one.key for one in result.healed] == [f"{key}.2"]
    assert [one.key for one in result.not_healed] == [f"{key}.2"]
    assert result.affected == sorted(manifest.backup for manifest in repository.manifests())
    known = DamagedChunks.load(reopen(repository))
    assert known.chunks(pack_id(key) or b"") == frozenset({4})
    again = heal(repository, source)
    assert (again.healed, len(again.not_healed)) == ([], 1)  # nothing is written again and again
    assert len(keys(repository.storage, "packs/")) == 3


def test_a_copy_that_does_not_hold_the_pack_heals_nothing(repository: Repository, source: Repository) -> None:
    key = packs_of(repository)[0]
    flip_chunk(repository, key, 0)
    source.storage.delete(key)
    verify(repository)
    result = heal(repository, source)
    assert (result.healed, [one.key for one in result.not_healed]) == ([], [key])
    assert len(result.affected) == 2


def test_a_pack_of_the_same_name_but_another_content_is_not_taken(repository: Repository, source: Repository) -> None:
    key = packs_of(repository)[0]
    identity = pack_id(key) or b""
    directory = repository.pack(identity).directory
    forged = source.objects.new_generation(identity, CLUSTER.page_size)
    for chunk in range(len(directory)):
        forged.add_pages(bytes(int(directory.raw[chunk])), secrets.token_bytes(16), 0xFFFF_FFFF)
    source.storage.delete(key)
    source.storage.put(pack_key(identity, 2), forged.finish().parts)
    flip_chunk(repository, key, 0)
    verify(repository)
    assert heal(repository, source).healed == []


def test_a_sibling_with_keys_of_its_own_heals(repository: Repository) -> None:
    key = packs_of(repository)[0]
    identity = pack_id(key) or b""
    sibling = new_repository(MemoryStorage(SetClock(), name="sibling"))
    assert sibling.id != repository.id
    reseal(repository, sibling, identity)
    flip_chunk(repository, key, 0)
    verify(repository)
    assert heal(repository, sibling).affected == []
    assert_whole(repository)


def reseal(repository: Repository, sibling: Repository, identity: bytes, masks: dict[int, int] | None = None) -> None:
    """Write a pack's next generation into another repository, or the same one."""
    pack = repository.pack(identity)
    data = repository.storage.get(pack.key)
    builder = sibling.objects.new_generation(identity, CLUSTER.page_size)
    opener = pack.opener()
    for chunk in range(len(pack.directory)):
        start, end = (int(one) for one in pack.directory.offsets[chunk : chunk + 2])
        raw = opener.open(chunk, data[start:end])
        mask = (masks or {}).get(chunk, full_mask(len(raw), CLUSTER.page_size))
        builder.add_pages(raw, pack.directory.fingerprint(chunk), mask)
    sibling.storage.put(pack_key(identity, 2), builder.finish().parts)


def test_a_pack_that_was_pruned_to_some_pages_is_healed_to_no_more_than_it_had() -> None:
    repository = new_repository()
    table = b"base/5/short"
    first = backup(repository, CLUSTER).manifest
    (key,) = keys(repository.storage, "packs/")
    identity = pack_id(key) or b""
    directory = repository.pack(identity).directory
    rows = repository.contents(first).find(table)
    assert rows is not None
    unused = int(rows.rows.position[0]) // 32
    backup(repository, CLUSTER.with_files({table: secrets.token_bytes(len(CLUSTER.files[table]))}))
    repository.put_mark(first.backup, "deleted")
    source = reopen(repository, named_copy(repository))
    reseal(repository, repository, identity, {unused: 0b101})
    assert verify(reopen(repository)).ok  # nobody needs the pages that are gone
    repository.storage.delete(key)
    flip_chunk(repository, f"{key}.2", 0)
    assert not verify(reopen(repository)).ok
    result = heal(repository, source)
    assert [one.key for one in result.healed] == [f"{key}.3"]
    healed = reopen(repository).pack(identity).directory
    assert healed.masks is not None
    assert int(healed.masks[unused]) == 0b101
    assert healed.complete(0)
    assert healed.digest() == directory.digest()


def test_a_dry_run_says_what_could_be_healed_and_writes_nothing(repository: Repository, source: Repository) -> None:
    first, second = packs_of(repository)
    flip_chunk(repository, first, 0)
    repository.storage.delete(second)
    verify(repository)
    source.storage.delete(second)
    before = keys(repository.storage, "")
    result = heal(repository, source, dry_run=True)
    assert keys(repository.storage, "") == before
    assert [(one.damaged_key, one.key) for one in result.healed] == [(first, "")]
    assert [one.key for one in result.not_healed] == [second]
    assert result.affected == [repository.manifests()[1].backup]


def test_nothing_known_to_be_damaged_is_nothing_to_do(repository: Repository, source: Repository) -> None:
    before = keys(repository.storage, "")
    result = heal(repository, source)
    assert (result.healed, result.not_healed, result.affected) == ([], [], [])
    assert keys(repository.storage, "") == before


def test_a_generation_that_does_not_read_back_is_taken_away_again(repository: Repository, source: Repository) -> None:
    key = packs_of(repository)[0]
    flip_chunk(repository, key, 0)
    verify(repository)
    faulty = FaultyStorage(repository.storage)
    faulty.flip_bit(f"{key}.2")
    with StopToken() as stop:
        result = heal_repository(reopen(repository, faulty), source, HealOptions(), stop, ignore)
    assert (result.healed, len(result.affected)) == ([], 2)
    assert "does not read back" in result.not_healed[0].what
    assert f"{key}.2" not in keys(repository.storage, "packs/")


def test_a_repository_is_not_healed_from_itself(repository: Repository) -> None:
    with pytest.raises(UsageError, match="from itself"):
        heal(repository, repository)


# -- metadata ------------------------------------------------------------------------------------------------------


def pairs(repository: Repository) -> list[tuple[str, str]]:
    found = [ring_keys(1)]
    for manifest in repository.manifests():
        found.append(manifest_keys(manifest.backup))
        found.append(meta_keys(bytes.fromhex(manifest.layers[0].spans[0][0])))
    return found


@pytest.mark.parametrize("copy", [0, 1])
@pytest.mark.parametrize("spoil", ["flip", "delete"])
def test_a_copy_of_metadata_is_healed_from_its_twin_here(made: Repository, copy: int, spoil: str) -> None:
    stranger = new_repository(MemoryStorage(SetClock(), name="stranger"))
    for pair in pairs(made):
        repository = reopen(made, copy_of(made.storage))
        content = repository.storage.get(pair[copy])
        if spoil == "flip":
            flip(repository.storage, pair[copy], len(content) * 2 // 3, 3)
        else:
            repository.storage.delete(pair[copy])
        result = heal(repository, stranger)
        assert [one.key for one in result.healed] == [pair[copy]]
        assert result.not_healed == []
        assert repository.storage.get(pair[copy]) == content
        assert verify(reopen(repository), VerifyOptions(depth="present")).ok


@pytest.mark.parametrize("copy", [0, 1])
def test_of_two_key_slots_that_differ_the_other_repository_tells_which_is_right(
    repository: Repository, source: Repository, copy: int
) -> None:
    spoilt = keys(repository.storage, "keys/")[copy]
    content = flip(repository.storage, spoilt, 100)
    assert [one.key for one in heal(repository, source).healed] == [spoilt]
    assert repository.storage.get(spoilt) == content
    assert_whole(repository)


def test_metadata_lost_in_both_copies_comes_from_a_copy_of_the_repository_and_its_packs_after_it(
    repository: Repository, source: Repository
) -> None:
    second = repository.manifests()[1]
    lost = [*manifest_keys(second.backup), *meta_keys(bytes.fromhex(second.layers[0].spans[0][0]))]
    for key in lost:
        flip(repository.storage, key, HEADER.size + 30)
    newer = packs_of(repository)[1]
    repository.storage.delete(newer)
    result = heal(repository, source)
    assert {one.damaged_key for one in result.healed} == {*lost, newer}
    assert (result.not_healed, result.affected) == ([], [])
    assert_whole(repository)


def test_metadata_lost_in_both_copies_stays_lost_when_the_other_repository_is_not_this_one(
    repository: Repository,
) -> None:
    second = repository.manifests()[1]
    for key in manifest_keys(second.backup):
        flip(repository.storage, key, HEADER.size + 30)
    stranger = new_repository(MemoryStorage(SetClock(), name="stranger"))
    result = heal(repository, stranger)
    assert {one.key for one in result.not_healed} == set(manifest_keys(second.backup))
    assert result.affected == [second.backup]


def test_a_mark_that_is_damaged_comes_from_a_copy_of_the_repository(repository: Repository) -> None:
    repository.put_mark(repository.manifests()[0].backup, "pin")
    (mark,) = keys(repository.storage, "marks/")
    source = reopen(repository, named_copy(repository))
    flip(repository.storage, mark, HEADER.size + 10)
    assert [one.key for one in heal(repository, source).healed] == [mark]
    assert [one.name for one in reopen(repository).marks()] == ["pin"]


def test_a_stop_between_taking_away_and_putting_back_loses_nothing(repository: Repository, source: Repository) -> None:
    second = repository.manifests()[1]
    spoilt = manifest_keys(second.backup)[0]
    flip(repository.storage, spoilt, HEADER.size + 30)

    def fails(call: Call) -> None:
        if call.method == "put" and call.key == spoilt:
            raise StoreUnavailable("put: input/output error")

    faulty = FaultyStorage(repository.storage, hook=fails)
    with StopToken() as stop, pytest.raises(StoreUnavailable):
        heal_repository(reopen(repository, faulty), source, HealOptions(), stop, ignore)
    assert spoilt not in keys(repository.storage, "manifests/")
    assert reopen(repository).manifest(second.backup) == second  # its twin is there
    assert [one.key for one in heal(repository, source).healed] == [spoilt]
    assert_whole(repository)


def test_metadata_is_left_alone_while_somebody_else_is_at_work(repository: Repository, source: Repository) -> None:
    spoilt = manifest_keys(repository.manifests()[1].backup)[0]
    repository.storage.delete(spoilt)
    lease = repository.take_lease("backup", "7")
    try:
        result = heal(repository, source)
    finally:
        lease.release()
    assert result.healed == []
    assert "a backup is running" in result.not_healed[0].what
    assert spoilt not in keys(repository.storage, "manifests/")


def test_copies_that_differ_though_both_are_whole_are_left_alone(repository: Repository) -> None:
    name = repository.manifests()[0].backup
    first, second = manifest_keys(name)
    plain = repository.manifest(name).to_json()
    repository.storage.delete(second)
    repository.objects.put_small(Kind.MANIFEST, first, [second], plain)
    result = heal(repository, new_repository(MemoryStorage(SetClock(), name="stranger")))
    assert result.healed == []
    assert "differ" in result.not_healed[0].what
