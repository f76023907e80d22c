"""``datamanager status`` from end to end, on a real server and a real repository."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock_time
from pathlib import Path

import pytest

from datamanager.app.context import Context
from datamanager.app.planner_file import PlannerBeat, write_beat
from datamanager.app.status import Status, gather
from datamanager.base.clock import SystemClock
from datamanager.base.events import Event
from datamanager.base.pipeline import StopToken
from datamanager.config.home import Home
from datamanager.config.state_url import sqlite_url
from datamanager.schedule.recurrence import Kind, Recurrence
from datamanager.state.database import State, open_state
from datamanager.state.model import Job, JobRequest, JobState, Proof, Schedule, Trigger, new_job_id
from datamanager.system.processes import this_process
from tests.cli.caller import Done, Installation
from tests.servers import Server

DAY = timedelta(days=1)
# Starting Python and importing everything takes most of a second; the rest is for the other tests on this machine.
_ABOUT_A_SECOND = 4.0


class LaterClock(SystemClock):
    """The machine's clock, so much later."""

    def __init__(self, later: timedelta) -> None:
        self.later = later

    def now(self) -> datetime:
        return super().now() + self.later


def home_of(installation: Installation) -> Home:
    return Home(installation.home, installation.home)


@contextlib.contextmanager
def state_of(installation: Installation) -> Iterator[State]:
    with open_state(sqlite_url(home_of(installation).state_file), clock=SystemClock()) as state:
        yield state


def put_schedule(installation: Installation, *, enabled: bool = True, changed: datetime | None = None) -> None:
    """Every day at 1:00 AM UTC."""
    recurrence = Recurrence(Kind.DAILY, "UTC", date(2026, 1, 1), clock_time(1, 0))
    request = JobRequest("backup run", ("clinic",), "clinic", Trigger.SCHEDULE, heavy=True)
    moment = changed or datetime.now(UTC)
    with state_of(installation) as state:
        state.schedules.put(
            Schedule("clinic-nightly", recurrence.to_json(), request, enabled, created=moment, changed=moment)
        )


def plan(installation: Installation, later: timedelta = timedelta()) -> None:
    """A planner that lives: this process."""
    now = datetime.now(UTC) + later
    write_beat(home_of(installation).planner_file, PlannerBeat(now, this_process(), now))


def prove(installation: Installation, *, days_ago: float = 0, passed: bool = True, finding: str = "") -> None:
    backup = installation.result("backup", "show", "latest")
    time = datetime.now(UTC) - days_ago * DAY
    proof = Proof(
        backup["backup_id"], "clinic", backup["system_identifier"], datetime.fromisoformat(backup["ended"]), time,
        passed, seconds=90.0, restore_seconds=42 * 60, finding=finding, source="usb",
    )  # fmt: skip
    with state_of(installation) as state:
        state.proofs.add(proof)


def said(installation: Installation) -> tuple[int, str]:
    done = installation.run("status")
    return done.code, done.out.splitlines()[0]


def keys(installation: Installation) -> list[str]:
    return [one["key"] for one in installation.run("status", "--json").last["findings"]]


@pytest.fixture
def office(installation: Installation, server: Server) -> Installation:
    """The cluster ``clinic`` with a repository, and nothing done yet."""
    installation.init()
    installation.ok("cluster", "add", "clinic", server.dsn, "--repo", "usb")
    return installation


@pytest.fixture
def protected(office: Installation) -> Installation:
    """Backed up, scheduled, planned, proven."""
    office.ok("backup", "run", "clinic")
    put_schedule(office)
    plan(office)
    prove(office)
    return office


@contextlib.contextmanager
def looked(installation: Installation, later: timedelta = timedelta()) -> Iterator[Callable[[], Status]]:
    def unheard(event: Event) -> None:
        pass

    with StopToken() as stop:
        context = Context(home_of(installation), LaterClock(later), stop, unheard)
        yield lambda: gather(context, patience_seconds=20)


@pytest.mark.requirement("R6", missing="the page")
def test_from_nothing_to_safe_and_back(office: Installation) -> None:
    assert said(office) == (1, "Not protected: no backup of database server clinic exists yet.")
    assert "no-schedule:clinic" in keys(office)
    office.ok("backup", "run", "clinic")
    unscheduled = said(office)
    put_schedule(office, enabled=False)
    assert said(office) == unscheduled
    assert "datamanager schedule enable clinic-nightly" in office.run("status").out
    put_schedule(office)
    assert said(office) == (
        1,
        "Not protected: scheduled backups do not run: the planner was not started on this computer.",
    )
    plan(office)
    code, sentence = said(office)
    assert (code, sentence.split(" today")[0]) == (3, "Backed up, not yet proven. Last copy")
    assert "datamanager drill run latest --cluster clinic" in office.run("status").out

    prove(office, days_ago=31)
    assert said(office) == (
        1,
        "Not protected: the last test restore of database server clinic was 31 days ago, and no longer than 30 days "
        "are allowed.",
    )
    office.ok("config", "set", "proof.limit", "60d")
    assert said(office)[0] == 0
    office.ok("config", "set", "proof.limit", "")
    prove(office, days_ago=9)
    code, sentence = said(office)
    assert (code, sentence[:33]) == (0, "Your records are safe. Last copy ")
    assert sentence.endswith(", proven by a test restore 9 days ago.")
    assert "be back in about 42 minutes (measured)." in office.run("status").out
    prove(office, passed=False, finding="the index visits_pkey is damaged")
    code, sentence = said(office)
    assert (code, sentence.partition(" failed")[0]) == (
        1,
        "Not protected: the last test restore of database server clinic",
    )
    assert sentence.endswith(": the index visits_pkey is damaged.")
    assert unscheduled == (1, "Not protected: no schedule backs up database server clinic by itself.")  # requirement R6


def test_a_real_test_restore_proves_it_and_its_mark_is_enough_when_the_history_is_lost(
    office: Installation, server: Server
) -> None:
    office.ok("config", "set", "clusters.clinic.install_path", str(server.bin.parent))
    office.ok("backup", "run", "clinic")
    put_schedule(office)
    plan(office)
    assert office.run("status", "--json").last["verdict"] == "at risk"
    proof = office.result("drill", "run", "latest", "--cluster", "clinic")
    assert proof["passed"] is True
    found = office.result("status")
    assert (found["verdict"], found["clusters"][0]["proven"][:16]) == ("safe", proof["time"][:16])
    assert found["clusters"][0]["back_seconds"] == pytest.approx(proof["restore_seconds"], abs=0.1)
    for file in office.home.glob("state.sqlite*"):
        file.unlink()
    put_schedule(office)
    assert said(office)[0] == 0


def test_a_missing_backup_is_a_risk_and_two_are_no_protection(protected: Installation) -> None:
    found = {}
    for days in (0.9, 2, 4):
        later = days * DAY
        plan(protected, later)
        with looked(protected, later) as look:
            status = look()
            found[days] = (status.verdict.exit_code, [one.kind for one in status.verdict.findings if one.severity > 1])
    assert found[2][1] == found[4][1] == ["overdue"]
    assert found[4][0] == 1
    assert found[2][0] in (1, 3)  # by the hour of the day one or two planned moments have passed


def test_a_failed_run_is_told_until_a_later_one_is_good(protected: Installation) -> None:
    moment = datetime.now(UTC) + timedelta(seconds=1)
    request = JobRequest("backup run", ("clinic",), "clinic", Trigger.SCHEDULE, schedule="clinic-nightly", due=moment)
    job = Job(
        new_job_id(moment), request, JobState.FAILED, moment, moment, moment, exit_code=32, cause="The drive is full."
    )
    with state_of(protected) as state:
        state.jobs.save(job)
    code, sentence = said(protected)
    assert (code, sentence.endswith("by schedule clinic-nightly failed " + sentence.partition("failed ")[2])) == (
        3,
        True,
    )
    assert "The drive is full." in sentence
    assert f"datamanager job show {job.id}" in protected.run("status").out
    good = replace(
        job, id=new_job_id(moment + timedelta(seconds=1)), state=JobState.DONE, queued=moment + timedelta(seconds=1),
        request=replace(request, schedule=None, due=None), exit_code=0, cause="",
    )  # fmt: skip
    with state_of(protected) as state:
        state.jobs.save(good)
    assert said(protected)[0] == 0


def test_a_dead_planner_is_red_and_a_timer_of_the_system_takes_its_place(protected: Installation) -> None:
    file = home_of(protected).planner_file
    beat = PlannerBeat(datetime.now(UTC), replace(this_process(), started=1.0), datetime.now(UTC))
    write_beat(file, beat)
    assert said(protected) == (1, "Not protected: scheduled backups do not run: the planner ended just now.")
    file.unlink()
    assert said(protected)[0] == 1
    protected.ok("schedule", "run", "clinic-nightly", "--if-due")
    assert said(protected)[0] == 0


def timed(installation: Installation) -> tuple[Done, float]:
    began = time.monotonic()
    done = installation.process("status", "--json")
    return done, time.monotonic() - began


def test_an_unplugged_drive_leaves_what_was_last_seen_with_its_age(protected: Installation) -> None:
    assert said(protected)[0] == 0  # and remembers what it saw
    drive = protected.folder / "repository of usb"
    drive.rename(drive.with_name("pulled"))
    done, seconds = timed(protected)
    assert done.code == 0
    assert [one["key"] for one in done.last["findings"]] == ["away:usb", "remembered:clinic"]
    assert done.last["clusters"][0]["seen"] is not None
    assert done.last["repositories"][0]["error"]
    assert seconds < _ABOUT_A_SECOND
    text = protected.run("status").out
    assert "Note: Backup location usb cannot be read now and was last seen just now" in text
    with looked(protected, 3 * DAY) as look:
        plan(protected, 3 * DAY)
        kinds = {one.kind: one.severity.name for one in look().verdict.findings}
    assert kinds["away"] == "AT_RISK"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the stand-in for a drive that hangs needs named pipes")
def test_a_drive_that_hangs_does_not_hang_the_status(protected: Installation) -> None:
    assert said(protected)[0] == 0
    config = protected.folder / "repository of usb" / "config"
    assert config.is_file()
    config.unlink()
    os.mkfifo(config)  # opening it waits until somebody writes, which nobody does
    done, seconds = timed(protected)
    assert done.code == 0
    assert done.last["repositories"][0]["error"] == "it does not answer"
    assert "remembered:clinic" in [one["key"] for one in done.last["findings"]]
    assert seconds < _ABOUT_A_SECOND


def test_nothing_known_and_nothing_readable_is_not_called_no_backup(office: Installation) -> None:
    drive = office.folder / "repository of usb"
    drive.rename(drive.with_name("pulled"))
    code, sentence = said(office)
    assert (code, sentence.partition(": backup location usb")[0]) == (
        1,
        "Not protected: nothing is known of backups of database server clinic",
    )


def test_whatever_is_broken_the_exit_code_is_one_and_a_sentence_says_why(
    protected: Installation, tmp_path: Path
) -> None:
    assert protected.run("status", "--cluster", "nobody").code == 1
    state = home_of(protected).state_file
    for leftover in state.parent.glob(f"{state.name}*"):
        leftover.unlink()
    state.write_bytes(b"no database at all " * 500)
    code, sentence = said(protected)
    assert (code, sentence.partition(":")[0]) == (1, "Not protected")
    assert "history of runs and schedules cannot be read" in sentence
    (protected.home / "config.toml").write_text("[clusters\n", encoding="utf-8")
    code, sentence = said(protected)
    assert code == 1
    assert "the configuration cannot be read" in sentence
    assert protected.run("status", home=Path("relative")).code == 1
    assert protected.run("status", home=tmp_path / "nowhere").code == 1


def test_a_status_of_one_cluster_leaves_the_others_out(protected: Installation, server: Server) -> None:
    protected.ok("cluster", "add", "reports", server.dsn)
    assert said(protected)[0] == 1
    only = protected.result("status", "--cluster", "clinic")
    assert (only["verdict"], [one["cluster"] for one in only["clusters"]]) == ("safe", ["clinic"])


def test_the_machine_readable_status_names_its_parts(protected: Installation) -> None:
    found = protected.result("status")
    assert found["verdict"] == "safe"
    assert found["clusters"][0]["newest_backup"] == protected.result("backup", "show", "latest")["backup_id"]
    assert found["clusters"][0]["back_seconds"] == 42 * 60
    assert found["planner_alive"] is True
    assert [(one["key"], one["severity"]) for one in found["findings"] if one["severity"] != "advice"] == []
