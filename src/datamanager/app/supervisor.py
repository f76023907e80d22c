"""The parent of the service: small, so that it does not fail, and the only part that may be root.

It begins the planner as a child of its own, begins it again when it dies, kills it when it says nothing any more, lets
the services run again that killed runs had stopped, and stops and starts services for jobs that may not. Everything
that reads the database, the network or a repository is done by children under the account of the jobs.

    supervisor (root, or the account itself)
    ├── serve --role planner      decides, queues, begins jobs; ends when its standard input does
    ├── wal start CLUSTER         archives the WAL of a cluster that wants it; ends when its standard input does
    ├── serve --role services     starts what killed runs had stopped; for a while
    ├── serve --role restores     finishes restores in place that were cut off; for a while
    └── serve --role tell         tells people that the planner does not run; for a while
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datamanager.app.context import Context
from datamanager.app.in_place_notes import Note, read_notes
from datamanager.app.planner_file import SILENT_SECONDS
from datamanager.app.serve_account import (
    give_to_account,
    job_account,
    prepare_home,
    privileged_requests,
    run_folder,
)
from datamanager.app.serve_children import (
    LONGEST_PAUSE_SECONDS,
    PLANNER,
    Errand,
    PlannerProcess,
    end_former_planner,
    pause_after,
)
from datamanager.app.service import program
from datamanager.app.wal_children import WalChildren
from datamanager.base.errors import Busy, ConfigurationError, DataManagerError
from datamanager.config.home import Home
from datamanager.jobs.service_journal import journal_names
from datamanager.postgres.account import Account, CurrentAccount, UnixAccount
from datamanager.system.locks import held
from datamanager.system.processes import group_options
from datamanager.system.sd_notify import VARIABLES, ServiceNotifier

SERVICES, RESTORES, TELL = "services", "restores", "tell"
# How long a planner's grace and the forced end of its jobs take beside what --grace allows.
_LAST_SECONDS = 30.0
_LOOK_SECONDS = 0.5
# A planner that lived so long did not die of what killed the one before.
_STEADY_SECONDS = 300.0
_TOLD_AFTER_DEATHS = 3
# People are told of what lasts ten minutes.
_TOLD_AGAIN_SECONDS = 300.0
_HOUSEKEEPING_SECONDS = 10.0
# Services may take minutes to start, one after the other; telling waits for mail servers.
_SERVICES_SECONDS = 1800.0
_TELL_SECONDS = 120.0
# The server's start, its way back, and room to clear away.
_RESTORES_SECONDS = 3600.0
# A second supervisor may be on its way out.
_LOCK_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """How the service is to run.

    Args:
        account: whom the jobs run as; only root may name another than its own.
        metrics_port: where /metrics and /health are served on loopback; None leaves them out.
        grace_seconds: how long running jobs may go on when the service is stopped.
        hung_seconds: a planner that says nothing for so long is killed.
        settle_seconds: how long after its start nothing is caught up; None is the planner's own.
    """

    account: str | None = None
    metrics_port: int | None = None
    grace_seconds: float = 10.0
    hung_seconds: float = SILENT_SECONDS
    settle_seconds: float | None = None

    def words(self) -> tuple[str, ...]:
        """As arguments of ``serve`` for a child; it is the account already."""
        port = () if self.metrics_port is None else ("--metrics-port", str(self.metrics_port))
        settle = () if self.settle_seconds is None else ("--settle", str(self.settle_seconds))
        return (*port, "--grace", str(self.grace_seconds), *settle)


def supervise(
    context: Context, options: ServeOptions, environment: Mapping[str, str], say: Callable[[str], None]
) -> None:
    """Run the service until ``context.stop``.

    Args: environment - of this process, which its children get; say - told what happens, a sentence each.
    Raises: Busy (another one serves this home), ConfigurationError.
    """
    account = job_account(context.home, options.account, environment)
    prepare_home(context.home, account)
    folder = run_folder(context.home, account)
    with held(folder / "serve.lock", context.stop, limit_seconds=_LOCK_SECONDS) as mine:
        if not mine:
            raise another_serves(context.home)
        with privileged_requests(context, folder, account, say) as requests:
            variables = {name: value for name, value in environment.items() if name not in VARIABLES} | requests
            _Supervisor(context, options, account, variables, ServiceNotifier(environment), say).run()


def another_serves(home: Home) -> Busy:
    """Two must not plan for one home."""
    return Busy(
        f"serve: another service runs for {home.state}",
        hint="Stop that one first; `datamanager service status` says whether it is the installed one.",
    )


class _Supervisor:
    """One supervisor at work. Used by one thread."""

    def __init__(
        self,
        context: Context,
        options: ServeOptions,
        account: UnixAccount | None,
        variables: dict[str, str],
        notifier: ServiceNotifier,
        say: Callable[[str], None],
    ) -> None:
        self._context = context
        self._home = context.home
        self._options = options
        self._account = account
        self._variables = variables
        self._notifier = notifier
        self._say = say
        self._planner: PlannerProcess | None = None
        self._errands: dict[str, Errand] = {}
        self._receivers = WalChildren(context, lambda words: self._begin(words, account), say, options.hung_seconds)
        self._finished: dict[str, Note] = {}  # the last note of a cluster that somebody was sent for
        self._deaths = 0
        self._begin_at = 0.0
        self._told_at = -_TOLD_AGAIN_SECONDS
        self._kept_house_at = -_HOUSEKEEPING_SECONDS

    def run(self) -> None:
        """Until stopping is asked for; then everything is ended in an orderly way."""
        if end_former_planner(self._home.planner_file, self._account):
            self._say("The planner of a service that was killed still ran; it was ended.")
        self._look_after_services()
        self._finish_restores()
        self._begin_planner()
        self._notifier.ready("The planner was started.")
        self._say("The service runs.")
        try:
            while not self._context.stop.wait(_LOOK_SECONDS):
                self._notifier.alive()
                self._look()
        finally:
            self._notifier.stopping()
            self._end()

    def _look(self) -> None:
        now = time.monotonic()
        for name, errand in list(self._errands.items()):
            if errand.ended(now):
                del self._errands[name]
        planner = self._planner
        if planner is None:
            if now >= self._begin_at:
                self._begin_planner()
        elif planner.was_refused:
            # The lock of the home's own folder is known to planners alone: another account's is not ours to make.
            raise another_serves(self._home)
        elif (cause := planner.trouble(now)) is not None:
            self._died(planner, cause, now)
        elif planner.beats and now - planner.began > _STEADY_SECONDS:
            self._deaths = 0
        if now - self._kept_house_at >= _HOUSEKEEPING_SECONDS:
            self._kept_house_at = now
            self._keep_house()
        self._receivers.look(now)

    def _died(self, planner: PlannerProcess, cause: str, now: float) -> None:
        self._planner = None
        self._deaths += 1
        pause = pause_after(self._deaths)
        self._begin_at = now + pause
        self._say(f"The planner {cause}; it is started again in {pause:.0f} s. Jobs that run go on.")
        self._notifier.status(f"The planner {cause}; it is started again.")
        self._look_after_services()
        if self._deaths >= _TOLD_AFTER_DEATHS and now - self._told_at >= _TOLD_AGAIN_SECONDS:
            self._told_at = now
            self._send(TELL, _TELL_SECONDS)

    def _keep_house(self) -> None:
        if self._account is not None:
            give_to_account(self._home, self._account)
        if self._planner is None or not self._planner.beats or self._roots_journals():
            self._look_after_services()
        self._finish_cut_off()

    def _look_after_services(self) -> None:
        """Let services run again that killed runs stopped. The planner does it as well; this does not need it."""
        if not journal_names(self._home.services):
            return
        self._send(SERVICES, _SERVICES_SECONDS)
        if self._roots_journals():
            # What root's own runs stopped, the account may not start.
            self._send(SERVICES, _SERVICES_SECONDS, as_root=True)

    def _finish_restores(self) -> None:
        """Once, at the start: whatever the machine's end cut off, also where nobody noted it."""
        self._send(RESTORES, _RESTORES_SECONDS)
        if self._account is not None:
            self._send(RESTORES, _RESTORES_SECONDS, as_root=True)

    def _finish_cut_off(self) -> None:
        """Finish a restore whose process was killed meanwhile; each note of it is gone after once."""
        if any(name.startswith(RESTORES) for name in self._errands):
            return
        now = self._context.clock.now()
        for note in read_notes(self._home):
            if note.is_due(now) and self._finished.get(note.cluster) != note:
                self._finished[note.cluster] = note
                self._send(RESTORES, _RESTORES_SECONDS, as_root=self._account is not None and note.user_id == 0)

    def _roots_journals(self) -> bool:
        if self._account is None:
            return False
        for run in journal_names(self._home.services):
            with contextlib.suppress(OSError):
                if os.lstat(self._home.services / f"{run}.json").st_uid == 0:
                    return True
        return False

    def _send(self, role: str, limit_seconds: float, *, as_root: bool = False) -> None:
        """Begin a child that does one thing, unless the one before is still at it."""
        name = f"{role} as root" if as_root else role
        if name in self._errands:
            return
        try:
            process = self._begin(("serve", "--role", role), None if as_root else self._account)
        except DataManagerError as error:
            self._say(f"{error.message}.")
            return
        self._errands[name] = Errand(process, time.monotonic() + limit_seconds)

    def _begin_planner(self) -> None:
        try:
            process = self._begin(("serve", "--role", PLANNER, *self._options.words()), self._account)
        except DataManagerError as error:
            self._deaths += 1
            self._begin_at = time.monotonic() + LONGEST_PAUSE_SECONDS
            self._say(f"{error.message}; it is tried again in {LONGEST_PAUSE_SECONDS:.0f} s.")
            return
        self._planner = PlannerProcess(process, self._home.planner_file, self._options.hung_seconds)

    def _begin(self, words: Sequence[str], account: Account | None) -> subprocess.Popen[bytes]:
        """Raises: ConfigurationError."""
        account = account or CurrentAccount()
        try:
            return subprocess.Popen(
                [*program(), *words],
                env={**self._variables, **account.environment()},
                cwd=Path.cwd().anchor,
                stdin=subprocess.PIPE,
                **group_options(),
                **account.process_options(),
            )
        except OSError as error:
            raise ConfigurationError(
                f"serve: {sys.executable} cannot be run as {account.name}: {(error.strerror or '').lower()}",
                hint="Install DataManager where that account may enter, such as /opt/datamanager.",
            ) from error

    def _end(self) -> None:
        planner = self._planner
        self._receivers.ask()
        if planner is not None:
            planner.ask()
            # The service manager counts as well; it is told that this is no hang.
            deadline = time.monotonic() + self._options.grace_seconds + _LAST_SECONDS
            while planner.runs and time.monotonic() < deadline:
                self._notifier.alive()
                time.sleep(0.1)
            if planner.runs:
                self._say("The planner did not end in time; it was killed.")
            planner.kill()
        self._receivers.end(self._notifier.alive)
        for errand in self._errands.values():
            errand.end()
        self._say("The service has ended.")
