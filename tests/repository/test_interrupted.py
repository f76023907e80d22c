"""A backup that ends at any call of the store leaves whole backups only, and the next one goes on from there."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from datamanager.base.errors import (
    Cancelled,
    DataManagerError,
    IntegrityError,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreUnavailable,
    StoreUnplugged,
)
from datamanager.base.pipeline import StopToken
from datamanager.engine.backup.run import run_backup
from datamanager.engine.backup.session import BackupOptions
from datamanager.repository.format import folders, manifest_keys
from datamanager.repository.lease import STALE_SECONDS
from datamanager.repository.repository import Repository
from datamanager.storage.base import Storage
from datamanager.storage.local import LocalStorage
from datamanager.storage.memory import MemoryStorage
from tests.engine.synthetic_source import SyntheticCluster, SyntheticSource, make_cluster
from tests.repository.parts import SetClock, backup, copy_of, keys, new_repository, reopen, verify
from tests.storage.faults import Call, FaultyStorage, Hook

CLUSTER = make_cluster(page_size=1024, pages=6, tables=2)
CHANGED = CLUSTER.with_changed_pages(9, 0.2)


class Killed(Exception):
    """The process ends here: nothing of it runs on, no cleaning up either."""


def kill_at(number: int) -> Hook:
    def hook(call: Call) -> None:
        if call.number >= number:
            raise Killed

    return hook


def fail_at(number: int, error: Callable[[str], StoreError]) -> Hook:
    def hook(call: Call) -> None:
        if call.number == number:
            raise error(f"{call.method} {call.key}: it failed")

    return hook


def calls_of(repository: Repository, cluster: SyntheticCluster) -> int:
    """How many calls a whole backup makes; the store gets that backup."""
    counting = FaultyStorage(repository.storage)
    backup(Repository(counting, repository.ring, repository.clock), cluster)
    return len(counting.calls)


def begin(with_parent: bool) -> Repository:
    repository = new_repository()
    if with_parent:
        backup(repository, CLUSTER)
    return repository


BEGUN = {with_parent: begin(with_parent) for with_parent in (False, True)}


def fresh(with_parent: bool) -> tuple[Repository, SetClock]:
    """A repository, empty or with a first backup, and the clock of its store."""
    clock = SetClock()
    begun = BEGUN[with_parent]
    return Repository(copy_of(begun.storage, clock), begun.ring, clock), clock


CALLS = {with_parent: calls_of(fresh(with_parent)[0], CHANGED) for with_parent in (False, True)}


def check_afterwards(repository: Repository, clock: SetClock, before: list[str]) -> None:
    """It opens, holds only whole backups, verifies clean, and the next backup succeeds and uses what is stored."""
    clock.advance(STALE_SECONDS + 1)
    other = reopen(repository)
    listed = other.backup_ids()
    assert set(before) <= set(listed)
    result = verify(other)
    assert all(verdict.ok for verdict in result.backups)
    half_committed = {manifest_keys(name)[0] for name in set(listed) - set(before)}
    assert {damage.key for damage in result.damages} <= half_committed
    assert [warning for warning in result.warnings if "lease" not in warning] == []
    for name in listed:
        manifest = other.manifest(name)
        assert len(list(other.contents(manifest).files())) == manifest.files

    had_packs = bool(keys(repository.storage, "packs/"))
    following = backup(reopen(repository), CHANGED)
    assert following.warnings == []
    assert (following.manifest.bytes_reused > 0) == had_packs
    assert following.manifest.sequence == len(listed) + 1
    # What was cut off may leave a manifest with one copy; everything since is whole.
    assert {damage.key for damage in verify(reopen(repository)).damages} <= half_committed


@pytest.mark.parametrize("with_parent", [False, True])
def test_killed_at_any_call_it_leaves_whole_backups_only(with_parent: bool) -> None:
    committed = 0
    for number in range(1, CALLS[with_parent] + 1):
        repository, clock = fresh(with_parent)
        before = repository.backup_ids()
        dying = Repository(FaultyStorage(repository.storage, hook=kill_at(number)), repository.ring, clock)
        with pytest.raises(Killed):
            backup(dying, CHANGED)
        committed += len(repository.backup_ids()) - len(before)
        check_afterwards(repository, clock, before)
    assert 0 < committed < 15  # only in the last few calls, after the commit


@pytest.mark.parametrize("with_parent", [False, True])
def test_failing_once_at_any_call_it_fails_whole_or_succeeds_whole(with_parent: bool) -> None:
    errors = itertools.cycle([StoreUnavailable, StoreFull, StoreUnplugged, StoreDenied, StoreUnavailable])
    for number, error in zip(range(1, CALLS[with_parent] + 1), errors, strict=False):
        repository, clock = fresh(with_parent)
        before = repository.backup_ids()
        failing = Repository(FaultyStorage(repository.storage, hook=fail_at(number, error)), repository.ring, clock)
        try:
            result = backup(failing, CHANGED)
        except StoreError:
            assert repository.backup_ids() == before
            assert keys(repository.storage, "manifests-b/") == [manifest_keys(name)[1] for name in before]
        else:
            assert set(repository.backup_ids()) == {*before, result.manifest.backup}
        check_afterwards(repository, clock, before)


def test_after_an_error_no_lease_is_left() -> None:
    for number in range(3, CALLS[False], 3):
        repository, clock = fresh(False)
        faulty = FaultyStorage(repository.storage, hook=fail_at(number, StoreUnavailable))
        try:
            backup(Repository(faulty, repository.ring, clock), CHANGED)
        except StoreError:
            deletes = [call for call in faulty.calls if call.method == "delete" and call.number == number]
            assert deletes or keys(repository.storage, "leases/") == []


def hooked(storage: Storage, act: Callable[[FaultyStorage, Call], None], seed: int = 0) -> FaultyStorage:
    """A store that ``act`` may spoil before each of its calls."""
    store: list[FaultyStorage] = []
    store.append(FaultyStorage(storage, seed, lambda call: act(store[0], call)))
    return store[0]


def shorten(number: int, store: FaultyStorage, call: Call) -> None:
    if call.number == number and call.method == "get":
        store.short_read(call.key)


def test_short_reads_anywhere_never_publish_a_wrong_backup() -> None:
    for number in range(1, CALLS[True] + 1):
        repository, clock = fresh(True)
        before = repository.backup_ids()
        faulty = hooked(repository.storage, partial(shorten, number), seed=number)
        try:
            backup(Repository(faulty, repository.ring, clock), CHANGED)
        except DataManagerError:
            assert repository.backup_ids() == before
        check_afterwards(repository, clock, before)


@pytest.mark.parametrize("room", [0, 500, 60_000, 400_000, 1_000_000])
def test_a_full_store_is_named_and_left_in_order(room: int) -> None:
    clock = SetClock()
    repository = new_repository(MemoryStorage(clock), clock)
    faulty = FaultyStorage(repository.storage)
    faulty.fill_after(room)
    cluster = make_cluster(pages=120)
    with pytest.raises(StoreFull):
        backup(Repository(faulty, repository.ring, clock), cluster)
    assert repository.backup_ids() == []
    assert keys(repository.storage, "leases/") == []
    faulty.make_room()
    assert backup(Repository(faulty, repository.ring, clock), cluster).manifest.sequence == 1
    assert verify(repository).ok


def test_stopping_ends_it_and_the_next_one_uses_what_was_stored(tmp_path: Path) -> None:
    chance = random.Random(5)
    files = {b"PG_VERSION": b"18\n"} | {b"base/%d" % number: chance.randbytes(5 << 20) for number in range(10)}
    cluster = SyntheticCluster(8192, files, (b"base",))
    storage: Storage = LocalStorage.create(tmp_path / "repository", folders())
    repository = new_repository(storage)
    with StopToken() as stop:

        def stop_late(path: bytes) -> None:
            if path == b"base/9":
                deadline = time.monotonic() + 30
                while not keys(storage, "packs/") and time.monotonic() < deadline:
                    time.sleep(0.01)  # the first pack is being written by another thread
                stop.stop("the owner wants it")

        source = SyntheticSource(cluster, before_file=stop_late)
        with pytest.raises(Cancelled, match="the owner wants it"):
            run_backup(repository, source, cluster.facts, BackupOptions("office", ""), stop, lambda event: None)
    assert repository.backup_ids() == []
    assert keys(storage, "leases/") == []
    assert verify(repository).unreferenced_packs == keys(storage, "packs/") != []
    assert not list((tmp_path / "repository").rglob(".put-*"))

    result = backup(reopen(repository), cluster)
    assert result.manifest.bytes_reused >= 32 << 20
    final = verify(reopen(repository))
    assert final.ok
    assert final.unreferenced_packs == []


def test_a_pack_that_a_power_cut_tore_is_not_used_and_not_an_error() -> None:
    repository, clock = fresh(False)
    dying = FaultyStorage(repository.storage, hook=lambda call: die_at_manifest(call))
    with pytest.raises(Killed):
        backup(Repository(dying, repository.ring, clock), CLUSTER)
    (torn,) = keys(repository.storage, "packs/")
    content = repository.storage.get(torn)
    repository.storage.delete(torn)
    repository.storage.put(torn, [content[:50_000] + bytes(len(content) - 50_000)])
    clock.advance(STALE_SECONDS + 1)
    result = backup(reopen(repository), CLUSTER)
    assert result.manifest.bytes_reused == 0
    final = verify(repository)
    assert final.ok
    assert final.unreferenced_packs == [torn]
    assert any(torn in warning for warning in final.warnings)


def die_at_manifest(call: Call) -> None:
    if call.key.startswith(("manifests-b/2", "leases/")) and call.method in ("put", "delete") and call.number > 5:
        raise Killed


@pytest.mark.parametrize("vanished", ["packs/", "meta/", "meta-b/"])
def test_an_object_that_vanished_before_the_commit_stops_it(vanished: str) -> None:
    repository, clock = fresh(False)

    def hook(call: Call) -> None:
        if call.method == "barrier":
            for key in keys(repository.storage, vanished):
                repository.storage.delete(key)

    faulty = FaultyStorage(repository.storage, hook=hook)
    with pytest.raises(DataManagerError, match=r"missing|no such object|is not there"):
        backup(Repository(faulty, repository.ring, clock), CLUSTER)
    assert repository.backup_ids() == []


@pytest.mark.parametrize("copy", [0, 1])
def test_a_manifest_that_does_not_read_back_is_taken_back(copy: int) -> None:
    repository, clock = fresh(False)

    def spoil(store: FaultyStorage, call: Call) -> None:
        if call.method == "put" and call.key.startswith(("manifests/", "manifests-b/")[copy]):
            store.flip_bit(call.key)

    faulty = hooked(repository.storage, spoil)
    with pytest.raises(IntegrityError, match="does not read back"):
        backup(Repository(faulty, repository.ring, clock), CLUSTER)
    assert repository.backup_ids() == []
