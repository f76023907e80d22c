"""verify finds layers that are authentic and still wrong: rows beyond files or packs, tables that name another pack."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from datamanager.base.errors import IntegrityError
from datamanager.base.pipeline import StopToken
from datamanager.engine.verify.rows import HeldPack, check_rows
from datamanager.engine.verify.run import VerifyOptions, VerifyResult
from datamanager.repository.commit import publish
from datamanager.repository.format import ZERO_PACK
from datamanager.repository.layers.builder import LayerBuilder
from datamanager.repository.layers.layer import FileKind
from datamanager.repository.layers.reader import LayerReader
from datamanager.repository.layers.stack import push_layer
from datamanager.repository.manifest import LayerReference
from datamanager.repository.repository import Repository
from tests.engine.synthetic_source import make_cluster
from tests.repository.parts import backup, new_repository, verify

PAGE = 1024
Row = tuple[int, int, int, int]


def layer_of(*files: tuple[int, list[Row]]) -> LayerReader:
    """A layer of files given by size and rows, with three packs in its table."""
    builder = LayerBuilder()
    for number in range(3):
        builder.pack_number(bytes([number]) * 16)
        builder.set_digest(bytes([number]) * 16, bytes(16))
    for number, (size, rows) in enumerate(files):
        builder.begin_file(b"file%d" % number, FileKind.REGULAR, 0o600)
        for row in rows:
            builder.add_row(*row)
        builder.end_file(size)
    encoded = builder.encode()
    chunks = encoded.chunks()
    return LayerReader(chunks.__getitem__, len(encoded.blocks), len(encoded.table), len(encoded.index))


def faults_of(layer: LayerReader, *lengths: int) -> tuple[list[bytes], set[int]]:
    """Impossible files, and packs that miss a page; pack 0 has chunks of these raw bytes, the others were not read."""
    with StopToken() as stop:
        faults = check_rows(layer, PAGE, {0: HeldPack(np.array(lengths, np.uint32))}, stop)
    return faults.files, set(faults.missing)


@pytest.mark.parametrize(
    ("size", "rows", "lengths"),
    [
        (32 * PAGE, [(0, 32, 0, 0)], [32 * PAGE]),
        (32 * PAGE, [(0, 32, 0, 32)], [5, 32 * PAGE]),
        (70 * PAGE, [(0, 70, 0, 0)], [32 * PAGE, 32 * PAGE, 6 * PAGE]),
        (70 * PAGE, [(0, 70, 0, 0)], [32 * PAGE, 32 * PAGE, 32 * PAGE]),
        (70 * PAGE - 5, [(0, 70, 0, 0)], [32 * PAGE, 32 * PAGE, 6 * PAGE - 5]),
        (1, [(0, 1, 0, 0)], [1]),
        (10 * PAGE, [(3, 2, 0, 7)], [9 * PAGE]),
        (10**9 * PAGE, [(10**8, 5, ZERO_PACK, 0)], []),
        (0, [], []),
    ],
)
def test_rows_whose_every_byte_is_stored_pass(size: int, rows: list[Row], lengths: list[int]) -> None:
    assert faults_of(layer_of((size, rows)), *lengths) == ([], set())


@pytest.mark.parametrize(
    ("size", "rows", "lengths"),
    [
        (32 * PAGE, [(0, 32, 0, 0)], [31 * PAGE]),
        (32 * PAGE, [(0, 32, 0, 0)], [32 * PAGE - 1]),
        (32 * PAGE, [(0, 32, 0, 0)], [0]),
        (32 * PAGE, [(0, 32, 0, 0)], []),
        (32 * PAGE, [(0, 32, 0, 32)], [32 * PAGE]),
        (70 * PAGE, [(0, 70, 0, 0)], [32 * PAGE, 31 * PAGE, 32 * PAGE]),
        (70 * PAGE, [(0, 70, 0, 0)], [32 * PAGE, 0, 32 * PAGE]),
        (70 * PAGE, [(0, 70, 0, 0)], [32 * PAGE, 32 * PAGE]),
        (70 * PAGE - 5, [(0, 70, 0, 0)], [32 * PAGE, 32 * PAGE, 6 * PAGE - 6]),
        (71 * PAGE - 5, [(0, 70, 0, 0)], [32 * PAGE, 32 * PAGE, 6 * PAGE - 5]),
        (10 * PAGE, [(3, 2, 0, 7)], [8 * PAGE]),
        (4 * PAGE, [(0, 1, 0, 2**32 - 1)], [32 * PAGE]),
    ],
)
def test_rows_that_need_a_byte_that_is_not_stored_are_found(size: int, rows: list[Row], lengths: list[int]) -> None:
    assert faults_of(layer_of((size, rows)), *lengths) == ([], {0})


@pytest.mark.parametrize(
    ("size", "rows"),
    [
        (5 * PAGE, [(0, 6, 1, 0)]),
        (5 * PAGE + 1, [(0, 7, 1, 0)]),
        (0, [(0, 1, 1, 0)]),
    ],
)
def test_rows_that_are_impossible_name_their_file_and_no_other(size: int, rows: list[Row]) -> None:
    layer = layer_of((3 * PAGE, [(0, 3, 1, 0)]), (size, rows), (3 * PAGE, [(0, 3, 1, 0)]))
    assert faults_of(layer)[0] == [b"file1"]


@pytest.mark.parametrize("rows", [[(2**32 - 1, 2, 1, 0)], [(1, 0, 1, 0)]])
def test_rows_that_no_file_can_have_make_the_layer_unreadable(rows: list[Row]) -> None:
    with pytest.raises(IntegrityError, match="malformed block"):
        faults_of(layer_of((50 * PAGE, rows)))


def test_packs_that_were_not_read_are_not_judged() -> None:
    layer = layer_of((64 * PAGE, [(0, 32, 1, 0), (32, 32, 2, 99)]))
    assert faults_of(layer) == ([], set())


def test_many_files_are_judged_in_several_batches() -> None:
    rows: list[Row] = [(number * 2, 1, 0, number % 32) for number in range(40_000)]
    layer = layer_of(*[(80_000 * PAGE, rows)] * 4, (80_000 * PAGE, [*rows, (79_999, 1, 0, 40)]))
    assert faults_of(layer, 32 * PAGE) == ([], {0})
    with StopToken() as stop:
        counted = check_rows(layer, PAGE, {}, stop)
    assert (counted.file_count, counted.row_count) == (5, 200_001)


# -- through the repository ----------------------------------------------------------------------------------------


def published(change: Callable[[LayerBuilder, bytes, bytes], None], **manifest: object) -> VerifyResult:
    """Verify a repository with one honest backup and one whose layer was made by ``change``."""
    repository = new_repository()
    first = backup(repository, make_cluster(pages=4, tables=1)).manifest
    ((pack, digest), *_) = repository.contents(first).packs
    builder = LayerBuilder()
    change(builder, pack, digest)
    with StopToken() as stop:
        (reference,) = push_layer(repository, [builder], [], stop, lambda size: None)
    forge(repository, reference, **manifest)
    return verify(repository, VerifyOptions())


def forge(repository: Repository, reference: LayerReference, **changes: object) -> None:
    first = repository.manifests()[0]
    name = f"20250302T000000Z-{secrets.token_hex(4)}"
    previous = {"backup": first.backup, "sha256": repository.manifest_sha256(first.backup)}
    wrong: dict[str, object] = {"backup": name, "sequence": 2, "previous": previous, "layers": [reference]}
    lease = repository.take_lease("backup")
    publish(repository, lease, replace(first, **{**wrong, **changes}))  # type: ignore[arg-type]
    lease.release()


def add_file(builder: LayerBuilder, size: int, row: Row) -> None:
    builder.begin_file(b"base/1", FileKind.REGULAR, 0o600)
    builder.add_row(*row)
    builder.end_file(size)


def test_a_layer_that_points_beyond_a_pack_fails_its_backup_alone() -> None:
    def change(builder: LayerBuilder, pack: bytes, digest: bytes) -> None:
        number = builder.pack_number(pack)
        builder.set_digest(pack, digest)
        add_file(builder, 8192, (0, 1, number, 32 * 10_000))

    result = published(change)
    assert [verdict.ok for verdict in result.backups] == [True, False]
    (damage,) = result.damages
    assert damage.key.startswith("meta/")
    assert "points to pages" in damage.what


def test_a_layer_with_impossible_rows_fails_its_backup_alone() -> None:
    def change(builder: LayerBuilder, pack: bytes, digest: bytes) -> None:
        number = builder.pack_number(pack)
        builder.set_digest(pack, digest)
        add_file(builder, 100, (5, 1, number, 0))

    result = published(change)
    assert [verdict.ok for verdict in result.backups] == [True, False]
    assert "impossible rows for 1 files: base/1" in result.damages[0].what


def test_a_table_that_names_another_content_fails_its_backup_alone() -> None:
    def change(builder: LayerBuilder, pack: bytes, digest: bytes) -> None:
        number = builder.pack_number(pack)
        builder.set_digest(pack, digest[::-1])
        add_file(builder, 3, (0, 1, number, 0))

    result = published(change)
    assert [verdict.ok for verdict in result.backups] == [True, False]
    assert "another pack than the backup was made with" in result.damages[0].what


def test_a_manifest_that_miscounts_its_layer_is_found() -> None:
    repository = new_repository()
    first = backup(repository, make_cluster(pages=4, tables=1)).manifest
    forge(repository, replace(first.layers[0], files=7))
    result = verify(repository)
    assert [verdict.ok for verdict in result.backups] == [True, False]
    assert "other than its manifest says" in result.damages[0].what


def test_a_layer_of_nothing_is_a_layer() -> None:
    repository = new_repository()
    first = backup(repository, make_cluster(pages=4, tables=1)).manifest
    with StopToken() as stop:
        (nothing,) = push_layer(repository, [LayerBuilder()], [], stop, lambda size: None)
    forge(repository, nothing, layers=[nothing, *first.layers])
    result = verify(repository)
    assert result.ok, result
    second = repository.manifests()[1]
    assert len(list(repository.contents(second).files())) == first.files
