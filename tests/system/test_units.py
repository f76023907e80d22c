"""The unit and the task of the service are the ones written here, and systemd accepts the unit."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from datamanager.base.errors import ConfigurationError
from datamanager.system.installation import (
    MakeFolder,
    RunTool,
    SystemdInstaller,
    WindowsInstaller,
    WriteFile,
    apply,
    readable,
    task_status,
)
from datamanager.system.sd_notify import ServiceNotifier
from datamanager.system.units import ServiceDefinition, systemd_unit, windows_task

PROGRAM = ("/opt/datamanager/bin/python", "-P", "-m", "datamanager")
TASK_NAMESPACE = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"

UNIT = """\
# Written by `datamanager service install`, which replaces it. Put changes of your own into
# `systemctl edit datamanager.service`.
[Unit]
Description=DataManager for PostgreSQL: runs the schedules and looks after their jobs
After=network-online.target local-fs.target remote-fs.target time-sync.target postgresql.service
Wants=network-online.target
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart=/opt/datamanager/bin/python -P -m datamanager serve --account postgres --metrics-port 9187
Environment="DATAMANAGER_HOME=/srv/Dr. Müller's 100%% home"
WorkingDirectory=/
UMask=0077
Restart=always
RestartSec=5
TimeoutStartSec=120
TimeoutStopSec=60
WatchdogSec=120
KillMode=process
OOMPolicy=continue
LockPersonality=yes
RestrictRealtime=yes
SystemCallArchitectures=native

[Install]
WantedBy=multi-user.target
"""


def definition(program: tuple[str, ...] = PROGRAM) -> ServiceDefinition:
    return ServiceDefinition(program, "postgres", Path("/srv/Dr. Müller's 100% home"), 9187)


def test_the_unit_is_the_one_written_here() -> None:
    assert systemd_unit(definition()) == UNIT


@pytest.mark.skipif(sys.platform != "linux", reason="systemd is for Linux")
@pytest.mark.parametrize(
    "program", [(sys.executable, "-P", "-m", "datamanager"), (sys.executable, "-c", 'print("a $b %c \\d; e\'s")')]
)
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path, program: tuple[str, ...]) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    unit = tmp_path / "datamanager.service"
    unit.write_text(systemd_unit(definition(program)), encoding="utf-8")
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_unit_of_one_account_asks_for_nothing_that_only_root_may_set() -> None:
    text = systemd_unit(ServiceDefinition(PROGRAM, of_user=True))
    assert "WantedBy=default.target" in text
    assert "LockPersonality" not in text  # it would imply NoNewPrivileges, and a hook may call sudo
    assert "postgresql.service" not in text
    assert "--account" not in text


def test_the_task_of_windows_begins_with_the_computer_and_is_brought_back_each_minute() -> None:
    data = windows_task(ServiceDefinition((r"C:\Program Files\Python & Co\python.exe", "-P", "-m", "datamanager")))
    assert data.startswith(b"\xff\xfe")
    text = readable(data)
    assert text.startswith('<?xml version="1.0" encoding="UTF-16"?>\n')
    task = ElementTree.fromstring(text.partition("?>")[2])

    def value(path: str) -> str | None:
        return task.findtext(path.replace("/", f"/{TASK_NAMESPACE}"))

    assert value("./Actions/Exec/Command") == r"C:\Program Files\Python & Co\python.exe"
    assert value("./Actions/Exec/Arguments") == "-P -m datamanager serve"
    assert value("./Principals/Principal/UserId") == "S-1-5-18"
    assert value("./Principals/Principal/LogonType") is None
    assert value("./Triggers/BootTrigger/Repetition/Interval") == "PT1M"
    assert value("./Settings/MultipleInstancesPolicy") == "IgnoreNew"
    assert value("./Settings/ExecutionTimeLimit") == "PT0S"


def test_the_task_of_windows_for_an_account_needs_no_password() -> None:
    text = readable(windows_task(ServiceDefinition(("python.exe",), account="OFFICE\\backup")))
    assert "<UserId>OFFICE\\backup</UserId>" in text
    assert "<LogonType>S4U</LogonType>" in text


def test_windows_registers_the_task_through_a_file_that_is_gone_afterwards(tmp_path: Path) -> None:
    installer = WindowsInstaller(tmp_path)
    steps = installer.install(ServiceDefinition(("python.exe",), account="backup"), start=True)
    assert [type(step).__name__ for step in steps] == ["MakeFolder", "WriteFile", "RunTool", "RemoveFile", "RunTool"]
    tools = [step.command[1:] for step in steps if isinstance(step, RunTool)]
    assert tools[0][:4] == ("/Create", "/TN", r"\DataManager\DataManager for PostgreSQL", "/XML")
    assert tools[0][-4:] == ("/RU", "backup", "/NP", "/F")
    assert tools[1] == ("/Run", "/TN", r"\DataManager\DataManager for PostgreSQL")
    with pytest.raises(ConfigurationError, match="DATAMANAGER_HOME is set"):
        installer.install(ServiceDefinition(("python.exe",), home=Path("/srv")), start=True)


def test_what_windows_says_of_a_task_is_understood() -> None:
    text = readable(windows_task(ServiceDefinition(("python.exe",))))
    assert task_status(text).enabled is True
    off = text.replace("<Enabled>true</Enabled>\n    <Hidden>", "<Enabled>false</Enabled>\n    <Hidden>")
    assert (task_status(off).installed, task_status(off).enabled) == (True, False)
    assert task_status("ERROR: The system cannot find the file specified.").installed is False


@pytest.mark.skipif(shutil.which("systemctl") is None, reason="needs systemctl")
def test_the_unit_is_enabled_in_a_system_below_a_folder_and_leaves_nothing(tmp_path: Path) -> None:
    installer = SystemdInstaller(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    told: list[str] = []
    assert installer.status().installed is False
    assert installer.remove() == ()

    for _ in range(2):  # it can be done again
        apply(installer.install(definition(), start=True), "install service", told.append)
        assert installer.unit_file.read_text(encoding="utf-8") == UNIT
        assert installer.status().enabled is True
    link = tmp_path / "etc/systemd/system/multi-user.target.wants/datamanager.service"
    assert link.is_symlink()
    assert f"write {installer.unit_file} (mode 0644)" in told
    assert f"run systemctl --root={tmp_path} enable datamanager.service" in told

    apply(installer.remove(), "remove service", told.append)
    assert installer.status().installed is False
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before and not path.is_dir()] == []


def test_a_step_that_fails_names_itself_and_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"make folder .*/file/below") as caught:
        apply((MakeFolder(tmp_path / "file" / "below", 0o755),), "install service", lambda text: None)
    assert caught.value.hint
    with pytest.raises(ConfigurationError, match="install service: run false: exit status 1"):
        apply((RunTool(("false",)),), "install service", lambda text: None)
    apply(
        (RunTool(("false",), may_fail=True), WriteFile(tmp_path / "new", b"x", 0o600)),
        "install service",
        lambda text: None,
    )
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets")
@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_hears_each_word_as_one_datagram(tmp_path: Path, abstract: bool) -> None:
    name = f"@datamanager-test-{tmp_path.name}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name[1:] if abstract else name)
        listener.settimeout(5)
        notifier = ServiceNotifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "120000000"})
        notifier.ready("watching\n3 schedules")
        assert listener.recv(4096) == b"READY=1\nSTATUS=watching 3 schedules"
        notifier.alive()
        assert listener.recv(4096) == b"WATCHDOG=1"
        notifier.stopping()
        assert listener.recv(4096) == b"STOPPING=1"
    assert notifier.watchdog_seconds == 120
    notifier.alive()  # nobody listens any more: no error
    assert ServiceNotifier({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}).watchdog_seconds is None
    ServiceNotifier({}).ready("nobody listens")
