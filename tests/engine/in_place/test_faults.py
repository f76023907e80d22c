"""What goes wrong around an exchange: a volume that is full at the worst moment, a link where root would write."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from datamanager.base.errors import DataManagerError, RightMissing, TargetUnfit
from datamanager.base.events import Event, Executed, PhaseStarted
from datamanager.base.pipeline import StopToken
from datamanager.engine.in_place.kept import list_kept, read_own
from datamanager.engine.in_place.recovery import finish_or_undo
from datamanager.engine.in_place.run import run_in_place
from tests.engine.conftest import Heard
from tests.engine.in_place.conftest import BEFORE, Production
from tests.storage.mounts import Volume


class Filler:
    """Fills a volume to its last byte when one event comes, and empties it when another does."""

    def __init__(self, folder: Path, fill: str, empty: str) -> None:
        self._ballast = folder / "lost+found" / "ballast"
        self._fill, self._empty = fill, empty
        self.filled = False

    def __call__(self, event: Event) -> None:
        text = event.text if isinstance(event, Executed) else event.phase if isinstance(event, PhaseStarted) else ""
        if text.startswith(self._fill) and not self.filled:
            self.filled = True
            with contextlib.suppress(OSError), self._ballast.open("wb", buffering=0) as file:
                for size in (1 << 20, 4096, 512, 1):
                    with contextlib.suppress(OSError):
                        while True:
                            file.write(bytes(size))
        elif text.startswith(self._empty):
            self._ballast.unlink(missing_ok=True)


@pytest.mark.pg("18")
@pytest.mark.mounts
@pytest.mark.decision(11)
def test_a_volume_that_is_full_right_after_the_exchange_keeps_nobody_from_the_new_data(
    volumes: list[Volume], production: Callable[..., Production], stop: StopToken
) -> None:
    one = production(data=volumes[0])
    one.make_golden()
    full = Filler(one.place, "journal: exchanged", "starting the server")
    run_in_place(one.plan(), one.copied(), stop, full, address=one.address)
    assert full.filled
    assert one.rows() == BEFORE
    assert len(list_kept(one.place)) == 1


@pytest.mark.pg("18")
@pytest.mark.mounts
@pytest.mark.decision(11)
def test_a_record_that_finds_no_room_says_that_the_new_data_are_in_force_and_is_left_later(
    volumes: list[Volume], production: Callable[..., Production], stop: StopToken
) -> None:
    one = production(data=volumes[0])
    one.make_golden()
    full = Filler(one.place, "record ", "nothing")
    with pytest.raises(DataManagerError, match="is in force") as caught:
        run_in_place(one.plan(), one.copied(), stop, full, address=one.address)
    assert "restore complete" in caught.value.hint
    (one.place / "lost+found" / "ballast").unlink()
    assert one.rows() == BEFORE
    finished = finish_or_undo(one.place, Heard())
    assert finished is not None
    assert finished.completed
    assert len(list_kept(one.place)) == 1


@pytest.mark.pg("18")
@pytest.mark.root
def test_a_link_where_the_servers_own_words_go_leads_root_nowhere(
    production: Callable[..., Production], open_folder: Path
) -> None:
    """The folder is the server's account's, who could let root append to any file."""
    one = production()
    plan = one.plan()
    victim = open_folder / "victim"
    victim.write_text("of root")
    one.server.stop()
    plan.places.log.unlink(missing_ok=True)
    control = one.plan().control
    plan.places.log.symlink_to(victim)
    os.chown(plan.places.log, one.place.stat().st_uid, -1, follow_symlinks=False)
    with pytest.raises(TargetUnfit):
        control.start(lambda text: None, 30)
    assert victim.read_text() == "of root"
    plan.places.log.unlink()
    control.start(lambda text: None, 30)


@pytest.mark.pg("18")
def test_a_link_where_the_lock_lies_makes_no_file_elsewhere(
    production: Callable[..., Production], open_folder: Path, stop: StopToken
) -> None:
    one = production()
    plan = one.plan()
    plan.places.lock.unlink(missing_ok=True)
    plan.places.lock.symlink_to(open_folder / "nologin")
    with pytest.raises(OSError, match="symbolic"):
        run_in_place(plan, one.copied(), stop, Heard())
    assert not (open_folder / "nologin").exists()
    plan.places.lock.unlink()


@pytest.mark.root
def test_what_is_believed_is_what_was_looked_at(tmp_path: Path) -> None:
    """A file that becomes another one between the look at its owner and the reading."""
    ours, theirs, name = tmp_path / "ours", tmp_path / "theirs", tmp_path / "record"
    ours.write_bytes(b"ours")
    theirs.write_bytes(b"theirs")
    shutil.chown(theirs, "nobody")
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            for one in (ours, theirs):
                other = tmp_path / "new"
                os.link(one, other)
                other.replace(name)
                name.unlink(missing_ok=True)
                with contextlib.suppress(FileExistsError):
                    os.link(one, name)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(3000):
            with contextlib.suppress(RightMissing, FileNotFoundError):
                assert read_own(name) == b"ours"
    finally:
        over.set()
        thread.join()
    name.unlink(missing_ok=True)
    name.symlink_to(ours)
    with pytest.raises(OSError, match="symbolic"):
        read_own(name)
