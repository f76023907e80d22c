"""verify judges a pack as readers find it: by its newest generation, by its masks, and by what composed rows need."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from datamanager.base.pipeline import StopToken
from datamanager.engine.verify.rows import HeldPack, check_rows
from datamanager.engine.verify.run import VerifyOptions
from datamanager.repository.commit import publish
from datamanager.repository.damaged import DamagedChunks, DamagedItem, drop_settled, record
from datamanager.repository.format import HEADER, pack_id, pack_key
from datamanager.repository.layers.builder import LayerBuilder
from datamanager.repository.layers.layer import FileKind
from datamanager.repository.layers.stack import push_layer
from datamanager.repository.manifest import Manifest
from datamanager.repository.repository import Repository
from tests.engine.synthetic_source import make_cluster
from tests.engine.test_verify_rows import PAGE, Row, layer_of
from tests.repository.parts import backup, copy_of, flip, keys, new_repository, overwrite, reopen, verify

CLUSTER = make_cluster(pages=60, tables=2)
TABLE = b"base/5/short"  # 34 pages
DEPTHS = [
    VerifyOptions(depth="present"),
    VerifyOptions(depth="sample", sample_percent=100),
    VerifyOptions(depth="rolling", rolling_days=1),
    VerifyOptions(depth="full"),
]


@pytest.fixture(scope="module")
def made() -> Repository:
    repository = new_repository()
    backup(repository, CLUSTER)
    return repository


@pytest.fixture
def repository(made: Repository) -> Repository:
    return reopen(made, copy_of(made.storage))


def the_pack(repository: Repository) -> tuple[bytes, str]:
    key = min(keys(repository.storage, "packs/"), key=len)
    return pack_id(key) or b"", key


def write_again(repository: Repository, generation: int, masks: Mapping[int, int]) -> str:
    """The pack's next generation, whole but for the chunks in ``masks``."""
    identity, key = the_pack(repository)
    pack = repository.pack(identity)
    data = repository.storage.get(pack.key)
    opener = pack.opener()
    builder = repository.objects.new_generation(identity, CLUSTER.page_size)
    for chunk in range(len(pack.directory)):
        start, end = (int(one) for one in pack.directory.offsets[chunk : chunk + 2])
        builder.add_pages(opener.open(chunk, data[start:end]), pack.directory.fingerprint(chunk), masks.get(chunk, -1))
    repository.storage.put(pack_key(identity, generation), builder.finish().parts)
    return f"{key}.{generation}"


def chunk_of(repository: Repository, path: bytes) -> int:
    entry = repository.contents(repository.manifests()[0]).find(path)
    assert entry is not None
    return int(entry.rows.position[0]) // 32


def newer_backup(repository: Repository, *paths: bytes) -> Manifest:
    """A backup of two layers, the newer of which says that these files are empty; the first backup is deleted."""
    first = repository.manifests()[0]
    builder = LayerBuilder()
    for path in paths:
        builder.begin_file(path, FileKind.REGULAR, 0o600)
        builder.end_file(0)
    with StopToken() as stop:
        references = push_layer(repository, [builder], [], stop, lambda size: None)
    previous = {"backup": first.backup, "sha256": repository.manifest_sha256(first.backup)}
    second = replace(
        first,
        backup=f"20250302T000000Z-{secrets.token_hex(4)}",
        sequence=2,
        previous=previous,
        layers=[*references, *first.layers],
    )
    lease = repository.take_lease("backup")
    publish(repository, lease, second)
    lease.release()
    repository.put_mark(first.backup, "deleted")
    return second


@pytest.mark.parametrize("options", DEPTHS, ids=lambda options: options.depth)
def test_a_pack_written_again_with_all_that_is_needed_passes(repository: Repository, options: VerifyOptions) -> None:
    _, key = the_pack(repository)
    write_again(repository, 2, {})
    repository.storage.delete(key)
    result = verify(repository, options)
    assert result.ok
    assert result.warnings == []
    assert result.unreferenced_packs == []
    assert result.packs == 1


@pytest.mark.parametrize("options", DEPTHS[1:], ids=lambda options: options.depth)
def test_a_page_that_a_backup_needs_and_no_generation_has_is_found(
    repository: Repository, options: VerifyOptions
) -> None:
    identity, key = the_pack(repository)
    chunk = chunk_of(repository, TABLE)
    again = write_again(repository, 2, {chunk: 0b1011})
    repository.storage.delete(key)
    result = verify(repository, options)
    (damage,) = result.damages
    assert f"points to pages that {again} does not hold" in damage.what
    assert [verdict.ok for verdict in result.backups] == [False]
    assert DamagedChunks.load(reopen(repository)).chunks(identity) == frozenset({chunk})


def test_a_page_that_only_an_older_generation_has_is_there(repository: Repository) -> None:
    write_again(repository, 2, {chunk_of(repository, TABLE): 0b1011})
    assert verify(repository).ok


def test_a_damaged_chunk_of_a_masked_generation_is_found(repository: Repository) -> None:
    identity, key = the_pack(repository)
    again = write_again(repository, 2, {})
    repository.storage.delete(key)
    flip(repository.storage, again, HEADER.size + 5)
    (damage,) = verify(repository).damages
    assert (damage.key, damage.redundant) == (again, False)
    assert DamagedChunks.load(reopen(repository)).chunks(identity) == frozenset({0})


def test_a_superseded_generation_may_be_damaged(repository: Repository) -> None:
    _, key = the_pack(repository)
    flip(repository.storage, key, HEADER.size + 5)
    whole = copy_of(repository.storage)
    flip(whole, key, HEADER.size + 5)
    again = write_again(reopen(repository, whole), 2, {})
    repository.storage.put(again, [whole.get(again)])
    result = verify(reopen(repository))
    assert result.ok
    assert result.warnings == []
    assert keys(repository.storage, "damaged/") == []


def test_a_newest_generation_that_cannot_be_read_gives_way_and_is_told(repository: Repository) -> None:
    again = write_again(repository, 2, {})
    overwrite(repository.storage, again, repository.storage.get(again)[:-5])
    result = verify(reopen(repository))
    (damage,) = result.damages
    assert (damage.key, damage.redundant) == (again, True)
    assert all(verdict.ok for verdict in result.backups)
    assert not DamagedChunks.load(reopen(repository))


# -- layers over layers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", DEPTHS, ids=lambda options: options.depth)
def test_a_page_that_newer_layers_have_painted_over_may_be_gone(repository: Repository, options: VerifyOptions) -> None:
    chunk = chunk_of(repository, TABLE)
    newer_backup(repository, TABLE)
    _, key = the_pack(repository)
    write_again(repository, 2, {chunk: 0, chunk + 1: 0})
    repository.storage.delete(key)
    result = verify(reopen(repository), options)
    assert result.ok, result.damages
    assert len(result.backups) == 1


@pytest.mark.parametrize("options", DEPTHS, ids=lambda options: options.depth)
def test_a_pack_that_newer_layers_have_painted_over_may_be_gone(repository: Repository, options: VerifyOptions) -> None:
    contents = repository.contents(repository.manifests()[0])
    newer_backup(repository, *(entry.path for entry in contents.files() if len(entry.rows.first)))
    repository.storage.delete(the_pack(repository)[1])
    result = verify(reopen(repository), options)
    assert result.ok, result.damages
    assert result.warnings == []


def test_a_page_under_several_layers_that_is_still_needed_is_missed(repository: Repository) -> None:
    chunk = chunk_of(repository, TABLE)
    second = newer_backup(repository, b"base/5/one_byte")
    identity, key = the_pack(repository)
    write_again(repository, 2, {chunk: 0})
    repository.storage.delete(key)
    result = verify(reopen(repository))
    (damage,) = result.damages
    assert damage.backups_affected == [second.backup]
    assert [(one.key, one.chunks) for one in result.damaged] == [(pack_key(identity, 2), (chunk,))]


# -- damaged lists -------------------------------------------------------------------------------------------------


def test_what_a_list_says_of_a_generation_ends_when_readers_take_another(repository: Repository) -> None:
    identity, key = the_pack(repository)
    record(repository, [DamagedItem(key, (1,), "spoilt")])
    assert DamagedChunks.load(reopen(repository)).has(identity, 1)
    again = write_again(repository, 2, {})
    assert not DamagedChunks.load(reopen(repository)).has(identity, 1)
    record(repository, [DamagedItem(again, (2,), "spoilt")])
    assert DamagedChunks.load(reopen(repository)).chunks(identity) == frozenset({2})
    assert len(drop_settled(reopen(repository), {identity})) == 1
    repository.storage.delete(again)
    assert len(drop_settled(reopen(repository), {identity})) == 1
    assert keys(repository.storage, "damaged/") == []


# -- rows and masks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "masks", "chunks"),
    [
        ([(0, 3, 0, 0)], [0b111], set()),
        ([(0, 3, 0, 0)], [0b101], {0}),
        ([(0, 1, 0, 0), (1, 1, 0, 2)], [0b101], set()),
        ([(0, 40, 0, 0)], [0xFFFF_FFFF, 0xFF], set()),
        ([(0, 40, 0, 0)], [0xFFFF_FFFF, 0xFE], {1}),
        ([(0, 40, 0, 30)], [0xC000_0000, 0xFFFF_FFFF, 0b111111], set()),
        ([(0, 40, 0, 30)], [0xC000_0000, 0xFFFE_FFFF, 0b111111], {1}),
        ([(0, 40, 0, 30)], [0x8000_0000, 0xFFFF_FFFF, 0b011111], {0, 2}),
    ],
)
def test_every_page_of_a_row_must_be_in_its_mask(rows: list[Row], masks: list[int], chunks: set[int]) -> None:
    held = HeldPack(np.full(len(masks), 32 * PAGE, np.uint32), np.array(masks, np.uint32))
    with StopToken() as stop:
        faults = check_rows(layer_of((100 * PAGE, rows)), PAGE, {0: held}, stop)
    assert faults.missing.get(0, set()) == chunks
    assert faults.suspects == ({b"file0"} if chunks else set())
