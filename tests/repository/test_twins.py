"""Twins: a damaged first copy is told and read around, and only damage to both is an error."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from datamanager.base.errors import (
    DataManagerError,
    FormatUnsupported,
    IntegrityError,
    NotFound,
    ObjectMissing,
    StoreUnavailable,
    StoreUnplugged,
)
from datamanager.repository.format import HEADER, manifest_keys, meta_keys, pack_id, pack_key
from datamanager.repository.objects import worst
from datamanager.repository.repository import Repository
from datamanager.storage.base import Storage
from datamanager.storage.memory import MemoryStorage
from tests.engine.synthetic_source import make_cluster
from tests.repository.parts import SetClock, backup, flip, keys, new_repository, overwrite, reopen
from tests.storage.faults import Call, FaultyStorage

Spoil = Callable[[Storage, str], object]

SPOILS: dict[str, Spoil] = {
    "flipped in the header": lambda storage, key: flip(storage, key, 9),
    "looks like a newer format": lambda storage, key: flip(storage, key, 7, 1),
    "flipped in the content": lambda storage, key: flip(storage, key, HEADER.size + 3),
    "flipped at the end": lambda storage, key: flip(storage, key, -1),
    "missing": lambda storage, key: storage.delete(key),
    "cut short": lambda storage, key: overwrite(storage, key, storage.get(key)[:-5]),
    "cut to a header": lambda storage, key: overwrite(storage, key, storage.get(key)[:64]),
    "cut to nearly nothing": lambda storage, key: overwrite(storage, key, b"D"),
    "made of zeros": lambda storage, key: overwrite(storage, key, bytes(storage.stat(key).size)),
}


@pytest.fixture
def repository() -> Repository:
    repository = new_repository()
    backup(repository, make_cluster(pages=6, tables=2))
    return repository


def read_everything(repository: Repository) -> int:
    """Manifest, layers and rows of the only backup; the number of files."""
    (manifest,) = repository.manifests()
    return sum(1 for _ in repository.contents(manifest).files())


def twins_of(repository: Repository, what: str) -> tuple[str, str]:
    (manifest,) = repository.manifests()
    if what == "manifest":
        return manifest_keys(manifest.backup)
    return meta_keys(bytes.fromhex(manifest.layers[0].spans[0][0]))


@pytest.mark.parametrize("what", ["manifest", "layer"])
@pytest.mark.parametrize("spoil", SPOILS)
def test_a_damaged_first_copy_is_told_and_read_around(repository: Repository, what: str, spoil: str) -> None:
    files = read_everything(repository)
    first, second = twins_of(repository, what)
    told: list[str] = []
    other = reopen(repository, told=told)
    SPOILS[spoil](repository.storage, first)
    assert read_everything(other) == files
    assert told
    assert all(first in message and "second copy was used" in message for message in told)
    SPOILS[spoil](repository.storage, second)
    manifest_gone = (what, spoil) == ("manifest", "missing")  # then no name tells that there was a backup
    with pytest.raises((IntegrityError, ObjectMissing, FormatUnsupported, ValueError if manifest_gone else NotFound)):
        read_everything(reopen(repository))


@pytest.mark.parametrize("what", ["manifest", "layer"])
def test_a_damaged_second_copy_does_no_harm(repository: Repository, what: str) -> None:
    flip(repository.storage, twins_of(repository, what)[1], HEADER.size + 3)
    assert read_everything(reopen(repository))


def test_damage_to_both_copies_is_an_integrity_error_that_names_the_object(repository: Repository) -> None:
    for what in ("layer", "manifest"):
        pair = twins_of(repository, what)
        for key in pair:
            flip(repository.storage, key, HEADER.size + 3)
        with pytest.raises(IntegrityError, match=pair[0]):
            read_everything(reopen(repository))
        for key in pair:
            flip(repository.storage, key, HEADER.size + 3)


def test_a_bad_sector_in_a_first_copy_is_read_around(repository: Repository) -> None:
    bad = {twins_of(repository, what)[0] for what in ("manifest", "layer")}

    def hook(call: Call) -> None:
        if call.method == "get" and call.key in bad:
            raise StoreUnavailable(f"get {call.key}: input/output error")

    told: list[str] = []
    assert read_everything(reopen(repository, FaultyStorage(repository.storage, hook=hook), told))
    assert len(told) >= 2


def test_a_drive_that_is_gone_is_not_taken_for_damage(repository: Repository) -> None:
    gone = False

    def hook(call: Call) -> None:
        if gone:
            raise StoreUnplugged("the drive is not there")

    other = reopen(repository, FaultyStorage(repository.storage, hook=hook))
    gone = True
    with pytest.raises(StoreUnplugged):
        read_everything(other)


@pytest.mark.parametrize("what", ["manifest", "layer"])
def test_a_short_read_of_a_first_copy_is_read_around(repository: Repository, what: str) -> None:
    faulty = FaultyStorage(repository.storage, seed=3)
    other = reopen(repository, faulty)
    faulty.short_read(twins_of(repository, what)[0])
    assert read_everything(other)


def test_a_short_read_of_a_pack_is_an_error_and_never_wrong_bytes(repository: Repository) -> None:
    (key,) = keys(repository.storage, "packs/")
    identity = pack_id(key) or b""
    for seed in range(30):
        faulty = FaultyStorage(repository.storage, seed=seed)
        faulty.short_read(key)
        other = reopen(repository, faulty)
        with pytest.raises(IntegrityError):
            other.pack(identity)
        assert len(other.pack(identity).directory) > 0  # the next read is whole again


def test_of_all_failures_damage_says_most() -> None:
    failures: list[DataManagerError] = [
        StoreUnavailable("d"),
        ObjectMissing("c"),
        FormatUnsupported("b"),
        IntegrityError("a"),
    ]
    while failures:
        assert worst(failures) is failures[-1]
        failures.pop()


# -- listing ----------------------------------------------------------------------------------------------------------


def test_one_damaged_mark_hides_no_backup_and_is_told(repository: Repository) -> None:
    (name,) = repository.backup_ids()
    repository.put_mark(name, "pin")
    (key,) = keys(repository.storage, "marks/")
    flip(repository.storage, key, HEADER.size)
    told: list[str] = []
    other = reopen(repository, told=told)
    assert other.backup_ids() == [name]
    assert other.marks() == []
    assert any(key in message for message in told)


def test_a_damaged_lone_manifest_does_not_stop_the_next_backup(repository: Repository) -> None:
    (lost,) = repository.backup_ids()
    for key in manifest_keys(lost):
        flip(repository.storage, key, HEADER.size)
    result = backup(reopen(repository), make_cluster(pages=6, tables=2))
    assert any(lost in warning for warning in result.warnings)
    assert result.manifest.bytes_reused > 0  # its packs are authenticated and used again


def test_a_damaged_layer_does_not_stop_the_next_backup(repository: Repository) -> None:
    for key in twins_of(repository, "layer"):
        flip(repository.storage, key, HEADER.size)
    result = backup(reopen(repository), make_cluster(pages=6, tables=2))
    assert result.warnings
    assert len(list(repository.contents(result.manifest).files())) == result.manifest.files


def test_a_damaged_pack_is_stored_anew_by_the_next_backup(repository: Repository) -> None:
    cluster = make_cluster(pages=6, tables=2)
    (key,) = keys(repository.storage, "packs/")
    flip(repository.storage, key, -20)
    result = backup(reopen(repository), cluster)
    assert result.manifest.bytes_reused == 0
    repository.storage.delete(key)
    assert backup(reopen(repository), cluster).manifest.bytes_reused > 0


def test_a_pack_on_a_bad_sector_is_tried_once_and_not_for_every_chunk(repository: Repository) -> None:
    (bad,) = keys(repository.storage, "packs/")

    def hook(call: Call) -> None:
        if call.key == bad and call.method == "get":
            raise StoreUnavailable(f"get {call.key}: input/output error")

    faulty = FaultyStorage(repository.storage, hook=hook)
    result = backup(reopen(repository, faulty), make_cluster(pages=6, tables=2))
    assert result.manifest.bytes_reused == 0
    # Two threads compress, so the second may ask once more before the first knows.
    assert sum(call.key == bad and call.method == "get" for call in faulty.calls) <= 2


def test_strange_files_in_the_folders_are_ignored(repository: Repository) -> None:
    for key in ("packs/Thumbs.db", "packs/00/desktop.ini", "manifests/copy", "packs/00/" + "11" * 16):
        repository.storage.put(key, [b"?"])
    other = reopen(repository)
    assert len(other.manifests()) == 1
    assert backup(other, make_cluster(pages=6, tables=2)).manifest.bytes_reused > 0


# -- finding ----------------------------------------------------------------------------------------------------------


def test_backups_are_found_by_name_beginning_end_and_as_latest() -> None:
    clock = SetClock()
    repository = new_repository(MemoryStorage(clock), clock)
    cluster = make_cluster(pages=4, tables=1)
    first = backup(repository, cluster).manifest
    clock.advance(86_400)
    second = backup(repository, cluster).manifest
    assert repository.find(first.backup) == first
    assert repository.find(first.backup[:8]) == first
    assert repository.find(second.backup[-8:]) == second
    assert repository.find("latest") == second
    assert repository.find("latest", "office") == second
    with pytest.raises(NotFound, match="2 backups match"):
        repository.find("2025")
    with pytest.raises(NotFound, match="0 backups match"):
        repository.find("2031")
    with pytest.raises(NotFound, match="holds none"):
        repository.find("latest", "another cluster")
    with pytest.raises(NotFound, match="not the name of a backup"):
        repository.manifest("../../etc/passwd")


def test_order_is_by_sequence_and_never_by_the_clock() -> None:
    clock = SetClock()
    repository = new_repository(MemoryStorage(clock), clock)
    cluster = make_cluster(pages=4, tables=1)
    names = []
    for _ in range(3):
        names.append(backup(repository, cluster).manifest.backup)
        clock.advance(-86_400)
    assert [manifest.backup for manifest in repository.manifests()] == names
    assert [manifest.sequence for manifest in repository.manifests()] == [1, 2, 3]
    assert repository.find("latest").backup == names[-1]


def test_a_deleted_backup_is_not_listed_and_an_undeleted_one_is(repository: Repository) -> None:
    (name,) = repository.backup_ids()
    repository.put_mark(name, "deleted")
    assert repository.backup_ids() == []
    with pytest.raises(NotFound):
        repository.find("latest")
    repository.put_mark(name, "undeleted")
    assert repository.backup_ids() == [name]
    assert [(mark.sequence, mark.name) for mark in repository.marks()] == [(1, "deleted"), (2, "undeleted")]


def test_a_pack_is_named_by_its_key_and_nothing_else_is_one() -> None:
    identity = bytes(range(16))
    assert pack_id(pack_key(identity)) == identity
    assert [pack_id(key) for key in meta_keys(identity)] == [identity, identity]
    for key in ("packs/00/zz", "packs/01/" + "00" * 16, "packs/00/" + "00" * 17, "config", "packs/00/" + "0A" * 16):
        assert pack_id(key) is None
