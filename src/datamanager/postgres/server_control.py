"""Stopping and starting one server the way it is run here: by pg_ctl, by a service of the system, by Debian's tools.

A control can be written down (``record``) and made again from that (``control_of``): whoever finds the journal of a
killed restore starts the server exactly as it ran before.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from datamanager.base.errors import DataManagerError, ServerDidNotStart, ServiceError, TargetUnfit
from datamanager.base.pipeline import StopToken
from datamanager.postgres.account import CurrentAccount, named_account
from datamanager.postgres.postmaster import did_not_start, last_words, postmaster_of, wait_until_ready
from datamanager.postgres.programs import Programs, run_program
from datamanager.system.commands import run_command
from datamanager.system.services import Runner, ServiceManager, start_service, stop_service
from datamanager.system.systemd import SystemdServices, is_booted
from datamanager.system.windows_services import WindowsServices

Told = Callable[[str], None]

_LOOK_SECONDS = 0.1
_COMMAND_SECONDS = 30.0


class ServerControl(Protocol):
    """One server of this machine. Idempotent: to stop one that does not run, or start one that does, is no error."""

    @property
    def words(self) -> str:
        """How it is stopped and started, for people."""
        ...

    def stop(self, told: Told, limit_seconds: float) -> None:
        """End sessions, write a checkpoint, stop; on return no server runs. Raises: ServiceError."""
        ...

    def start(self, told: Told, limit_seconds: float) -> None:
        """Start, and return when sessions are accepted. Raises: ServerDidNotStart, ServiceError."""
        ...

    def mask(self, told: Told) -> None:
        """Keep others from starting it, as far as the system can do that; never raises."""
        ...

    def unmask(self, told: Told) -> None:
        """Take that back; never raises."""
        ...

    def record(self) -> dict[str, Any]:
        """Itself as JSON, without secrets."""
        ...


def control_of(record: Mapping[str, Any], manager: ServiceManager | None = None) -> ServerControl:
    """Make a control from its record.

    Args: manager - of the services; None for the system's own. Raises: ValueError, KeyError (no such record).
    """
    data_directory = Path(record["data_directory"])
    match record["kind"]:
        case "pg_ctl":
            programs = Programs(Path(record["programs"]), str(record["version"]))
            options, log = tuple(map(str, record["options"])), Path(record["log_file"])
            return PgCtl(data_directory, programs, record["account"], options, log, dict(record["variables"]))
        case "service":
            return ServiceControl(data_directory, str(record["name"]), tuple(record["dependents"]), manager)
        case "pg_ctlcluster":
            return DebianCluster(data_directory, str(record["version"]), str(record["name"]))
        case other:
            raise ValueError(f"no way to start a server is called {other!r}")


@dataclass(frozen=True)
class PgCtl:
    """Started by hand or by a script.

    Args:
        account: who runs it; None for the account that runs us.
        options: of its command line, without its data directory.
        log_file: takes what it says when its configuration sends that nowhere else.
        variables: of its environment, those that are no secret and matter to a server.
    """

    data_directory: Path
    programs: Programs
    account: str | None
    options: tuple[str, ...]
    log_file: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def words(self) -> str:
        who = f" as {self.account}" if self.account else ""
        return f"pg_ctl of {self.programs.bin_directory}{who}"

    def stop(self, told: Told, limit_seconds: float) -> None:
        # A server that hangs in its shutdown is ended at once: its WAL is complete, recovery makes up for the rest.
        for mode in ("fast", "immediate"):
            if postmaster_of(self.data_directory) is None:
                return
            self._pg_ctl(told, "stop", "-m", mode, "-w", "-t", f"{max(limit_seconds, 1):.0f}")
        if postmaster_of(self.data_directory) is not None:
            raise ServiceError(
                f"stop server on {self.data_directory}: it still runs after {limit_seconds:g} seconds",
                hint="Look into the server's log; nothing was changed.",
            )

    def start(self, told: Told, limit_seconds: float) -> None:
        if postmaster_of(self.data_directory) is None:
            line = shlex.join(self.options) if sys.platform != "win32" else subprocess.list2cmdline(self.options)
            descriptor = _open_log(self.log_file)
            try:
                said_before = os.fstat(descriptor).st_size
                words = ("start", "-s", "-w", "-t", f"{max(limit_seconds, 1):.0f}", "-o", line)
                self._pg_ctl(told, *words, output=descriptor)
            finally:
                os.close(descriptor)
        else:
            said_before = 0
        if not wait_until_ready(self.data_directory, limit_seconds):
            raise did_not_start(self.data_directory, self.log_file, said_before)

    def mask(self, told: Told) -> None:
        """Nobody starts it by himself."""

    def unmask(self, told: Told) -> None:
        """Nothing was masked."""

    def record(self) -> dict[str, Any]:
        return {
            "kind": "pg_ctl",
            "data_directory": str(self.data_directory),
            "programs": str(self.programs.bin_directory),
            "version": self.programs.version,
            "account": self.account,
            "options": list(self.options),
            "log_file": str(self.log_file),
            "variables": dict(self.variables),
        }

    def _pg_ctl(self, told: Told, *words: str, output: int | None = None) -> None:
        with StopToken() as unstoppable:
            run_program(
                self.programs,
                "pg_ctl",
                words,
                account=CurrentAccount() if self.account is None else named_account(self.account),
                stop=unstoppable,
                on_executed=told,
                environment={"LC_ALL": "", "PGDATA": str(self.data_directory), **self.variables},
                combined_output=output,
            )


@dataclass(frozen=True)
class ServiceControl:
    """A service of the system: systemd's unit, Windows' service, or one that commands describe.

    Args: dependents - services that ran and go down with it; they are started after it. manager - None for the
        system's own.
    """

    data_directory: Path
    name: str
    dependents: tuple[str, ...] = ()
    manager: ServiceManager | None = None

    @property
    def words(self) -> str:
        also = f", then {', '.join(self.dependents)}" if self.dependents else ""
        return f"service {self.name}{also}"

    def stop(self, told: Told, limit_seconds: float) -> None:
        with StopToken() as unstoppable:
            stop_service(self.services, self.name, Runner(unstoppable, told))
        deadline = time.monotonic() + limit_seconds
        while postmaster_of(self.data_directory) is not None:
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"stop service {self.name}: a server still runs on {self.data_directory}",
                    hint="Something else started that server: stop it by hand, then run the command again.",
                )
            time.sleep(_LOOK_SECONDS)

    def start(self, told: Told, limit_seconds: float) -> None:
        with StopToken() as unstoppable:
            runner = Runner(unstoppable, told)
            try:
                start_service(self.services, self.name, runner)
            except ServiceError as error:
                if (why := last_words(self.data_directory, None, 0)) is not None:
                    raise ServerDidNotStart(f"start server: {why}", hint=error.hint) from error
                raise
            if not wait_until_ready(self.data_directory, limit_seconds):
                raise did_not_start(self.data_directory, None, 0)
            for one in self.dependents:
                try:
                    start_service(self.services, one, runner)
                except DataManagerError as error:  # the server itself runs
                    told(error.message)

    def mask(self, told: Told) -> None:
        self._systemctl("mask", told)

    def unmask(self, told: Told) -> None:
        self._systemctl("unmask", told)

    def record(self) -> dict[str, Any]:
        return {
            "kind": "service",
            "data_directory": str(self.data_directory),
            "name": self.name,
            "dependents": list(self.dependents),
        }

    @property
    def services(self) -> ServiceManager:
        if self.manager is not None:
            return self.manager
        return WindowsServices() if sys.platform == "win32" else SystemdServices()

    def _systemctl(self, action: str, told: Told) -> None:
        """Until the next boot only, so that nothing stays masked for ever. Source: systemctl(1), mask --runtime."""
        if not is_booted() or not isinstance(self.services, SystemdServices):
            return
        _run(("systemctl", "--no-ask-password", action, "--runtime", "--", self.name), told)


@dataclass(frozen=True)
class DebianCluster:
    """A cluster of postgresql-common on a machine that systemd does not run. Source: pg_ctlcluster(1)."""

    data_directory: Path
    version: str
    name: str

    @property
    def words(self) -> str:
        return f"pg_ctlcluster {self.version} {self.name}"

    def stop(self, told: Told, limit_seconds: float) -> None:
        if postmaster_of(self.data_directory) is None:
            return
        said = self._cluster(told, "stop", limit_seconds, "--mode", "fast")
        if postmaster_of(self.data_directory) is not None:
            raise ServiceError(
                f"stop server: {self.words}: {said or 'it still runs'}", hint="Look into the server's log."
            )

    def start(self, told: Told, limit_seconds: float) -> None:
        said = "" if postmaster_of(self.data_directory) else self._cluster(told, "start", limit_seconds)
        if not wait_until_ready(self.data_directory, limit_seconds):
            why = last_words(self.data_directory, None, 0) or said or "it ended without a word"
            raise ServerDidNotStart(f"start server: {why}", hint=f"Run `{self.words} start` to see what it says.")

    def mask(self, told: Told) -> None:
        """Nobody starts it by himself."""

    def unmask(self, told: Told) -> None:
        """Nothing was masked."""

    def record(self) -> dict[str, Any]:
        return {
            "kind": "pg_ctlcluster",
            "data_directory": str(self.data_directory),
            "version": self.version,
            "name": self.name,
        }

    def _cluster(self, told: Told, action: str, limit_seconds: float, *words: str) -> str:
        command = ("pg_ctlcluster", "--skip-systemctl-redirect", self.version, self.name, action, *words)
        return _run(command, told, limit_seconds)


def pg_ctlcluster_present() -> bool:
    return shutil.which("pg_ctlcluster") is not None


def _open_log(path: Path) -> int:
    """To append to; no link, in a folder of the server's account, that leads root elsewhere. Raises: TargetUnfit."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
    try:
        return os.open(path, flags, 0o600)
    except OSError as error:
        raise TargetUnfit(
            f"start server: {path}: {(error.strerror or 'cannot be written').lower()}",
            hint="Move away what lies there, then run the command again.",
        ) from error


def _run(words: tuple[str, ...], told: Told, limit_seconds: float = _COMMAND_SECONDS) -> str:
    """What it said when it failed; empty when it did its part."""
    with StopToken() as unstoppable:
        result = run_command(words, limit_seconds=limit_seconds, stop=unstoppable)
    told(f"{shlex.join(words)}: {result.explained if result.problem else 'done'}")
    return result.explained if result.problem else ""
