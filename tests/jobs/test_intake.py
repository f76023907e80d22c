"""Runs become history: whole, once, and truthfully, also from two processes at once and after a power cut."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from datamanager.base.clock import SystemClock
from datamanager.base.redacting import redacted
from datamanager.config.home import Home
from datamanager.config.state_url import sqlite_url
from datamanager.jobs.intake import take_in
from datamanager.jobs.log import RunLog, drop_older, job_name
from datamanager.jobs.run_file import RunFile, RunFolder, decoded, encoded
from datamanager.state.database import State, open_state
from datamanager.state.model import Job, JobEvent, JobProgress, JobRequest, JobState, Trigger, new_job_id
from datamanager.system.processes import ProcessIdentity, boot_id, this_process

NOW = datetime(2026, 11, 23, 20, 45, 12, tzinfo=UTC)
CLOCK = SystemClock()


def a_run(state: JobState = JobState.DONE, **values: object) -> RunFile:
    request = JobRequest("backup run", ("clinic",), "clinic", who="anna", heavy=True)
    ended = NOW + timedelta(seconds=9) if state.final else None
    job = Job(
        new_job_id(NOW), request, state, NOW, NOW, ended, "desk", os.getpid(), 1.5,
        NOW + timedelta(seconds=5), JobProgress("copying", 5, 10, 0.5, 2.5, 2.0),
        0 if state.final else None, "Done.", warnings=("one",), result={"backup_id": "x"},
    )  # fmt: skip
    events = (JobEvent(NOW, "phase", "copying"), JobEvent(NOW, "touched", "database clinic"))
    run = RunFile(job, this_process(), events, "No new backup was made.", None, "clinic")
    return replace(run, **values)  # type: ignore[arg-type]


GONE = ProcessIdentity(2**22 - 3, 1.0, boot_id())


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path, tmp_path)


@pytest.fixture
def folder(home: Home) -> RunFolder:
    made = RunFolder(home.runs)
    made.make()
    return made


@pytest.fixture
def state(home: Home) -> Iterator[State]:
    with open_state(sqlite_url(home.state_file), clock=CLOCK) as opened:
        yield opened


def test_a_file_of_a_run_says_all_of_it() -> None:
    due = NOW - timedelta(days=1)
    run = a_run()
    request = replace(run.job.request, schedule="nightly", due=due, trigger=Trigger.CATCH_UP, limit_seconds=3.0)
    whole = replace(run, job=replace(run.job, request=request, cancelled_by="bert", log="x.log"))
    assert decoded(encoded(whole)) == whole


def test_what_another_release_added_is_passed_over_and_a_newer_format_is_refused() -> None:
    values = json.loads(encoded(a_run()))
    values["job"]["mood"] = values["job"]["request"]["mood"] = values["mood"] = "good"
    assert decoded(json.dumps(values).encode()).job.request.who == "anna"
    for broken in (b"", b"{}", b"[]", json.dumps(values | {"format": 2}).encode()):
        with pytest.raises(ValueError):
            decoded(broken)


def test_a_finished_run_is_taken_in_once_with_its_events(home: Home, folder: RunFolder, state: State) -> None:
    run = a_run()
    folder.write(run, durable=True)
    folder.ask_to_cancel(run.job.id, "too late")
    assert take_in(home, state, CLOCK) == [run.job]
    assert take_in(home, state, CLOCK) == []
    assert state.jobs.get(run.job.id) == run.job
    assert state.jobs.events(run.job.id) == list(run.events)
    assert not list(home.runs.iterdir())


def test_taking_in_again_keeps_what_was_decided_meanwhile(home: Home, folder: RunFolder, state: State) -> None:
    run = a_run()
    folder.write(run, durable=True)
    take_in(home, state, CLOCK)
    state.jobs.set_pinned(run.job.id, True)
    folder.write(run, durable=True)  # as if the process had been killed before it removed the file
    take_in(home, state, CLOCK)
    assert state.jobs.get(run.job.id).log_pinned
    assert state.jobs.events(run.job.id) == list(run.events)
    assert state.jobs.count() == 1


def test_two_at_once_take_in_each_run_once(home: Home, folder: RunFolder, state: State) -> None:
    runs = [a_run() for _ in range(40)]
    for run in runs:
        folder.write(run, durable=False)
    threads = [threading.Thread(target=take_in, args=(home, state, CLOCK)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert state.jobs.count() == len(runs)
    assert all(len(state.jobs.events(run.job.id)) == 2 for run in runs)


def test_a_run_that_goes_on_is_left_alone(home: Home, folder: RunFolder, state: State) -> None:
    folder.write(a_run(JobState.RUNNING), durable=False)
    assert take_in(home, state, CLOCK) == []
    assert folder.ids() != []


@pytest.mark.parametrize(
    ("file", "expected", "word"),
    [("", JobState.FAILED, "it was killed"), ("cancel", JobState.CANCELLED, "Bert cancelled it"),
     ("limit", JobState.FAILED, "time limit of 3.0 s")],
)  # fmt: skip
def test_a_run_without_a_word_is_told_of_truthfully(
    home: Home, folder: RunFolder, state: State, file: str, expected: JobState, word: str
) -> None:
    run = a_run(JobState.RUNNING, process=GONE)
    limited = replace(run.job.request, limit_seconds=3.0)
    log = home.logs / "backup-run.clinic-20261123T204512.000000Z-1.log"
    home.logs.mkdir()
    log.write_text("2026-11-23T20:45:12.000Z started: datamanager backup run clinic\n")
    run = replace(run, job=replace(run.job, request=limited, log=log.name, host=socket.gethostname()))
    folder.write(run, durable=False)
    if file == "cancel":
        folder.ask_to_cancel(run.job.id, "bert")
        folder.ask_to_cancel(run.job.id, "the second to ask")
    elif file:
        folder.limit_path(run.job.id).touch()
    (job,) = take_in(home, state, CLOCK)
    assert (job.state, job.ended, job.exit_code) == (expected, run.job.heartbeat, None)
    assert word in job.cause
    assert job.effect == "No new backup was made."
    text = log.read_text()
    assert text.startswith(f"backup run of clinic: {expected}\n")
    assert "last seen" in text
    assert "- database clinic\n" in text
    assert "\nDetails:\n2" in text
    assert not list(home.runs.iterdir())


def test_a_file_spoiled_by_a_power_cut_becomes_a_failed_run(home: Home, folder: RunFolder, state: State) -> None:
    queued = state.jobs.add(JobRequest("backup run", ("clinic",), "clinic"))
    assert queued is not None
    for id in (queued.id, "20260101T000000Z-abcdef"):
        folder.path(id).write_bytes(bytes(100))
    assert take_in(home, state, CLOCK) == []  # it may be from a program that writes in another way, this moment
    for id in folder.ids():
        os.utime(folder.path(id), (1_700_000_000, 1_700_000_000))
    assert {job.request.kind for job in take_in(home, state, CLOCK)} == {"backup run", "unknown command"}
    assert state.jobs.get(queued.id).state is JobState.FAILED


def test_a_run_on_another_computer_lives_while_it_beats(folder: RunFolder) -> None:
    run = a_run(JobState.RUNNING, process=ProcessIdentity(5, 1.0, "another boot"))
    run = replace(run, job=replace(run.job, host="another computer"))
    assert run.alive(NOW + timedelta(seconds=30))
    assert not run.alive(NOW + timedelta(minutes=10))


def test_the_result_of_a_test_restore_becomes_a_proof_once(home: Home, folder: RunFolder, state: State) -> None:
    run = a_run()
    result = {
        "backup": "b1", "cluster": "clinic", "system_identifier": "7", "backup_time": NOW.isoformat(),
        "time": NOW.isoformat(), "passed": True, "seconds": 5.0, "restore_seconds": 2.0,
        "checks": {"tables": 3}, "finding": "", "source": "usb", "more": 1,
    }  # fmt: skip
    run = replace(run, job=replace(run.job, request=JobRequest("drill run", (), "clinic"), result=result))
    for _ in range(2):
        folder.write(run, durable=True)
        take_in(home, state, CLOCK)
    (proof,) = state.proofs.list("clinic")
    assert (proof.backup, proof.passed, proof.job, dict(proof.checks)) == ("b1", True, run.job.id, {"tables": 3})


def test_files_without_a_run_go_after_a_day(folder: RunFolder) -> None:
    old, new = folder.cancel_path("a"), folder.output_path("b")
    for path in (old, new):
        path.touch()
    os.utime(old, (1_700_000_000, 1_700_000_000))
    folder.sweep(86_400)
    assert [path.name for path in folder.folder.iterdir()] == [new.name]


@pytest.mark.root
def test_what_root_writes_into_another_accounts_home_belongs_to_that_account(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    folder = RunFolder(tmp_path / "runs")
    folder.make()
    run = a_run(JobState.RUNNING)
    folder.write(run, durable=False)
    folder.ask_to_cancel(run.job.id, "root")
    log = RunLog.begin(tmp_path / "logs", "backup run", "clinic", "datamanager", CLOCK, str)
    log.close(run.job)
    paths = [folder.folder, *folder.folder.iterdir(), tmp_path / "logs", *(tmp_path / "logs").iterdir()]
    assert len(paths) == 5
    assert {path.stat().st_uid for path in paths} == {65534}


def test_names_of_logs_are_safe_and_tell_subjects_apart() -> None:
    assert job_name("backup run", "clinic") == "backup-run.clinic"
    assert job_name("expire", "") == "expire"
    odd = [job_name("repo verify", text) for text in ("/media/a b", "/media/a_b", "ä" * 300, "../..", "a\nb")]
    assert len(set(odd)) == len(odd)
    assert all(len(name) < 100 and not set(name) & set("/\\: \n") for name in odd)


def test_only_logs_of_the_very_same_job_are_counted(tmp_path: Path) -> None:
    for job in ("backup-run.a", "backup-run.a-b", "backup-run", "backup-run.b"):
        for second in range(3):
            (tmp_path / f"{job}-20261123T20451{second}.000000Z-1.log").touch()
    drop_older(tmp_path, "backup-run.a", 1)
    drop_older(tmp_path, "backup-run", 2)
    counts = {job: len(list(tmp_path.glob(f"{job}-2026*"))) for job in ("backup-run.a", "backup-run.a-b", "backup-run")}
    assert counts == {"backup-run.a": 1, "backup-run.a-b": 3, "backup-run": 2}


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("host=x password=hunter2 port=1", "host=x password=*** port=1"),
        ("host=x password='hun ter2' port=1", "host=x password=*** port=1"),
        ("postgresql://anna:hunter2@host/db", "postgresql://anna:***@host/db"),
        ("https://host/?token=hunter2&x=1", "https://host/?token=***&x=1"),
        ("postgresql://anna:hun@ter2@host/db", "postgresql://anna:***@host/db"),
        ("PGPASSWORD=hunter2 x", "PGPASSWORD=*** x"),
        ("password=hun,ter2 x", "password=*** x"),
        ("--passphrase-file=/keys/file", "--passphrase-file=/keys/file"),
        ("read passphrase: there is no terminal", "read passphrase: there is no terminal"),
    ],
)
def test_a_secret_typed_where_none_belongs_is_masked(typed: str, shown: str) -> None:
    assert redacted(typed) == shown


def test_the_program_can_be_run_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-P", "-m", "datamanager", "--version"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "datamanager" in done.stdout
