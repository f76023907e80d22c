"""Jobs as people see them: every run is recorded, can be watched, and is ended within ten seconds."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from datamanager.jobs.run_file import RunFolder
from datamanager.system.processes import this_process
from tests.cli.caller import Done, Installation
from tests.conftest import NewServer
from tests.servers import Server

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")

SLOW = "--max-rate", "100KB"


@pytest.fixture
def office(installation: Installation, server: Server) -> Installation:
    """A home with the cluster ``clinic`` and the repository ``usb``."""
    installation.init()
    installation.ok("cluster", "add", "clinic", server.dsn, "--repo", "usb", "--no-check")
    return installation


class Running:
    """A command in a process of its own, which someone waits for, as a shell would."""

    def __init__(self, installation: Installation, *words: str, wait_for: str = "copying") -> None:
        self.process = installation.start(*words, "--json", start_new_session=True)
        self.folder = RunFolder(installation.home / "runs")
        self._output: list[str] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        self.id = until(self._find)
        until(lambda: wait_for in "".join(self._output) or None)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._output.append(line)
        self.process.wait()

    def _find(self) -> str | None:
        return next((run.job.id for run in self.folder.runs() if run.process.pid == self.process.pid), None)

    def end(self, timeout: float = 30) -> Done:
        """Wait for its end."""
        self._thread.join(timeout)
        assert self.process.stderr is not None
        errors = self.process.stderr.read()
        self.process.stderr.close()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return Done(self.process.wait(timeout), "".join(self._output), errors)


def until(look: Callable[[], Any], seconds: float = 30) -> Any:
    deadline = time.monotonic() + seconds
    while (found := look()) is None:
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)
    return found


def log_of(installation: Installation, job: str) -> str:
    text: str = installation.result("job", "log", job)["text"]
    return text


def history(installation: Installation) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = installation.result("job", "list", "--limit", "1000")["jobs"]
    return found


def temporaries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".tmp")]


@pytest.fixture
def killed_later() -> Iterator[list[Running]]:
    """Whatever a failed test leaves running is ended."""
    started: list[Running] = []
    yield started
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.end()


@pytest.mark.requirement("R96", missing="the page and the API")
def test_the_history_counts_every_run_and_every_use_leaves_a_log(
    office: Installation, killed_later: list[Running]
) -> None:
    before, logs_before = len(history(office)), len(office.logs())
    jobs = [
        ("backup", "run", "clinic"), ("backup", "run", "nobody"), ("repo", "verify", "usb"), ("expire", "clinic"),
        ("backup", "run", "clinic", "--spread", "--fast"), ("repo", "prune", "usb"), ("restore", "x", "--target", "/x"),
    ]  # fmt: skip
    reading = [("backup", "list"), ("repo", "list"), ("cluster", "list"), ("expire", "clinic", "--dry-run")]
    codes = [office.run(*words).code for words in (*jobs, *reading)]
    killed = Running(office, "backup", "run", "clinic", *SLOW)
    killed_later.append(killed)
    killed.process.kill()
    killed.end()
    found = history(office)
    assert codes == [0, 11, 0, 0, 2, 0, 11, 0, 0, 0, 0]
    assert len(office.logs()) - logs_before == len(jobs) + len(reading) + 1 + 1  # and `job list` itself
    assert len(found) - before == len(jobs) + 1  # requirement R96
    assert sorted(one["kind"] for one in found) == sorted([*(job_kind(words) for words in jobs), "backup run"])
    assert all(one["state"] in ("done", "failed") for one in found)
    assert not list((office.home / "runs").iterdir())


def job_kind(words: tuple[str, ...]) -> str:
    return words[0] if words[0] in ("expire", "restore") else " ".join(words[:2])


@pytest.mark.requirement("R47", missing="whole packs stay for the next run until a prune")
@pytest.mark.parametrize("stopped", [False, True], ids=["as it runs", "stopped by SIGSTOP"])
def test_a_cancelled_backup_is_gone_within_ten_seconds_and_leaves_nothing(
    office: Installation, server: Server, killed_later: list[Running], stopped: bool
) -> None:
    earlier = office.result("backup", "run", "clinic")["backup_id"]
    repository = office.folder / "repository of usb"
    run = Running(office, "backup", "run", "clinic", "--full", *SLOW)
    killed_later.append(run)
    assert server.value("SELECT count(*) FROM pg_replication_slots") == 1
    if stopped:
        # In the middle of a write, as a machine that hangs would leave it.
        (repository / "packs" / "00" / f".put-{token_of(run.process.pid)}00000000.tmp").write_bytes(b"begun")
        run.process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    done = office.ok("job", "cancel", run.id[:-2], "--json").last
    took = time.monotonic() - began
    alive = psutil.pid_exists(run.process.pid)
    slots = until(lambda: (server.value("SELECT count(*) FROM pg_replication_slots") == 0) or None, 5)
    left = temporaries(repository), list((repository / "leases").iterdir())
    run.end()
    assert done["state"] == "cancelled"
    assert done["by_force"] == stopped
    assert "Cancelled by root" in done["summary"]
    assert log_of(office, run.id).startswith("backup run of clinic: cancelled\n")
    assert [one["backup_id"] for one in office.result("backup", "list")["backups"]] == [earlier]
    assert office.result("repo", "verify", "usb")["ok"]
    assert office.run("backup", "run", "clinic").code == 0
    assert (took < 10, alive, slots, left) == (True, False, True, ([], []))  # requirement R47


def token_of(pid: int) -> str:
    """What the names of a process's unfinished files begin with, found by making the process's own."""
    from datamanager.storage.local import _token  # noqa: PLC0415 - the name is no one else's business
    from datamanager.system.processes import identify  # noqa: PLC0415

    identity = identify(pid)
    assert identity is not None
    return _token(identity)


def test_cancelling_what_has_ended_says_so(office: Installation) -> None:
    office.ok("expire", "clinic")
    (job,) = history(office)
    done = office.ok("job", "cancel", job["id"])
    assert "had ended already: done" in done.out
    assert office.run("job", "cancel", "1999").code == 11


def test_a_backup_killed_by_kill_9_is_failed_at_the_next_look(
    office: Installation, killed_later: list[Running]
) -> None:
    run = Running(office, "backup", "run", "clinic", *SLOW)
    killed_later.append(run)
    assert next(one for one in history(office) if one["id"] == run.id)["state"] == "running"
    run.process.kill()
    run.end()
    shown = office.result("job", "show", run.id)
    assert (shown["state"], shown["job_exit_code"]) == ("failed", None)
    assert "it was killed, or the computer stopped" in shown["cause"]
    assert shown["effect"] == "No new backup was made; the earlier ones are as they were."
    assert shown["next_step"]
    assert log_of(office, run.id).startswith("backup run of clinic: failed\n")


def test_a_run_of_another_boot_is_failed_although_its_number_lives_again(office: Installation) -> None:
    office.ok("expire", "clinic")
    folder = RunFolder(office.home / "runs")
    (path,) = (office.home / "runs").iterdir()
    values = json.loads(path.read_text())
    me = this_process()
    values["process"] = {"pid": me.pid, "started": me.started, "boot": me.boot}
    values["job"] |= {"state": "running", "ended": None, "exit_code": None, "summary": ""}
    path.write_text(json.dumps(values))
    (alive,) = history(office)
    assert alive["state"] == "running"
    values["process"]["boot"] = "00000000-0000-4000-8000-000000000000"
    path.write_text(json.dumps(values))
    (job,) = history(office)
    assert job["state"] == "failed"
    assert folder.ids() == []


@pytest.mark.requirement("R95", missing="tables; the page")
def test_a_failing_runs_log_says_cause_effect_and_next_step_first(office: Installation) -> None:
    (office.folder / "repository of usb").rename(office.folder / "in the safe")
    assert office.run("backup", "run", "clinic").code == 31
    (job,) = history(office)
    head = log_of(office, job["id"]).partition("\nDetails:\n")[0].splitlines()
    assert head[0] == "backup run of clinic: failed"
    assert head[1] == "datamanager backup run clinic"
    cause, effect, step = (next(line for line in head if line.startswith(name)) for name in ("Cause", "Effect", "Next"))
    assert "repository of usb" in cause
    assert effect == "Effect: No new backup was made; the earlier ones are as they were."
    assert step == "Next step: Plug the drive in (or mount it) and run the command again."  # requirement R95


def test_the_log_of_a_good_run_names_what_it_worked_on(office: Installation, server: Server, open_folder: Path) -> None:
    server.sql("CREATE DATABASE records")
    try:
        backup = office.result("backup", "run", "clinic")
        target = open_folder / "restored"
        office.ok("restore", "latest", "--target", target, "--cluster", "clinic")
    finally:
        server.sql("DROP DATABASE records")
    restore, run = history(office)
    text = log_of(office, run["id"]).partition("\nDetails:\n")[0]
    assert "\n- database records, " in text
    assert f"\n- {backup['files']} files, " in text
    assert f"\n- data directory {target}\n" in log_of(office, restore["id"])


@pytest.mark.requirement("R95", missing="a drill; hooks have a test of their own")
def test_no_secret_and_no_row_is_in_any_log_record_or_history(
    installation: Installation, new_server: NewServer, killed_later: list[Running]
) -> None:
    server = new_server()
    password, row = "Zq7-not-for-anyone", "Rosalind Mirror 1971-05-02"
    server.sql(f"CREATE ROLE keeper SUPERUSER LOGIN REPLICATION PASSWORD '{password}'")
    server.sql("CREATE TABLE patients AS SELECT %s::text AS name FROM generate_series(1, 50)", row)
    server.password_only("keeper")
    installation.init()
    secret_file = installation.secret_file("server password", password)
    conninfo = f"host={server.host} port={server.port} user=keeper"
    installation.ok("cluster", "add", "clinic", conninfo, "--password-file", secret_file, "--repo", "usb")
    installation.ok("backup", "run", "clinic")
    installation.run("backup", "run", f"{conninfo} password={password}")
    installation.run("restore", "latest", "--target", "/x", "--repo", f"sftp://keeper:{password}@host/x")
    installation.run("restore", "latest", "--cluster", "clinic", "--target", installation.folder / "new")
    run = Running(installation, "backup", "run", "clinic", "--full", *SLOW)
    killed_later.append(run)
    records = [path.read_text() for path in (installation.home / "runs").iterdir()]
    run.process.kill()
    run.end()
    found = history(installation)
    texts = [path.read_text() for path in installation.logs() if path.is_file()] + records + [json.dumps(found)]
    texts += [json.dumps(installation.result("job", "show", one["id"])) for one in found]
    texts.append((installation.home / "state.sqlite").read_bytes().decode("latin-1"))
    assert len(found) == 5
    code = installation.recovery_code().replace("-", "")
    for secret in (password, row, "open sesame, said the clinic", code):
        assert not [text for text in texts if secret in text or secret in text.replace("-", "")]


@pytest.mark.requirement("R98")
@pytest.mark.requirement("R99", missing="download")
def test_the_eleventh_run_removes_the_oldest_text_and_never_a_pinned_one(office: Installation) -> None:
    for _ in range(2):
        office.ok("expire", "clinic")
    second, first = (one["id"] for one in history(office))
    pinned = Path(office.result("job", "pin", first)["path"])
    for _ in range(9):
        office.ok("expire", "clinic")
    assert office.run("job", "log", second).code == 0  # ten texts that are not pinned, this one the oldest
    office.ok("expire", "clinic")
    gone = office.run("job", "log", second)
    assert (gone.code, len(history(office))) == (11, 12)  # requirement R98
    assert "not kept any more" in gone.errors
    office.ok("config", "set", "logs.keep", "2")
    office.ok("expire", "clinic")
    assert len(list((office.home / "logs").glob("expire.clinic-*.log"))) == 2
    assert log_of(office, first) == pinned.read_text()  # requirement R99
    office.ok("job", "unpin", first)
    office.ok("expire", "clinic")
    assert office.run("job", "log", first).code == 11


def test_logs_of_other_subjects_are_not_counted_together(office: Installation) -> None:
    office.ok("config", "set", "logs.keep", "1")
    for name in ("a/b", "a_b", "a_b"):
        office.run("backup", "run", name)
    assert len(list((office.home / "logs").glob("backup-run.a_b*.log"))) == 2


@pytest.mark.requirement("R41", missing="the page; planning at 1:00 AM")
def test_a_running_backup_shows_percent_and_from_half_way_on_when_it_ends(
    office: Installation, killed_later: list[Running]
) -> None:
    run = Running(office, "backup", "run", "clinic", "--max-rate", "5MB")
    killed_later.append(run)
    foreseen: list[tuple[float, float]] = []
    seen: set[float] = set()
    while run.process.poll() is None:
        found = run.folder.read(run.id)
        if found is not None and found.job.progress.phase == "copying":
            progress = found.job.progress
            if progress.fraction is not None and progress.fraction not in seen and progress.fraction >= 0.5:
                seen.add(progress.fraction)
                assert progress.seconds_left is not None
                foreseen.append((time.monotonic(), time.monotonic() + progress.seconds_left))
        elif foreseen:
            break
        time.sleep(0.02)
    ended = time.monotonic()
    assert run.end().code == 0
    shown = office.result("job", "show", run.id)
    took = time_of(shown["ended"]) - time_of(shown["started"])
    assert len(foreseen) >= 1
    assert all(abs(end - ended) < 0.2 * took for _, end in foreseen)  # requirement R41


def time_of(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_a_job_can_be_followed_to_its_end(office: Installation, killed_later: list[Running]) -> None:
    run = Running(office, "backup", "run", "clinic", "--max-rate", "16MB")
    killed_later.append(run)
    done = office.ok("job", "show", run.id, "--follow", "--json")
    assert run.end().code == 0
    assert "copying" in [one["phase"] for one in done.of_type("phase")]
    assert done.last["state"] == "done"
    assert done.last["cluster" if "cluster" in done.last else "subject"] == "clinic"


def test_runs_that_cannot_be_recorded_are_done_all_the_same(office: Installation) -> None:
    (office.home / "runs").write_text("a file where the folder should be")
    done = office.run("backup", "run", "clinic", "--json")
    assert done.code == 3
    assert done.last["backup_id"]
    assert "this run is not recorded" in done.last["warnings"][0]


def fill(path: Path) -> None:
    """Use up what room there is."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


@pytest.mark.mounts
def test_on_a_disk_that_fills_up_meanwhile_the_end_is_told_all_the_same(
    installation: Installation, server: Server, killed_later: list[Running]
) -> None:
    installation.home.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", installation.home], check=True)
    try:
        installation.init()
        installation.ok("cluster", "add", "clinic", server.dsn, "--repo", "usb", "--no-check")
        run = Running(installation, "backup", "run", "clinic", "--max-rate", "8MB")
        killed_later.append(run)
        fill(installation.home / "ballast")
        done = run.end()
        assert done.code == 0
        found = run.folder.read(run.id)
        assert found is not None
        assert (str(found.job.state), found.job.exit_code) == ("done", 0)
    finally:
        subprocess.run(["umount", "--lazy", installation.home], check=True)


def test_recording_a_run_costs_less_than_five_milliseconds(tmp_path: Path) -> None:
    times = []
    for _ in range(15):
        done = subprocess.run([sys.executable, "-c", _COST, str(tmp_path)], check=True, capture_output=True, text=True)
        times.append(float(done.stdout))
        if len(times) >= 3 and min(times) < 0.005:
            break
    assert min(times) < 0.005


_COST = """
import sys, time
from pathlib import Path
from datamanager.base.clock import SystemClock
from datamanager.base.pipeline import StopToken
from datamanager.cli.session import Invocation, Session
from datamanager.cli.output import JsonConsole
from datamanager.jobs.record import Ending
import os
os.environ["DATAMANAGER_HOME"] = sys.argv[1]
call = Invocation("backup run", ("clinic",), "clinic", recorded=True, heavy=True)
with StopToken() as stop:
    session = Session(JsonConsole(sys.stderr, time.monotonic), stop, call)
    began = time.perf_counter()
    session.record.begin("x.log")
    half = time.perf_counter() - began
    began = time.perf_counter()
    session.record.finish(Ending(0, "done"))
    print(half + time.perf_counter() - began)
"""


# What a backup of a server at an address of this machine, without services around it, has no use for.
_NOT_FOR_BACKUPS = (
    "sqlalchemy", "alembic", "apprise", "dateutil", "tomlkit", "psutil", "segno", "rich", "datamanager.app.around",
    "datamanager.app.retained", "datamanager.app.wal",
)  # fmt: skip


def test_the_run_of_a_backup_imports_nothing_of_the_history(office: Installation) -> None:
    office.ok("backup", "list")
    code = (
        "import sys; from datamanager.cli import main; code = main.run(sys.argv[1:]);"
        f"print(code, [name for name in {_NOT_FOR_BACKUPS} if name in sys.modules])"
    )
    words = [sys.executable, "-c", code, "backup", "run", "clinic"]
    environment = {**os.environ, "DATAMANAGER_HOME": str(office.home)}
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines()[-1] == "0 []"
