"""The service ends restores in place that were cut off, backs up what was restored, and keeps off those that live."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from datamanager.app.context import Context
from datamanager.app.in_place_notes import new_note, read_note, read_notes, write_note
from datamanager.app.serve_restores import finish_restores
from datamanager.base.clock import SystemClock
from datamanager.base.events import ignore
from datamanager.base.pipeline import StopToken
from datamanager.config.home import Home
from datamanager.state.model import JobState
from datamanager.system.processes import identify, this_process
from tests.app.serving import Serving, wait_until
from tests.conftest import NewServer
from tests.servers import Server

pytestmark = [pytest.mark.pg("18"), pytest.mark.skipif(sys.platform == "win32", reason="signals")]
IN_PLACE = ("--in-place", "--confirm", "office", "--no-safety-backup")


class Office:
    """A cluster with rows 1 and 2 in its only backup, and 3 committed since."""

    def __init__(self, serving: Serving, server: Server) -> None:
        self.serving = serving
        self.server = server
        server.sql("create table numbered (n int primary key)")
        server.sql("insert into numbered values (1), (2)")
        serving.init()
        serving.ok("cluster", "add", "office", server.dsn, "--repo", "usb", "--no-settings")
        serving.ok("config", "set", "clusters.office.install_path", str(server.bin))
        self.backup: str = serving.result("backup", "run", "office")["backup_id"]
        server.sql("insert into numbered values (3)")

    def rows(self) -> list[int]:
        return [n for (n,) in self.server.sql("select n from numbered order by n")]

    def killed_at(self, phase: str, *more: str) -> None:
        assert self.serving.killed_at(phase, "restore", self.backup, *IN_PLACE, *more), phase

    def findings(self) -> dict[str, str]:
        """The commands that `status` names for restores that were cut off, by sentence."""
        found = json.loads(self.serving.run("status", "--json").out.splitlines()[-1])["findings"]
        return {one["sentence"]: one["command"] for one in found if one["key"] == "restore:office"}

    def wait_until_over(self) -> None:
        wait_until(lambda: not list(read_notes(self.serving.files)), 60, "nothing is unfinished")

    def backups(self) -> int:
        return len(self.serving.result("backup", "list")["backups"])


@pytest.fixture
def office(serving: Serving, new_server: NewServer) -> Office:
    return Office(serving, new_server())


@pytest.mark.decision(11)
def test_a_restore_that_was_cut_off_is_finished_at_the_start_and_backed_up(office: Office) -> None:
    serving = office.serving
    office.killed_at("starting the server")
    ((sentence, command),) = office.findings().items()
    assert "was cut off and is not finished" in sentence
    assert command == "datamanager restore complete office"
    service = serving.serve()
    office.wait_until_over()
    assert office.rows() == [1, 2]
    wait_until(lambda: any(one.request.who.startswith("the service") for one in serving.ended()), 60, "a job has ended")
    assert office.findings() == {}
    assert serving.end(service) == 0
    assert "was completed: backup" in serving.said()
    audit = serving.ok("audit", "list").out
    assert "unfinished restore completed" in audit
    assert "found by the service" in audit
    (kept,) = serving.result("restore", "kept", "office")["kept"]
    assert kept["place"]
    (job,) = (one for one in serving.jobs() if one.request.who.startswith("the service"))
    assert (job.request.kind, job.request.subject, job.state) == ("backup run", "office", JobState.DONE)
    assert office.backups() == 2


@pytest.mark.slow
@pytest.mark.decision(11)
def test_one_that_is_killed_while_the_service_runs_is_ended_soon(office: Office) -> None:
    service = office.serving.serve()
    office.killed_at("stopping the server")
    office.wait_until_over()
    assert office.rows() == [1, 2, 3]
    office.killed_at("backing up the restored cluster")
    office.wait_until_over()
    assert office.rows() == [1, 2]
    wait_until(lambda: office.backups() == 2, 60, "it is backed up")
    assert office.serving.end(service) == 0
    assert "was taken back" in office.serving.said()


def test_one_whose_process_lives_is_left_alone(office: Office) -> None:
    serving = office.serving
    service = serving.serve()
    restoring = serving.start("restore", office.backup, *IN_PLACE, "--json")
    assert restoring.stdout is not None
    for line in restoring.stdout:
        if json.loads(line).get("phase") == "stopping the server":
            restoring.send_signal(signal.SIGSTOP)
            break
    time.sleep(12.0)  # longer than the service takes to look again
    assert office.findings() == {}
    note = read_note(serving.files, "office")
    assert note is not None
    assert note.process.pid == restoring.pid
    restoring.send_signal(signal.SIGCONT)
    out, errors = restoring.communicate(timeout=60)
    assert restoring.returncode == 0, out + errors
    assert json.loads(out.splitlines()[-1])["following_backup_id"]
    assert office.rows() == [1, 2]
    assert serving.end(service) == 0
    assert list(read_notes(serving.files)) == []
    assert office.backups() == 2


def test_what_the_service_cannot_finish_is_told_once_with_the_command_that_mends_it(office: Office) -> None:
    serving = office.serving
    office.killed_at("comparing and restoring", "--delta", "--cluster", "office")
    service = serving.serve()
    wait_until(lambda: any("half written" in one for one in office.findings()), 30, "it is told")
    (command,) = office.findings().values()
    assert command.startswith(f"datamanager restore {office.backup} --cluster office --in-place --delta")
    assert serving.end(service) == 0
    service = serving.serve()
    time.sleep(3.0)
    assert serving.end(service) == 0
    assert serving.said().count("cannot be finished") == 1
    serving.ok(*command.removeprefix("datamanager ").split())
    assert office.rows() == [1, 2]
    assert office.findings() == {}


@pytest.mark.decision(11)
def test_who_completes_a_restore_by_hand_gets_its_backup_too(office: Office) -> None:
    serving = office.serving
    office.killed_at("starting the server")
    done = serving.run("restore", "complete", "office", "--json").last
    assert done["finished"]["completed"] is True
    assert done["following_backup_id"]
    assert office.rows() == [1, 2]
    assert list(read_notes(serving.files)) == []


def test_the_next_restore_backs_up_what_it_completes_before_it_goes_on(office: Office) -> None:
    serving = office.serving
    office.killed_at("starting the server")
    done = serving.run("restore", office.backup, *IN_PLACE, "--data-directory", str(office.server.data_directory))
    assert done.code in (0, 3), done
    assert office.rows() == [1, 2]
    assert office.backups() == 3


def test_a_volume_that_is_not_there_is_tried_three_times_and_then_left_to_people(tmp_path: Path) -> None:
    home = Home(tmp_path, tmp_path)
    home.config_file.write_text('[clusters.office]\nconninfo = "host=/nowhere"\n', encoding="utf-8")
    gone = subprocess.Popen(["true"])
    process = identify(gone.pid) or this_process()
    gone.wait()
    note = new_note("office", "restore", tmp_path / "not mounted", "", datetime.now(UTC))
    write_note(home, replace(note, process=replace(process, pid=gone.pid)))
    said = []
    with StopToken() as stop:
        context = Context(home, SystemClock(), stop, ignore)
        for tries, again in ((1, True), (2, True), (3, False)):
            said += finish_restores(context)
            left = read_note(home, "office")
            assert left is not None
            assert left.tries == tries
            assert (left.again is not None) is again
            assert not left.is_due(datetime.now(UTC))
            # Whoever tried has ended meanwhile.
            write_note(home, replace(left, process=replace(process, pid=gone.pid)))
    (told,) = said
    assert "its volume may not be mounted" in told
    assert "Run `datamanager restore complete office`." in told
