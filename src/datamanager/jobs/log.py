"""The log of a run, in plain text (R95-R99): first what happened, in plain language, then every moment as it came.

One file a run, ``KIND.SUBJECT-TIME-PROCESS.log``; while the run goes on it holds the moments alone. The newest ones of
each job (kind and subject) stay, ``[logs] keep``; pinned ones lie in ``pinned`` and stay for ever. Command line, web
page, API and scheduler share this writer, because all of them run commands.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
import threading
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import TextIO

from datamanager.base.clock import Clock
from datamanager.base.errors import DataManagerError, NotFound
from datamanager.base.events import Event, Executed, PhaseStarted, Touched, Warned
from datamanager.base.files import sync_directory
from datamanager.base.units import format_duration
from datamanager.jobs.run_file import make_folder, new_file, replacing_file
from datamanager.state.model import Job, Trigger
from datamanager.system.locks import is_in_use, mark_in_use

PINNED = "pinned"
DETAILS = "Details"
_FILE = re.compile(r"(?P<job>[a-z-]+(?:\.[^/]+)?)-\d{8}T\d{6}\.\d{6}Z-\d+\.log")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT")
_LONGEST_SUBJECT = 60
_MOST_TOUCHED = 500


def job_name(kind: str, subject: str) -> str:
    """What the names of a job's logs begin with: ``backup-run.clinic``; safe on every system."""
    words = kind.replace(" ", "-")
    if not subject:
        return words
    safe = re.sub(r"[^A-Za-z0-9_-]", "_", subject)[:_LONGEST_SUBJECT]
    if safe != subject:
        # Two subjects that look alike now must not take each other's logs away.
        safe = f"{safe}~{hashlib.sha256(subject.encode(errors='surrogateescape')).hexdigest()[:6]}"
    return f"{words}.{safe}"


class RunLog:
    """Writes one log; every line is on the file when its call returns. Thread-safe.

    Args: mask - takes known secrets out of a text.
    """

    def __init__(self, file: TextIO, path: Path, clock: Clock, mask: Callable[[str], str]) -> None:
        self._file = file
        self.path = path
        self._clock = clock
        self._mask = mask
        self._touched: list[str] = []
        self._lock = threading.Lock()

    @classmethod
    def begin(
        cls, folder: Path, kind: str, subject: str, typed: str, clock: Clock, mask: Callable[[str], str]
    ) -> RunLog:
        """Start the log of a run. Args: typed - the command as it was typed, without secrets. Raises: OSError."""
        make_folder(folder)
        path = folder / f"{job_name(kind, subject)}-{clock.now():%Y%m%dT%H%M%S.%fZ}-{os.getpid()}.log"
        descriptor = new_file(path)
        mark_in_use(descriptor)
        log = cls(os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace"), path, clock, mask)
        log.line("started", typed)
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
            case Touched(text):
                with self._lock:
                    self._touched.append(self._mask(text))
                self.line("touched", text)

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
        # A full disk must not fail the run that the log is about; neither must a line after the end.
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._file.write(f"{time}Z {kind}: {body}\n")
            self._file.flush()

    def close(self, job: Job) -> None:
        """End the log, and put what happened before the details. A full disk costs only that."""
        with self._lock, contextlib.suppress(OSError):
            self._file.close()
        add_summary(self.path, job, self._touched)


def add_summary(path: Path, job: Job, touched: Iterable[str]) -> None:
    """Put what happened before the details of a log, once; a log that is gone or a full disk are let be."""
    with contextlib.suppress(OSError):
        # Root follows no link in the folder of another account.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(descriptor, encoding="utf-8", errors="replace") as file:
            details = file.read()
        if details and not _MOMENT.match(details):
            return
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            with os.fdopen(replacing_file(temporary), "w", encoding="utf-8", errors="backslashreplace") as rewritten:
                rewritten.write("\n".join([*summary(job, touched), "", f"{DETAILS}:", details]))
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def summary(job: Job, touched: Iterable[str]) -> list[str]:
    """A run in plain language, line by line."""
    request = job.request
    about = f" of {request.subject}" if request.subject else ""
    lines = [
        f"{request.kind}{about}: {job.state}",
        shlex.join(["datamanager", *request.kind.split(), *request.arguments]),
        _when(job),
        "",
        f"What happened: {job.summary or 'nothing was said.'}",
    ]
    for name, text in (("Cause", job.cause), ("Effect", job.effect), ("Next step", job.next_step)):
        if text:
            lines.append(f"{name}: {text}")
    if job.warnings:
        lines += ["", f"Warnings ({len(job.warnings)}):", *(f"- {_one_line(one)}" for one in job.warnings)]
    named = list(dict.fromkeys(touched))
    if named:
        lines += ["", "Worked on:", *(f"- {_one_line(one)}" for one in named[:_MOST_TOUCHED])]
        if len(named) > _MOST_TOUCHED:
            lines.append(f"- and {len(named) - _MOST_TOUCHED} more, in the details")
    return lines


def _when(job: Job) -> str:
    parts = []
    if job.started is not None:
        parts.append(f"Began {local_time(job.started)}")
    if job.ended is not None:
        # Of a killed run only its last sign of life is known.
        verb = "ended" if job.exit_code is not None else "last seen"
        parts.append(f"{verb} {local_time(job.ended)}")
        if job.started is not None:
            parts.append(f"took {format_duration(max((job.ended - job.started).total_seconds(), 0.0))}")
    return f"{', '.join(parts)}. {begun_by(job)}"


def begun_by(job: Job) -> str:
    """A sentence: who or what began it."""
    request = job.request
    match request.trigger:
        case Trigger.SCHEDULE:
            return f"Begun by the schedule {request.schedule}{_planned(request.due)}."
        case Trigger.CATCH_UP:
            return f"Begun late by the schedule {request.schedule}{_planned(request.due)}."
        case Trigger.PAGE:
            return f"Begun by {request.who} on the page."
        case Trigger.API:
            return f"Begun by {request.who} through the API."
        case Trigger.PERSON:
            return f"Begun by {request.who}."


def _planned(due: datetime | None) -> str:
    return "" if due is None else f", planned for {local_time(due)}"


def local_time(time: datetime) -> str:
    """``2026-11-23 21:07:12 UTC``: in this computer's zone, to the second."""
    return f"{time.astimezone():%Y-%m-%d %H:%M:%S %Z}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def drop_older(folder: Path, job: str, keep: int) -> None:
    """Keep the newest ``keep`` texts of a job; their names sort by time. Pinned ones lie elsewhere.

    A run that goes on keeps its text: a long one must not lose it to ten short ones.
    """
    with contextlib.suppress(OSError):
        names = [entry.name for entry in os.scandir(folder)]
        mine = sorted(name for name in names if (match := _FILE.fullmatch(name)) and match["job"] == job)
        for name in mine[:-keep]:
            with contextlib.suppress(OSError):
                if not is_in_use(folder / name):
                    (folder / name).unlink()


def find_log(folder: Path, name: str) -> Path | None:
    """Where a log lies, pinned or not; None when its text is not kept any more."""
    if not name or Path(name).name != name:
        return None
    return next((path for path in (folder / name, folder / PINNED / name) if path.is_file()), None)


def pin_log(folder: Path, name: str) -> Path:
    """Let a log never go; returns where it lies then. Idempotent. Raises: NotFound, OSError."""
    path = _require(folder, name)
    pinned = folder / PINNED / name
    if path != pinned:
        make_folder(pinned.parent)
        path.replace(pinned)
        sync_directory(pinned.parent)
    return pinned


def unpin_log(folder: Path, name: str) -> Path:
    """Let a pinned log be one of the newest again, or go. Idempotent. Raises: NotFound, OSError."""
    path = _require(folder, name)
    plain = folder / name
    if path != plain:
        path.replace(plain)
    return plain


def _require(folder: Path, name: str) -> Path:
    path = find_log(folder, name)
    if path is None:
        raise NotFound(
            f"find log: the text of {name or 'this run'} is not kept any more",
            hint="Pin a log to keep it for ever, or set `logs.keep` higher: `datamanager config set logs.keep 50`.",
        )
    return path
