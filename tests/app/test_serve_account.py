"""As root: jobs run as another account, which owns the state and the keys and may stop only what root's file names."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from datamanager.app.serve_account import roots_folder
from datamanager.state.model import JobState
from datamanager.system.ownership import hand_over
from tests.app.serving import Serving, wait_until
from tests.servers import Server, make_folder, remove_folder
from tests.servers.account import server_account
from tests.system.daemons import Daemons

pytestmark = pytest.mark.root

ROOT = Path(__file__).resolve().parents[2]


def python_for(account: str) -> tuple[str, dict[str, str]]:
    """A Python that the account can run with this program, and the variables that it needs; skips where none is."""
    variables = {"PYTHONPATH": f"{ROOT / 'src'}:{sysconfig.get_path('purelib')}"}
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for python in (sys.executable, f"/usr/bin/{version}"):
        words = ["runuser", "-u", account, "--", python, "-P", "-m", "datamanager", "--version"]
        done = subprocess.run(words, cwd="/", env={**os.environ, **variables}, capture_output=True, check=False)
        if done.returncode == 0:
            return python, variables
    pytest.skip(f"needs a {version} that the account {account} can run")


@pytest.fixture
def office(server: Server) -> Iterator[tuple[Serving, Daemons]]:
    """A home of root's, a repository of the account's, the cluster, and a service that only root controls."""
    account = server_account()
    assert account is not None
    python, variables = python_for(account.name)
    folder = make_folder("office")
    serving = Serving(folder, python, variables)
    control = folder / "control"
    control.mkdir(mode=0o700)
    os.chown(control, 0, 0)
    daemons = Daemons(control)
    try:
        serving.init("usb", folder / "repository")
        serving.ok("cluster", "add", "clinic", server.dsn, "--repo", "usb")
        words = {action: shlex.join(daemons.words("records", action)) for action in ("stop", "start", "state")}
        serving.ok(
            "services", "add", "records", "--stop", words["stop"], "--start", words["start"], "--state", words["state"]
        )  # fmt: skip
        daemons.start("records")
        for path in (folder / "repository").rglob("*"):
            os.chown(path, account.uid, account.gid, follow_symlinks=False)
        os.chown(folder / "repository", account.uid, account.gid)
        yield serving, daemons
    finally:
        serving.close()
        daemons.power_off()
        shutil.rmtree(roots_folder(serving.files), ignore_errors=True)
        remove_folder(folder)


def owner(path: Path) -> str:
    return pwd.getpwuid(path.lstat().st_uid).pw_name


def test_jobs_run_as_the_account_and_the_supervisor_stops_and_starts_services_for_them(
    office: tuple[Serving, Daemons],
) -> None:
    serving, daemons = office
    account = server_account()
    assert account is not None
    arguments = ("clinic", "--stop-service", "records", "--max-rate", "4MB", "--full")
    serving.missed("nightly", "backup run", *arguments, subject="clinic", ago=timedelta(hours=1), heavy=True)
    assert owner(serving.files.state_file) == "root"
    service = serving.serve("--account", account.name)
    wait_until(lambda: daemons.running() == set(), 40, "the service was stopped")
    assert psutil.Process(service.pid).username() == "root"
    assert serving.planner().username() == account.name
    assert {one.username() for one in serving.jobs_alive()} == {account.name}
    wait_until(lambda: len(serving.ended("nightly")) == 1, 90, "the job has ended")
    job = serving.ended("nightly")[0]
    assert job.state.good, job
    assert daemons.running() == {"records"}
    assert daemons.events() == ["stop records", "start records"]
    assert psutil.Process(int((daemons.folder / "records.pid").read_text())).username() == "root"
    for path in (serving.files.state_file, serving.files.logs, serving.files.runs, serving.files.key_file("usb")):
        assert owner(path) == account.name, path
    assert owner(serving.files.config_file) == "root"

    # What root does meanwhile, the account can use soon afterwards.
    serving.command("config", "show")
    wait_until(lambda: {owner(path) for path in serving.files.logs.iterdir()} == {account.name}, 30, "logs are its own")
    serving.command("backup", "list", "--repo", "usb")
    assert serving.end(service) == 0


@pytest.mark.slow
def test_a_killed_job_of_the_account_leaves_no_service_stopped(office: tuple[Serving, Daemons]) -> None:
    serving, daemons = office
    account = server_account()
    assert account is not None
    arguments = ("clinic", "--stop-service", "records", "--max-rate", "1MB", "--full")
    serving.missed("nightly", "backup run", *arguments, subject="clinic", ago=timedelta(hours=1), heavy=True)
    serving.serve("--account", account.name)
    wait_until(lambda: daemons.running() == set(), 40, "the service was stopped")
    serving.kill_everything()
    service = serving.serve("--account", account.name)
    wait_until(lambda: daemons.running() == {"records"}, 60, "the service runs again")
    wait_until(lambda: len(serving.ended("nightly")) == 1, 30, "the job was told of")
    assert serving.ended("nightly")[0].state is JobState.FAILED
    assert serving.end(service) == 0


def test_the_socket_listens_to_the_account_alone_and_acts_only_on_what_roots_file_names(
    office: tuple[Serving, Daemons],
) -> None:
    serving, daemons = office
    account = server_account()
    assert account is not None
    service = serving.serve("--account", account.name)
    path = serving.planner().environ()["DATAMANAGER_PRIVILEGED_SOCKET"]
    status = Path(path).stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (0, account.gid, 0o660)
    assert owner(Path(path).parent) == "root"
    asks = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
        "s.sendall(sys.argv[2].encode() + b'\\n'); print(s.makefile().readline())"
    )

    def ask(request: str, user: str, group: int = account.gid) -> str:
        done = subprocess.run(
            [serving.python, "-c", asks, path, request],
            user=user,
            group=group,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.stdout + done.stderr

    assert '"state": "running"' in ask('{"verb": "service-look", "name": "records"}', account.name)
    assert "does not describe it" in ask('{"verb": "service-stop", "name": "ssh"}', account.name)
    assert "there is no 'shutdown'" in ask('{"verb": "shutdown", "name": "records"}', account.name)
    assert "cannot be understood" in ask("[]", account.name)
    assert "Permission denied" in ask('{"verb": "service-look", "name": "records"}', "nobody", 65534)
    assert "this account may not" in ask('{"verb": "service-stop", "name": "records"}', "nobody")

    # A configuration that others can change is root's no more.
    serving.files.config_file.chmod(0o666)
    assert "others than root can change" in ask('{"verb": "service-stop", "name": "records"}', account.name)
    assert daemons.running() == {"records"}
    with socket.socket(socket.AF_UNIX) as silent:  # who says nothing holds nobody up
        silent.connect(path)
        assert serving.end(service) == 0
    assert not Path(path).exists()


def test_an_account_with_another_home_is_refused(serving: Serving) -> None:
    del serving.variables["DATAMANAGER_HOME"]
    serving.variables["HOME"] = str(serving.folder)
    refused = serving.command("serve", "--account", "nobody", code=None)
    assert refused.code == 10
    assert "would use another home" in refused.errors


def test_handing_over_follows_no_link_and_leaves_second_names_alone(tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for folder in (home / "deep" / "deeper", home / "left", elsewhere):
        folder.mkdir(parents=True)
    for file in (home / "file", home / "deep" / "deeper" / "file", home / "left" / "file", elsewhere / "file"):
        file.write_text("")
    (home / "link").symlink_to(elsewhere)
    (home / "file link").symlink_to(elsewhere / "file")
    os.link(elsewhere / "file", home / "second name")
    os.mkfifo(home / "pipe")
    nobody = pwd.getpwnam("nobody")
    assert hand_over(home, nobody.pw_uid, nobody.pw_gid, leave={"left"}) == 5
    changed = {path.relative_to(tmp_path) for path in [*tmp_path.rglob("*")] if owner(path) == "nobody"}
    assert changed == {
        Path("home"), Path("home/file"), Path("home/deep"), Path("home/deep/deeper"), Path("home/deep/deeper/file")
    }  # fmt: skip
    assert hand_over(home, nobody.pw_uid, nobody.pw_gid, leave={"left"}) == 0
    assert hand_over(home / "link", nobody.pw_uid, nobody.pw_gid) == 0
