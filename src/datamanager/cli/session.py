"""One run of a command: who is told, what stops it, what it leaves in the log, which exit code it ends with."""

from __future__ import annotations

import contextlib
import getpass
import os
import shlex
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

from datamanager.app.context import Context
from datamanager.app.opening import Unlocking
from datamanager.base.clock import SystemClock
from datamanager.base.errors import Cancelled, DataManagerError, UsageError
from datamanager.base.events import Event, Warned
from datamanager.base.pipeline import StopToken
from datamanager.base.redacting import redacted as redacted
from datamanager.base.units import Secret
from datamanager.cli.output import Bar, Console, HumanConsole, JsonConsole
from datamanager.config.home import find_home
from datamanager.config.secret_files import first_line, read_secret_line
from datamanager.jobs.log import RunLog, drop_older, job_name
from datamanager.jobs.record import WITH_WARNINGS as WITH_WARNINGS
from datamanager.jobs.record import Ending, RunRecord, take_assignment
from datamanager.jobs.run_file import RunFile, RunFolder
from datamanager.state.model import Job, JobRequest, JobState, new_job_id
from datamanager.system.accounts import who
from datamanager.system.processes import lower_priority, this_process

if TYPE_CHECKING:
    from datamanager.cli import progress_bar
    from datamanager.cli.outcome import Outcome
else:
    from datamanager.cli.lazy import lazy

    progress_bar = lazy("datamanager.cli.progress_bar")

_LOGS_KEPT = 10  # where the configuration cannot be read


@dataclass(frozen=True, slots=True)
class Invocation:
    """A command that was called.

    Args:
        words: the command, as ``backup run``.
        arguments: what was typed behind the words.
        subject: what it is about: the name of a cluster, else of a repository, else empty.
        recorded: it is a job and stands in the history; others leave a log alone.
        heavy: never beside another heavy job of the same subject.
        effect: what it means if it fails, one sentence.
        repository, cluster: as they were named; None where they were not.
    """

    words: str
    arguments: tuple[str, ...] = ()
    subject: str = ""
    recorded: bool = False
    heavy: bool = False
    effect: str = ""
    repository: str | None = None
    cluster: str | None = None


class Session:
    """What a command's body is given. Owned by ``run``."""

    def __init__(self, console: Console, stop: StopToken, call: Invocation) -> None:
        self.console = console
        self.stop = stop
        self.clock = SystemClock()
        self.home = find_home(os.environ)
        self.context = Context(self.home, self.clock, stop, self.on_event)
        self.log: RunLog | None = None
        self.warnings: list[str] = []
        self._secrets: list[str] = []
        self._lock = threading.Lock()
        self.prompting = False
        self.record = self._new_record(call)

    def on_event(self, event: Event) -> None:
        """Tell console and log; a warning said twice is told once."""
        if isinstance(event, Warned):
            with self._lock:
                if event.message in self.warnings:
                    return
                self.warnings.append(event.message)
        if self.log is not None:
            self.log.event(event)
        self.record.event(event)
        self.console.event(event)

    @property
    def run_id(self) -> str:
        """The id of this run; no other has it."""
        return self.record.id

    def _new_record(self, call: Invocation) -> RunRecord:
        assigned = take_assignment(os.environ, call.words) if call.recorded else None
        now, process = self.clock.now(), this_process()
        if assigned is None:
            request = JobRequest(call.words, call.arguments, call.subject, who=who(), heavy=call.heavy)
        else:
            request = assigned.request
            if request.low_priority:
                lower_priority()
        job = Job(
            new_job_id(now) if assigned is None else assigned.id,
            request,
            JobState.RUNNING,
            queued=now if assigned is None else assigned.queued,
            started=now,
            host=socket.gethostname(),
            pid=process.pid,
            pid_started=process.started,
            heartbeat=now,
        )
        self._call = call
        run = RunFile(job, process, effect=call.effect, repository=call.repository, cluster=call.cluster)
        return RunRecord(run, RunFolder(self.home.runs) if call.recorded else None, self.clock, self.stop, self.mask)

    def begin(self) -> None:
        """Begin the log and the record; what cannot be written is a warning."""
        call = self._call
        # The arguments of what is no job may be anything, a setting's value for one: the words must do.
        arguments = [redacted(one) for one in call.arguments] if call.recorded else []
        typed = shlex.join(["datamanager", *call.words.split(), *arguments])
        try:
            self.log = RunLog.begin(self.home.logs, call.words, call.subject, typed, self.clock, self.mask)
        except OSError as error:
            self.on_event(Warned(f"this run leaves no log: {self.home.logs}: {_cause(error)}"))
        try:
            self.record.begin("" if self.log is None else self.log.path.name)
        except OSError as error:
            self.on_event(Warned(f"this run is not recorded: {self.home.runs}: {_cause(error)}"))

    def finish(self, ending: Ending) -> bool:
        """End the log and the record. Returns: False when the end could not be written."""
        job, written = self.record.finish(ending)
        if self.log is not None:
            self.log.close(job)
            drop_older(self.home.logs, job_name(self._call.words, self._call.subject), self._logs_kept())
        return written

    def _logs_kept(self) -> int:
        try:
            return self.context.config().logs.keep
        except DataManagerError:
            return _LOGS_KEPT

    def say(self, text: str) -> None:
        """A sentence for people, in between."""
        self.console.say(text)

    def mask(self, text: str) -> str:
        """The text without any secret that this run was given, or that someone typed where none belongs."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return redacted(text)

    def keep(self, secret: Secret) -> Secret:
        """Remember a secret, so that it can never stand in the log."""
        self._secrets.append(secret.reveal().decode(errors="replace"))
        return secret

    def unlocking(
        self,
        passphrase_file: Path | None = None,
        recovery_code_file: Path | None = None,
        key_file: Path | None = None,
    ) -> Unlocking:
        """The keys named on the command line; else the passphrase is asked for when it is needed."""
        return Unlocking(passphrase_file, recovery_code_file, key_file, self.ask_passphrase)

    def ask_passphrase(self, question: str) -> Secret:
        """From a person at a terminal, hidden, or the next line of a pipe. Raises: UsageError, ConfigurationError."""
        return self._asked(question, twice=False)

    def new_passphrase(self, file: Path | None) -> Secret:
        """A passphrase to be set: from a file, a pipe, or typed twice. Raises: UsageError, ConfigurationError."""
        if file is not None:
            return self.keep(read_secret_line(file, "passphrase file"))
        return self._asked("New passphrase", twice=True)

    def confirm(self, question: str) -> bool | None:
        """Ask a person at a terminal; Enter means no. None when there is nobody to ask. Raises: Cancelled."""
        answer = self.answer(f"{question} [y/N]")
        return None if answer is None else answer.lower() in ("y", "yes")

    def answer(self, question: str) -> str | None:
        """What a person at a terminal types. None when there is nobody to ask. Raises: Cancelled."""
        if isinstance(self.console, JsonConsole) or not (sys.stdin.isatty() and sys.stdout.isatty()):
            return None
        self.console.close()
        self.prompting = True
        try:
            return input(f"{question} ").strip()
        except (EOFError, KeyboardInterrupt):
            raise Cancelled("read answer: stopped") from None
        finally:
            self.prompting = False

    def _asked(self, question: str, *, twice: bool) -> Secret:
        if not sys.stdin.isatty():
            line = sys.stdin.buffer.readline()
            if not line:
                raise UsageError(
                    "read passphrase: there is no terminal to ask at and nothing on standard input",
                    hint="Give --passphrase-file FILE, or pipe the passphrase in.",
                )
            return self.keep(first_line(line, "passphrase"))
        typed = self._typed(f"{question}: ")
        if twice and self._typed("The same again: ") != typed:
            raise UsageError("read passphrase: the two are different", hint="Run the command again.")
        return typed

    def _typed(self, prompt: str) -> Secret:
        self.console.close()
        self.prompting = True
        try:
            return self.keep(first_line(getpass.getpass(prompt).encode(), "passphrase"))
        except (EOFError, KeyboardInterrupt):
            raise Cancelled("read passphrase: stopped") from None
        finally:
            self.prompting = False


def run(call: Invocation, body: Callable[..., Outcome], parameters: Mapping[str, Any], *, json_lines: bool) -> int:
    """Carry out a command and return its exit code; nothing is raised.

    Args: body - takes the Session and the parameters.
    """
    console = _console(json_lines=json_lines)
    with StopToken() as stop:
        try:
            session = Session(console, stop, call)
        except DataManagerError as error:
            console.error(error, {})
            return error.exit_code
        with _signals(session):
            session.begin()
            try:
                return _carry_out(session, body, parameters)
            finally:
                console.close()


def _carry_out(session: Session, body: Callable[..., Outcome], parameters: Mapping[str, Any]) -> int:
    try:
        outcome = body(session, **parameters)
    except DataManagerError as error:
        return _failed(session, error)
    except KeyboardInterrupt:
        return _failed(session, Cancelled("run command: interrupted"))
    except Exception as error:  # noqa: BLE001 - the last resort: no run ends without a log and an exit code
        return _failed(session, _unexpected(session, error), traceback.format_exc())
    unsaid = [one for one in dict.fromkeys(outcome.warnings) if one not in session.warnings]
    for warning in unsaid:
        session.on_event(Warned(warning))
    session.console.close()
    if outcome.failure is not None:
        session.say(outcome.text)
        return _failed(session, outcome.failure, data=outcome.data)
    code = WITH_WARNINGS if session.warnings else 0
    if outcome.exit_code is not None:
        code = outcome.exit_code
    if session.log is not None:
        session.log.result(outcome.log_line, code)
    if not session.finish(Ending(code, outcome.log_line, None, outcome.data, tuple(session.warnings))):
        session.on_event(Warned(_NO_END.format(session.home.runs)))
        code = WITH_WARNINGS
    session.console.result(outcome, session.warnings, code)
    return code


_NO_END = "the end of this run is not recorded: {} cannot be written"


def _failed(session: Session, error: DataManagerError, trace: str = "", data: Mapping[str, Any] | None = None) -> int:
    if session.log is not None:
        session.log.error(error, trace)
    session.console.close()
    ending = Ending(error.exit_code, error.message, error, data or {}, tuple(session.warnings))
    if not session.finish(ending):
        session.on_event(Warned(_NO_END.format(session.home.runs)))
    session.console.error(error, {"warnings": session.warnings, **(data or {})})
    return error.exit_code


def _unexpected(session: Session, error: Exception) -> DataManagerError:
    where = f"The log {session.log.path} has the details" if session.log else "Run it again with a writable home"
    cause = session.mask(str(error).split("\n", 1)[0])
    return DataManagerError(
        f"run command: unexpected {type(error).__name__}: {cause}", hint=f"{where}; please report it."
    )


def _console(*, json_lines: bool) -> Console:
    elapsed = time.monotonic
    if json_lines:
        return JsonConsole(sys.stdout, elapsed)
    bar = _bar if sys.stdout.isatty() else None
    return HumanConsole(sys.stdout, sys.stderr, elapsed, bar)


def _bar(stream: TextIO) -> Bar:
    return progress_bar.TerminalBar(stream)


def _cause(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()


@contextlib.contextmanager
def _signals(session: Session) -> Iterator[None]:
    """Let the first signal stop the run in an orderly way, and the second one end it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        again = session.stop.stopping
        session.stop.stop(f"run command: stopped by {signal.Signals(number).name}")
        if again or session.prompting:
            raise KeyboardInterrupt

    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
    wanted = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.signal(number, handle) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
