"""What is done around a job: services stopped and started again, a person's own commands before and after.

services of killed runs ─► command before ─► services stopped ─► the job ─► services started ─► command after
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from datamanager.app.context import Context
from datamanager.base.errors import Cancelled, DataManagerError
from datamanager.base.events import Warned
from datamanager.base.pipeline import StopToken
from datamanager.jobs import services_around
from datamanager.jobs.hooks import When, parse_hook, run_hook
from datamanager.jobs.services_around import Place, ServiceDown, services_stopped
from datamanager.system.commands import split_command
from datamanager.system.privileged import VARIABLE as SOCKET_VARIABLE
from datamanager.system.privileged import PrivilegedServices
from datamanager.system.services import (
    DescribedServices,
    NamedServices,
    ServiceCommands,
    ServiceManager,
    Services,
)
from datamanager.system.systemd import SystemdServices, is_booted
from datamanager.system.windows_services import WindowsServices

HOOK_SECONDS = 600
# Whoever cancels ends a run by force after 8 seconds; the last word must be said before.
_AFTER_CANCEL_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class AroundOptions:
    """What is wanted around one job.

    Args:
        stop_services: names, in the order of stopping.
        before, after: command lines; empty for none.
        hook_timeout_seconds: how long each of them may take.
    """

    stop_services: tuple[str, ...] = ()
    before: str = ""
    after: str = ""
    hook_timeout_seconds: float = HOOK_SECONDS


@dataclass
class Ending:
    """What the job says of its end, for the command after it.

    Args: failed - it ended without an exception, but not well; error - why; facts - as ``{"BACKUP": "2026…"}``.
    """

    failed: bool = False
    error: str = ""
    facts: dict[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def around(
    context: Context, options: AroundOptions, run: str, facts: Mapping[str, str], mask: Callable[[str], str]
) -> Iterator[Ending]:
    """Do it around the job that is the block.

    Args: run - its id, unique; facts - what its commands are told from the start; mask - takes known secrets out.
    Raises: UsageError, HookFailed, ServiceError, NotFound, Cancelled before the block, which then does not begin. The
        command after the job runs then too. That it fails, or that a service does not start again, is a warning.
    """
    restore_services(context)
    before = parse_hook(options.before, "before") if options.before else ()
    after = parse_hook(options.after, "after") if options.after else ()
    ending = Ending()
    told = {**facts, "RUN": run}

    def hook(
        words: tuple[str, ...], when: When, more: Mapping[str, str], limit_seconds: float, stop: StopToken
    ) -> None:
        run_hook(
            words,
            when,
            {**told, **more},
            limit_seconds=limit_seconds,
            stop=stop,
            listener=context.listener,
            mask=mask,
        )

    result = "failed"
    try:
        if before:
            hook(before, "before", {}, options.hook_timeout_seconds, context.stop)
        with contextlib.ExitStack() as stack:
            if options.stop_services:
                place = service_place(context)
                stack.enter_context(services_stopped(place, run, options.stop_services, context.stop))
            yield ending
        result = "failed" if ending.failed else "done"
    except BaseException as error:
        ending.error = error.message if isinstance(error, DataManagerError) else type(error).__name__
        if isinstance(error, (Cancelled, KeyboardInterrupt)):
            result = "cancelled"
        raise
    finally:
        if after:
            more = {**ending.facts, "RESULT": result, "ERROR": mask(ending.error)}
            _last_word(context, options, lambda limit, stop: hook(after, "after", more, limit, stop))


def _last_word(context: Context, options: AroundOptions, hook: Callable[[float, StopToken], None]) -> None:
    """Run the command after the job, also after a cancel; it changes nothing about how the job ended."""
    try:
        if context.stop.stopping:
            with StopToken() as own:
                hook(min(options.hook_timeout_seconds, _AFTER_CANCEL_SECONDS), own)
        else:
            hook(options.hook_timeout_seconds, context.stop)
    except DataManagerError as error:
        context.listener(Warned(error.message))


def service_place(context: Context) -> Place:
    """Where journals are and who acts on services. Raises: ConfigurationError."""
    return Place(context.home.services, service_manager(context), context.clock, context.listener)


def service_manager(context: Context) -> Services:
    """The services that the configuration describes, and the system's own. Raises: ConfigurationError.

    In a job of a service whose supervisor is root, the supervisor acts on those that are described.
    """
    described: NamedServices = described_services(context, context.home.services)
    asked = os.environ.get(SOCKET_VARIABLE, "")
    if asked:
        described = PrivilegedServices(Path(asked), context.config().services)
    return Services(described, _system_services())


def described_services(context: Context, output_folder: Path) -> DescribedServices:
    """The services that the configuration describes. Args: output_folder - see there. Raises: ConfigurationError."""
    described = {
        name: ServiceCommands(
            split_command(one.start), split_command(one.stop), split_command(one.state), one.limit_seconds
        )
        for name, one in context.config().services.items()
    }
    return DescribedServices(described, output_folder, _owner(context))


def _owner(context: Context) -> int | None:
    """Root runs what a configuration says as the account that can write it."""
    if os.name == "nt" or os.geteuid() != 0:
        return None
    with contextlib.suppress(OSError):
        return context.home.config_file.stat().st_uid
    return None


def _system_services() -> ServiceManager | None:
    if sys.platform == "win32":
        return WindowsServices()
    return SystemdServices() if is_booted() else None


def restore_services(
    context: Context, stop: StopToken | None = None, *, wait: bool = False, even_if_tried: bool = False
) -> list[ServiceDown]:
    """Start again what ended runs left stopped, and return what does not run now; warnings go to the listener.

    For the service every 10 seconds, the worker after each child, and every job at its beginning: it costs one look
    into a folder when nothing is owed, else as long as services take to start. It raises nothing but Cancelled.

    Args: stop - ends it between and during starts; the context's own when absent. wait, even_if_tried - see
        ``jobs.services_around.restore_services``.
    """
    if not services_around.services_down(context.home.services):
        return []
    try:
        place = service_place(context)
    except DataManagerError as error:
        context.listener(Warned(f"services cannot be started again: {error.message}"))
        return services_around.services_down(context.home.services)
    return services_around.restore_services(place, stop or context.stop, wait=wait, even_if_tried=even_if_tried)


def services_down(context: Context) -> list[ServiceDown]:
    """The services that ended runs stopped and that did not start again; reads files only and raises nothing."""
    return services_around.services_down(context.home.services)


def forget_service(context: Context, name: str) -> bool:
    """Give up starting a service again; whether one was given up. Raises: ConfigurationError, OSError, Cancelled."""
    return services_around.forget_service(service_place(context), name, context.stop)
