"""What the operating system is told about the service: a unit of systemd, a task of the Windows Task Scheduler.

Pure text; ``installation`` writes and registers it.
Source: systemd.service(5), systemd.exec(5), systemd.kill(5); MicrosoftDocs, Task Scheduler Schema (1.2).
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

UNIT_NAME = "datamanager.service"
TASK_NAME = r"\DataManager\DataManager for PostgreSQL"
DESCRIPTION = "DataManager for PostgreSQL: runs the schedules and looks after their jobs"
# What runs gets the service's own grace first; systemd must not be quicker.
STOP_SECONDS = 60
START_SECONDS = 120
# The supervisor says so every half of it that it lives. Long enough for a machine that swaps.
WATCHDOG_SECONDS = 120
# The least that the Task Scheduler takes.
_WINDOWS_RETRY = "PT1M"
_LOCAL_SYSTEM = "S-1-5-18"


@dataclass(frozen=True, slots=True)
class ServiceDefinition:
    """The service as it is to be installed.

    Args:
        program: what begins a command of this program, such as ``(python, "-m", "datamanager")``; absolute.
        account: whom the jobs run as; None is whoever the service runs as.
        home: the value of DATAMANAGER_HOME; None leaves it to the program to find its home.
        metrics_port: where /metrics and /health are served on loopback; None leaves them out.
        of_user: a service of the installing account alone, without root.
    """

    program: tuple[str, ...]
    account: str | None = None
    home: Path | None = None
    metrics_port: int | None = None
    of_user: bool = False

    @property
    def command(self) -> tuple[str, ...]:
        """The whole command of the service."""
        account = () if self.account is None else ("--account", self.account)
        port = () if self.metrics_port is None else ("--metrics-port", str(self.metrics_port))
        return (*self.program, "serve", *account, *port)


def systemd_unit(service: ServiceDefinition) -> str:
    """The unit file.

    ``KillMode=process``: what jobs began must not die with the supervisor, or a server that a job had stopped would
    stay down; the supervisor ends them itself, and the next one finds what a killed one left. Nothing here gives the
    service a mount namespace, so that a drive plugged in or taken out later is the same drive for it.
    """
    after = "network-online.target" if service.of_user else _AFTER
    hardening = () if service.of_user else _HARDENING
    home = () if service.home is None else (f"Environment={quoted(f'DATAMANAGER_HOME={service.home}')}",)
    lines = [
        "# Written by `datamanager service install`, which replaces it. Put changes of your own into",
        f"# `systemctl{' --user' if service.of_user else ''} edit {UNIT_NAME}`.",
        "[Unit]",
        f"Description={DESCRIPTION}",
        f"After={after}",
        "Wants=network-online.target",
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        "Type=notify",
        "NotifyAccess=main",
        f"ExecStart={' '.join(quoted(word, command=True) for word in service.command)}",
        *home,
        "WorkingDirectory=/",
        "UMask=0077",
        "Restart=always",
        "RestartSec=5",
        f"TimeoutStartSec={START_SECONDS}",
        f"TimeoutStopSec={STOP_SECONDS}",
        f"WatchdogSec={WATCHDOG_SECONDS}",
        "KillMode=process",
        "OOMPolicy=continue",
        *hardening,
        "",
        "[Install]",
        f"WantedBy={'default.target' if service.of_user else 'multi-user.target'}",
    ]
    return "\n".join(lines) + "\n"


_AFTER = "network-online.target local-fs.target remote-fs.target time-sync.target postgresql.service"
# What neither a job nor a hook that calls sudo misses.
_HARDENING = ("LockPersonality=yes", "RestrictRealtime=yes", "SystemCallArchitectures=native")


def quoted(text: str, *, command: bool = False) -> str:
    """One word for systemd. Source: systemd.syntax(7) Quoting, systemd.service(5) Command Lines."""
    word = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    if command:
        word = word.replace("$", "$$")
    plain = word and not any(letter.isspace() or letter in "'\";\\" for letter in word)
    return word if plain else f'"{word}"'


def windows_task(service: ServiceDefinition) -> bytes:
    """The task's XML in UTF-16 with a byte order mark, as schtasks.exe takes it.

    It starts with the machine. Its trigger repeats every minute and does nothing while the service runs, so that a
    service that was killed comes back. Without an account it runs as LocalSystem, else as the account without a
    password (S4U), which reaches this computer's files and no others.
    """
    program, *arguments = service.command
    return (_TASK.format(
        description=escape(DESCRIPTION),
        name=escape(TASK_NAME),
        retry=_WINDOWS_RETRY,
        principal=_principal(service.account),
        command=escape(program),
        arguments=escape(subprocess.list2cmdline(arguments)),
    )).replace("\n", "\r\n").encode("utf-16")  # fmt: skip


def _principal(account: str | None) -> str:
    if account is None:
        return f"<UserId>{_LOCAL_SYSTEM}</UserId>"
    return f"<UserId>{escape(account)}</UserId>\n      <LogonType>S4U</LogonType>"


_TASK = """\
<?xml version="1.0" encoding="UTF-16"?>
<Task version="1.2" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">
  <RegistrationInfo>
    <Description>{description}</Description>
    <URI>{name}</URI>
  </RegistrationInfo>
  <Triggers>
    <BootTrigger>
      <Repetition>
        <Interval>{retry}</Interval>
        <StopAtDurationEnd>false</StopAtDurationEnd>
      </Repetition>
      <Enabled>true</Enabled>
    </BootTrigger>
  </Triggers>
  <Principals>
    <Principal id="Author">
      {principal}
      <RunLevel>HighestAvailable</RunLevel>
    </Principal>
  </Principals>
  <Settings>
    <MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy>
    <DisallowStartIfOnBatteries>false</DisallowStartIfOnBatteries>
    <StopIfGoingOnBatteries>false</StopIfGoingOnBatteries>
    <AllowHardTerminate>true</AllowHardTerminate>
    <StartWhenAvailable>true</StartWhenAvailable>
    <AllowStartOnDemand>true</AllowStartOnDemand>
    <Enabled>true</Enabled>
    <Hidden>false</Hidden>
    <RunOnlyIfIdle>false</RunOnlyIfIdle>
    <ExecutionTimeLimit>PT0S</ExecutionTimeLimit>
    <Priority>5</Priority>
    <RestartOnFailure>
      <Interval>{retry}</Interval>
      <Count>255</Count>
    </RestartOnFailure>
  </Settings>
  <Actions Context="Author">
    <Exec>
      <Command>{command}</Command>
      <Arguments>{arguments}</Arguments>
    </Exec>
  </Actions>
</Task>
"""
