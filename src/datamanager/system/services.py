"""Services of this machine behind one interface: systemd's, Windows', and those that three commands describe.

A manager looks, stops and starts; what is common to all of them are functions over it: ``stop_service`` and
``start_service`` wait until it is so. ``Services`` finds the manager of a name.
"""

from __future__ import annotations

import enum
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from datamanager.base.errors import NotFound, ServiceError, UsageError
from datamanager.base.pipeline import StopToken
from datamanager.system.commands import CommandResult, run_command
from datamanager.system.processes import ProcessIdentity

_LOOK_SECONDS = 0.1
# A service that dies of its configuration does so at once; one that still runs after this has begun its work.
SETTLED_SECONDS = 0.5
# So long may one whose start reported success still look stopped; it may be about to write its pid file.
_UNSEEN_SECONDS = 5.0
_STATE_SECONDS = 15.0
# Above this the file that takes what a service's commands say begins anew.
_OUTPUT_FILE_BYTES = 1 << 20
# Source: Linux Standard Base, init script actions, status: 1 and 2 are dead with a file left behind, 3 is not running.
_STOPPED_STATUS = (1, 2, 3)
# Never an option of systemctl, never another computer for sc.exe.
_NAME = re.compile(r"[^\W_][^/\x00-\x1f]{0,255}")


class ServiceState(enum.StrEnum):
    """What a service does now."""

    RUNNING = "running"
    STARTING = "starting"
    STOPPING = "stopping"
    STOPPED = "stopped"
    ABSENT = "absent"

    @property
    def wanted(self) -> bool:
        """Whether it runs or is about to: such a service is started again after a job."""
        return self in (ServiceState.RUNNING, ServiceState.STARTING)


@dataclass(frozen=True, slots=True)
class Service:
    """One service as it is now.

    Args:
        name: as its manager calls it, which may be longer than it was asked for by (``cron.service``).
        title: for people.
        pid: of its main process; None when unknown or not running.
        dependents: names of services that cannot run without it, or that would start it again by themselves (sockets,
            timers). They are stopped before it and started after it.
        obstacle: why it cannot be stopped for a while and started again; empty when it can.
    """

    name: str
    state: ServiceState
    title: str = ""
    pid: int | None = None
    dependents: tuple[str, ...] = ()
    obstacle: str = ""


@dataclass(frozen=True)
class Runner:
    """How the commands that act on services are run, on behalf of one job.

    Args:
        stop: ends a command midway.
        executed: told of each command.
        begun: told who a command is before its first step, so that it can be found when we are killed.
        user_id: the account whose services they are, for those defined by commands; None is ours. Only for root.
    """

    stop: StopToken
    executed: Callable[[str], None]
    begun: Callable[[ProcessIdentity], None] | None = None
    user_id: int | None = None


class ServiceManager(Protocol):
    """Looks at services, stops and starts them. Thread-safe."""

    def limit_seconds(self, name: str) -> float:
        """How long a stop or a start of it may take in all."""
        ...

    def look(self, name: str) -> Service:
        """The service as it is now; ``absent`` when there is none of that name.

        Raises: ServiceError, when the system or its state command does not say.
        """
        ...

    def stop(self, name: str, runner: Runner) -> CommandResult:
        """Ask for its end; it may still be stopping on return. Raises: Cancelled."""
        ...

    def start(self, name: str, runner: Runner) -> CommandResult:
        """Ask for its start; it may still be starting on return. Raises: Cancelled."""
        ...

    def list(self) -> list[Service]:
        """All that it knows, by name; dependents and process are left out. Raises: ServiceError."""
        ...


class NamedServices(ServiceManager, Protocol):
    """A manager of a few services that it knows by name."""

    def __contains__(self, name: str) -> bool: ...


def stop_service(manager: ServiceManager, name: str, runner: Runner) -> None:
    """Stop a service and wait until it has stopped; one that does not run is left as it is.

    Raises: ServiceError, NotFound (there is none of that name), Cancelled.
    """
    state = _settled(manager, name, runner.stop)
    if state is ServiceState.ABSENT:
        raise _absent("stop", name)
    if state is ServiceState.STOPPED:
        return
    result = manager.stop(name, runner)
    if _becomes(manager, name, ServiceState.STOPPED, runner.stop, 0.0 if result.problem else None):
        return
    raise ServiceError(
        f"stop service {name}: {result.explained or f'it still runs after {manager.limit_seconds(name):g} seconds'}",
        hint=_hint(result),
    )


def start_service(manager: ServiceManager, name: str, runner: Runner) -> bool:
    """Start a service and wait until it runs; one that runs already is left alone. See ``check_settled``.

    Returns: whether it was started. Raises: ServiceError, NotFound (there is none of that name), Cancelled.
    """
    state = _settled(manager, name, runner.stop)
    if state is ServiceState.RUNNING:
        return False
    if state is ServiceState.ABSENT:
        raise _absent("start", name)
    result = manager.start(name, runner)
    if not _becomes(manager, name, ServiceState.RUNNING, runner.stop, 0.0 if result.problem else None):
        cause = result.explained or "its start reported success, but it does not run"
        raise ServiceError(f"start service {name}: {cause}", hint=_hint(result))
    return True


def check_settled(manager: ServiceManager, name: str) -> None:
    """See that a service goes on running, SETTLED_SECONDS after its start. Raises: ServiceError."""
    if manager.look(name).state is not ServiceState.RUNNING:
        raise ServiceError(
            f"start service {name}: it ended again right after its start",
            hint="Look into the log of the service, mend it, and run `datamanager services restore`.",
        )


def _settled(manager: ServiceManager, name: str, stop: StopToken) -> ServiceState:
    """Its state once it neither starts nor stops, or when it takes too long over that."""
    deadline = time.monotonic() + manager.limit_seconds(name)
    while True:
        state = manager.look(name).state
        if state not in (ServiceState.STARTING, ServiceState.STOPPING) or time.monotonic() > deadline:
            return state
        if stop.wait(_LOOK_SECONDS):
            stop.check()


def _becomes(
    manager: ServiceManager, name: str, wanted: ServiceState, stop: StopToken, limit_seconds: float | None
) -> bool:
    """Wait for a state. Raises: ServiceError, when it does not say at the end; on its way it may be at a loss."""
    began = time.monotonic()
    deadline = began + (manager.limit_seconds(name) if limit_seconds is None else limit_seconds)
    while True:
        try:
            state = manager.look(name).state
            if state is wanted:
                return True
            if state is ServiceState.STOPPED and time.monotonic() > began + _UNSEEN_SECONDS:
                return False
            if time.monotonic() > deadline:
                return False
        except ServiceError:
            if time.monotonic() > deadline:
                raise
        if stop.wait(_LOOK_SECONDS):
            stop.check()


def _absent(action: str, name: str) -> NotFound:
    return NotFound(
        f"{action} service {name}: there is no such service",
        hint="Run `datamanager services list --all` to see them, or describe it with `datamanager services add`.",
    )


def _hint(result: CommandResult) -> str:
    if "denied" in result.output.lower() or "authentication" in result.output.lower():
        return "Run this as an account that may stop and start services (root, an administrator)."
    return "Look into the log of the service, mend it, and run `datamanager services restore`."


@dataclass(frozen=True)
class ServiceCommands:
    """A service as three commands describe it, each as words.

    Args:
        start, stop: must return when the service runs, or has stopped.
        state: exit status 0 says that it runs, 1 to 3 that it does not.
        limit_seconds: how long a start or a stop may take.
    """

    start: tuple[str, ...]
    stop: tuple[str, ...]
    state: tuple[str, ...]
    limit_seconds: float = 90.0


class DescribedServices:
    """Services that commands describe.

    Args: output_folder - holds a file ``NAME.output`` for each, which takes what its commands say, and what the service
        itself goes on saying when its start does not send that elsewhere. It is made when it is needed. user_id - the
        account that runs the commands unless the Runner names one; None is ours. Only for root.
    """

    def __init__(
        self, services: Mapping[str, ServiceCommands], output_folder: Path, user_id: int | None = None
    ) -> None:
        self._services = dict(services)
        self._output_folder = output_folder
        self._user_id = user_id

    def __contains__(self, name: str) -> bool:
        return name in self._services

    def limit_seconds(self, name: str) -> float:
        return self._services[name].limit_seconds

    def look(self, name: str) -> Service:
        with StopToken() as stop:
            result = run_command(
                self._services[name].state,
                limit_seconds=_STATE_SECONDS,
                stop=stop,
                environment=_environment(),
                folder=_root(),
                user_id=self._user_id,
            )
        if result.status == 0:
            return Service(name, ServiceState.RUNNING)
        if result.status in _STOPPED_STATUS:
            return Service(name, ServiceState.STOPPED)
        raise ServiceError(
            f"look at service {name}: its state command: {result.explained}",
            hint="The state command must end with 0 while the service runs and with 1, 2 or 3 while it does not.",
        )

    def stop(self, name: str, runner: Runner) -> CommandResult:
        return self._run(name, "stop", self._services[name].stop, runner)

    def start(self, name: str, runner: Runner) -> CommandResult:
        return self._run(name, "start", self._services[name].start, runner)

    def list(self) -> list[Service]:
        return [self.look(name) for name in sorted(self._services)]

    def _run(self, name: str, action: str, words: tuple[str, ...], runner: Runner) -> CommandResult:
        self._output_folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        output = self._output_folder / f"{name}.output"
        if output.exists() and output.stat().st_size > _OUTPUT_FILE_BYTES:
            os.truncate(output, 0)
        return run_and_tell(
            words,
            f"{action} service {name}",
            runner if runner.user_id is not None else replace(runner, user_id=self._user_id),
            limit_seconds=self.limit_seconds(name),
            environment=_environment(),
            output=output,
        )


def _environment() -> dict[str, str]:
    """Ours without what is said to our own processes: a service outlives the job that started it."""
    return {name: value for name, value in os.environ.items() if not name.startswith("DATAMANAGER_")}


def _root() -> Path:
    """A folder that never goes away, so that a service holds no drive that is to be taken out."""
    return Path(Path.cwd().anchor)


def run_and_tell(
    words: tuple[str, ...],
    purpose: str,
    runner: Runner,
    *,
    limit_seconds: float,
    environment: Mapping[str, str] | None = None,
    output: Path | None = None,
) -> CommandResult:
    """Run one command that acts on a service and tell of it, with what it said. Raises: Cancelled."""
    result = run_command(
        words,
        limit_seconds=limit_seconds,
        stop=runner.stop,
        environment=environment,
        folder=_root(),
        user_id=runner.user_id,
        output=output,
        begun=runner.begun,
    )
    told = f"{purpose}: {result.problem or 'done'} after {result.seconds:.1f} s"
    runner.executed(f"{told}\n{result.output}".strip())
    return result


@dataclass
class Services:
    """Every service that can be named here: those that commands describe come first, then the system's own.

    Args: system - None where the system's services cannot be reached; then only described ones are known.
    """

    described: NamedServices
    system: ServiceManager | None = field(default=None)

    def limit_seconds(self, name: str) -> float:
        return self._of(name).limit_seconds(name)

    def look(self, name: str) -> Service:
        return self._of(name).look(name)

    def stop(self, name: str, runner: Runner) -> CommandResult:
        return self._of(name).stop(name, runner)

    def start(self, name: str, runner: Runner) -> CommandResult:
        return self._of(name).start(name, runner)

    def list(self) -> list[Service]:
        return [*self.described.list(), *(self.system.list() if self.system is not None else ())]

    def _of(self, name: str) -> ServiceManager:
        """Raises: UsageError, NotFound."""
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"find service: {name!r} cannot be the name of one",
                hint="Write it as the system lists it, in one word.",
            )
        if name in self.described:
            return self.described
        if self.system is None:
            raise NotFound(
                f"find service {name}: it is not described here, and this system's own services cannot be reached",
                hint="Describe how to stop, start and look at it with `datamanager services add`.",
            )
        return self.system
