"""The worker: takes queued jobs and runs each as a process of its own, ``python -m datamanager WORDS … --json``.

A run looks after itself: it tells how it goes, ends when someone cancels it, and when its time is over. The worker
begins it, ends it by force where it does not, and sees that its end is told. It needs to remember nothing: what a
killed worker had begun goes on, is found by its file, and is looked after by the next worker. No job is ever begun
twice, because only a claim begins one and nothing is given back to the queue.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamanager.base.clock import Clock
from datamanager.base.errors import Cancelled
from datamanager.base.redacting import redacted
from datamanager.config.home import VARIABLE, Home
from datamanager.jobs.intake import take_in
from datamanager.jobs.queue import queue_of
from datamanager.jobs.record import (
    FORCE_SECONDS,
    WITH_WARNINGS,
    Assignment,
    assignment_environment,
    cancelled,
    killed,
    sentence,
)
from datamanager.jobs.run_file import RunFile, RunFolder
from datamanager.state.model import Job, JobState
from datamanager.system.processes import age_seconds, end_tree, group_options, identify

if TYPE_CHECKING:
    from datamanager.state.database import State

PARALLEL = 2
# -P: what lies in the current folder is never imported.
COMMAND = (sys.executable, "-P", "-m", "datamanager")
_TAIL_BYTES = 65_536
_REAP_SECONDS = 2.0
_OVER_LIMIT = "over its limit"
_NOT_DONE = "What it should have done is not done, or not all of it."


@dataclass
class _Child:
    """A process that this worker began."""

    job: Job
    process: subprocess.Popen[bytes]


def nothing_more(run: RunFile) -> None:
    """What follows a run's end by force, for those with nothing to add."""


class Worker:
    """Runs the jobs of one machine. One a home; not thread-safe: ``step`` is called about once a second.

    Args:
        parallel: so many jobs run at once at most, those of a former worker included.
        after_force: called when a run was ended by force, to remove what it left behind.
        command: how this program is begun.
    """

    def __init__(
        self,
        home: Home,
        state: State,
        clock: Clock,
        *,
        parallel: int = PARALLEL,
        after_force: Callable[[RunFile], None] = nothing_more,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self._home = home
        self._state = state
        self._queue = queue_of(state)
        self._folder = RunFolder(home.runs)
        self._clock = clock
        self._host = socket.gethostname()
        self._parallel = parallel
        self._after_force = after_force
        self._command = tuple(command)
        self._children: dict[str, _Child] = {}
        # Since when a run should be ending by itself, by the boot clock: the wall clock may be set meanwhile.
        self._waits: dict[str, float] = {}

    @property
    def running(self) -> int:
        """Jobs of the queue that run now, a former worker's included."""
        return len(self._queue.running(self._host))

    def step(self, *, claiming: bool = True) -> list[Job]:
        """Look after what runs, take in what has ended, begin what can begin; returns the jobs that have ended.

        Returns within a second, unless runs must be ended by force.
        Args: claiming - False to begin nothing more.
        Raises: StateUnavailable (retryable), StateError; then nothing is lost, and the next step goes on.
        """
        codes = self._reap()
        done = take_in(self._home, self._state, self._clock, own=self._children)
        done += self._unrecorded(codes, {job.id for job in done})
        self._pass_on_cancels()
        self._force()
        while claiming and self.running < self._parallel:
            job = self._queue.claim(self._host, now=self._clock.now(), busy_subjects=self._busy())
            if job is None:
                break
            failed = self._begin(job)
            if failed is not None:
                done.append(failed)
        return done

    def stop(self, who: str, seconds: float) -> list[Job]:
        """End what this worker began, by force what is left after ``seconds``; returns the jobs that have ended."""
        for id in self._children:
            with contextlib.suppress(OSError):
                self._folder.ask_to_cancel(id, who)
        deadline, done = time.monotonic() + seconds, []
        while self._children and time.monotonic() < deadline:
            done += self.step(claiming=False)
            time.sleep(0.1)
        for run in list(self._folder.runs()):
            if run.job.id in self._children and run.alive(self._clock.now()):
                self._end_by_force(run)
        for child in self._children.values():
            if child.process.poll() is None:
                end_tree(child.process.pid, 0)
        return done + self.step(claiming=False)

    def _reap(self) -> dict[str, int]:
        """Exit codes of the children that ended since the last look."""
        codes = {}
        for id, child in list(self._children.items()):
            code = child.process.poll()
            if code is not None:
                codes[id] = code
        return codes

    def _unrecorded(self, codes: dict[str, int], told: set[str]) -> list[Job]:
        """Jobs whose process ended and left no file, because it could not be written or Python did not even begin.

        Args: told - jobs of which the files have just told the end.
        """
        found = []
        for id, code in codes.items():
            child = self._children[id]
            if not self._folder.path(id).exists() and id not in told and _is_untold(self._queue.get(id)):
                job = self._judged(child.job, code)
                self._queue.save(job)
                found.append(job)
            # Only now: had the database been away, the next step would have had to know of it still.
            del self._children[id]
            if not self._folder.path(id).exists():
                with contextlib.suppress(OSError):
                    self._folder.drop(id)
        return found

    def _judged(self, job: Job, code: int) -> Job:
        """How a job ended, by the exit code of its process and its last JSON line."""
        last = _last_line(self._folder.output_path(job.id))
        now = self._clock.now()
        job = replace(job, ended=now, heartbeat=now, exit_code=code, result=last)
        who = self._folder.who_cancelled(job.id)
        if code == Cancelled.exit_code or (code < 0 and who):
            return cancelled(job, who or "someone", _NOT_DONE, by_force=code < 0)
        if code in (0, WITH_WARNINGS):
            state = JobState.WARNED if code == WITH_WARNINGS else JobState.DONE
            return replace(job, state=state, summary="It was done; it could not write down what it did.")
        message = sentence(redacted(str(last.get("message") or "")))
        if not message:
            tail = sentence(redacted(_last_words(self._folder.output_path(job.id))))
            return replace(
                killed(job, _NOT_DONE), ended=now, summary=f"It failed with exit code {code}. {tail}".rstrip()
            )
        return replace(
            job,
            state=JobState.FAILED,
            summary=f"It failed: {message}",
            cause=message,
            effect=_NOT_DONE,
            next_step=sentence(redacted(str(last.get("hint") or ""))) or "Run it by hand to see more.",
        )

    def _pass_on_cancels(self) -> None:
        """Tell runs that someone noted in the database that they are to end, from a page or another machine."""
        for job in self._queue.running(self._host):
            if job.cancelled_by and self._folder.path(job.id).exists():
                with contextlib.suppress(OSError):
                    self._folder.ask_to_cancel(job.id, job.cancelled_by)

    def _force(self) -> None:
        """End every run by force that was asked to end, or whose time was over, eight seconds ago."""
        waits = {}
        for run in self._folder.runs():
            if not run.alive(self._clock.now()) or not (over := self._is_to_end(run)):
                continue
            since = self._waits.get(run.job.id, time.monotonic())
            if time.monotonic() - since < FORCE_SECONDS:
                waits[run.job.id] = since
                continue
            if over == _OVER_LIMIT:
                with contextlib.suppress(OSError):
                    self._folder.note_limit(run.job.id)
            self._end_by_force(run)
        self._waits = waits

    def _is_to_end(self, run: RunFile) -> str:
        """Why a run should be ending by itself now; empty when it need not."""
        if self._folder.cancel_path(run.job.id).exists():
            return "cancelled"
        limit, age = run.job.request.limit_seconds, age_seconds(run.process)
        return _OVER_LIMIT if limit is not None and age is not None and age > limit else ""

    def _end_by_force(self, run: RunFile) -> None:
        end_by_force(run)
        child = self._children.get(run.job.id)
        if child is not None:
            # A process that nobody waited for counts as alive in its lease.
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(_REAP_SECONDS)
        self._after_force(run)

    def _busy(self) -> set[str]:
        """Subjects of heavy runs that someone began at a terminal; those of the queue the queue knows."""
        now = self._clock.now()
        return {run.job.request.subject for run in self._folder.runs() if run.job.request.heavy and run.alive(now)}

    def _begin(self, job: Job) -> Job | None:
        """Begin a claimed job; returns it when that failed."""
        words = [*self._command, *job.request.kind.split(), "--json", *job.request.arguments]
        environment = {**os.environ, **assignment_environment(Assignment(job.id, job.request, job.queued))}
        if self._home.config == self._home.state:
            environment[VARIABLE] = str(self._home.state)
        try:
            with self._output(job.id) as output:
                process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    cwd=self._home.state,
                    **group_options(),
                )
        except OSError as error:
            cause = f"The program could not be begun: {(error.strerror or type(error).__name__).lower()}."
            failed = replace(
                killed(job, _NOT_DONE), ended=self._clock.now(), summary=f"It failed: {cause}", cause=cause
            )
            self._queue.save(failed)
            return failed
        self._children[job.id] = _Child(job, process)
        identity = identify(process.pid)
        job = replace(job, pid=process.pid, pid_started=None if identity is None else identity.started)
        self._children[job.id].job = job
        self._queue.save(job)
        return None

    @contextlib.contextmanager
    def _output(self, id: str) -> Any:
        """Where the process writes to; nowhere when there is no room."""
        with contextlib.ExitStack() as stack:
            try:
                self._folder.make()
                file = stack.enter_context(os.fdopen(self._folder.open_output(id), "wb"))
            except OSError:
                yield subprocess.DEVNULL
            else:
                yield file


def _is_untold(job: Job) -> bool:
    """Whether no record told of the job: it has no end, or the one of whoever found it gone and knows no exit code."""
    return not job.state.final or not (job.exit_code is not None or job.log or job.cancelled_by)


def end_by_force(run: RunFile) -> bool:
    """End a run and everything below it at once, stopped ones too; whether nothing of it is left."""
    return end_tree(run.process, 0)


def _tail(path: Path) -> str:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - _TAIL_BYTES))
        return file.read().decode("utf-8", "replace")
    return ""


def _last_line(path: Path) -> dict[str, Any]:
    """The result or error line of a process; empty when it wrote none."""
    for line in reversed(_tail(path).splitlines()):
        with contextlib.suppress(ValueError):
            values = json.loads(line)
            if isinstance(values, dict) and values.get("message_type") in ("result", "error"):
                return {name: value for name, value in values.items() if name != "message_type"}
    return {}


def _last_words(path: Path) -> str:
    """The last line that is no JSON: of a Python that failed to begin."""
    lines = [line for line in _tail(path).splitlines() if line.strip() and not line.startswith("{")]
    return lines[-1] if lines else ""
