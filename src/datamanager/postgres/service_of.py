"""How the server of one data directory is stopped and started on this machine, found out by looking at it.

A running server tells by its processes: the unit of its control group (systemd), the pg_ctl above it (Windows), its
command line (Debian's tools, pg_ctl). One that is down tells by the postmaster.opts that it left.
Source: cgroups(7); pg_ctl(1), register; src/backend/utils/init/postinit.c, postmaster.opts by CreateOptsFile.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

from datamanager.base.errors import DataManagerError, RightMissing
from datamanager.postgres.account import UnixAccount, service_account
from datamanager.postgres.control_file import read_major
from datamanager.postgres.managers import Running, processes_above
from datamanager.postgres.postmaster import postmaster_of
from datamanager.postgres.programs import Programs, find_programs
from datamanager.postgres.server_control import (
    DebianCluster,
    PgCtl,
    ServerControl,
    ServiceControl,
    pg_ctlcluster_present,
)
from datamanager.system.services import ServiceManager, ServiceState
from datamanager.system.systemd import SystemdServices, is_booted

_OPTIONS_FILE = "postmaster.opts"
# /etc/postgresql/15/main/postgresql.conf: postgresql-common's place, which PG_CLUSTER_CONF_ROOT moves.
_DEBIAN_CONFIG = re.compile(r"/(?P<version>\d+)/(?P<name>[^/]+)/postgresql\.conf\Z")
# What a server takes from its environment and its configuration may leave open; none of it is a secret.
_VARIABLES = re.compile(r"(?:LANG|LC_\w+|LD_LIBRARY_PATH|PG_OOM_ADJUST_\w+|KRB5_\w+)\Z")


@dataclass(frozen=True)
class Found:
    """How a server is run: whether it runs now, its number, the processes above it; ``doubts`` are for people."""

    control: ServerControl
    running: bool
    pid: int | None
    above: tuple[Running, ...]
    doubts: tuple[str, ...] = ()


def find_control(
    data_directory: Path,
    log_file: Path,
    *,
    manager: ServiceManager | None = None,
    service: str | None = None,
    programs: Programs | None = None,
) -> Found:
    """Find out how the server on ``data_directory`` is stopped and started.

    Args:
        log_file: takes what a server that pg_ctl starts says, where its own output went nowhere that can be named.
        manager: of the system's services; None for the system's own.
        service: its name where somebody has said it; then nothing is looked for.
        programs: used by pg_ctl instead of those that the server itself runs by.

    Raises: RightMissing (this account may not start it), ProgramMissing, ServiceError.
    """
    postmaster = postmaster_of(data_directory)
    pid = None if postmaster is None else postmaster.pid
    above = () if pid is None else tuple(processes_above(pid))
    if service is not None:
        return Found(_service(data_directory, service, manager), pid is not None, pid, above)
    unit = _unit(pid, manager) or _windows_service(above)
    if unit is not None:
        return Found(_service(data_directory, unit, manager), pid is not None, pid, above)
    program, options = _command_line(data_directory)
    if (cluster := _debian(options)) is not None and pg_ctlcluster_present():
        if pid is None and is_booted():
            unit = "postgresql@{}-{}.service".format(*cluster)
            return Found(_service(data_directory, unit, manager), False, None, above)
        return Found(DebianCluster(data_directory, *cluster), pid is not None, pid, above)
    control = _pg_ctl(data_directory, postmaster, program, options, log_file, programs)
    doubts: tuple[str, ...] = ()
    if pid is None and is_booted():
        doubts = ("the server is down, so it will be started by pg_ctl: name its unit if systemd is to start it",)
    return Found(control, pid is not None, pid, above, doubts)


def unit_in(text: str) -> str | None:
    """The system's unit in a process' control groups (/proc/PID/cgroup), or None.

    Units of a person's own manager (``user@1000.service``) and sessions (``.scope``) are none.
    """
    for line in text.splitlines():
        number, controllers, path = line.split(":", 2)
        if (number, controllers) == ("0", "") or controllers == "name=systemd":
            parts = PurePosixPath(path).parts
            if parts and parts[-1].endswith(".service") and not any(part.startswith("user@") for part in parts):
                return parts[-1]
    return None


def service_in(words: Sequence[str]) -> str | None:
    """The name of the Windows service that a pg_ctl runs: ``pg_ctl runservice -N "name" -D "folder"``."""
    if len(words) < 2 or not re.search(r"pg_ctl(\.exe)?\Z", words[0], re.I) or "runservice" not in words:
        return None
    with contextlib.suppress(ValueError, IndexError):
        return words[words.index("-N") + 1].strip('"')
    return None


def options_in(text: str) -> tuple[str, tuple[str, ...]]:
    """The program and the options in a postmaster.opts, without the data directory.

    The server writes each word between double quotes and escapes nothing.
    """
    program, _, rest = text.rstrip("\n").partition(' "')
    words = rest.removesuffix('"').split('" "') if rest else []
    kept: list[str] = []
    at = iter(words)
    for word in at:
        if word == "-D":
            next(at, None)
        elif not word.startswith("-D"):
            kept.append(word)
    return program, tuple(kept)


def _unit(pid: int | None, manager: ServiceManager | None) -> str | None:
    """Its unit, if that unit's main process is this very server: else a shell of another service started it."""
    if pid is None or not (is_booted() or manager is not None):
        return None
    with contextlib.suppress(OSError, ValueError, DataManagerError):
        name = unit_in(Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8"))
        if name is not None and (manager or SystemdServices()).look(name).pid == pid:
            return name
    return None


def _windows_service(above: Sequence[Running]) -> str | None:
    return next((name for one in above if (name := service_in(one.words)) is not None), None)


def _service(data_directory: Path, name: str, manager: ServiceManager | None) -> ServiceControl:
    control = ServiceControl(data_directory, name, manager=manager)
    services = control.services
    dependents = [one for one in services.look(name).dependents if services.look(one).state is ServiceState.RUNNING]
    return ServiceControl(data_directory, name, tuple(dependents), manager)


def _command_line(data_directory: Path) -> tuple[str, tuple[str, ...]]:
    with contextlib.suppress(OSError):
        return options_in((data_directory / _OPTIONS_FILE).read_text(encoding="utf-8", errors="surrogateescape"))
    return "", ()


def _debian(options: Sequence[str]) -> tuple[str, str] | None:
    for word in options:
        name, _, value = word.partition("=")
        if name in ("config_file", "--config-file", "--config_file") and (match := _DEBIAN_CONFIG.search(value)):
            root = os.environ.get("PG_CLUSTER_CONF_ROOT", "/etc/postgresql")
            if value == f"{root}{match[0]}":
                return match["version"], match["name"]
    return None


def _pg_ctl(
    data_directory: Path,
    postmaster: psutil.Process | None,
    program: str,
    options: tuple[str, ...],
    log_file: Path,
    programs: Programs | None,
) -> PgCtl:
    account = service_account(data_directory)
    if sys.platform != "win32" and os.geteuid() not in (0, data_directory.stat().st_uid):
        raise RightMissing(
            f"control server on {data_directory}: this account may neither stop nor start it",
            hint=f"Run the command as root, or as {data_directory.owner()}, who owns the data directory.",
        )
    path = program
    log, variables = log_file, {}
    if postmaster is not None:
        with contextlib.suppress(psutil.Error, OSError):
            path = postmaster.exe() or program
        log = _output_of(postmaster.pid) or log_file
        with contextlib.suppress(psutil.Error, OSError):
            variables = {name: value for name, value in postmaster.environ().items() if _VARIABLES.match(name)}
    if programs is None:
        folder = Path(path).parent if path else None
        programs = find_programs(read_major(data_directory), folder, account=account)
    name = account.name if isinstance(account, UnixAccount) else None
    return PgCtl(data_directory, programs, name, options, log, variables)


def _output_of(pid: int) -> Path | None:
    """The regular file that takes what a server says; None for a terminal, a pipe, or a file that is gone."""
    with contextlib.suppress(OSError):
        path = Path(f"/proc/{pid}/fd/2").readlink()
        if path.is_file():
            return path
    return None
