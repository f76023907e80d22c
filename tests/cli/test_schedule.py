"""Schedules on the command line: made, shown, changed, removed, run, handed to the operating system."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from datamanager.base.clock import SystemClock
from datamanager.cli.command import Command
from datamanager.cli.job_words import read_job
from datamanager.cli.schedule import add
from datamanager.config.state_url import sqlite_url
from datamanager.state.database import State, open_state
from datamanager.state.model import Schedule, Trigger
from tests.cli.caller import Installation
from tests.schedule.task_schema import problems
from tests.servers import Server

if sys.platform != "win32":
    from tests.cli.test_terminal import at_terminal

DAILY = ("schedule", "add", "nightly", "--daily", "--zone", "America/New_York", "--start", "2026-01-01")
BACKUP = ("--", "backup", "run", "office")
MINUTE = timedelta(minutes=1)


@pytest.fixture
def office(installation: Installation) -> Installation:
    """A cluster that no server answers for, and no schedule."""
    installation.ok("cluster", "add", "office", "host=/nowhere user=postgres", "--no-check")
    return installation


@contextmanager
def state_of(installation: Installation) -> Iterator[State]:
    with open_state(sqlite_url(installation.home / "state.sqlite"), clock=SystemClock()) as state:
        yield state


def make_due(installation: Installation, name: str, ago: timedelta = MINUTE) -> datetime:
    """Let a schedule of every hour have missed the moment that was nearest to ``ago``, and the hours before it."""
    due = datetime.now(UTC).replace(second=0, microsecond=0) - ago
    with state_of(installation) as state:
        one = state.schedules.get(name)
        recurrence = {"kind": "hourly", "zone": "Etc/UTC", "start": "2026-01-01", "at": f"00:{due:%M}"}
        state.schedules.put(Schedule(name, recurrence, one.request, True, one.created, one.changed, next_due=due))
    return due


def audit(installation: Installation) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = installation.ok("audit", "list", "--json").last["entries"]
    return [one for one in entries if one["action"].startswith("schedule")]


# -- making, showing, changing --


def test_a_schedule_is_said_in_words_when_it_is_made(office: Installation) -> None:
    text = office.ok("schedule", "add", "nightly", "--daily", *BACKUP).out
    assert text.startswith("Schedule nightly was added: Every day at 1:00 AM. Next ")
    assert office.ok("schedule", "list").out.splitlines()[1].split()[:2] == ["nightly", "on"]


@pytest.mark.requirement("R88")
def test_show_names_the_day_it_counts_from_and_the_next_five_runs(office: Installation) -> None:
    office.ok(*DAILY, "--every", "3", "--at", "2:30AM", *BACKUP)
    shown = office.result("schedule", "show", "nightly")
    runs = [datetime.fromisoformat(one) for one in shown["next_runs"]]
    text = office.ok("schedule", "show", "nightly").out
    assert "runs:         Every 3 days at 2:30 AM (America/New_York time)" in text
    assert len(runs) == 5
    assert re.search(r"counted from: +Thursday, January 1, 2026", text)
    assert len(re.findall(r"^  \w+day, \w+ \d+, \d{4}, 2:30 AM", text, re.MULTILINE)) == 5  # requirement R88


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ["--weekly", "mon,thu", "--every", "2", "--at", "11:30PM"],
            "Every 2 weeks on Monday and Thursday at 11:30 PM",
        ),
        (["--hourly", "--every", "6"], "Every 6 hours, the first at 12:00 AM on Thursday, January 1, 2026"),
        (["--monthly", "last friday", "--months", "mar,sep"], "On the last Friday of March and September at 1:00 AM"),
        (["--monthly", "31"], "On day 31 of every month at 1:00 AM; in shorter months on the last day"),
        (
            ["--monthly", "31", "--short-months", "skip"],
            "On day 31 of every month at 1:00 AM; not in months without one",
        ),
    ],
)
def test_every_kind_can_be_made_and_brought_back_by_the_command_that_remove_prints(
    office: Installation, options: list[str], expected: str
) -> None:
    office.ok(
        *("schedule", "add", "x", *options, "--start", "2026-01-01", "--zone", "Asia/Kolkata", "--limit", "90min"),
        *BACKUP,
    )
    before = office.result("schedule", "show", "x")
    assert before["runs"] == f"{expected} (Asia/Kolkata time)"
    undo = office.run("schedule", "remove", "x", "--json").last["undo"]
    assert office.ok("schedule", "list", "--json").last["schedules"] == []
    office.ok(*shlex.split(undo)[1:])
    assert office.result("schedule", "show", "x") == before


@pytest.mark.requirement("R90")
def test_for_day_31_the_user_chooses_between_skipping_and_the_last_day(office: Installation) -> None:
    common = ("--monthly", "31", "--start", "2026-01-01", "--zone", "Etc/UTC")
    office.ok("schedule", "add", "default", *common, *BACKUP)
    office.ok("schedule", "add", "skipping", *common, "--short-months", "skip", *BACKUP)
    found = {
        one["schedule"]: [datetime.fromisoformat(run) for run in one["next_runs"]]
        for one in office.ok("schedule", "list", "--json").last["schedules"]
    }
    assert {run.day for run in found["skipping"]} == {31}
    assert all((run + timedelta(days=1)).day == 1 for run in found["default"])
    assert len({run.day for run in found["default"]}) > 1


@pytest.mark.requirement("R87")
def test_a_job_that_runs_once_is_refused_for_the_past_and_is_done_and_kept_after_it(clinic: Installation) -> None:
    refused = clinic.run("schedule", "add", "once", "--once", "2026-01-01", "--", "backup", "run", "clinic")
    assert (refused.code, "is past" in refused.errors) == (2, True)
    clinic.ok("schedule", "add", "once", "--once", "2099-01-01", "--", "repo", "verify", "usb")
    due = datetime.now(UTC).replace(second=0, microsecond=0) - MINUTE
    with state_of(clinic) as state:
        one = state.schedules.get("once")
        passed = {"kind": "once", "zone": "Etc/UTC", "start": f"{due:%Y-%m-%d}", "at": f"{due:%H:%M}"}
        state.schedules.put(Schedule("once", passed, one.request, True, one.created, one.changed, next_due=due))
    assert clinic.process("schedule", "run", "once", "--if-due").code == 0
    shown = clinic.ok("schedule", "show", "once", "--json").last
    clinic.run("schedule", "remove", "once")
    assert (shown["standing"], shown["next_runs"]) == ("done", [])
    assert [one["state"] for one in shown["recent"]] == ["done"]  # requirement R87


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")
@pytest.mark.requirement("R86")
def test_the_same_name_asks_with_old_and_new_side_by_side_and_enter_means_no(office: Installation) -> None:
    office.ok(*DAILY, *BACKUP)
    before = office.result("schedule", "show", "nightly")
    words = [
        "schedule",
        "add",
        "nightly",
        "--weekly",
        "mon",
        "--limit",
        "3h",
        "--",
        "backup",
        "run",
        "office",
        "--full",
    ]
    code, shown = at_terminal(office, words, [("Change schedule nightly? [y/N]", "")])
    assert code == 2
    assert re.search(r"runs +Every day at 1:00 AM \(America/New_York time\) +Every week on Monday at 1:00 AM", shown)
    assert re.search(r"command +datamanager backup run office +datamanager backup run office --full", shown)
    assert re.search(r"time limit +none +3h", shown)
    assert office.result("schedule", "show", "nightly") == before
    assert at_terminal(office, words, [("Change schedule nightly? [y/N]", "y")])[0] == 0
    assert office.result("schedule", "show", "nightly")["command"] == "backup run office --full"


def test_without_a_terminal_the_same_name_needs_replace(office: Installation) -> None:
    office.ok(*DAILY, *BACKUP)
    again = ("schedule", "add", "nightly", "--weekly", "mon", *BACKUP)
    refused = office.run(*again)
    assert refused.code == 2
    assert "--replace" in refused.errors
    assert "OLD" in refused.out
    changed = office.ok(*again[:3], "--replace", "--json", *again[3:]).last
    assert changed["replaced"]["runs"] == "Every day at 1:00 AM (America/New_York time)"


@pytest.mark.requirement("R93", missing="the form of the web page")
def test_times_and_parameters_are_changed_together_with_one_entry_that_has_before_and_after(
    office: Installation,
) -> None:
    office.ok(*DAILY, *BACKUP)
    office.ok(
        "schedule", "add", "nightly", "--replace", "--weekly", "mon", *BACKUP, "--name", "weekly", "--repo", "/usb"
    )
    newest, oldest = audit(office)
    assert (newest["action"], oldest["action"]) == ("schedule changed", "schedule added")
    assert newest["before"] == oldest["after"]
    assert newest["before"]["command"] == "backup run office"
    assert newest["after"]["command"] == "backup run office --name weekly --repo /usb"
    assert newest["after"]["recurrence"]["kind"] == "weekly"


@pytest.mark.requirement("R91")
def test_changing_and_removing_a_schedule_never_touches_a_backup(clinic: Installation) -> None:
    before = clinic.ok("backup", "list", "--deleted", "--json").last["backups"]
    job = ("--", "backup", "run", "clinic", "--rolling", "--name", "the first one")
    clinic.ok("schedule", "add", "nightly", "--daily", *job)
    clinic.ok("schedule", "add", "nightly", "--replace", "--monthly", "last", "--", "backup", "run", "clinic")
    clinic.run("schedule", "remove", "nightly")
    assert clinic.ok("backup", "list", "--deleted", "--json").last["backups"] == before


@pytest.mark.requirement("R92")
def test_all_jobs_stand_in_one_list(office: Installation) -> None:
    jobs = {
        "nightly": "backup run office",
        "cleaning": "expire office",
        "checking": "repo verify /usb --rolling",
        "proof": "drill run latest --cluster office",
    }
    for name, job in jobs.items():
        office.ok("schedule", "add", name, "--daily", "--", *job.split())
    office.run("schedule", "disable", "nightly")
    found = office.ok("schedule", "list", "--json").last["schedules"]
    text = office.ok("schedule", "list").out
    assert {one["schedule"]: one["command"] for one in found} == jobs
    assert [one["standing"] for one in found] == ["on", "on", "off", "on"]
    assert text.splitlines()[0].split() == ["NAME", "IS", "RUNS", "NEXT", "LAST", "COMMAND"]
    assert [line.split()[0] for line in text.splitlines()[1:]] == sorted(jobs)  # requirement R92


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--daily", "--", "backup", "run"], "missing argument"),
        (["--daily", "--", "backup", "run", "office", "--compres", "3"], "no such option"),
        (["--daily", "--", "backup", "walk", "office"], "no such command"),
        (["--daily", "--", "backup"], "a verb is missing"),
        (["--daily", "--", "backup", "list"], "is not a job"),
        (["--daily", "--", "expire", "office", "--dry-run"], "is not a job"),
        (["--daily", "--", "schedule", "run", "nightly"], "is not a job"),
        (["--daily", "--", "backup", "run", "office", "--help"], "there is none"),
        (["--daily", "--", "backup", "run", "office", "--passphrase-file", "pass.txt"], "is a relative path"),
        (["--daily", "--", "backup", "run", "elsewhere"], "no cluster is named"),
        (["--daily", "--", "backup", "run", "office", "--repo", "nowhere"], "no repository is named"),
        (["--daily", "--weekly", "mon", "--", "backup", "run", "office"], "--daily and --weekly is given"),
        (["--", "backup", "run", "office"], "none of the kinds"),
        (["--daily", "--months", "mar", "--", "backup", "run", "office"], "are for --monthly"),
        (["--daily", "--at", "25:00", "--", "backup", "run", "office"], "is not one"),
        (["--daily", "--zone", "Mars/Olympus", "--", "backup", "run", "office"], "no time zone"),
        (["--monthly", "30", "--months", "feb", "--short-months", "skip", "--", "backup", "run", "office"], "ever has"),
    ],
)
def test_what_would_fail_at_night_is_refused_now(office: Installation, words: list[str], expected: str) -> None:
    refused = office.run("schedule", "add", "nightly", *words)
    assert refused.code in (2, 11), refused
    assert expected in refused.errors.lower() or expected in refused.errors
    assert office.ok("schedule", "list", "--json").last["schedules"] == []


def test_the_name_is_one_that_files_can_bear(office: Installation) -> None:
    assert office.run("schedule", "add", "every night", "--daily", *BACKUP).code == 2


def test_next_lists_the_runs_of_all_schedules_by_time(office: Installation) -> None:
    office.ok("schedule", "add", "b", "--hourly", *BACKUP)
    office.ok("schedule", "add", "a", "--daily", *BACKUP)
    found = office.result("schedule", "next", "--limit", "6")["upcoming"]
    dues = [datetime.fromisoformat(one["due"]) for one in found]
    assert dues == sorted(dues)
    assert {one["schedule"] for one in found} == {"a", "b"}


# -- protection --


@pytest.mark.requirement("R94")
def test_removing_the_last_backup_of_a_cluster_warns_is_audited_and_can_be_undone(office: Installation) -> None:
    office.ok(*DAILY, *BACKUP)
    office.ok("schedule", "add", "second", "--daily", *BACKUP)
    assert office.ok("schedule", "remove", "second").code == 0
    before = office.result("schedule", "show", "nightly")
    done = office.run("schedule", "remove", "nightly")
    undo = done.out.splitlines()[-1]
    assert done.code == 3
    assert "warning: no enabled schedule backs up office any more: it is not protected" in done.out
    assert audit(office)[0]["action"] == "schedule removed"
    assert audit(office)[0]["before"]["command"] == "backup run office"
    office.ok(*shlex.split(undo)[1:])
    assert office.result("schedule", "show", "nightly") == before  # requirement R94


def test_disabling_and_retiming_away_a_clusters_backups_warns_as_well(office: Installation) -> None:
    office.ok(*DAILY, *BACKUP)
    disabled = office.run("schedule", "disable", "nightly", "--json").last
    assert disabled["warnings"] == ["no enabled schedule backs up office any more: it is not protected"]
    assert disabled["next_due"] is None
    office.ok("schedule", "enable", "nightly")
    other = office.run("schedule", "add", "nightly", "--daily", "--replace", "--", "expire", "office")
    assert other.code == 3
    assert [one["action"] for one in audit(office)[:3]] == ["schedule changed", "schedule enabled", "schedule disabled"]


# -- running --


@pytest.mark.requirement("R82")
def test_an_exported_unit_runs_the_same_job_and_stands_in_its_history(clinic: Installation, tmp_path: Path) -> None:
    clinic.ok("schedule", "add", "hourly", "--hourly", "--", "backup", "run", "clinic", "--name", "by the unit")
    clinic.ok("schedule", "export", "hourly", "--to", "systemd", "--out", tmp_path)
    unit = (tmp_path / "datamanager-hourly.service").read_text()
    command = re.search(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    home = re.search(r"^Environment=(.*)$", unit, re.MULTILINE)
    assert command is not None
    assert home is not None
    assert shlex.split(home[1]) == [f"DATAMANAGER_HOME={clinic.home}"]
    words = shlex.split(command[1])
    due = make_due(clinic, "hourly")
    first = clinic.process(*words[words.index("datamanager") + 1 :], "--json")
    again = clinic.process(*words[words.index("datamanager") + 1 :], "--json")
    with state_of(clinic) as state:
        jobs = state.jobs.list(schedule="hourly")
    clinic.run("schedule", "remove", "hourly")
    assert (first.code, again.code) == (0, 0), (first, again)
    assert again.last["job"] is None
    assert first.last["state"] == "done"
    assert first.last["job_result"]["name"] == "by the unit"
    assert [one["phase"] for one in first.of_type("phase")]
    assert [(job.id, job.request.due, job.request.trigger) for job in jobs] == [
        (first.last["job"], due, Trigger.SCHEDULE)
    ]  # requirement R82


def test_run_makes_a_run_of_the_schedule_and_ends_with_its_exit_code(office: Installation) -> None:
    office.ok(*DAILY, *BACKUP)
    before = office.result("schedule", "show", "nightly")
    done = office.process("schedule", "run", "nightly")
    after = office.result("schedule", "show", "nightly")
    assert done.code == 11
    assert "failed" in done.out
    assert "`datamanager repo init NAME URL`" in done.out
    assert [one["state"] for one in after["recent"]] == ["failed"]
    assert after["next_due"] == before["next_due"]
    with state_of(office) as state:
        job = state.jobs.list(schedule="nightly")[0]
    assert (job.request.trigger, job.request.due, job.log != "") == (Trigger.PERSON, None, True)


def test_a_job_is_ended_at_its_limit_of_time_and_by_ctrl_c(installation: Installation, server: Server) -> None:
    installation.init()
    installation.ok("cluster", "add", "clinic", server.dsn, "--repo", "usb")
    slow = ("--", "backup", "run", "clinic", "--max-rate", "32kB")
    installation.ok("schedule", "add", "slow", "--daily", *slow)
    process = installation.start("schedule", "run", "slow")
    while process.poll() is None and not list((installation.home / "runs").glob("*.json")):
        pass
    process.terminate()
    out, errors = process.communicate(timeout=30)
    assert process.returncode == 130, (out, errors)
    with state_of(installation) as state:
        one = state.schedules.get("slow")
        limited = replace(one, request=replace(one.request, limit_seconds=2.0))
        state.schedules.put(limited)
    assert installation.process("schedule", "run", "slow").code != 0
    with state_of(installation) as state:
        assert [str(job.state) for job in state.jobs.list(schedule="slow")] == ["failed", "cancelled"]
        assert "time limit" in state.jobs.list(schedule="slow")[0].cause
    assert installation.ok("backup", "list", "--json").last["backups"] == []


def test_what_came_late_is_run_once_and_what_is_disabled_not_at_all(office: Installation) -> None:
    office.ok(*DAILY, *BACKUP)
    make_due(office, "nightly", timedelta(hours=5, minutes=30))
    office.process("schedule", "run", "nightly", "--if-due")
    office.process("schedule", "run", "nightly", "--if-due")
    with state_of(office) as state:
        jobs = state.jobs.list(schedule="nightly")
    assert [job.request.trigger for job in jobs] == [Trigger.CATCH_UP]
    make_due(office, "nightly")
    office.run("schedule", "disable", "nightly")
    office.process("schedule", "run", "nightly", "--if-due")
    assert len(office.ok("schedule", "show", "nightly", "--json").last["recent"]) == 1


# -- the rest --


def test_the_quiet_hour_is_suggested_with_the_command_that_follows_it(office: Installation) -> None:
    unmeasured = office.result("schedule", "suggest", "office")
    assert (unmeasured["at"], unmeasured["measured"]) == ("01:00", False)
    with state_of(office) as state:
        for hour in range(168):
            count = 1.0 if hour % 24 == 4 else 500.0
            state.known.add_activity("office", hour, count)
    found = office.result("schedule", "suggest", "office", "--zone", "Etc/UTC")
    assert (found["at"], found["measured"]) == ("04:00", True)
    office.ok(*shlex.split(found["command"])[1:])


@pytest.mark.parametrize("system", ["systemd", "windows", "cron"])
def test_export_prints_the_files_and_how_to_install_them(office: Installation, system: str) -> None:
    office.ok(*DAILY, "--at", "2:30AM", *BACKUP)
    text = office.ok("schedule", "export", "nightly", "--to", system).out
    assert "schedule run nightly --if-due" in text
    assert "To install:" in text
    folder = office.folder / "exported"
    found = office.result("schedule", "export", "nightly", "--to", system, "--out", folder)
    assert sorted(file["name"] for file in found["files"]) == sorted(path.name for path in folder.iterdir())
    if system == "windows":
        assert problems((folder / "datamanager-nightly.xml").read_bytes()) == []


def test_schedules_hold_no_secret_and_are_plain_json_in_the_audit_log(office: Installation) -> None:
    office.ok(*DAILY, *BACKUP, "--passphrase-file", "/etc/datamanager/pass.txt")
    assert json.loads(json.dumps(audit(office)[0]["after"]))["limit_seconds"] is None


def test_the_commands_in_the_examples_can_be_scheduled() -> None:
    assert isinstance(add, Command)
    for example in add.examples:
        assert read_job(shlex.split(example.partition(" -- ")[2])).recorded
