"""Runs against other processes, other accounts, wrong clocks and damaged files: nothing is lost or led astray."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from datamanager.base.events import Warned
from datamanager.base.pipeline import StopToken
from datamanager.config.home import Home
from datamanager.jobs.intake import take_in
from datamanager.jobs.log import RunLog, add_summary, drop_older
from datamanager.jobs.record import Ending, RunRecord
from datamanager.jobs.run_file import RunFolder, encoded
from datamanager.jobs.service_journal import Journal, read_journal, write_journal
from datamanager.jobs.services_around import Place, restore_services
from datamanager.jobs.worker import Worker
from datamanager.state.database import State
from datamanager.state.model import Job, JobRequest, JobState
from datamanager.system.services import DescribedServices, ServiceCommands, Services
from tests.jobs.test_intake import CLOCK, GONE, NOW, a_run, folder, home, state
from tests.storage.mounts import tmpfs

__all__ = ["folder", "home", "state"]

# A run that writes its record and is then killed, or ends with exit code 7.
_DIES = """
import os, signal, sys
from pathlib import Path
record, ended = Path(sys.argv[1]), sys.argv[2]
ID = os.environ["DATAMANAGER_JOB"]
if record.name != "none":
    Path(sys.argv[3], f"{ID}.json").write_text(record.read_text().replace("THE-ID", ID))
os.kill(os.getpid(), signal.SIGKILL) if ended == "killed" else sys.exit(7)
"""


def a_dying_job(home: Home, state: State, tmp_path: Path, ended: str, *, recorded: bool) -> tuple[Worker, Job]:
    """A worker whose child has died without a word of its end; nobody has looked since."""
    record = tmp_path / ("record" if recorded else "none")
    if recorded:
        run = a_run(JobState.RUNNING, process=GONE)
        job = replace(run.job, id="THE-ID", log="backup-run.clinic-20261123T204512.000000Z-1.log")
        record.write_bytes(encoded(replace(run, job=replace(job, host=socket.gethostname()))))
    command = (sys.executable, "-c", _DIES, str(record), ended, str(home.runs))
    worker = Worker(home, state, CLOCK, command=command)
    job_or_none = state.jobs.add(JobRequest("backup run", ("clinic",), "clinic"))
    assert job_or_none is not None
    worker.step()
    (child,) = worker._children.values()
    child.process.wait(20)
    return worker, job_or_none


def test_a_killed_run_that_someone_else_took_in_keeps_its_record(
    home: Home, folder: RunFolder, state: State, tmp_path: Path
) -> None:
    worker, job = a_dying_job(home, state, tmp_path, "killed", recorded=True)
    (taken,) = take_in(home, state, CLOCK)  # as `status` does it, between two looks of the worker
    worker.step()
    assert state.jobs.get(job.id) == taken
    assert taken.log


def test_a_forced_cancel_that_someone_else_took_in_stays_cancelled(
    home: Home, folder: RunFolder, state: State, tmp_path: Path
) -> None:
    worker, job = a_dying_job(home, state, tmp_path, "killed", recorded=True)
    folder.ask_to_cancel(job.id, "bert")
    take_in(home, state, CLOCK)
    worker.step()
    assert state.jobs.get(job.id).state is JobState.CANCELLED


def test_the_exit_code_of_a_run_without_a_record_is_told_although_someone_else_found_it_gone(
    home: Home, folder: RunFolder, state: State, tmp_path: Path
) -> None:
    worker, job = a_dying_job(home, state, tmp_path, "by itself", recorded=False)
    (taken,) = take_in(home, state, CLOCK)
    assert (taken.state, taken.exit_code) == (JobState.FAILED, None)
    worker.step()
    assert state.jobs.get(job.id).exit_code == 7


def test_a_run_that_the_database_refuses_keeps_nothing_else_from_being_taken_in(
    home: Home, folder: RunFolder, state: State
) -> None:
    values = json.loads(encoded(a_run()))
    values["job"]["summary"] = None
    broken = "20200101T000000Z-abcdef"
    folder.path(broken).write_text(json.dumps(values | {"job": values["job"] | {"id": broken}}))
    values["job"]["queued"] = None
    values["job"]["summary"] = "x"
    other = "20200101T000000Z-abcdee"
    folder.path(other).write_text(json.dumps(values | {"job": values["job"] | {"id": other}}))
    run = a_run()
    folder.write(run, durable=True)
    for id in (broken, other):
        os.utime(folder.path(id), (1_700_000_000, 1_700_000_000))
    assert run.job.id in {job.id for job in take_in(home, state, CLOCK)}
    take_in(home, state, CLOCK)
    assert folder.ids() == []
    assert state.jobs.get(broken).state is JobState.FAILED


@pytest.mark.parametrize("hours", [-24 * 400, 24 * 400])
def test_a_job_that_was_claimed_under_a_wrong_clock_and_never_began_holds_up_nobody(
    home: Home, state: State, hours: int
) -> None:
    queued = state.jobs.add(JobRequest("backup run", ("clinic",), "clinic", heavy=True))
    assert queued is not None
    state.jobs.claim(socket.gethostname(), now=CLOCK.now() + timedelta(hours=hours))
    assert [job.id for job in take_in(home, state, CLOCK)] == [queued.id]


def test_a_job_that_was_claimed_under_a_former_name_of_this_computer_holds_up_nobody(home: Home, state: State) -> None:
    """A container gets a new name each time it starts."""
    queued = state.jobs.add(JobRequest("backup run", ("clinic",), "clinic", heavy=True))
    assert queued is not None
    state.jobs.claim("the former name", now=CLOCK.now() - timedelta(hours=1))
    assert [job.id for job in take_in(home, state, CLOCK)] == [queued.id]


def test_the_log_of_a_run_that_goes_on_is_not_pruned(tmp_path: Path) -> None:
    log = RunLog.begin(tmp_path, "serve", "", "datamanager serve", CLOCK, str)
    for second in range(12):
        (tmp_path / f"serve-20991123T2045{second:02}.000000Z-{2**22 - 3}.log").touch()
    (tmp_path / f"serve-20200101T000000.000000Z-{os.getpid()}.log").touch()
    drop_older(tmp_path, "serve", 10)
    assert not list(tmp_path.glob("serve-2020*"))
    assert log.path.exists()
    assert len(list(tmp_path.glob("serve-2099*"))) == 10
    log.close(a_run().job)


@pytest.mark.root
def test_on_a_full_volume_a_run_says_how_it_ended_in_the_room_that_it_has(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", 64 * 1024) as volume, StopToken() as stop:
        folder = RunFolder(volume.folder / "runs")
        record = RunRecord(a_run(JobState.RUNNING), folder, CLOCK, stop, str)
        record.begin("x.log")
        with contextlib.suppress(OSError):
            (volume.folder / "fill").write_bytes(bytes(64 * 1024))
        warnings = tuple(f"warning {number} {'w' * 300}" for number in range(40))
        for warning in warnings:
            record.event(Warned(warning))
        job, written = record.finish(Ending(3, "it is done", None, {}, warnings))
        assert written
        told = folder.read(record.id)
        assert told is not None
        assert (told.job.state, told.job.summary) == (JobState.WARNED, job.summary)


@pytest.mark.root
def test_root_is_not_led_astray_in_the_folder_of_another_account(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("2026-11-23T20:45:12Z root's own")
    theirs = tmp_path / "home"
    theirs.mkdir()
    os.chown(theirs, 65534, 65534)
    folder = RunFolder(theirs / "runs")
    folder.make()
    run = a_run(JobState.RUNNING)
    names = [folder.path(run.job.id).with_name(f".{run.job.id}.json.{os.getpid()}.tmp"), folder.output_path(run.job.id)]
    for link in (os.symlink, os.link):
        for path in names:
            path.unlink(missing_ok=True)
            link(victim, path)
        folder.write(run, durable=False)
        with os.fdopen(folder.open_output(run.job.id), "wb") as output:
            output.write(b"led astray")
        folder.ask_to_cancel(run.job.id, "root")
        assert victim.read_text() == "2026-11-23T20:45:12Z root's own"
        assert victim.stat().st_uid == 0
    log = theirs / "x.log"
    log.symlink_to(victim)
    (theirs / ".x.log.tmp").symlink_to(victim)
    add_summary(log, run.job, ())
    assert victim.read_text() == "2026-11-23T20:45:12Z root's own"
    assert log.is_symlink()
    assert {path.lstat().st_uid for path in folder.folder.iterdir()} == {65534}


@pytest.mark.root
def test_a_journal_that_root_writes_on_stays_its_accounts(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    tmp_path.chmod(0o755)
    journals = tmp_path / "services"
    journals.mkdir()
    false = ServiceCommands(("/bin/false",), ("/bin/true",), ("/bin/false",))
    place = Place(journals, Services(DescribedServices({"a": false}, journals)), CLOCK, lambda _: None)
    journal = Journal("run", GONE, NOW, ("a",))
    write_journal(journals, journal)
    os.chown(journals / "run.json", 65534, 65534)
    with StopToken() as stop:
        (down,) = restore_services(place, stop)
    assert down.error
    kept = read_journal(journals, "run")
    assert kept is not None
    assert kept.user_id == 65534
