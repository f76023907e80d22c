"""Services and commands around `backup run`, as a person uses them."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from datamanager.base.pipeline import StopToken
from datamanager.jobs.services_around import restore_services
from tests.cli.caller import Installation
from tests.jobs.stopper import place_in
from tests.servers import Server, make_folder, remove_folder
from tests.system.daemons import Daemons


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[Daemons]:
    folder = tmp_path / "services of the office"
    folder.mkdir()
    made = Daemons(folder)
    yield made
    made.power_off()


@pytest.fixture(scope="module")
def offices() -> Iterator[dict[str, Installation]]:
    made: dict[str, Installation] = {}
    yield made
    for one in made.values():
        remove_folder(one.folder)


@pytest.fixture
def office(server: Server, offices: dict[str, Installation]) -> Iterator[Installation]:
    """A home with the cluster ``clinic`` and its backups; services that a test describes are gone after it."""
    found = offices.get(server.version)
    if found is None:
        found = offices[server.version] = Installation(make_folder("around"))
        found.init()
        found.ok("cluster", "add", "clinic", server.dsn, "--repo", "usb")
    yield found
    for name in found.result("config", "show")["config"]["services"]:
        found.ok("services", "remove", name)
    for journal in (found.home / "services").glob("*.json"):
        journal.unlink()


def backups(office: Installation) -> int:
    return len(office.result("backup", "list")["backups"])


def describe(office: Installation, daemons: Daemons, *names: str, limit: int = 20) -> None:
    for name in names:
        words = {
            action: " ".join(f"'{word}'" for word in daemons.words(name, action))
            for action in ("stop", "start", "state")
        }
        office.ok(
            "services", "add", name, "--stop", words["stop"], "--start", words["start"], "--state", words["state"],
            "--limit", str(limit),
        )  # fmt: skip


def hook(folder: Path, text: str, name: str = "hook") -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return f"'{path}'"


def log_of(office: Installation) -> str:
    return max(office.logs(), key=lambda path: path.stat().st_mtime_ns).read_text()


def wait_until(holds: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.requirement("R100")
def test_no_service_is_stopped_by_default_and_help_says_why(office: Installation, daemons: Daemons) -> None:
    describe(office, daemons, "exchange")
    daemons.start("exchange")
    office.ok("backup", "run", "clinic")
    help_text = " ".join(office.ok("backup", "run", "--help").out.split())
    assert daemons.events() == []
    assert "Off by default because it is not needed: a backup is made while everything runs" in help_text


def test_services_are_stopped_for_the_backup_and_the_last_command_is_told(
    office: Installation, daemons: Daemons, tmp_path: Path
) -> None:
    describe(office, daemons, "exchange", "idle")
    daemons.start("exchange")
    said = tmp_path / "said"
    before = hook(tmp_path, f"ls '{daemons.folder}'/*.pid > /dev/null && echo before >> '{said}'", "before")
    text = f"echo \"$DATAMANAGER_RESULT $DATAMANAGER_CLUSTER $DATAMANAGER_BACKUP $DATAMANAGER_RUN\" >> '{said}'"
    result = office.result(
        "backup", "run", "clinic", "--stop-service", "exchange", "--stop-service", "idle", "--before", before,
        "--after", hook(tmp_path, text, "after"),
    )  # fmt: skip
    assert daemons.events() == ["stop exchange", "start exchange"]
    assert daemons.running() == {"exchange"}
    first, second = said.read_text().splitlines()
    assert first == "before"
    assert second.startswith(f"done clinic {result['backup_id']} ")
    log = log_of(office)
    assert [line for line in ("stop service exchange: done", "start service exchange: done") if line not in log] == []


def test_a_failing_first_command_keeps_the_backup_from_running(
    office: Installation, daemons: Daemons, tmp_path: Path
) -> None:
    before = backups(office)
    describe(office, daemons, "exchange")
    daemons.start("exchange")
    said = tmp_path / "said"
    after = hook(tmp_path, f"echo \"$DATAMANAGER_RESULT: $DATAMANAGER_ERROR\" > '{said}'", "after")
    done = office.run(
        "backup", "run", "clinic", "--before", hook(tmp_path, "echo no room; exit 1"), "--after", after,
        "--stop-service", "exchange", "--json",
    )  # fmt: skip
    assert (done.code, done.last["message_type"]) == (65, "error")
    assert "exit status 1 (no room)" in done.last["message"]
    assert said.read_text().startswith("failed: run command before the job: ")
    assert daemons.events() == []
    assert backups(office) == before


def test_a_failing_last_command_is_a_warning(office: Installation, tmp_path: Path) -> None:
    done = office.run("backup", "run", "clinic", "--after", hook(tmp_path, "echo sent nothing; exit 9"), "--json")
    assert done.code == 3
    assert "exit status 9 (sent nothing)" in done.last["warnings"][0]


def test_a_cancelled_backup_starts_its_services_and_says_so(
    office: Installation, daemons: Daemons, tmp_path: Path
) -> None:
    describe(office, daemons, "exchange")
    daemons.start("exchange")
    said = tmp_path / "said"
    process = office.start(
        "backup", "run", "clinic", "--max-rate", "32kB", "--stop-service", "exchange",
        "--after", hook(tmp_path, f'echo "$DATAMANAGER_RESULT" > \'{said}\''),
    )  # fmt: skip
    wait_until(lambda: daemons.events() == ["stop exchange"] and not daemons.running())
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert time.monotonic() - began < 10
    assert process.returncode == 130
    assert daemons.running() == {"exchange"}
    assert said.read_text() == "cancelled\n"


def test_the_next_backup_starts_what_a_killed_one_left(office: Installation, daemons: Daemons) -> None:
    describe(office, daemons, "exchange")
    daemons.start("exchange")
    process = office.start("backup", "run", "clinic", "--max-rate", "32kB", "--stop-service", "exchange")
    wait_until(lambda: daemons.events() == ["stop exchange"] and not daemons.running())
    process.kill()
    process.communicate(timeout=30)
    listed = office.ok("services", "list")
    assert "exchange was stopped by job" in listed.out
    assert "nobody has tried yet" in listed.out
    office.ok("backup", "run", "clinic")
    assert daemons.running() == {"exchange"}
    assert office.result("services", "list")["down"] == []


def test_a_service_that_does_not_start_is_a_warning_that_stays_until_it_runs(
    office: Installation, daemons: Daemons
) -> None:
    describe(office, daemons, "exchange")
    daemons.start("exchange")
    daemons.steer("exchange", "fail-start")
    done = office.run("backup", "run", "clinic", "--stop-service", "exchange", "--json")
    assert done.code == 3
    assert "service exchange was stopped for this job and did not start again" in done.last["warnings"][0]
    failed = office.run("services", "restore", "--json")
    assert (failed.code, failed.last["down"][0]["name"]) == (64, "exchange")
    assert "port 8080 is taken" in failed.last["down"][0]["error"]
    daemons.release("exchange", "fail-start")
    assert office.result("services", "restore")["started"] == ["exchange"]
    assert daemons.running() == {"exchange"}


def test_a_service_that_will_never_start_can_be_given_up(office: Installation, daemons: Daemons) -> None:
    describe(office, daemons, "exchange")
    daemons.start("exchange")
    daemons.steer("exchange", "fail-start")
    office.run("backup", "run", "clinic", "--stop-service", "exchange")
    office.ok("services", "forget", "exchange")
    assert office.result("services", "list")["down"] == []
    assert office.run("services", "forget", "exchange").code == 11


def test_a_service_that_is_no_longer_described_is_told_and_the_backup_still_runs(
    office: Installation, daemons: Daemons
) -> None:
    describe(office, daemons, "a")
    daemons.start("a")
    process = office.start("backup", "run", "clinic", "--max-rate", "32kB", "--stop-service", "a")
    wait_until(lambda: daemons.events() == ["stop a"] and not daemons.running())
    process.kill()
    process.communicate(timeout=30)
    office.ok("services", "remove", "a")
    done = office.run("backup", "run", "clinic", "--json")
    assert done.code == 3
    assert "service a " in done.last["warnings"][0]
    journals = office.home / "services"
    with StopToken() as stop:
        place = replace(place_in(daemons.folder), folder=journals)
        assert restore_services(place, stop, even_if_tried=True) == []
    assert daemons.running() == {"a"}


def test_services_are_described_listed_and_forgotten(office: Installation, daemons: Daemons) -> None:
    describe(office, daemons, "exchange")
    daemons.start("exchange")
    assert office.ok("services", "list").out.startswith("exchange: running")
    found = office.result("services", "list")["services"]
    assert found == [{"name": "exchange", "state": "running", "title": ""}]
    office.ok("config", "set", "services.exchange.limit_seconds", "5")
    office.ok("services", "remove", "exchange")
    assert office.run("services", "remove", "exchange").code == 11


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--stop-service", "no such service"], 11),
        (["--before", "/nowhere/at/all"], 2),
        (["--after", "'unclosed"], 2),
        (["--hook-timeout", "0"], 2),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_begins(
    office: Installation, words: list[str], code: int
) -> None:
    before = backups(office)
    assert office.run("backup", "run", "clinic", *words).code == code
    assert backups(office) == before


@pytest.mark.parametrize("command", ["", "'unclosed", "folder/program"])
def test_a_description_that_cannot_work_is_refused(installation: Installation, command: str) -> None:
    done = installation.run("services", "add", "x", "--stop", "/bin/true", "--start", command, "--state", "/bin/true")
    assert done.code in (2, 10)
    assert not (installation.home / "config.toml").exists()
