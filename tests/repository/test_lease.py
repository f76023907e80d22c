"""Leases: writers know of each other, by the store's clock and without locks; one that lost its lease stops."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest

from datamanager.base.errors import Busy, IntegrityError, StoreUnavailable
from datamanager.repository.format import Kind, canonical_json
from datamanager.repository.lease import ABORT_SECONDS, STALE_SECONDS, Lease, LeaseRecord, machine_id
from datamanager.repository.repository import Repository
from datamanager.storage.memory import MemoryStorage
from datamanager.system.processes import boot_id
from tests.engine.synthetic_source import SyntheticSource, make_cluster
from tests.repository.parts import SetClock, backup, flip, keys, new_repository, reopen
from tests.storage.faults import FaultyStorage

SUBJECT = "7301234567890123456"


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def repository(clock: SetClock) -> Repository:
    return new_repository(MemoryStorage(clock), clock)


@pytest.fixture
def lease(repository: Repository) -> Iterator[Lease]:
    lease = repository.take_lease("backup", SUBJECT)
    yield lease
    lease.release()


def put_foreign(repository: Repository, **changes: object) -> LeaseRecord:
    """A lease of somebody else, put now."""
    record = LeaseRecord(
        "feedfeedfeedfeed", "elsewhere", "", "boot", 4711, "backup", SUBJECT, [], "2025-03-01T11:00:00"
    )
    record = replace(record, **changes)  # type: ignore[arg-type]  # names are those of the fields
    key = f"leases/{record.writer}-000001"
    repository.objects.put_small(Kind.LEASE, key, [key], record.to_json())
    return record


def test_a_lease_says_who_is_at_work(repository: Repository, lease: Lease) -> None:
    (key,) = keys(repository.storage, "leases/")
    record = repository.lease_record(key)
    assert (record.host, record.pid, record.boot) == (socket.gethostname(), os.getpid(), boot_id())
    assert (record.kind, record.subject, record.parents) == ("backup", SUBJECT, [])
    assert record == lease.record


def test_renewing_puts_the_next_name_and_drops_the_one_before(repository: Repository, lease: Lease) -> None:
    (first,) = keys(repository.storage, "leases/")
    lease.renew(["20250301T120000Z-00000000"])
    (second,) = keys(repository.storage, "leases/")
    assert first.endswith("-000001")
    assert second.endswith("-000002")
    assert repository.lease_record(second).parents == ["20250301T120000Z-00000000"]
    lease.renew()
    assert repository.lease_record(keys(repository.storage, "leases/")[0]).parents == ["20250301T120000Z-00000000"]


def test_a_released_lease_is_gone(repository: Repository) -> None:
    lease = repository.take_lease("backup")
    lease.renew()
    lease.release()
    assert keys(repository.storage, "leases/") == []


def test_a_second_backup_of_the_same_cluster_is_refused(repository: Repository, lease: Lease) -> None:
    put_foreign(repository)
    with pytest.raises(Busy, match=r"since 2025-03-01T11:00:00 on elsewhere \(process 4711\)"):
        repository.require_alone(lease)


@pytest.mark.parametrize("changes", [{"subject": "other"}, {"kind": "restore"}, {"kind": "verify", "subject": ""}])
def test_other_work_does_not_stand_in_the_way(repository: Repository, lease: Lease, changes: dict[str, object]) -> None:
    record = put_foreign(repository, **changes)
    repository.require_alone(lease)
    assert repository.live_leases(lease) == [record]


def test_a_lease_that_was_not_renewed_for_half_an_hour_is_stale(
    repository: Repository, lease: Lease, clock: SetClock
) -> None:
    put_foreign(repository)
    clock.advance(STALE_SECONDS - 1)
    lease.renew()
    with pytest.raises(Busy):
        repository.require_alone(lease)
    clock.advance(2)
    lease.renew()
    repository.require_alone(lease)


def test_a_wall_clock_that_goes_back_makes_no_lease_stale(
    repository: Repository, lease: Lease, clock: SetClock
) -> None:
    put_foreign(repository)
    clock.set_wall(clock.now() - timedelta(days=400))
    lease.renew()
    with pytest.raises(Busy):
        repository.require_alone(lease)
    lease.check()


def test_a_host_whose_clock_is_wrong_makes_no_lease_stale(repository: Repository, lease: Lease) -> None:
    # Ages are taken between two times of the store, so what this host believes does not enter.
    put_foreign(repository)
    wrong = SetClock(repository.clock.now() + timedelta(days=1000))
    other = Repository(repository.storage, repository.ring, wrong)
    mine = other.take_lease("backup", SUBJECT)
    with pytest.raises(Busy):
        other.require_alone(mine)
    mine.release()


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_lease_of_a_dead_process_of_this_host_is_swept_at_once(repository: Repository, lease: Lease) -> None:
    record = put_foreign(repository, host=socket.gethostname(), machine=machine_id(), boot=boot_id(), pid=dead_pid())
    repository.require_alone(lease)
    assert not any(record.writer in key for key in keys(repository.storage, "leases/"))


def test_the_lease_from_before_a_reboot_of_this_host_is_swept_at_once(repository: Repository, lease: Lease) -> None:
    put_foreign(repository, host=socket.gethostname(), machine=machine_id(), boot="an earlier boot", pid=os.getpid())
    repository.require_alone(lease)


def test_the_lease_of_a_living_process_of_this_host_counts(repository: Repository, lease: Lease) -> None:
    put_foreign(repository, host=socket.gethostname(), machine=machine_id(), boot=boot_id(), pid=os.getppid())
    with pytest.raises(Busy):
        repository.require_alone(lease)


def test_a_process_number_means_nothing_on_another_host(repository: Repository, lease: Lease) -> None:
    put_foreign(repository, pid=dead_pid(), boot=boot_id())
    with pytest.raises(Busy):
        repository.require_alone(lease)


def test_a_machine_that_only_has_the_same_name_is_another_host(repository: Repository, lease: Lease) -> None:
    put_foreign(repository, host=socket.gethostname(), machine="another", boot="another boot", pid=dead_pid())
    with pytest.raises(Busy):
        repository.require_alone(lease)


def test_a_lease_that_a_power_cut_tore_stops_nobody_and_is_told(repository: Repository, lease: Lease) -> None:
    put_foreign(repository)
    told: list[str] = []
    other = reopen(repository, told=told)
    torn = "leases/feedfeedfeedfeed-000001"
    flip(repository.storage, torn, 70)
    other.require_alone(lease)
    assert any(torn in message for message in told)


def test_a_lease_with_a_field_of_a_newer_program_is_read(repository: Repository, lease: Lease) -> None:
    key = "leases/feedfeedfeedfeed-000001"
    value = {**json.loads(lease.record.to_json()), "writer": "feedfeedfeedfeed", "progress": 7}
    repository.objects.put_small(Kind.LEASE, key, [key], canonical_json(value))
    assert repository.lease_record(key).writer == "feedfeedfeedfeed"


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"null", b"\xff"])
def test_a_lease_that_is_none_inside_is_damage(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="read lease"):
        LeaseRecord.from_json(data)


# -- losing it --------------------------------------------------------------------------------------------------------


def test_a_lease_too_old_to_rely_on_stops_its_writer(repository: Repository, lease: Lease, clock: SetClock) -> None:
    clock.advance(ABORT_SECONDS)
    lease.check()
    clock.advance(1)
    with pytest.raises(Busy, match="15 minutes"):
        lease.check()


def test_a_lease_that_somebody_removed_stops_its_writer(repository: Repository, lease: Lease) -> None:
    lease.check()
    repository.storage.delete(keys(repository.storage, "leases/")[0])
    with pytest.raises(Busy, match="removed the lease"):
        lease.check()


@pytest.mark.parametrize("after", ["PG_VERSION", "base/5/short"])
def test_a_backup_that_lost_its_lease_publishes_nothing(repository: Repository, after: str) -> None:
    cluster = make_cluster(pages=8)

    def lose(path: bytes) -> None:
        if path == after.encode():
            for key in keys(repository.storage, "leases/"):
                repository.storage.delete(key)

    with pytest.raises(Busy, match="removed the lease"):
        backup_of(repository, SyntheticSource(cluster, before_file=lose))
    assert repository.backup_ids() == []
    assert keys(repository.storage, "manifests-b/") == []


def backup_of(repository: Repository, source: SyntheticSource) -> None:
    backup(repository, make_cluster(pages=8), source=source)


def test_a_backup_that_could_not_renew_for_too_long_publishes_nothing(repository: Repository, clock: SetClock) -> None:
    def pass_time(path: bytes) -> None:
        if path == b"PG_VERSION":
            clock.advance(ABORT_SECONDS + 1)

    with pytest.raises(Busy, match="15 minutes"):
        backup_of(repository, SyntheticSource(make_cluster(pages=8), before_file=pass_time))
    assert keys(repository.storage, "manifests/") == []
    assert keys(repository.storage, "leases/") == []


def test_a_renewal_that_failed_after_its_object_was_stored_does_not_block_the_next(clock: SetClock) -> None:
    inner = MemoryStorage(clock)
    repository = new_repository(inner, clock)
    faulty = FaultyStorage(inner)
    other = reopen(repository, faulty)
    lease = other.take_lease("backup", SUBJECT)
    writer = lease.record.writer
    faulty.fail_once("put", StoreUnavailable("put: the answer was lost"))
    inner.put(f"leases/{writer}-000002", [b"what arrived although the answer was lost"])
    with pytest.raises(StoreUnavailable):
        lease.renew()
    lease.check()  # the first one still stands
    lease.renew()
    lease.check()
    assert keys(inner, "leases/") == [f"leases/{writer}-000003"]
    lease.release()
    assert keys(inner, "leases/") == []


def test_two_writers_of_different_clusters_work_side_by_side(repository: Repository) -> None:
    clusters = [replace(make_cluster(seed, pages=8), system_identifier=seed) for seed in (1, 2)]
    both_started = threading.Barrier(2, timeout=20)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        def meet(path: bytes) -> None:
            if path == b"PG_VERSION":
                both_started.wait()

        try:
            backup(repository, clusters[number], source=SyntheticSource(clusters[number], before_file=meet))
        except BaseException as error:  # noqa: BLE001 - looked at below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert {manifest.system_identifier for manifest in repository.manifests()} == {"1", "2"}
    assert keys(repository.storage, "leases/") == []


def test_of_two_backups_of_one_cluster_at_once_at_most_one_succeeds(repository: Repository) -> None:
    cluster = make_cluster(pages=8)
    inner_error: list[BaseException] = []

    def second(path: bytes) -> None:
        if path == b"PG_VERSION":
            try:
                backup(reopen(repository), cluster)
            except Busy as error:
                inner_error.append(error)

    backup(repository, cluster, source=SyntheticSource(cluster, before_file=second))
    assert len(inner_error) == 1
    assert len(repository.backup_ids()) == 1
