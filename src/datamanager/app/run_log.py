"""The log of a run, in plain text: what was started, every command and statement, warnings, how it ended (R96).

One file a run, ``COMMAND-TIME-PROCESS.log``; the newest ten of each command stay. The command line, the web page and
the scheduler share this writer.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from datamanager.base.clock import Clock
from datamanager.base.errors import DataManagerError
from datamanager.base.events import Event, Executed, PhaseStarted, Warned

KEPT = 10
_FILE = re.compile(r"(?P<command>[a-z-]+)-\d{8}T\d{6}\.\d{6}Z-\d+\.log")


class RunLog:
    """Writes one log; every line is on the file when its call returns. Thread-safe.

    Args: mask - takes known secrets out of a text.
    """

    def __init__(self, file: TextIO, path: Path, clock: Clock, mask: Callable[[str], str]) -> None:
        self._file = file
        self.path = path
        self._clock = clock
        self._mask = mask
        self._lock = threading.Lock()

    @classmethod
    def begin(cls, folder: Path, command: str, clock: Clock, mask: Callable[[str], str]) -> RunLog:
        """Start the log of ``command`` (``backup run``). Raises: OSError, when the folder cannot be written."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        kind = command.replace(" ", "-")
        path = folder / f"{kind}-{clock.now():%Y%m%dT%H%M%S.%fZ}-{os.getpid()}.log"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        log = cls(os.fdopen(descriptor, "w", encoding="utf-8"), path, clock, mask)
        log.line("started", f"datamanager {command}")
        _drop_older(folder, kind)
        return log

    def event(self, event: Event) -> None:
        """Progress is left out."""
        match event:
            case PhaseStarted(phase):
                self.line("phase", phase)
            case Warned(message):
                self.line("warning", message)
            case Executed(text):
                self.line("executed", text)

    def result(self, text: str, exit_code: int) -> None:
        self.line("result", text)
        self.line("ended", f"exit code {exit_code}")

    def error(self, error: DataManagerError, trace: str = "") -> None:
        self.line("error", error.message)
        if error.hint:
            self.line("hint", error.hint)
        if trace:
            self.line("trace", trace)
        self.line("ended", f"exit code {error.exit_code}")

    def line(self, kind: str, text: str) -> None:
        """One entry; further lines of ``text`` are indented."""
        time = f"{self._clock.now():%Y-%m-%dT%H:%M:%S.%f}"[:23]
        body = self._mask(text).replace("\n", "\n    ")
        # A full disk must not fail the run that the log is about.
        with self._lock, contextlib.suppress(OSError):
            self._file.write(f"{time}Z {kind}: {body}\n")
            self._file.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


def _drop_older(folder: Path, kind: str) -> None:
    """Keep the newest logs of this command; their names sort by time."""
    with contextlib.suppress(OSError):
        mine = sorted(
            path for path in folder.iterdir() if (match := _FILE.fullmatch(path.name)) and match["command"] == kind
        )
        for path in mine[:-KEPT]:
            with contextlib.suppress(OSError):
                path.unlink()
