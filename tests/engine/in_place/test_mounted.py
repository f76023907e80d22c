"""In place where the data directory and a tablespace are roots of file systems, which cannot be renamed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from datamanager.base.errors import TargetTooSmall
from datamanager.base.events import Event, PhaseStarted
from datamanager.base.pipeline import StopToken
from datamanager.engine.in_place.kept import forget_kept, list_kept
from datamanager.engine.in_place.recovery import finish_or_undo
from datamanager.engine.in_place.run import run_in_place
from datamanager.engine.in_place.undo import run_undo
from tests.engine.conftest import Heard
from tests.engine.in_place.conftest import AFTER, BEFORE, Production, moments
from tests.storage.mounts import Volume

pytestmark = pytest.mark.mounts


def ours(folder: Path) -> set[str]:
    return {one.name for one in folder.iterdir() if "datamanager-" in one.name and not one.name.endswith(".lock")}


@pytest.mark.pg("15,18")
@pytest.mark.decision(11)
def test_a_mounted_data_directory_with_a_mounted_tablespace_is_restored_and_undone(
    volumes: list[Volume], production: Callable[..., Production], open_folder: Path, stop: StopToken
) -> None:
    big, small = volumes
    one = production(data=big, two=small, wal=open_folder / "wal")
    plan = one.plan()
    assert not plan.places.whole
    assert {path.parent for path in plan.tablespaces.values()} == {small.folder, one.server.folder}
    run_in_place(plan, one.from_backup(plan), stop, Heard(), address=one.address)
    assert one.rows() == BEFORE
    (kept,) = list_kept(one.place)
    assert kept.place.parent == one.place

    # What is kept inside is no part of a backup.
    backup = one.works.back_up(one.server).manifest
    assert backup.volumes["base"] < 2 * one.manifest.volumes["base"]
    paths = {entry.path for entry in one.works.repository.contents(backup).files()}
    assert not [path for path in paths if b"datamanager" in path]

    run_undo(one.plan_undo(), stop, Heard())
    assert one.rows() == AFTER
    (kept,) = list_kept(one.place)
    forget_kept(kept)
    assert ours(one.place) == set()
    assert ours(small.folder) == set()
    one.server.restart()
    assert one.rows() == AFTER


@pytest.mark.pg("18")
@pytest.mark.requirement("R78", missing="the offer of another directory, which the command makes")
def test_a_volume_that_fills_up_midway_leaves_production_untouched_and_running(
    volumes: list[Volume], production: Callable[..., Production], stop: StopToken
) -> None:
    one = production(data=volumes[0])
    begun = one.server.postmaster_pid
    ballast = one.place / "lost+found" / "ballast"

    def fill(event: Event) -> None:
        if event == PhaseStarted("restoring"):
            state = os.statvfs(one.place)
            with ballast.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, (state.f_bavail * state.f_frsize) - (8 << 20))

    plan = one.plan()
    with pytest.raises(TargetTooSmall, match="no room"):
        run_in_place(plan, one.from_backup(plan, listener=fill), stop, Heard())
    assert one.server.postmaster_pid == begun
    assert ours(one.place) == set()
    ballast.unlink()
    assert one.rows() == AFTER  # requirement R78


@pytest.mark.pg("18")
@pytest.mark.decision(11)
def test_production_runs_on_old_or_new_data_after_a_kill_among_the_renames(
    volumes: list[Volume], production: Callable[..., Production]
) -> None:
    one = production(data=volumes[0])
    one.make_golden()
    for moment in ("rename 1", "rename 14", "rename 40", "journal: exchanged 0"):
        _killed_then_finished(one, moment)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.pg("15,18")
def test_production_runs_on_old_or_new_data_after_a_kill_at_every_step(
    volumes: list[Volume], production: Callable[..., Production]
) -> None:
    one = production(data=volumes[0], two=volumes[1])
    one.make_golden()
    said = one.child("restore")
    _back_to_the_start(one)
    for moment in moments(said):
        _killed_then_finished(one, moment)


def _killed_then_finished(one: Production, moment: str) -> None:
    one.child("restore", moment)
    finished = finish_or_undo(one.place, Heard())
    expected: Mapping[bool, tuple[list[int], ...]] = {True: BEFORE, False: AFTER}
    assert one.rows() == expected[finished is not None and finished.completed], moment
    assert finish_or_undo(one.place, Heard()) is None
    _back_to_the_start(one)


def _back_to_the_start(one: Production) -> None:
    """As it was before the restore, by an undo where that came into force."""
    if one.rows() != AFTER:
        with StopToken() as stop:
            run_undo(one.plan_undo(), stop, Heard())
        for kept in list_kept(one.place):
            forget_kept(kept)
    assert one.rows() == AFTER
    assert ours(one.place) == set()
