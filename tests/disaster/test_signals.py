"""SIGINT and SIGTERM: within ten seconds the command is gone, nothing is published and nothing is left behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.disaster.command import CommandLine, Done, Running
from tests.disaster.conftest import Scene
from tests.disaster.scene import assert_cannot_start, assert_server_is_free, objects_below, temporaries
from tests.servers import Proxy, make_folder, remove_folder

BOTH = [signal.SIGINT, signal.SIGTERM]


@dataclass(frozen=True)
class Desk:
    """A command line with a repository that holds one verified backup of ``office``, and ``far``, a slow line to it."""

    command: CommandLine
    drive: Path
    backup: str
    proxy: Proxy


@pytest.fixture(scope="module")
def desk(scene_18: Scene) -> Iterator[Desk]:
    folder = make_folder("desk")
    command = CommandLine(folder / "home")
    command.repository("usb", folder / "usb")
    server = scene_18.server
    with Proxy(server.port, parameters={"user": server.superuser, "dbname": "postgres"}) as proxy:
        command.cluster("office", server.dsn, "--repo", "usb")
        command.cluster("far", proxy.dsn, "--repo", "usb")
        backup = str(command.ok("backup", "run", "office")["backup_id"])
        command.verified("usb")
        yield Desk(command, folder / "usb", backup, proxy)
    remove_folder(folder)


def packs(drive: Path) -> set[str]:
    return {name for name in objects_below(drive) if name.startswith("packs/")}


def assert_stopped(done: Done) -> None:
    assert done.code == 130, done.out + done.err
    assert done.seconds < 10
    assert done.last["message_type"] == "error"
    assert done.last["exit_code"] == 130
    assert "stopped by SIG" in done.last["message"]
    assert "Traceback" not in done.out + done.err


def assert_nothing_left(desk: Desk, scene: Scene, before: set[str]) -> None:
    """The server is free, earlier backups are whole, no file is left but whole packs for the next run to use."""
    assert_server_is_free(scene.server)
    assert temporaries(desk.drive) == []
    assert objects_below(desk.drive) - packs(desk.drive) == before - packs(desk.drive)
    assert desk.command.backups("usb") == [desk.backup]


@pytest.mark.requirement("R47", missing="whole packs stay for the next run until a prune; the name of who cancelled")
@pytest.mark.parametrize("number", BOTH, ids=lambda number: number.name)
def test_a_backup_stopped_while_it_copies_leaves_nothing(desk: Desk, scene_18: Scene, number: signal.Signals) -> None:
    before = objects_below(desk.drive)
    running = desk.command.start("backup", "run", "office", "--max-rate", "4MB", "--json")
    running.until('"copying"')
    time.sleep(0.5)
    running.signal(number)
    assert_stopped(running.wait())  # requirement R47
    assert_nothing_left(desk, scene_18, before)
    desk.command.verified("usb")


@pytest.mark.parametrize("number", BOTH, ids=lambda number: number.name)
def test_a_backup_stopped_while_the_server_spreads_its_checkpoint_leaves_nothing(
    desk: Desk, scene_18: Scene, number: signal.Signals
) -> None:
    scene_18.server.script("create table soot as select i from generate_series(1, 200000) i;")
    before = objects_below(desk.drive)
    running = desk.command.start("backup", "run", "office", "--spread", "--json")
    try:
        running.until("waiting for the server's checkpoint")
        running.signal(number)
        assert_stopped(running.wait())
        assert_nothing_left(desk, scene_18, before)
    finally:
        scene_18.server.script("drop table soot; checkpoint;")


def test_a_backup_stopped_while_the_network_is_silent_leaves_nothing(desk: Desk, scene_18: Scene) -> None:
    before = objects_below(desk.drive)
    running = desk.command.start("backup", "run", "far", "--max-rate", "4MB", "--json")
    try:
        running.until('"copying"')
        desk.proxy.stall()
        time.sleep(0.3)
        running.signal(signal.SIGTERM)
        assert_stopped(running.wait())
    finally:
        desk.proxy.cut()
        desk.proxy.resume()
    assert_nothing_left(desk, scene_18, before)


@pytest.mark.parametrize("seconds", [0.9, 2.0])
def test_a_backup_stopped_while_the_network_is_silent_before_the_copy_leaves_nothing(
    desk: Desk, scene_18: Scene, seconds: float
) -> None:
    before = objects_below(desk.drive)
    desk.proxy.delay = 0.05  # so that connecting, checking and asking last some seconds
    try:
        running = desk.command.start("backup", "run", "far", "--json")
        time.sleep(seconds)
        desk.proxy.stall()
        time.sleep(0.3)
        running.signal(signal.SIGINT)
        assert_stopped(running.wait())
    finally:
        desk.proxy.cut()
        desk.proxy.resume()
        desk.proxy.delay = 0
    assert_nothing_left(desk, scene_18, before)


@pytest.mark.parametrize("number", BOTH, ids=lambda number: number.name)
def test_a_stopped_restore_cannot_start_and_leaves_the_repository_as_it_was(
    desk: Desk, scene_18: Scene, open_folder: Path, number: signal.Signals
) -> None:
    before = objects_below(desk.drive)
    target, space = open_folder / "new", open_folder / "space"
    words: list[str | Path] = [
        "restore",
        desk.backup,
        "--target",
        target,
        "--tablespace-map",
        f"{scene_18.tablespace}={space}",
    ]
    running = _slowed(desk.command.start(*words, "--json"))
    running.until('"restoring"')
    running.signal(number)
    assert_stopped(running.wait())
    assert_cannot_start(scene_18.server, target)
    assert_nothing_left(desk, scene_18, before)
    desk.command.refused(50, *words, says=["holds an unfinished restore"], advises=["Delete that directory"])


def test_a_verification_that_is_stopped_changes_nothing(desk: Desk, scene_18: Scene) -> None:
    before = objects_below(desk.drive)
    running = _slowed(desk.command.start("repo", "verify", "usb", "--json"))
    running.until("phase")
    running.signal(signal.SIGINT)
    assert_stopped(running.wait())
    assert_nothing_left(desk, scene_18, before)


def test_the_log_of_a_stopped_run_says_so(desk: Desk, scene_18: Scene) -> None:
    running = desk.command.start("backup", "run", "office", "--max-rate", "4MB", "--json")
    running.until('"copying"')
    running.signal(signal.SIGTERM)
    assert_stopped(running.wait())
    newest = max((desk.command.home / "logs").glob("backup-run*.log"))
    text = newest.read_text()
    assert "stopped by SIGTERM" in text
    assert text.rstrip().endswith("ended: exit code 130")


def _slowed(running: Running) -> Running:
    """The command with the lowest priority, so that the signal comes in the middle of its work."""
    os.setpriority(os.PRIO_PROCESS, running.pid, 19)
    return running
