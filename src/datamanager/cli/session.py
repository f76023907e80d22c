"""One run of a command: who is told, what stops it, what it leaves in the log, which exit code it ends with."""

from __future__ import annotations

import contextlib
import getpass
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

from datamanager.app.context import Context
from datamanager.app.opening import Unlocking
from datamanager.app.run_log import RunLog
from datamanager.base.clock import SystemClock
from datamanager.base.errors import Cancelled, DataManagerError, UsageError
from datamanager.base.events import Event, Warned
from datamanager.base.pipeline import StopToken
from datamanager.base.units import Secret
from datamanager.cli.output import Bar, Console, HumanConsole, JsonConsole
from datamanager.config.home import find_home
from datamanager.config.secret_files import first_line, read_secret_line

if TYPE_CHECKING:
    from datamanager.cli import progress_bar
    from datamanager.cli.outcome import Outcome
else:
    from datamanager.cli.lazy import lazy

    progress_bar = lazy("datamanager.cli.progress_bar")

WITH_WARNINGS = 3


class Session:
    """What a command's body is given. Owned by ``run``."""

    def __init__(self, console: Console, stop: StopToken) -> None:
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

    def on_event(self, event: Event) -> None:
        """Tell console and log; a warning said twice is told once."""
        if isinstance(event, Warned):
            with self._lock:
                if event.message in self.warnings:
                    return
                self.warnings.append(event.message)
        if self.log is not None:
            self.log.event(event)
        self.console.event(event)

    def say(self, text: str) -> None:
        """A sentence for people, in between."""
        self.console.say(text)

    def mask(self, text: str) -> str:
        """The text without any secret that this run was given."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

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
        if isinstance(self.console, JsonConsole) or not (sys.stdin.isatty() and sys.stdout.isatty()):
            return None
        self.console.close()
        self.prompting = True
        try:
            return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
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


def run(words: str, body: Callable[..., Outcome], parameters: Mapping[str, Any], *, json_lines: bool) -> int:
    """Carry out a command and return its exit code; nothing is raised.

    Args: words - the command as typed (``backup run``); body - takes the Session and the parameters.
    """
    console = _console(json_lines=json_lines)
    with StopToken() as stop:
        try:
            session = Session(console, stop)
        except DataManagerError as error:
            console.error(error, {})
            return error.exit_code
        with _signals(session), _logged(session, words):
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
    if session.log is not None:
        session.log.result(outcome.log_line, code)
    session.console.result(outcome, session.warnings, code)
    return code


def _failed(session: Session, error: DataManagerError, trace: str = "", data: Mapping[str, Any] | None = None) -> int:
    if session.log is not None:
        session.log.error(error, trace)
    session.console.close()
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


@contextlib.contextmanager
def _logged(session: Session, words: str) -> Iterator[None]:
    try:
        session.log = RunLog.begin(session.home.logs, words, session.clock, session.mask)
    except OSError as error:
        cause = (error.strerror or type(error).__name__).lower()
        session.on_event(Warned(f"this run leaves no log: {session.home.logs}: {cause}"))
        yield
        return
    try:
        yield
    finally:
        session.log.close()


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
