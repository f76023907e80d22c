"""A restore, an undo or their completion is killed; the next command leaves production on old or new data, running."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from datamanager.base.errors import Busy, IntegrityError, RightMissing
from datamanager.base.pipeline import StopToken
from datamanager.engine.in_place.journal import find_journal, read_journal
from datamanager.engine.in_place.kept import forget_kept, list_kept
from datamanager.engine.in_place.places import Places
from datamanager.engine.in_place.plan import plan_in_place
from datamanager.engine.in_place.recovery import finish_or_undo
from datamanager.engine.in_place.undo import run_undo
from tests.conftest import NewServer
from tests.engine.conftest import Heard
from tests.engine.in_place.conftest import AFTER, BEFORE, Production, moments

# Before the exchange; in the middle of it (two renames); after it.
TAKEN_BACK = ("phase: keeping 0", "rename 1")
COMPLETED = ("rename 0", "journal: exchanged 0", "record 0")


def again(one: Production) -> None:
    """As it was before the restore, by an undo where that came into force."""
    if one.rows() != AFTER:
        with StopToken() as stop:
            run_undo(one.plan_undo(), stop, Heard())
        for kept in list_kept(one.place):
            forget_kept(kept)
    assert one.rows() == AFTER
    left = [path for path in one.place.parent.rglob("*datamanager-*") if not path.name.endswith(".lock")]
    assert left == []


def crash(one: Production) -> None:
    """Kill the server, and wait until its number is free: while it is not, PostgreSQL takes it for running."""
    pid = one.server.postmaster_pid
    one.server.kill9()
    deadline = time.monotonic() + 20
    while pid is not None and psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.05)


@pytest.mark.pg("18")
@pytest.mark.decision(11)
def test_a_killed_restore_is_taken_back_before_the_exchange_and_completed_after_it(
    production: Callable[..., Production],
) -> None:
    one = production()
    one.make_golden()
    for moment in (*TAKEN_BACK, *COMPLETED):
        one.child("restore", moment, exchange=moment != "rename 1")
        assert find_journal(one.place) is not None
        with pytest.raises(Busy, match="did not come to its end"):
            one.plan()
        finished = finish_or_undo(one.place, Heard(), swapped=lambda first, second: False)
        assert finished is not None
        assert finished.completed == (moment in COMPLETED), moment
        assert one.rows() == (BEFORE if finished.completed else AFTER)
        assert finish_or_undo(one.place, Heard()) is None
        again(one)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.pg("15,18")
@pytest.mark.parametrize("exchange", [True, False])
def test_production_runs_after_kills_at_every_step_of_restore_undo_and_completion(
    production: Callable[..., Production], open_folder: Path, exchange: bool
) -> None:
    one = production(wal=open_folder / "wal")
    one.make_golden()
    restoring = moments(one.child("restore", exchange=exchange))
    assert one.rows() == BEFORE
    undoing = moments(one.child("undo", exchange=exchange))
    assert one.rows() == AFTER
    for kept in list_kept(one.place):
        forget_kept(kept)
    for moment in restoring:
        one.child("restore", moment, exchange=exchange)
        for step in ("phase 0", "rename 0", "remove 0", "journal: done 0"):
            if find_journal(one.place) is not None:
                one.child("finish", step, exchange=exchange, may_end=True)
        finish_or_undo(one.place, Heard())
        assert one.rows() in (BEFORE, AFTER), moment
        again(one)
    for moment in undoing:
        one.child("restore", exchange=exchange)
        one.child("undo", moment, exchange=exchange)
        finished = finish_or_undo(one.place, Heard())
        undone = finished is not None and finished.completed
        assert one.rows() == (AFTER if undone else BEFORE), moment
        assert len(list_kept(one.place)) == 1
        if undone:
            for kept in list_kept(one.place):
                forget_kept(kept)
        again(one)


@pytest.mark.pg("18")
def test_a_crashed_server_is_restored_in_place_and_started(
    production: Callable[..., Production], stop: StopToken
) -> None:
    one = production()
    one.make_golden()
    crash(one)
    one.child("restore", "rename 0")
    finished = finish_or_undo(one.place, Heard())
    assert finished is not None
    assert finished.completed
    assert one.rows() == BEFORE
    assert finished.kept is not None
    run_undo(one.plan_undo(), stop, Heard())
    assert one.rows() == AFTER


@pytest.mark.pg("18")
def test_a_clone_that_a_killed_restore_left_running_ends_and_goes_with_its_files(
    production: Callable[..., Production], new_server: NewServer
) -> None:
    one = production()
    one.make_golden()
    one.child("restore", "phase: preparing 0")
    journal = read_journal(Places.of(one.place).journal)
    spaces = {str(made.oid): made.path for made in journal.made}
    one.copied()(journal.incoming, spaces, None)
    journal.incoming.with_name(f"{journal.incoming.name}.wal").mkdir()
    clone = new_server.adopt(journal.incoming)
    assert finish_or_undo(one.place, Heard()) is not None
    assert not clone.running
    again(one)


@pytest.mark.pg("18")
@pytest.mark.root
def test_a_journal_of_another_account_or_of_nonsense_moves_nothing(production: Callable[..., Production]) -> None:
    one = production()
    journal = one.plan().places.journal
    journal.write_text("{}")
    with pytest.raises(IntegrityError, match="read journal"):
        finish_or_undo(one.place, Heard())
    shutil.chown(journal, "nobody")
    with pytest.raises(RightMissing, match="another account"):
        finish_or_undo(one.place, Heard())
    journal.unlink()
    assert plan_in_place(one.options()).running
