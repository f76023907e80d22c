"""Registering the service with the operating system: first a plan that can be shown, then its steps in order.

``ServiceInstaller`` is the seam: systemd and the Windows Task Scheduler stand behind it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from xml.etree import ElementTree

from datamanager.base.errors import ConfigurationError
from datamanager.base.files import write_durably
from datamanager.system.units import START_SECONDS, TASK_NAME, UNIT_NAME, ServiceDefinition, systemd_unit, windows_task

_TOOL_SECONDS = START_SECONDS + 60
_BOOTED = Path("/run/systemd/system")  # Source: sd_booted(3)
_SYSTEM_UNITS = Path("/etc/systemd/system")


@dataclass(frozen=True, slots=True)
class MakeFolder:
    """Make a folder, and its parents; one that is there keeps its mode."""

    path: Path
    mode: int

    def describe(self) -> str:
        return f"make folder {self.path} (mode {self.mode:04o})"


@dataclass(frozen=True, slots=True)
class WriteFile:
    """Write a file, or replace it."""

    path: Path
    data: bytes
    mode: int = 0o644

    def describe(self) -> str:
        return f"write {self.path} (mode {self.mode:04o})"


@dataclass(frozen=True, slots=True)
class CopyTree:
    """Copy a folder with everything in it; the copy is private, and what is copied stays."""

    source: Path
    target: Path

    def describe(self) -> str:
        return f"copy {self.source} to {self.target}"


@dataclass(frozen=True, slots=True)
class RemoveFile:
    """Remove a file; one that is not there is no error."""

    path: Path

    def describe(self) -> str:
        return f"remove {self.path}"


@dataclass(frozen=True, slots=True)
class RunTool:
    """Run a program of the operating system.

    Args: may_fail - it changes nothing that matters, such as ending what has ended already.
    """

    command: tuple[str, ...]
    may_fail: bool = False

    def describe(self) -> str:
        return f"run {shlex.join(self.command)}"


Step = MakeFolder | WriteFile | CopyTree | RemoveFile | RunTool
InstallationPlan = tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """The service as the operating system sees it; None where it does not say.

    Args: file - what describes it, where that is a file.
    """

    installed: bool
    enabled: bool | None = None
    running: bool | None = None
    file: Path | None = None


class ServiceInstaller(Protocol):
    """Knows how one operating system begins a program with the machine. Changes nothing by itself."""

    def install(self, service: ServiceDefinition, *, start: bool) -> InstallationPlan:
        """What registers the service anew. Raises: ConfigurationError, where it cannot be expressed."""
        ...

    def remove(self) -> InstallationPlan:
        """What ends the service and takes it away; empty when there is none."""
        ...

    def status(self) -> ServiceStatus:
        """Raises: ConfigurationError, when the system does not say."""
        ...


class SystemdInstaller:
    """A unit of systemd.

    Args:
        root: the system to install into, such as an image below a folder; nothing is started there.
        of_user: the service manager of this account instead of the machine's.
    """

    def __init__(self, root: Path | None = None, *, of_user: bool = False) -> None:
        self._root = root
        self._of_user = of_user

    @property
    def unit_file(self) -> Path:
        folder = _user_units() if self._of_user else _SYSTEM_UNITS
        return below(self._root, folder) / UNIT_NAME

    def install(self, service: ServiceDefinition, *, start: bool) -> InstallationPlan:
        self._need_systemd("install service")
        running = self._root is None
        return (
            MakeFolder(self.unit_file.parent, 0o755),
            WriteFile(self.unit_file, systemd_unit(service).encode()),
            *([self._systemctl("daemon-reload")] if running else []),
            self._systemctl("enable", UNIT_NAME),
            *([self._systemctl("restart", UNIT_NAME)] if running and start else []),
        )

    def remove(self) -> InstallationPlan:
        if not self.unit_file.exists():
            return ()
        self._need_systemd("remove service")
        running = self._root is None
        return (
            *([self._systemctl("stop", UNIT_NAME)] if running else []),
            self._systemctl("disable", UNIT_NAME),
            RemoveFile(self.unit_file),
            *([self._systemctl("daemon-reload")] if running else []),
        )

    def status(self) -> ServiceStatus:
        if not self.unit_file.exists():
            return ServiceStatus(False, file=self.unit_file)
        enabled = _answer(self._systemctl("is-enabled", UNIT_NAME).command)
        running = None
        if self._root is None and _BOOTED.is_dir():
            running = _answer(self._systemctl("is-active", UNIT_NAME).command) in ("active", "activating", "reloading")
        return ServiceStatus(True, enabled == "enabled", running, self.unit_file)

    def _systemctl(self, *words: str) -> RunTool:
        root = () if self._root is None else (f"--root={self._root}",)
        return RunTool(("systemctl", *root, *(("--user",) if self._of_user else ()), *words))

    def _need_systemd(self, purpose: str) -> None:
        if shutil.which("systemctl") is None or (self._root is None and not _BOOTED.is_dir()):
            raise ConfigurationError(
                f"{purpose}: this computer was not started by systemd",
                hint="Let what starts programs here run `datamanager serve`, or give --root FOLDER for an image.",
            )
        if self._root is None and not self._of_user and os.geteuid() != 0:
            raise ConfigurationError(
                f"{purpose}: only root may do that for the whole computer",
                hint="Run it with sudo, or with --user for a service of this account alone.",
            )


class WindowsInstaller:
    """A task of the Windows Task Scheduler that begins with the machine.

    Args: work_folder - where the task's XML is put for schtasks.exe.
    """

    def __init__(self, work_folder: Path) -> None:
        self._file = work_folder / "datamanager-service.xml"

    def install(self, service: ServiceDefinition, *, start: bool) -> InstallationPlan:
        if service.home is not None:
            raise ConfigurationError(
                "install service: a task of Windows has no variables of its own, and DATAMANAGER_HOME is set",
                hint="Unset DATAMANAGER_HOME; the service then uses DataManager's folder below ProgramData.",
            )
        if service.of_user:
            raise ConfigurationError(
                "install service: --user is for systemd", hint="Give --account NAME to run it as one account."
            )
        without_password = () if service.account is None else ("/RU", service.account, "/NP")
        return (
            MakeFolder(self._file.parent, 0o755),
            WriteFile(self._file, windows_task(service), 0o600),
            RunTool((_schtasks(), "/Create", "/TN", TASK_NAME, "/XML", str(self._file), *without_password, "/F")),
            RemoveFile(self._file),
            *([RunTool((_schtasks(), "/Run", "/TN", TASK_NAME))] if start else []),
        )

    def remove(self) -> InstallationPlan:
        if not self.status().installed:
            return ()
        return (
            RunTool((_schtasks(), "/End", "/TN", TASK_NAME), may_fail=True),
            RunTool((_schtasks(), "/Delete", "/TN", TASK_NAME, "/F")),
        )

    def status(self) -> ServiceStatus:
        # /XML is the one form that does not depend on the system's language; it does not tell what runs.
        text = _answer((_schtasks(), "/Query", "/TN", TASK_NAME, "/XML", "ONE"))
        return task_status(text)


def task_status(xml: str) -> ServiceStatus:
    """What an answer of ``schtasks /Query /XML`` says; anything but XML means that there is no such task."""
    try:
        # The declaration names UTF-16, but the console's own encoding has been decoded already.
        task = ElementTree.fromstring(xml.partition("?>")[2] if xml.startswith("<?xml") else xml)
    except ElementTree.ParseError:
        return ServiceStatus(False)
    enabled = task.find("./{*}Settings/{*}Enabled")
    return ServiceStatus(True, enabled is None or (enabled.text or "").strip().lower() != "false")


def service_installer(root: Path | None, *, of_user: bool, work_folder: Path) -> ServiceInstaller:
    """The installer of this operating system. Raises: ConfigurationError, where there is none."""
    if sys.platform == "win32":
        if root is not None:
            raise ConfigurationError("install service: --root is for systemd", hint="Run it without --root.")
        return WindowsInstaller(work_folder)
    if sys.platform != "linux":
        raise ConfigurationError(
            f"install service: not known how on {sys.platform}",
            hint="Let what starts programs here run `datamanager serve`.",
        )
    if root is not None and of_user:
        raise ConfigurationError(
            "install service: --root is for a whole system, --user for one account", hint="Give one of the two."
        )
    return SystemdInstaller(root, of_user=of_user)


def apply(plan: InstallationPlan, purpose: str, on_executed: Callable[[str], None]) -> None:
    """Carry out the steps in order; each can be done again, so a plan that stopped midway is simply begun anew.

    Args: purpose - for messages, as ``install service``.
    Raises: ConfigurationError, naming the step that failed.
    """
    for step in plan:
        on_executed(step.describe())
        try:
            _carry_out(step, purpose)
        except OSError as error:
            raise ConfigurationError(
                f"{purpose}: {step.describe()}: {(error.strerror or str(error)).lower()}",
                hint="Run it as an administrator (with sudo); it can be run again safely.",
            ) from error


def readable(data: bytes) -> str:
    """The text of a file to be written, for people."""
    return data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8").replace("\r\n", "\n")


def below(root: Path | None, path: Path) -> Path:
    """Where ``path`` lies in the system below ``root``."""
    return path if root is None else root / path.relative_to(path.anchor)


def _carry_out(step: Step, purpose: str) -> None:
    """Raises: OSError, ConfigurationError."""
    match step:
        case MakeFolder(path, mode):
            if not path.is_dir():
                path.mkdir(parents=True, exist_ok=True)
                path.chmod(mode)
        case WriteFile(path, data, mode):
            write_durably(path, data, mode=mode)
            path.chmod(mode)  # whatever the umask
        case CopyTree(source, target):
            shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
        case RemoveFile(path):
            path.unlink(missing_ok=True)
        case RunTool(command, may_fail):
            done = _run(command)
            if done.returncode != 0 and not may_fail:
                said = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
                raise ConfigurationError(
                    f"{purpose}: {step.describe()}: {said[-1]}",
                    hint="Mend what it names and run the command again; every step can be repeated.",
                )


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TOOL_SECONDS,
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        cause = "it did not end" if isinstance(error, subprocess.TimeoutExpired) else (error.strerror or "").lower()
        raise ConfigurationError(
            f"run {command[0]}: {cause}", hint="Look at the system's own log, then run the command again."
        ) from error


def _answer(command: Sequence[str]) -> str:
    """What a question to the system is answered with, whatever its exit status. Raises: ConfigurationError."""
    return _run(command).stdout.strip()


def _user_units() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".config") / "systemd" / "user"


def _schtasks() -> str:
    return str(Path(os.environ.get("SYSTEMROOT", r"C:\Windows")) / "System32" / "schtasks.exe")
