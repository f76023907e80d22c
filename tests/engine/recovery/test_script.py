"""The restore_command: what it gives, and that nothing but a proven absence passes for the end of the archive."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from datamanager.base.units import MIB
from datamanager.engine.recovery.script import ABSENT, FAULT, restore_command, write_script
from tests.servers import hand_over, process_options

SIZE = MIB
NAME = "000000010000000000000002"
OTHER = "000000010000000000000003"
HISTORY = "00000002.history"


class Place:
    """A spool as the program sees it and a data directory, both the servers' account's."""

    def __init__(self, folder: Path, *, python: bool) -> None:
        self.spool = folder / 'it\'s 100% a "spool" of Müller'
        self.spool.mkdir(mode=0o700)
        self.data = folder / "data"
        (self.data / "pg_wal").mkdir(parents=True)
        self.script = write_script(self.spool, patience=5, python=python)
        self.python = python
        self.absent = ABSENT if python else 1
        self.write("heart", "1\n")
        self.write("plan", f"{NAME} {SIZE}\n{HISTORY} 5\nend\n")

    def write(self, name: str, text: str) -> None:
        (self.spool / name).write_text(text)

    def ready(self, name: str = NAME, size: int = SIZE) -> None:
        (self.spool / name).write_bytes(b"w" * size)

    @property
    def restored(self) -> Path:
        return self.data / "pg_wal" / "RECOVERYXLOG"

    def ask(self, name: str = NAME) -> tuple[int, str]:
        """As the server does: through the shell, in the data directory, under its account.

        The form for Windows runs as we do, and its own status is looked at: what turns it into the command's is cmd's.
        """
        hand_over(self.spool.parent)
        options: dict[str, Any] = {} if self.python else {"shell": True, **process_options()}
        command: str | list[str] = [sys.executable, str(self.script), name, "pg_wal/RECOVERYXLOG"]
        if not self.python:
            command = restore_command(self.script, python=False)
            command = command.replace("%%", "\0").replace("%f", name).replace("%p", "pg_wal/RECOVERYXLOG")
            command = command.replace("\0", "%")
        done = subprocess.run(command, cwd=self.data, capture_output=True, text=True, timeout=30, **options)
        return done.returncode, done.stderr


@pytest.fixture(params=["shell", "python"])
def place(request: pytest.FixtureRequest, open_folder: Path) -> Place:
    if request.param == "shell" and sys.platform == "win32":
        pytest.skip("there is no such shell on Windows")
    return Place(open_folder, python=request.param == "python")


def test_a_segment_is_moved_to_where_the_server_wants_it(place: Place) -> None:
    place.ready()
    place.restored.write_bytes(b"left by an attempt before")
    assert place.ask() == (0, "")
    assert place.restored.read_bytes() == b"w" * SIZE
    assert not (place.spool / NAME).exists()


def test_histories_and_what_a_settled_spool_holds_stay_for_the_next_time(place: Place) -> None:
    place.ready(HISTORY, 5)
    assert [place.ask(HISTORY)[0], place.ask(HISTORY)[0]] == [0, 0]
    place.write("settled", "")
    place.ready()
    assert [place.ask()[0], place.ask()[0]] == [0, 0]
    (place.spool / NAME).unlink()
    status, said = place.ask()
    assert status == FAULT
    assert "nobody brings WAL any more" in said


@pytest.mark.decision(3)
def test_only_a_name_outside_the_plan_is_the_end_of_the_archive(place: Place) -> None:
    for name in (OTHER, "00000003.history", "00000001000000000000000", f"{NAME}.partial"):
        assert place.ask(name) == (place.absent, ""), name


@pytest.mark.decision(3)
def test_a_plan_that_is_cut_off_or_gone_is_a_fault_for_every_name(place: Place) -> None:
    place.ready()
    for plan in (f"{NAME} {SIZE}\n", f"{NAME} {SIZE}", "", None):
        if plan is None:
            (place.spool / "plan").unlink()
        else:
            place.write("plan", plan)
        for name in (NAME, OTHER, HISTORY):
            status, said = place.ask(name)
            assert status == FAULT, (plan, name)
            assert "plan" in said
    assert not place.restored.exists()


@pytest.mark.decision(3)
def test_a_failure_that_was_told_is_a_fault_and_stands_in_the_log(place: Place) -> None:
    place.write("failed", "read WAL: timeline 1 is not in the archive at 0/5000000\n")
    for name in (NAME, OTHER, HISTORY):
        status, said = place.ask(name)
        assert status == FAULT
        assert f"restore {name}: read WAL: timeline 1 is not in the archive at 0/5000000" in said


@pytest.mark.decision(3)
def test_a_heart_that_stands_still_or_is_gone_is_a_fault(place: Place) -> None:
    began = time.monotonic()
    status, said = place.ask()
    assert status == FAULT
    assert "nobody brings the WAL any more" in said
    assert time.monotonic() - began < 10
    assert (place.spool / "want").read_text().strip() == NAME
    (place.spool / "heart").unlink()
    assert place.ask()[0] == FAULT


def test_what_is_on_its_way_is_waited_for_as_long_as_the_heart_beats(place: Place) -> None:
    def bring() -> None:
        for beat in range(12):
            place.write("heart.half", f"{beat}\n")
            (place.spool / "heart.half").replace(place.spool / "heart")
            time.sleep(0.1)
        place.ready("half")
        (place.spool / "half").replace(place.spool / NAME)

    thread = threading.Thread(target=bring)
    thread.start()
    try:
        assert place.ask()[0] == 0
    finally:
        thread.join()
    assert place.restored.stat().st_size == SIZE


@pytest.mark.decision(3)
def test_a_file_of_another_size_is_a_fault(place: Place) -> None:
    for size in (0, SIZE - 1, SIZE + 8192):
        place.ready(size=size)
        status, said = place.ask()
        assert status == FAULT
        assert f"{size} bytes instead of {SIZE}" in said


@pytest.mark.decision(3)
def test_a_destination_that_cannot_be_written_is_a_fault(place: Place) -> None:
    place.ready()
    (place.data / "pg_wal").rmdir()
    assert place.ask()[0] == FAULT


@pytest.mark.decision(3)
@pytest.mark.parametrize("name", ["", "../plan", "a b", "*", "$(id)"])
def test_what_is_no_name_of_a_file_is_a_fault(place: Place, name: str) -> None:
    assert place.ask(name)[0] == FAULT


@pytest.mark.root
@pytest.mark.decision(3)
@pytest.mark.parametrize("hidden", ["", "plan", NAME, "restore", "heart"])
def test_a_spool_that_the_servers_account_cannot_read_never_looks_like_the_end(open_folder: Path, hidden: str) -> None:
    place = Place(open_folder, python=False)
    if hidden != "heart":
        place.ready()
    hand_over(open_folder)
    secret = place.spool / hidden
    os.chown(secret, 0, 0)
    secret.chmod(0o700 if secret.is_dir() else 0o600)
    if hidden == NAME:
        # Renaming asks for no right to read; the server's own reading does, and the size is looked at before.
        place.write("settled", "")
    command = restore_command(place.script, python=False).replace("%%", "\0").replace("%p", "pg_wal/RECOVERYXLOG")
    for name in (NAME, OTHER):
        words = command.replace("%f", name).replace("\0", "%")
        done = subprocess.run(words, shell=True, cwd=place.data, capture_output=True, check=False, **process_options())
        proven_absent = name == OTHER and hidden in (NAME, "heart")
        assert done.returncode == (1 if proven_absent else FAULT), (hidden, name, done)


@pytest.mark.decision(3)
def test_a_program_that_is_gone_or_broken_is_a_fault(open_folder: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("there is no such shell on Windows")
    place = Place(open_folder, python=False)
    place.ready()
    for text in ("exit 1", "exit 2", "if then", "kill -9 $$", "exit 127"):
        place.script.write_text(text)
        assert place.ask()[0] == FAULT, text
    place.script.unlink()
    assert place.ask()[0] == FAULT
    assert not place.restored.exists()
