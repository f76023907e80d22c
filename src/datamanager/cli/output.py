"""What a run says while it works and at its end: for people in plain sentences, for programs in JSON lines.

The JSON lines are a published contract: ``docs/cli.md``. Errors go to standard error, everything else to standard
output; with ``--json`` every line goes to standard output, and the last one is the result or the error.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TextIO

from datamanager.base.errors import DataManagerError
from datamanager.base.events import Event, Executed, PhaseStarted, Progress, Warned
from datamanager.base.meter import Meter, Reading
from datamanager.cli.outcome import Outcome

_JSON_EVERY_SECONDS = 1.0
_PLAIN_EVERY_SECONDS = 1.0
_PLAIN_STEP_PERCENT = 10.0
_PLAIN_LONGEST_SECONDS = 30.0  # a slow phase says every so often that it is alive


class Console(Protocol):
    """Shows one run. Thread-safe."""

    def event(self, event: Event) -> None: ...

    def say(self, text: str) -> None:
        """A sentence in between; programs do not get it."""
        ...

    def result(self, outcome: Outcome, warnings: list[str], exit_code: int) -> None: ...

    def error(self, error: DataManagerError, extra: dict[str, Any]) -> None: ...

    def close(self) -> None:
        """Take away what moves; called before the result or the error, and once more at the end."""
        ...


class _Lines:
    """Writes whole lines; a reader that has gone away (``| head``) must not stop a backup."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        try:
            self._stream.write(f"{text}\n")
            self._stream.flush()
        except BrokenPipeError:
            # Python flushes standard output once more at its end, which would fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


class JsonConsole:
    """One JSON object a line, in ASCII, so that no terminal and no file name can spoil it."""

    def __init__(self, stream: TextIO, elapsed: Callable[[], float]) -> None:
        self._lines = _Lines(stream)
        self._elapsed = elapsed
        self._meter = Meter(elapsed)
        self._last = -_JSON_EVERY_SECONDS
        self._lock = threading.Lock()

    def event(self, event: Event) -> None:
        with self._lock:
            match event:
                case PhaseStarted(phase):
                    self._meter.restart()
                    self._last = -_JSON_EVERY_SECONDS
                    self._write("phase", phase=phase)
                case Progress():
                    self._progress(event)
                case Warned(message):
                    self._write("warning", message=message)
                case Executed(text):
                    self._write("executed", text=text)

    def _progress(self, event: Progress) -> None:
        now = self._elapsed()
        if now - self._last < _JSON_EVERY_SECONDS:
            return
        self._last = now
        reading = self._meter.read(event)
        self._write(
            "progress",
            done_bytes=reading.done_bytes,
            total_bytes=reading.total_bytes,
            percent=None if reading.percent is None else round(reading.percent, 1),
            bytes_per_second=round(reading.bytes_per_second),
            seconds_left=None if reading.seconds_left is None else round(reading.seconds_left, 1),
        )

    def say(self, text: str) -> None:
        """Nothing: the result holds it."""

    def result(self, outcome: Outcome, warnings: list[str], exit_code: int) -> None:
        with self._lock:
            self._write("result", exit_code=exit_code, warnings=warnings, **outcome.data)

    def error(self, error: DataManagerError, extra: dict[str, Any]) -> None:
        with self._lock:
            self._write("error", exit_code=error.exit_code, message=error.message, hint=error.hint, **extra)

    def close(self) -> None:
        """Nothing moves."""

    def _write(self, message_type: str, **values: Any) -> None:
        self._lines.write(_json_line(message_type, values))


def _json_line(message_type: str, values: Mapping[str, Any]) -> str:
    return json.dumps({"message_type": message_type, **values})


class Bar(Protocol):
    """Something that moves on a terminal."""

    def phase(self, phase: str) -> None: ...

    def show(self, reading: Reading) -> None: ...

    def line(self, text: str) -> None:
        """Print a line above it."""
        ...

    def close(self) -> None: ...


class HumanConsole:
    """Sentences; progress as a bar where there is a terminal, else as a line now and then.

    Args: bar - made at the first phase on a terminal; None without one.
    """

    def __init__(
        self,
        stream: TextIO,
        errors: TextIO,
        elapsed: Callable[[], float],
        bar: Callable[[TextIO], Bar] | None = None,
    ) -> None:
        self._stream = stream
        self._lines = _Lines(stream)
        self._errors = errors
        self._elapsed = elapsed
        self._make_bar = bar
        self._bar: Bar | None = None
        self._meter = Meter(elapsed)
        self._phase = ""
        self._last_time = -_PLAIN_EVERY_SECONDS
        self._last_percent = 0.0
        self._lock = threading.Lock()

    def event(self, event: Event) -> None:
        with self._lock:
            match event:
                case PhaseStarted(phase):
                    self._start(phase)
                case Progress():
                    self._progress(event)
                case Warned(message):
                    self._line(f"warning: {message}")
                case Executed():
                    pass  # stands in the log

    def _start(self, phase: str) -> None:
        if phase == self._phase:
            return
        self._phase = phase
        self._meter.restart()
        self._last_time, self._last_percent = self._elapsed(), 0.0
        if self._make_bar is None:
            self._line(f"{phase} …")
            return
        if self._bar is None:
            self._bar = self._make_bar(self._stream)
        self._bar.phase(phase)

    def _progress(self, event: Progress) -> None:
        if self._bar is not None:
            self._bar.show(self._meter.read(event))
            return
        now = self._elapsed()
        if now - self._last_time < _PLAIN_EVERY_SECONDS:
            return
        reading = self._meter.read(event)
        further = reading.percent is not None and reading.percent - self._last_percent >= _PLAIN_STEP_PERCENT
        if further or now - self._last_time >= _PLAIN_LONGEST_SECONDS:
            self._last_time, self._last_percent = now, reading.percent or 0.0
            self._line(f"{self._phase}: {reading.describe()}")

    def say(self, text: str) -> None:
        with self._lock:
            self._line(text)

    def result(self, outcome: Outcome, warnings: list[str], exit_code: int) -> None:
        with self._lock:
            if outcome.text:
                self._line(outcome.text)

    def error(self, error: DataManagerError, extra: dict[str, Any]) -> None:
        self.close()
        _write_error(self._errors, error)

    def close(self) -> None:
        with self._lock:
            if self._bar is not None:
                self._bar.close()
                self._bar = None

    def _line(self, text: str) -> None:
        if self._bar is not None:
            self._bar.line(text)
            return
        self._lines.write(text)


def report_error(error: DataManagerError, *, json_lines: bool) -> None:
    """An error that came before any run began."""
    if json_lines:
        values = {"exit_code": error.exit_code, "message": error.message, "hint": error.hint, "warnings": []}
        _Lines(sys.stdout).write(_json_line("error", values))
    else:
        _write_error(sys.stderr, error)


def report_result(values: Mapping[str, Any]) -> None:
    """The result of a command that is no run, for programs."""
    _Lines(sys.stdout).write(_json_line("result", values))


def _write_error(stream: TextIO, error: DataManagerError) -> None:
    lines = _Lines(stream)
    lines.write(f"error: {error.message}")
    if error.hint:
        lines.write(error.hint)
