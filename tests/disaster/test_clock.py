"""A clock that goes back: nothing that matters is ordered by it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from datamanager.base.clock import SystemClock
from datamanager.base.errors import Busy
from datamanager.repository.format import folders
from datamanager.repository.repository import Repository
from datamanager.storage.local import LocalStorage
from tests.engine.synthetic_source import make_cluster
from tests.repository.parts import SetClock, backup, new_repository, reopen, verify


class BackwardsClock:
    """The machine's clock, whose wall time lies years back, as after an empty battery."""

    def __init__(self, back: timedelta) -> None:
        self._back = back
        self._real = SystemClock()

    def now(self) -> datetime:
        return self._real.now() - self._back

    def elapsed(self) -> float:
        return self._real.elapsed()


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return new_repository(LocalStorage.create(tmp_path / "repository", folders()))


def with_clock(repository: Repository, back: timedelta) -> Repository:
    """The same repository, opened on a computer whose clock is wrong."""
    return Repository(
        LocalStorage(Path(repository.storage.url.removeprefix("file://"))), repository.ring, BackwardsClock(back)
    )


def test_the_newest_backup_is_the_last_one_made_whatever_the_clock_said(repository: Repository) -> None:
    cluster = make_cluster(pages=20)
    first = backup(with_clock(repository, timedelta()), cluster).manifest
    second = backup(with_clock(repository, timedelta(days=2000)), cluster.with_changed_pages(1, 0.1)).manifest
    third = backup(with_clock(repository, timedelta(days=1000)), cluster.with_changed_pages(2, 0.1)).manifest
    assert second.backup < third.backup < first.backup  # their names follow the clock, and must not matter
    again = with_clock(repository, timedelta())
    assert [one.backup for one in again.manifests()] == [first.backup, second.backup, third.backup]
    assert again.find("latest").backup == third.backup
    assert [one.parent for one in again.manifests()] == [None, first.backup, second.backup]
    assert [one.sequence for one in again.manifests()] == [1, 2, 3]
    result = verify(again)
    assert result.ok
    assert result.warnings == []


def test_a_lease_counts_although_the_clock_went_back_by_years(repository: Repository) -> None:
    now = with_clock(repository, timedelta())
    lease = now.take_lease("backup", str(make_cluster().system_identifier))
    with pytest.raises(Busy, match="another one of this cluster"):
        backup(with_clock(repository, timedelta(days=3000)), make_cluster(pages=10))
    lease.release()
    backup(with_clock(repository, timedelta(days=3000)), make_cluster(pages=10))


def test_a_clock_that_jumps_back_during_a_backup_changes_nothing(tmp_path: Path) -> None:
    clock = SetClock()
    made = new_repository(LocalStorage.create(tmp_path / "repository", folders()), clock)
    first = backup(made, make_cluster(pages=20)).manifest

    def jump(event: object) -> None:
        clock.set_wall(datetime(1980, 1, 1, tzinfo=UTC))

    second = backup(reopen(made), make_cluster(pages=20).with_changed_pages(3, 0.2), listener=jump).manifest
    assert second.ended < second.started
    assert second.parent == first.backup
    assert reopen(made).find("latest").backup == second.backup
    assert verify(reopen(made)).ok
