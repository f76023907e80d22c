"""systemd's services, through systemctl.

Source: systemctl(1), systemd.unit(5): stopping a unit also stops those that require it, are bound to it or are part of
it, and starting it again does not bring them back.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from datamanager.base.errors import ServiceError
from datamanager.base.pipeline import StopToken
from datamanager.system.commands import CommandResult, run_command
from datamanager.system.services import Runner, Service, ServiceState, run_and_tell

# A unit that does not end is killed after TimeoutStopSec, 90 s unless it says otherwise.
_LIMIT_SECONDS = 150.0
_ANSWER_SECONDS = 20.0
_ANSWER_BYTES = 4 << 20
_DEPENDENT = ("RequiredBy", "BoundBy", "ConsistsOf", "RequisiteOf")
_PROPERTIES = ("Id", "Description", "LoadState", "ActiveState", "MainPID", "Transient", "TriggeredBy", *_DEPENDENT)
# What is worth starting again; a target that went along holds nothing itself.
_KINDS = (".service", ".socket", ".timer", ".path")
_STATES = {
    "active": ServiceState.RUNNING,
    "reloading": ServiceState.RUNNING,
    "refreshing": ServiceState.RUNNING,
    "activating": ServiceState.STARTING,
    "deactivating": ServiceState.STOPPING,
    "inactive": ServiceState.STOPPED,
    "failed": ServiceState.STOPPED,
    "maintenance": ServiceState.STOPPED,
}


def is_booted() -> bool:
    """Whether systemd runs this machine. Source: sd_booted(3)."""
    return Path("/run/systemd/system").is_dir() and shutil.which("systemctl") is not None


class SystemdServices:
    """Units of the system, or with ``user`` those of this account's own manager. Thread-safe."""

    def __init__(self, *, user: bool = False) -> None:
        self._systemctl = ("systemctl", *(("--user",) if user else ()), "--no-pager", "--no-ask-password")

    def limit_seconds(self, name: str) -> float:
        return _LIMIT_SECONDS

    def look(self, name: str) -> Service:
        said = self._ask("look at service", ("show", f"--property={','.join(_PROPERTIES)}", "--", name), name)
        return read_properties(said)

    def stop(self, name: str, runner: Runner) -> CommandResult:
        return self._run("stop", name, runner)

    def start(self, name: str, runner: Runner) -> CommandResult:
        return self._run("start", name, runner)

    def list(self) -> list[Service]:
        said = self._ask(
            "list services", ("list-units", "--type=service", "--all", "--full", "--plain", "--no-legend"), ""
        )
        return read_list(said)

    def _run(self, action: str, name: str, runner: Runner) -> CommandResult:
        words = (*self._systemctl, action, "--", name)
        return run_and_tell(
            words,
            f"systemctl {action} {name}",
            runner,
            limit_seconds=_LIMIT_SECONDS,
            environment={**os.environ, "LC_ALL": "C"},
        )

    def _ask(self, purpose: str, words: Sequence[str], name: str) -> str:
        with StopToken() as stop:
            result = run_command(
                (*self._systemctl, *words),
                limit_seconds=_ANSWER_SECONDS,
                stop=stop,
                environment={**os.environ, "LC_ALL": "C"},
                keep_bytes=_ANSWER_BYTES,
            )
        if result.problem:
            raise ServiceError(
                f"{purpose} {name}".rstrip() + f": systemctl: {result.explained}",
                hint="Run this where systemd runs the machine, or describe it with `datamanager services add`.",
            )
        return result.output


def read_properties(text: str) -> Service:
    """One unit from ``systemctl show --property=…``, whose lines are ``NAME=VALUE``. Raises: ServiceError."""
    values = dict(line.partition("=")[::2] for line in text.splitlines() if "=" in line)
    name = values.get("Id", "")
    active = values.get("ActiveState", "")
    if not name or active not in _STATES:
        raise ServiceError(
            f"look at service: systemctl did not say what state it is in ({active or 'no answer'})",
            hint="Run `systemctl show NAME` to see what it says.",
        )
    state = _STATES[active]
    if values.get("LoadState") in ("not-found", "bad-setting", "error") and state is ServiceState.STOPPED:
        state = ServiceState.ABSENT
    pid = values.get("MainPID", "")
    dependents = [word for kind in ("TriggeredBy", *_DEPENDENT) for word in values.get(kind, "").split()]
    return Service(
        name,
        state,
        values.get("Description", ""),
        int(pid) if pid.isdigit() and pid != "0" else None,
        tuple(dict.fromkeys(word for word in dependents if word.endswith(_KINDS) and word != name)),
        "it is transient and would be gone for good" if values.get("Transient") == "yes" else "",
    )


def read_list(text: str) -> list[Service]:
    """Units from ``systemctl list-units --plain --no-legend``: name, load, active, sub, description."""
    rows = [line.split(maxsplit=4) for line in text.splitlines()]
    return [
        Service(row[0], _STATES.get(row[2], ServiceState.STOPPED), row[4] if len(row) > 4 else "")
        for row in rows
        if len(row) >= 4 and row[1] == "loaded"
    ]
