"""A prune that has the repository for itself, and those who wait for it; the folders that the first release lacks."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import pytest

from datamanager.base.errors import Busy, Cancelled, StoreDenied, StoreUnavailable, StoreUnplugged
from datamanager.base.pipeline import StopToken
from datamanager.repository.format import LATER_FOLDERS, Kind, folders
from datamanager.repository.lease import ABORT_SECONDS, Lease, LeaseRecord
from datamanager.repository.repository import Repository
from datamanager.storage.base import KeepsFolders
from datamanager.storage.local import LocalStorage
from datamanager.storage.memory import MemoryStorage
from datamanager.storage.retry import RetryingStorage
from tests.engine.synthetic_source import make_cluster
from tests.repository.parts import SetClock, backup, keys, new_repository, reopen
from tests.storage.faults import Call, FaultyStorage


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def repository(clock: SetClock) -> Repository:
    return new_repository(MemoryStorage(clock), clock)


def test_a_lease_says_since_when_from_its_second_object_on(repository: Repository, clock: SetClock) -> None:
    lease = repository.take_lease("backup")
    began = clock.now().timestamp()
    (key,) = keys(repository.storage, "leases/")
    assert repository.lease_record(key).since == 0
    plain, _ = repository.objects.get_small(Kind.LEASE, key, [key])
    assert b"since" not in plain
    assert b"exclusive" not in plain
    for _ in range(3):
        clock.advance(300)
        lease.renew()
        (key,) = keys(repository.storage, "leases/")
        assert repository.lease_record(key).since == began
    lease.release()


def test_a_lease_of_the_first_release_has_no_age_and_is_not_exclusive() -> None:
    record = LeaseRecord.from_json(
        b'{"boot":"b","host":"h","kind":"backup","machine":"m","parents":[],"pid":1,"started":"s","subject":"",'
        b'"writer":"w"}'
    )
    assert (record.since, record.exclusive) == (0.0, False)


def test_a_writer_waits_for_an_exclusive_lease_and_says_so_once(repository: Repository) -> None:
    held = repository.take_lease("prune", exclusive=True)
    told: list[str] = []
    taken: list[Lease] = []
    waiting = threading.Thread(target=lambda: taken.append(reopen(repository, told=told).take_lease("backup")))
    waiting.start()
    deadline = time.monotonic() + 10
    while not told and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    assert taken == []
    assert len(keys(repository.storage, "leases/")) == 2  # it is seen while it waits
    held.renew(exclusive=False)
    waiting.join(10)
    assert len(taken) == 1
    assert len(told) == 1
    assert "waiting until the prune" in told[0]
    taken[0].release()
    held.release()


def test_waiting_ends_when_the_job_is_stopped_and_leaves_no_lease(repository: Repository) -> None:
    held = repository.take_lease("prune", exclusive=True)
    with StopToken() as stop:
        threading.Timer(0.2, stop.stop, ["enough"]).start()
        with pytest.raises(Cancelled, match="enough"):
            reopen(repository).take_lease("backup", stop=stop)
    held.release()
    assert keys(repository.storage, "leases/") == []


def test_a_stale_exclusive_lease_holds_nobody_up(repository: Repository, clock: SetClock) -> None:
    held = repository.take_lease("prune", exclusive=True)
    clock.advance(3600)
    lease = reopen(repository).take_lease("backup")
    lease.release()
    held.release()


@pytest.mark.parametrize("by_time", [True, False])
def test_a_lease_that_was_lost_stays_lost_although_it_is_renewed(
    repository: Repository, clock: SetClock, by_time: bool
) -> None:
    lease = repository.take_lease("backup")
    if by_time:
        clock.advance(ABORT_SECONDS + 1)  # the machine slept
    else:
        repository.storage.delete(keys(repository.storage, "leases/")[0])
    lease.renew()
    with pytest.raises(Busy, match="commit backup"):
        lease.check()
    lease.release()


def test_reading_goes_on_with_a_warning_where_no_lease_can_be_put(repository: Repository) -> None:
    def hook(call: Call) -> None:
        if call.method == "put":
            raise StoreDenied("put: read-only")

    said: list[str] = []
    locked = Repository(FaultyStorage(repository.storage, hook=hook), repository.ring, repository.clock)
    assert locked.take_lease_if_possible("restore", ["20250301T120000Z-00000000"], said.append) is None
    assert said == ["put: read-only; the restore goes on without telling other writers"]
    lease = repository.take_lease_if_possible("restore", ["20250301T120000Z-00000000"], said.append)
    assert lease is not None
    assert lease.record.parents == ["20250301T120000Z-00000000"]
    lease.release()
    assert len(said) == 1


def test_a_reader_whose_store_fails_is_told(repository: Repository) -> None:
    faulty = FaultyStorage(repository.storage)
    faulty.fail_once("put", StoreUnavailable("put: gone"))
    with pytest.raises(StoreUnavailable):
        Repository(faulty, repository.ring, repository.clock).take_lease_if_possible("verify", [], lambda text: None)


def test_bringing_a_backup_back_is_refused_beside_a_prune(repository: Repository) -> None:
    lease = repository.take_lease("undelete")
    repository.require_no_prune(lease)
    other = reopen(repository).take_lease("prune")
    with pytest.raises(Busy, match="a prune has been running"):
        repository.require_no_prune(lease)
    other.release()
    repository.require_no_prune(lease)
    lease.release()


# -- folders --------------------------------------------------------------------------------------------------------


def first_release(tmp_path: Path) -> LocalStorage:
    """A store as the first release made it."""
    old = [name for name in folders() if name not in LATER_FOLDERS]
    return LocalStorage.create(tmp_path / "repository", old)


def test_the_first_lease_makes_the_folders_that_the_first_release_lacks(tmp_path: Path) -> None:
    storage = first_release(tmp_path)
    repository = new_repository(storage)
    assert not any((storage.root / name).exists() for name in LATER_FOLDERS)
    with StopToken() as stop:
        wrapped = RetryingStorage(storage, stop)
        assert isinstance(wrapped, KeepsFolders)
        backup(reopen(repository, wrapped), make_cluster(pages=5, tables=1))
    assert all((storage.root / name).is_dir() for name in LATER_FOLDERS)
    assert not any("damaged" in one.key for one in storage.list(""))


def test_no_folder_is_made_in_an_empty_mount_point(tmp_path: Path) -> None:
    storage = first_release(tmp_path)
    shutil.rmtree(storage.root)
    storage.root.mkdir()  # what a pulled drive leaves
    with pytest.raises(StoreUnplugged):
        storage.ensure_folders(LATER_FOLDERS)
    assert list(storage.root.iterdir()) == []


def test_a_name_that_no_key_could_have_makes_no_folder(tmp_path: Path) -> None:
    storage = first_release(tmp_path)
    with pytest.raises(ValueError, match="not a key"):
        storage.ensure_folders(["../elsewhere"])
    assert not (tmp_path / "elsewhere").exists()
