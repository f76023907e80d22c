"""Services stopped around a job run again, whatever happens to the job, the program or the machine (R101, R48, N15).

    look ─► journal, durable ─► stop, dependents first ─► the job ─► start in reverse ─► see that they run ─► no journal

A journal that outlives its run is an order to whoever finds it: ``restore_services``. A service that did not run before
is left alone. One that several runs need stopped is started by the last of them. One lock guards all of this, so
nothing is started twice at once; a command that outlives the killed run that began it is waited for first.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from datamanager.base.clock import Clock
from datamanager.base.errors import DataManagerError, ServiceError, UsageError
from datamanager.base.events import Executed, Listener, PhaseStarted, Warned
from datamanager.base.pipeline import StopToken
from datamanager.jobs.service_journal import (
    Acting,
    Journal,
    drop_journal,
    journal_names,
    journal_path,
    read_journals,
    write_journal,
)
from datamanager.system.locks import held
from datamanager.system.processes import ProcessIdentity, ancestors, end_tree, is_alive, this_process
from datamanager.system.services import (
    SETTLED_SECONDS,
    Runner,
    Service,
    ServiceManager,
    ServiceState,
    check_settled,
    start_service,
    stop_service,
)

# A service that does not start keeps failing for a while; each minute is often enough to find it mended.
RETRY_SECONDS = 60.0
_LOOK_SECONDS = 0.1
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name))


@dataclass(frozen=True, slots=True)
class ServiceDown:
    """A service that ran before a job and does not run now, or is not known to.

    Args: run - the id of the run that stopped it; since - when; error - why it did not start again, empty when nobody
        tried yet; tried - when that was. Of a journal that cannot be read the names are unknown: only error is given.
    """

    name: str
    run: str
    since: datetime | None
    error: str = ""
    tried: datetime | None = None


@dataclass(frozen=True)
class Place:
    """Where journals are, who acts on services, who is told.

    Args: folder - made when it is needed.
    """

    folder: Path
    manager: ServiceManager
    clock: Clock
    listener: Listener

    @property
    def lock(self) -> Path:
        return self.folder / "lock"


@contextlib.contextmanager
def services_stopped(place: Place, run: str, names: Sequence[str], stop: StopToken) -> Iterator[tuple[str, ...]]:
    """Stop services for the time of the block; afterwards those run again that ran before, however it ended.

    Args: run - the run's id, unique; names - in the order of stopping; what depends on them goes first.
    Yields: the services that ran.
    Raises: ServiceError, NotFound, UsageError, Cancelled before the block, with everything running that ran before. A
        service that does not start again is no error of the block: the listener is warned, ``services_down`` lists it.
    """
    if not names:
        yield ()
        return
    journal: Journal | None = None
    try:
        try:
            with _locked(place, stop):
                journal = _begin(place, run, names)
                if journal is not None:
                    place.listener(PhaseStarted("stopping services"))
                    _stop_all(place, journal, stop)
        except OSError as error:
            raise ServiceError(
                f"stop services: {place.folder}: {(error.strerror or 'cannot be written').lower()}",
                hint="Nothing was stopped: what is to be started again must be written down first.",
            ) from error
        yield () if journal is None else journal.services
    finally:
        if journal is not None:
            _undisturbed(lambda: _end(place, journal))


def restore_services(
    place: Place, stop: StopToken, *, wait: bool = False, even_if_tried: bool = False
) -> list[ServiceDown]:
    """Start the services of runs that have ended without doing it: killed, or gone with the machine.

    Cheap when there is nothing to do. May take as long as services take to start. Safe from several processes at once.

    Args: wait - for another process that is at it, instead of leaving it to that; even_if_tried - also those that
        failed less than a minute ago.
    Returns: those that do not run now.
    Raises: Cancelled; then the journals stay.
    """
    if journal_names(place.folder):
        with contextlib.suppress(OSError), _locked(place, stop, limit_seconds=None if wait else 0.0) as mine:
            for journal in read_journals(place.folder)[0] if mine else ():
                due = even_if_tried or _due(journal, place.clock.now())
                if journal.abandoned and due and _may_act_for(journal):
                    _start_all(place, journal, stop)
    return services_down(place.folder)


def services_down(folder: Path) -> list[ServiceDown]:
    """The services that runs which have ended did not start again. Reads files only; raises nothing."""
    journals, errors = read_journals(folder)
    down = [
        ServiceDown(name, one.run, one.began, one.errors.get(name, ""), one.tried)
        for one in journals
        if one.abandoned
        for name in one.services
    ]
    return down + [ServiceDown("", "", None, error.message) for error in errors]


def forget_service(place: Place, name: str, stop: StopToken) -> bool:
    """Give up starting a service again; whether any ended run still owed it. Raises: OSError, Cancelled."""
    found = False
    with _locked(place, stop):
        for journal in read_journals(place.folder)[0]:
            if journal.abandoned and name in journal.services:
                found = True
                _keep(place, journal, tuple(one for one in journal.services if one != name))
    return found


def _begin(place: Place, run: str, names: Sequence[str]) -> Journal | None:
    """Look at the services and write down which run; None when none does."""
    journals, _ = read_journals(place.folder)
    owed = {name for journal in journals for name in journal.services}
    own = {process.pid for process in ancestors()}
    found: dict[str, Service] = {}
    for name in names:
        _collect(place.manager, name, found, asked=True)
    running: list[str] = []
    for service in found.values():
        # What another run stopped is down for its sake only: whoever is last starts it again.
        if not (service.state.wanted or service.name in owed):
            continue
        if service.obstacle:
            raise ServiceError(f"stop service {service.name}: {service.obstacle}", hint="Leave it out of this job.")
        if service.pid in own:
            raise UsageError(
                f"stop service {service.name}: this job runs inside of it", hint="Leave it out, or run the job outside."
            )
        running.append(service.name)
    if not running:
        return None
    if journal_path(place.folder, run).exists():
        raise ServiceError(f"stop services: run {run} has stopped some already", hint="Give each run an id of its own.")
    journal = Journal(run, this_process(), place.clock.now(), tuple(running))
    write_journal(place.folder, journal)
    return journal


def _collect(manager: ServiceManager, name: str, found: dict[str, Service], *, asked: bool = False) -> None:
    """Put a service behind all that depend on it."""
    service = manager.look(name)
    if service.state is ServiceState.ABSENT:
        if asked:
            raise ServiceError(
                f"stop service {name}: there is no such service",
                hint="Run `datamanager services list --all` to see them, or describe it with "
                "`datamanager services add`.",
            )
        return
    if service.name in found:
        return
    # Its place is kept while its dependents are looked at, so that a circle ends.
    found[service.name] = service
    for dependent in service.dependents:
        _collect(manager, dependent, found)
    found[service.name] = found.pop(service.name)


def _stop_all(place: Place, journal: Journal, stop: StopToken) -> None:
    for name in journal.services:
        stop_service(place.manager, name, _runner(place, journal, name, "stop", stop))


def _end(place: Place, journal: Journal) -> None:
    """Start what the run stopped. The run's own stop token may have been used up by then."""
    place.listener(PhaseStarted("starting services again"))
    with StopToken() as unstoppable, contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_locked(place, unstoppable))
        except OSError as error:
            # Better twice at once than not at all: the folder was there a moment ago.
            place.listener(Warned(f"the services were started again without a lock: {error.strerror or error}"))
        _start_all(place, journal, unstoppable)


def _start_all(place: Place, journal: Journal, stop: StopToken) -> None:
    """Start the services of a run in reverse; what fails stays in the journal, with the reason."""
    _wait_for(journal, stop)
    elsewhere = {
        name
        for other in read_journals(place.folder)[0]
        if other.run != journal.run and not other.abandoned
        for name in other.services
    }
    errors: dict[str, str] = {}
    started: list[str] = []
    for name in reversed(journal.services):
        if name in elsewhere:
            continue
        with _noting(place, name, errors, stop):
            if start_service(place.manager, name, _runner(place, journal, name, "start", stop)):
                started.append(name)
    if started and stop.wait(SETTLED_SECONDS):
        stop.check()
    for name in started:
        with _noting(place, name, errors, stop):
            check_settled(place.manager, name)
    _keep(place, journal, tuple(name for name in journal.services if name in errors), errors)


@contextlib.contextmanager
def _noting(place: Place, name: str, errors: dict[str, str], stop: StopToken) -> Iterator[None]:
    """Note and tell why a service did not start, and go on with the next. Raises: Cancelled."""
    try:
        yield
    except DataManagerError as error:
        stop.check()
        errors[name] = error.message
        told = f"service {name} was stopped for this job and did not start again: {error.message}. {error.hint}"
        place.listener(Warned(told))


def _keep(place: Place, journal: Journal, names: tuple[str, ...], errors: dict[str, str] | None = None) -> None:
    """Leave these in the journal, or drop it when there are none."""
    try:
        if not names:
            drop_journal(place.folder, journal.run)
            return
        kept = replace(journal, services=names, over=True, acting=None)
        if errors is not None:
            kept = replace(kept, errors=errors, tried=place.clock.now())
        write_journal(place.folder, kept)
    except OSError as error:
        path = journal_path(place.folder, journal.run)
        place.listener(Warned(f"the journal of services {path} cannot be changed: {error.strerror or error}"))


def _wait_for(journal: Journal, stop: StopToken) -> None:
    """Let a command end that the killed run left behind; one that takes longer than it may is ended."""
    acting = journal.acting
    if acting is None:
        return
    deadline = time.monotonic() + acting.limit_seconds
    while is_alive(acting.process):
        if time.monotonic() > deadline:
            end_tree(acting.process, 3.0)
            return
        if stop.wait(_LOOK_SECONDS):
            stop.check()


def _runner(place: Place, journal: Journal, name: str, action: str, stop: StopToken) -> Runner:
    def begun(process: ProcessIdentity) -> None:
        acting = Acting(name, action, process, place.manager.limit_seconds(name))
        try:
            write_journal(place.folder, replace(journal, acting=acting))
        except OSError:
            # A full disk must keep nothing from running again; but nothing is stopped without a note of it.
            if action == "stop":
                raise

    return Runner(stop, lambda text: place.listener(Executed(text)), begun, _account(journal))


def _may_act_for(journal: Journal) -> bool:
    """Whether this account may start that run's services: its own, and for root everybody's."""
    return os.name == "nt" or os.geteuid() in (0, journal.user_id)


def _account(journal: Journal) -> int | None:
    """Root starts another account's services as that account."""
    if os.name == "nt" or journal.user_id is None or os.geteuid() != 0:
        return None
    return journal.user_id


def _due(journal: Journal, now: datetime) -> bool:
    """A clock that went back makes it due."""
    return journal.tried is None or not timedelta(0) <= now - journal.tried < timedelta(seconds=RETRY_SECONDS)


@contextlib.contextmanager
def _locked(place: Place, stop: StopToken, *, limit_seconds: float | None = None) -> Iterator[bool]:
    """Raises: OSError, Cancelled."""
    place.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    with held(place.lock, stop, limit_seconds=limit_seconds) as mine:
        yield mine


def _undisturbed(action: Callable[[], None]) -> None:
    """Do something to its end although a signal asks for another; that is answered afterwards.

    Without it a second Ctrl-C would leave services down until somebody finds the journal.
    """
    if threading.current_thread() is not threading.main_thread():
        action()
        return
    caught: list[int] = []
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    ours = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in ours:
        signal.signal(number, lambda number, frame: caught.append(number))
    try:
        action()
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
        for number in caught[:1]:
            signal.raise_signal(number)
